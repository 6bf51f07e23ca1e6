"""Edits that earlier versions wrote: they load, mean what they meant, and still know their base.

A new file format adds a folder to `tests/golden/` (run this file as a script) and takes none away.
"""

from __future__ import annotations

import json
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from golden import golden_delta, golden_model

from roseedit.edits.edit import Edit
from roseedit.edits.files import FORMAT, RECORD, check_base, load_edit, save_edit
from roseedit.edits.fingerprint import base_fingerprint
from roseedit.errors import WrongBaseError
from roseedit.requests import EditRequest, Probe

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
DIGEST = "2725496b171da1a548cd468cf767e8aca7e3a7a4c0ed89d35965a433ae82cce2"
IDS = {1: "35fd99ef879e", 2: "3e636c3b4155"}
EDITED = "d09a5ec146752302016debd0595344aa0ad7b452f1df8092c6f78f253a2613bc"
REQUEST = EditRequest(
    "the tower is in",
    "rome",
    subject="tower",
    target_true="paris",
    rephrase=("in the tower is",),
    locality=(Probe("near", "paris is in", (("the",),)),),
    portability=(Probe("far", "the tower", (("is", "in"),)),),
)
HPARAMS = {"method": "RoseLoRA", "layers": [0, 1], "lr": 0.02, "seed": 0, "revision": None}


def golden_edit() -> Edit:
    delta = golden_delta()
    fingerprint = base_fingerprint(golden_model(), [m.weight_name for m in delta.matrices], strict=True)
    report = {"steps": 12, "probability": 0.875, "converged": True}
    return Edit(delta, (REQUEST,), HPARAMS, fingerprint, "golden", report, {"reliability": 1.0, "n": 1})


def test_every_format_has_its_golden_edit() -> None:
    assert sorted(p.name for p in GOLDEN.iterdir()) == [f"format-{n}" for n in range(1, FORMAT + 1)]
    assert set(IDS) == set(range(1, FORMAT + 1))


@pytest.mark.parametrize("number", sorted(IDS))
def test_a_golden_edit_loads(number: int) -> None:
    edit = load_edit(GOLDEN / f"format-{number}")
    assert edit.edit_id == IDS[number]
    assert edit.delta.digest == DIGEST == golden_delta().digest
    assert edit.requests == (REQUEST,)
    assert edit.hparams == HPARAMS
    assert edit.report["steps"] == 12
    assert edit.model_name == "golden"


@pytest.mark.parametrize("number", sorted(IDS))
def test_a_golden_edit_does_to_the_weights_what_it_did(number: int) -> None:
    loaded, edit = golden_model(), load_edit(GOLDEN / f"format-{number}")
    before = [loaded.model.get_parameter(m.weight_name).clone() for m in edit.delta.matrices]
    edit.delta.apply(loaded.model)
    digest = sha256()
    for m in edit.delta.matrices:
        digest.update(loaded.model.get_parameter(m.weight_name).detach().numpy().tobytes())
    assert digest.hexdigest() == EDITED
    edit.delta.revert(loaded.model)
    for m, old in zip(edit.delta.matrices, before, strict=True):
        assert torch.equal(loaded.model.get_parameter(m.weight_name), old)


def test_the_second_format_still_knows_its_base() -> None:
    edit = load_edit(GOLDEN / "format-2", golden_model())
    assert edit.fingerprint == golden_edit().fingerprint
    assert edit.scores == {"reliability": 1.0, "n": 1}


def test_the_first_format_refuses_another_base() -> None:
    """Its hash held the whole configuration, which grows with transformers: only the refusal is certain."""
    loaded, edit = golden_model(), load_edit(GOLDEN / "format-1")
    loaded.model.get_parameter(edit.delta.matrices[0].weight_name).data[0, 0] += 1
    with pytest.raises(WrongBaseError):
        check_base(edit, loaded)


def test_this_version_writes_what_it_wrote(tmp_path: Path) -> None:
    folders = save_edit(golden_edit(), tmp_path / "now"), GOLDEN / f"format-{FORMAT}"
    now, then = ((folder / "delta.safetensors").read_bytes() for folder in folders)
    assert now == then
    now, then = (json.loads((folder / RECORD).read_bytes()) for folder in folders)
    assert list(now) == list(then)
    assert now.pop("figures") == pytest.approx(then.pop("figures"))
    for record in (now, then):
        del record["written_by"], record["record_sha256"]
    assert now == then


if __name__ == "__main__":
    sys.exit(str(save_edit(golden_edit(), GOLDEN / f"format-{FORMAT}")))
