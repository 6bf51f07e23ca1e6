"""How much memory a run with neurons takes beside the model, and how many edits fit side by side.

The formula, with its letters, stands under Memory in docs/architecture.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from roseedit.errors import CapacityError, refusal
from roseedit.models.answers import POSITIONS
from roseedit.models.load import LoadedModel
from roseedit.models.lowp import products_are_low
from roseedit.roselora.config import RoseLoRAHparams
from roseedit.roselora.memory import free_memory
from roseedit.roselora.neurons.mlp import Neurons
from roseedit.roselora.neurons.stages import STAGES

EDITS = 32  # at a time; more would only take memory
ROW_TOKENS = 24  # of a usual row
MB = 1_000_000


@dataclass(frozen=True)
class Room:
    """Bytes that a run takes.

    Attributes:
        fixed: However many edits there are.
        per_edit: For each of those made side by side.
    """

    fixed: int
    per_edit: int


def room_of(loaded: LoadedModel, neurons: Neurons, hparams: RoseLoRAHparams, tokens: int) -> Room:
    """Reckon by the formula of docs/architecture.md.

    Args:
        loaded: The model.
        neurons: The layer.
        hparams: The settings.
        tokens: Most tokens in one pass.

    Returns:
        Bytes beside the model's own.
    """
    anatomy, hidden = loaded.anatomy, loaded.anatomy.hidden_size
    inner = max(p.d_in + p.d_out for p in anatomy.projections) - hidden
    low = products_are_low(loaded, hparams.train_dtype)
    head = loaded.model.get_output_embeddings().weight.shape

    def copies(upper: bool) -> int:
        mine = (p for p in anatomy.projections if (p.layer > neurons.layer) == upper and not p.packed)
        own = sum(p.d_in * p.d_out for p in mine)
        return 2 * low * (own + (head.numel() if upper else 0))

    looking = copies(upper=False) // STAGES + tokens * (2 * hidden + 6 * inner) * 4
    above = max(1, anatomy.n_layers - 1 - neurons.layer)
    training = copies(upper=True) + tokens * above * (8 * hidden + 6 * inner) * 4 + 14 * POSITIONS * head[0]
    facts = 1 + hparams.contexts + hparams.rewrites + hparams.rewordings + hparams.after_text
    stored = facts * (neurons.opens.d_in + hidden) + hparams.n_anchors * hidden
    return Room(max(looking, training), stored * ROW_TOKENS * 4)


def side_by_side(loaded: LoadedModel, neurons: Neurons, hparams: RoseLoRAHparams, tokens: int) -> int:
    """How many edits to make at a time.

    Args:
        loaded: The model.
        neurons: The layer.
        hparams: The settings; `edits_per_bank` is the most.
        tokens: Most tokens in one pass.

    Returns:
        At least 1.

    Raises:
        CapacityError: Not even one fits; said before any work.
    """
    room, free = room_of(loaded, neurons, hparams, tokens), free_memory(loaded.device)
    fitting = (free - room.fixed) // room.per_edit
    if fitting < 1:
        got = f"{free // MB:,} MB free, with {(room.fixed + room.per_edit) // MB:,} MB wanted beside the model"
        do = "Load the model in bfloat16, lower `batch_tokens`, or free memory."
        raise CapacityError(refusal(got, "at least as much as is wanted", do))
    return int(min(EDITS, hparams.edits_per_bank or EDITS, fitting))
