"""A whole fit on a tiny model: resumable, within the budget, and the backbone untouched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from roseedit.errors import BudgetError, DataError
from roseedit.hadskip.choosing import PromptBatch, chooser_of
from roseedit.hadskip.distil import Distillation, DistilSettings
from roseedit.hadskip.files import load_profiles, save_profiles
from roseedit.hadskip.fit import Fit
from roseedit.hadskip.material import material
from roseedit.hadskip.measure import figures, text_scores
from roseedit.hadskip.paths import Healing, executing
from roseedit.hadskip.profile import SkipProfiles
from roseedit.hadskip.runner import SAVE_EVERY
from roseedit.hadskip.settings import HadSkipHparams
from roseedit.hadskip.teacher import Teacher, student_logprobs
from roseedit.hadskip.texts import token_rows
from roseedit.models.load import LoadedModel
from roseedit.models.replay import capture_activations

N = 8
Make = Callable[..., LoadedModel]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    words = ["The", " Tower", " is", " in", " the", " city", " of", " Rome", " Paris", "."]
    order = torch.randint(len(words), (1200,), generator=torch.Generator().manual_seed(0))
    path.write_text("".join(words[int(i)] for i in order))
    return path


def settings(text: Path, **changes: object) -> HadSkipHparams:
    small = {"budget": 0.7, "tokens": 12, "sequences": 12, "held_out": 8, "judged": 6, "solve_sequences": 8, "rank": 4}
    small |= {"gate_steps": 8, "healing_steps": 6, "rows": 4, "components": 4, "init": "I1", "text": str(text)}
    return HadSkipHparams().replaced(**{**small, **changes})


@pytest.fixture(scope="module")
def fitted(tiny: Make, text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, SkipProfiles]:
    loaded = tiny("llama", num_hidden_layers=N)
    return loaded, Fit(loaded, settings(text), work=tmp_path_factory.mktemp("work")).run()


def test_the_backbone_is_left_bit_identical(
    tiny: Make,
    text: Path,
    tmp_path: Path,
    digest: Callable[[nn.Module], str],
    attached: Callable[[nn.Module], dict[str, object]],
) -> None:
    loaded = tiny("llama", num_hidden_layers=N)
    ids = torch.arange(24).view(2, 12)
    before, hooks, logits = digest(loaded.model), attached(loaded.model), loaded.model(ids).logits
    profiles = Fit(loaded, settings(text), work=tmp_path).run()
    assert (digest(loaded.model), attached(loaded.model)) == (before, hooks)
    assert all(p.grad is None for p in loaded.model.parameters())
    assert torch.equal(loaded.model(ids).logits, logits)
    with executing(loaded, range(N), profiles.healing(0)):  # healing sits on skip paths only
        assert torch.equal(loaded.model(ids).logits, logits)


def test_the_mean_cost_on_held_out_text_meets_the_budget(fitted: tuple[LoadedModel, SkipProfiles], text: Path) -> None:
    loaded, profiles = fitted
    chooser, held_out = chooser_of(profiles), material(loaded, settings(text)).held_out
    mask = torch.ones_like(held_out)
    states = capture_activations(loaded.model, loaded.anatomy, chooser.looks_at or 0, held_out, mask)
    picked = chooser.choose(loaded, PromptBatch(held_out, mask, states), None)
    mean = sum(profiles.profiles[i].cost for i in picked) / len(picked)
    assert 0.7 - 1 / N <= mean <= 0.7 + 1e-6
    assert profiles.nested
    assert set(profiles.protected) >= {0, 1, N - 1}
    costs = [profile.cost for profile in profiles.profiles]
    assert min(costs) <= 0.7 < max(costs)


def test_the_same_prompt_gets_the_same_profile_in_any_batch(
    fitted: tuple[LoadedModel, SkipProfiles], text: Path
) -> None:
    loaded, profiles = fitted
    chooser, ids = chooser_of(profiles), material(loaded, settings(text)).held_out
    assert chooser.looks_at is not None

    def pick(rows: torch.Tensor, width: int) -> list[int]:
        padded = nn.functional.pad(rows, (0, width))
        mask = nn.functional.pad(torch.ones_like(rows), (0, width))
        states = capture_activations(loaded.model, loaded.anatomy, int(chooser.looks_at or 0), padded, mask)
        return list(chooser.choose(loaded, PromptBatch(padded, mask, states), 0.7))

    together = pick(ids, 0)
    assert together == pick(ids, 5) == [pick(row[None], 0)[0] for row in ids]


def test_a_stopped_fit_goes_on_to_the_same_result(
    tiny: Make, text: Path, tmp_path: Path, fitted: tuple[LoadedModel, SkipProfiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    from roseedit.hadskip.distil import Distillation
    from roseedit.hadskip.training import GateTraining

    loaded = tiny("llama", num_hidden_layers=N)
    for kind in (GateTraining, Distillation):
        own, steps = kind.advance, {"left": SAVE_EVERY + 1}

        def stops(self: object, own: Callable[[object], None] = own, steps: dict[str, int] = steps) -> None:
            if not steps["left"]:
                raise KeyboardInterrupt
            steps["left"] -= 1
            own(self)

        with monkeypatch.context() as patched:
            patched.setattr(kind, "advance", stops)
            with pytest.raises(KeyboardInterrupt):
                Fit(loaded, settings(text, healing_steps=8), work=tmp_path).run()
    again = Fit(loaded, settings(text, healing_steps=8), work=tmp_path).run()
    whole = Fit(loaded, settings(text, healing_steps=8), work=tmp_path / "other").run()
    assert [p.layers for p in again.profiles] == [p.layers for p in whole.profiles]
    for name, tensor in whole.gates.items():
        assert torch.equal(again.gates[name], tensor), name
    for name, tensor in whole.healings["shared"].tensors().items():
        assert torch.equal(again.healings["shared"].tensors()[name], tensor), name


def test_files_carry_the_gates(fitted: tuple[LoadedModel, SkipProfiles], text: Path, tmp_path: Path) -> None:
    loaded, profiles = fitted
    again = load_profiles(save_profiles(profiles, tmp_path / "gates"))
    again.check(loaded)
    ids = material(loaded, settings(text)).held_out
    mask = torch.ones_like(ids)
    states = capture_activations(loaded.model, loaded.anatomy, 2, ids, mask)
    for budget in (None, 0.75, 1.0):
        batch = PromptBatch(ids, mask, states)
        assert chooser_of(again).choose(loaded, batch, budget) == chooser_of(profiles).choose(loaded, batch, budget)


def test_a_budget_below_the_protected_share_is_refused(tiny: Make, text: Path, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"budget 0\.3 with 3 protected layers"):
        Fit(tiny("llama", num_hidden_layers=N), settings(text, budget=0.3), work=tmp_path)


def test_training_in_bfloat16_leaves_figures_and_backbone_in_float32(
    tiny: Make, text: Path, tmp_path: Path, digest: Callable[[nn.Module], str]
) -> None:
    loaded = tiny("llama", num_hidden_layers=N)
    before = digest(loaded.model)
    exact, brief = (
        Fit(loaded, settings(text, train_dtype=dtype), work=tmp_path).run() for dtype in ("weights", "bfloat16")
    )
    assert digest(loaded.model) == before
    assert any(
        not torch.equal(tensor, brief.healings["shared"].tensors()[name])
        for name, tensor in exact.healings["shared"].tensors().items()
    )
    teacher = Teacher.of(loaded, material(loaded, settings(text)).held_out)
    for profile in brief.profiles:
        anew = figures(text_scores(teacher, profile.layers, brief.healings["shared"]))
        assert profile.measured["kl"] == anew["kl"]["mean"]


def test_a_short_text_gives_what_it_has(
    tiny: Make, text: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = tiny("llama", num_hidden_layers=N)
    whole = material(loaded, settings(text, sequences=60))
    least = len(token_rows(loaded, text.read_text(), 12))
    assert not caplog.records and len(whole.train) == 60 < least - 8
    short = material(loaded, settings(text, sequences=10_000))
    assert len(short.train) == least - 8
    assert torch.equal(short.train[:60], whole.train)
    assert f"{least - 8} sequences for training, 10000 were asked for" in caplog.text
    (tmp_path / "few.txt").write_text("The Tower is in the city of Rome. " * 4)
    with pytest.raises(DataError, match="allowed: 12 or more"):
        material(loaded, settings(tmp_path / "few.txt"))


def test_answers_of_edits_are_asked_for_besides_the_full_models_words(tiny: Make, text: Path) -> None:
    loaded = tiny("llama", num_hidden_layers=N)
    teacher, answers = Teacher.of(loaded, material(loaded, settings(text)).train), torch.zeros(12, 12, dtype=torch.bool)
    answers[:, 5:7] = True
    start = Healing({3: torch.ones(loaded.anatomy.hidden_size), 4: torch.ones(loaded.anatomy.hidden_size)})
    kept = [i for i in range(N) if i not in {3, 4}]

    def likelihood(weight: float) -> float:
        how = DistilSettings(steps=30, rows=4, lr=2e-2, answer_weight=weight)
        training = Distillation(teacher, [kept], [1.0], start, how, answers=answers)
        for _ in range(30):
            training.advance()
        where = (answers[:, 1:]).nonzero(as_tuple=True)
        with executing(loaded, kept, training.healing), torch.no_grad():
            said = student_logprobs(loaded, teacher.ids, where)
        return float(said.gather(1, teacher.ids[where[0], where[1] + 1][:, None]).mean())

    assert likelihood(5.0) > likelihood(0.0) + 0.01
