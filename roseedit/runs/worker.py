"""`python -m roseedit.runs.worker DIR --shard i/n`: a helper process that does one share of an open run's units.

It needs nothing but the run's directory. Its standard input is a pipe from the process that started it; when that
closes, the starter is gone, and the helper goes too.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from pathlib import Path

from roseedit.editor import Editor
from roseedit.errors import RoseEditError
from roseedit.runs.files import Layout
from roseedit.runs.local import do_units, threads
from roseedit.runs.options import RunOptions
from roseedit.runs.start import check_base, reopened
from roseedit.runs.units import own_units


def main() -> None:
    """Entry point; a refusal is one line and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("--cache", type=Path)
    args = parser.parse_args()
    index, count = (int(part) for part in args.shard.split("/"))
    threading.Thread(target=_leave_with_the_starter, daemon=True).start()
    try:
        work(args.folder, index, count, args.cache)
    except RoseEditError as error:
        sys.stderr.write(f"error: worker {index} of {count}: {' '.join(str(error).split())}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def work(folder: Path, index: int, count: int, cache: Path | None) -> None:
    """Do one share of the units.

    Args:
        folder: The run's directory.
        index: Which share.
        count: How many there are.
        cache: Folder of base scores.
    """
    run = reopened(Layout(folder))
    with threads(int(run.identity["plan"]["threads"])):
        editor = Editor.from_hparams(run.hparams, show_progress=False)
        check_base(run, editor)
        units = own_units(len(run.units), index, count)
        do_units(run, editor, RunOptions(cache=cache), units, lambda _edits: None)


def _leave_with_the_starter() -> None:
    while os.read(0, 1):  # the raw descriptor: a buffered read would hold a lock that the interpreter's end needs
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
