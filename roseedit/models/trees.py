"""Rows that begin alike run once where they do: as trees, each token seeing its own beginning alone.

Wordings of a fact and the prompts it must not touch share many first words. Sorted, rows that begin alike stand side by
side; a tree holds some of them, every shared beginning once, and a mask lets each token see the path from the root to
itself. What leaves a layer at a token is what would leave it in a row of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from roseedit.models.agreement import agree
from roseedit.models.encoding import pad_right
from roseedit.models.load import LoadedModel
from roseedit.models.replay import run_body

SIZE = 128  # tokens of a tree: larger ones share little more, and attention looks at all pairs


@dataclass(frozen=True)
class Tree:
    """Some rows.

    Attributes:
        ids: Its tokens, each behind those that it sees.
        parents: Of each token the one before it; -1 at the first of a row.
        paths: Per row, by its index, the places of its tokens.
    """

    ids: tuple[int, ...]
    parents: tuple[int, ...]
    paths: Mapping[int, tuple[int, ...]]

    @cached_property
    def sees(self) -> Tensor:
        """(tokens, tokens) bool: whether the token of the row sees that of the column."""
        out = torch.eye(len(self.ids), dtype=torch.bool)
        for place, parent in enumerate(self.parents):
            if parent >= 0:
                out[place] |= out[parent]
        return out


@dataclass(frozen=True)
class Sight:
    """What the tokens of one pass see.

    Attributes:
        mask: (trees, 1, tokens, tokens), added to the scores: 0 where the one of the row sees that of the column.
        positions: (trees, tokens), places in their rows.
    """

    mask: Tensor
    positions: Tensor


def grown(rows: Sequence[Sequence[int]], size: int = SIZE) -> list[Tree]:
    """Put rows into trees.

    Args:
        rows: Token ids.
        size: Most tokens of a tree; a longer row gets one of its own.

    Returns:
        Trees; every row is in one of them.
    """
    out: list[Tree] = []
    ids: list[int] = []
    parents: list[int] = []
    paths: dict[int, tuple[int, ...]] = {}
    before: Sequence[int] = ()
    path: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: (tuple(rows[i]), i)):
        shared = _alike(before, rows[i]) if ids else 0
        if ids and len(ids) + len(rows[i]) - shared > size:
            out.append(Tree(tuple(ids), tuple(parents), paths))
            ids, parents, paths, shared = [], [], {}, 0
        path = path[:shared]
        for token in rows[i][shared:]:
            parents.append(path[-1] if path else -1)
            path.append(len(ids))
            ids.append(token)
        paths[i], before = tuple(path), rows[i]
    return [*out, Tree(tuple(ids), tuple(parents), paths)] if ids else out


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens two rows share."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def sight_of(trees: Sequence[Tree], width: int, dtype: torch.dtype, device: torch.device) -> Sight:
    """What the tokens of some trees see.

    Args:
        trees: The trees of one pass.
        width: Tokens of the pass; what stands behind a short tree sees itself.
        dtype: Of the model's numbers.
        device: Where to put the result.

    Returns:
        Mask and positions.
    """
    sees = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)
    for n, tree in enumerate(trees):
        sees[n, : len(tree.ids), : len(tree.ids)] = tree.sees
    positions = sees.sum(-1) - 1
    mask = torch.zeros(sees.shape, dtype=dtype).masked_fill_(~sees, torch.finfo(dtype).min)
    return Sight(mask[:, None].to(device), positions.to(device))


def sliding_window(loaded: LoadedModel) -> float:
    """Tokens of the longest row that a tree may hold: a window that slides along a row knows nothing of trees."""
    return getattr(loaded.model.config.get_text_config(), "sliding_window", None) or math.inf


@torch.no_grad()
def has_trees(loaded: LoadedModel) -> bool:
    """Whether a model says in a tree what it says in rows; found by trying.

    Args:
        loaded: The model, frozen.

    Returns:
        True when trees may be used for rows within its `sliding_window`.
    """
    rows = [[1, 2, 3, 4], [1, 2, 4], [1, 2], [2, 3, 1]]
    ids, mask = pad_right(rows, loaded.pad_id, loaded.device)
    whole = run_body(loaded.model, ids, mask)
    (tree,) = grown(rows)
    ids, mask = pad_right([tree.ids], loaded.pad_id, loaded.device)
    found = run_body(loaded.model, ids, mask, sight=sight_of([tree], len(tree.ids), whole.dtype, loaded.device))
    return agree((found[0, list(path)], whole[i, : len(path)]) for i, path in tree.paths.items())
