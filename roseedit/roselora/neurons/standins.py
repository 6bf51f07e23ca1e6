"""What a layer's other neurons can take over of those that many facts in it have silenced.

What a silenced neuron wrote can be guessed, in part, from what the others write at the same place; their columns are
moved so that on text the layer's output changes least (least squares, as in the pruning of channels by He, Zhang and
Sun, arXiv 1707.06168, equation 1 with the kept channels given). A delta so completed touches the whole outward matrix
of that layer, so it is for runs whose silence would cost more.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from roseedit.errors import CapacityError, refusal
from roseedit.roselora.adapter import Factors
from roseedit.roselora.memory import free_memory
from roseedit.roselora.neurons.mlp import Neurons, weight_of
from roseedit.roselora.neurons.room import MB
from roseedit.roselora.neurons.texts import Texts
from roseedit.roselora.trainer import Trained, frozen

BYTES = 24  # per pair of neurons: their product, the same in double precision, and what the solver makes of that
RIDGE = 0.1  # of the neurons' mean square: 0.001 to 1 explain as much of unseen text, within a tenth


def taken_over(texts: Texts, silenced: Collection[int], *, scale: float = 1.0) -> Trained:
    """Let the others of a layer take over for some.

    Args:
        texts: What the model is to say as before on, the layer's neurons as they were.
        silenced: Which of them say nothing in ordinary text any more.
        scale: c in W0 + c B A.

    Returns:
        The change of the layer's outward matrix, of rank d_out; the columns of the silenced are left out.
    """
    loaded, down = texts.loaded, texts.neurons.down
    with frozen(loaded.model):
        overlap = texts.overlap()
    columns = weight_of(loaded.model, down).float()
    change = standing_in(columns, overlap, torch.tensor(sorted(silenced))).to(columns.device)
    b = torch.eye(down.d_out, device=columns.device) / scale
    return Trained({down.module_name: Factors(change, b)}, 0, 1.0, True)


@torch.no_grad()
def standing_in(columns: Tensor, overlap: Tensor, silenced: Tensor) -> Tensor:
    """The change of a layer's columns with which it writes most nearly what it wrote before some were silenced.

    Args:
        columns: (d_out, neurons), as they were.
        overlap: (neurons, neurons), mean products of what they hand to their columns.
        silenced: (n,) neurons.

    Returns:
        (d_out, neurons), float32, zero in the columns of the silenced.
    """
    overlap, old = overlap.cpu(), columns.double().cpu()  # once per run; small devices lack the room for it
    silent = torch.zeros(len(overlap), dtype=torch.bool)
    silent[silenced] = True
    rest = (~silent).nonzero()[:, 0]
    among = overlap[rest[:, None], rest].double()
    among.diagonal().add_(RIDGE * among.diagonal().mean())
    change = torch.zeros_like(old)
    missed = overlap[rest[:, None], silenced].double() @ old[:, silenced].mT
    change[:, rest] = torch.linalg.solve(among, missed).mT
    return change.float()


def require_room(neurons: Neurons) -> None:
    """Refuse what the machine has no memory for.

    Args:
        neurons: The layer whose neurons are to take over for others.

    Raises:
        CapacityError: Too little is free.
    """
    wanted, free = BYTES * neurons.down.d_in**2, free_memory(torch.device("cpu"))
    if free < wanted:
        got = f"{free // MB:,} MB free on the processor's side, with {wanted // MB:,} MB wanted by `compensate_from`"
        raise CapacityError(refusal(got, "at least as much", "Set `compensate_from: 0`, or free memory."))
