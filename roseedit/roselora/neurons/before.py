"""What stands in a row before any of its edit's neurons speaks: run once, not in every step.

Training moves columns, and a column reaches only the tokens at which its neuron speaks and those behind. An answer's
neurons speak at its end of the prompt, so that most of a row is the same in every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from roseedit.models.load import LoadedModel
from roseedit.models.lowp import products_in
from roseedit.models.past import Past, has_past, pasts_of
from roseedit.roselora.memory import SHARE, free_memory
from roseedit.roselora.neurons.looks import Place
from roseedit.roselora.neurons.remembered import remembered
from roseedit.roselora.neurons.trainer import Columns
from roseedit.roselora.objective import Row
from roseedit.roselora.trainer import frozen

SPOKEN = 0.01  # of what a neuron says on its fact: less, in the tokens before, is left out while training


def before_speech(  # noqa: PLR0917 - one call site
    loaded: LoadedModel,
    place: Place,
    rows: Sequence[Row],
    edits: Sequence[Columns],
    entering: Sequence[Tensor],
    tokens: int,
    arithmetic: str,
) -> list[Past]:
    """Run the first tokens of rows, with what the edits' neurons used to say taken away.

    Args:
        loaded: The model.
        place: Where training starts.
        rows: Fact rows; `row.edit` is the place among the edits.
        edits: The edits' neurons.
        entering: Per row (tokens, hidden), what enters the first layer that training runs.
        tokens: Most tokens in one pass.
        arithmetic: As of `products_in`.

    Returns:
        One per row; none at all where training has to run whole rows: it starts no higher than the neurons' own layer,
        the model's layers keep no keys and values, or there is no memory for these.
    """
    if place.start <= place.neurons.layer:
        return []
    lengths = [_silent_until(row, edits[row.edit].speech[i]) for i, row in enumerate(rows)]
    if not 0 < sum(lengths) * _width(loaded, place.start) <= SHARE * free_memory(loaded.device):
        return []
    with frozen(loaded.model):
        if not remembered(loaded.model, "past", (), lambda: has_past(loaded)):
            return []
        firsts = [row.ids[:n] for row, n in zip(rows, lengths, strict=True)]
        silent = [
            x[:n] - (edits[row.edit].silenced[i][:n] @ edits[row.edit].old).to(x.dtype)
            for i, (row, x, n) in enumerate(zip(rows, entering, lengths, strict=True))
        ]
        return pasts_of(loaded, place.start, firsts, silent, tokens, products_in(loaded, arithmetic, place.start))


def _silent_until(row: Row, speech: Tensor) -> int:
    """The first token that training has to run: one is spoken at, or asked for."""
    spoken = (speech.abs() > SPOKEN).any(-1).nonzero()[:1, 0].tolist()
    return min([*spoken, *row.columns])


def _width(loaded: LoadedModel, start: int) -> int:
    """Bytes of one token's keys and values in the layers that training runs."""
    roles = "attn.k", "attn.v", "attn.qkv"  # of which a third or more are queries
    size = loaded.model.dtype.itemsize
    return sum(p.d_out * size for p in loaded.anatomy.projections if p.role in roles and p.layer >= start)


def behind(edit: Columns, pasts: Sequence[Past]) -> Columns:
    """An edit's neurons at the tokens behind those that are run once.

    Args:
        edit: The neurons.
        pasts: Per row its first tokens.

    Returns:
        The same with less.
    """
    return replace(
        edit,
        speech={i: said[pasts[i].length :] for i, said in edit.speech.items()},
        silenced={i: said[pasts[i].length :] for i, said in edit.silenced.items()},
    )
