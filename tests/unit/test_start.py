"""The key-aware start of A against computations written out in full."""

from __future__ import annotations

import torch

from roseedit.roselora.start import cleared, leading_rows


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_without_anchors_nothing_is_cleared() -> None:
    keys = random(2, 3, 8)
    assert torch.equal(cleared(keys, None, 0.1), keys)


def test_a_small_ridge_leaves_nothing_along_the_anchors() -> None:
    keys, anchors = random(2, 3, 40), random(2, 5, 40, seed=1)
    left = cleared(keys, anchors, 1e-6)
    assert (left @ anchors.mT).abs().max() < 1e-3
    assert left.norm() > 0.8 * keys.norm()  # 35 of 40 directions are free


def test_a_large_ridge_clears_almost_nothing() -> None:
    keys, anchors = random(1, 3, 40), random(1, 5, 40, seed=1)
    assert torch.allclose(cleared(keys, anchors, 1e6), keys, atol=1e-3)


def test_rows_of_zeros_do_not_count_as_anchors() -> None:
    keys, anchors = random(1, 3, 40), random(1, 5, 40, seed=1)
    padded = torch.cat([anchors, torch.zeros(1, 7, 40)], 1)
    assert torch.allclose(cleared(keys, padded, 0.1), cleared(keys, anchors, 0.1), atol=1e-5)


def test_an_edit_without_anchors_beside_one_with_them_is_left_alone() -> None:
    keys = 100 * random(2, 3, 12)
    for count in (5, 30):
        anchors = random(2, count, 12, seed=1)
        anchors[1] = 0
        assert torch.allclose(cleared(keys, anchors, 0.1)[1], keys[1], rtol=1e-4)


def test_the_sign_of_a_row_does_not_depend_on_padding() -> None:
    keys, gradients, start = random(1, 6, 20), random(1, 6, 9, seed=1), random(1, 3, 20, seed=2)
    padded = [torch.cat([t, torch.zeros(1, 2, t.shape[-1])], 1) for t in (keys, gradients)]
    assert torch.allclose(leading_rows(keys, gradients, start), leading_rows(*padded, start), atol=1e-4)


def test_more_anchors_than_dimensions_give_the_same_formula() -> None:
    keys, anchors, ridge = random(1, 3, 12), random(1, 30, 12, seed=1), 0.1
    unit = anchors[0].square().sum(-1).mean()
    inverse = torch.linalg.inv(anchors[0].T @ anchors[0] + ridge * unit * torch.eye(12))
    expected = ridge * unit * keys[0] @ inverse
    assert torch.allclose(cleared(keys, anchors, ridge)[0], expected, atol=1e-4)
    few = anchors[:, :12]  # on the border both forms are used: 12 in 12 dimensions, 13 with a row of zeros
    assert torch.allclose(
        cleared(keys, few, ridge), cleared(keys, torch.cat([few, torch.zeros(1, 1, 12)], 1), ridge), atol=1e-4
    )


def test_rows_are_the_singular_vectors_of_the_gradient() -> None:
    keys, gradients, start = random(2, 6, 20), random(2, 6, 9, seed=1), random(2, 3, 20, seed=2)
    rows = leading_rows(keys, gradients, start)
    for edit in range(2):
        expected = torch.linalg.svd(gradients[edit].T @ keys[edit]).Vh[:3]
        cosine = torch.nn.functional.cosine_similarity(rows[edit], expected, dim=-1).abs()
        assert torch.allclose(cosine, torch.ones(3), atol=1e-4)
    assert torch.allclose(rows.norm(dim=-1), start.norm(dim=-1), rtol=1e-4)


def test_more_tokens_than_outputs_give_the_same_rows() -> None:
    keys, gradients, start = random(1, 30, 20), random(1, 30, 9, seed=1), random(1, 3, 20, seed=2)
    expected = torch.linalg.svd(gradients[0].T @ keys[0]).Vh[:3]
    cosine = torch.nn.functional.cosine_similarity(leading_rows(keys, gradients, start)[0], expected, dim=-1).abs()
    assert torch.allclose(cosine, torch.ones(3), atol=1e-4)


def test_where_there_is_no_direction_the_random_start_stays() -> None:
    keys, gradients, start = random(1, 2, 20), random(1, 2, 9, seed=1), random(1, 5, 20, seed=2)
    rows = leading_rows(keys, gradients, start)
    assert torch.equal(rows[:, 2:], start[:, 2:])
    assert not torch.equal(rows[:, :2], start[:, :2])
    assert torch.equal(leading_rows(keys, torch.zeros_like(gradients), start), start)
