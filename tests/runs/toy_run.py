"""A toy run as a process of its own: MODEL CACHE OUT N [LAUNCHER=local] [MODE=independent] [WORKERS=1]."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from toys import SETTINGS, data_of

from roseedit.methods import read_hparams
from roseedit.runs import RunOptions, evaluate


def main() -> None:
    model, cache, out, n, *rest = sys.argv[1:]
    launcher, mode, workers = (*rest, *("local", "independent", "1")[len(rest) :])
    names: dict[str, Any] = {"launcher": launcher, "mode": mode}
    options = RunOptions(
        unit=3, threads=1, workers=int(workers), cache=Path(cache), show_progress=False, checkpoints=2, **names
    )
    settings = read_hparams({"method": "RoseLoRA", "model": model, **SETTINGS})
    assert evaluate(settings, data_of(int(n)), out, options)


if __name__ == "__main__":
    main()
