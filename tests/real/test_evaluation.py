"""Figures on the real model: EasyEdit's against a computation straight from its definition, and general ability."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from roseedit.editor import Editor
from roseedit.edits.delta import Delta
from roseedit.editsets import DATA_VARIABLE, load_editset
from roseedit.evaluation.ability import measure_ability
from roseedit.evaluation.aggregate import summarise
from roseedit.evaluation.easyedit import (
    easyedit_accuracy,
    easyedit_answer,
    easyedit_locality,
    easyedit_over_groups,
    easyedit_scores,
)
from roseedit.evaluation.scoring import score
from roseedit.requests import EditRequest, Probe

pytestmark = pytest.mark.real
ROOT = Path(__file__).resolve().parents[2]
Figures = dict[str, float]
KINDS = ("rewrite", "rephrase", "portability", "locality")


def edits() -> list[EditRequest]:
    """Twenty real edits where the data is at hand, else our own sample; and one with blanks that EasyEdit doubles."""
    path = None if os.environ.get(DATA_VARIABLE) else ROOT / "data" / "wikidata_sample.json"
    odd = EditRequest("The Eiffel Tower is located in the city of ", " Rome", rephrase=("The Eiffel Tower stands in",))
    return [*load_editset("wikidata-counterfact", path).requests[:20], odd]


def some_delta(editor: Editor) -> Delta:
    """A change that moves first choices without destroying the model."""
    draw = torch.Generator().manual_seed(11)
    chosen = editor.loaded.anatomy.select(("mlp.down",), (20, 24))
    factors = {
        p.module_name: (torch.randn(2, p.d_in, generator=draw), torch.randn(p.d_out, 2, generator=draw)) for p in chosen
    }
    return Delta.from_factors({p.module_name: p for p in chosen}, factors, scale=0.02)


# --- the oracle: nothing of roseedit's evaluation in it ---------------------------------------------------------------


@torch.no_grad()
def first_choices(editor: Editor, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """What the model would say at the answer's positions, and the answer's tokens: one row, no batch, no padding."""
    tokenizer, model = editor.loaded.tokenizer, editor.loaded.model
    ids = tokenizer(prompt + " " + answer, return_tensors="pt")["input_ids"]
    start = len(tokenizer(prompt)["input_ids"])
    said = model(ids).logits[0].argmax(-1).tolist()
    return said[start - 1 : -1], ids[0, start:].tolist()


def share(a: Sequence[int], b: Sequence[int]) -> float:
    return sum(x == y for x, y in zip(a, b, strict=True)) / len(b)


def one_look(editor: Editor, requests: list[EditRequest]) -> list[dict[str, Any]]:
    """Everything EasyEdit reads off one model, edit by edit."""
    looks = []
    for r in requests:
        look: dict[str, Any] = {"rewrite": share(*first_choices(editor, r.prompt, r.target_new))}
        look["rephrase"] = share(*first_choices(editor, r.rephrase[0], r.target_new)) if r.rephrase else math.nan
        for kind, probes in (("portability", r.portability), ("locality", r.locality)):
            groups: dict[str, list[Any]] = {}
            for p in probes:
                said, wanted = first_choices(editor, p.prompt, p.answers[0][0])
                groups.setdefault(p.group, []).append(share(said, wanted) if kind == "portability" else said)
            look[kind] = groups
        looks.append(look)
    return looks


def oracle(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[Figures]:
    """Figures per edit."""
    out = []
    for b, a in zip(before, after, strict=True):
        figures = {"rewrite": a["rewrite"], "rephrase": a["rephrase"]}
        for kind in ("portability", "locality"):
            means = []
            for group, values in a[kind].items():
                old = b[kind][group]
                scores = values if kind == "portability" else [share(x, y) for x, y in zip(values, old, strict=True)]
                figures[group] = sum(scores) / len(scores)
                means.append(figures[group])
            figures[kind] = sum(means) / len(means) if means else math.nan
        out.append(figures)
    return out


# --- the same through the package ------------------------------------------------------------------------------------


def pairs_of(requests: list[EditRequest]) -> list[tuple[int, str, str, tuple[str, str]]]:
    """Edit, kind, group and pair of everything that is scored."""
    out = []

    def add(i: int, kind: str, probes: Sequence[Probe]) -> None:
        answered = [(p, easyedit_answer(p)) for p in probes]
        out.extend((i, kind, p.group, (p.prompt, answer)) for p, answer in answered if answer is not None)

    for i, r in enumerate(requests):
        out.append((i, "rewrite", "rewrite", (r.prompt, r.target_new)))
        out.extend((i, "rephrase", "rephrase", (text, r.target_new)) for text in r.rephrase[:1])
        add(i, "portability", r.portability)
        add(i, "locality", r.locality)
    return out


def package(editor: Editor, requests: list[EditRequest], delta: Delta) -> list[Figures]:
    asked = pairs_of(requests)
    pairs = [pair for *_, pair in asked]
    before = easyedit_scores(editor.loaded, pairs, known=score(editor.loaded, pairs))
    delta.apply(editor.loaded.model)
    try:
        after = easyedit_scores(editor.loaded, pairs)
    finally:
        delta.revert(editor.loaded.model)
    groups: list[dict[str, dict[str, list[float]]]] = [{} for _ in requests]
    for (i, kind, group, _), b, a in zip(asked, before, after, strict=True):
        value = easyedit_locality(b, a) if kind == "locality" else easyedit_accuracy(a)
        groups[i].setdefault(kind, {}).setdefault(group, []).append(value)
    out = []
    for kinds in groups:
        figures = {
            kind: easyedit_over_groups(kinds.get(kind, {}))
            for kind in ("rewrite", "rephrase", "portability", "locality")
        }
        figures |= {g: sum(v) / len(v) for k in ("portability", "locality") for g, v in kinds.get(k, {}).items()}
        out.append(figures)
    return out


def test_easyedit_figures_equal_the_definition(editor: Editor) -> None:
    requests = edits()
    delta = some_delta(editor)
    before = one_look(editor, requests)
    delta.apply(editor.loaded.model)
    after = one_look(editor, requests)
    delta.revert(editor.loaded.model)
    wanted, got = oracle(before, after), package(editor, requests, delta)
    for expected, found in zip(wanted, got, strict=True):
        assert found == pytest.approx(expected, abs=1e-6, nan_ok=True)
    for name in KINDS:
        values = [figures[name] for figures in wanted]
        known = [value for value in values if not math.isnan(value)]
        summary = summarise([figures[name] for figures in got], range(len(got)))
        assert summary.mean == pytest.approx(sum(known) / len(known), abs=1e-6)
        assert (summary.n, summary.missing_edits) == (len(known), len(values) - len(known))
    assert any(figures["locality"] < 1 for figures in got)  # the pair of models does differ


# --- general ability -------------------------------------------------------------------------------------------------

QUESTIONS = [
    ("Which animal says meow?", ["a cat", "a river", "a stone"], 0),
    ("What do people use to cut paper?", ["a cloud", "scissors", "soup"], 1),
    ("What falls from the sky when it is cold?", ["chairs", "bread", "snow"], 2),
    ("What do fish live in?", ["water", "fire", "books"], 0),
    ("What does the sun give us?", ["shoes", "light", "silence"], 1),
    ("Where do doctors work?", ["in a volcano", "in a bottle", "in a hospital"], 2),
]


def test_the_harness_on_the_live_model(editor: Editor, tmp_path: Path) -> None:
    folder, task = tmp_path, "arc_easy"
    if os.environ.get(DATA_VARIABLE):
        folder = Path(os.environ[DATA_VARIABLE])
    else:
        tail = "\n\nAnswer format: answer1/answer2/answer3"
        items = [
            {
                "instruction": f"Please choose the correct answer to the question: {q}\n\n"
                + " ".join(f"Answer{i + 1}: {x}" for i, x in enumerate(choices))
                + tail,
                "answer": f"answer{gold + 1}",
            }
            for q, choices, gold in QUESTIONS
        ]
        (folder / "commonsense").mkdir()
        (folder / "commonsense" / "arc_easy_test.json").write_text(json.dumps(items), encoding="utf-8")
    before = measure_ability(editor.loaded, [task], 8, folder=folder)
    delta = some_delta(editor)
    delta.apply(editor.loaded.model)
    after = measure_ability(editor.loaded, [task], 8, folder=folder)
    delta.revert(editor.loaded.model)
    again = measure_ability(editor.loaded, [task], 8, folder=folder)
    assert [row.metric for row in before] == ["acc", "acc_norm"] == [row.metric for row in after]
    assert before[0].value > before[0].chance  # easy questions: the model is far above guessing
    assert again == before
    assert before[0].n == len(after[0].items) == (8 if os.environ.get(DATA_VARIABLE) else len(QUESTIONS))
