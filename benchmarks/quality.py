"""Quality of every method, each edit alone on the base model, in one table: RoseLoRA beside its baselines.

    python benchmarks/quality.py --out runs/quality                        # the whole table: hours on two cores
    python benchmarks/quality.py --out runs/quality --limit 8              # the same, 8 records of each set
    python benchmarks/quality.py --out runs/lr --data zsre-knowedit:50 --hparams a.yaml b.yaml c.yaml

Every row is a run of `roseedit.runs.evaluate` in a folder of its own under --out: stop it anywhere, the same command
goes on. What the unedited model says is shared by all runs. Reliability, generality and portability are generated exact
match at a natural stop; locality is token agreement with the unedited model, teacher forced; "unchanged" is its
generated answer. "all four" is the harmonic mean of reliability, generality, locality and portability with a 95 %
bootstrap interval over edits.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import figure, write

from roseedit.editsets import load_editset
from roseedit.evaluation.overall import by_edit, overall
from roseedit.hparams import Hparams, read_yaml
from roseedit.methods import read_hparams
from roseedit.runs import RunOptions, data_of, evaluate, read_run

HPARAMS = Path(__file__).resolve().parents[1] / "hparams"
# data, records, model
TASKS = (
    ("wikidata-counterfact", 300, "smollm2-135m"),
    ("wikidata-recent", 100, "smollm2-135m"),
    ("zsre-knowedit", 100, "smollm2-135m"),
    ("counterfact", 100, "smollm2-135m"),
    ("wikidata-counterfact", 100, "gemma3-270m"),
    ("wikidata-recent", 100, "gemma3-270m"),
    ("zsre-knowedit", 100, "gemma3-270m"),
    ("counterfact", 100, "gemma3-270m"),
)
METHODS = ("FT-M", "FT-L", "LoRA", "AdaLoRA")
PORTABILITY = {"generated": "portability", "forced": "portability_forced"}


@dataclass(frozen=True)
class Setting:
    """One line of the table before it is measured.

    Attributes:
        label: What to call it.
        values: Of an hparams file; the model is filled in.
    """

    label: str
    values: Mapping[str, Any]

    def hparams(self, model: str) -> Hparams:
        """For one model; layers given by number go to the same depth elsewhere."""
        values = dict(self.values)
        if values.get("model") != model and isinstance(values.get("layers"), list):
            own = values.pop("layers")
            values["depth"] = [min(own) / 29, max(own) / 29]  # the files that ship count SmolLM2-135M's 30 layers
            values["layers"] = "auto"
        return read_hparams({**values, "model": model}, self.label)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs; go on with it by the same command")
    parser.add_argument("--limit", type=int, help="at most this many records of each set")
    parser.add_argument("--data", nargs="+", help="sets, each as NAME or NAME:RECORDS; left out: the whole table's")
    parser.add_argument("--model", nargs="+", help="only these models, in the table or with --data")
    parser.add_argument("--only", nargs="+", help='only the lines of these names, as FT-M or "LoRA (EasyEdit)"')
    parser.add_argument("--hparams", nargs="+", type=Path, help="these files instead of the table's methods")
    parser.add_argument("--portability", choices=sorted(PORTABILITY), default="generated", help="the one of `all four`")
    parser.add_argument("--workers", type=int, default=1, help="processes, each on one thread")
    parser.add_argument("--unit", type=int, default=32, help="edits made side by side")
    args = parser.parse_args()
    options = RunOptions(unit=args.unit, threads=1, workers=args.workers, cache=args.out / "base-scores")
    found = []
    for name, records, model in tasks(args):
        data = data_of(load_editset(name, limit=records), records)
        lines = []
        for setting in settings(args, model):
            folder = args.out / re.sub(r"[^\w.-]+", "-", f"{name}-{records}-{model}-{setting.label}").strip("-")
            evaluate(setting.hparams(model), data, folder, options)
            lines.append(measured(setting, folder, PORTABILITY[args.portability]))
            print(f"{name} {model} {setting.label}: {lines[-1]['all four']}", flush=True)
        show(f"{name}, {model}", lines)
        plot(args.out / f"{name}-{records}-{model}.png", lines, f"{name}, {model}, n = {lines[0]['edits']}")
        found.append({"data": name, "records": records, "model": model, "lines": lines})
    write(args.out / "quality.json", {"tasks": found, "args": vars(args)})


def tasks(args: argparse.Namespace) -> list[tuple[str, int, str]]:
    """What is measured on which model."""
    chosen: list[tuple[str, int, str]] = list(TASKS)
    if args.data:
        pairs = [text.partition(":") for text in args.data]
        chosen = [(n, int(k or 100), m) for m in (args.model or ["smollm2-135m"]) for n, _, k in pairs]
    most = args.limit or max(records for _, records, _ in chosen)
    return [(n, min(k, most), m) for n, k, m in chosen if not args.model or m in args.model]


def settings(args: argparse.Namespace, model: str) -> list[Setting]:
    """The lines of one table: RoseLoRA, the published RoseLoRA, the baselines as tuned and as EasyEdit ships them."""
    if args.hparams:
        out = [Setting(_label(path), read_yaml(path)) for path in args.hparams]
    else:
        files = [(m, m, _own_file(m, model)) for m in ("RoseLoRA", *METHODS, "InContext")]
        files += [(f"{m} (EasyEdit)", m, HPARAMS / m / "easyedit_smollm2-135m.yaml") for m in METHODS]
        out = [Setting(label, read_yaml(path)) for label, _, path in files]
        out.insert(1, Setting("RoseLoRA (paper)", {"method": "RoseLoRA", "paper": True}))
    return [s for s in out if not args.only or s.label in args.only]


def _label(path: Path) -> str:
    values = read_yaml(path)
    return f"{values.get('method', 'RoseLoRA')} {path.stem}"


def _own_file(method: str, model: str) -> Path:
    path = HPARAMS / method / f"{model}.yaml"
    return path if path.exists() else HPARAMS / method / "smollm2-135m.yaml"


def measured(setting: Setting, folder: Path, portability: str) -> dict[str, Any]:
    """One line from a finished run."""
    run = read_run(folder)
    keys = [str(r["key"]) for r in run.requests]
    values = by_edit(run.rows, keys)
    four = overall([values[name] for name in ("reliability", "generality", "locality", portability)])
    density = run.rows[(run.rows["kind"] == "edit") & (run.rows["metric"] == "density")]["after"].dropna()
    line: dict[str, Any] = {"label": setting.label, "method": setting.values.get("method", "RoseLoRA")}
    line |= {name: figure([v for v in own if not math.isnan(v)]) for name, own in values.items()}
    line["all four"] = {k: round(v, 4) for k, v in vars(four).items()}
    line["density"] = statistics.median(density) if len(density) else None
    line["cpu_s_per_edit"] = run.cost.get("edit_cpu_s_per_edit")
    return line | {"edits": len(keys), "folder": str(folder)}


COLUMNS = {
    "reliability": "reliability",
    "generality": "generality",
    "locality": "locality",
    "unchanged": "unchanged",
    "portability": "portability",
    "portability_gain": "gain",
    "portability_forced": "portability, forced",
    "portability_forced_gain": "gain, forced",
    "all four": "all four",
}


def show(title: str, lines: Sequence[Mapping[str, Any]]) -> None:
    """Print one table."""
    print(f"\n### {title}, n = {lines[0]['edits']} edits, mean (95 % bootstrap interval over edits)\n")
    head = ["method", *COLUMNS.values(), "median density", "CPU s / edit"]
    print(f"| {' | '.join(head)} |\n| --- |{' ---: |' * (len(head) - 1)}")
    for line in lines:
        cells = [line["label"], *(_cell(line[name]) for name in COLUMNS)]
        cells.append("-" if line["density"] is None else f"{line['density']:.2%}")
        cells.append("-" if line["cpu_s_per_edit"] is None else f"{line['cpu_s_per_edit']:.2f}")
        print(f"| {' | '.join(cells)} |")


def _cell(f: Mapping[str, float]) -> str:
    return "-" if not f["n"] else f"{f['mean']:.2f} ({f['low']:.2f} - {f['high']:.2f})"


def plot(path: Path, lines: Sequence[Mapping[str, Any]], title: str, upright: str = "reliability") -> None:
    """One figure against locality; settings of one method are joined in order of locality."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(6, 5), layout="constrained")
    FigureCanvasAgg(drawing)
    axes = drawing.subplots()
    for method in dict.fromkeys(line["method"] for line in lines):
        own = [line for line in lines if line["method"] == method and line["locality"]["n"]]
        own.sort(key=lambda line: line["locality"]["mean"])
        names = "locality", upright
        xs, ys = ([line[name]["mean"] for line in own] for name in names)
        errors = [[[abs(line[n]["mean"] - line[n][s]) for line in own] for s in ("low", "high")] for n in names]
        axes.errorbar(xs, ys, xerr=errors[0], yerr=errors[1], marker="o", capsize=2, label=method)
    axes.set(xlabel="locality (token agreement)", ylabel=f"{upright} (generated)", title=title)
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    axes.legend()
    drawing.savefig(path, dpi=120)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
