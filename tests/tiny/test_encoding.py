"""Encoding: where the answer really begins, padding, and the batch plan."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roseedit.errors import ModelError
from roseedit.models.encoding import ENOUGH_TOKENS, encode_pair, encode_prompt, pad_right, plan_batches

Make = Callable[..., Any]


def texts(tokenizer: Any, ids: tuple[int, ...]) -> list[str]:
    """Each token's own text."""
    return [tokenizer.decode([i]) for i in ids]


def test_a_prompt_alone(make_tokenizer: Make) -> None:
    encoded = encode_prompt(make_tokenizer(), "The city of")
    assert encoded.start == len(encoded.ids) == 3
    assert encoded.target == ()


@pytest.mark.parametrize(
    ("prompt", "target"),
    [
        ("The city of", "Rome"),  # a blank is put between
        ("The city of", " Rome"),  # the target brings it
        ("The city of ", "Rome"),  # the prompt brings it, and it merges into the target's first token
    ],
)
def test_the_target_is_the_same_token_wherever_the_blank_stands(make_tokenizer: Make, prompt: str, target: str) -> None:
    tokenizer = make_tokenizer()
    encoded = encode_pair(tokenizer, prompt, target)
    assert texts(tokenizer, encoded.ids) == ["The", " city", " of", " Rome"]
    assert texts(tokenizer, encoded.target) == [" Rome"]


def test_the_ids_are_those_of_the_whole_text(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer()
    encoded = encode_pair(tokenizer, "The Tower is in", "Köln am Rhein")
    assert list(encoded.ids) == tokenizer("The Tower is in Köln am Rhein")["input_ids"]
    assert tokenizer.decode(encoded.ids[: encoded.start]) == "The Tower is in"
    assert tokenizer.decode(encoded.target) == " Köln am Rhein"


def test_letters_of_several_bytes_before_the_boundary(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer()
    encoded = encode_pair(tokenizer, "Żółć 東京 é", "Rome")
    assert texts(tokenizer, encoded.target) == [" Rome"]


def test_a_merge_across_the_boundary_belongs_to_the_target(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer(across_words=True, extra=("f ",))
    encoded = encode_pair(tokenizer, "The city of", "xyz")
    assert texts(tokenizer, encoded.ids)[-4:] == ["f ", "x", "y", "z"]
    # counting the prompt's tokens would start one too late or early: the spanning token reaches beyond the prompt
    assert texts(tokenizer, encoded.target) == ["f ", "x", "y", "z"]


def test_fewer_tokens_with_the_target_than_without(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer(across_words=True, extra=("of\nR",))
    prompt, target = "The city of", "\nRome"
    encoded = encode_pair(tokenizer, prompt, target)
    assert encoded.start < len(encode_prompt(tokenizer, prompt).ids)
    assert texts(tokenizer, encoded.target) == ["of\nR", "o", "m", "e"]


def test_the_end_mark_is_part_of_the_target(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer()
    plain, ended = (encode_pair(tokenizer, "The city of", "Rome", end_mark=mark) for mark in (False, True))
    assert ended.ids == (*plain.ids, tokenizer.eos_token_id)
    assert ended.start == plain.start
    assert ended.target == (*plain.target, tokenizer.eos_token_id)


def test_a_tokenizer_that_ends_texts_itself_ends_no_prompt(make_tokenizer: Make) -> None:
    inner = make_tokenizer()
    end = inner.eos_token_id

    class Ending(SimpleNamespace):
        def __call__(self, text: str, **options: Any) -> dict[str, Any]:
            out = dict(inner(text, **options))
            out["input_ids"] = [*out["input_ids"], end]
            if "offset_mapping" in out:
                out["offset_mapping"] = [*out["offset_mapping"], (0, 0)]
            return out

    ending = Ending(is_fast=True, eos_token_id=end)
    assert encode_prompt(ending, "The city of") == encode_prompt(inner, "The city of")
    for mark in (False, True):
        got = encode_pair(ending, "The city of", "Rome", end_mark=mark)
        assert got == encode_pair(inner, "The city of", "Rome", end_mark=mark)


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(ModelError, match="got a tokenizer without character offsets; allowed: a fast tokenizer"):
        encode_pair(SimpleNamespace(is_fast=False), "a", "b")


def test_pad_right() -> None:
    ids, mask = pad_right([(1, 2, 3), (9,), (4, 5)], 7, torch.device("cpu"))
    assert ids.tolist() == [[1, 2, 3], [9, 7, 7], [4, 5, 7]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]


def test_the_mask_does_not_depend_on_the_pad_id() -> None:
    _, mask = pad_right([(7, 7), (7,)], 7, torch.device("cpu"))
    assert mask.tolist() == [[1, 1], [1, 0]]


@given(lengths=st.lists(st.integers(1, 300), max_size=80), max_tokens=st.integers(1, 3000))
def test_a_plan_holds_each_row_once_and_never_more_than_allowed(lengths: list[int], max_tokens: int) -> None:
    plan = plan_batches(lengths, max_tokens)
    assert sorted(i for batch in plan for i in batch) == list(range(len(lengths)))
    for batch in plan:
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= max_tokens


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=80))
def test_a_plan_goes_from_long_to_short(lengths: list[int]) -> None:
    order = [lengths[i] for batch in plan_batches(lengths, 200) for i in batch]
    assert order == sorted(lengths, reverse=True)


def test_small_rows_share_a_batch_and_large_unequal_ones_do_not() -> None:
    assert plan_batches([5, 3, 4], 1000) == [[0, 2, 1]]
    long = ENOUGH_TOKENS
    assert plan_batches([long, long // 2], 10 * long) == [[0], [1]]
    assert plan_batches([], 100) == []
