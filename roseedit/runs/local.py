"""Processes on this machine: one, or several that share the units out among themselves."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from roseedit.editor import Editor
from roseedit.errors import RunError, refusal
from roseedit.progress import bar
from roseedit.runs.chain import keep
from roseedit.runs.finish import missing_units, settle_shards, write_final, write_shard
from roseedit.runs.options import RunOptions
from roseedit.runs.start import Run
from roseedit.runs.units import own_units
from roseedit.runs.work import Progress, UnitWorker

POLL = 0.5


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Fix the processor threads for the length of a block; sums may round differently with another number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def work(run: Run, editor: Editor, options: RunOptions) -> bool:
    """Do the units of a shard, with helpers where several workers were asked for, and finish what can be finished.

    Args:
        run: The open run.
        editor: Of this process.
        options: How to run.

    Returns:
        True when the whole run is complete.

    Raises:
        RunError: A helper failed; what it had finished is kept.
    """
    index, count = options.shard if options.workers == 1 else (0, options.workers)
    units = own_units(len(run.units), index, count)
    helpers = _helpers(run, options) if missing_units(run.layout, len(run.units)) else []
    try:
        watched = range(len(run.units)) if helpers else units
        with bar(_edits(run, watched), "evaluating", options.show_progress, _finished(run, watched)) as progress:
            do_units(run, editor, options, units, progress)
            _wait(run, helpers, progress)
    finally:
        for helper in helpers:
            if helper.poll() is None:
                helper.terminate()
                helper.wait()
    index, count = options.shard
    return finish(run, index, count)


def do_units(run: Run, editor: Editor, options: RunOptions, units: Sequence[int], progress: Progress) -> None:
    """Do those units of a shard that are not finished.

    Args:
        run: The open run.
        editor: Of this process.
        options: How to run.
        units: The shard's units.
        progress: Called with the number of edits just done.
    """
    worker = UnitWorker(editor.loaded, run.hparams, run.items, run.identity, options.cache_folder)
    for number in units:
        path = run.layout.unit(number)
        if not path.exists():
            keep(run.layout, path, worker.do(run.units[number], progress))


def finish(run: Run, index: int, count: int) -> bool:
    """Write the rows of a finished shard and, when all units are there, the final table.

    Args:
        run: The run.
        index: Which shard.
        count: How many there are.

    Returns:
        True when the whole run is complete.
    """
    write_shard(run.layout, own_units(len(run.units), index, count), index, count)
    if missing_units(run.layout, len(run.units)):
        return False
    settle_shards(run.layout, len(run.units), count)
    write_final(run.layout, run.identity, run.keys, len(run.units))
    return True


def _edits(run: Run, units: Sequence[int]) -> int:
    return sum(len(run.units[n]) for n in units)


def _finished(run: Run, units: Sequence[int]) -> int:
    return _edits(run, [n for n in units if run.layout.unit(n).exists()])


def _helpers(run: Run, options: RunOptions) -> list[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "roseedit.runs.worker", str(run.layout.root), "--cache", str(options.cache_folder)]
    shards = [["--shard", f"{index}/{options.workers}"] for index in range(1, options.workers)]
    return [subprocess.Popen([*command, *shard], stdin=subprocess.PIPE) for shard in shards]


def _wait(run: Run, helpers: Sequence[subprocess.Popen[bytes]], progress: Progress) -> None:
    others = [own_units(len(run.units), index, len(helpers) + 1) for index in range(1, len(helpers) + 1)]
    seen = 0
    while True:
        running = [helper for helper in helpers if helper.poll() is None]
        now = sum(_finished(run, units) for units in others)
        progress(now - seen)
        seen = now
        failed = [helper.returncode for helper in helpers if helper.poll() not in (None, 0)]
        if failed:
            message = refusal(
                f"a worker that ended with code {failed[0]}",
                "code 0",
                "See its message; the same command goes on.",
            )
            raise RunError(message)
        if not running:
            return
        time.sleep(POLL)
