"""The files of an edit: they say all there is to say, and anything that is not as it was saved is refused by name."""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from roseedit.edits.delta import Delta, MatrixDelta, SparseVectors
from roseedit.edits.edit import Edit
from roseedit.edits.files import BLOB, FORMAT, PICKLES, RECORD, load_edit, record_hash, save_edit
from roseedit.errors import DeltaError
from roseedit.requests import EditRequest, Probe

FORM = re.compile(r"got .+; allowed: .+\. \S+")
ONE, TWO = "layers.0.down.weight", "layers.1.down.weight"


def sparse(rows: int, n: int, seed: int) -> SparseVectors:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(rows, n, generator=generator)
    return SparseVectors.of(dense * (torch.rand(rows, n, generator=generator) < 0.4))


def make_edit() -> Edit:
    matrices = (
        MatrixDelta(ONE, 12, 8, False, sparse(3, 12, 1), sparse(3, 8, 2)),
        MatrixDelta(TWO, 6, 10, True, sparse(2, 6, 3), sparse(2, 10, 4)),
    )
    requests = (
        EditRequest(
            "Der Turm in Łódź heißt »X« \u2028 \U0001f5fc",
            "Rome",
            subject="Łódź",
            target_true="Paris",
            rephrase=("Another wording", "And one more"),
            locality=(Probe("Relation_Specificity", "The metal is", (("iron", "wrought iron"), ("steel",))),),
            portability=(Probe("Reasoning", "Its country is", (("Italy", "Italia"),)), Probe("bare", "It is")),
            target_aliases=("Roma",),
            source="counterfact:17",
        ),
        EditRequest("A b c", "d"),
    )
    hparams = {"method": "RoseLoRA", "layers": [1, 2], "lr": 0.01, "revision": None, "anatomy": {"layers": "h"}}
    report = {"steps": 12, "probability": 0.123456, "converged": True}
    return Edit(Delta(matrices), requests, hparams, "f" * 64, "tiny", report)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved edit."""
    return save_edit(make_edit(), tmp_path / "edit")


def record_of(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    return values


def write_record(folder: Path, **changes: Any) -> None:
    """Change the record and seal it anew, as damage before saving would."""
    values = {**record_of(folder), **changes}
    values["record_sha256"] = record_hash(values)
    (folder / RECORD).write_text(json.dumps(values), encoding="utf-8")


def forge(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change tensors and write the new blob's SHA-256 into the record, as damage before saving would."""
    tensors = load((folder / BLOB).read_bytes())
    change(tensors)
    blob = save(tensors)
    (folder / BLOB).write_bytes(blob)
    write_record(folder, sha256=hashlib.sha256(blob).hexdigest())


def refused(folder: Path, *said: str) -> None:
    with pytest.raises(DeltaError) as caught:
        load_edit(folder)
    message = str(caught.value)
    assert FORM.match(message), message
    assert "\n" not in message
    for text in said:
        assert text in message, message


def test_everything_comes_back(folder: Path) -> None:
    edit, again = make_edit(), load_edit(folder)
    assert again.requests == edit.requests
    assert again.hparams == edit.hparams
    assert again.report == edit.report
    assert (again.fingerprint, again.model_name) == (edit.fingerprint, edit.model_name)
    assert again.edit_id == edit.edit_id == record_of(folder)["edit_id"]
    for new, old in zip(again.delta.matrices, edit.delta.matrices, strict=True):
        assert (new.weight_name, new.d_in, new.d_out, new.transposed) == (
            old.weight_name,
            old.d_in,
            old.d_out,
            old.transposed,
        )
        for a, b in ((new.a, old.a), (new.b, old.b)):
            for name in ("index", "value", "pointer"):
                assert getattr(a, name).dtype == getattr(b, name).dtype
                assert torch.equal(getattr(a, name), getattr(b, name))
        assert all(torch.equal(x, y) for x, y in zip(new.changes(), old.changes(), strict=True))


def test_the_folder_holds_two_files_and_no_rest(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == sorted([BLOB, RECORD])


def test_saving_what_was_loaded_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    second = save_edit(load_edit(folder), tmp_path / "second")
    for name in (BLOB, RECORD):
        assert (second / name).read_bytes() == (folder / name).read_bytes()


def test_an_empty_folder_is_taken_and_parents_are_made(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "empty", tmp_path / "a" / "b"):
        assert load_edit(save_edit(make_edit(), target)).edit_id == make_edit().edit_id


def test_a_folder_in_use_is_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for target in (folder, tmp_path / "file"):
        with pytest.raises(DeltaError) as caught:
            save_edit(make_edit(), target)
        assert FORM.match(str(caught.value))
        assert str(target) in str(caught.value)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_no_folder(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "nothing", "no folder")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "no folder")


@pytest.mark.parametrize("name", [BLOB, RECORD])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(folder, f"without {name}")


@pytest.mark.parametrize("content", [b"", b"not json", b'{"format": 1', b"\xff\xfe\x00", b"{]"])
def test_a_record_that_is_not_json(folder: Path, content: bytes) -> None:
    (folder / RECORD).write_bytes(content)
    refused(folder, RECORD, "not JSON")


@pytest.mark.parametrize("got", [FORMAT + 1, 0, str(FORMAT), None])
def test_another_format_number(folder: Path, got: Any) -> None:
    write_record(folder, format=got)
    refused(folder, f"edit format {got!r}", f"allowed: {FORMAT}")


@pytest.mark.parametrize("content", ["[]", "3", "null", '"text"'])
def test_json_that_is_no_record(folder: Path, content: str) -> None:
    (folder / RECORD).write_text(content)
    refused(folder, "edit format")


KEYS = ("sha256", "matrices", "requests", "hparams", "fingerprint", "model_name", "report")


@pytest.mark.parametrize("key", KEYS)
def test_a_record_without_a_part(folder: Path, key: str) -> None:
    values = {k: v for k, v in record_of(folder).items() if k != key}
    values["record_sha256"] = record_hash(values)
    (folder / RECORD).write_text(json.dumps(values))
    refused(folder)


WRONG: dict[str, dict[str, Any]] = {
    "matrices: a number": {"matrices": 3},
    "matrices: no mapping": {"matrices": ["x"]},
    "d_in: text": {"matrices": [{"weight": ONE, "d_in": "many", "d_out": 8, "transposed": False}]},
    "d_in: null": {"matrices": [{"weight": ONE, "d_in": None, "d_out": 8, "transposed": False}]},
    "a matrix without tensors": {"matrices": [{"weight": "other", "d_in": 12, "d_out": 8, "transposed": False}]},
    "request with an unknown field": {"requests": [{"prompt": "A b", "target_new": "c", "colour": "red"}]},
    "request without target": {"requests": [{"prompt": "A b"}]},
    "request as text": {"requests": ["A b"]},
}


@pytest.mark.parametrize("name", sorted(WRONG))
def test_a_record_with_a_wrong_part(folder: Path, name: str) -> None:
    write_record(folder, **WRONG[name])
    refused(folder)


def test_a_flipped_bit_anywhere_in_the_blob(folder: Path) -> None:
    blob = (folder / BLOB).read_bytes()
    positions = random.Random(0).sample(range(8 * len(blob)), 200)
    assert len(blob) > 200
    for position in positions:
        broken = bytearray(blob)
        broken[position // 8] ^= 1 << position % 8
        (folder / BLOB).write_bytes(broken)
        refused(folder, BLOB, "SHA-256")
    (folder / BLOB).write_bytes(blob)
    load_edit(folder)


def test_a_truncated_file(folder: Path) -> None:
    for name in (BLOB, RECORD):
        whole = (folder / name).read_bytes()
        for length in (*range(0, len(whole), max(1, len(whole) // 40)), len(whole) - 1):
            (folder / name).write_bytes(whole[:length])
            refused(folder, name)
        (folder / name).write_bytes(whole)
    load_edit(folder)


def test_a_blob_with_something_behind_it(folder: Path) -> None:
    (folder / BLOB).write_bytes((folder / BLOB).read_bytes() + b"\0")
    refused(folder, BLOB, "SHA-256")


def test_a_blob_that_is_no_safetensors_file(folder: Path) -> None:
    for blob in (b"", b"x" * 100, pickle.dumps({"weight": [1.0, 2.0]})):
        (folder / BLOB).write_bytes(blob)
        write_record(folder, sha256=hashlib.sha256(blob).hexdigest())
        refused(folder, BLOB, "cannot be parsed")


@pytest.mark.parametrize(("part", "n"), [("a", 12), ("b", 8)])
@pytest.mark.parametrize("index", [-1, "n", 2**31 - 1, -(2**31)])
def test_an_index_out_of_range(folder: Path, part: str, n: int, index: int | str) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[f"{ONE}:{part}.index"][0] = n if isinstance(index, str) else index

    forge(folder, change)
    refused(folder, ONE, "index out of range", f"0 to {n - 1}")


@pytest.mark.parametrize("part", ["a", "b"])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite(folder: Path, part: str, number: float) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[f"{TWO}:{part}.value"][-1] = number

    forge(folder, change)
    refused(folder, TWO, "NaN or infinity")


POINTERS: dict[str, Callable[[Tensor], Tensor]] = {
    "starts late": lambda p: torch.cat([p[:1] + 1, p[1:]]),
    "falls": lambda p: p[[0, 2, 1, 3]],
    "ends early": lambda p: torch.cat([p[:-1], p[-1:] - 1]),
    "ends late": lambda p: torch.cat([p[:-1], p[-1:] + 1]),
    "empty": lambda p: p[:0],
}


@pytest.mark.parametrize("how", sorted(POINTERS))
def test_pointers_that_do_not_fit(folder: Path, how: str) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[f"{ONE}:a.pointer"] = POINTERS[how](tensors[f"{ONE}:a.pointer"]).contiguous()

    forge(folder, change)
    refused(folder, ONE)


def test_as_many_rows_as_columns(folder: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        end = int(tensors[f"{ONE}:a.pointer"][2])
        tensors[f"{ONE}:a.pointer"] = tensors[f"{ONE}:a.pointer"][:3].contiguous()
        for name in ("index", "value"):
            tensors[f"{ONE}:a.{name}"] = tensors[f"{ONE}:a.{name}"][:end].contiguous()

    forge(folder, change)
    refused(folder, ONE, "2 rows and 3 columns")


@pytest.mark.parametrize("missing", ["a.index", "b.value", "b.pointer"])
def test_a_missing_tensor(folder: Path, missing: str) -> None:
    forge(folder, lambda tensors: tensors.__delitem__(f"{ONE}:{missing}"))
    refused(folder, f"{ONE}:{missing}")


class _Trap:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("suffix", sorted(PICKLES))
def test_a_pickle_in_the_folder_is_refused_and_not_opened(folder: Path, tmp_path: Path, suffix: str) -> None:
    (folder / f"delta{suffix}").write_bytes(pickle.dumps(_Trap(tmp_path / "sprung")))
    refused(folder, f"delta{suffix}", "safetensors and json only")
    assert not (tmp_path / "sprung").exists()


CHANGED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "target": lambda r: r["requests"][0].update(target_new="Rone"),
    "hparams": lambda r: r["hparams"].update(lr=0.02),
    "fingerprint": lambda r: r.update(fingerprint="e" * 64),
    "transposed": lambda r: r["matrices"][0].update(transposed=True),
    "shape": lambda r: r["matrices"][0].update(d_in=13),
}


@pytest.mark.parametrize("what", sorted(CHANGED))
def test_a_record_that_was_changed(folder: Path, what: str) -> None:
    """The record says where the blob's numbers go: a change in it is damage as much as one in the blob."""
    values = record_of(folder)
    CHANGED[what](values)
    (folder / RECORD).write_text(json.dumps(values), encoding="utf-8")
    refused(folder, RECORD)
