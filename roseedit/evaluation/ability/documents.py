"""Items of the local multiple-choice sets, in one form: what is asked, the choices, and which one is right.

Several sets come as instructions, with question, options and answer format in one text; there the options are cut out,
so that each can be scored as a continuation. A file with an item that does not have the expected form is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from roseedit.editsets.places import data_file
from roseedit.editsets.reading import Broken, read_records
from roseedit.errors import DataError, refusal

Item = Mapping[str, Any]
TASK_FILES = {
    "arc_easy": "commonsense/arc_easy_test.json",
    "arc_challenge": "commonsense/arc_challenge_test.json",
    "openbookqa": "commonsense/openbookqa_test.json",
    "social_i_qa": "commonsense/social_i_qa_test.json",
    "winogrande": "commonsense/winogrande_test.json",
    "piqa": "commonsense/piqa_raw.json",
    "boolq": "commonsense/boolq_dev_raw.json",
    "mmlu": "commonsense/mmlu_val_balanced.json",
}
_FORMAT = re.compile(r"\s*Answer format: (\w+?\d(?:/\w+?\d)+)\s*$")


def instruction_item(record: Item) -> dict[str, Any]:
    """Cut question and options out of an instruction.

    Args:
        record: `instruction` ("Please choose ...: QUESTION Answer1: ... Answer format: answer1/answer2") and `answer`.

    Returns:
        `question`, `choices`, `gold`.

    Raises:
        DataError: The text does not have that form.
    """
    text, answer = str(record.get("instruction", "")), record.get("answer")
    tail = _FORMAT.search(text)
    if tail is None:
        raise DataError(refusal("an instruction without answer format", "'Answer format: answer1/...'", "Repair it."))
    labels = tail.group(1).split("/")
    body = text[: tail.start()]
    choices: list[str] = []
    for label in reversed(labels):  # from the end: a question may itself contain what looks like an option
        body, mark, choice = body.rpartition(f"{label.capitalize()}:")
        if not mark or not choice.strip() or (body and not body[-1].isspace()):
            raise DataError(refusal(f"an instruction without option {label!r}", "all options named", "Repair it."))
        choices.insert(0, choice.strip())
    question = body.partition(":")[2].strip()
    if answer not in labels or not question:
        raise DataError(refusal(f"the answer {answer!r}", f"one of {', '.join(labels)} to a question", "Repair it."))
    return {"question": question, "choices": choices, "gold": labels.index(str(answer))}


def blank_item(record: Item) -> dict[str, Any]:
    """WinoGrande: the sentence up to the blank with each option filled in, and the rest that is scored behind it.

    Args:
        record: An instruction whose question has one `_`.

    Returns:
        `choices` (the beginnings), `ending`, `gold`.

    Raises:
        DataError: The text does not have that form.
    """
    item = instruction_item(record)
    before, mark, ending = item["question"].partition("_")
    if not mark or not ending.strip():
        raise DataError(refusal("a sentence without a blank inside", "one '_' with text behind it", "Repair it."))
    return {"choices": [before + x for x in item["choices"]], "ending": ending.strip(), "gold": item["gold"]}


def piqa_item(record: Item) -> dict[str, Any]:
    """PIQA: a goal and two solutions; answers are numbered from 1.

    Args:
        record: `goal`, `sol1`, `sol2`, `answer`.

    Returns:
        `question`, `choices`, `gold`.

    Raises:
        DataError: A field is missing or the answer is neither 1 nor 2.
    """
    question, *choices = (_text(record, key) for key in ("goal", "sol1", "sol2"))
    return {"question": question, "choices": choices, "gold": _number(record, (1, 2)) - 1}


def boolq_item(record: Item) -> dict[str, Any]:
    """BoolQ: a passage and a yes/no question, which lacks its question mark.

    Args:
        record: `passage`, `question`, `answer` (true or false).

    Returns:
        `passage`, `question`, `gold` (0 no, 1 yes).

    Raises:
        DataError: A field is missing or the answer is not a truth value.
    """
    question = _text(record, "question").rstrip("?")
    return {"passage": _text(record, "passage"), "question": question, "gold": int(_number(record, (False, True)))}


def mmlu_item(record: Item) -> dict[str, Any]:
    """MMLU: a question with four options, asked for by letter.

    Args:
        record: `question`, `choices`, `answer` (0 to 3).

    Returns:
        `question`, `choices`, `gold`.

    Raises:
        DataError: A field is missing or there are not four options.
    """
    choices = record.get("choices")
    if not isinstance(choices, list) or len(choices) != 4 or not all(isinstance(x, str) for x in choices):
        raise DataError(refusal(f"the choices {choices!r}", "four texts", "Repair it."))
    return {"question": _text(record, "question"), "choices": choices, "gold": _number(record, (0, 1, 2, 3))}


def _text(record: Item, key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise DataError(refusal(f"{value!r} under {key!r}", "text", "Repair it."))
    return value.strip()


def _number(record: Item, allowed: tuple[Any, ...]) -> Any:
    value = record.get("answer")
    if value not in allowed or isinstance(value, bool) is not isinstance(allowed[0], bool):
        raise DataError(refusal(f"the answer {value!r}", f"one of {allowed}", "Repair it."))
    return value


_READERS: dict[str, Callable[[Item], dict[str, Any]]] = {
    "winogrande": blank_item,
    "piqa": piqa_item,
    "boolq": boolq_item,
    "mmlu": mmlu_item,
}


def read_items(task: str, folder: Path | None = None) -> list[dict[str, Any]]:
    """All items of a local set.

    Args:
        task: Key of `TASK_FILES`.
        folder: The data folder; left out, the one that ROSEEDIT_DATA names.

    Returns:
        One object per item, in the file's order.

    Raises:
        DataError: No file, or an item that does not have the expected form.
    """
    path = data_file(TASK_FILES[task], folder)
    read = _READERS.get(task, instruction_item)
    items = []
    for index, record in enumerate(read_records(path)[0]):
        try:
            if isinstance(record, Broken):
                raise DataError(record.reason)
            items.append(read(record))
        except DataError as error:
            raise DataError(f"{path}: item {index}: {error}") from error
    return items


def _dataset(task: str, *, folder: str, **_: Any) -> Any:
    """What lm-evaluation-harness calls: the items as a table in memory, so that nothing is cached on disk."""
    from datasets import Dataset

    return {"test": Dataset.from_list(read_items(task, Path(folder)))}


arc_easy = partial(_dataset, "arc_easy")
arc_challenge = partial(_dataset, "arc_challenge")
openbookqa = partial(_dataset, "openbookqa")
social_i_qa = partial(_dataset, "social_i_qa")
winogrande = partial(_dataset, "winogrande")
piqa = partial(_dataset, "piqa")
boolq = partial(_dataset, "boolq")
mmlu = partial(_dataset, "mmlu")
