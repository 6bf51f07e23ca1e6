"""What each part of a HadSkip fit is worth: homotopy off, other starts of the gates, other healing.

    python benchmarks/skip_ablation.py --budget 0.75 --sequences 64 --work runs/skip --out runs/skip-ablation.json

Every variant is a fit of its own with the same number of steps; all share the folder for unfinished work, so a stopped
run goes on. Figures are those of `roseedit skip bench` on the test part, intervals by bootstrap over sequences.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from common import write

from roseedit.hadskip.bench import Bench
from roseedit.hadskip.fit import Fit
from roseedit.hadskip.settings import HadSkipHparams
from roseedit.hparams import from_mapping, read_yaml
from roseedit.models.load import load_model

VARIANTS: dict[str, dict[str, object]] = {
    "as shipped": {},
    "homotopy off": {"homotopy": False},
    "init I0": {"init": "I0"},
    "init I1": {"init": "I1"},
    "init I2": {"init": "I2"},
    "init random": {"init": "random"},
    "gates not trained": {"gate_steps": 0},
    "healing none": {"healing": "none"},
    "healing scale": {"healing": "scale"},
    "healing closed form only": {"healing_steps": 0},
}


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hparams", type=Path, default=Path("hparams/HadSkip/smollm2-135m.yaml"))
    parser.add_argument("--budget", type=float, default=0.75)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--text", default="wikitext2")
    parser.add_argument("--only", nargs="*", choices=list(VARIANTS), help="some of the variants")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    base = from_mapping(HadSkipHparams, read_yaml(args.hparams), str(args.hparams)).replaced(budget=args.budget)
    loaded = load_model(base.model)
    lines = []
    print("| variant | cost | perplexity x | 95 % | KL | agreement | minutes |\n|---|---|---|---|---|---|---|")
    for name in args.only or VARIANTS:
        settings, started = base.replaced(**VARIANTS[name]), time.perf_counter()
        profiles = Fit(loaded, settings, work=args.work, show=True).run()
        minutes = (time.perf_counter() - started) / 60
        bench = Bench(loaded, profiles, sequences=args.sequences, text=args.text, work=args.work)
        (line,) = bench.run([], speed=False)["lines"]
        lines.append({**line, "variant": name, "minutes": minutes})
        ratio = line["perplexity_ratio"]
        print(
            f"| {name} | {line['cost']:.3f} | {ratio['mean']:.3f} | {ratio['low']:.3f} - {ratio['high']:.3f} "
            f"| {line['kl']['mean']:.3f} | {line['agreement']['mean']:.3f} | {minutes:.1f} |"
        )
    write(args.out, {"lines": lines, "args": vars(args)})


if __name__ == "__main__":
    main()
