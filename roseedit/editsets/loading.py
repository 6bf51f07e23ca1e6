"""Loading an edit set: where it lies, what each record becomes, and what is wrong with those that become nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from roseedit.editsets.fields import Record
from roseedit.editsets.hub import HubSource, fetch_file, fetch_table, resolve_revision
from roseedit.editsets.places import DATA_VARIABLE, data_folder, samples_folder
from roseedit.editsets.reading import Broken, read_records
from roseedit.editsets.registry import Editset, find_split
from roseedit.errors import DataError, RequestError, refusal
from roseedit.requests import EditRequest, check_request


@dataclass(frozen=True)
class RejectedRecord:
    """A record that is no possible edit.

    Attributes:
        index: Its position in the file, from 0.
        reason: What is wrong with it.
    """

    index: int
    reason: str


@dataclass(frozen=True)
class RecordNote:
    """A record that was loaded with something left out.

    Attributes:
        index: Its position in the file, from 0.
        note: What was left out, and why.
    """

    index: int
    note: str


@dataclass(frozen=True)
class LoadedEditset:
    """The contents of one data-set file.

    Attributes:
        name: Name of the edit set.
        path: The file that was read; for a table of the Hub the name it has there.
        sha256: Its checksum; several revisions of every published set are about.
        requests: The edits, in the file's order. Two of them may contradict each other: some published sets do (see
            `contradictions`).
        rejected: The records that are not among them, and why.
        notes: The records that are among them with something left out.
        split: Which of the set's files this is; `"file"` for one that the caller named.
        origin: `"file"`, `"data folder"`, `"sample"` or `"hub"`.
        n_records: Records in the file, or up to the limit; each is either loaded or rejected.
        revision: Commit on the Hub, if it came from there.
    """

    name: str
    path: Path
    sha256: str
    requests: tuple[EditRequest, ...]
    rejected: tuple[RejectedRecord, ...]
    notes: tuple[RecordNote, ...] = ()
    split: str = "file"
    origin: str = "file"
    n_records: int = 0
    revision: str | None = None

    @property
    def n_loaded(self) -> int:
        """Records that became requests; with several facts in a record, fewer than there are requests."""
        return self.n_records - len(self.rejected)


def load_editset(
    name: str,
    path: str | Path | None = None,
    limit: int | None = None,
    *,
    split: str | None = None,
    hub: bool = False,
    revision: str | None = None,
) -> LoadedEditset:
    """Load an edit set from a file, the Hub, the folder that ROSEEDIT_DATA names, or else from the repository's sample.

    Args:
        name: One of `names()`, or `"NAME:SPLIT"`.
        path: A file in that set's schema; goes before everything else.
        limit: Read only this many records from the front of the file, rejected ones included.
        split: Which of the set's files; left out, the first one.
        hub: Fetch it from the Hugging Face Hub.
        revision: Commit, branch or tag on the Hub; it is resolved to a commit, which the result names. Left out, the
            commit this version was written for where one is known, else the newest.

    Returns:
        The requests and the rejected records.

    Raises:
        DataError: Unknown name or split, no file, a file that is not in the expected form, or one without a usable
            record.
    """
    editset, chosen = find_split(name, split, hub=hub)
    if limit is not None and limit < 1:
        raise DataError(refusal(f"limit={limit}", "1 or more, or None for all records", "Raise the limit."))
    found = _locate(editset, chosen, path, hub, revision)
    return _parse_all(editset, found, limit)


def cases(requests: Sequence[EditRequest]) -> list[list[EditRequest]]:
    """Group requests that came from one record, such as the facts of an MQuAKE chain.

    Args:
        requests: Requests with `source`.

    Returns:
        One list per record, in order; a request without source stands alone.
    """
    groups: dict[object, list[EditRequest]] = {}
    for i, request in enumerate(requests):
        groups.setdefault(request.source.partition("/")[0] if request.source else i, []).append(request)
    return list(groups.values())


@dataclass(frozen=True)
class _Found:
    """Records with where they come from."""

    path: Path
    records: Sequence[Record | Broken]
    sha256: str
    split: str
    origin: str
    revision: str | None = None


def _locate(editset: Editset, split: str, path: str | Path | None, hub: bool, revision: str | None) -> _Found:
    if revision is not None and not hub:
        raise DataError(refusal(f"revision={revision!r} without hub", "a revision with hub=True", "Pass hub=True."))
    if path is not None:
        if hub:
            raise DataError(refusal("a path together with hub=True", "one source", "Leave one of them out."))
        return _read(Path(path).expanduser(), "file", "file")
    if hub:
        return _from_hub(editset, split, revision)
    folder = data_folder()
    if folder is not None:
        # no fall-back from here to the sample: a score on 15 records must not pass for one on the real set
        return _read(_existing(folder / _relative(editset, split), editset, split), split, "data folder")
    samples = samples_folder()
    file = samples / editset.sample if samples else Path(editset.sample)
    if split != editset.default_split:
        got = f"the split {split!r} of {editset.name!r} without {DATA_VARIABLE}"
        raise DataError(refusal(got, "the default split, for which a sample is here", _remedies(editset, split)))
    return _read(_existing(file, editset, split), "sample", "sample")


def _relative(editset: Editset, split: str) -> str:
    if split not in editset.files:
        remedy = f"Choose one of {', '.join(editset.files)}, or pass hub=True."
        raise DataError(refusal(f"split {split!r} of {editset.name!r}", "one that is a local file", remedy))
    return editset.files[split]


def _read(file: Path, split: str, origin: str) -> _Found:
    records, digest = read_records(file)
    return _Found(file, records, digest, split, origin)


def _from_hub(editset: Editset, split: str, revision: str | None) -> _Found:
    source = editset.hub
    if source is None or split not in source.files:
        known = ", ".join(source.files) if source else "none"
        got = f"hub=True for {editset.name}:{split}"
        raise DataError(refusal(got, f"a split with a known place on the Hub ({known})", "Pass path=... instead."))
    commit = resolve_revision(source, revision)
    if source.files[split] is None:
        rows, digest = fetch_table(source, split, commit)
        return _Found(Path(source.repo) / split, rows, digest, split, "hub", commit)
    return _replace_commit(_read(fetch_file(source, split, commit), split, "hub"), source, commit)


def _replace_commit(found: _Found, source: HubSource, commit: str) -> _Found:
    return replace(found, path=Path(source.repo) / str(source.files[found.split]), revision=commit)


def _existing(file: Path, editset: Editset, split: str) -> Path:
    if not file.is_file():
        message = refusal(f"no file {file}", f"the records of {editset.name!r}", _remedies(editset, split))
        raise DataError(message)
    return file


def _remedies(editset: Editset, split: str) -> str:
    place = editset.files.get(split, next(iter(editset.files.values())))
    return f"Pass path=... or let {DATA_VARIABLE} name a folder that holds {place}."


def _parse_all(editset: Editset, found: _Found, limit: int | None) -> LoadedEditset:
    requests: list[EditRequest] = []
    rejected: list[RejectedRecord] = []
    notes: list[RecordNote] = []
    records = found.records[:limit]
    for index, record in enumerate(records):
        try:
            made = _read_record(editset, record, index)
        except (DataError, RequestError) as error:
            rejected.append(RejectedRecord(index, str(error)))
            continue
        requests += made
        if any(request.subject is None for request in made):
            notes.append(RecordNote(index, f"record {index}: loaded without subject, which is not in the prompt"))
    if not requests:
        raise DataError(_nothing_usable(editset, found.path, rejected))
    return LoadedEditset(
        name=editset.name,
        path=found.path,
        sha256=found.sha256,
        requests=tuple(requests),
        rejected=tuple(rejected),
        notes=tuple(notes),
        split=found.split,
        origin=found.origin,
        n_records=len(records),
        revision=found.revision,
    )


def _read_record(editset: Editset, record: Record | Broken, index: int) -> list[EditRequest]:
    """Requests of one record, with their source."""
    where = f"record {index}"
    if isinstance(record, Broken):
        raise DataError(f"{where}: {record.reason}")
    try:
        parsed = editset.parse(record)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    number = next((record[key] for key in editset.id_keys if key in record), index)
    several = isinstance(parsed, tuple)
    made = []
    for i, request in enumerate(parsed if isinstance(parsed, tuple) else (parsed,)):
        check_request(request, where)
        made.append(replace(request, source=f"{editset.name}:{number}" + (f"/{i}" if several else "")))
    return made


def _nothing_usable(editset: Editset, file: Path, rejected: Sequence[RejectedRecord]) -> str:
    got = f"{len(rejected)} records of which none can be used ({rejected[0].reason})" if rejected else "an empty array"
    remedy = "Check that the file belongs to this edit set."
    return f"{file}: {refusal(got, f'records in the schema of {editset.name!r}', remedy)}"
