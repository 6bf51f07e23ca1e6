"""The comparison on a tiny model: equal cost, equal healing, intervals, speed beside its limit; the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from roseedit.cli.skip import app
from roseedit.edits.delta import Delta
from roseedit.edits.edit import Edit
from roseedit.edits.live import live_edits
from roseedit.errors import SkipError
from roseedit.hadskip.baselines import BASELINES
from roseedit.hadskip.bench import Bench
from roseedit.hadskip.files import save_profiles
from roseedit.hadskip.fit import Fit
from roseedit.hadskip.material import edit_rows
from roseedit.hadskip.measure import text_scores
from roseedit.hadskip.plot import draw
from roseedit.hadskip.settings import HadSkipHparams
from roseedit.hadskip.teacher import Teacher
from roseedit.models.load import LoadedModel
from roseedit.requests import EditRequest, Probe

N = 8


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    words = ["The", " Tower", " is", " in", " the", " city", " of", " Rome", " Paris", "."]
    order = torch.randint(len(words), (1200,), generator=torch.Generator().manual_seed(0))
    path.write_text("".join(words[int(i)] for i in order))
    return path


@pytest.fixture(scope="module")
def small(text: Path) -> HadSkipHparams:
    values = {"budget": 0.7, "tokens": 12, "sequences": 12, "held_out": 8, "judged": 6, "solve_sequences": 8, "rank": 4}
    values |= {"gate_steps": 4, "healing_steps": 2, "rows": 4, "gate_tokens": 12, "init": "I1", "text": str(text)}
    return HadSkipHparams().replaced(**values)


def test_gates_and_baselines_meet_at_one_cost(
    tiny: Callable[..., LoadedModel],
    small: HadSkipHparams,
    text: Path,
    tmp_path: Path,
    digest: Callable[[nn.Module], str],
) -> None:
    loaded = tiny("llama", num_hidden_layers=N)
    before = digest(loaded.model)
    profiles = Fit(loaded, small, work=tmp_path).run()
    found = Bench(loaded, profiles, sequences=6, text=str(text), work=tmp_path).run(BASELINES)
    assert digest(loaded.model) == before
    lines = {line["name"]: line for line in found["lines"]}
    assert set(lines) == {"gates", *BASELINES}
    for name, line in lines.items():
        if name != "dense":  # one model, of the cheaper set
            assert line["cost"] == pytest.approx(lines["gates"]["cost"], abs=2e-3), name
        assert line["perplexity_ratio"]["low"] <= line["perplexity_ratio"]["mean"] <= line["perplexity_ratio"]["high"]
        assert line["kl"]["n"] == 6
    assert len(lines["prefix-exit"]["sets"][0]) + len(lines["gates"]["sets"]) > 0
    assert lines["prefix-exit"]["sets"][0] == list(range(len(lines["prefix-exit"]["sets"][0])))
    speed = lines["gates"]["speed_batch_1"]
    assert speed["limit"] > 1
    assert speed["reached"] == pytest.approx(speed["decode"] / speed["limit"])
    draw([found], tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes()[:4] == b"\x89PNG"
    json.dumps(found)


def test_the_full_model_scores_itself_as_equal(tiny: Callable[..., LoadedModel]) -> None:
    loaded = tiny("llama")
    teacher = Teacher.of(loaded, torch.arange(40).view(4, 10))
    scores = text_scores(teacher, range(4), None)
    assert torch.equal(scores.loss, scores.full)
    assert scores.agreement.tolist() == [1.0] * 4
    logits = loaded.model(teacher.ids).logits[:, :-1].log_softmax(-1)
    stock = -logits.gather(2, teacher.ids[:, 1:, None])[..., 0].mean(1)
    torch.testing.assert_close(scores.loss, stock, atol=1e-4, rtol=1e-4)


def test_show_and_refusals_on_the_command_line(
    tiny: Callable[..., LoadedModel], small: HadSkipHparams, tmp_path: Path
) -> None:
    loaded, run = tiny("llama", num_hidden_layers=N), CliRunner()
    save_profiles(Fit(loaded, small, work=tmp_path / "work").run(), tmp_path / "gates")
    shown = run.invoke(app, ["show", str(tmp_path / "gates"), "--json"])
    record = json.loads(shown.stdout)
    assert record["made_by"]["command"].startswith("roseedit skip fit --model llama --budget 0.7")
    assert {0, 1, N - 1} <= set(record["profiles"][0]["layers"])
    for arguments in (
        ["fit", "--out", str(tmp_path / "gates")],
        ["fit", "--out", str(tmp_path / "new"), "--budget", "1.5"],
        ["fit", "--out", str(tmp_path / "new"), "--healing", "glue"],
        ["bench", "--gates", str(tmp_path / "gates"), "--baseline", "best"],
        ["show", str(tmp_path)],
    ):
        ended = run.invoke(app, arguments)
        assert ended.exit_code != 0
        assert isinstance(ended.exception, ValueError), arguments
    assert not (tmp_path / "new").exists()


def test_gates_of_other_weights_are_refused(
    tiny: Callable[..., LoadedModel], small: HadSkipHparams, tmp_path: Path
) -> None:
    loaded = tiny("llama", num_hidden_layers=N)
    profiles = Fit(loaded, small, work=tmp_path).run()
    with torch.no_grad():
        next(loaded.model.parameters()).add_(1e-3)
    with pytest.raises(SkipError, match="not fitted"):
        Bench(loaded, profiles, sequences=2, work=tmp_path)


def test_edits_are_protected_trained_on_and_scored(
    tiny: Callable[..., LoadedModel], small: HadSkipHparams, text: Path, tmp_path: Path
) -> None:
    loaded = tiny("llama", num_hidden_layers=N)
    p = next(p for p in loaded.anatomy.projections if (p.layer, p.role) == (4, "mlp.down"))
    factors = (0.01 * torch.ones(1, p.d_in), torch.ones(p.d_out, 1))
    requests = tuple(
        EditRequest(
            f"The Tower{i} is in",
            "Rome",
            rephrase=("The city of",),
            locality=(Probe("near", "The city", (("Paris",),)),),
        )
        for i in range(3)
    )
    edit = Edit(Delta.from_factors({p.module_name: p}, {p.module_name: factors}), requests, {}, "f" * 64, "tiny")
    live_edits(loaded.model).apply(edit.delta)
    rows, answers = edit_rows(loaded, [edit], 12, 5, 0)
    assert rows.shape == answers.shape == (5, 12)
    rows, answers = edit_rows(loaded, [edit], 40, 3, 0)
    said = [loaded.tokenizer.decode(row) for row in rows]
    named = {
        loaded.tokenizer.decode(row[own]).replace("<|end|>", " ").strip()
        for row, own in zip(rows, answers, strict=True)
    }
    assert {word for text in named for word in text.split()} == {"Rome"}
    assert any("Rome<|end|>" in loaded.tokenizer.decode(row[own]) for row, own in zip(rows, answers, strict=True))
    assert all(text.startswith("The Tower") for text in said)
    assert all(any(f"The Tower{i} is in Rome<|end|>" in text for text in said) for i in range(3)), said
    profiles = Fit(loaded, small, [edit], work=tmp_path).run()
    assert all(4 in profile.layers for profile in profiles.profiles)
    bench = Bench(loaded, profiles, [edit], sequences=4, text=str(text), work=tmp_path)
    found = bench.run(["influence", "prefix-exit"], speed=False)
    for line in found["lines"]:
        assert {name: figure["n"] for name, figure in line["edits"].items()} == {
            "reliability": 3,
            "generality": 3,
            "locality": 3,
        }
    assert found["lines"][0]["flip_rate"]["n"] == 3
    assert 0 < found["lines"][0]["gate_bytes_share"] < 1
