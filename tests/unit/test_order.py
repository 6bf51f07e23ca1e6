"""Which requests each epoch of a joint run looks at."""

from __future__ import annotations

from collections.abc import Callable

import torch

from roseedit.roselora.config import read_roselora
from roseedit.roselora.objective import Row
from roseedit.roselora.order import BreadthFirst

N, BATCH, EPOCHS = 5, 3, 40
Known = Callable[[int, int], float]


def looked_at(known: Known, *, apart: bool) -> list[set[int]]:
    """Per epoch the requests whose rows were looked at; `known(request, epoch)` is what the last look found."""
    hparams = read_roselora({"joint_batch": BATCH})
    rows = [Row(0, request, (1, 2), (0,), (2,), 1.0) for request in range(N) for _ in range(2)]
    order = BreadthFirst(rows, N, hparams, apart=apart)
    found: list[set[int]] = []
    last = torch.zeros(N)
    for epoch in range(EPOCHS):
        seen: set[int] = set()
        for at in range(order.batches):
            chosen = {rows[i].request for i in order.rows_of(epoch * order.batches + at, last)}
            for request in chosen:
                last[request] = known(request, epoch)
            seen |= chosen
        found.append(seen)
    return found


def epochs_of(found: list[set[int]], request: int) -> list[int]:
    return [epoch for epoch, seen in enumerate(found) if request in seen]


def test_what_is_not_learned_is_looked_at_in_every_epoch() -> None:
    for apart in (False, True):
        assert all(seen == set(range(N)) for seen in looked_at(lambda *_: 0.0, apart=apart))


def test_what_is_learned_rests_every_other_epoch() -> None:
    found = looked_at(lambda request, _: float(request != 0), apart=False)
    assert epochs_of(found, 0) == list(range(EPOCHS))
    assert all(seen == set(range(N)) for seen in found[::2])
    # A mini-batch of which nothing is due looks at one request all the same.
    assert all(len(seen) <= 2 for seen in found[1::2])


def test_what_does_not_change_the_others_rests_ever_longer() -> None:
    found = looked_at(lambda request, _: float(request != 0), apart=True)
    assert epochs_of(found, 0) == list(range(EPOCHS))
    assert all(epochs_of(found, request) == [0, 1, 3, 7, 15, 31] for request in range(1, N))


def test_what_was_lost_is_learned_again_before_it_rests() -> None:
    def known(request: int, epoch: int) -> float:
        return float(request != 1 or not 7 <= epoch < 11)

    assert epochs_of(looked_at(known, apart=True), 1) == [0, 1, 3, 7, 8, 9, 10, 11, 12, 14, 18, 26]
