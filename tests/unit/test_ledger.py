"""The ledger without a model: states, refusals, tampering, recovery, two writers, the command line."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from roseedit.cli import console, main
from roseedit.edits import storage
from roseedit.edits.delta import Delta, MatrixDelta, SparseVectors
from roseedit.edits.edit import Edit
from roseedit.edits.ledger import Ledger
from roseedit.edits.ledger.plans import contradicted, plan_apply, plan_new, plan_rejected, plan_revert
from roseedit.edits.ledger.schema import COLUMNS, hash_of_row
from roseedit.errors import ConflictError, LedgerBusyError, LedgerError, TamperError
from roseedit.requests import EditRequest

ROOT = Path(__file__).resolve().parents[2]


def make_edit(i: int, *requests: EditRequest) -> Edit:
    generator = torch.Generator().manual_seed(i)

    def part(n: int) -> SparseVectors:
        return SparseVectors.of(torch.randn(2, n, generator=generator))

    asked = requests or (EditRequest(f"The colour of stone {i} is", f"shade {i}", subject=f"stone {i}"),)
    delta = Delta((MatrixDelta("down.weight", 6, 4, False, part(6), part(4)),))
    return Edit(delta, asked, {"method": "RoseLoRA", "seed": 3, "lr": 0.01}, "f" * 64, "tiny", {"steps": i})


def fill(folder: Path, n: int = 4) -> list[Edit]:
    """A ledger with n applied edits."""
    edits = [make_edit(i) for i in range(n)]
    with Ledger(folder, write=True) as ledger:
        for edit in edits:
            metrics = {"reliability": {"rate": 1.0, "n": 1}}
            ledger.commit(plan_new(ledger.states, [edit], metrics=[metrics]))
    return edits


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four applied edits, then one reverted, one rejected."""
    edits = fill(tmp_path / "edits")
    with Ledger(tmp_path / "edits", write=True) as ledger:
        ledger.commit(plan_revert(ledger.states, edits[1].edit_id, "no source"))
        ledger.commit(plan_rejected([make_edit(9)], {"perplexity": 7.5, "perplexity_base": 2.0}, "perplexity"))
    return tmp_path / "edits"


def tamper(folder: Path, statement: str, values: tuple[Any, ...] = ()) -> None:
    """Change the tables as somebody with the file in hand would."""
    db = sqlite3.connect(folder / "ledger.sqlite")
    for name in ("no_update", "no_delete"):
        db.execute(f"DROP TRIGGER IF EXISTS {name}")
    db.execute(statement, values)
    db.commit()
    db.close()


def rehash(folder: Path, seq: int) -> None:
    """Give a changed entry a hash that fits it."""
    db = sqlite3.connect(folder / "ledger.sqlite")
    row = db.execute(f"SELECT {', '.join(COLUMNS)} FROM entries WHERE seq = ?", (seq,)).fetchone()
    db.close()
    tamper(folder, "UPDATE entries SET hash = ? WHERE seq = ?", (hash_of_row(row), seq))


def verify(folder: Path, head: str | None = None) -> Any:
    with Ledger(folder) as ledger:
        return ledger.verify(head)


# --- what it keeps ----------------------------------------------------------------------------------------------------


def test_everything_of_an_edit_comes_back(folder: Path) -> None:
    edit = make_edit(2)
    with Ledger(folder) as ledger:
        standing, again = ledger.find(edit.edit_id[:6]), ledger.load(edit.edit_id)
        record = standing.record
        assert [s.state for s in ledger.states.values()] == ["applied", "reverted", "applied", "applied", "rejected"]
        assert [e.action for e in ledger.entries] == [*["applied"] * 4, "reverted", "rejected"]
        assert ledger.entries[4].details == {"why": "no source"}
        assert ledger.entries[5].details["health"] == {"perplexity": 7.5, "perplexity_base": 2.0}
    assert again.edit_id == edit.edit_id
    assert again.delta.digest == edit.delta.digest
    assert json.loads(record.requests or "")[0]["prompt"] == edit.requests[0].prompt
    assert json.loads(record.hparams or "") == dict(edit.hparams)
    assert json.loads(record.metrics or "") == {"reliability": {"rate": 1.0, "n": 1}}
    assert (record.seed, record.fingerprint, record.model_name) == (3, "f" * 64, "tiny")
    assert record.norm == pytest.approx(edit.delta.norm)
    assert record.density == pytest.approx(edit.delta.density)
    assert set(json.loads(record.versions or "")) == {"roseedit", "python", "torch", "transformers", "safetensors"}


def test_a_reader_sees_the_ledger_while_a_writer_holds_it(folder: Path) -> None:
    with Ledger(folder, write=True) as writer, Ledger(folder) as reader:
        before = len(reader.entries)
        writer.commit(plan_new(writer.states, [make_edit(20)]))
        assert len(reader.entries) == before
        reader.reload()
        assert len(reader.entries) == before + 1
        with pytest.raises(LedgerError, match="open for reading; allowed: one open for writing"):
            reader.commit(plan_revert(reader.states, make_edit(20).edit_id))


def test_a_transaction_is_whole(folder: Path) -> None:
    class Fault(Exception):
        pass

    def watch(what: str, path: Path) -> None:
        if what == "after statement" and path.name == "ledger.sqlite":
            seen.append(what)
            if len(seen) == 3:
                raise Fault

    seen: list[str] = []
    with Ledger(folder, write=True) as ledger:
        before = ledger.head
        with storage.watched(watch), pytest.raises(Fault):
            ledger.commit(plan_new(ledger.states, [make_edit(21), make_edit(22)]))
        assert ledger.head == before
        assert len(ledger.gc()) == 2
        ledger.commit(plan_new(ledger.states, [make_edit(21), make_edit(22)]))
        assert ledger.verify().ok


# --- states -----------------------------------------------------------------------------------------------------------


def test_what_a_state_does_not_allow_is_refused(folder: Path) -> None:
    with Ledger(folder, write=True) as ledger:
        states = ledger.states
        with pytest.raises(LedgerError, match=r"which is applied; allowed: "):
            plan_apply(states, make_edit(0).edit_id)
        with pytest.raises(LedgerError, match=r"which is applied; allowed: "):
            plan_new(states, [make_edit(0)])
        with pytest.raises(LedgerError, match=r"which is reverted; allowed: an applied edit"):
            plan_revert(states, make_edit(1).edit_id)
        with pytest.raises(LedgerError, match=r"rejected by the health check; allowed: "):
            plan_apply(states, make_edit(9).edit_id)
        ledger.commit(plan_apply(states, make_edit(9).edit_id, checked=True))
        with pytest.raises(LedgerError, match="rejected does not follow applied"):
            ledger.commit(plan_rejected([make_edit(9)], {}, "again"))


def test_a_consolidation_takes_the_place_of_its_members_and_gives_it_back(folder: Path) -> None:
    old = [make_edit(i).edit_id for i in (0, 2)]
    whole = make_edit(50)
    with Ledger(folder, write=True) as ledger:
        ledger.commit(plan_new(ledger.states, [whole], consolidates=old))
        assert [s.edit_id for s in ledger.live] == [make_edit(3).edit_id, whole.edit_id]
        assert ledger.find(old[0]).into == whole.edit_id
        with pytest.raises(LedgerError, match=rf"lives on in edit {whole.edit_id}"):
            plan_apply(ledger.states, old[0])
        ledger.commit(plan_revert(ledger.states, whole.edit_id))
        assert {s.edit_id for s in ledger.live} == {*old, make_edit(3).edit_id}
        ledger.commit(plan_apply(ledger.states, whole.edit_id))
        assert ledger.find(old[1]).state == "consolidated"
        ledger.commit(plan_revert(ledger.states, whole.edit_id))
        ledger.commit(plan_revert(ledger.states, old[0]))
        with pytest.raises(LedgerError, match=rf"stands for {old[0]}, not applied any more"):
            plan_apply(ledger.states, whole.edit_id)
        assert ledger.verify().ok


def test_an_id_may_be_short_but_not_ambiguous(folder: Path) -> None:
    with Ledger(folder) as ledger:
        for given in ("", "abc", "zzzzzz"):
            with pytest.raises(LedgerError, match="is not in the ledger"):
                ledger.find(given)


def test_a_contradiction_is_refused_or_replaced_in_one_step(folder: Path) -> None:
    again = make_edit(60, EditRequest("What is the colour of stone 2?", "grey", subject="stone 2"))
    old = make_edit(2).edit_id
    with Ledger(folder, write=True) as ledger:
        with pytest.raises(ConflictError, match=rf"contradicts the live edit {old} .*--replace"):
            contradicted(ledger.states, again.requests, replace=False)
        gone = contradicted(ledger.states, again.requests, replace=True)
        entries = ledger.commit(plan_new(ledger.states, [again], replaces=gone))
        assert [(e.action, e.edit_id) for e in entries] == [("reverted", old), ("applied", again.edit_id)]
        assert len({e.call for e in entries}) == 1
        with pytest.raises(ConflictError):
            plan_apply(ledger.states, old)
        plan = plan_apply(ledger.states, old, replace=True)
        assert (plan.off, plan.on) == ((again.edit_id,), (old,))


def test_an_edit_with_other_facts_is_not_replaced(folder: Path) -> None:
    facts = [EditRequest(f"The age of tree {i} is", f"{i}", subject=f"tree {i}") for i in range(3)]
    with Ledger(folder, write=True) as ledger:
        ledger.commit(plan_new(ledger.states, [make_edit(70, *facts)]))
        new = EditRequest(facts[0].prompt, "400", subject="tree 0")
        with pytest.raises(ConflictError, match="which holds 2 other facts too"):
            contradicted(ledger.states, [new], replace=True)


# --- damage -----------------------------------------------------------------------------------------------------------

CHANGES: dict[str, Any] = {"seq": 77, "seed": 4, "norm": 1.25, "density": 0.5}


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("empty", [False, True])
def test_a_change_of_any_field_is_found(folder: Path, column: str, empty: bool) -> None:
    needed = ("seq", "parent", "at", "call", "action", "detail", "hash")
    value = (None if column not in needed else "") if empty and column != "seq" else CHANGES.get(column, "0" * 64)
    tamper(folder, f"UPDATE entries SET {column} = ? WHERE seq = 2", (value,))
    report = verify(folder)
    assert not report.ok
    assert report.faults[0].seq == 2
    assert (report.entries, report.broken) == (1, 5)


@pytest.mark.parametrize("column", [c for c in COLUMNS if c not in ("seq", "hash")])
def test_a_change_with_a_fitting_hash_breaks_the_next_link(folder: Path, column: str) -> None:
    new = {"action": "rejected", "detail": "{}"}.get(column, CHANGES.get(column, "[]"))
    tamper(folder, f"UPDATE entries SET {column} = ? WHERE seq = 2", (new,))
    rehash(folder, 2)
    report = verify(folder)
    if column == "detail":
        assert report.ok  # it was {} before
        return
    assert report.faults[0].seq in (2, 3)


def test_entries_cut_off_are_shown_by_a_noted_head(folder: Path) -> None:
    head = verify(folder).head
    assert verify(folder, head[:16]).ok
    tamper(folder, "DELETE FROM entries WHERE seq = 6")
    assert verify(folder).ok  # nothing inside can show it
    report = verify(folder, head)
    assert [f.seq for f in report.faults] == [0]
    assert "noted head" in str(report.faults[0])


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM entries WHERE seq = 3",
        "UPDATE entries SET seq = seq + 1 WHERE seq = 6",
        "INSERT INTO entries SELECT 7, parent, at, call, action, edit_id, detail, requests, hparams, seed, versions, "
        "model_name, fingerprint, norm, density, report, metrics, blob, 'x' FROM entries WHERE seq = 6",
    ],
)
def test_missing_and_extra_entries_are_found(folder: Path, statement: str) -> None:
    tamper(folder, statement)
    assert not verify(folder).ok


def test_entries_can_neither_be_changed_nor_deleted_by_accident(folder: Path) -> None:
    db = sqlite3.connect(folder / "ledger.sqlite")
    for statement in ("UPDATE entries SET seed = 1", "DELETE FROM entries"):
        with pytest.raises(sqlite3.IntegrityError, match="never"):
            db.execute(statement)
    db.close()
    assert verify(folder).ok


def blob_of(folder: Path, i: int) -> Path:
    with Ledger(folder) as ledger:
        return ledger.blobs.path(str(ledger.find(make_edit(i).edit_id).record.blob))


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "add", "gone", "swap"])
def test_damaged_files_are_found_and_not_loaded(folder: Path, damage: str) -> None:
    blob = blob_of(folder, 2)
    file = blob / "delta.safetensors"
    if damage == "flip":
        content = bytearray(file.read_bytes())
        content[-3] ^= 4
        file.write_bytes(bytes(content))
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "remove":
        file.unlink()
    elif damage == "add":
        (blob / "more.txt").write_text("x")
    elif damage == "gone":
        blob.rename(folder / "elsewhere")
    else:
        other = blob_of(folder, 3)
        blob.rename(folder / "elsewhere")
        other.rename(blob)
    report = verify(folder)
    assert any(f.seq == 3 and not f.breaks for f in report.faults), report.faults
    with Ledger(folder) as ledger, pytest.raises(LedgerError, match="got an edit of which its files"):
        ledger.load(make_edit(2).edit_id)


def test_a_broken_tail_is_kept_out_until_it_is_set_aside(folder: Path) -> None:
    tamper(folder, "UPDATE entries SET norm = 9 WHERE seq = 4")
    with Ledger(folder) as ledger:
        assert ledger.fault is not None
        assert len(ledger.entries) == 3
    with pytest.raises(TamperError, match=r"broken at entry 4: .*--set-aside"):
        Ledger(folder, write=True)
    before = verify(folder)
    assert before.broken == 3
    assert verify(folder) == before  # looking repairs nothing
    with Ledger(folder, write=True, mending=True) as ledger:
        with pytest.raises(TamperError):
            ledger.commit(plan_new(ledger.states, [make_edit(30)]))
        assert ledger.set_aside() == 3
        assert [e.action for e in ledger.entries] == ["applied"] * 3 + ["mended"]
        with pytest.raises(LedgerError, match="whose chain is whole"):
            ledger.set_aside()
        report = ledger.verify()
        assert report.ok
    db = sqlite3.connect(folder / "ledger.sqlite")
    rows = db.execute("SELECT seq, reason, row FROM quarantine ORDER BY seq").fetchall()
    db.close()
    assert [r[0] for r in rows] == [4, 5, 6]
    assert json.loads(rows[0][2])[COLUMNS.index("norm")] == 9
    with Ledger(folder, write=True) as ledger:
        ledger.commit(plan_new(ledger.states, [make_edit(30)]))


def test_gc_removes_leftovers_only(folder: Path) -> None:
    kept = sorted((folder / "blobs").iterdir())
    (folder / "blobs" / ("a" * 64)).mkdir()
    (folder / "blobs" / ("a" * 64) / "delta.safetensors").write_bytes(b"x")
    (folder / "blobs" / ".tmp-1-1").mkdir()
    assert len(verify(folder).unreferenced) == 2
    with Ledger(folder, write=True) as ledger:
        assert len(ledger.gc(dry_run=True)) == 2
        assert len(sorted((folder / "blobs").iterdir())) == len(kept) + 2
        assert len(ledger.gc()) == 2
    assert sorted((folder / "blobs").iterdir()) == kept


@pytest.mark.parametrize("content", [b"", b"nonsense", b"SQLite format 3\0" + b"\0" * 4096])
def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(content)
    with pytest.raises(LedgerError, match=r"got .*; allowed: "):
        Ledger(tmp_path)


def test_a_foreign_database_and_a_newer_format_are_refused(folder: Path, tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "ledger.sqlite")
    db.execute("CREATE TABLE mine (x)")
    db.close()
    for write in (False, True):
        with pytest.raises(LedgerError, match="an SQLite file of something else"):
            Ledger(tmp_path, write=write)
    tamper(folder, "PRAGMA user_version = 2")
    with pytest.raises(LedgerError, match="ledger format 2; allowed: 1"):
        Ledger(folder)
    with pytest.raises(LedgerError, match="holds no ledger"):
        Ledger(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(LedgerError, match="which is no folder"):
        Ledger(tmp_path / "file", write=True)


# --- two writers ------------------------------------------------------------------------------------------------------

WRITER = """
import sys, time
sys.path.insert(0, "tests/unit")
from test_ledger import make_edit, Ledger, plan_new
with Ledger(sys.argv[1], write=True) as ledger:
    print("open", flush=True)
    sys.stdin.readline()
    ledger.commit(plan_new(ledger.states, [make_edit(int(sys.argv[2]))]))
    print("done", flush=True)
"""


def test_a_second_process_gets_a_clear_error_and_nothing_is_lost(folder: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), "40"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert other.stdout is not None and other.stdin is not None
    assert other.stdout.readline() == "open\n"
    with pytest.raises(LedgerBusyError, match=rf"process {other.pid} on .* is writing to; allowed: one writer"):
        Ledger(folder, write=True)
    assert verify(folder).ok  # reading is possible
    other.stdin.write("\n")
    other.stdin.flush()
    assert other.stdout.readline() == "done\n"
    assert other.wait(30) == 0
    with Ledger(folder, write=True) as ledger:
        ledger.commit(plan_new(ledger.states, [make_edit(41)]))
        assert {make_edit(40).edit_id, make_edit(41).edit_id} <= set(ledger.states)
        assert ledger.verify().ok


def test_processes_that_take_turns_lose_nothing(folder: Path) -> None:
    children = []
    for who in range(3):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                left = [make_edit(100 + 10 * who + i) for i in range(5)]
                while left:
                    try:
                        with Ledger(folder, write=True) as ledger:
                            ledger.commit(plan_new(ledger.states, [left[0]]))
                            left.pop(0)
                    except LedgerBusyError:
                        continue
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    with Ledger(folder) as ledger:
        assert {make_edit(100 + 10 * who + i).edit_id for who in range(3) for i in range(5)} <= set(ledger.states)
        assert ledger.verify().ok


# --- the command line -------------------------------------------------------------------------------------------------


@dataclass
class Done:
    """What a command left."""

    returncode: int
    stdout: str
    stderr: str


def cli(*arguments: str) -> Done:
    """`roseedit edits ARGUMENTS`, in this process."""
    stdout, stderr = io.StringIO(), io.StringIO()
    argv, sys.argv = sys.argv, ["roseedit", "edits", *arguments]
    console.out.width = 200
    try:
        with redirect_stdout(stdout), redirect_stderr(stderr), pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv = argv
    return Done(int(ended.value.code or 0), stdout.getvalue(), stderr.getvalue())


def test_list_show_log(folder: Path) -> None:
    done = cli("list", str(folder))
    for text in ("applied", "reverted", "rejected", "The colour of stone 0 is → shade 0", "rel 1.00"):
        assert text in done.stdout
    listed = json.loads(cli("list", str(folder), "--json", "--state", "rejected").stdout)
    assert [e["edit_id"] for e in listed] == [make_edit(9).edit_id]
    shown = json.loads(cli("show", str(folder), make_edit(1).edit_id[:5]).stdout)
    assert shown["state"] == "reverted"
    assert [h["action"] for h in shown["history"]] == ["applied", "reverted"]
    assert shown["hparams"]["seed"] == 3
    assert len(json.loads(cli("log", str(folder), "--json", "--limit", "2").stdout)) == 2
    assert "no source" in cli("log", str(folder)).stdout


def test_revert_redo_apply(folder: Path, tmp_path: Path) -> None:
    from roseedit.edits.files import save_edit

    first = make_edit(0).edit_id
    assert cli("revert", str(folder), first[:6], "--why", "withdrawn").stdout == f"reverted {first}\n"
    assert cli("redo", str(folder)).stdout == f"applied {first}\n"
    assert cli("revert", str(folder)).stdout == f"reverted {first}\n"  # the newest applied
    assert cli("apply", str(folder), first).stdout == f"applied {first}\n"
    saved = save_edit(make_edit(80), tmp_path / "mine")
    assert cli("apply", str(folder), str(saved)).stdout == f"applied {make_edit(80).edit_id}\n"
    again = make_edit(81, EditRequest("The colour of stone 80 is", "red", subject="stone 80"))
    saved = save_edit(again, tmp_path / "other")
    done = cli("apply", str(folder), str(saved))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: got 'The colour of stone 80 is' -> 'red', which contradicts")
    done = cli("apply", str(folder), str(saved), "--replace")
    assert done.stdout == f"reverted {make_edit(80).edit_id}\napplied {again.edit_id}\n"
    assert verify(folder).ok


def test_verify_and_gc(folder: Path) -> None:
    head = verify(folder).head
    done = cli("verify", str(folder), "--head", head)
    assert (done.returncode, done.stdout) == (0, f"✓ 6 sound entries; head {head}\n")
    tamper(folder, "UPDATE entries SET requests = '[]' WHERE seq = 5")
    done = cli("verify", str(folder))
    assert done.returncode == 1
    assert "entry 5: its content differs from its own hash" in done.stdout
    assert json.loads(cli("verify", str(folder), "--json").stdout)["broken"] == 2
    assert "broken at entry 5" in cli("list", str(folder)).stderr
    done = cli("revert", str(folder))
    assert (done.returncode, "--set-aside" in done.stderr) == (2, True)
    done = cli("verify", str(folder), "--set-aside")
    assert (done.returncode, "2 entries moved" in done.stdout) == (0, True)
    assert cli("gc", str(folder)).stdout == "0 removed\n"  # files of entries that were set aside are kept


@pytest.mark.parametrize(
    "arguments",
    [("list", "nowhere"), ("show", "LEDGER", "zzzz"), ("list", "LEDGER", "--state", "aplied"), ("redo", "nowhere/x")],
)
def test_bad_input_is_one_line(folder: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    given = [str(folder) if a == "LEDGER" else str(tmp_path / a) if "nowhere" in a else a for a in arguments]
    done = cli(*given)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: got ")
    assert not (tmp_path / "nowhere").exists()


def test_looking_needs_no_torch(folder: Path) -> None:
    code = (
        "import sys; from roseedit.edits.ledger import Ledger; assert Ledger(sys.argv[1]).verify().ok; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, check=False).returncode == 0
