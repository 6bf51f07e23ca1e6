"""What is read in one pass over the prompts is what passes of their own give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from test_scoring import PAIRS, PROMPTS, close, random_bank
from transformers import PreTrainedTokenizerFast

from roseedit.errors import RequestError
from roseedit.evaluation.generation import generate
from roseedit.evaluation.reading import Read, read
from roseedit.evaluation.scoring import PairScore, next_token, score
from roseedit.models.encoding import encode_pair, encode_prompt
from roseedit.models.load import LoadedModel

ANSWERS = [(target, "the river" if i % 2 else None) for i, (_, target) in enumerate(PAIRS)]


def scores(found: list[Read], k: int) -> list[PairScore]:
    """The k-th answers' scores, where there are any."""
    return [r.answers[k] for r in found if r.answers[k] is not None]


@pytest.mark.parametrize("edited", [False, True])
@pytest.mark.parametrize("batch_tokens", [60, 2048])
def test_one_pass_reads_what_separate_passes_read(any_model: LoadedModel, edited: bool, batch_tokens: int) -> None:
    bank, rows = (random_bank(any_model), [0, -1, 2, 1, 0]) if edited else (None, None)
    carried = {"edits": bank, "rows": rows}
    found = read(any_model, PROMPTS, ANSWERS, following=[True] * 5, **carried, batch_tokens=batch_tokens)
    assert [r.said for r in found] == generate(any_model, PROMPTS, **carried)
    assert close(scores(found, 0), score(any_model, PAIRS, **carried))
    others = [i for i in range(5) if i % 2]
    own = {"edits": bank, "rows": [rows[i] for i in others] if rows else None}
    assert close(scores(found, 1), score(any_model, [(PROMPTS[i], "the river") for i in others], **own))
    assert [r.answers[1] is None for r in found] == [i % 2 == 0 for i in range(5)]
    following = torch.stack([r.following for r in found if r.following is not None])
    assert torch.allclose(following, next_token(any_model, PROMPTS, **carried), atol=1e-5)


def test_only_what_is_wanted_is_kept(tiny: Callable[..., LoadedModel]) -> None:
    found = read(tiny("llama"), PROMPTS[:2], [(), ()], following=[False, True])
    assert found[0].following is None
    assert found[1].following is not None
    assert [r.answers for r in found] == [[], []]


def test_a_token_across_the_boundary_is_scored_by_a_pass_of_its_own(
    tiny: Callable[..., LoadedModel], make_tokenizer: Callable[..., PreTrainedTokenizerFast]
) -> None:
    tokenizer = make_tokenizer(across_words=True, extra=("in Rome",))
    tokenizer.pad_token = tokenizer.eos_token
    loaded = replace(tiny("llama", vocab_size=300), tokenizer=tokenizer)
    prompt, answer = "The Tower is in", "Rome"
    assert encode_pair(loaded.tokenizer, prompt, answer).ids[:-1] != encode_prompt(loaded.tokenizer, prompt).ids
    found = read(loaded, [prompt, "The city"], [(answer,), (answer,)], following=[False, False])
    assert close(scores(found, 0), score(loaded, [(prompt, answer), ("The city", answer)]))


def test_an_empty_prompt_is_refused(tiny: Callable[..., LoadedModel]) -> None:
    with pytest.raises(RequestError, match="0 tokens"):
        read(tiny("llama"), [""], [("x",)], following=[False])


def test_padding_behind_a_long_prompt_stays_in_the_window(tiny: Callable[..., LoadedModel]) -> None:
    loaded = tiny("gpt2")  # positions beyond the window have no embedding
    words = ["The", *["city"] * loaded.anatomy.window]

    def of_length(n: int) -> str:
        return next(t for k in range(n, 0, -1) if tokens(t := " ".join(words[:k])) <= n)

    def tokens(text: str) -> int:
        return len(encode_prompt(loaded.tokenizer, text).ids)

    window, answer = loaded.anatomy.window, "of Paris, not of Rome"
    pairs = [(of_length(window - 3), "in"), (of_length(window - 4 - tokens(answer)), answer)]
    found = read(loaded, [p for p, _ in pairs], [(a,) for _, a in pairs], following=[False] * 2, batch_tokens=4096)
    assert close(scores(found, 0), score(loaded, pairs))
