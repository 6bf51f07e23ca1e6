"""Evaluate a method over a whole edit set from Python, compare it with another setting, and write the report page.

    python examples/batch_evaluate.py --data counterfact --limit 8 --out runs/example

Stop it anywhere and start it again: it goes on. Without ROSEEDIT_DATA the repository's own sample stands in for the
set, and its name says so in the table. The same from the shell: `roseedit evaluate`, `roseedit compare`, `roseedit
report`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from roseedit import load_editset
from roseedit.evaluation.report.compare import as_markdown
from roseedit.evaluation.report.page import page
from roseedit.hparams import read_yaml
from roseedit.methods import read_hparams
from roseedit.runs import RunOptions, data_of, evaluate, read_run

HPARAMS = Path("hparams/RoseLoRA/smollm2-135m.yaml")


def main(data: str | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hparams", type=Path, nargs="+", default=[HPARAMS], help="one run per file")
    parser.add_argument("--data", default=data or "counterfact")
    parser.add_argument("--limit", type=int, default=8)
    parser.add_argument("--mode", choices=("independent", "joint", "sequential"), default="independent")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/example"))
    args = parser.parse_args()
    requests = data_of(load_editset(args.data, limit=args.limit), args.limit)
    options = RunOptions(mode=args.mode, workers=args.workers)
    folders = []
    for file in args.hparams:
        folders.append(args.out / f"{args.data.replace(':', '-')}-{args.mode}-{file.parent.name}-{file.stem}")
        evaluate(read_hparams(read_yaml(file), str(file)), requests, folders[-1], options)
    runs = [read_run(folder) for folder in folders]
    print(as_markdown(runs))
    report = args.out / f"{args.data.replace(':', '-')}-{args.mode}.html"
    report.write_text(page(runs), encoding="utf-8")
    print(f"open {report} in a browser")


if __name__ == "__main__":
    main()
