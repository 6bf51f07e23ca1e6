"""A toy of a run: settings, a few edits, and how to start it here or in a process of its own."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roseedit.methods import read_hparams
from roseedit.requests import EditRequest, Probe
from roseedit.runs import Data, RunOptions, evaluate
from roseedit.runs.rayed import RemoteWorker
from roseedit.runs.work import Done

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("Oslo", "Bergen", "Cork", "Turin", "Lyon", "Ghent", "Delft", "Porto", "Basel", "Graz", "Malmo", "Split")
SETTINGS = {
    "layers": [2, 3],
    "rank": 2,
    "keep": 0.3,
    "lr": 0.05,
    "steps": 6,
    "prune_start": 1,
    "prune_end": 4,
    "anchor_subjects": 1,
    "anchor_relations": 1,
    "anchor_mutations": 0,
    "anchor_frames": 0,
    "rewrites": 0,
    "after_text": 0,
    "train_dtype": "weights",
}


def requests_of(n: int) -> tuple[EditRequest, ...]:
    """Edits with every kind of probe."""
    out = []
    for i in range(n):
        place = PLACES[i % len(PLACES)] + str(i // len(PLACES) or "")
        out.append(
            EditRequest(
                f"The Tower of {place} is in",
                "Rome",
                subject=place,
                target_true="Paris",
                rephrase=(f"{place} has a Tower in",),
                locality=(Probe("neighborhood", f"{place} lies in", (("the city",),)), Probe("near", "Paris is")),
                portability=(Probe("hop", f"The city of {place} is", (("Rome", "Roma"),)),),
                source=f"toy:{i}",
            )
        )
    return tuple(out)


def data_of(n: int) -> Data:
    """The same as `evaluate` takes them."""
    return Data("toy", "0" * 64, requests_of(n), ("toy:99: no subject",), notes=("record 3: a probe | left out",))


@dataclass(frozen=True)
class Toy:
    """What a test of runs starts from.

    Attributes:
        model: Folder of the model.
        cache: Folder of base scores.
        settings: Of the method.
    """

    model: Path
    cache: Path
    settings: dict[str, Any]

    def run(self, out: Path, n: int = 8, *, cache: Path | None = None, seed: int | None = None, **options: Any) -> bool:
        """`evaluate` on this model."""
        own = {"unit": 3, "threads": 1, "show_progress": False, "cache": cache or self.cache, **options}
        return evaluate(read_hparams(self.settings), data_of(n), out, RunOptions(**own), seed=seed)

    def command(self, out: Path, n: int, *extra: str) -> list[str]:
        """The same as a process, for tests that kill it."""
        script = [sys.executable, str(ROOT / "tests" / "runs" / "toy_run.py")]
        return [*script, str(self.model), str(self.cache), str(out), str(n), *extra]


def environment(**changes: str) -> dict[str, str]:
    """For processes of these tests."""
    own = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'runs'}", "OMP_NUM_THREADS": "1", **changes}
    return {**os.environ, **own, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


class SlowWorker(RemoteWorker):
    """A Ray worker that takes its time and leaves a mark when it begins, so that a test can kill it in the middle."""

    def do(self, unit: tuple[int, ...]) -> Done:
        busy, latest = Path(os.environ["ROSEEDIT_TEST_BUSY"]), time.monotonic() + 120
        (busy / str(os.getpid())).touch()
        while len(list(busy.iterdir())) < 2 and time.monotonic() < latest:  # on a busy machine one starts much later
            time.sleep(0.05)
        time.sleep(0.7)
        return super().do(unit)
