"""Rows as trees: every shared beginning once, and nothing else changes."""

from __future__ import annotations

import random

import pytest
import torch

from roseedit.models import trees as trees_module
from roseedit.models.encoding import pad_right
from roseedit.models.load import LoadedModel
from roseedit.models.past import has_past
from roseedit.models.replay import run_body
from roseedit.models.trees import grown, has_trees, sight_of


def some_rows(n: int, seed: int = 0) -> list[list[int]]:
    """Rows of few different tokens, so that many begin alike; some are beginnings of others, some equal."""
    rng = random.Random(seed)
    rows = [[rng.randrange(1, 4) for _ in range(rng.randrange(1, 9))] for _ in range(n)]
    return [*rows, rows[0], rows[0][:1]]


@pytest.mark.parametrize("size", [1, 8, 40, 1000])
def test_every_row_is_the_path_of_its_tokens(size: int) -> None:
    rows = some_rows(50)
    trees = grown(rows, size)
    assert sorted(i for tree in trees for i in tree.paths) == list(range(len(rows)))
    for tree in trees:
        assert len(tree.ids) <= max(size, max(len(rows[i]) for i in tree.paths))
        for i, path in tree.paths.items():
            assert [tree.ids[place] for place in path] == rows[i]
            assert [tree.parents[place] for place in path] == [-1, *path[:-1]]
    if size == 1000:  # all in one: as many tokens as there are beginnings
        assert [len(tree.ids) for tree in trees] == [len({tuple(r[:k]) for r in rows for k in range(1, len(r) + 1)})]


def test_no_rows_make_no_trees() -> None:
    assert grown([]) == []


def test_a_token_sees_the_path_to_itself() -> None:
    (tree,) = grown([[5, 6, 7], [5, 8]])
    sight = sight_of([tree], 5, torch.float32, torch.device("cpu"))
    assert tree.ids == (5, 6, 7, 8)
    seen = [[0], [0, 1], [0, 1, 2], [0, 3], [4]]  # the last one only fills up
    assert [(row == 0).nonzero()[:, 0].tolist() for row in sight.mask[0, 0]] == seen
    assert sight.positions.tolist() == [[0, 1, 2, 1, 0]]


def test_a_model_in_bfloat16_may_use_trees_and_pasts(any_model: LoadedModel) -> None:
    any_model.model.to(torch.bfloat16)
    assert has_trees(any_model)
    assert has_past(any_model)


def test_a_sight_that_is_not_minded_is_noticed(any_model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    real = trees_module.run_body
    monkeypatch.setattr(trees_module, "run_body", lambda *a, sight=None, **k: real(*a, **k))
    for dtype in (torch.float32, torch.bfloat16):
        any_model.model.to(dtype)
        assert not has_trees(any_model)


def test_every_model_says_in_trees_what_it_says_in_rows(any_model: LoadedModel) -> None:
    assert has_trees(any_model)
    rows = some_rows(30, seed=1)
    ids, mask = pad_right(rows, any_model.pad_id, any_model.device)
    trees = grown(rows, 24)
    packed, real = pad_right([tree.ids for tree in trees], any_model.pad_id, any_model.device)
    with torch.no_grad():
        whole = run_body(any_model.model, ids, mask)
        sight = sight_of(trees, packed.shape[1], whole.dtype, any_model.device)
        found = run_body(any_model.model, packed, real, sight=sight)
    for n, tree in enumerate(trees):
        for i, path in tree.paths.items():
            torch.testing.assert_close(found[n, list(path)], whole[i, : len(path)], rtol=1e-4, atol=1e-5)
