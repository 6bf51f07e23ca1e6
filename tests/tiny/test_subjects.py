"""Many facts in one delta, each opening where its subject ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from roseedit.errors import CapacityError, HparamsError
from roseedit.models.encoding import encode_prompt, ends_of
from roseedit.models.load import LoadedModel
from roseedit.requests import EditRequest
from roseedit.roselora.config import RoseLoRAHparams, read_roselora
from roseedit.roselora.engine import adapted, train_joint
from roseedit.roselora.neurons import joint
from roseedit.roselora.neurons.bank import HEARD, NeuronBank, answerable
from roseedit.roselora.neurons.facts import elsewhere
from roseedit.roselora.neurons.layer import GATES, JointLayer
from roseedit.roselora.neurons.mlp import find_neurons
from roseedit.roselora.neurons.ordinary import ordinary_look
from roseedit.roselora.neurons.subjects import subject_key, subject_points
from roseedit.roselora.objective import Row, build_rows

Tiny = Callable[..., LoadedModel]
Digest = Callable[..., str]
SETTINGS: dict[str, Any] = {
    "layers": [2],
    "subject_layers": [1],
    "many_at": "subject",
    "lr": 0.2,
    "steps": 30,
    "rewrites": 2,
    "pool": 1.0,
    "stop_probability": 0.5,
    "train_dtype": "weights",
}
TOWER = EditRequest("The Tower is in the city of", "Rome", subject="Tower")
REQUESTS = [TOWER, EditRequest("Oslo lies in", "the Alps", subject="Oslo")]
NAMELESS = EditRequest("Water is made of", "gold")


def settings(**changes: Any) -> RoseLoRAHparams:
    """The settings of these tests."""
    return read_roselora({**SETTINGS, **changes})


@pytest.fixture(params=["llama", "gpt2", "gemma3"])
def loaded(request: pytest.FixtureRequest, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    """Models to which two facts are many."""
    monkeypatch.setattr(joint, "FEW", 1)
    return tiny(request.param)


def rows_that_are_taken(loaded: LoadedModel, trained: Any, layer: int) -> int:
    """Neurons of a layer that a change gives new columns; 0 where it has none."""
    factors = trained.factors.get(find_neurons(loaded, layer).down.module_name)
    return 0 if factors is None else len((factors.a != 0).nonzero()[:, 1].unique())


def test_where_a_part_of_a_text_ends(tiny: Tiny) -> None:
    tokenizer = tiny("llama").tokenizer
    text = "Oslo, they say, is Oslo (1.5) and not Bergen"
    ids = encode_prompt(tokenizer, text).ids
    for part, times in (("Oslo", 2), ("(1.5)", 1), ("Bergen", 1), ("Paris", 0)):
        ends = ends_of(tokenizer, text, part)
        assert len(ends) == times
        for at in ends:
            said = tokenizer.decode(ids[: at + 1])
            assert part in said
            assert said.count(part) == tokenizer.decode(ids[:at]).count(part) + 1


def test_progress_counts_gates_and_training(loaded: LoadedModel) -> None:
    told: list[float] = []
    train_joint(loaded, [*REQUESTS, NAMELESS], settings(), told.append)
    assert sum(told) == pytest.approx(3)
    assert told[:2] == pytest.approx([GATES, GATES])  # of two facts; then their columns


def test_one_neuron_for_each_fact_in_the_layer_of_subjects(loaded: LoadedModel, digest: Digest) -> None:
    before = digest(loaded.model)
    trained = train_joint(loaded, REQUESTS, settings())
    assert digest(loaded.model) == before
    assert rows_that_are_taken(loaded, trained, 1) == len(REQUESTS)
    assert rows_that_are_taken(loaded, trained, 2) == 0


def test_a_fact_without_a_subject_opens_at_its_answer(loaded: LoadedModel) -> None:
    trained = train_joint(loaded, [*REQUESTS, NAMELESS], settings())
    assert rows_that_are_taken(loaded, trained, 1) == len(REQUESTS)
    assert rows_that_are_taken(loaded, trained, 2) > 1  # one for each token of the answer


def test_too_many_facts_are_told_which_layers_to_name(loaded: LoadedModel) -> None:
    with pytest.raises(CapacityError, match="name more `subject_layers`"):
        train_joint(loaded, REQUESTS, settings(pool=0.01))


def test_few_facts_open_at_their_answers(tiny: Tiny) -> None:
    loaded = tiny("llama")
    trained = train_joint(loaded, REQUESTS, settings())
    assert rows_that_are_taken(loaded, trained, 1) == 0


def bank_of(loaded: LoadedModel, requests: list[EditRequest]) -> NeuronBank:
    """The neurons of some facts, not trained yet."""
    hparams, neurons = settings(), find_neurons(loaded, 1)
    room = JointLayer(loaded, 1, hparams, wide=False, at_subject=True)
    ordinary = ordinary_look(loaded, neurons, hparams, room.tokens)
    more = {"free": room.free, "tokens": room.tokens, "joint": True, "many": True, "at_subject": True}
    return NeuronBank(loaded, requests, neurons, hparams, ordinary=ordinary, **more)


def own_prompts(bank: NeuronBank) -> list[tuple[Row, torch.Tensor]]:
    """The requests' own prompts, each with what its neuron says, (tokens,)."""
    first = {row.request: (i, row) for i, row in reversed(list(enumerate(bank.store.rows)))}
    spoken = [(row, bank.columns[0].speech[i][:, row.request]) for i, row in first.values()]
    return [(row, torch.cat([torch.zeros(len(row.ids) - len(said)), said])) for row, said in spoken]  # silent before


def test_facts_about_one_subject_do_not_shut_each_other_out(loaded: LoadedModel) -> None:
    twice = [TOWER, EditRequest("The owner of the Tower is", "Eve", subject="Tower")]
    for row, speech in own_prompts(bank_of(loaded, twice)):
        assert float(speech[list(row.subject)].min()) > HEARD


def test_the_places_of_a_request() -> None:
    fact, wording = (Row(0, 0, (1, 2, 3, 4), (3,), (9,), 1.0, subject=(at,)) for at in (1, 2))
    anchor, stranger = Row(0, 0, (5, 2, 6), (2,), (), 0.0, subject=(1,)), Row(0, 0, (7, 8), (1,), (), 0.0)
    rows = [fact, wording, anchor, stranger]
    inputs = [torch.full((len(row.ids), 2), float(i)) for i, row in enumerate(rows)]
    points = subject_points(rows, inputs, elsewhere(torch.full((5, 2), 9.0)))
    assert points.token.tolist() == [-1, 0, -1, -1, -1, -1, 0, -1, *[-1] * 4]
    # The subject's end in the anchor is no place at all.
    assert points.x[:, 0].tolist() == [0.0] * 4 + [1.0] * 4 + [2.0] * 2 + [3.0] * 2
    assert float(points.fact_mass.sum()) == 1.0
    assert float(points.fact_mass[1]) == 0.5
    assert float(points.mass.min()) > 0


def test_a_wording_that_does_not_name_the_subject_is_not_trained_on() -> None:
    rows = [Row(0, 0, (1, 2, 3), (2,), (9,), 1.0, turn, 3, subject=ends) for turn, ends in ((0, (1,)), (1, ()))]
    loud = torch.tensor([[0.0], [2 * HEARD], [0.0]])
    assert list(answerable(rows, {0: loud, 1: loud}, at_subject=True)) == [0]


def test_the_same_subject_by_another_case() -> None:
    assert subject_key(TOWER) == subject_key(EditRequest("A", "b", subject="tower"))
    assert subject_key(TOWER) != subject_key(REQUESTS[1])


def test_rows_know_where_their_subject_ends(tiny: Tiny) -> None:
    loaded = tiny("llama")
    rows = build_rows(loaded, TOWER, 0, 0, settings())
    for row in rows:
        named = "Tower" in loaded.tokenizer.decode(row.ids)
        assert bool(row.subject) == named
    assert any(not row.subject for row in rows)  # other subjects in the same template
    assert all(not row.subject for row in build_rows(loaded, NAMELESS, 0, 0, settings()))


def test_layers_that_the_model_lacks_are_refused(tiny: Tiny) -> None:
    with pytest.raises(Exception, match="40"):
        adapted(tiny("llama"), settings(subject_layers=[40]))
    adapted(tiny("llama"), settings(subject_layers=[40], many_at="answer"))
    with pytest.raises(HparamsError, match="many_at"):
        settings(many_at="nowhere")
