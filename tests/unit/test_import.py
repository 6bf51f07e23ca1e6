"""`import roseedit` is light: nothing heavy is loaded until it is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "pandas", "fastapi", "peft", "safetensors", "matplotlib")


def run(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter in the repository."""
    command = [sys.executable, *options, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)


def test_import_time_lists_no_heavy_package() -> None:
    lines = run("import roseedit", "-X", "importtime").stderr.splitlines()
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines if "|" in line}
    assert "roseedit" in loaded
    assert not loaded & set(HEAVY)


def test_it_has_a_version() -> None:
    version = run("import roseedit; print(roseedit.__version__)").stdout.strip()
    assert version[0].isdigit()
    assert "." in version


@pytest.mark.parametrize(
    "module", ["requests", "hparams", "errors", "editsets", "roselora.schedule", "roselora.anchors"]
)
def test_modules_that_need_no_model_load_no_torch(module: str) -> None:
    code = f"import sys, roseedit.{module}; print([m for m in {HEAVY} if m in sys.modules])"
    assert run(code).stdout.strip() == "[]"
