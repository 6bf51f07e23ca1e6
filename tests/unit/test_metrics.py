"""Metrics of single answers, every expected value computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from roseedit.evaluation.easyedit import easyedit_accuracy, easyedit_answer, easyedit_locality, easyedit_over_groups
from roseedit.evaluation.fluency import entropy, ngram_entropy, words
from roseedit.evaluation.metrics import (
    contains_answer,
    exact_match,
    exact_match_every,
    kl_divergence,
    normalise,
    prefix_agreement,
    starts_with_answer,
    token_agreement,
    unchanged,
)
from roseedit.evaluation.preference import harmonic_mean, magnitude, nll, prefers, target_perplexity
from roseedit.evaluation.prompts import Generated
from roseedit.evaluation.scoring import PairScore
from roseedit.requests import Probe


def said(text: str, stop: str = "eos") -> Generated:
    return Generated(text, stop, 5)


def scored(*probabilities: float) -> PairScore:
    """An answer whose tokens have these probabilities."""
    n = len(probabilities)
    return PairScore(tuple(range(n)), tuple(math.log(p) for p in probabilities), tuple(range(n)))


# --- what is said ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        (" The  City of ROME. ", "city of rome"),
        ("a an the", ""),
        ("U.S.A.", "usa"),
        ("another theatre", "another theatre"),
    ],
)
def test_normalise(text: str, normal: str) -> None:
    assert normalise(text) == normal


@pytest.mark.parametrize(
    ("text", "stop", "accepted", "match"),
    [
        (" the Rome.", "eos", ["Paris", "rome"], True),
        ("Rome", "stop_string", ["Rome"], True),
        ("Rome", "cap", ["Rome"], False),  # ran on until the limit
        ("Rome and more", "eos", ["Rome"], False),
        ("", "eos", ["Rome"], False),
        ("", "eos", ["The"], False),  # silence is no answer, even to one that normalises to nothing
        ("A", "eos", ["A"], True),
        ("*", "eos", ["A"], False),
        ("Rome", "eos", [], False),
    ],
)
def test_exact_match(text: str, stop: str, accepted: list[str], match: bool) -> None:
    assert exact_match(said(text, stop), accepted) is match


LISTS = (("Rome", "Roma"), ("New York", "York"), ("Oslo",))


@pytest.mark.parametrize(
    ("text", "any_list", "every_list"),
    [
        ("Roma", True, False),
        ("Oslo, New York and Rome", False, True),
        ("rome oslo york", False, True),
        ("Rome, New York and also Oslo or", False, True),
        ("Rome, Paris, New York, Oslo", False, False),
        ("Rome, Rome, New York, Oslo", False, False),
        ("New Oslo York Rome", False, False),  # "York" is named, "New" is left over
        ("", False, False),
    ],
)
def test_alias_lists_any_and_every(text: str, any_list: bool, every_list: bool) -> None:
    accepted = Probe("g", "p", LISTS).aliases
    assert exact_match(said(text), accepted) is any_list
    assert exact_match_every(said(text), LISTS) is every_list
    assert exact_match_every(said(text, "cap"), LISTS) is False


def test_every_list_is_exact_match_where_there_is_one() -> None:
    for text in ("Roma", "Rome and", "Paris", ""):
        assert exact_match_every(said(text), LISTS[:1]) is exact_match(said(text), LISTS[0])
    assert exact_match_every(said("Rome"), ()) is False
    assert exact_match_every(said("Rome"), (("Rome", "Roma"), ("rome", "Roma"))) is True  # the same list twice


def test_starts_with_and_contains_ask_for_whole_words() -> None:
    assert starts_with_answer(said("Rome, in Italy", "cap"), ["Rome"])
    assert not starts_with_answer(said("Romeo"), ["Rome"])
    assert not starts_with_answer(said("In Rome"), ["Rome"])
    assert contains_answer(said("It is in the Rome of old"), ["x", "Rome"])
    assert not contains_answer(said("Romeo"), ["Rome"])
    assert not contains_answer(said("anything"), ["the", ""])  # answers that normalise to nothing


def test_a_run_on_answer_fails_exact_match_and_passes_token_accuracy() -> None:
    run_on = said("Rome Rome Rome Rome", "cap")
    assert not exact_match(run_on, ["Rome"])
    assert starts_with_answer(run_on, ["Rome"]) and contains_answer(run_on, ["Rome"])
    assert easyedit_accuracy(scored(0.9)) == 1.0


@pytest.mark.parametrize(
    ("before", "after", "same", "agreement"),
    [
        ("It is Rome.", "it is rome", True, 1.0),
        ("one two three four", "one two other four", False, 0.5),
        ("one two", "one two three four", False, 0.5),
        ("one", "two", False, 0.0),
        ("", "", True, 1.0),
        ("", "one", False, 0.0),
        ("the", "a", False, 0.0),
    ],
)
def test_locality_of_generated_answers(before: str, after: str, same: bool, agreement: float) -> None:
    assert unchanged(said(before), said(after)) is same
    assert prefix_agreement(said(before), said(after)) == agreement


# --- distributions ---------------------------------------------------------------------------------------------------


def test_kl_divergence() -> None:
    before = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]]).log()
    after = torch.tensor([[0.25, 0.75], [0.5, 0.5], [0.25, 0.75]]).log()
    expected = [0.5 * math.log(2) + 0.5 * math.log(2 / 3), math.log(2), 0.0]
    assert kl_divergence(before, after).tolist() == pytest.approx(expected, abs=1e-6)


def test_kl_divergence_of_a_token_that_both_or_one_rule_out() -> None:
    hard = torch.tensor([[1.0, 0.0]]).log()
    assert kl_divergence(hard, hard).tolist() == [0.0]
    assert kl_divergence(torch.tensor([[0.5, 0.5]]).log(), hard).tolist() == [math.inf]


# --- teacher forced --------------------------------------------------------------------------------------------------


def test_nll_is_per_token() -> None:
    assert nll(scored(0.5, 0.125)) == pytest.approx(2 * math.log(2))  # -(ln 1/2 + ln 1/8) / 2
    assert math.isnan(nll(PairScore((), (), ())))


def test_preference_and_magnitude() -> None:
    new, old = scored(0.5, 0.5), scored(0.25)
    assert prefers(new, old) and not prefers(old, new)
    assert not prefers(new, new)  # a tie is no win
    assert magnitude(new, old) == pytest.approx(0.25)
    assert magnitude(old, new) == pytest.approx(-0.25)


def test_length_alone_decides_nothing() -> None:
    long, short = scored(0.5, 0.5, 0.5), scored(0.4)
    assert long.logprob < short.logprob  # the sum would prefer the short one
    assert prefers(long, short)


def test_harmonic_mean() -> None:
    assert harmonic_mean([1.0, 0.5, 0.25]) == pytest.approx(3 / 7)
    assert harmonic_mean([1.0, 0.0, 1.0]) == 0.0
    assert math.isnan(harmonic_mean([])) and math.isnan(harmonic_mean([1.0, math.nan]))


def test_target_perplexity() -> None:
    assert target_perplexity(scored(0.5, 0.125)) == pytest.approx(4.0)
    assert target_perplexity(PairScore((1,), (-5000.0,), (0,))) == math.inf


def test_easyedit_accuracy_and_locality() -> None:
    before = PairScore((1, 2, 3, 4), (-1.0,) * 4, (1, 0, 3, 9))
    after = PairScore((1, 2, 3, 4), (-1.0,) * 4, (1, 2, 0, 9))
    assert easyedit_accuracy(before) == 0.5
    assert easyedit_locality(before, after) == 0.5 == token_agreement(before, after)  # 1 and 9, right or wrong
    nothing = PairScore((), (), ())
    assert math.isnan(easyedit_accuracy(nothing)) and math.isnan(easyedit_locality(nothing, nothing))


def test_easyedit_takes_the_first_alias_of_the_first_list() -> None:
    assert easyedit_answer(Probe("g", "p", LISTS)) == "Rome"
    assert easyedit_answer(Probe("g", "p")) is None


def test_easyedit_means_over_groups() -> None:
    groups = {"a": [1.0, 0.0, math.nan], "b": [1.0], "c": [math.nan], "d": []}
    assert easyedit_over_groups(groups) == 0.75
    assert math.isnan(easyedit_over_groups({"c": [math.nan]}))


# --- fluency ---------------------------------------------------------------------------------------------------------


def test_words_are_split_without_a_download() -> None:
    assert words("It's 3.5, naïve!") == ["It", "'", "s", "3", ".", "5", ",", "naïve", "!"]


def test_ngram_entropy() -> None:
    text = "a b a b a"  # bigrams ab ba ab ba: 1 bit; trigrams aba bab aba: 2/3 and 1/3
    third = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    assert entropy(text, 2) == pytest.approx(1.0)
    assert entropy(text, 3) == pytest.approx(third)
    assert ngram_entropy(text) == pytest.approx((2 / 3 * 1.0 + 4 / 3 * third) / 2)
    assert ngram_entropy("x x x x x x") == 0.0
    assert math.isnan(ngram_entropy("two words"))
