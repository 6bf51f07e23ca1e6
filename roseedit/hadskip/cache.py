"""One K/V cache for all paths through a model, with one length for all layers.

Every layer writes behind the committed length and nothing counts as cached until the loop commits it. So a draft that
ran few layers is rolled back by not committing it, the full pass overwrites its columns, and all layers have equal
length at any time. Layers that never ran hold no memory. Buffers grow by doubling instead of being copied per token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from roseedit.errors import SkipError, refusal
from roseedit.models.load import LoadedModel
from roseedit.models.past import strange_layers

SPARE = 64  # columns beyond what is asked for when buffers grow


class SharedCache(Cache):
    """K/V of all layers of one batch.

    Args:
        loaded: The model.
        room: Columns to make room for at first.

    Raises:
        SkipError: The model has layers without K/V of their own, such as state-space layers.
    """

    def __init__(self, loaded: LoadedModel, room: int) -> None:
        if strange := strange_layers(loaded):
            message = refusal(
                f"a model with layers of kind {strange}",
                "layers that each keep K/V of every token",
                "Use its own generate().",
            )
            raise SkipError(message)
        self.length = 0
        self.room = room
        super().__init__(layers=[_Slot(self) for _ in range(loaded.anatomy.n_layers)])

    def commit(self, tokens: int) -> None:
        """Count the last `tokens` written columns as cached."""
        self.length += tokens

    def make_room(self, columns: int) -> None:
        """Let buffers hold at least so many columns from their next write on."""
        if columns > self.room:
            self.room = max(columns + SPARE, 2 * self.room)

    def select(self, rows: Tensor, length: int | None = None) -> SharedCache:
        """The same cache for some of the rows.

        Args:
            rows: (kept,) their places.
            length: Committed length of the new cache; left out: as here.

        Returns:
            A new cache; buffers are copied.
        """
        out = SharedCache.__new__(SharedCache)
        out.length, out.room = self.length if length is None else length, self.room
        Cache.__init__(out, layers=[slot.select(rows, out) for slot in self.slots])
        return out

    def rearrange(self, columns: Tensor, length: int) -> None:
        """Move columns within each row.

        Args:
            columns: (rows, length) which column comes to each place.
            length: New committed length.
        """
        for slot in self.slots:
            slot.rearrange(columns)
        self.length = length

    @property
    def slots(self) -> list[_Slot]:
        """The layers' K/V."""
        slots: Any = self.layers
        return list(slots)


class _Slot(CacheLayerMixin):
    """K/V of one layer: buffers of shape (rows, heads, room, head size), filled up to the cache's length."""

    is_sliding = False  # sliding layers keep all tokens too; their mask does the sliding
    is_croppable = True
    keys: Any
    values: Any

    def __init__(self, cache: SharedCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys = self._buffer(key_states)
        self.values = self._buffer(value_states)
        self.is_initialized = True

    def _buffer(self, like: Tensor) -> Tensor:
        return like.new_empty(*like.shape[:2], self.cache.room, like.shape[3])

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start = self.cache.length
        end = start + key_states.shape[2]
        if self.keys is None or self.keys.shape[2] < end:
            self._grow(key_states, value_states, end)
        keys, values = self.keys, self.values
        keys[:, :, start:end] = key_states
        values[:, :, start:end] = value_states
        return keys[:, :, :end], values[:, :, :end]

    def _grow(self, key_states: Tensor, value_states: Tensor, end: int) -> None:
        self.cache.make_room(end)
        keys, values = self.keys, self.values
        self.lazy_initialization(key_states, value_states)
        if keys is not None:
            n = self.cache.length
            self.keys[:, :, :n], self.values[:, :, :n] = keys[:, :, :n], values[:, :, :n]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.cache.length

    def get_max_length(self) -> int:
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        raise NotImplementedError("the length belongs to the whole cache")

    def select(self, rows: Tensor, cache: SharedCache) -> _Slot:
        out = _Slot(cache)
        if self.keys is not None:
            out.keys, out.values, out.is_initialized = self.keys[rows], self.values[rows], True
        return out

    def rearrange(self, columns: Tensor) -> None:
        if self.keys is None:
            return
        for buffer in (self.keys, self.values):
            index = columns[:, None, :, None].expand(-1, buffer.shape[1], -1, buffer.shape[3])
            buffer[:, :, : columns.shape[1]] = buffer.gather(2, index)


def columns_of(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Where the real columns of each row are, moved to the left.

    Args:
        mask: (rows, columns) of 0 and 1.

    Returns:
        (rows, longest) source columns, and the mask after the move.
    """
    order = (1 - mask).argsort(dim=1, stable=True)
    longest = int(mask.sum(1).max())
    counts = mask.sum(1, keepdim=True)
    after = (torch.arange(longest, device=mask.device) < counts).to(mask.dtype)
    return order[:, :longest], after
