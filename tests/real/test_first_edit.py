"""A real model: a first edit, its exact revert, the pieces it rests on, and the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import GenerationConfig

from roseedit import cli
from roseedit.editor import Editor
from roseedit.editsets import load_editset
from roseedit.evaluation.generation import generate
from roseedit.models.embedded import embedded_folder
from roseedit.models.encoding import encode_prompt, pad_right
from roseedit.models.load import load_model
from roseedit.models.replay import capture_activations, replaying, run_body
from roseedit.requests import EditRequest

pytestmark = pytest.mark.real
Digest = Callable[[nn.Module], str]
ROOT = Path(__file__).resolve().parents[2]
PROMPTS = [
    "The Eiffel Tower is located in the city of",
    "The capital of Spain is",
    "Water boils at",
    "Once upon a time, in a small village by the sea,",
    "def add(a, b):",
    "Question: What is two plus two?\nAnswer:",
    "My favourite colour is",
    "<|im_start|>user\nName one planet.<|im_end|>\n<|im_start|>assistant\n",
]


def sample(n: int) -> list[EditRequest]:
    """The first requests of the sample file."""
    return list(load_editset("wikidata-counterfact", ROOT / "data" / "wikidata_sample.json").requests[:n])


def test_the_first_edit_is_learned_and_reverted(editor: Editor, pristine: str, digest: Digest) -> None:
    (request,) = sample(1)
    assert (request.subject, request.target_new, request.target_true) == ("Eiffel Tower", "Rome", "Paris")
    before = editor.generate(request.prompt)
    result = editor.edit(request)
    assert result.metrics is not None
    row = result.metrics.iloc[0]
    assert row.before == before
    assert not before.startswith("Rome")
    assert (row.after, row.after_stop, bool(row.after_ok)) == ("Rome", "eos", True)
    assert row.p_new_after > 0.5 > row.p_new_before
    assert row.p_old_after < 0.1 * row.p_old_before
    assert editor.generate(request.prompt) == "Rome"
    assert digest(editor.loaded.model) != pristine
    assert editor.revert(result.edit_id) is result.edits[0]
    assert digest(editor.loaded.model) == pristine
    assert editor.generate(request.prompt) == before


def test_three_of_four_are_said_word_for_word(editor: Editor, pristine: str, digest: Digest) -> None:
    requests = sample(4)
    assert len({r.prompt for r in requests}) == 4
    result = editor.edit(requests, mode="independent")
    assert not result.applied
    assert digest(editor.loaded.model) == pristine
    assert result.metrics is not None
    asked = result.metrics[result.metrics.kind == "prompt"]
    assert len(asked) == 4
    assert sum(bool(ok) for ok in asked.after_ok) >= 3, asked[["expected", "after"]]
    assert not any(bool(ok) for ok in asked.before_ok)


@pytest.mark.usefixtures("editor")
def test_a_second_load_takes_the_cache(pristine: str, digest: Digest) -> None:
    folder = embedded_folder("smollm2-135m")
    files = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert any(p.suffix == ".safetensors" for p in files)
    loaded = load_model("smollm2-135m", device="cpu")
    assert digest(loaded.model) == pristine
    assert {p: p.stat().st_mtime_ns for p in embedded_folder("smollm2-135m").iterdir()} == files


@torch.no_grad()
def test_replay_equals_the_full_forward(editor: Editor) -> None:
    loaded = editor.loaded
    ids, mask = pad_right([encode_prompt(loaded.tokenizer, p).ids for p in PROMPTS], loaded.pad_id, loaded.device)
    whole = run_body(loaded.model, ids, mask)[mask.bool()]
    for layer in (1, 20, loaded.anatomy.n_layers - 1):
        stored = capture_activations(loaded.model, loaded.anatomy, layer, ids, mask)
        with replaying(loaded.model, loaded.anatomy, layer, stored):
            again = run_body(loaded.model, ids, mask)[mask.bool()]
        torch.testing.assert_close(again, whole, atol=1e-4, rtol=0)


@torch.no_grad()
def test_generation_equals_transformers_token_for_token(editor: Editor) -> None:
    loaded, n_new = editor.loaded, 16
    said = generate(loaded, PROMPTS, max_new_tokens=n_new, stop_strings=())
    plain = GenerationConfig(
        do_sample=False,
        max_new_tokens=n_new,
        eos_token_id=loaded.model.generation_config.eos_token_id,
        pad_token_id=loaded.pad_id,
    )
    for prompt, own in zip(PROMPTS, said, strict=True):
        inputs = loaded.tokenizer(prompt, return_tensors="pt")
        tokens = loaded.model.generate(**inputs, generation_config=plain)[0, inputs["input_ids"].shape[1] :].tolist()
        assert own.n_tokens == len(tokens), prompt
        ended = tokens[-1] == loaded.tokenizer.eos_token_id
        assert own.stop == ("eos" if ended else "cap"), prompt
        assert own.text == loaded.tokenizer.decode(tokens, skip_special_tokens=True), prompt
    assert {g.stop for g in said} == {"eos", "cap"}  # both ways to end were compared


def test_the_command_line_prints_json_and_saves(editor: Editor, tmp_path: Path) -> None:
    (request,) = sample(1)
    folder = tmp_path / "edit"
    words = {"prompt": request.prompt, "target": "Rome", "subject": "Eiffel Tower", "target-true": "Paris"}
    words |= {"locality": "The capital of Spain is", "save": str(folder)}
    options = [text for name, value in words.items() for text in (f"--{name}", value)]
    done = subprocess.run(
        [sys.executable, "-m", "roseedit.cli", "edit", "--json", *options],
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["mode"], told["applied"], told["saved"]) == ("joint", True, str(folder))
    asked, local = told["table"]
    assert (asked["kind"], asked["after"], asked["after_ok"]) == ("prompt", "Rome", True)
    assert (local["kind"], local["prompt"]) == ("locality", "The capital of Spain is")
    assert local["kl"] >= 0
    edit = editor.load(folder)
    assert [e["edit_id"] for e in told["edits"]] == [edit.edit_id]
    assert edit.requests[0].target_true == "Paris"
    assert editor.generate(request.prompt) == "Rome"


def refused(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *options: str) -> str:
    """`roseedit edit` in this process: must end with code 2, nothing on stdout and one line on stderr."""
    monkeypatch.setattr(sys, "argv", ["roseedit", "edit", *options])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capfd.readouterr()
    lines = said.err.splitlines()
    assert ended.value.code == 2
    assert said.out == ""
    assert len(lines) == 1, said.err
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.usefixtures("shared_editor")
def test_the_command_line_refuses_a_prompt_beyond_the_window(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    line = refused(monkeypatch, capfd, "--prompt", "tower " * 8200, "--target", "Rome")
    assert "allowed: at most 8192 tokens" in line


@pytest.mark.usefixtures("shared_editor")
def test_the_command_line_refuses_a_layer_out_of_range(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "deep.yaml"
    path.write_text("method: RoseLoRA\nmodel: smollm2-135m\nlayers: [29, 30]\n")
    line = refused(monkeypatch, capfd, "--prompt", "The tower is in", "--target", "Rome", "--hparams", str(path))
    assert "got layer 30; allowed: 0 to 29" in line
