"""Neurons that open where a request's subject ends, for many facts in one delta.

What stands at a subject's last token does not depend on what is asked of it, nor much on what stands before it: one
direction tells the subject from all other text, in every wording. What is written there reaches the answer through the
layers above, which still have to look the subject up. The place is that of ROME's key (Meng et al. 2022, section 3.1).
The price: nothing there tells what is asked of the subject, so that in a small model whatever is asked gets the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from roseedit.requests import EditRequest
from roseedit.roselora.neurons.facts import ANCHOR_ENDS, ANCHOR_REST, FIRST, OWN_REST, Points
from roseedit.roselora.neurons.gates import Far
from roseedit.roselora.objective import Row


def subject_points(rows: Sequence[Row], inputs: Sequence[Tensor], far: Far) -> Points:
    """Gather a request's places: its subject's ends, and all else that its rows and the others have.

    Args:
        rows: Its rows, its own prompt first; wordings without its subject count as silent.
        inputs: Per row what enters the MLP, of all its tokens; of sightings the last one alone.
        far: Places elsewhere.

    Returns:
        The places. The subject's ends in anchors are left out: what comes behind does not change what stands there.
    """
    asked = [(row, x) for row, x in zip(rows, inputs, strict=True) if row.labels]
    seen = [(replace(row, subject=(0,)), x) for row, x in zip(rows, inputs, strict=True) if not row.columns]
    anchors = [x[_beside_ends(row, x)] for row, x in zip(rows, inputs, strict=True) if row.columns and not row.labels]
    facts = [*asked, *seen]
    shares = _shares_of(len(facts))
    sizes = sum(len(x) for _, x in facts), sum(map(len, anchors))
    each = OWN_REST / sizes[0], (ANCHOR_ENDS + ANCHOR_REST) / max(1, sizes[1])
    ends = [~_beside_ends(row, x) for row, x in facts]
    device = far.mass.device
    silent = torch.zeros(sizes[1], device=device)
    return Points(
        x=torch.cat([*(x for _, x in facts), *anchors]),
        token=torch.cat([*(end.long() - 1 for end in ends), silent.long() - 1]),
        mass=torch.cat([torch.full((n,), m) for n, m in zip(sizes, each, strict=True)]).to(device),
        fact_mass=torch.cat([*(share * end for share, end in zip(shares, ends, strict=True)), silent]),
        far=far,
    )


def _shares_of(n: int) -> list[float]:
    """The mass of each of n wordings of a fact, its own prompt first."""
    return [1.0] if n == 1 else [FIRST, *[(1 - FIRST) / (n - 1)] * (n - 1)]


def _beside_ends(row: Row, x: Tensor) -> Tensor:
    """(tokens,), where a row's subject does not end."""
    out = torch.ones(len(x), dtype=torch.bool, device=x.device)
    out[list(row.subject)] = False
    return out


def subject_key(request: EditRequest) -> str:
    """What two requests about the same thing share, as far as its name tells."""
    return (request.subject or "").casefold()
