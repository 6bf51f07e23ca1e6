"""How a run is asked for, and what of it may go together."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from roseedit.editsets import LoadedEditset
from roseedit.errors import RunError, refusal
from roseedit.requests import EditRequest
from roseedit.runs.files import Layout, read_json

Mode = Literal["independent", "joint", "sequential"]
Launcher = Literal["local", "torchrun", "ray"]
MODES = ("independent", "joint", "sequential")
LAUNCHERS = ("local", "torchrun", "ray")
UNIT = 32
CHECKPOINTS = 4


@dataclass(frozen=True)
class Data:
    """The edits of a run and where they come from.

    Attributes:
        name: What to call the set.
        sha256: Checksum of the file they were read from.
        requests: The edits, in the file's order.
        rejected: Reasons why further records are not among them.
        limit: How many records of the file were looked at; None for all.
        notes: What was left out of records that are among them.
    """

    name: str
    sha256: str
    requests: tuple[EditRequest, ...]
    rejected: tuple[str, ...] = ()
    limit: int | None = None
    notes: tuple[str, ...] = ()


def data_of(editset: LoadedEditset, limit: int | None = None) -> Data:
    """The edits of a loaded set.

    Args:
        editset: From `load_editset`.
        limit: What was passed to it.

    Returns:
        Data for `evaluate`.
    """
    reasons = tuple(rejected.reason for rejected in editset.rejected)
    notes = tuple(f"record {note.index}: {note.note}" for note in editset.notes)
    # a score on the sample or on a file of one's own must not pass for one on the published set
    split = "sample" if editset.origin == "sample" else editset.split
    return Data(f"{editset.name}:{split}", editset.sha256, editset.requests, reasons, limit, notes)


@dataclass(frozen=True)
class RunOptions:
    """How to run.

    Attributes:
        mode: Every edit alone on the base, all in one delta, or one after another.
        unit: Edits that are made and measured side by side; None: 32, or what the directory says.
        threads: Processor threads of every process; None: what the directory says, or an even share.
        checkpoints: Looks at all edits so far, before the end of a sequence.
        ability: Tasks of general ability, measured with all edits live.
        ability_limit: Items per task.
        launcher: Who starts the processes.
        workers: Processes (local), actors (ray).
        shard: (which, of how many); only these units are done.
        address: Of a Ray cluster; None starts one on this machine.
        cache: Folder of base scores shared by runs; None: the package's cache.
        show_progress: Draw a progress bar on a terminal.
    """

    mode: Mode = "independent"
    unit: int | None = None
    threads: int | None = None
    checkpoints: int = CHECKPOINTS
    ability: tuple[str, ...] = ()
    ability_limit: int | None = None
    launcher: Launcher = "local"
    workers: int = 1
    shard: tuple[int, int] = (0, 1)
    address: str | None = None
    cache: Path | None = None
    show_progress: bool = True

    @property
    def cache_folder(self) -> Path:
        """Where base scores are kept."""
        from roseedit.models.embedded import cache_dir

        return self.cache or cache_dir() / "base-scores"

    def check(self) -> None:
        """Refuse what cannot go together, before any model work.

        Raises:
            RunError: An unknown name, a number out of range, or edits that depend on each other in several processes.
        """
        for name, value, allowed in (("mode", self.mode, MODES), ("launcher", self.launcher, LAUNCHERS)):
            if value not in allowed:
                raise RunError(refusal(f"{name} {value!r}", ", ".join(allowed), "Choose one of them."))
        for name, number, least in (("workers", self.workers, 1), ("checkpoints", self.checkpoints, 0)):
            if number < least:
                raise RunError(refusal(f"{name} {number}", f"{least} or more", "Raise it."))
        for name, size in (("unit", self.unit), ("threads", self.threads)):
            if size is not None and size < 1:
                raise RunError(refusal(f"{name} {size}", "1 or more", "Raise it."))
        if not 0 <= self.shard[0] < self.shard[1]:
            got = f"shard {self.shard[0]} of {self.shard[1]}"
            raise RunError(refusal(got, "i/n with 0 <= i < n", "The first of three is 0/3."))
        self._check_together()

    def check_data(self) -> None:
        """Refuse ability tasks that cannot be run.

        Raises:
            DataError: An unknown task, or its file or package is missing.
        """
        if self.ability:
            from roseedit.evaluation.ability.measure import check_tasks

            check_tasks(self.ability)

    def _check_together(self) -> None:
        split = self.shard[1] > 1
        if split and (self.launcher != "local" or self.workers > 1):
            message = refusal("--shard with a launcher of several processes", "one of the two", "Leave one out.")
            raise RunError(message)
        if self.mode != "independent" and (split or self.launcher != "local" or self.workers > 1):
            message = refusal(
                f"mode {self.mode} in several processes",
                "one process, for these edits build on each other",
                "Leave out --shard, --launcher and --workers, or choose --mode independent.",
            )
            raise RunError(message)
        if self.ability and self.mode == "independent":
            message = refusal(
                "--ability with independent edits, none of which stays live",
                "mode joint or sequential",
                "Choose one of these modes.",
            )
            raise RunError(message)


def adopted(options: RunOptions, layout: Layout) -> RunOptions:
    """Sizes that were left open, from the directory's own record or else by default.

    Args:
        options: What was asked for.
        layout: The run's directory.

    Returns:
        Options with `unit` and `threads` set.
    """
    plan: Mapping[str, Any] = read_json(layout.identity).get("plan", {}) if layout.identity.exists() else {}
    unit = options.unit or plan.get("unit") or UNIT
    threads = options.threads or plan.get("threads") or default_threads(options)
    return replace(options, unit=int(unit), threads=int(threads))


def default_threads(options: RunOptions) -> int:
    """An even share of this machine's processors; one where somebody else starts the processes."""
    if options.launcher != "local" or options.shard[1] > 1:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // options.workers)


def without_clashes(requests: Sequence[EditRequest]) -> dict[int, str]:
    """Requests that cannot live on one model together: of several for one prompt only the last one stays.

    Args:
        requests: Requests of a joint or sequential run.

    Returns:
        Per position of a request that has to go, why.
    """
    last: dict[str, int] = {}
    out = {}
    for i, request in enumerate(requests):
        earlier = last.get(request.prompt.strip())
        if earlier is not None:
            by = request.source or f"request {i}"
            out[earlier] = f"{requests[earlier].source or f'request {earlier}'}: {by} asks the same prompt later on"
        last[request.prompt.strip()] = i
    return out
