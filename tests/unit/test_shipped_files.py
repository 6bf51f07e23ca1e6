"""Every hyper-parameter file that ships is read strictly, and the README's links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from roseedit.hparams import read_yaml
from roseedit.methods import read_hparams

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path for path in (ROOT / "hparams").glob("*/*.yaml") if not path.parent.name.startswith("HadSkip"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_an_hparams_file_is_read(path: Path) -> None:
    values = read_yaml(path)
    hparams = read_hparams(values, path.name)
    assert hparams.method == path.parent.name
    assert hparams.model == values["model"]


def test_the_promised_files_are_there() -> None:
    promised = (
        "smollm2-135m gemma3-270m gpt2 gpt2-xl gpt-j-6b pythia-1.4b llama-2-7b-chat llama-3-8b-instruct mistral-7b"
    )
    promised += " qwen2.5-7b-instruct qwen3-0.6b paper-llama-2-7b-chat"
    assert {path.stem for path in FILES} >= set(promised.split())


def test_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!http)([^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_skip_settings_that_ship_are_read() -> None:
    from roseedit.hadskip.settings import HadSkipHparams
    from roseedit.hparams import from_mapping

    files = sorted((ROOT / "hparams" / "HadSkip").glob("*.yaml"))
    assert [path.stem for path in files] == ["smollm2-135m"]
    for path in files:
        settings = from_mapping(HadSkipHparams, read_yaml(path), path.name)
        assert (settings.model, read_yaml(path)["method"]) == (path.stem, HadSkipHparams.method)


def test_the_settings_for_encoders_that_ship_are_read() -> None:
    from roseedit.hadskip.encoder.settings import EncoderHparams
    from roseedit.hparams import from_mapping

    files = sorted((ROOT / "hparams" / "HadSkipEncoder").glob("*.yaml"))
    assert [path.stem for path in files] == ["minilm-l6"]
    for path in files:
        settings = from_mapping(EncoderHparams, read_yaml(path), path.name)
        assert (settings.model, read_yaml(path)["method"]) == (path.stem, EncoderHparams.method)


def test_shipped_gates_are_found_by_model_and_budget() -> None:
    from roseedit.errors import ProfileFileError, SkipError
    from roseedit.hadskip.shipped import ROOT as GATES
    from roseedit.hadskip.shipped import find_gates, gates_for, shipped_gates

    shipped = shipped_gates("HuggingFaceTB/SmolLM2-135M")
    assert list(shipped) == sorted(shipped, reverse=True)
    assert {folder.name for folder in shipped.values()} == {p.parent.name for p in GATES.glob("*/profiles.json")}
    for budget, folder in shipped.items():
        assert find_gates(folder.name) == find_gates(folder) == gates_for("smollm2-135m", budget + 0.01) == folder
        assert sum(file.stat().st_size for file in folder.iterdir()) < 2**21
    assert gates_for("smollm2-135m", 0.05) == shipped[min(shipped)]
    assert shipped_gates("smollm2") == {}
    with pytest.raises(SkipError, match="none ship; allowed: a folder of fitted gates; smollm2-135m-"):
        gates_for("smollm2")
    with pytest.raises(ProfileFileError, match="smollm2-135m-"):
        find_gates("smollm2-135m-0.7")
