"""Text that the model itself writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from roseedit.models.load import LoadedModel
from roseedit.requests import EditRequest
from roseedit.roselora.config import read_roselora
from roseedit.roselora.engine import train_joint
from roseedit.roselora.neurons import joint, layer, own_text
from roseedit.roselora.neurons.mlp import find_neurons
from roseedit.roselora.neurons.ordinary import ordinary_look, with_more
from roseedit.roselora.neurons.own_text import LENGTH, STARTS

Tiny = Callable[..., LoadedModel]
Attached = Callable[[torch.nn.Module], Any]


@pytest.fixture(params=["llama", "gpt2", "gemma3"])
def loaded(request: pytest.FixtureRequest, tiny: Tiny) -> LoadedModel:
    """Models of three kinds."""
    return tiny(request.param)


def test_so_many_tokens_as_were_asked_for(loaded: LoadedModel, attached: Attached) -> None:
    before = attached(loaded.model)
    rows = own_text.own_text(loaded, 1000, 0)
    length = min(LENGTH, loaded.anatomy.window)
    assert [len(row) for row in rows] == [length] * -(-1000 // length)
    assert attached(loaded.model) == before
    assert own_text.own_text(loaded, 0, 0) == []


def test_it_starts_in_every_way(loaded: LoadedModel) -> None:
    first = {row[0] for row in own_text.own_text(loaded, 2 * len(STARTS) * LENGTH, 0)}
    assert first == {loaded.tokenizer(start, add_special_tokens=False)["input_ids"][0] for start in STARTS}


def test_a_seed_says_what_is_written_and_no_global_generator_is_moved(tiny: Tiny) -> None:
    state = torch.get_rng_state()
    one, same, other = (own_text.own_text(tiny("llama"), 600, seed) for seed in (0, 0, 1))
    assert one == same != other
    assert torch.equal(torch.get_rng_state(), state)


def test_the_model_does_not_end_early_and_writes_what_it_holds_likely(loaded: LoadedModel) -> None:
    rows = torch.tensor(own_text.own_text(loaded, 2000, 0))
    assert not (rows[:, 1:] == loaded.tokenizer.eos_token_id).any()
    with torch.no_grad():
        logits = loaded.model(rows).logits[:, :-1].log_softmax(-1)
    said = logits.gather(-1, rows[:, 1:, None]).mean()
    random = logits.mean()
    assert float(said) > float(random) + 0.5


def test_it_is_written_once_for_as_long_as_no_weight_is(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, calls = tiny("llama"), []
    real = own_text._continued
    monkeypatch.setattr(own_text, "_continued", lambda *a: calls.append(a) or real(*a))
    first = own_text.own_text(loaded, 600, 0)
    assert own_text.own_text(loaded, 600, 0) is first
    with torch.no_grad():
        next(loaded.model.parameters()).add_(0)
    own_text.own_text(loaded, 600, 0)
    assert len({id(a[0]) for a in calls}) == 1
    assert len(calls) > 1


def test_many_facts_are_silent_in_it(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint, "FEW", 1)
    seen: list[int] = []

    def counted(ordinary: Any, *args: Any) -> Any:
        both = with_more(ordinary, *args)
        seen.append(len(both.x) - len(ordinary.x))
        return both

    monkeypatch.setattr(layer, "with_more", counted)
    loaded = tiny("llama")
    settings = {"layers": [2], "steps": 3, "rewrites": 1, "pool": 1.0, "train_dtype": "weights"}
    requests = [EditRequest("The Tower is in the city of", "Rome", subject="Tower"), EditRequest("Oslo lies in", "it")]
    train_joint(loaded, requests, read_roselora(settings))
    train_joint(loaded, requests, read_roselora({**settings, "own_text": 1000}))
    length = min(LENGTH, loaded.anatomy.window)
    # What the model wrote, then what was asked before, of which there is nothing; first tokens do not count.
    assert seen == [0, 0, -(-1000 // length) * (length - 1), 0]


def test_what_was_asked_before_is_ordinary_text_to_later_groups(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint, "FEW", 1)
    monkeypatch.setattr(joint, "FACTS", 1)
    prompts: list[list[str]] = []
    loaded = tiny("llama")

    def seen(ordinary: Any, _loaded: Any, _neurons: Any, texts: Any, *_: Any) -> Any:
        prompts.append([loaded.tokenizer.decode(ids) for ids in texts])
        return ordinary

    monkeypatch.setattr(layer, "with_more", seen)
    settings = {"layers": [2], "steps": 3, "rewrites": 1, "pool": 1.0, "train_dtype": "weights"}
    tower, oslo = EditRequest("The Tower is in", "Rome", subject="Tower"), EditRequest("Oslo lies in", "it")
    owner = EditRequest("The owner of the Tower is", "Rome", subject="tower")
    train_joint(loaded, [tower, oslo, owner], read_roselora(settings))
    assert prompts[1::2] == [[], [tower.prompt], [tower.prompt, oslo.prompt]]
    prompts.clear()
    named = [tower, EditRequest("Oslo lies in", "it", subject="Oslo"), owner]
    train_joint(loaded, named, read_roselora({**settings, "many_at": "subject", "subject_layers": [1]}))
    assert prompts[1::2] == [[], [tower.prompt], [oslo.prompt]]  # a subject that opens now may not be silenced


def test_idle_neurons_are_judged_by_ordinary_text_alone(tiny: Tiny) -> None:
    loaded = tiny("llama")
    hparams, neurons = read_roselora({"layers": [2]}), find_neurons(loaded, 2)
    ordinary = ordinary_look(loaded, neurons, hparams, 512)
    more = with_more(ordinary, loaded, neurons, own_text.own_text(loaded, 600, 0), hparams, 512)
    assert more.use is ordinary.use
    assert torch.equal(more.x[: len(ordinary.x)], ordinary.x)
    assert with_more(ordinary, loaded, neurons, [], hparams, 512) is ordinary
