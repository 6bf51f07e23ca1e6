"""The harness on a live model: its figures are those of our own scoring, before and after the weights change."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from roseedit.editsets import DATA_VARIABLE
from roseedit.errors import DataError
from roseedit.evaluation.ability import known_tasks, measure_ability
from roseedit.evaluation.ability.documents import TASK_FILES, read_items
from roseedit.evaluation.perplexity import perplexity, wikitext
from roseedit.evaluation.scoring import score
from roseedit.models.load import LoadedModel

lm_eval = pytest.importorskip("lm_eval.tasks") and pytest.importorskip("lm_eval")
Tiny = Callable[..., LoadedModel]
WORDS = ["Rome", "Paris", "the Tower", "the city of Rome", "in the city", "is"]
ONE_METRIC = ("winogrande", "boolq", "mmlu")
CHOICES = {"mmlu": 4, "winogrande": 2, "piqa": 2, "boolq": 2}
LETTERS = "Answer1: {} Answer2: {} Answer3: {}\n\nAnswer format: answer1/answer2/answer3"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder with small files of our own in every form."""
    draw = random.Random(5)
    (tmp_path / "commonsense").mkdir()
    (tmp_path / "text").mkdir()
    items: dict[str, list[dict[str, Any]]] = {task: [] for task in TASK_FILES}
    for i in range(12):
        a, b, c, d = draw.sample(WORDS, 4)
        gold = draw.randrange(3)
        question = f"Please choose: Where is {a}?\n\n" + LETTERS.format(b, c, d)
        for task in ("arc_easy", "arc_challenge", "openbookqa", "social_i_qa"):
            items[task].append({"instruction": question, "answer": f"answer{gold + 1}"})
        gap = f"Please choose: In {a} _ is in the city.\n\nOption1: {b} Option2: {c} Answer format: option1/option2"
        items["winogrande"].append({"instruction": gap, "answer": f"option{i % 2 + 1}"})
        items["piqa"].append({"goal": a, "sol1": b, "sol2": c, "answer": i % 2 + 1})
        items["boolq"].append({"passage": f"{a} is {b}.", "question": f"is {a} in {c}", "answer": i % 2 == 0})
        items["mmlu"].append({"question": f"{a} is?", "choices": [a, b, c, d], "answer": gold})
    for task, records in items.items():
        (tmp_path / TASK_FILES[task]).write_text(json.dumps(records), encoding="utf-8")
    text = "The Tower is in the city of Rome. \n \n = Paris = \n" * 5
    (tmp_path / "text" / "wikitext2_raw_test.txt").write_text(text, encoding="utf-8")
    return tmp_path


def own_accuracy(loaded: LoadedModel, task: str, folder: Path) -> dict[str, list[float]]:
    """Per item, by our own scoring: likelihood as it is, and over the choice's length in characters."""
    out: dict[str, list[float]] = {"acc": [], "acc_norm": []}
    for item in read_items(task, folder):
        prompt, choices = f"Question: {item.get('question')}\nAnswer:", item.get("choices")
        if task == "winogrande":
            pairs = [(begin, item["ending"]) for begin in item["choices"]]
        elif task == "boolq":
            pairs = [(f"{item['passage']}\nQuestion: {item['question']}?\nAnswer:", x) for x in ("no", "yes")]
        elif task == "mmlu":
            listed = "\n".join(f"{letter}. {x}" for letter, x in zip("ABCD", choices, strict=True))
            pairs = [(f"{item['question']}\n{listed}\nAnswer:", letter) for letter in "ABCD"]
        else:
            pairs = [(item["question"] if task == "openbookqa" else prompt, x) for x in choices]
        found = [x.logprob for x in score(loaded, pairs)]
        lengths = [len(target) for _, target in pairs]
        normed = [x / n for x, n in zip(found, lengths, strict=True)]
        out["acc"].append(float(found.index(max(found)) == item["gold"]))
        out["acc_norm"].append(float(normed.index(max(normed)) == item["gold"]))
    return out


@pytest.mark.parametrize("task", list(TASK_FILES))
def test_every_task_scores_as_our_own_scoring(tiny: Tiny, folder: Path, task: str) -> None:
    loaded = tiny("llama", max_position_embeddings=512)
    own = own_accuracy(loaded, task, folder)
    rows = measure_ability(loaded, [task], folder=folder)
    assert {row.metric for row in rows} == {"acc"} | (
        {"acc_norm"} if task not in ("winogrande", "boolq", "mmlu") else set()
    )
    for row in rows:
        assert list(row.items) == own[row.metric]
        assert row.value == pytest.approx(sum(own[row.metric]) / 12)
        assert (row.task, row.n) == (task, 12)
        assert row.chance == pytest.approx(
            {"mmlu": 1 / 4}.get(task, 1 / 2 if task in ("winogrande", "piqa", "boolq") else 1 / 3)
        )


def test_changed_weights_are_measured_anew_and_nothing_is_left_behind(
    tiny: Tiny,
    folder: Path,
    digest: Callable[..., str],
    attached: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    capfd.readouterr()
    files = sorted(folder.rglob("*"))
    loaded = tiny("llama", max_position_embeddings=512)
    before = measure_ability(loaded, ["arc_easy"], folder=folder)
    state = digest(loaded.model), attached(loaded.model), loaded.tokenizer.pad_token
    seeds = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert measure_ability(loaded, ["arc_easy"], folder=folder) == before
    assert (digest(loaded.model), attached(loaded.model), loaded.tokenizer.pad_token) == state
    assert capfd.readouterr() == ("", "")
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == seeds
    with torch.no_grad():
        loaded.model.get_output_embeddings().weight.neg_()
    after = measure_ability(loaded, ["arc_easy"], folder=folder)
    assert [row.items for row in after] != [row.items for row in before]
    assert list(after[0].items) == own_accuracy(loaded, "arc_easy", folder)["acc"]
    assert sorted(folder.rglob("*")) == files


def test_limit_progress_and_order(tiny: Tiny, folder: Path) -> None:
    loaded = tiny("llama", max_position_embeddings=512)
    told: list[tuple[str, int, int]] = []
    whole = measure_ability(loaded, ["piqa"], folder=folder)
    rows = measure_ability(
        loaded,
        ["wikitext2", "piqa"],
        5,
        folder=folder,
        text_tokens=40,
        batch_size=1,
        progress=lambda *x: told.append(x),
    )
    assert [(row.task, row.metric) for row in rows] == [
        ("wikitext2", "perplexity"),
        ("piqa", "acc"),
        ("piqa", "acc_norm"),
    ]
    assert rows[1].items == whole[0].items[:5]
    assert ("piqa", 10, 10) in told and told[0] == ("wikitext2", 39, 40)


def test_text_is_a_row_too(tiny: Tiny, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(folder))
    loaded = tiny("llama")
    (row,) = measure_ability(loaded, ["wikitext2"], text_tokens=None)
    found = perplexity(loaded, wikitext())
    assert row.value == pytest.approx(found.value) and row.n == found.n_tokens
    assert row.low <= row.value <= row.high


def test_what_cannot_be_measured_is_refused_first(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny("llama")
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    for tasks, limit, folder, words in (
        ([], None, None, "no ability task"),
        (["arc_esay"], None, None, "Did you mean 'arc_easy'"),
        (["arc_easy"], None, None, f"no {DATA_VARIABLE}"),
        (["wikitext2", "boolq"], None, tmp_path, "no file"),
        (["piqa"], 0, tmp_path, "limit 0"),
    ):
        with pytest.raises(DataError, match=words):
            measure_ability(loaded, tasks, limit, folder=folder)
    assert set(known_tasks()) == {*TASK_FILES, "wikitext2"}
    assert os.environ.get(DATA_VARIABLE) is None


def test_a_task_that_the_harness_does_not_have(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = lm_eval.tasks.TaskManager

    def few(include_defaults: bool, **options: Any) -> Any:
        assert include_defaults  # it is looked for among the harness's own, whose thousands of files take long to list
        return whole(include_defaults=False, **options)

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", few)
    with pytest.raises(DataError, match="the task 'hellaswagg'"):
        measure_ability(tiny("llama"), ["lm_eval/hellaswagg"], 1)
