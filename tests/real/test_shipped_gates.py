"""The gates that ship: they belong to the model that ships with them, choose within their budget, and answer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from roseedit.editor import Editor
from roseedit.edits.delta import Delta
from roseedit.errors import BudgetError, StaleProfilesError
from roseedit.hadskip.files import load_profiles
from roseedit.hadskip.gate import GateChooser
from roseedit.hadskip.measure import text_scores
from roseedit.hadskip.shipped import shipped_gates
from roseedit.hadskip.teacher import Teacher

pytestmark = pytest.mark.real
SHIPPED = sorted(shipped_gates("smollm2-135m").items())
PROMPTS = [
    "The Eiffel Tower is located in the city of",
    "Water is made of hydrogen and",
    "The film was released in the United States on 12 May and received mixed reviews from critics , who praised",
]
TEXT = (
    "The river rises in the hills to the north of the town and flows south for about forty miles before it joins the "
    "sea . In the nineteenth century it was used to carry coal and stone , and several of the old mills along its "
    "banks have been restored . The town was founded by monks in the twelfth century and grew around the market ."
)


@pytest.mark.parametrize(("budget", "folder"), SHIPPED, ids=[folder.name for _, folder in SHIPPED])
def test_they_answer_within_the_budget(shared_editor: Editor, budget: float, folder: Path) -> None:
    profiles = load_profiles(folder)
    profiles.check(shared_editor.loaded)
    chooser = GateChooser(profiles)
    theta = chooser.theta_for(budget)
    assert dict(chooser.curve)[theta] <= budget + 1e-6  # mean cost on held-out text
    asked = {"contract": "bounded", "budget": budget, "max_new_tokens": 6}
    said = shared_editor.generate(PROMPTS, detailed=True, **asked)
    costs = {profile.name: profile.cost for profile in profiles.profiles}
    assert {response.profile for response in said} <= set(costs)
    assert all(len(response.layers_run) == round(costs[response.profile] * 30) for response in said)
    assert all(set(profiles.protected) <= set(response.layers_run) for response in said)
    assert all(response.text.strip() for response in said)
    assert [r.text for r in shared_editor.generate(PROMPTS, detailed=True, gates=folder.name, **asked)] == [
        r.text for r in said
    ]


@pytest.mark.parametrize(("budget", "folder"), SHIPPED, ids=[folder.name for _, folder in SHIPPED])
def test_healing_is_worth_having(shared_editor: Editor, budget: float, folder: Path) -> None:
    """On text that no fit saw, the healing that ships brings a profile much nearer to the full model.

    The fewer layers are skipped, the less there is to heal: measured 0.43 of the bare KL at 0.85, 0.20 at 0.5.
    """
    loaded, profiles = shared_editor.loaded, load_profiles(folder)
    teacher = Teacher.of(loaded, torch.tensor([loaded.tokenizer(TEXT)["input_ids"]]))
    cheapest = min(range(len(profiles.profiles)), key=lambda i: profiles.profiles[i].cost)
    layers = profiles.profiles[cheapest].layers
    healed, bare = (text_scores(teacher, layers, h).kl for h in (profiles.healing(cheapest), None))
    assert float(healed) < 2 / 3 * float(bare)


def test_other_weights_are_refused_with_the_way_out(shared_editor: Editor) -> None:
    p = next(p for p in shared_editor.loaded.anatomy.projections if (p.layer, p.role) == (21, "mlp.down"))
    factors = (0.01 * torch.ones(1, p.d_in), torch.ones(p.d_out, 1))
    delta = Delta.from_factors({p.module_name: p}, {p.module_name: factors})
    delta.apply(shared_editor.loaded.model)
    try:
        for budget, _ in SHIPPED:
            command = re.escape(f"roseedit skip fit --model smollm2-135m --budget {budget:g}")
            with pytest.raises(StaleProfilesError, match=command):
                shared_editor.generate(PROMPTS[0], contract="bounded", budget=budget)
    finally:
        delta.revert(shared_editor.loaded.model)
    with pytest.raises(BudgetError, match="which no profile meets"):
        shared_editor.generate(PROMPTS[0], contract="bounded", budget=0.2)
