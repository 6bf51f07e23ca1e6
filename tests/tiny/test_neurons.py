"""Edits of whole neurons: what they touch, what opens them, and that neighbours and replay do not matter."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from roseedit.errors import AnatomyError, CapacityError, HparamsError
from roseedit.models.load import LoadedModel
from roseedit.requests import EditRequest
from roseedit.roselora.batches import RowStore
from roseedit.roselora.config import RoseLoRAHparams, read_roselora
from roseedit.roselora.engine import train_independent, train_joint
from roseedit.roselora.neurons import bank, gates
from roseedit.roselora.neurons.choice import least_used, take
from roseedit.roselora.neurons.gates import Far, ridge_fit, separators
from roseedit.roselora.neurons.looks import Place, adds_plainly, look_at
from roseedit.roselora.neurons.mlp import find_neurons, inward_rows, said, weight_of
from roseedit.roselora.neurons.parts import wearing
from roseedit.roselora.objective import Row, build_rows
from roseedit.roselora.prose import PROSE
from roseedit.roselora.trainer import Trained
from roseedit.roselora.wordings import context_prompts

Tiny = Callable[..., LoadedModel]
Digest = Callable[..., str]
SETTINGS: dict[str, Any] = {
    "layers": [2],
    "lr": 0.2,
    "steps": 40,
    "rewrites": 2,
    "pool": 1.0,
    "anchor_subjects": 2,
    "anchor_relations": 2,
    "anchor_mutations": 0,
    "anchor_frames": 0,
    "stop_probability": 0.5,
    "train_dtype": "weights",
}
REQUESTS = [
    EditRequest("The Tower is in the city of", "Rome", subject="Tower"),
    EditRequest("Oslo lies in", "the Alps", subject="Oslo"),
    EditRequest("The mother of Li Wei is called", "Eve", subject="Li Wei"),
]
TOLERANCE = 1e-3  # sums run in another order, and Adam makes much of differences in tiny gradients


def settings(**changes: Any) -> RoseLoRAHparams:
    """The settings of these tests."""
    return read_roselora({**SETTINGS, **changes})


def furthest(a: Trained, b: Trained) -> float:
    """Largest difference of any entry of two changes, relative to the largest change of its matrix."""
    assert set(a.factors) == set(b.factors)
    changes = [(a.factors[n].b @ a.factors[n].a, b.factors[n].b @ b.factors[n].a) for n in a.factors]
    return max(float((x - y).abs().max() / x.abs().max()) for x, y in changes)


@pytest.fixture(params=["llama", "gpt2", "gemma3"])
def loaded(request: pytest.FixtureRequest, tiny: Tiny) -> LoadedModel:
    """A gated model, one without gate and with biases, and one whose MLP is normalised before it is added."""
    return tiny(request.param)


def test_only_whole_neurons_are_touched(loaded: LoadedModel) -> None:
    (trained,) = train_independent(loaded, REQUESTS[:1], settings())
    neurons = find_neurons(loaded, 2)
    assert set(trained.factors) == {p.module_name for p in neurons.projections}
    down = trained.factors[neurons.down.module_name].a != 0
    assert down.sum(1).eq(1).all()
    which = down.nonzero()[:, 1]
    assert len(which.unique()) == len(which) == len(down)
    for p in neurons.projections[:-1]:
        inward = trained.factors[p.module_name].b != 0
        assert inward.sum(0).eq(1).all()
        assert torch.equal(inward.T.nonzero()[:, 1], which)


@pytest.mark.parametrize("taught", [0, 1])
def test_neighbours_and_replay_do_not_matter(loaded: LoadedModel, taught: int) -> None:
    hparams = settings(taught=taught)
    together = train_independent(loaded, REQUESTS, hparams)
    assert furthest(together[0], together[0]) == 0.0
    for i, request in enumerate(REQUESTS):
        (alone,) = train_independent(loaded, [request], hparams)
        (whole,) = train_independent(loaded, [request], hparams.replaced(replay=False))
        assert alone.steps == together[i].steps == whole.steps
        assert furthest(alone, together[i]) < TOLERANCE
        assert furthest(alone, whole) < TOLERANCE


def test_only_taught_wordings_are_trained_on(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    stored: list[list[bool]] = []

    class Watched(RowStore):
        def __init__(self, model: LoadedModel, rows: Sequence[Row], *args: Any, **more: Any) -> None:
            super().__init__(model, rows, *args, **more)
            stored.append([len(row.labels) > 1 for row in rows])

    monkeypatch.setattr(bank, "RowStore", Watched)
    monkeypatch.setattr(bank, "HEARD", -1e9)  # random models: no neuron opens at other wordings
    for taught in (0, 2, 3):
        changes = {"taught": taught, "rewrites": 4, "rewordings": 0, "after_text": 0}
        train_independent(loaded, REQUESTS[2:], settings(**changes))
        assert stored.pop() == [True] * (1 + (taught or 4))


def test_the_same_run_twice_gives_the_same_bits(loaded: LoadedModel, digest: Digest) -> None:
    before = digest(loaded.model)
    first, second = (train_independent(loaded, REQUESTS[:1], settings())[0] for _ in range(2))
    assert furthest(first, second) == 0.0
    assert digest(loaded.model) == before


def test_a_column_keeps_its_share(loaded: LoadedModel) -> None:
    neurons = find_neurons(loaded, 2)
    (whole,), (half,) = (train_independent(loaded, REQUESTS[:1], settings(column_share=s)) for s in (1.0, 0.5))
    down, inward = neurons.down.module_name, [p.module_name for p in neurons.projections[:-1]]
    old = weight_of(loaded.model, neurons.down) @ whole.factors[down].a.mT
    assert torch.allclose(half.factors[down].b + old, 0.5 * (whole.factors[down].b + old), atol=1e-6)
    assert float((whole.factors[down].b + old).norm()) > 0.1
    assert all(torch.equal(half.factors[p].a, whole.factors[p].a) for p in inward)


def test_a_joint_run_gives_each_fact_its_own_neurons(loaded: LoadedModel, digest: Digest) -> None:
    before = digest(loaded.model)
    joint = train_joint(loaded, REQUESTS, settings(joint_batch=2))
    assert digest(loaded.model) == before
    down = joint.factors[find_neurons(loaded, 2).down.module_name].a
    which = (down != 0).nonzero()[:, 1]
    assert len(which.unique()) == len(which)
    sizes = [
        len(t.factors[find_neurons(loaded, 2).down.module_name].a)
        for t in train_independent(loaded, REQUESTS, settings())
    ]
    assert len(which) == sum(sizes)


def test_a_joint_run_that_finds_no_room_goes_to_the_next_layer(loaded: LoadedModel, monkeypatch: Any) -> None:
    monkeypatch.setattr("roseedit.roselora.neurons.joint.FACTS", 1)
    width = find_neurons(loaded, 2).down.d_in
    joint = train_joint(loaded, REQUESTS, settings(layers=[1, 2], pool=9 / width, steps=12))
    assert {int(name.split(".")[-3]) for name in joint.factors} == {1, 2}
    with pytest.raises(CapacityError, match=r"with 3 free in all; .*Raise `pool`"):
        train_joint(loaded, REQUESTS, settings(layers=[2], pool=3 / width))


@torch.no_grad()
def test_the_picture_of_the_mlp_is_the_models(loaded: LoadedModel) -> None:
    neurons = find_neurons(loaded, 1)
    seen: list[Tensor] = []
    paths = neurons.opens.module_name, neurons.down.module_name
    handles = [
        loaded.model.get_submodule(p).register_forward_pre_hook(lambda _, args: seen.append(args[0])) for p in paths
    ]
    loaded.model(torch.arange(6)[None])
    for handle in handles:
        handle.remove()
    which = torch.tensor([0, 3, 5])
    carries = inward_rows(loaded.model, neurons.carries, which) if neurons.carries else None
    ours = said(neurons, seen[0], inward_rows(loaded.model, neurons.opens, which), carries)
    torch.testing.assert_close(ours, seen[1][..., which], atol=1e-5, rtol=1e-4)


def test_an_mlp_that_works_otherwise_is_refused(tiny: Tiny, monkeypatch: Any) -> None:
    loaded = tiny("llama")
    monkeypatch.setattr(loaded.model.config, "hidden_act", "relu")
    with pytest.raises(AnatomyError, match=r"layer 2 that is no list of plain or gated neurons.*support: entries"):
        train_independent(loaded, REQUESTS[:1], settings())
    monkeypatch.setattr(loaded.model.config, "hidden_act", "no such")
    with pytest.raises(AnatomyError, match="whose activation its configuration does not name"):
        find_neurons(loaded, 2)


def test_where_training_may_start(tiny: Tiny) -> None:
    plain, normed = tiny("llama"), tiny("gemma3")
    assert adds_plainly(plain, find_neurons(plain, 2))
    assert not adds_plainly(normed, find_neurons(normed, 2))
    last = find_neurons(plain, plain.anatomy.n_layers - 1)
    assert Place.of(plain, find_neurons(plain, 1), replay=True).start == 2
    assert Place.of(plain, last, replay=True).start == last.layer
    assert Place.of(plain, last, replay=False).start == 0
    assert Place.of(normed, find_neurons(normed, 1), replay=True).start == 1


def test_a_look_keeps_all_of_a_fact_and_the_end_of_an_anchor(tiny: Tiny) -> None:
    loaded = tiny("llama")
    rows = build_rows(loaded, REQUESTS[0], 0, 0, settings())
    place = Place.of(loaded, find_neurons(loaded, 2), replay=True)
    look, small = (look_at(loaded, rows, place, 3, tokens) for tokens in (4096, 32))
    for row, x, stored, size, other in zip(rows, look.inputs, look.activations, look.sizes, small.inputs, strict=True):
        assert len(x) == (len(row.ids) if row.labels else min(3, len(row.ids)))
        assert len(stored) == (len(row.ids) if row.labels else 0)
        assert (size > 0) == bool(row.labels)
        torch.testing.assert_close(x, other, atol=1e-5, rtol=1e-4)


def test_wearing_changes_and_puts_back(loaded: LoadedModel, digest: Digest) -> None:
    (trained,) = train_independent(loaded, REQUESTS[:1], settings())
    before, weights = digest(loaded.model), dict(loaded.model.named_parameters())
    with pytest.raises(KeyError), wearing(loaded, [trained, trained]):
        for p in find_neurons(loaded, 2).projections:
            factors = trained.factors[p.module_name]
            old = weights[p.weight_name].t() if p.transposed else weights[p.weight_name]
            torch.testing.assert_close(weight_of(loaded.model, p), (old + 2 * (factors.b @ factors.a)).detach())
        raise KeyError
    assert digest(loaded.model) == before
    assert all(p is weights[name] for name, p in loaded.model.named_parameters())


def test_neurons_are_drawn_from_the_free_ones() -> None:
    free = torch.tensor([9, 4, 7, 1, 30])
    drawn = take(free, {4}, 3, torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) <= {9, 7, 1, 30}
    assert drawn.tolist() == sorted(set(drawn.tolist()))
    assert torch.equal(drawn, take(free, {4}, 3, torch.Generator().manual_seed(0)))
    with pytest.raises(CapacityError, match="4 neurons wanted of 3 that are free"):
        take(free, {4, 7}, 4, torch.Generator())


def test_of_the_free_ones_those_that_write_least_near_the_fact_are_taken() -> None:
    free, near = torch.tensor([9, 4, 7, 1, 30, 2]), torch.tensor([0.0, 5, 1, 9, 2, 9, 9, 3, 9, 0.5] + [0.1] * 21)
    assert take(free, {9}, 2, torch.Generator(), near.__getitem__).tolist() == [2, 30]
    assert take(free, set(), 6, torch.Generator(), near.__getitem__).tolist() == sorted(free.tolist())


@torch.no_grad()
def test_a_neuron_with_large_weights_is_not_free(tiny: Tiny) -> None:
    loaded = tiny("llama")
    neurons = find_neurons(loaded, 2)
    used = torch.ones(neurons.down.d_in)
    used[5] = 0.0
    assert least_used(loaded.model, neurons, used, 0.1)[0] == 5
    loaded.model.get_parameter(neurons.down.weight_name)[:, 5] *= 100
    assert 5 not in least_used(loaded.model, neurons, used, 1.0)


@torch.no_grad()
def louder(loaded: LoadedModel, layer: int, count: int) -> None:
    """Make the first neurons of a layer as large as those of live edits are in a real model."""
    neurons = find_neurons(loaded, layer)
    weight_of(loaded.model, neurons.down)[:, :count] *= 100


def test_live_edits_count_among_the_neurons_that_may_be_taken(loaded: LoadedModel) -> None:
    neurons = find_neurons(loaded, 2)
    used, width = torch.ones(neurons.down.d_in), neurons.down.d_in
    assert len(least_used(loaded.model, neurons, used, 4 / width)) == 4
    louder(loaded, 2, 3)
    (free,) = least_used(loaded.model, neurons, used, 4 / width).tolist()
    assert free >= 3
    assert len(least_used(loaded.model, neurons, used, 2 / width)) == 0


def test_edits_go_to_the_next_layer_when_live_ones_have_filled_the_highest(loaded: LoadedModel) -> None:
    hparams = settings(layers=[1, 2], pool=9 / find_neurons(loaded, 2).down.d_in, steps=4)
    for filled, layer in ((0, 2), (8, 1)):
        louder(loaded, 2, filled)
        (trained,) = train_independent(loaded, REQUESTS[:1], hparams)
        assert {int(name.split(".")[-3]) for name in trained.factors} == {layer}
    louder(loaded, 1, 8)
    with pytest.raises(CapacityError, match="1 that are free in the layer"):
        train_independent(loaded, REQUESTS[:1], hparams)


def test_settings_of_single_entries_mean_single_entries() -> None:
    assert read_roselora({}).support == "neurons"
    assert read_roselora({"keep": 0.1}).support == "entries"
    assert read_roselora({"paper": True}).support == "entries"
    with pytest.raises(HparamsError, match=r"got modules \['attn.q'\] with support neurons.*Set support: entries"):
        read_roselora({"support": "neurons", "modules": ["attn.q"]})
    with pytest.raises(HparamsError, match=r"got rank 4, keep 0.2 with support neurons; allowed: none\."):
        read_roselora({"support": "neurons", "keep": 0.2, "rank": 4})


def toy() -> tuple[Tensor, Tensor, Tensor]:
    """30 points in two heaps, what is wanted of them, and their weights."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 8, generator=generator)
    x[:10, 0] += 4
    x[:, 1] = 1.0
    wanted = torch.cat([torch.ones(10), -torch.ones(20)])
    return x, wanted[None], torch.full((1, 30), 1 / 30)


def test_one_wording_stands_behind_an_unrelated_sentence() -> None:
    request = EditRequest("The Tower is in the city of", "Rome", subject="Tower", rephrase=("Where is the Tower? In",))
    prompts = context_prompts(request, 3, random.Random(0), PROSE)
    assert len(set(prompts)) == 3
    for prompt in prompts:
        sentence, found, rest = prompt.rpartition(request.prompt)
        assert found and not rest
        assert sentence.strip() in PROSE


NOWHERE = Far((), torch.zeros(0))


def test_a_separator_holds_its_margin() -> None:
    x, wanted, mass = toy()
    (w,) = separators(x, wanted, mass, NOWHERE, 0.6, ridge=1e-4, rounds=20)
    assert (wanted[0] * (x @ w) > 0.9).all()


def test_the_first_round_is_ridge_regression() -> None:
    x, wanted, mass = toy()
    (w,) = separators(x, wanted, mass, NOWHERE, 0.6, ridge=0.1, rounds=0)
    penalty = 0.1 * x.square().sum(1).mean()
    direct = torch.linalg.solve(x.T @ x / 30 + penalty * torch.eye(8), x.T @ wanted[0] / 30)
    torch.testing.assert_close(w, direct, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ridge_fit(x, wanted[0], mass[0], 0.1), direct, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("most", ["STAND_INS", "SAMPLE"])
def test_standing_in_for_many_far_points_ends_at_the_same_direction(most: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds in which few far points stand for many only prepare: what is left is the minimum over all points."""
    generator = torch.Generator().manual_seed(5)
    x, wanted, mass = toy()
    far = torch.randn(400, 8, generator=generator)
    elsewhere = Far((far[:150], far[150:]), torch.full((400,), 0.01))
    whole = separators(x, wanted, mass, elsewhere, 0.6, ridge=0.05, rounds=30)
    called: list[int] = []
    solved = gates._solved
    monkeypatch.setattr(gates, most, 20)
    monkeypatch.setattr(gates, "_solved", lambda *args: called.append(int(args[6].sum())) or solved(*args))
    found = separators(x, wanted, mass, elsewhere, 0.6, ridge=0.05, rounds=30)
    assert 0 < called[1] <= 20 < called[-1]
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-4)
    short = (0.6 + far @ whole[0]).clamp(min=0)
    assert (short > 0).sum() > 40
    gradient = (elsewhere.mass * short) @ far - (
        mass[0] * (wanted[0] - x @ whole[0]).where(_short(x, wanted, whole), 0)
    ) @ x
    penalty = 0.05 * x.square().sum(1).mean()
    torch.testing.assert_close(gradient, -penalty * whole[0], atol=1e-4, rtol=1e-3)


def _short(x: Tensor, wanted: Tensor, w: Tensor) -> Tensor:
    return wanted[0] * (x @ w[0]) < 1


def test_far_points_count_only_within_their_margin() -> None:
    x, wanted, mass = toy()
    plain = separators(x, wanted, mass, NOWHERE, 0.6, ridge=0.01, rounds=20)
    quiet = -5 * plain / plain.square().sum()  # answers -5
    loud = plain / plain.square().sum()  # answers 1
    for far, same in ((quiet, True), (loud, False)):
        found = separators(x, wanted, mass, Far((far,), torch.ones(1)), 0.6, ridge=0.01, rounds=20)
        assert torch.allclose(found, plain, atol=1e-5) == same
        if not same:
            assert float(far[0] @ found[0]) < float(far[0] @ plain[0]) - 0.5


def test_a_far_point_without_mass_is_left_out() -> None:
    x, wanted, mass = toy()
    plain = separators(x, wanted, mass, NOWHERE, 0.6, ridge=0.01, rounds=20)
    far = Far((plain / plain.square().sum(), -plain), torch.tensor([0.0, 1.0]))
    assert torch.allclose(separators(x, wanted, mass, far, 0.6, ridge=0.01, rounds=20), plain, atol=1e-5)


def test_a_question_opens_earlier() -> None:
    hparams = settings(gate_threshold=0.4, question_threshold=0.1)
    assert hparams.threshold(question=True) == 0.1
    assert hparams.threshold(question=False) == 0.4
    assert settings(gate_threshold=-0.3, question_threshold=0.1).threshold(question=True) == -0.3


def test_the_threshold_of_questions_moves_questions_alone(tiny: Tiny) -> None:
    asked = EditRequest("What is the capital of Ada?", "Rome", "Ada")
    early, late = (
        [train_independent(tiny("llama"), [r], settings(question_threshold=q))[0] for r in (REQUESTS[0], asked)]
        for q in (-0.5, 0.1)
    )
    for path in early[0].factors:
        assert torch.equal(early[0].factors[path].a, late[0].factors[path].a)
    assert any(not torch.equal(early[1].factors[path].a, late[1].factors[path].a) for path in early[1].factors)
