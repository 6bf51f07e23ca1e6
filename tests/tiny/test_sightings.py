"""Subjects behind other text, which their neurons are to know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from roseedit.errors import HparamsError
from roseedit.models.encoding import encode_prompt
from roseedit.models.load import LoadedModel
from roseedit.requests import EditRequest
from roseedit.roselora.config import read_roselora
from roseedit.roselora.neurons import bank
from roseedit.roselora.neurons.facts import Opened, Points, elsewhere, opened
from roseedit.roselora.neurons.layer import JointLayer
from roseedit.roselora.neurons.looks import inputs_of
from roseedit.roselora.neurons.mlp import find_neurons
from roseedit.roselora.neurons.sightings import LONGEST, sentences_of, sighting_rows
from roseedit.roselora.neurons.subjects import subject_points
from roseedit.roselora.objective import Row
from roseedit.roselora.prose import PROSE

Tiny = Callable[..., LoadedModel]
TOWER = EditRequest("The Tower is in the city of", "Rome", subject="Tower")
OSLO = EditRequest("Oslo lies in", "the Alps", subject="Oslo")
SEED = 0  # of a run, by default
SETTINGS: dict[str, Any] = {
    "layers": [2], "subject_layers": [1], "many_at": "subject", "pool": 1.0, "train_dtype": "weights", "gate_rounds": 20
}  # fmt: skip


def test_sentences_are_whole_and_drawn_alike() -> None:
    texts = [
        "It rained all day. Was it cold? Nobody knew why th",
        "No. " + "x" * (LONGEST + 1) + ". A cat sat there. An",
    ]
    drawn = sentences_of(texts, 9, seed=0)
    assert sorted(drawn) == ["A cat sat there.", "It rained all day.", "Was it cold?"]
    assert drawn == sentences_of(texts[::-1], 9, seed=0)
    assert len(sentences_of(texts, 2, seed=0)) == 2


def test_without_text_the_prose_of_the_package_serves() -> None:
    assert set(sentences_of(["nothing ends here"], 5, seed=0)) <= set(PROSE)
    assert sentences_of([], 0, seed=0) == []


def test_a_sighting_ends_with_its_subject_and_asks_nothing(tiny: Tiny) -> None:
    loaded = tiny("llama")
    (row,) = sighting_rows(loaded, TOWER, 3, 0, ["It rained."])
    assert (row.request, row.columns, row.labels, row.subject) == (3, (), (), (len(row.ids) - 1,))
    assert loaded.tokenizer.decode(list(row.ids)).endswith("It rained. Tower")
    assert sighting_rows(loaded, TOWER, 0, 0, ["long " * loaded.anatomy.window]) == []


def test_it_counts_as_a_place_to_open_at_and_lends_weight() -> None:
    fact, seen = Row(0, 0, (1, 2, 3), (2,), (9,), 1.0, subject=(1,)), Row(0, 0, (7, 8, 2), (), (), 0.0, subject=(2,))
    anchor = Row(0, 0, (5, 2, 6), (2,), (), 0.0, subject=(1,))
    inputs = [torch.zeros(3, 2), torch.full((3, 2), 2.0), torch.ones(1, 2)]
    points = subject_points([fact, anchor, seen], inputs, elsewhere(torch.full((5, 2), 9.0)))
    assert points.token.tolist() == [-1, 0, -1, 0, -1, -1]
    assert points.x[:, 0].tolist() == [0.0, 0.0, 0.0, 1.0, 2.0, 2.0]
    assert points.fact_mass.tolist() == [0.0, 0.5, 0.0, 0.5, 0.0, 0.0]


def places(loaded: LoadedModel, sightings: int, monkeypatch: pytest.MonkeyPatch) -> list[Points]:
    """Where the neurons of a joint run are fitted, per request."""
    hparams, seen = read_roselora({**SETTINGS, "sightings": sightings}), []

    def noted(points: Points, *args: Any) -> Opened:
        seen.append(points)
        return opened(points, *args)

    monkeypatch.setattr(bank, "opened", noted)
    JointLayer(loaded, 1, hparams, wide=False, at_subject=True).train([TOWER, OSLO], [], None)
    return seen


def test_neurons_are_fitted_where_their_subjects_are_seen(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny("llama")
    without, with_them = (places(loaded, count, monkeypatch) for count in (0, 6))
    neurons = find_neurons(loaded, 1)
    for n, request in enumerate((TOWER, OSLO)):
        assert int((with_them[n].token == 0).sum()) == int((without[n].token == 0).sum()) + 6
        for sentence in sentences_of([], 6, SEED):
            ids = encode_prompt(loaded.tokenizer, f"{sentence} {request.subject}").ids
            with inputs_of(loaded.model, neurons.opens.module_name) as entered, torch.no_grad():
                loaded.model(torch.tensor([ids]))
            own = entered[0].reshape(len(ids), -1)[-1]
            off = [(points.x[points.token == 0] - own).norm(dim=1).min() for points in (without[n], with_them[n])]
            assert float(off[1]) < 1e-4 < float(off[0])
            assert not bool(((with_them[n].far.at(with_them[n].far.mass > 0)[0] - own).norm(dim=1) < 1e-4).any())


def test_more_than_allowed_is_refused() -> None:
    with pytest.raises(HparamsError, match="sightings"):
        read_roselora({"sightings": 65})
