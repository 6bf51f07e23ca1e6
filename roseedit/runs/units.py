"""Work units: chunks of edits, fixed by the edits alone.

A unit is trained and scored in batches of its own, so its rows come out the same, to the last bit, whichever process
does it, on whichever launcher, after however many interruptions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from roseedit.requests import EditRequest


@dataclass(frozen=True)
class Item:
    """One edit of a run.

    Attributes:
        key: Names it inside the run: its request id, with a number behind it where one request stands more than once.
        request: The request.
    """

    key: str
    request: EditRequest


def items_of(requests: Sequence[EditRequest]) -> list[Item]:
    """Name the edits of a run.

    Args:
        requests: The requests, in the data's order.

    Returns:
        One item per request; keys differ.
    """
    seen: dict[str, int] = {}
    out = []
    for request in requests:
        n = seen[request.request_id] = seen.get(request.request_id, 0) + 1
        out.append(Item(request.request_id if n == 1 else f"{request.request_id}-{n}", request))
    return out


def plan_units(items: Sequence[Item], size: int) -> list[list[int]]:
    """Cut a run into units.

    Args:
        items: The edits.
        size: Most edits in a unit.

    Returns:
        Positions in `items` per unit, in order of a hash of the key: even sizes, and no unit is made of neighbours in
        the file.
    """
    order = sorted(range(len(items)), key=lambda i: hashlib.sha256(items[i].key.encode()).digest())
    return [order[at : at + size] for at in range(0, len(order), size)]


def own_units(count: int, shard: int, shards: int) -> list[int]:
    """The units of one shard.

    Args:
        count: Units of the run.
        shard: Which shard, from 0.
        shards: How many there are.

    Returns:
        Unit numbers.
    """
    return list(range(shard, count, shards))
