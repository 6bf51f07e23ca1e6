"""Well-known prompts that are answered like the request: found by what the model says, and shut out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from roseedit.models.encoding import encode_prompt
from roseedit.models.load import LoadedModel
from roseedit.requests import EditRequest
from roseedit.roselora.anchors import content_words
from roseedit.roselora.config import read_roselora
from roseedit.roselora.engine import train_independent
from roseedit.roselora.neurons import bank, echoes
from roseedit.roselora.neurons.facts import ECHO, elsewhere
from roseedit.roselora.neurons.looks import Place
from roseedit.roselora.neurons.mlp import find_neurons
from roseedit.roselora.objective import BaseTop, Row
from roseedit.roselora.trainer import frozen

Tiny = Callable[..., LoadedModel]
VOCABULARY = 6


def test_the_table_asks_about_a_name_each_time() -> None:
    prompts = echoes.known_prompts()
    assert len({prompt for prompt, _ in prompts}) == len(prompts) > 200
    for prompt, words in prompts:
        assert words
        assert words <= content_words(prompt)
        assert "{" not in prompt
        assert prompt == prompt.strip()
        assert prompt[0] == prompt[0].upper()


def table(*shares: float) -> echoes.Known:
    """Prompts that give token 1 the shares named, and the rest to token 2."""
    own = torch.tensor([[1, 2]] * len(shares))
    chances = torch.tensor([[share, 1 - share] for share in shares])
    words = tuple(frozenset({f"name{i}"}) for i in range(len(shares)))
    return echoes.Known(torch.arange(len(shares))[:, None].float(), BaseTop(own, chances.log()), words)


def found(prompt: str = "The tower of Lyon is in", most: int = 8) -> list[float]:
    """Which of four prompts are answered like one that gives token 1 a half and token 3 the other."""
    said = BaseTop(torch.tensor([[1, 3]]), torch.tensor([[0.5, 0.5]]).log())
    return echoes.echoes(table(0.3, 0.05, 0.9, 0.2), said, prompt, most, VOCABULARY)[:, 0].tolist()


def test_those_that_share_most_come_first_and_strangers_not_at_all() -> None:
    assert found() == [2.0, 0.0, 3.0]
    assert found(most=1) == [2.0]


def test_what_asks_about_a_name_of_the_request_is_left_out() -> None:
    assert found("The tower of name2 is in") == [0.0, 3.0]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_what_it_says_is_what_the_model_says(tiny: Tiny, name: str) -> None:
    loaded = tiny(name)
    prompts = ["Oslo lies in", "The Tower is in the city of", "Eve"]
    rows = []
    for n, prompt in enumerate(prompts):
        ids = (*encode_prompt(loaded.tokenizer, prompt).ids, 3, 4)
        rows.append(Row(0, n, ids, (len(ids) - 3, len(ids) - 2), (3, 4), 1.0))
    with frozen(loaded.model), torch.no_grad():
        place = Place.of(loaded, find_neurons(loaded, 1), replay=True)
        look = echoes.look_at(loaded, rows, place, 1, 64)
        top = echoes.says(loaded, place, rows, look.activations)
        for n, prompt in enumerate(prompts):
            ids = torch.tensor([encode_prompt(loaded.tokenizer, prompt).ids])
            expected = loaded.model(ids).logits[0, -1].float().log_softmax(-1)
            assert torch.allclose(top.logprobs[n], expected[top.tokens[n]], atol=1e-4)


def test_an_echo_weighs_more_than_ordinary_text() -> None:
    ordinary, echo = torch.zeros(4, 5), torch.ones(2, 5)
    far = elsewhere(ordinary, torch.tensor([True, False, False, False]), echo)
    assert far.blocks == (ordinary, echo)
    assert far.mass[-2:].tolist() == pytest.approx([ECHO, ECHO])
    assert far.mass[0] == 0
    assert 0 < far.mass[1] < ECHO
    assert len(elsewhere(ordinary).mass) == 4


def test_a_run_has_echoes_where_its_settings_ask_for_some(tiny: Tiny, monkeypatch: Any) -> None:
    loaded = tiny("llama")
    hparams = read_roselora({"layers": [2], "steps": 1, "rewrites": 0, "train_dtype": "weights", "pool": 1.0})
    request = EditRequest("The Tower is in the city of", "Rome", subject="Tower")
    opened: dict[str, Tensor] = {}
    whole = bank.elsewhere

    def watched(others: Tensor, left_out: Tensor | None, echo: Tensor | None) -> Any:
        opened["echo"] = echo if echo is not None else others[:0]
        return whole(others, left_out, echo)

    monkeypatch.setattr(bank, "elsewhere", watched)
    train_independent(loaded, [request], hparams)
    assert 0 < len(opened["echo"]) <= hparams.anchor_echoes
    train_independent(loaded, [request], hparams.replaced(anchor_echoes=0))
    assert len(opened["echo"]) == 0
