"""Items of the multiple-choice sets: options cut out of instructions, oddities, and figures with their change."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from roseedit.editsets import DATA_VARIABLE
from roseedit.errors import DataError
from roseedit.evaluation.ability.documents import (
    TASK_FILES,
    blank_item,
    boolq_item,
    instruction_item,
    mmlu_item,
    piqa_item,
    read_items,
)
from roseedit.evaluation.ability.rows import ability_change, make_row

REAL = os.environ.get(DATA_VARIABLE)
needs_real = pytest.mark.skipif(not REAL, reason=f"{DATA_VARIABLE} is not set: no folder with the real sets to read")


def asked(text: str, answer: str = "answer2") -> dict[str, Any]:
    return {"instruction": text, "input": "", "output": "the correct answer is ...", "answer": answer}


def test_options_are_cut_out_of_an_instruction() -> None:
    text = "Please choose the correct answer to the question: What is 2: one or two?\n\nAnswer1: one Answer2: two "
    text += "Answer3: Answers: many\n\nAnswer format: answer1/answer2/answer3"
    assert instruction_item(asked(text)) == {
        "question": "What is 2: one or two?",
        "choices": ["one", "two", "Answers: many"],
        "gold": 1,
    }


def test_a_question_that_looks_like_an_option_and_a_fifth_option() -> None:
    text = "Please choose: Is Answer1: a label?\n\nAnswer1: a Answer2: b Answer3: c Answer4: d Answer5: e"
    text += "\n\nAnswer format: answer1/answer2/answer3/answer4/answer5"
    item = instruction_item(asked(text, "answer5"))
    assert (item["question"], item["choices"], item["gold"]) == ("Is Answer1: a label?", list("abcde"), 4)


def test_the_blank_is_filled_from_the_front() -> None:
    text = "Please choose the correct answer to fill in the blank: Ann thanked Bo because _ was kind.\n\n"
    text += "Option1: Ann Option2: Bo Answer format: option1/option2"
    assert blank_item(asked(text, "option2")) == {
        "choices": ["Ann thanked Bo because Ann", "Ann thanked Bo because Bo"],
        "ending": "was kind.",
        "gold": 1,
    }


def test_answers_are_counted_from_where_each_set_does() -> None:
    assert piqa_item({"goal": "g ", "sol1": "x", "sol2": " y", "answer": 2}) == {
        "question": "g", "choices": ["x", "y"], "gold": 1,
    }  # fmt: skip
    assert boolq_item({"question": "is it", "passage": "p", "title": "t", "answer": True})["gold"] == 1
    assert boolq_item({"question": "is it?", "passage": "p", "answer": False}) == {
        "passage": "p", "question": "is it", "gold": 0,
    }  # fmt: skip
    assert mmlu_item({"question": "q", "choices": list("abcd"), "answer": 0})["gold"] == 0


@pytest.mark.parametrize(
    ("read", "record", "words"),
    [
        (instruction_item, {}, "without answer format"),
        (instruction_item, asked("P: q?\n\nAnswer1: a\n\nAnswer format: answer1/answer2"), "without option 'answer2'"),
        (instruction_item, asked("P: q?\n\nAnswer1: a Answer2: \n\nAnswer format: answer1/answer2"), "'answer2'"),
        (instruction_item, asked("P: q?\n\nAnswer1: a Answer2: b\n\nAnswer format: answer1/answer2", "x"), "'x'"),
        (blank_item, asked("P: no gap.\n\nAnswer1: a Answer2: b Answer format: answer1/answer2"), "without a blank"),
        (piqa_item, {"goal": "g", "sol1": "x", "sol2": "y", "answer": 0}, "the answer 0"),
        (piqa_item, {"goal": "g", "sol1": " ", "sol2": "y", "answer": 1}, "under 'sol1'"),
        (piqa_item, {"goal": "g", "sol1": "x", "sol2": "y", "answer": True}, "the answer True"),
        (boolq_item, {"question": "q", "passage": "p", "answer": 1}, "the answer 1"),
        (mmlu_item, {"question": "q", "choices": ["a"], "answer": 0}, "four texts"),
    ],
)
def test_an_item_of_another_form_is_refused(read: Any, record: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        read(record)


def test_a_broken_item_is_named_by_file_and_place(tmp_path: Path) -> None:
    file = tmp_path / TASK_FILES["piqa"]
    file.parent.mkdir()
    good = {"goal": "g", "sol1": "x", "sol2": "y", "answer": 1}
    file.write_text(json.dumps([good, {**good, "answer": 3}]), encoding="utf-8")
    with pytest.raises(DataError, match=r"piqa_raw.json: item 1: got the answer 3"):
        read_items("piqa", tmp_path)


REAL_ITEMS = {
    "arc_easy": 2376, "arc_challenge": 1172, "openbookqa": 500, "social_i_qa": 1954, "winogrande": 1267,
    "piqa": 1838, "boolq": 3267, "mmlu": 1516,
}  # fmt: skip


@needs_real
@pytest.mark.parametrize("task", list(TASK_FILES))
def test_every_real_item_is_read(task: str) -> None:
    items = read_items(task, Path(str(REAL)))
    assert len(items) == REAL_ITEMS[task]
    for item in items:
        n = len(item.get("choices", "no"))
        assert 2 <= n <= 5 and 0 <= item["gold"] < n
        assert not any("Answer format" in text for text in item.get("choices", ()))


def test_the_instruction_form_of_piqa_is_its_raw_form() -> None:
    if not REAL:
        pytest.skip(f"{DATA_VARIABLE} is not set")
    raw = read_items("piqa", Path(REAL))
    told = json.loads((Path(REAL) / "commonsense" / "piqa_test.json").read_text(encoding="utf-8"))
    for a, b in zip(raw, told, strict=True):
        cut = instruction_item(b)
        assert (cut["choices"], cut["gold"]) == (a["choices"], a["gold"])


# --- figures ---------------------------------------------------------------------------------------------------------


def test_rows_and_their_change() -> None:
    before = make_row(("t", "acc"), [1.0, 0.0, 1.0, 1.0], [1.0] * 4, n=4, chance=0.25)
    after = make_row(("t", "acc"), [1.0, 0.0, 0.0, 1.0], [1.0] * 4, n=4, chance=0.25)
    assert (before.value, after.value) == (0.75, 0.5)
    assert before.low <= before.value <= before.high
    (change,) = ability_change([before], [after])
    assert (change.before, change.after, change.change, change.n) == (0.75, 0.5, -0.25, 4)
    assert change.low < 0.0 and change.high == 0.0  # no resample can do better: items are compared in pairs
    (same,) = ability_change([before], [before])
    assert (same.change, same.low, same.high) == (0.0, 0.0, 0.0)


def test_perplexity_weighs_windows_by_their_tokens() -> None:
    row = make_row(("w", "perplexity"), [math.log(2), math.log(8)], [3.0, 1.0], n=4, chance=math.nan)
    assert row.value == pytest.approx(math.exp((3 * math.log(2) + math.log(8)) / 4))
    assert row.low == pytest.approx(2.0) and row.high == pytest.approx(8.0)


def test_only_equal_items_can_be_compared() -> None:
    row = make_row(("t", "acc"), [1.0, 0.0], [1.0, 1.0], n=2, chance=0.5)
    longer = make_row(("t", "acc"), [1.0, 0.0, 1.0], [1.0] * 3, n=3, chance=0.5)
    for before in ([], [longer]):
        with pytest.raises(DataError, match="the same items before and after"):
            ability_change(before, [row])
