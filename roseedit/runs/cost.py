"""Time and memory of a run. They differ at every start, so they stand apart from rows, summary and table."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from roseedit.runs.files import Layout, as_json, read_json, write_atomic

SUMS = ("edits", "probes", "base_s", "edit_s", "score_s", "edit_cpu_s")


class Meter:
    """Takes the time of one piece of work.

    Args:
        edits: Edits in it.
        probes: Questions asked in it, before and after counted once.
    """

    def __init__(self, edits: int, probes: int) -> None:
        self._figures: dict[str, Any] = {"edits": edits, "probes": probes, "base_s": 0.0, "edit_s": 0.0, "score_s": 0.0}
        self._figures["edit_cpu_s"] = 0.0

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Add the seconds of a block to `name`; of making edits also the processor seconds of all threads."""
        started, cpu = time.perf_counter(), time.process_time()
        yield
        self._figures[name] += time.perf_counter() - started
        if name == "edit_s":
            self._figures["edit_cpu_s"] += time.process_time() - cpu

    def figures(self) -> dict[str, Any]:
        """Edits, probes, seconds and this process's peak memory so far."""
        return {**self._figures, "peak_memory_mib": peak_memory_mib(), "threads": _threads()}


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def peak_memory_mib() -> float:
    """Most memory that this process has held: of the GPU where it used one, else resident."""
    import resource
    import sys

    import torch

    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def write_total(layout: Layout) -> None:
    """Add up what the pieces of a run have cost.

    Args:
        layout: Its directory.
    """
    write_atomic(layout.cost, as_json(total(sorted(layout.costs.glob("*.json")))))


def total(paths: list[Path]) -> Mapping[str, Any]:
    """Sums over pieces, seconds per edit and the largest peak."""
    pieces = [read_json(path) for path in paths]
    out: dict[str, Any] = {name: sum(piece.get(name, 0.0) for piece in pieces) for name in SUMS}
    made = sum(piece["edits"] for piece in pieces if piece["edit_s"])
    out["edit_s_per_edit"] = out["edit_s"] / made if made else None
    out["edit_cpu_s_per_edit"] = out["edit_cpu_s"] / made if made else None
    out["score_s_per_probe"] = out["score_s"] / out["probes"] if out["probes"] else None
    out["peak_memory_mib"] = max((piece["peak_memory_mib"] for piece in pieces), default=None)
    out["threads"] = max((piece["threads"] for piece in pieces), default=None)
    return out
