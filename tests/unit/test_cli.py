"""The command line in a fresh interpreter: bad input is one line on stderr and exit code 2, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import roseedit
from roseedit.hadskip.encoder.embedded import ALIASES
from roseedit.models.embedded import EMBEDDED

ROOT = Path(__file__).resolve().parents[2]
PLAIN = {"NO_COLOR": "1", "COLUMNS": "200", "TERM": "dumb"}
UNSET = ("FORCE_COLOR", "CLICOLOR_FORCE", "PY_COLORS", "GITHUB_ACTIONS", "TTY_COMPATIBLE", "TTY_INTERACTIVE")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`roseedit ARGUMENTS` as a user would, without colours."""
    environment = {k: v for k, v in os.environ.items() if k not in UNSET} | PLAIN
    command = [sys.executable, "-m", "roseedit.cli", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, encoding="utf-8", check=False, timeout=120
    )


def edit(**options: str) -> list[str]:
    """`edit` with a good request, some of it replaced."""
    values = {"prompt": "The Eiffel Tower is in", "target": "Rome", **options}
    pairs = ((f"--{name.replace('_', '-')}", value) for name, value in values.items())
    return ["edit", *(word for pair in pairs for word in pair)]


def refused(arguments: list[str], *said: str) -> str:
    """Run what must be refused; returns the one line."""
    done = run(*arguments)
    lines = done.stderr.splitlines()
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error:")
    assert "Traceback" not in done.stderr
    for text in said:
        assert text in lines[0]
    return lines[0]


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"roseedit {roseedit.__version__}\n", "")


def test_help_names_the_commands() -> None:
    done = run("--help")
    assert done.returncode == 0
    for name in ("edit", "models", "doctor", "--version"):
        assert name in done.stdout


@pytest.mark.parametrize("command", ["models", "doctor"])
def test_every_embedded_model_is_listed(command: str) -> None:
    done = run(command)
    assert done.returncode == 0, done.stderr
    for alias in (*EMBEDDED, *ALIASES):
        assert alias in done.stdout


def test_help_of_edit_has_examples_and_every_option() -> None:
    done = run("edit", "--help")
    assert done.returncode == 0
    assert "Examples" in done.stdout
    assert done.stdout.count("roseedit edit --") >= 2
    for name in ("prompt", "target", "model", "subject", "rephrase", "locality", "portability", "hparams", "save"):
        assert f"--{name}" in done.stdout


BAD: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "empty prompt": ({"prompt": ""}, ("got the prompt ''; allowed: ",)),
    "empty target": ({"target": " "}, ("got the target ' '; allowed: ",)),
    "subject not in prompt": ({"subject": "Big Ben"}, ("got the subject 'Big Ben'", "allowed: ", "Copy the subject")),
    "target equal to old answer": ({"target_true": "rome"}, ("equal to the old answer; allowed: ",)),
    "portability without arrow": (
        {"portability": "It is in Italy"},
        ("'It is in Italy'; allowed: 'PROMPT => ANSWER'",),
    ),
    "markup and pictures stay as typed": (
        {"prompt": "[red]x[/red] :smiley: a", "subject": "[bold]"},
        ("'[bold]'", "'[red]x[/red] :smiley: a'"),
    ),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_bad_request(name: str) -> None:
    options, said = BAD[name]
    refused(edit(**options), *said)


def test_a_missing_option_is_one_line_too() -> None:
    refused(["edit", "--prompt", "A b"], "--target")


HPARAMS: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "no file": (None, ("which does not exist; allowed: a YAML file",)),
    "unknown key": ("rnak: 4\nkeep: 0.1\n", ("unknown key 'rnak'", "Did you mean 'rank'")),
    "several faults": (
        "keep: 2\nlr: fast\nmethod: RoseLoRA\n",
        ("keep: got 2.0; allowed: ", "lr: got 'fast'; allowed: "),
    ),
    "unknown method": ("method: Rose\n", ("got method 'Rose'; allowed: RoseLoRA", "Did you mean 'RoseLoRA'")),
    "not YAML": ("a: [1\nb: {", ("which is not YAML", "allowed: a YAML mapping")),
}


@pytest.mark.parametrize("name", sorted(HPARAMS))
def test_a_bad_hparams_file(tmp_path: Path, name: str) -> None:
    content, said = HPARAMS[name]
    path = tmp_path / "settings.yaml"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    assert "settings.yaml" in refused(edit(hparams=str(path)), *said) or name == "unknown method"


def test_a_folder_in_use_is_refused_before_any_model_work(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    refused(edit(save=str(tmp_path), model="missing.gguf"), "which is in use; allowed: a new or empty one")


def test_a_model_file_that_does_not_exist() -> None:
    refused(edit(model="no/such.gguf"), "got the GGUF path 'no/such.gguf'; allowed: ")


def test_the_model_named_in_an_hparams_file_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("model: no/such.gguf\nlayers: [9999]\n", encoding="utf-8")
    refused(edit(hparams=str(path)), "got the GGUF path 'no/such.gguf'")


def test_help_of_generate_has_examples_and_every_option() -> None:
    done = run("generate", "--help")
    assert done.returncode == 0
    assert done.stdout.count("roseedit generate --") >= 2
    for name in (
        "prompt",
        "model",
        "edit",
        "contract",
        "budget",
        "gates",
        "max-new-tokens",
        "temperature",
        "seed",
        "stop",
    ):
        assert f"--{name}" in done.stdout


BAD_GENERATE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "contract": (("--contract", "fast"), ("got contract 'fast'; allowed: full, bounded, lossless",)),
    "no budget": (("--contract", "bounded"), ("without a budget; allowed: ",)),
    "budget": (("--contract", "lossless", "--budget", "1.5"), ("got budget 1.5; allowed: 0 < budget <= 1",)),
    "budget of full": (("--budget", "0.5"), ("with contract full; allowed: bounded, lossless",)),
    "temperature": (("--temperature", "-1"), ("got temperature -1.0; allowed: 0 or more",)),
    "tokens": (("--max-new-tokens", "0"), ("got max_new_tokens 0; allowed: 1 or more",)),
    "stop": (("--stop", ""), ("an empty stop string; allowed: ",)),
    "edit": (("--edit", "no-such"), ("got the folder 'no-such'; allowed: one that exists",)),
    "stream": (("--stream", "--prompt", "C d"), ("--stream with several prompts",)),
    "gates": (
        ("--contract", "lossless", "--gates", "no-such"),
        ("got gates 'no-such', which do not exist; allowed: ",),
    ),
    "no gates ship": (
        ("--contract", "bounded", "--budget", "0.6"),
        ("no gates for 'no/such.gguf'", "roseedit skip fit --model no/such.gguf --budget 0.6 --out DIR"),
    ),
    "ledger": (("--ledger", "no-such"), ("got 'no-such', which holds no ledger; allowed: ",)),
}


@pytest.mark.parametrize("name", sorted(BAD_GENERATE))
def test_a_bad_generate(name: str) -> None:
    options, said = BAD_GENERATE[name]
    refused(["generate", "--prompt", "A b", "--model", "no/such.gguf", *options], *said)


def test_a_search_that_cannot_begin_is_refused_in_one_line(tmp_path: Path) -> None:
    begin = ["tune", "--data", "wikidata-counterfact", "--out", str(tmp_path / "out")]
    refused([*begin, "--method", "FTM"], "got method 'FTM'", "Did you mean 'FT-M'")
    refused([*begin, "--method", "FT-M", "--offset", "100000"], "got --offset 100000 of")
    refused([*begin, "--hparams", "no.yaml"], "'no.yaml', which does not exist")
    refused([*begin, "--method", "LoRA", "--hparams", "hparams/FT-M/smollm2-135m.yaml"], "got method 'FT-M'")
    assert not (tmp_path / "out").exists()
