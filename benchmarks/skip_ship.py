"""Fit the gates that ship with the package, one folder per budget.

    ROSEEDIT_DATA=... python benchmarks/skip_ship.py --work runs/skip

Fits of one rank share the sweep over the layers; a stopped run goes on. A budget whose folder is there is left alone.
The rank of the healing is the largest whose file stays below a megabyte.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from roseedit.hadskip.files import save_profiles
from roseedit.hadskip.fit import Fit
from roseedit.hadskip.settings import HadSkipHparams
from roseedit.hadskip.shipped import ROOT
from roseedit.hparams import from_mapping, read_yaml
from roseedit.models.load import load_model

RANKS = {0.85: 48, 0.75: 48, 0.6: 36, 0.5: 29}


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hparams", type=Path, default=Path("hparams/HadSkip/smollm2-135m.yaml"))
    parser.add_argument("--budgets", type=float, nargs="*", default=[0.75, 0.5, 0.85, 0.6])
    parser.add_argument("--work", type=Path, required=True, help="folder for unfinished fits")
    parser.add_argument("--into", type=Path, default=ROOT)
    args = parser.parse_args()
    base = from_mapping(HadSkipHparams, read_yaml(args.hparams), str(args.hparams))
    loaded = load_model(base.model)
    for budget in args.budgets:
        folder = args.into / f"{Path(base.model).name.casefold()}-{budget:g}"
        if folder.exists():
            print(f"{folder}: there already")
            continue
        started, settings = time.perf_counter(), base.replaced(budget=budget, rank=RANKS.get(budget, base.rank))
        save_profiles(Fit(loaded, settings, work=args.work, show=True).run(), folder)
        size = sum(p.stat().st_size for p in folder.iterdir())
        print(f"{folder}: {(time.perf_counter() - started) / 60:.1f} minutes, {size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
