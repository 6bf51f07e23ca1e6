"""`evaluate`: run, or go on with a run, until its table is there."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from roseedit.editor import Editor
from roseedit.errors import RunError, refusal
from roseedit.hparams import Hparams
from roseedit.making import check_method
from roseedit.progress import bar
from roseedit.runs import local
from roseedit.runs.ability import write_ability
from roseedit.runs.chain import ChainRunner
from roseedit.runs.files import Layout
from roseedit.runs.finish import missing_units, write_final, write_shard
from roseedit.runs.options import Data, RunOptions, adopted
from roseedit.runs.start import Run, facts_of, prepared, start


def evaluate(
    hparams: Hparams, data: Data, out: str | Path, options: RunOptions | None = None, *, seed: int | None = None
) -> bool:
    """Make the edits of a set, measure them, and write what came out into a directory.

    The same call on the same directory goes on where an earlier one stopped, and ends with the same bytes.

    Args:
        hparams: Settings of an editing method, with the model.
        data: The edits.
        out: The directory; new, empty, or that of this very run.
        options: How to run.
        seed: Replaces the settings' own seed.

    Returns:
        True when the run is complete and its table written; False when units of other shards are still missing.

    Raises:
        RunError: Options that do not go together, or a directory of another configuration.
        RequestError: Joint or sequential edits by a method that changes no weights.
        ModelError: The model cannot be loaded.
    """
    layout = Layout(out)
    options = options or RunOptions()
    options.check()
    options.check_data()
    options = adopted(options, layout)
    settings = prepared(hparams, seed, options.unit or 1)
    if options.mode != "independent":
        check_method(settings)
    if options.launcher == "ray":
        from roseedit.runs import rayed

        return rayed.evaluate(settings, data, layout, options)
    if options.launcher == "torchrun":
        from roseedit.runs import torchrun

        return torchrun.evaluate(settings, data, layout, options)
    with local.threads(options.threads or 1):
        editor = Editor.from_hparams(settings, show_progress=False)
        run = start(settings, data, layout, options, facts_of(editor, data.requests))
        if options.mode != "independent":
            return _chain(run, editor, options)
        return local.work(run, editor, options)


def _chain(run: Run, editor: Editor, options: RunOptions) -> bool:
    layout = run.layout
    with alone(layout):
        runner = ChainRunner(editor, run, options.cache_folder)
        unmeasured = bool(options.ability) and not layout.ability.exists()
        if unmeasured or missing_units(layout, len(run.units)) or not runner.complete:
            with bar(len(run.items), "editing", options.show_progress) as progress:
                runner.run(progress)
            if unmeasured:
                tasks, limit = options.ability, options.ability_limit
                write_ability(editor.loaded, layout, tasks, limit, show_progress=options.show_progress)
        write_shard(layout, range(len(run.units)), 0, 1)
        write_final(layout, run.identity, run.keys, len(run.units))
    return True


@contextmanager
def alone(layout: Layout) -> Iterator[None]:
    """One process at a time; the system lets go of the lock however the process ends.

    Args:
        layout: The directory, which is there.

    Yields:
        Nothing.

    Raises:
        RunError: Another process works on it.
    """
    with layout.lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            message = refusal(f"the directory {str(layout.root)!r}, which another process works on", "one", "Wait.")
            raise RunError(message) from error
        yield
