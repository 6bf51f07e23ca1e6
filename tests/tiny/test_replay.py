"""Replay: the upper part of a model from stored activations equals the whole model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from roseedit.models.head import head_at
from roseedit.models.load import LoadedModel
from roseedit.models.replay import capture_activations, captured, positions_from_mask, replaying, run_body

Attached = Callable[..., Any]
LAYERS = 4
LENGTHS = (7, 3, 5, 1)


def batch(loaded: LoadedModel, lengths: tuple[int, ...] = LENGTHS) -> tuple[Tensor, Tensor]:
    """Random ids, right-padded."""
    draw = torch.Generator().manual_seed(5)
    ids = torch.full((len(lengths), max(lengths)), loaded.pad_id)
    mask = torch.zeros_like(ids)
    for i, n in enumerate(lengths):
        ids[i, :n] = torch.randint(0, 250, (n,), generator=draw)
        mask[i, :n] = 1
    return ids, mask


@torch.no_grad()
def full(loaded: LoadedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """The reference: the whole model, transformers' own call."""
    logits: Tensor = loaded.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits


def test_positions_count_the_real_tokens() -> None:
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert positions_from_mask(mask).tolist() == [[0, 1, 2], [0, 0, 0]]


@torch.no_grad()
def test_run_body_equals_each_row_alone(any_model: LoadedModel) -> None:
    ids, mask = batch(any_model)
    logits = run_body(any_model.model, ids, mask)
    for i, n in enumerate(LENGTHS):
        alone = full(any_model, ids[i : i + 1, :n], mask[i : i + 1, :n])
        assert torch.allclose(logits[i : i + 1, :n], alone, atol=1e-5)


@torch.no_grad()
def test_without_the_head_only_the_layers_run(any_model: LoadedModel) -> None:
    ids, mask = batch(any_model)
    head = any_model.model.get_output_embeddings()
    before = run_body(any_model.model, ids, mask)
    said = run_body(any_model.model, ids, mask, head=False)
    assert said.shape == (1, 1, head.weight.shape[1])
    assert torch.equal(run_body(any_model.model, ids, mask), before)


@torch.no_grad()
@pytest.mark.parametrize("layer", range(LAYERS))
def test_replay_equals_the_full_forward(any_model: LoadedModel, layer: int) -> None:
    ids, mask = batch(any_model)
    whole = run_body(any_model.model, ids, mask)
    stored = capture_activations(any_model.model, any_model.anatomy, layer, ids, mask)
    assert stored.shape == (*ids.shape, 32)
    with replaying(any_model.model, any_model.anatomy, layer, stored):
        again = run_body(any_model.model, ids, mask)
    real = mask.bool()
    assert torch.allclose(again[real], whole[real], atol=1e-6)
    assert whole[real].std() > 0.1  # the comparison is not one of zeros


@torch.no_grad()
@pytest.mark.parametrize("layer", range(1, LAYERS))
def test_what_is_replayed_comes_from_the_activations(any_model: LoadedModel, layer: int) -> None:
    """The lower layers really are out: other activations give other logits, other lower weights give the same."""
    ids, mask = batch(any_model)
    stored = capture_activations(any_model.model, any_model.anatomy, layer, ids, mask)
    lower = [p for p in any_model.anatomy.projections if p.layer < layer]
    with replaying(any_model.model, any_model.anatomy, layer, stored):
        first = run_body(any_model.model, ids, mask)
        for p in lower:
            any_model.model.get_submodule(p.module_name).weight.zero_()
        second = run_body(any_model.model, ids, mask)
    with replaying(any_model.model, any_model.anatomy, layer, stored + 1.0 * torch.randn(stored.shape)):
        third = run_body(any_model.model, ids, mask)
    assert torch.equal(first, second)
    assert not torch.allclose(first, third, atol=1e-2)


@torch.no_grad()
def test_captured_equals_transformers_hidden_states(any_model: LoadedModel) -> None:
    ids, mask = batch(any_model)
    states = any_model.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    real = mask.bool()
    for layer in range(LAYERS):
        stored = capture_activations(any_model.model, any_model.anatomy, layer, ids, mask)
        assert torch.allclose(stored[real], states[layer][real], atol=1e-6)


@torch.no_grad()
def test_captured_gets_one_tensor_per_pass(any_model: LoadedModel) -> None:
    ids, mask = batch(any_model)
    with captured(any_model.model, any_model.anatomy, 2) as seen:
        run_body(any_model.model, ids, mask)
        run_body(any_model.model, ids[:1], mask[:1])
    assert [tuple(x.shape) for x in seen] == [(4, 7, 32), (1, 7, 32)]


@torch.no_grad()
def test_head_at_gives_the_positions_asked_for(any_model: LoadedModel) -> None:
    ids, mask = batch(any_model)
    whole = run_body(any_model.model, ids, mask)
    rows, columns = torch.tensor([0, 2, 1, 0, 3]), torch.tensor([6, 0, 2, 1, 0])
    with head_at(any_model.model, rows, columns):
        some = run_body(any_model.model, ids, mask)
    assert some.shape == (1, 5, whole.shape[-1])
    assert torch.allclose(some[0], whole[rows, columns], atol=1e-6)


def test_gradients_pass_through_a_replay(any_model: LoadedModel) -> None:
    ids, mask = batch(any_model)
    stored = capture_activations(any_model.model, any_model.anatomy, 2, ids, mask).requires_grad_(True)
    with replaying(any_model.model, any_model.anatomy, 2, stored):
        run_body(any_model.model, ids, mask)[0, 2].logsumexp(-1).backward()
    assert stored.grad is not None
    assert stored.grad[0, :3].abs().sum() > 0
    assert stored.grad[1:].abs().sum() == 0


def test_nothing_is_left_after_the_block(any_model: LoadedModel, attached: Attached) -> None:
    ids, mask = batch(any_model)
    before = attached(any_model.model)
    stored = capture_activations(any_model.model, any_model.anatomy, 2, ids, mask)
    assert attached(any_model.model) == before
    zero = torch.zeros(1, dtype=torch.long)
    with (
        replaying(any_model.model, any_model.anatomy, 2, stored),
        head_at(any_model.model, zero, zero),
        captured(any_model.model, any_model.anatomy, 2),
    ):
        assert attached(any_model.model) != before
    assert attached(any_model.model) == before


class Fault(Exception):
    """Raised on purpose."""


def test_nothing_is_left_when_something_raises(any_model: LoadedModel, attached: Attached) -> None:
    loaded = any_model
    ids, mask = batch(loaded)
    whole = full(loaded, ids, mask)
    stored = capture_activations(loaded.model, loaded.anatomy, 2, ids, mask)
    zero = torch.zeros(1, dtype=torch.long)
    before = attached(loaded.model)
    blocks = [
        lambda: replaying(loaded.model, loaded.anatomy, 2, stored),
        lambda: head_at(loaded.model, zero, zero),
        lambda: captured(loaded.model, loaded.anatomy, 2),
    ]
    for block in blocks:
        with pytest.raises(Fault), block():
            raise Fault
        assert attached(loaded.model) == before
    assert torch.equal(full(loaded, ids, mask), whole)


@pytest.mark.parametrize("part", ["embeddings", "layer", "final_norm", "head"])
def test_nothing_is_left_when_the_model_itself_raises(any_model: LoadedModel, attached: Attached, part: str) -> None:
    loaded = any_model
    ids, mask = batch(loaded)
    stored = capture_activations(loaded.model, loaded.anatomy, 2, ids, mask)
    before = attached(loaded.model)
    path = f"{loaded.anatomy.layers_name}.3" if part == "layer" else getattr(loaded.anatomy, part)

    def fail(*_: Any) -> None:
        raise Fault

    handle = loaded.model.get_submodule(path).register_forward_pre_hook(fail)
    zero = torch.zeros(1, dtype=torch.long)
    with pytest.raises(Fault):
        capture_activations(loaded.model, loaded.anatomy, 2, ids, mask)
    with (
        pytest.raises(Fault),
        replaying(loaded.model, loaded.anatomy, 2, stored),
        head_at(loaded.model, zero, zero),
    ):
        run_body(loaded.model, ids, mask)
    handle.remove()
    assert attached(loaded.model) == before


@torch.no_grad()
@pytest.mark.parametrize("name", ["gemma3", "mistral"])
def test_replay_with_a_sliding_window(tiny: Callable[..., LoadedModel], name: str) -> None:
    loaded = tiny(name, sliding_window=4)
    ids, mask = batch(loaded, (12, 9, 5))
    whole = run_body(loaded.model, ids, mask)
    real = mask.bool()
    for layer in range(LAYERS):
        stored = capture_activations(loaded.model, loaded.anatomy, layer, ids, mask)
        with replaying(loaded.model, loaded.anatomy, layer, stored):
            assert torch.allclose(run_body(loaded.model, ids, mask)[real], whole[real], atol=1e-6)
