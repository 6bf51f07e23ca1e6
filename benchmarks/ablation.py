"""What each setting of an edit is for: one thing changed at a time, and the trade-off that each method offers.

    python benchmarks/ablation.py --out runs/ablation                       # every group: hours on two cores
    python benchmarks/ablation.py --out runs/ablation --group tradeoff      # one of them
    python benchmarks/ablation.py --out runs/ablation --group anchors --skip 300 --limit 96

Every line is a resumable run under --out, as in quality.py, which see for the columns. The group `tradeoff` moves the
one knob of each method that gives up locality for the fact, and draws reliability and generality against locality.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import write
from quality import HPARAMS, Setting, measured, plot, show

from roseedit.editsets import load_editset
from roseedit.hparams import read_yaml
from roseedit.runs import RunOptions, data_of, evaluate

MODEL = "smollm2-135m"
Line = tuple[str, str, dict[str, Any]]  # label, method, what is changed in its file
OURS = "RoseLoRA"


def _each(method: str, knob: str, values: tuple[float, ...]) -> list[Line]:
    return [(f"{method}, {knob} {v:g}", method, {knob: v}) for v in values]


GROUPS: dict[str, list[Line]] = {
    "tradeoff": [
        *_each(OURS, "gate_threshold", (-0.3, 0.0, 0.2, 0.4, 0.6)),
        *_each("FT-M", "stop_loss", (0.01, 0.046, 0.2, 0.5)),
        *_each("LoRA", "stop_loss", (0.01, 0.039, 0.2, 0.5)),
    ],
    "gate": [
        *_each(OURS, "gate_ridge", (0.005, 0.015, 0.06)),
        *_each(OURS, "gate_slope", (4, 16, 32)),
        *_each(OURS, "gate_rounds", (0, 2, 6)),
    ],
    "anchors": [
        (f"{OURS}, without {name}", OURS, {f"anchor_{name}": 0})
        for name in ("subjects", "relations", "known", "mutations", "negations")
    ],
    "wordings": [
        *_each(OURS, "rewrites", (0, 8)),
        *_each(OURS, "rewordings", (0, 3)),
        (f"{OURS}, nothing in front", OURS, {"after_text": 0}),
        (f"{OURS}, no end mark", OURS, {"end_mark": False}),
    ],
    "stop": [*_each(OURS, "stop_probability", (0.5, 0.8, 0.95)), *_each(OURS, "lr", (1e-2, 4e-2, 8e-2))],
}


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs; go on with it by the same command")
    parser.add_argument("--group", nargs="+", choices=sorted(GROUPS), default=sorted(GROUPS))
    parser.add_argument("--data", default="wikidata-counterfact")
    parser.add_argument("--skip", type=int, default=300, help="records left out: those that results are reported on")
    parser.add_argument("--limit", type=int, default=200, help="records")
    args = parser.parse_args()
    editset = load_editset(args.data, limit=args.skip + args.limit)
    data = data_of(replace(editset, requests=tuple(editset.requests)[args.skip :]), args.limit)
    options = RunOptions(unit=32, threads=1, cache=args.out / "base-scores")
    found = {}
    for group in args.group:
        lines = []
        for label, method, changes in GROUPS[group]:
            setting = Setting(label, {**_file(method), **changes})
            folder = args.out / re.sub(r"[^\w.-]+", "-", f"{args.data}-{args.skip}-{args.limit}-{label}")
            evaluate(setting.hparams(MODEL), data, folder, options)
            lines.append(measured(setting, folder, "portability"))
            print(f"{label}: {lines[-1]['all four']}", flush=True)
        title = f"{group}: {args.data}, {MODEL}"
        show(title, lines)
        curves = [{**line, "method": method} for line, (_, method, _) in zip(lines, GROUPS[group], strict=True)]
        for figure in ("reliability", "generality") if group == "tradeoff" else ():
            plot(args.out / f"{group}-{figure}.png", curves, f"{title}, n = {lines[0]['edits']}", figure)
        found[group] = lines
    write(args.out / "ablation.json", {"groups": found, "args": vars(args)})


def _file(method: str) -> Mapping[str, Any]:
    return read_yaml(HPARAMS / method / f"{MODEL}.yaml")


if __name__ == "__main__":
    main()
