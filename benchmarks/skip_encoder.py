"""HadSkip for encoder classifiers against exits and fixed sets of equal mean cost, all from one fine-tuned model.

    ROSEEDIT_DATA=... python benchmarks/skip_encoder.py --out runs/skip-encoder.jsonl

One line of JSON per finished run is appended to --out; given again, the command goes on with what is missing. Every
method gets the same steps, step size and distillation from the fine-tuned full model; thresholds are calibrated on a
part of the training data that was set aside. Accuracy is that on the development data, which nothing is tuned on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import machine
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from roseedit.hadskip.encoder.compare import score, speed_up
from roseedit.hadskip.encoder.data import TASKS, Encoded, read_task
from roseedit.hadskip.encoder.exits import RULES, calibrate_exit, exit_logits
from roseedit.hadskip.encoder.fit import STATIC, ClassifierFit
from roseedit.hadskip.encoder.gates import GateRouter
from roseedit.hadskip.encoder.measure import judge
from roseedit.hadskip.encoder.settings import EncoderHparams
from roseedit.hparams import as_mapping, from_mapping, read_yaml

METHODS = ("full", "gates", *STATIC, *RULES)
OF_FULL = ("model", "seed", "max_tokens", "held_out", "pooling", "dropout", "rows", "epochs", "lr", "weight_decay")
Line = dict[str, Any]


def key_of(line: Line) -> tuple[Any, ...]:
    return tuple(line[name] for name in ("task", "seed", "budget", "method"))


def finished(path: Path) -> list[Line]:
    return [json.loads(text) for text in path.read_text().splitlines()] if path.is_file() else []


def line_of(method: str, right: Sequence[float], cost: float, **more: Any) -> Line:
    figures = score(method, right, cost)
    kept = {"accuracy": figures.accuracy, "low": figures.low, "high": figures.high, "n": figures.n, "cost": cost}
    return {"method": method, **kept, **more, "right": [round(r, 4) for r in right]}


def run_method(fit: ClassifierFit, method: str, dev: Encoded, timed: bool) -> list[Line]:
    """Lines of one training; both exit rules come from the same one."""
    if method in RULES:
        student, exits = fit.fit_exits()
        aside, said = exit_logits(student, exits, fit.held_out), exit_logits(student, exits, dev)
        rules = [calibrate_exit(rule, aside, fit.settings.budget) for rule in RULES]
        return [line_of(r.rule, *r.judged(said, dev.labels), thresholds=r.thresholds, share=r.share) for r in rules]
    if method == "gates":
        gated = fit.fit_gates()
        router = GateRouter(gated.gates)
        found = judge(gated.classifier, dev, router)
        speed = speed_up(fit.full, gated.classifier, router, dev) if timed else None
        depths = found.run.sum(1).long().bincount().tolist()
        more = {"calibrated": gated.calibrated_cost, "layers": found.run.mean(0).tolist(), "depths": depths}
        return [line_of(method, found.correct(dev.labels), found.cost, speed_up=speed, **more)]
    if method == "full":
        found = judge(fit.full, dev)
        return [line_of(method, found.correct(dev.labels), found.cost)]
    student, fixed = fit.fit_static(method)
    found = judge(student, dev, fixed)
    return [line_of(method, found.correct(dev.labels), found.cost, layers=sorted(fixed.layers))]


def finetune_once(fit: ClassifierFit, path: Path) -> None:
    """Fine-tune, or take the weights that an earlier call with the same settings left."""
    whole = as_mapping(fit.settings)
    wanted = {"settings": json.dumps({name: whole[name] for name in OF_FULL})}
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        with safe_open(path, "pt") as found:
            same = found.metadata() == wanted
        if same:
            fit.full.load_state_dict(load_file(path))
            return
    fit.finetune()
    save_file(fit.full.state_dict(), path, wanted)


def run_seed(
    settings: EncoderHparams, task: str, methods: Sequence[str], out: Path, *, timed: bool, show: bool
) -> None:
    """Whatever is missing of one task and seed."""
    names = {"task": task, "seed": settings.seed, "budget": settings.budget}
    done = {key_of(line) for line in finished(out)}
    missing = [m for m in methods if key_of({**names, "method": m}) not in done]
    if not missing:
        return
    train, dev = read_task(task)
    fit = ClassifierFit(settings, train, show=show)
    data = fit.encode(dev)
    finetune_once(fit, out.with_suffix(".full") / f"{task}-{settings.seed}.safetensors")
    while missing:
        start = time.perf_counter()
        lines = run_method(fit, missing[0], data, timed)
        seconds = round(time.perf_counter() - start, 1)
        with out.open("a") as file:
            for line in lines:
                record = {**names, **line, "seconds": seconds, "settings": as_mapping(settings), "machine": machine()}
                file.write(json.dumps(record) + "\n")
                print(f"{task} seed {settings.seed} {line['method']}: {line['accuracy']:.4f} at {line['cost']:.3f}")
        ended = {line["method"] for line in lines}
        missing = [m for m in missing if m not in ended]


def table(lines: Sequence[Line], tasks: Sequence[str], budgets: Sequence[float]) -> None:
    """Means over seeds; the interval is the bootstrap over inputs of the mean over seeds."""
    print("| task | budget | method | accuracy | 95 % | less than full | mean cost | seeds | n |")
    print("| --- | ---: | --- | ---: | --- | ---: | ---: | --- | ---: |")
    for task, budget in ((t, b) for t in tasks for b in budgets):
        own = [line for line in lines if line["task"] == task and line["budget"] == budget]
        full = {line["seed"]: line["accuracy"] for line in own if line["method"] == "full"}
        for method in METHODS:
            mine = sorted((line for line in own if line["method"] == method), key=lambda line: line["seed"])
            if not mine:
                continue
            by_input = [statistics.fmean(r) for r in zip(*(line["right"] for line in mine), strict=True)]
            cost = statistics.fmean(line["cost"] for line in mine)
            found, each = score(method, by_input, cost), " ".join(f"{line['accuracy']:.3f}" for line in mine)
            gaps = [full[line["seed"]] - line["accuracy"] for line in mine if line["seed"] in full]
            less = f"{100 * statistics.fmean(gaps):+.1f}" if gaps else ""
            interval = f"{found.low:.3f} - {found.high:.3f}"
            cells = (task, budget, method, f"{found.accuracy:.3f}", interval, less, f"{cost:.3f}", each, found.n)
            print("| " + " | ".join(map(str, cells)) + " |")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hparams", type=Path, default=Path("hparams/HadSkipEncoder/minilm-l6.yaml"))
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.5])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--speed", action="store_true", help="time the gates too")
    parser.add_argument("--show", action="store_true", help="draw progress bars")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    base = from_mapping(EncoderHparams, read_yaml(args.hparams), str(args.hparams))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for task, budget in ((t, b) for t in args.tasks for b in args.budgets):
        for seed in args.seeds:
            settings = base.replaced(seed=seed, budget=budget)
            run_seed(settings, task, args.methods, args.out, timed=args.speed, show=args.show)
    table(finished(args.out), args.tasks, args.budgets)


if __name__ == "__main__":
    main()
