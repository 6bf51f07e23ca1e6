"""What a row's first tokens leave in the layers above, so that they need not be run again.

A token sees only those before it: as long as nothing changes what enters layer l at a row's first tokens, their keys
and values in layer l and above are the same in every pass. They are worked out once, and a pass then runs the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from roseedit.models.agreement import agree
from roseedit.models.encoding import pad_right, plan_batches
from roseedit.models.head import last_mlp_at
from roseedit.models.load import LoadedModel
from roseedit.models.replay import replaying, run_body

KINDS = {"full_attention", "sliding_attention"}  # layers that can keep keys and values of every token


@dataclass(frozen=True)
class Past:
    """One row's first tokens.

    Attributes:
        kept: Per layer that runs, from the lowest up, keys and values, (2, heads, length, head size), or nothing.
    """

    kept: tuple[Tensor, ...] = ()

    @property
    def length(self) -> int:
        """How many."""
        return self.kept[0].shape[2] if self.kept else 0


def strange_layers(loaded: LoadedModel) -> str:
    """The kinds of a model's layers that keep no keys and values of their own of every token, by name; "" without any.

    Args:
        loaded: The model.

    Returns:
        Their names, for a message.
    """
    config = loaded.model.config.get_text_config()
    shared = {"shared K/V"} if getattr(config, "kv_sharing_modes", None) else set()
    return ", ".join(sorted({*(getattr(config, "layer_types", None) or ())} - KINDS | shared))


class PastCache(Cache):
    """Keys and values of some rows' first tokens, for one pass; what comes in is seen, not kept.

    Args:
        n_layers: Of the model.
        first: Lowest layer that runs.
        pasts: One per row; an empty one where a row has no past.
    """

    def __init__(self, n_layers: int, first: int, pasts: Sequence[Past]) -> None:
        self.lengths = torch.tensor([past.length for past in pasts])
        self.length = int(self.lengths.max())
        layers: list[Any] = [_Layer(self.length, _aligned(pasts, i - first, self.length)) for i in range(n_layers)]
        super().__init__(layers=layers)

    def mask(self, device: torch.device) -> Tensor:
        """(rows, length), 1 where a row has a first token: short pasts stand at the right."""
        return (torch.arange(self.length) >= self.length - self.lengths[:, None]).long().to(device)

    def seen(self, layer: int) -> Tensor:
        """(2, rows, heads, tokens, head size), keys and values that came into a layer."""
        slot: Any = self.layers[layer]
        return torch.stack([slot.keys, slot.values])


class _Layer(CacheLayerMixin):
    """One layer's; `past` is None below the lowest that runs."""

    is_sliding = False  # sliding layers keep all tokens too; their mask does the sliding
    is_croppable = False
    keys: Any
    values: Any

    def __init__(self, length: int, past: Tensor | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.length, self.past = length, past

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.keys, self.values = key_states, value_states
        if self.past is None:
            return key_states, value_states
        return torch.cat([self.past[0], key_states], -2), torch.cat([self.past[1], value_states], -2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1


def _aligned(pasts: Sequence[Past], layer: int, length: int) -> Tensor | None:
    """(2, rows, heads, length, head size) of one layer, zeros in front of short pasts; None where there is none."""
    some = next((past.kept[layer] for past in pasts if past.kept), None) if layer >= 0 and length else None
    if some is None:
        return None
    out = some.new_zeros(2, len(pasts), some.shape[1], length, some.shape[3])
    for row, past in enumerate(pasts):
        if past.length:
            out[:, row, :, length - past.length :] = past.kept[layer]
    return out


@torch.no_grad()
def pasts_of(  # noqa: PLR0917 - two call sites
    loaded: LoadedModel,
    layer: int,
    rows: Sequence[Sequence[int]],
    entering: Sequence[Tensor],
    tokens: int,
    products: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> list[Past]:
    """Run rows' first tokens through a layer and those above, once.

    Args:
        loaded: The model, frozen.
        layer: Lowest layer that runs.
        rows: Token ids of the first tokens; empty where a row has none.
        entering: Per row (tokens, hidden), what enters the layer there.
        tokens: Most tokens in one pass.
        products: The arithmetic of the passes.

    Returns:
        One past per row.
    """
    out = [Past()] * len(rows)
    wanted = [i for i, row in enumerate(rows) if row]
    for batch in plan_batches([len(rows[i]) for i in wanted], tokens):
        own = [wanted[k] for k in batch]
        ids, mask = pad_right([rows[i] for i in own], loaded.pad_id, loaded.device)
        stored = entering[own[0]].new_zeros(*ids.shape, loaded.anatomy.hidden_size)
        for place, i in enumerate(own):
            stored[place, : len(rows[i])] = entering[i]
        cache = PastCache(loaded.anatomy.n_layers, layer, [Past()] * len(own))
        first = torch.zeros(1, dtype=torch.long, device=loaded.device)  # of the last MLP nothing is wanted
        with (
            products(),
            replaying(loaded.model, loaded.anatomy, layer, stored),
            last_mlp_at(loaded.model, loaded.anatomy, first, first),
        ):
            run_body(loaded.model, ids, mask, head=False, past=cache)
        seen = [cache.seen(i) for i in range(layer, loaded.anatomy.n_layers)]
        for place, i in enumerate(own):
            n = len(rows[i])
            out[i] = Past(tuple(of[:, place, :, :n].clone() for of in seen))
    return out


@torch.no_grad()
def has_past(loaded: LoadedModel) -> bool:
    """Whether a pass that goes on from first tokens says what one over all of them says; found by trying.

    Args:
        loaded: The model, frozen.

    Returns:
        False too for models with layers that keep no keys and values of their own, such as state-space layers.
    """
    if strange_layers(loaded):
        return False
    rows, cut = [[1, 2, 3, 4], [2, 3, 1]], (2, 1)
    ids, mask = pad_right(rows, loaded.pad_id, loaded.device)
    whole = run_body(loaded.model, ids, mask)
    firsts = [row[:n] for row, n in zip(rows, cut, strict=True)]
    nothing = [whole.new_zeros(n, loaded.anatomy.hidden_size) for n in cut]  # the lowest layer is entered by ids
    cache = PastCache(loaded.anatomy.n_layers, 0, pasts_of(loaded, 0, firsts, nothing, ids.numel()))
    ids, mask = pad_right([row[n:] for row, n in zip(rows, cut, strict=True)], loaded.pad_id, loaded.device)
    rest = run_body(loaded.model, ids, mask, past=cache)
    return agree((rest[i], whole[i, n : n + 2]) for i, n in enumerate(cut))
