"""Deltas on weights: exact in any order, overlapping or not, in every dtype."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from roseedit.edits import touched
from roseedit.edits.delta import GRID_BITS, Delta, MatrixDelta, SparseVectors
from roseedit.edits.live import live_edits
from roseedit.errors import DeltaError


@pytest.fixture(params=[0, touched.SMALL], ids=["listed", "whole"], scope="module", autouse=True)
def kept(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both ways to keep touched entries: as a list, and the whole matrix."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(touched, "SMALL", request.param)
        yield


class TwoMatrices(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.one = nn.Linear(12, 8, bias=False)
        self.two = nn.Linear(6, 10, bias=False)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator))
        self.to(dtype)


def sha(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, p in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(p.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def sparse(rows: int, n: int, keep: int, generator: torch.Generator) -> Tensor:
    out = torch.zeros(rows, n)
    for i in range(rows):
        out[i, torch.randperm(n, generator=generator)[:keep]] = torch.randn(keep, generator=generator)
    return out


def make_delta(seed: int, transposed: bool = False) -> Delta:
    generator = torch.Generator().manual_seed(seed)
    sizes = {"one.weight": (12, 8), "two.weight": (6, 10)}
    matrices = []
    for name, (d_in, d_out) in sizes.items():
        a, b = sparse(2, d_in, 4, generator), sparse(2, d_out, 3, generator)
        matrices.append(MatrixDelta(name, d_in, d_out, transposed, SparseVectors.of(a), SparseVectors.of(b)))
    return Delta(tuple(matrices))


def dense(m: MatrixDelta) -> Tensor:
    return m.b.dense(m.d_out).T @ m.a.dense(m.d_in)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_apply_adds_the_product_and_revert_restores_every_byte(dtype: torch.dtype) -> None:
    model, delta = TwoMatrices(dtype), make_delta(1)
    before, weights = sha(model), model.one.weight.detach().clone()
    delta.apply(model)
    wanted = (weights.double() + dense(delta.matrices[0]).double()).to(dtype)
    torch.testing.assert_close(model.one.weight.detach(), wanted)
    assert sha(model) != before
    delta.revert(model)
    assert sha(model) == before


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=8, unique=True), st.randoms(use_true_random=False))
def test_revert_in_random_order_restores_every_byte(seeds: list[int], rng: random.Random) -> None:
    model = TwoMatrices(torch.bfloat16)
    before = sha(model)
    deltas = [make_delta(seed) for seed in seeds]
    for delta in deltas:
        delta.apply(model)
    rng.shuffle(deltas)
    for delta in deltas:
        delta.revert(model)
    assert sha(model) == before


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=30))
def test_weights_depend_on_the_set_of_live_deltas_only(steps: list[tuple[bool, int]]) -> None:
    model, deltas = TwoMatrices(), [make_delta(seed) for seed in range(6)]
    live: set[int] = set()
    for put_on, which in steps:
        if put_on and which not in live:
            deltas[which].apply(model)
            live.add(which)
        elif not put_on and which in live:
            deltas[which].revert(model)
            live.remove(which)
    fresh = TwoMatrices()
    for which in sorted(live, reverse=True):
        make_delta(which).apply(fresh)
    assert sha(model) == sha(fresh)


def test_signed_zeros_and_subnormals_come_back() -> None:
    model, delta = TwoMatrices(), make_delta(3)
    with torch.no_grad():
        model.one.weight.fill_(-0.0)
        model.two.weight.fill_(1e-42)
    before = sha(model)
    delta.apply(model)
    delta.revert(model)
    assert sha(model) == before


def test_only_touched_entries_change() -> None:
    model, delta = TwoMatrices(), make_delta(4)
    before = model.one.weight.detach().clone()
    delta.apply(model)
    changed = model.one.weight.detach() != before
    m = delta.matrices[0]
    allowed = torch.zeros(m.d_out * m.d_in, dtype=torch.bool)
    allowed[m.changes()[0]] = True
    assert not bool((changed.view(-1) & ~allowed).any())
    assert changed.sum() > 0


def test_transposed_storage_gives_the_same_change() -> None:
    plain, turned = make_delta(5).matrices[0], make_delta(5, transposed=True).matrices[0]
    out = [torch.zeros(m.d_in * m.d_out, dtype=torch.int64) for m in (plain, turned)]
    for target, m in zip(out, (plain, turned), strict=True):
        index, change = m.changes()
        target[index] = change
    assert torch.equal(out[0].view(plain.d_out, plain.d_in), out[1].view(plain.d_in, plain.d_out).T)


def test_changes_equal_the_product_to_the_grid() -> None:
    m = make_delta(6).matrices[1]
    index, change = m.changes()
    wanted = (m.b.dense(m.d_out).double().T @ m.a.dense(m.d_in).double()).view(-1)
    got = torch.zeros_like(wanted)
    got[index] = change.double() * 2.0**-GRID_BITS
    torch.testing.assert_close(got, wanted, atol=2 * 2.0**-GRID_BITS, rtol=0)
    assert m.density <= m.density_bound


def test_a_delta_is_live_once() -> None:
    model, delta = TwoMatrices(), make_delta(7)
    delta.apply(model)
    with pytest.raises(DeltaError, match="applied already"):
        delta.apply(model)
    delta.revert(model)
    with pytest.raises(DeltaError, match="not applied"):
        delta.revert(model)


def test_a_matrix_of_another_shape_changes_nothing() -> None:
    model, delta = TwoMatrices(), make_delta(8)
    model.two = nn.Linear(5, 10, bias=False)
    before = sha(model)
    with pytest.raises(DeltaError, match=r"two\.weight"):
        delta.apply(model)
    assert sha(model) == before
    assert live_edits(model).deltas == ()


def test_a_missing_matrix_is_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(DeltaError, match=r"one\.weight"):
        make_delta(9).apply(model)


def test_foreign_changes_are_noticed() -> None:
    model, delta = TwoMatrices(), make_delta(10)
    delta.apply(model)
    with torch.no_grad():
        model.one.weight.mul_(1.5)
    with pytest.raises(DeltaError, match="something other than roseedit"):
        delta.revert(model)


def test_failure_half_way_takes_the_first_half_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model, delta = TwoMatrices(), make_delta(11)
    before = sha(model)
    record = live_edits(model)
    add = record._add

    def failing(m: MatrixDelta, weight: nn.Parameter) -> None:
        if m.weight_name == "two.weight":
            raise MemoryError
        add(m, weight)

    monkeypatch.setattr(record, "_add", failing)
    with pytest.raises(MemoryError):
        record.apply(delta)
    assert sha(model) == before


def test_pristine_sees_through_live_edits() -> None:
    model, delta = TwoMatrices(), make_delta(12)
    weights = model.one.weight.detach().clone()
    delta.apply(model)
    assert torch.equal(live_edits(model).pristine("one.weight"), weights)


def test_lora_form_holds_zeros_and_multiplies_to_the_same() -> None:
    delta = make_delta(13)
    lora = delta.to_lora()
    a, b = lora["base_model.model.one.lora_A.weight"], lora["base_model.model.one.lora_B.weight"]
    assert a.shape == (2, 12) and b.shape == (8, 2)
    assert int((a == 0).sum()) == 2 * (12 - 4)
    torch.testing.assert_close(b @ a, dense(delta.matrices[0]))
