"""EasyEdit's boundary rule, against scores with the boundary where it really is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from roseedit.evaluation.easyedit import easyedit_encode, easyedit_scores
from roseedit.evaluation.scoring import score
from roseedit.models.encoding import encode_pair
from roseedit.models.load import LoadedModel

Tiny = Callable[..., LoadedModel]
PAIRS = [("The Tower is in", "Rome"), ("The city", "of Paris")]


def test_plain_pairs_score_as_everywhere_else(any_model: LoadedModel) -> None:
    plain = score(any_model, PAIRS)
    assert easyedit_scores(any_model, PAIRS) == plain


def test_an_answer_with_a_space_of_its_own_gets_two(tiny: Tiny) -> None:
    loaded = tiny("llama")
    own = easyedit_encode(loaded.tokenizer, "The Tower is in", " Rome")
    assert own.ids == tuple(loaded.tokenizer("The Tower is in  Rome")["input_ids"])
    assert own != encode_pair(loaded.tokenizer, "The Tower is in", " Rome")


def test_known_scores_are_taken_over_and_only_the_others_run(tiny: Tiny) -> None:
    loaded = tiny("llama")
    pairs = [*PAIRS, ("The Tower is in", " Rome"), ("Tower ", "of")]
    known = [replace(found, argmax=(7,) * len(found.target)) for found in score(loaded, pairs)]
    scored: list[int] = []
    got = easyedit_scores(loaded, pairs, known=known, progress=scored.append)
    assert got[:2] == known[:2]
    assert [x.argmax for x in got[2:]] == [x.argmax for x in easyedit_scores(loaded, pairs)[2:]]
    assert sum(scored) == 2


def test_a_boundary_inside_a_token_counts_the_prompt_alone(tiny: Tiny, make_tokenizer: Callable[..., object]) -> None:
    loaded = replace(tiny("llama"), tokenizer=make_tokenizer(across_words=True, extra=("in Rome",)))
    own = easyedit_encode(loaded.tokenizer, "is in", "Rome")  # "in Rome" is one token of the pair
    assert own.start == len(loaded.tokenizer("is in")["input_ids"]) == len(own.ids)
    (got,) = easyedit_scores(loaded, [("is in", "Rome")])
    assert got.target == ()  # nothing is left for the answer, which EasyEdit averages to NaN
