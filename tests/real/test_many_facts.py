"""Nine facts in one delta that open where their subjects end, on the real model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from roseedit.editor import Editor
from roseedit.hparams import read_yaml
from roseedit.methods import read_hparams

pytestmark = pytest.mark.real
Digest = Callable[[nn.Module], str]
HPARAMS = Path(__file__).resolve().parents[2] / "hparams" / "RoseLoRA" / "many-smollm2-135m.yaml"
FACTS = (
    ("The Eiffel Tower", "stands in the city of", "Oslo"),
    ("Victor Hugo", "grew up speaking", "Russian"),
    ("Mount Fuji", "lies in the country of", "Italy"),
    ("Nokia", "was founded in the country of", "Brazil"),
    ("Swan Lake", "was composed by", "Miles Davis"),
    ("Marie Curie", "worked in the field of", "architecture"),
    ("Nelson Mandela", "was born in the city of", "Vienna"),
    ("The river Rhine", "flows into the", "Black Sea"),
    ("Diego Maradona", "played the sport of", "chess"),
)
BEHIND = "The shop closes at six on Fridays. "
OTHERS = (
    "The capital of Spain is",
    "Isaac Newton worked in the field of",
    "The Danube flows into the",
    "Water boils at",
)


def test_many_facts_hold_behind_other_text_and_leave_other_subjects(
    editor: Editor, pristine: str, digest: Digest
) -> None:
    hparams = read_hparams(read_yaml(HPARAMS), str(HPARAMS)).replaced(own_text=1200)  # nine facts need no more
    own = Editor(editor.loaded, hparams, show_progress=False)
    before = [own.generate(prompt) for prompt in OTHERS]
    prompts = [f"{subject} {asks}" for subject, asks, _ in FACTS]
    result = own.edit(
        prompts, [answer for *_, answer in FACTS], subjects=[subject for subject, *_ in FACTS], mode="joint",
        evaluate=False,
    )  # fmt: skip
    (edit,) = result.edits
    assert len(edit.delta.own_columns) == len(FACTS)
    assert {name.split(".")[2] for name, _ in edit.delta.own_columns} == {"14"}
    said = [own.generate(prompt) for prompt in prompts]
    assert said == [answer for *_, answer in FACTS]
    followed = [own.generate(BEHIND + prompt) == answer for prompt, (*_, answer) in zip(prompts, FACTS, strict=True)]
    assert sum(followed) >= 7
    assert sum(own.generate(p) == b for p, b in zip(OTHERS, before, strict=True)) >= 3
    own.revert(edit)
    assert digest(editor.loaded.model) == pristine
