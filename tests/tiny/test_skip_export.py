"""Exported profiles: a stock checkpoint that says what the profile says, and code that needs no roseedit."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from roseedit.cli.app import app
from roseedit.edits.delta import Delta
from roseedit.errors import DeltaError, SkipError, StaleProfilesError
from roseedit.hadskip.choosing import PromptBatch, chooser_of
from roseedit.hadskip.export.card import draft_commands
from roseedit.hadskip.export.custom import export_custom
from roseedit.hadskip.export.dropped import export_dropped, renumbered, shortened
from roseedit.hadskip.files import save_profiles
from roseedit.hadskip.gate import Gates, gate_record
from roseedit.hadskip.paths import Healing, executing
from roseedit.hadskip.profile import SkipProfiles
from roseedit.models.load import LoadedModel, load_model
from roseedit.models.replay import capture_activations

Tiny = Callable[..., LoadedModel]
N = 6
PROMPTS = [
    "The Tower is in",
    "Paris",
    "In the city of Paris the Tower is",
    "Rome is the city of",
    "a",
    "the the the the",
]
STOCK = """
import json, sys
sys.modules["roseedit"] = None  # not importable, as where it is not installed
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
case = json.loads(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(case["folder"], trust_remote_code=True, dtype="float32").eval()
plain = AutoModelForCausalLM.from_pretrained(case["folder"], dtype="float32").eval()
found = {"class": type(model).__name__, "plain": type(plain).__name__, "texts": [], "full": [], "chosen": []}
for ids in case["prompts"]:
    ids = torch.tensor([ids])
    arguments = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    model.set_profile(None)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), return_dict_in_generate=True, **arguments)
    found["texts"].append(out.sequences[0, ids.shape[1]:].tolist())
    found["chosen"].append(out.past_key_values.hadskip_profile)
    model.set_profile("full")
    same = torch.equal(model(ids).logits, plain(ids).logits)
    found["full"].append(same)
model.set_profile(None)
width = max(map(len, case["prompts"]))
left = torch.tensor([[0] * (width - len(p)) + p for p in case["prompts"]])
mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in case["prompts"]])
found["together"] = model(left, attention_mask=mask).past_key_values.hadskip_profile
for wrong in (lambda: model.set_profile("no-such"), lambda: model.set_budget(0.01)):
    try:
        wrong()
    except ValueError as error:
        found.setdefault("errors", []).append(str(error))
print(json.dumps(found))
"""


def gated(loaded: LoadedModel) -> SkipProfiles:
    """Two profiles that different prompts choose, with healing that matters."""
    generator = torch.Generator().manual_seed(3)
    hidden, layers = loaded.anatomy.hidden_size, (2, 3, 4)
    gates = Gates(layers, torch.zeros(2 * hidden), torch.randn(4, 2 * hidden, generator=generator))
    with torch.no_grad():
        gates.weight.copy_(torch.randn(3, 4, generator=generator))
        gates.bias.zero_()
    pair = {
        i: (torch.randn(2, hidden, generator=generator), torch.randn(hidden, 2, generator=generator)) for i in layers
    }
    return SkipProfiles.of(
        loaded,
        {"five": (0, 1, 2, 4, 5), "three": (0, 1, 5)},
        healings={"shared": Healing({3: torch.full((hidden,), 0.9)}, {i: (a, 0.1 * b) for i, (a, b) in pair.items()})},
        healing_of={"five": "shared", "three": "shared"},
        gates=gate_record(gates),
        gate_settings={
            "looks_at": 2,
            "layers": list(layers),
            "costs": [1 / N] * 3,
            "budget": 0.7,
            "curve": [[0.0, 0.7], [5.0, 0.5]],
        },
    )


def test_custom_code_runs_without_roseedit_and_says_the_same(tiny: Tiny, tmp_path: Path) -> None:
    loaded = tiny("llama", num_hidden_layers=N)
    profiles = gated(loaded)
    export_custom(loaded, profiles, tmp_path / "code")
    prompts = [loaded.tokenizer(text)["input_ids"] for text in PROMPTS]
    case = json.dumps({"folder": str(tmp_path / "code"), "prompts": prompts})
    ran = subprocess.run(
        [sys.executable, "-c", STOCK, case],
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")},
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert (found["class"], found["plain"]) == ("HadSkipForCausalLM", type(loaded.model).__name__)
    assert all(found["full"])  # all layers: the plain model, bit for bit
    chooser, wanted = chooser_of(profiles), []
    for ids in prompts:
        row = torch.tensor([ids])
        mask = torch.ones_like(row)
        states = capture_activations(loaded.model, loaded.anatomy, 2, row, mask)
        (picked,) = chooser.choose(loaded, PromptBatch(row, mask, states), None)
        wanted.append(picked)
    assert found["chosen"] == wanted
    assert set(wanted) == {0, 1}, "the prompts must tell the profiles apart"
    assert found["together"] == 0  # the costliest of their choices
    for ids, picked, said in zip(prompts, wanted, found["texts"], strict=True):
        with executing(loaded, profiles.profiles[picked].layers, profiles.healing(picked)):
            row = torch.tensor([ids])
            out = loaded.model.generate(row, attention_mask=torch.ones_like(row), **ARGUMENTS)
        assert said == out[0, len(ids) :].tolist()
    assert "allowed: None, full, five, three" in found["errors"][0]
    assert "got budget 0.01" in found["errors"][1]


ARGUMENTS = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3", "opt", "gptneox", "phi", "qwen3", "mistral", "gptj"])
def test_a_dropped_checkpoint_says_what_the_profile_says_unhealed(tiny: Tiny, kind: str, tmp_path: Path) -> None:
    loaded = tiny(kind, num_hidden_layers=N) if kind != "gemma3" else tiny(kind)
    kept = [i for i in range(loaded.anatomy.n_layers) if i not in {2}]
    profiles = SkipProfiles.of(loaded, {"p": kept})
    done = export_dropped(loaded, profiles, "p", tmp_path / "draft")
    again = load_model(str(tmp_path / "draft"))
    assert again.anatomy.n_layers == len(kept) == done.figures["layers"]
    ids = torch.tensor([loaded.tokenizer(PROMPTS[2])["input_ids"]])
    with executing(loaded, kept):
        wanted = loaded.model(ids).logits
    torch.testing.assert_close(again.model(ids).logits, wanted, atol=1e-5, rtol=0)
    assert not torch.allclose(loaded.model(ids).logits, wanted, atol=1e-3)
    assert done.figures["kl"]["n"] > 1 and done.figures["kl"]["mean"] > 0


def test_a_dropped_checkpoint_drafts_without_changing_what_is_said(tiny: Tiny, tmp_path: Path) -> None:
    loaded = tiny("llama", num_hidden_layers=N)
    export_dropped(loaded, SkipProfiles.of(loaded, {"p": (0, 1, 2, 5)}), "p", tmp_path / "draft")
    draft = load_model(str(tmp_path / "draft"))
    ids = torch.tensor([loaded.tokenizer(PROMPTS[2])["input_ids"]])
    own = loaded.model.generate(ids, attention_mask=torch.ones_like(ids), **ARGUMENTS)
    helped = loaded.model.generate(ids, attention_mask=torch.ones_like(ids), assistant_model=draft.model, **ARGUMENTS)
    assert torch.equal(own, helped)


def test_live_edits_go_along(tiny: Tiny, tmp_path: Path) -> None:
    loaded = tiny("llama", num_hidden_layers=N)
    p = next(p for p in loaded.anatomy.projections if p.layer == 5 and p.role == "mlp.down")
    delta = Delta.from_factors({p.module_name: p}, {p.module_name: (torch.ones(1, p.d_in), torch.ones(p.d_out, 1))})
    stale = SkipProfiles.of(loaded, {"p": (0, 1, 5)})
    delta.apply(loaded.model)
    with pytest.raises(StaleProfilesError):
        export_dropped(loaded, stale, "p", tmp_path / "stale")
    assert not (tmp_path / "stale").exists()
    export_dropped(loaded, SkipProfiles.of(loaded, {"p": (0, 1, 5)}), "p", tmp_path / "draft")
    again = load_model(str(tmp_path / "draft")).model.get_parameter(p.weight_name.replace(".5.", ".2."))
    assert torch.equal(again, loaded.model.get_parameter(p.weight_name))
    delta.revert(loaded.model)
    assert not torch.equal(again, loaded.model.get_parameter(p.weight_name))


def test_lists_with_an_entry_per_layer_are_shortened(tiny: Tiny) -> None:
    config = tiny("gemma3").model.config
    kinds = list(config.layer_types)
    kept = [i for i in range(len(kinds)) if i != 1]
    short = shortened(config, kept)
    assert short.layer_types == [kinds[i] for i in kept] and config.layer_types == kinds
    state = {
        "m.layers.0.w": torch.zeros(1),
        "m.layers.10.w": torch.ones(1),
        "m.layers.1.w": torch.zeros(1),
        "head": torch.ones(2),
    }
    assert renumbered(state, "m.layers", (0, 10)).keys() == {"m.layers.0.w", "m.layers.1.w", "head"}
    assert renumbered(state, "m.layers", (0, 10))["m.layers.1.w"] is state["m.layers.10.w"]


def test_what_cannot_be_exported_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    loaded = tiny("llama", num_hidden_layers=N)
    profiles = SkipProfiles.of(loaded, {"p": (0, 1, 5)})
    with pytest.raises(SkipError, match="profile 'q'; allowed: p"):
        export_dropped(loaded, profiles, "q", tmp_path / "out")
    with pytest.raises(SkipError, match="profiles without gates"):
        export_custom(loaded, profiles, tmp_path / "out")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(DeltaError, match="in use"):
        export_dropped(loaded, profiles, "p", tmp_path / "used")
    assert not (tmp_path / "out").exists()


def test_commands_name_both_models() -> None:
    commands = draft_commands("org/full", "/a b/draft")
    assert set(commands) == {"transformers", "vllm", "sglang", "llama.cpp"}
    for engine in ("vllm", "sglang"):
        assert "org/full" in commands[engine] and "/a b/draft" in commands[engine]
    spec = shlex.split(commands["vllm"])[-1]
    assert json.loads(spec) == {"method": "draft_model", "model": "/a b/draft", "num_speculative_tokens": 4}


def test_the_command(tiny: Tiny, tmp_path: Path) -> None:
    loaded, run = tiny("llama", num_hidden_layers=N), CliRunner()
    loaded.model.save_pretrained(tmp_path / "model")
    loaded.tokenizer.save_pretrained(tmp_path / "model")
    again = load_model(str(tmp_path / "model"))
    save_profiles(gated(again), tmp_path / "gates")
    command = ["skip", "export", str(tmp_path / "gates"), "--model", str(tmp_path / "model")]
    done = run.invoke(app, [*command, "--to", "checkpoint", "--out", str(tmp_path / "draft")])
    assert done.exit_code == 0, done.output
    assert "3 layers" in done.output and "perplexity_ratio" in done.output
    card = (tmp_path / "draft" / "README.md").read_text()
    assert "vllm serve" in card and "worse than the profile" in card
    done = run.invoke(app, [*command, "--to", "code", "--out", str(tmp_path / "code")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "code" / "modeling_hadskip.py").read_text().count("LlamaForCausalLM as Base") == 1
    wrong = run.invoke(app, [*command, "--to", "onnx", "--out", str(tmp_path / "other")])
    assert wrong.exit_code != 0 and "checkpoint, code" in str(wrong.exception)
