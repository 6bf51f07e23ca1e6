"""The files of an edit: they say all there is to say, and anything that is not as it was saved is refused by name."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
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
from roseedit.edits.files import BLOB, FORMAT, PICKLES, RECORD, load_edit, save_edit
from roseedit.edits.record import seal
from roseedit.errors import (
    AbsurdSizeError,
    ChecksumError,
    DeltaError,
    DuplicateIndexError,
    EditNotFoundError,
    ExtraTensorError,
    IndexRangeError,
    MissingTensorError,
    NewerFormatError,
    NotFiniteError,
    PickleFoundError,
    RecordError,
    SymlinkError,
    TensorLayoutError,
    TruncatedFileError,
)
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
    values.pop("record_sha256", None)
    (folder / RECORD).write_bytes(seal(values))


def forge(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change tensors and write the new blob's SHA-256 into the record, as damage before saving would."""
    tensors = load((folder / BLOB).read_bytes())
    change(tensors)
    write_blob(folder, save(tensors))


def write_blob(folder: Path, blob: bytes) -> None:
    """Write a blob and announce it in the record."""
    (folder / BLOB).write_bytes(blob)
    write_record(folder, sha256=hashlib.sha256(blob).hexdigest(), bytes=len(blob))


def refused(folder: Path, error: type[DeltaError], *said: str) -> None:
    with pytest.raises(DeltaError) as caught:
        load_edit(folder)
    assert type(caught.value) is error, caught.value
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
    refused(tmp_path / "nothing", EditNotFoundError, "nothing", "no folder")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", EditNotFoundError, "no folder")


@pytest.mark.parametrize("name", [BLOB, RECORD])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(folder, EditNotFoundError, f"without {name}")


@pytest.mark.parametrize("content", [b"", b"not json", b'{"format": 1', b"\xff\xfe\x00", b"{]", b"[]", b"3", b"null"])
def test_a_record_that_is_no_record(folder: Path, content: bytes) -> None:
    (folder / RECORD).write_bytes(content)
    refused(folder, RecordError, RECORD)


@pytest.mark.parametrize(
    "content", [b'{"format": 2}', b'{"format": 1,\n "x": NaN}', b'{"format": 1,' + b'"a": [' * 5000]
)
def test_json_that_is_no_record(folder: Path, content: bytes) -> None:
    (folder / RECORD).write_bytes(content)
    refused(folder, RecordError, RECORD)


@pytest.mark.parametrize("got", [FORMAT + 1, 0, 999999999])
def test_another_format_number(folder: Path, got: int) -> None:
    write_record(folder, format=got)
    refused(folder, NewerFormatError, f"edit format {got}", f"allowed: 1 to {FORMAT}")


@pytest.mark.parametrize("got", ["2", None, -1, 10**12, [2]])
def test_a_format_that_is_no_number(folder: Path, got: Any) -> None:
    write_record(folder, format=got)
    refused(folder, RecordError, "format number")


KEYS = ("bytes", "sha256", "matrices", "requests", "hparams", "fingerprint", "model_name", "report", "edit_id")


@pytest.mark.parametrize("key", KEYS)
def test_a_record_without_a_part(folder: Path, key: str) -> None:
    values = {k: v for k, v in record_of(folder).items() if k not in (key, "record_sha256")}
    (folder / RECORD).write_bytes(seal(values))
    refused(folder, RecordError)


def matrix(**changes: Any) -> dict[str, Any]:
    return {"weight": ONE, "d_in": 12, "d_out": 8, "transposed": False, **changes}


WRONG: dict[str, tuple[dict[str, Any], type[DeltaError]]] = {
    "matrices: a number": ({"matrices": 3}, RecordError),
    "matrices: none": ({"matrices": []}, RecordError),
    "matrices: no mapping": ({"matrices": ["x"]}, RecordError),
    "d_in: text": ({"matrices": [matrix(d_in="many")]}, RecordError),
    "d_in: null": ({"matrices": [matrix(d_in=None)]}, RecordError),
    "d_in: true": ({"matrices": [matrix(d_in=True)]}, RecordError),
    "d_in: zero": ({"matrices": [matrix(d_in=0)]}, AbsurdSizeError),
    "d_out: huge": ({"matrices": [matrix(d_out=2**62)]}, AbsurdSizeError),
    "transposed: a number": ({"matrices": [matrix(transposed=1)]}, RecordError),
    "a matrix twice": ({"matrices": [matrix(), matrix()]}, DuplicateIndexError),
    "a matrix without tensors": ({"matrices": [matrix(weight="other")]}, MissingTensorError),
    "a matrix less": ({"matrices": [matrix()]}, ExtraTensorError),
    "request with an unknown field": (
        {"requests": [{"prompt": "A b", "target_new": "c", "colour": "red"}]},
        RecordError,
    ),
    "request without target": ({"requests": [{"prompt": "A b"}]}, RecordError),
    "request as text": ({"requests": ["A b"]}, RecordError),
    "request with a number": ({"requests": [{"prompt": 3, "target_new": "c"}]}, RecordError),
    "probe with a number": (
        {"requests": [{"prompt": "a", "target_new": "c", "locality": [{"group": "g", "prompt": 1}]}]},
        RecordError,
    ),
    "no request": ({"requests": []}, RecordError),
    "another id": ({"edit_id": "0" * 12}, RecordError),
    "other hparams than the id": ({"hparams": {}}, RecordError),
    "sha256: a number": ({"sha256": 5}, RecordError),
    "bytes: text": ({"bytes": "many"}, RecordError),
    "bytes: absurd": ({"bytes": 2**60}, AbsurdSizeError),
    "bytes: more than there are": ({"bytes": 2**20}, TruncatedFileError),
    "scores: a list": ({"scores": []}, RecordError),
}


@pytest.mark.parametrize("name", sorted(WRONG))
def test_a_record_with_a_wrong_part(folder: Path, name: str) -> None:
    changes, error = WRONG[name]
    write_record(folder, **changes)
    refused(folder, error)


def test_a_blob_with_something_behind_it(folder: Path) -> None:
    (folder / BLOB).write_bytes((folder / BLOB).read_bytes() + b"\0")
    refused(folder, ChecksumError, BLOB, "SHA-256")


@pytest.mark.parametrize("blob", [b"", b"x" * 7])
def test_a_blob_too_short_for_a_header(folder: Path, blob: bytes) -> None:
    write_blob(folder, blob)
    refused(folder, TruncatedFileError, BLOB)


@pytest.mark.parametrize("blob", [b"x" * 100, pickle.dumps({"weight": [1.0, 2.0]}), b"\xff" * 8])
def test_a_blob_that_is_no_safetensors_file(folder: Path, blob: bytes) -> None:
    write_blob(folder, blob)
    refused(folder, AbsurdSizeError, BLOB, "header")


@pytest.mark.parametrize(("part", "n"), [("a", 12), ("b", 8)])
@pytest.mark.parametrize("index", [-1, "n", 2**31 - 1, -(2**31)])
def test_an_index_out_of_range(folder: Path, part: str, n: int, index: int | str) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        wide = tensors[f"{ONE}:{part}.index"].int()
        wide[0] = n if isinstance(index, str) else index
        tensors[f"{ONE}:{part}.index"] = wide

    forge(folder, change)
    refused(folder, IndexRangeError, ONE, "index out of range", f"0 to {n - 1}")


@pytest.mark.parametrize("part", ["a", "b"])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite(folder: Path, part: str, number: float) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[f"{TWO}:{part}.value"][-1] = number

    forge(folder, change)
    refused(folder, NotFiniteError, TWO, "NaN or infinity")


POINTERS: dict[str, tuple[Callable[[Tensor], Tensor], type[DeltaError]]] = {
    "starts late": (lambda p: torch.cat([p[:1] + 1, p[1:]]), IndexRangeError),
    "falls": (lambda p: p[[0, 2, 1, 3]], IndexRangeError),
    "falls and wraps round": (
        lambda p: torch.stack([p[0], torch.tensor(2**31 - 1).int(), torch.tensor(-(2**31)).int(), p[3]]),
        IndexRangeError,
    ),
    "ends early": (lambda p: torch.cat([p[:-1], p[-1:] - 1]), IndexRangeError),
    "ends late": (lambda p: torch.cat([p[:-1], p[-1:] + 1]), IndexRangeError),
    "empty": (lambda p: p[:0], AbsurdSizeError),
    "no vector for its indices": (lambda p: p[:1], AbsurdSizeError),
}


@pytest.mark.parametrize("how", sorted(POINTERS))
def test_pointers_that_do_not_fit(folder: Path, how: str) -> None:
    pointers, error = POINTERS[how]

    def change(tensors: dict[str, Tensor]) -> None:
        tensors[f"{ONE}:a.pointer"] = pointers(tensors[f"{ONE}:a.pointer"]).contiguous()

    forge(folder, change)
    refused(folder, error, ONE)


@pytest.mark.parametrize("how", ["twice", "out of order"])
def test_an_index_twice_or_out_of_order(folder: Path, how: str) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        index = tensors[f"{ONE}:a.index"].int()
        assert int(tensors[f"{ONE}:a.pointer"][1]) > 1
        index[:2] = index[0] if how == "twice" else index[:2].flip(0)
        tensors[f"{ONE}:a.index"] = index

    forge(folder, change)
    refused(folder, DuplicateIndexError, ONE, "twice or out of order")


def test_numbers_whose_product_is_no_number(folder: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[f"{ONE}:a.value"][0] = 3e38

    forge(folder, change)
    refused(folder, NotFiniteError, ONE, "a change of")


def test_as_many_rows_as_columns(folder: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        end = int(tensors[f"{ONE}:a.pointer"][2])
        tensors[f"{ONE}:a.pointer"] = tensors[f"{ONE}:a.pointer"][:3].contiguous()
        for name in ("index", "value"):
            tensors[f"{ONE}:a.{name}"] = tensors[f"{ONE}:a.{name}"][:end].contiguous()

    forge(folder, change)
    refused(folder, IndexRangeError, ONE, "2 rows and 3 columns")


@pytest.mark.parametrize("missing", ["a.index", "b.value", "b.pointer"])
def test_a_missing_tensor(folder: Path, missing: str) -> None:
    forge(folder, lambda tensors: tensors.__delitem__(f"{ONE}:{missing}"))
    refused(folder, MissingTensorError, f"{ONE}:{missing}")


def test_a_tensor_too_much(folder: Path) -> None:
    forge(folder, lambda tensors: tensors.update(more=torch.zeros(1)))
    refused(folder, ExtraTensorError, "more")


@pytest.mark.parametrize("part", ["a.index", "a.value", "b.pointer"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.int8, torch.bool, torch.bfloat16])
def test_a_tensor_of_a_wrong_type(folder: Path, part: str, dtype: torch.dtype) -> None:
    name = f"{ONE}:{part}"
    forge(folder, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    refused(folder, TensorLayoutError, part)


def test_a_tensor_of_a_wrong_shape(folder: Path) -> None:
    name = f"{ONE}:a.value"
    forge(folder, lambda tensors: tensors.update({name: tensors[name][None]}))
    refused(folder, TensorLayoutError, name)
    forge(folder, lambda tensors: tensors.update({name: tensors[name][0, :-1].contiguous()}))
    refused(folder, IndexRangeError, ONE)


class _Trap:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("suffix", sorted(PICKLES))
def test_a_pickle_in_the_folder_is_refused_and_not_opened(folder: Path, tmp_path: Path, suffix: str) -> None:
    (folder / f"delta{suffix}").write_bytes(pickle.dumps(_Trap(tmp_path / "sprung")))
    refused(folder, PickleFoundError, f"delta{suffix}", "safetensors and json only")
    assert not (tmp_path / "sprung").exists()


def test_a_pickle_with_a_shouting_name(folder: Path) -> None:
    (folder / "OLD.PT").write_bytes(b"x")
    refused(folder, PickleFoundError, "OLD.PT")


@pytest.mark.parametrize("name", [BLOB, RECORD, "notes.txt"])
def test_a_link_out_of_the_folder(folder: Path, tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes((folder / name).read_bytes() if (folder / name).exists() else b"x")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(elsewhere)
    refused(folder, SymlinkError, name)


def test_links_that_lead_nowhere_or_in_a_circle(folder: Path) -> None:
    for target in ("nothing", "loop"):
        (folder / "loop").symlink_to(folder / target)
        refused(folder, SymlinkError, "loop")
        (folder / "loop").unlink()


def test_a_link_inside_the_folder_is_a_file_like_any_other(folder: Path) -> None:
    (folder / "kept").mkdir()
    (folder / BLOB).rename(folder / "kept" / BLOB)
    (folder / BLOB).symlink_to(Path("kept") / BLOB)
    assert load_edit(folder).edit_id == make_edit().edit_id


def test_a_pipe_is_not_waited_for(folder: Path) -> None:
    (folder / RECORD).unlink()
    os.mkfifo(folder / RECORD)
    refused(folder, EditNotFoundError, RECORD)


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
    (folder / RECORD).write_text(json.dumps(values, indent=1, ensure_ascii=False), encoding="utf-8")
    refused(folder, RecordError, RECORD)


def test_indices_are_stored_in_sixteen_bits_where_they_fit(tmp_path: Path) -> None:
    at = torch.tensor([[0, 5, 65535]]).int().view(-1)
    short = SparseVectors(at, torch.ones(3), torch.tensor([0, 3]).int())
    long = SparseVectors(torch.tensor([1, 70000]).int(), torch.ones(2), torch.tensor([0, 2]).int())
    edit = make_edit()
    wide = Edit(
        Delta((MatrixDelta("w", 65536, 70001, False, short, long),)), edit.requests, {}, "f" * 64, "tiny", {}, {"n": 3}
    )
    folder = save_edit(wide, tmp_path / "wide")
    stored = load((folder / BLOB).read_bytes())
    assert stored["w:a.index"].dtype == torch.uint16
    assert stored["w:b.index"].dtype == torch.int32
    again = load_edit(folder)
    assert again.delta.digest == wide.delta.digest
    assert again.scores == {"n": 3}


def test_the_record_says_how_large_the_change_is(folder: Path) -> None:
    delta, figures = make_edit().delta, record_of(folder)["figures"]
    assert figures["values"] == delta.n_values
    assert figures["density"] == pytest.approx(delta.density)
    assert figures["density_bound"] == pytest.approx(delta.density_bound)
    assert figures["norm"] == pytest.approx(delta.norm)
