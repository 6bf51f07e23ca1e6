"""What a layer's other neurons take over for those that many facts have silenced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from roseedit.errors import CapacityError
from roseedit.models.load import LoadedModel
from roseedit.requests import EditRequest
from roseedit.roselora.config import RoseLoRAHparams, read_roselora
from roseedit.roselora.engine import train_joint
from roseedit.roselora.neurons import joint, standins
from roseedit.roselora.neurons.layer import JointLayer
from roseedit.roselora.neurons.mlp import find_neurons, weight_of
from roseedit.roselora.neurons.ordinary import ordinary_ids
from roseedit.roselora.neurons.parts import wearing
from roseedit.roselora.neurons.standins import standing_in, taken_over
from roseedit.roselora.neurons.texts import Texts

Tiny = Callable[..., LoadedModel]
Digest = Callable[..., str]
LAYER = 1
SILENCED = [0, 3, 4]
TEXTS = [tuple(range(start, start + 40)) for start in range(5, 25, 5)]
TOKENS = 256


def settings(**more: Any) -> RoseLoRAHparams:
    """Joint runs of few steps."""
    base: dict[str, Any] = {"layers": [LAYER], "steps": 3, "rewrites": 1, "pool": 1.0, "train_dtype": "weights"}
    return read_roselora({**base, **more})


def written(loaded: LoadedModel) -> torch.Tensor:
    """What the layer's MLP writes on the texts."""
    seen: list[torch.Tensor] = []
    module = loaded.model.get_submodule(find_neurons(loaded, LAYER).down.module_name)
    handle = module.register_forward_hook(lambda _, __, out: seen.append(out.detach()[:, 1:]))
    with torch.no_grad():
        loaded.model(torch.tensor(TEXTS, device=loaded.device))
    handle.remove()
    return seen[0]


def test_a_neuron_that_repeats_another_is_replaced_by_it() -> None:
    inner = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    inner[:, 3] = 2 * inner[:, 0]
    columns = torch.eye(4)[:3].contiguous()
    columns[1, 3] = 1.0
    change = standing_in(columns, inner.mT @ inner / 500, torch.tensor([3]))
    assert torch.equal(change[:, 3], torch.zeros(3))
    assert float(change[1, 0]) == pytest.approx(2.0, rel=0.15)  # less the ridge
    assert float(change[[0, 2]].abs().max()) < 1e-6


def test_the_layer_writes_less_differently_than_with_silence_alone(tiny: Tiny) -> None:
    loaded = tiny("llama")
    neurons = find_neurons(loaded, LAYER)
    before = written(loaded)
    part = taken_over(Texts(loaded, neurons, TEXTS, TOKENS), SILENCED)
    assert not part.factors[neurons.down.module_name].a[:, SILENCED].any()
    with torch.no_grad():
        weight_of(loaded.model, neurons.down)[:, SILENCED] = 0.0
    alone = float((written(loaded) - before).square().sum())
    with wearing(loaded, [part]):
        assert float((written(loaded) - before).square().sum()) < 0.95 * alone


def test_many_facts_are_completed_and_otherwise_stay_as_they_were(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, digest: Digest
) -> None:
    monkeypatch.setattr(joint, "FACTS", 1)
    loaded = tiny("llama")
    requests = [EditRequest("The Tower is in", "Rome", subject="Tower"), EditRequest("Oslo lies in", "it")]
    path = find_neurons(loaded, LAYER).down.module_name
    before = digest(loaded.model)
    plain, few, many = (train_joint(loaded, requests, settings(compensate_from=n)).factors[path] for n in (0, 1000, 2))
    assert digest(loaded.model) == before
    assert torch.equal(plain.a, few.a)
    assert torch.equal(plain.b, few.b)
    rank = len(plain.a)
    assert torch.equal(plain.a, many.a[:rank])
    assert torch.equal(plain.b, many.b[:, :rank])
    # What is added is what the layer as it was says of the neurons that were taken.
    taken = plain.a.nonzero()[:, 1].tolist()
    texts = ordinary_ids(loaded, settings())
    room = JointLayer(loaded, LAYER, settings(), wide=False, at_subject=False)
    alone = taken_over(Texts(loaded, room.neurons, texts, room.tokens), taken).factors[path]
    assert torch.equal(many.a[rank:], alone.a)
    assert torch.equal(many.b[:, rank:], alone.b)


def test_scale_is_taken_out_of_the_factors(tiny: Tiny) -> None:
    loaded, hparams = tiny("llama"), settings()
    neurons = find_neurons(loaded, LAYER)
    texts = Texts(loaded, neurons, ordinary_ids(loaded, hparams)[:20], TOKENS)
    once = taken_over(texts, SILENCED).factors[neurons.down.module_name]
    twice = taken_over(texts, SILENCED, scale=2.0).factors[neurons.down.module_name]
    assert torch.equal(once.b @ once.a, 2 * (twice.b @ twice.a))


def test_what_could_not_be_completed_is_refused_before_any_fit(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny("llama")
    need = standins.BYTES * find_neurons(loaded, LAYER).down.d_in ** 2
    monkeypatch.setattr(standins, "free_memory", lambda _: need - 1)
    monkeypatch.setattr(JointLayer, "train", lambda *_: pytest.fail("it went on"))
    requests = [EditRequest("The Tower is in", "Rome", subject="Tower"), EditRequest("Oslo lies in", "it")]
    with pytest.raises(CapacityError, match="compensate_from: 0"):
        train_joint(loaded, requests, settings(compensate_from=2))
    monkeypatch.setattr(standins, "free_memory", lambda _: need)
    standins.require_room(find_neurons(loaded, LAYER))
