"""Perplexity with a sliding window, against the model's own probabilities."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from roseedit.editsets import DATA_VARIABLE
from roseedit.errors import DataError
from roseedit.evaluation.perplexity import perplexity, wikitext, windows
from roseedit.models.load import LoadedModel

Tiny = Callable[..., LoadedModel]
TEXT = "The Tower is in Rome.\n \n = Paris = \n The city of Paris is in the city. " * 3


def one_by_one(loaded: LoadedModel, context: int, stride: int) -> float:
    """Each token on its own, from the tokens that its window shows it."""
    ids = loaded.tokenizer(TEXT)["input_ids"]
    total = 0.0
    for start, first, end in windows(len(ids), context, stride):
        for at in range(first, end):
            with torch.no_grad():
                logits = loaded.model(torch.tensor([ids[start:at]])).logits[0, -1]
            total -= float(logits.log_softmax(-1)[ids[at]])
    return total


@pytest.mark.parametrize(("context", "stride"), [(16, 8), (16, 5), (10, 9), (128, 64)])
def test_it_is_the_models_own_probability(tiny: Tiny, context: int, stride: int) -> None:
    loaded = tiny("llama")
    got = perplexity(loaded, TEXT, context=context, stride=stride, batch_tokens=40)
    assert got.n_tokens == len(loaded.tokenizer(TEXT)["input_ids"]) - 1
    assert got.nll == pytest.approx(one_by_one(loaded, context, stride), abs=1e-3)
    assert got.value == pytest.approx(math.exp(got.nll / got.n_tokens))
    assert got.word_value == pytest.approx(math.exp(got.nll / len(TEXT.split())))
    assert got.bits_per_byte == pytest.approx(got.nll / math.log(2) / len(TEXT.encode()))
    assert (got.context, got.stride) == (context, stride)


def test_every_architecture_and_any_batch(any_model: LoadedModel) -> None:
    whole = perplexity(any_model, TEXT, context=12, stride=6)
    assert perplexity(any_model, TEXT, context=12, stride=6, batch_tokens=1).nll == pytest.approx(whole.nll, abs=1e-3)
    assert perplexity(any_model, TEXT).context == min(1024, any_model.anatomy.window)


@pytest.mark.parametrize(("n", "context", "stride"), [(2, 2, 1), (7, 4, 2), (100, 10, 3), (5, 10, 5), (21, 10, 5)])
def test_every_token_is_predicted_once_and_sees_enough(n: int, context: int, stride: int) -> None:
    places = windows(n, context, stride)
    assert [at for _, first, end in places for at in range(first, end)] == list(range(1, n))
    assert all(end - start <= context for start, _, end in places)
    assert all(first - start >= context - stride for start, first, _ in places[1:])


def test_a_shorter_look(tiny: Tiny) -> None:
    loaded = tiny("llama")
    told: list[float] = []
    got = perplexity(loaded, TEXT, context=8, stride=4, max_tokens=21, progress=told.append)
    assert got.n_tokens == 20 == sum(told)
    assert got.n_bytes < len(TEXT.encode())
    assert got.sha256 == perplexity(loaded, TEXT, context=8, stride=4).sha256


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("x", {}, "1 tokens"),
        (TEXT, {"context": 4096}, "the model's window"),
        (TEXT, {"context": 1}, "context 1"),
        (TEXT, {"context": 8, "stride": 8}, "stride 8"),
        (TEXT, {"stride": 0}, "stride 0"),
    ],
)
def test_what_does_not_fit_is_refused(tiny: Tiny, text: str, options: dict[str, int], words: str) -> None:
    with pytest.raises(DataError, match=words):
        perplexity(tiny("llama"), text, **options)


def test_wikitext_is_read_as_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    with pytest.raises(DataError, match=DATA_VARIABLE):
        wikitext()
    file = tmp_path / "text" / "wikitext2_raw_valid.txt"
    file.parent.mkdir()
    file.write_bytes(b" \n = Title = \r\n")
    assert wikitext("validation", tmp_path) == " \n = Title = \r\n"
    with pytest.raises(DataError, match="no file"):
        wikitext("test", tmp_path)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8"):
        wikitext("validation", tmp_path)
    with pytest.raises(DataError, match="test, validation"):
        wikitext("train", tmp_path)


def test_no_warning_of_a_text_longer_than_the_window(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    loaded = tiny("llama")
    loaded.tokenizer.model_max_length = 16
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        perplexity(loaded, TEXT, context=16, stride=8)
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.records == []
