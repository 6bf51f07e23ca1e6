"""Running chosen layers only: what runs, what is left behind, and that skipped layers do nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from roseedit.errors import SkipError
from roseedit.hadskip.costs import cost_of, layer_bytes, layer_costs, measured_layer_costs, speed_limit
from roseedit.hadskip.paths import Healing, anchor_layers, executing, protected_layers
from roseedit.models.load import LoadedModel
from roseedit.models.replay import positions_from_mask, run_body

SETS = ((0, 1, 3), (0, 3), (0, 2, 3), (0,))


def batch(n: int = 9, rows: int = 2) -> tuple[Tensor, Tensor]:
    """Random ids; the second row is shorter."""
    ids = torch.randint(0, 250, (rows, n), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[1:, n - 2 :] = 0
    return ids, mask


def dropped(loaded: LoadedModel, layers: tuple[int, ...]) -> Any:
    """A stock model that physically lacks the other layers, weights copied."""
    config = type(loaded.model.config)(**loaded.model.config.to_dict())
    config.num_hidden_layers = len(layers)
    kinds = getattr(config, "layer_types", None)
    if kinds:
        config.layer_types = [kinds[i] for i in layers]
    small = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    prefix = loaded.anatomy.layers_name + "."
    state = {}
    for name, tensor in loaded.model.state_dict().items():
        if not name.startswith(prefix):
            state[name] = tensor
            continue
        layer, _, rest = name.removeprefix(prefix).partition(".")
        if int(layer) in layers:
            state[f"{prefix}{layers.index(int(layer))}.{rest}"] = tensor
    small.load_state_dict(state)
    return small.eval()


@torch.no_grad()
def test_all_layers_executed_is_the_stock_model_bitwise(any_model: LoadedModel, attached: Callable[..., Any]) -> None:
    ids, mask = batch()
    before = attached(any_model.model)
    stock = run_body(any_model.model, ids, mask)
    with executing(any_model, range(4)):
        assert attached(any_model.model) == before
        assert torch.equal(run_body(any_model.model, ids, mask), stock)


@torch.no_grad()
@pytest.mark.parametrize("layers", SETS)
def test_a_fixed_set_is_the_physically_dropped_model(any_model: LoadedModel, layers: tuple[int, ...]) -> None:
    if not set(anchor_layers(any_model)) <= set(layers):
        pytest.skip("this architecture reads its lengths from a layer outside the set")
    ids, mask = batch()
    small = dropped(any_model, layers)
    with executing(any_model, layers):
        here = run_body(any_model.model, ids, mask)
    there = small(input_ids=ids, attention_mask=mask, position_ids=positions_from_mask(mask), use_cache=False).logits
    assert torch.allclose(here[mask.bool()], there[mask.bool()], atol=1e-6)
    assert not torch.allclose(here, run_body(any_model.model, ids, mask), atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("layers", SETS)
@pytest.mark.parametrize("parts", [(9,), (4, 5), (4, 1, 4), (1, 8)])
def test_cached_is_uncached(any_model: LoadedModel, layers: tuple[int, ...], parts: tuple[int, ...]) -> None:
    """Cached passes of several tokens too, where wrong lengths would go unseen in a token-by-token loop."""
    if not set(anchor_layers(any_model)) <= set(layers):
        pytest.skip("this architecture reads its lengths from a layer outside the set")
    ids, _ = batch(rows=1)
    cache, found, at = None, [], 0
    with executing(any_model, layers):
        whole = any_model.model(input_ids=ids, use_cache=False).logits
        for n in parts:
            out = any_model.model(input_ids=ids[:, at : at + n], past_key_values=cache, use_cache=True)
            cache, at = out.past_key_values, at + n
            found.append(out.logits)
    assert torch.allclose(torch.cat(found, 1), whole, atol=1e-5)
    lengths = [layer.get_seq_length() for layer in cache.layers]  # type: ignore[attr-defined]
    assert lengths == [9 if i in layers else 0 for i in range(len(lengths))]


@torch.no_grad()
def test_skipped_layers_run_no_kernel(any_model: LoadedModel) -> None:
    ids, mask = batch()
    layers = any_model.model.get_submodule(any_model.anatomy.layers_name)
    ran: list[int] = []
    handles = [
        module.register_forward_hook(lambda *_, i=i: ran.append(i))
        for i, layer in enumerate(layers)
        for module in layer.modules()
        if module is not layer
    ]
    with executing(any_model, (0, 1, 3)):
        run_body(any_model.model, ids, mask)
    for handle in handles:
        handle.remove()
    assert set(ran) == {0, 1, 3}


@torch.no_grad()
def test_nothing_is_left_and_the_inner_block_counts(any_model: LoadedModel, attached: Callable[..., Any]) -> None:
    ids, mask = batch()
    before = attached(any_model.model)
    whole = run_body(any_model.model, ids, mask)
    outer, inner = executing(any_model, (0, 1, 3)), executing(any_model, (0, 2, 3))
    with inner:
        alone = run_body(any_model.model, ids, mask)
    with outer:
        first = run_body(any_model.model, ids, mask)
        with inner, inner:
            assert torch.equal(run_body(any_model.model, ids, mask), alone)
        assert torch.equal(run_body(any_model.model, ids, mask), first)
        with executing(any_model, range(4)):
            assert torch.equal(run_body(any_model.model, ids, mask), whole)
    with pytest.raises(KeyError), outer:
        raise KeyError
    assert attached(any_model.model) == before
    assert torch.equal(run_body(any_model.model, ids, mask), whole)


@torch.no_grad()
def test_healing_acts_on_the_skip_path_only(any_model: LoadedModel) -> None:
    ids, mask = batch()
    draw = torch.Generator().manual_seed(1)
    scale = 1 + 0.1 * torch.randn(32, generator=draw)
    pair = 0.3 * torch.randn(2, 32, generator=draw), 0.3 * torch.randn(32, 2, generator=draw)
    healing = Healing({1: scale, 2: scale}, {2: pair})
    layers: Any = any_model.model.get_submodule(any_model.anatomy.layers_name)
    entered: dict[int, Tensor] = {}
    handles = [
        layers[i].register_forward_pre_hook(
            lambda _, a, k, i=i: entered.__setitem__(i, a[0] if a else k["hidden_states"]), with_kwargs=True
        )
        for i in (1, 2, 3)
    ]
    with executing(any_model, (0, 3), healing):
        healed = run_body(any_model.model, ids, mask)
    for handle in handles:
        handle.remove()
    assert torch.allclose(entered[2], entered[1] * scale)
    a, b = pair
    assert torch.allclose(entered[3], entered[2] * scale + entered[2] @ a.T @ b.T, atol=1e-6)
    with executing(any_model, (0, 3)):
        assert not torch.allclose(run_body(any_model.model, ids, mask), healed, atol=1e-3)
    whole = run_body(any_model.model, ids, mask)
    with executing(any_model, range(4), healing):
        assert torch.equal(run_body(any_model.model, ids, mask), whole)


def test_gradients_reach_the_healing(any_model: LoadedModel) -> None:
    ids, mask = batch()
    scale = torch.ones(32, requires_grad=True)
    with executing(any_model, (0, 1, 3), Healing({2: scale})):
        run_body(any_model.model, ids, mask).logsumexp(-1).sum().backward()
    assert scale.grad is not None
    assert scale.grad.abs().sum() > 0


@pytest.mark.parametrize("layers", [(1, 2, 3), (0, 1, 4), (0, 1, 1), (0, -1)])
def test_bad_sets_are_refused(tiny: Callable[..., LoadedModel], layers: tuple[int, ...]) -> None:
    with pytest.raises(SkipError, match="allowed"):
        executing(tiny("llama"), layers)


def test_a_hybrid_model_keeps_the_first_layer_of_each_kind(tiny: Callable[..., LoadedModel]) -> None:
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    loaded = tiny("gemma3", num_hidden_layers=5, layer_types=kinds, sliding_window=4)
    assert anchor_layers(loaded) == (0, 2)
    assert protected_layers(loaded) == (0, 1, 2, 4)
    with pytest.raises(SkipError, match=r"without \[2\]"):
        executing(loaded, (0, 1, 3, 4))


def test_costs_are_shares_of_bytes(any_model: LoadedModel) -> None:
    costs = layer_costs(any_model)
    assert sum(costs) == pytest.approx(1)
    assert len(costs) == 4
    per_layer, head = layer_bytes(any_model)
    layers: Any = any_model.model.get_submodule(any_model.anatomy.layers_name)
    assert per_layer[2] == 4 * sum(p.numel() for p in layers[2].parameters())
    assert head == 4 * any_model.model.get_output_embeddings().weight.numel()
    assert cost_of(any_model, (0, 3)) == pytest.approx(0.5)
    limit = (sum(per_layer) + head) / (sum(per_layer) / 2 + head)
    assert speed_limit(any_model, (0, 3)) == pytest.approx(limit)
    measured = measured_layer_costs(any_model, passes=3)
    assert sum(measured) == pytest.approx(1)
    assert all(share > 0 for share in measured)
