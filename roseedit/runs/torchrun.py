"""Under `torchrun`: each rank does the units of its own share, rank 0 opens the directory and writes the table.

All ranks must see the directory, so it has to lie on a disk that their machines share.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from roseedit.editor import Editor
from roseedit.errors import RoseEditError, RunError, refusal
from roseedit.hparams import Hparams
from roseedit.progress import bar
from roseedit.runs.files import Layout
from roseedit.runs.finish import write_shard
from roseedit.runs.local import do_units, finish, threads
from roseedit.runs.options import Data, RunOptions
from roseedit.runs.start import check_base, facts_of, reopened, start
from roseedit.runs.units import own_units

WAIT = timedelta(days=7)  # ranks finish when they finish; one that dies is noticed by torchrun itself


def evaluate(hparams: Hparams, data: Data, layout: Layout, options: RunOptions) -> bool:
    """As `run.evaluate`, on one rank of many.

    Args:
        hparams: Settings, prepared.
        data: The edits.
        layout: The run's directory.
        options: With `unit` and `threads` set.

    Returns:
        True on every rank when the run is complete.

    Raises:
        RunError: Not started by torchrun, or the directory belongs to another configuration.
    """
    with _group() as (rank, world), threads(options.threads or 1):
        editor = Editor.from_hparams(_placed(hparams), show_progress=False)
        _on_first(rank, lambda: start(hparams, data, layout, options, facts_of(editor, data.requests)))
        run = reopened(layout)
        check_base(run, editor)
        units = own_units(len(run.units), rank, world)
        todo = sum(len(run.units[n]) for n in units)
        done = sum(len(run.units[n]) for n in units if run.layout.unit(n).exists())
        with bar(todo, f"evaluating, rank {rank}", options.show_progress and rank == 0, done) as progress:
            do_units(run, editor, options, units, progress)
        write_shard(layout, units, rank, world)
        dist.barrier()
        complete = finish(run, 0, world) if rank == 0 else True
        dist.barrier()
        return complete


def _on_first(rank: int, work: Callable[[], object]) -> None:
    """Let rank 0 do something; its refusal reaches all ranks, so that none is left waiting."""
    said: list[str | None] = [None]
    if rank == 0:
        try:
            work()
        except RoseEditError as error:
            said[0] = str(error)
    dist.broadcast_object_list(said, src=0)
    if said[0] is not None:
        raise RunError(said[0])


def _placed(hparams: Hparams) -> Hparams:
    """One GPU per rank, where there are GPUs."""
    if hparams.device != "auto" or not torch.cuda.is_available():
        return hparams
    return hparams.replaced(device=f"cuda:{os.environ.get('LOCAL_RANK', '0')}")


@contextmanager
def _group() -> Iterator[tuple[int, int]]:
    """The process group, over loopback when all ranks are on this machine."""
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR") if name not in os.environ]
    if missing:
        message = refusal(
            f"--launcher torchrun without {', '.join(missing)} in the environment",
            "a process started by torchrun",
            "Start it as: torchrun --nproc-per-node 2 -m roseedit.cli evaluate --launcher torchrun ...",
        )
        raise RunError(message)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if os.environ.get("LOCAL_WORLD_SIZE") == str(world):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", timeout=WAIT)
    try:
        yield rank, world
    finally:
        dist.destroy_process_group()
