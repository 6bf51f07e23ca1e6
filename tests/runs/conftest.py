"""A tiny model in a folder and an uninterrupted run on it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from toys import ROOT, SETTINGS, Toy, environment


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """A random two-layer model, saved."""
    root = tmp_path_factory.mktemp("toy")
    code = (
        "import sys; from conftest import build_model; m = build_model('llama');"
        "m.model.save_pretrained(sys.argv[1]); m.tokenizer.save_pretrained(sys.argv[1])"
    )
    where = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'tiny'}"}
    subprocess.run([sys.executable, "-c", code, str(root / "model")], env=environment(**where), check=True, timeout=120)
    settings = {"method": "RoseLoRA", "model": str(root / "model"), **SETTINGS}
    return Toy(root / "model", root / "cache", settings)


FINAL = ("table.md", "summary.json", "run.json", "requests.json")


@pytest.fixture(scope="session")
def final() -> Callable[[Path], dict[str, bytes]]:
    """The files of a run that must not depend on how it was run, and its rows in the data's order."""

    def read(out: Path) -> dict[str, bytes]:
        from roseedit.runs import read_run

        rows = read_run(out).rows.to_csv(index=False).encode()
        return {name: (out / name).read_bytes() for name in FINAL} | {"rows": rows}

    return read


@pytest.fixture(scope="session")
def whole(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of 8 independent edits in units of 3."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert toy.run(out)
    return out
