"""The truth gap: what token accuracy says of an edit, and what the model says.

    python benchmarks/truth_gap.py --limit 200 --out runs/truth_gap

RoseLoRA on CounterFact, with the end of the answer trained and without. Only the prompt and its rephrases are asked.
Both runs are ordinary runs of `roseedit evaluate` in folders under `--out`, so this can be stopped and started again,
and every answer can be looked at in the page it writes (`report.html`).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from common import write

from roseedit import load_editset
from roseedit.evaluation.report.page import page
from roseedit.evaluation.report.text import interval, number
from roseedit.hparams import read_yaml
from roseedit.methods import read_hparams
from roseedit.runs import RunOptions, data_of, evaluate, read_run

FIGURES = {
    "easyedit_rewrite": "token accuracy (teacher forced)",
    "reliability_starts": "generated, starts with the answer",
    "reliability": "generated, exact match at a natural stop",
    "easyedit_rephrase": "rephrase: token accuracy (teacher forced)",
    "generality_starts": "rephrase: generated, starts with the answer",
    "generality": "rephrase: generated, exact match at a natural stop",
}


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hparams", default="hparams/RoseLoRA/smollm2-135m.yaml")
    parser.add_argument("--data", default="counterfact")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    data = data_of(load_editset(args.data, limit=args.limit), args.limit)
    asked = tuple(replace(request, locality=(), portability=()) for request in data.requests)
    data = replace(data, name=f"{data.name} (prompt and rephrases)", requests=asked)
    hparams = read_hparams(read_yaml(args.hparams), args.hparams)
    folders = {f"{name} end mark": args.out / f"{name}-end-mark" for name in ("with", "without")}
    for (name, folder), end_mark in zip(folders.items(), (True, False), strict=True):
        print(f"{name}: {folder}")
        evaluate(hparams.replaced(end_mark=end_mark), data, folder, RunOptions(workers=args.workers))
    runs = {name: read_run(folder) for name, folder in folders.items()}
    figures = {name: {x["name"]: x["after"] for x in run.summary["figures"]} for name, run in runs.items()}
    print(table(figures))
    write(args.out / "truth_gap.json", {"figures": figures, "args": vars(args)})
    (args.out / "report.html").write_text(page(list(runs.values())), encoding="utf-8")


def table(figures: dict) -> str:
    """Both runs in one table."""
    lines = [f"\n| figure | {' | '.join(figures)} | n |", f"| --- |{' ---: |' * (len(figures) + 1)}"]
    for key, label in FIGURES.items():
        sides = [own[key] for own in figures.values()]
        cells = " | ".join(f"{number(s['mean'])} ({interval(s)})" for s in sides)
        lines.append(f"| {label} | {cells} | {sides[0]['n']} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
