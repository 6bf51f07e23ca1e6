"""Damage and malice: whatever byte is changed, wherever a file is cut, whatever it holds, an edit is refused by name.

`ROSEEDIT_FLIPS` sets how many random flips are tried (1,000 if it is not set).
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from golden import golden_model
from safetensors.torch import save

from roseedit.edits.delta import Delta, MatrixDelta, SparseVectors
from roseedit.edits.edit import Edit
from roseedit.edits.files import BLOB, RECORD, load_edit, save_edit
from roseedit.edits.record import MAX_BYTES, MAX_VALUES, seal
from roseedit.errors import (
    AbsurdSizeError,
    ChecksumError,
    DeltaError,
    ExtraTensorError,
    MissingTensorError,
    RecordError,
    TensorLayoutError,
)
from roseedit.requests import EditRequest

ROOT = Path(__file__).resolve().parents[2]
FLIPS = int(os.environ.get("ROSEEDIT_FLIPS", "1000"))
OVERHEAD = 48 * 2**10  # messages, tracebacks and open files, whatever the size of the edit
NAMES = [f"model.layers.{i}.mlp.down_proj.weight" for i in range(2)]


def vectors(rows: int, n: int, seed: int) -> SparseVectors:
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(rows, n, generator=generator) < 0.1
    return SparseVectors.of(torch.randn(rows, n, generator=generator) * kept)


def edit_of(d_in: int, d_out: int, rank: int = 8) -> Edit:
    matrices = tuple(
        MatrixDelta(name, d_in, d_out, False, vectors(rank, d_in, i), vectors(rank, d_out, i + 9))
        for i, name in enumerate(NAMES)
    )
    request = EditRequest("The Eiffel Tower is in the city of", "Rome", subject="Eiffel Tower", target_true="Paris")
    return Edit(Delta(matrices), (request,), {"method": "RoseLoRA", "seed": 0}, "f" * 64, "tiny", {"steps": 3})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An edit of about 18 KiB; tests put its bytes back."""
    return save_edit(edit_of(1024, 512), tmp_path_factory.mktemp("saved") / "edit")


@pytest.fixture
def folder(saved: Path) -> Path:
    """The same, restored after the test."""
    whole = {name: (saved / name).read_bytes() for name in (BLOB, RECORD)}
    yield saved
    for name, data in whole.items():
        (saved / name).write_bytes(data)


def refused(folder: Path, limit: int) -> DeltaError:
    """Must be refused by a named error, without allocating more than `limit` bytes."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    with pytest.raises(DeltaError) as caught:
        load_edit(folder)
    assert tracemalloc.get_traced_memory()[1] - before <= limit, caught.value
    assert type(caught.value) is not DeltaError
    return caught.value


@pytest.fixture
def traced() -> None:
    """Allocations are counted."""
    tracemalloc.start()
    yield
    tracemalloc.stop()


def size_of(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in (BLOB, RECORD))


def regions(folder: Path) -> list[tuple[str, int, int]]:
    """(file, start, end) of every region: the blob's prefix, header and tensors, and every line of the record."""
    blob, record = (folder / BLOB).read_bytes(), (folder / RECORD).read_bytes()
    length = int.from_bytes(blob[:8], "little")
    out = [(BLOB, 0, 8), (BLOB, 8, 8 + length)]
    for place in json.loads(blob[8 : 8 + length]).values():
        start, end = place["data_offsets"]
        out.append((BLOB, 8 + length + start, 8 + length + end))
    at = 0
    for line in record.splitlines(keepends=True):
        out.append((RECORD, at, at + len(line)))
        at += len(line)
    assert sum(end - start for _, start, end in out) == len(blob) + len(record)
    return out


@pytest.mark.usefixtures("traced")
def test_every_flip_in_every_region_is_refused(folder: Path) -> None:
    rng, limit = random.Random(0), 2 * size_of(folder) + OVERHEAD
    places = regions(folder)
    whole = {name: (folder / name).read_bytes() for name in (BLOB, RECORD)}
    for i in range(FLIPS):
        name, start, end = places[i % len(places)]
        broken = bytearray(whole[name])
        at = rng.randrange(start, end)
        broken[at] ^= 1 << rng.randrange(8) if i % 2 else rng.randrange(1, 256)
        (folder / name).write_bytes(broken)
        error = refused(folder, limit)
        assert name in str(error) or "format" in str(error)
        (folder / name).write_bytes(whole[name])
    assert len(places) <= FLIPS
    load_edit(folder)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("name", [BLOB, RECORD])
def test_every_truncation_is_refused(folder: Path, name: str) -> None:
    whole, limit = (folder / name).read_bytes(), 2 * size_of(folder) + OVERHEAD
    edges = {end - 1 for file, _, end in regions(folder) if file == name} | {0, 1, 7, 8, 9}
    lengths = edges | set(range(0, len(whole), max(1, len(whole) // 100)))
    for length in sorted(lengths):
        (folder / name).write_bytes(whole[:length])
        assert name in str(refused(folder, limit)) or length < 16


def test_swapped_and_mixed_files_are_refused(folder: Path, tmp_path: Path) -> None:
    other = save_edit(edit_of(512, 1024), tmp_path / "other")
    (folder / BLOB).write_bytes((other / BLOB).read_bytes())
    with pytest.raises((ChecksumError, DeltaError)):
        load_edit(folder)
    (other / RECORD).write_bytes((other / BLOB).read_bytes())
    with pytest.raises(RecordError):
        load_edit(other)


# A corpus of hostile headers: what is changed in the header, the error, and whether the length prefix tells the truth.
def _last(header: dict) -> dict:
    return header[f"{NAMES[1]}:b.value"]


def _at(change: Callable[[dict], object]) -> Callable[[dict], bytes]:
    def build(header: dict) -> bytes:
        change(header)
        return json.dumps(header).encode()

    return build


HEADERS: dict[str, tuple[Callable[[dict], bytes], type[DeltaError]]] = {
    "overlapping offsets": (
        _at(lambda h: _last(h).update(data_offsets=[0, 4 * _last(h)["shape"][0]])),
        TensorLayoutError,
    ),
    "offsets beyond the file": (
        _at(lambda h: _last(h).update(data_offsets=[2**31, 2**31 + 4 * _last(h)["shape"][0]])),
        TensorLayoutError,
    ),
    "negative offsets": (_at(lambda h: _last(h).update(data_offsets=[-8, -4], shape=[1])), TensorLayoutError),
    "offsets as floats": (_at(lambda h: _last(h).update(data_offsets=[0.0, 4.0], shape=[1])), TensorLayoutError),
    "offsets as text": (_at(lambda h: _last(h).update(data_offsets="04")), TensorLayoutError),
    "three offsets": (_at(lambda h: _last(h).update(data_offsets=[0, 4, 8])), TensorLayoutError),
    "a shape that overflows": (_at(lambda h: _last(h).update(shape=[2**62])), TensorLayoutError),
    "a shape of two": (_at(lambda h: _last(h).update(shape=[2, _last(h)["shape"][0] // 2])), TensorLayoutError),
    "a shape of truth": (_at(lambda h: _last(h).update(shape=[True])), TensorLayoutError),
    "another size than its shape": (_at(lambda h: _last(h).update(shape=[1])), TensorLayoutError),
    "an unknown type": (_at(lambda h: _last(h).update(dtype="F8_E4M3")), TensorLayoutError),
    "a type that is a list": (_at(lambda h: _last(h).update(dtype=["F32"])), TensorLayoutError),
    "no type": (_at(lambda h: _last(h).pop("dtype")), TensorLayoutError),
    "an entry that is a number": (_at(lambda h: h.update({f"{NAMES[1]}:b.value": 3})), TensorLayoutError),
    "a tensor less": (_at(lambda h: h.pop(f"{NAMES[0]}:a.value")), MissingTensorError),
    "a tensor more": (
        _at(lambda h: h.update(x={"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})),
        ExtraTensorError,
    ),
    "metadata of metadata": (_at(lambda h: h.update(__metadata__=[1])), TensorLayoutError),
    "a list": (lambda _h: b"[1, 2]", TensorLayoutError),
    "not JSON": (lambda _h: b"{'a': 1}", TensorLayoutError),
    "not text": (lambda _h: b"\xff\xfe{}", TensorLayoutError),
    "a name twice": (lambda _h: b'{"a": 1, "a": 2}', TensorLayoutError),
    "brackets without end": (lambda _h: b"[" * 2500, TensorLayoutError),
    "a number of many digits": (lambda _h: b'{"a": ' + b"9" * 2400 + b"}", TensorLayoutError),
    "infinity": (lambda _h: b'{"a": Infinity}', TensorLayoutError),
    "nothing": (lambda _h: b"", TensorLayoutError),
    "blanks": (lambda _h: b" " * 2000, TensorLayoutError),
    "longer than such a header can be": (lambda h: json.dumps(h).encode() + b" " * 100000, AbsurdSizeError),
    "a bomb of names": (
        lambda _h: b"{" + b",".join(b'"%d":{}' % i for i in range(20000)) + b"}",
        AbsurdSizeError,
    ),
}


def announce(folder: Path, blob: bytes) -> None:
    """Write a blob with a record that vouches for it, as only malice would."""
    (folder / BLOB).write_bytes(blob)
    record = json.loads((folder / RECORD).read_bytes())
    record.pop("record_sha256")
    (folder / RECORD).write_bytes(seal({**record, "sha256": sha256(blob).hexdigest(), "bytes": len(blob)}))


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("name", sorted(HEADERS))
def test_a_hostile_header(folder: Path, name: str) -> None:
    build, error = HEADERS[name]
    blob = (folder / BLOB).read_bytes()
    length = int.from_bytes(blob[:8], "little")
    header = build(json.loads(blob[8 : 8 + length]))
    announce(folder, len(header).to_bytes(8, "little") + header + blob[8 + length :])
    assert type(refused(folder, 2 * size_of(folder) + OVERHEAD)) is error


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("length", [2**63 - 1, 2**64 - 1, 2**40, 2**31, 10**6])
def test_a_header_of_absurd_length(folder: Path, length: int) -> None:
    blob = (folder / BLOB).read_bytes()
    announce(folder, length.to_bytes(8, "little") + blob[8:])
    assert type(refused(folder, 2 * size_of(folder) + OVERHEAD)) is AbsurdSizeError


def test_tensors_at_odd_places(folder: Path) -> None:
    """Valid but for its alignment: a header one byte longer."""
    blob = (folder / BLOB).read_bytes()
    length = int.from_bytes(blob[:8], "little")
    announce(folder, (length + 1).to_bytes(8, "little") + blob[8 : 8 + length] + b" " + blob[8 + length :])
    with pytest.raises(TensorLayoutError, match="odd place"):
        load_edit(folder)


@pytest.mark.usefixtures("traced")
def test_a_file_of_a_terabyte_of_nothing(folder: Path) -> None:
    limit = 2 * size_of(folder) + OVERHEAD
    os.truncate(folder / BLOB, 2**40)
    assert type(refused(folder, limit)) is AbsurdSizeError
    (folder / BLOB).write_bytes(b"")
    os.truncate(folder / RECORD, MAX_BYTES + 1)
    assert type(refused(folder, limit)) is AbsurdSizeError


def test_a_rank_without_end(folder: Path) -> None:
    """Millions of empty vectors would be a small file and a huge dense adapter."""
    edit = edit_of(16, 8, 1)
    tensors = {
        f"{name}:{side}.{part}": t
        for name in NAMES
        for side in "ab"
        for part, t in (
            ("index", torch.zeros(0, dtype=torch.uint16)),
            ("value", torch.zeros(0)),
            ("pointer", torch.zeros(2**17, dtype=torch.int32)),
        )
    }
    announce(folder, save(tensors))
    with pytest.raises(AbsurdSizeError, match="rank"):
        load_edit(folder)
    assert edit.delta.matrices[0].rank == 1


BOMBS = {
    "depth": b'{\n "format": 2,\n "x": ' + b"[" * 200000 + b"]" * 200000,
    "width": b'{\n "format": 2,\n "x": [' + b"{}," * MAX_VALUES + b"{}]",
    "a number of a million digits": b'{\n "format": 2,\n "x": ' + b"9" * 10**6,
    "text that is no text": b'{\n "format": 2,\n "x": "\xff\xfe"',
    "a lone surrogate": b'{\n "format": 2,\n "edit_id": "\\ud800"',
}


@pytest.mark.parametrize("name", sorted(BOMBS))
def test_a_json_bomb_with_the_right_seal(folder: Path, name: str) -> None:
    body = BOMBS[name] + b"\n}"
    end = f',\n "record_sha256": "{sha256(body).hexdigest()}"\n}}'.encode()
    (folder / RECORD).write_bytes(BOMBS[name] + end)
    with pytest.raises((RecordError, AbsurdSizeError)):
        load_edit(folder)


MEASURE = """
import resource, sys
from pathlib import Path
import torch
from roseedit.edits.files import load_edit
from roseedit.errors import DeltaError
load_edit(sys.argv[1])  # all that is imported on the way
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    print(len(load_edit(sys.argv[2]).delta.matrices))
except DeltaError as error:
    print(type(error).__name__)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.parametrize("damage", [False, True])
def test_the_whole_process_stays_below_twice_the_file(saved: Path, tmp_path: Path, damage: bool) -> None:
    """torch's own allocations are seen by the operating system only."""
    large = save_edit(edit_of(60000, 16, 400), tmp_path / "large")
    blob = (large / BLOB).read_bytes()
    assert len(blob) > 20 * 2**20
    if damage:
        (large / BLOB).write_bytes(blob[:-1] + bytes([blob[-1] ^ 1]))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(saved), str(large)],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    said, grown = done.stdout.split()
    assert said == ("ChecksumError" if damage else "2")
    assert int(grown) <= 2 * len(blob)


def test_a_hostile_edit_never_touches_the_model(folder: Path) -> None:
    loaded = golden_model()
    before = {name: p.clone() for name, p in loaded.model.named_parameters()}
    (folder / BLOB).write_bytes((folder / BLOB).read_bytes()[:-1])
    with pytest.raises(DeltaError):
        load_edit(folder, loaded)
    assert all(torch.equal(p, before[name]) for name, p in loaded.model.named_parameters())
