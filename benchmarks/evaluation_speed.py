"""Probes measured per second: many edits in one batch, each row on its own edit, against one prompt at a time.

    python benchmarks/evaluation_speed.py --edits 64 --out runs/evaluation_speed.json

Both ways read the same things off the model (generated answer, teacher-forced scores, next-token distribution). One
at a time is what a loop over edits does: the edit is put on the weights, each of its prompts is asked alone, the edit
is taken off. It is timed on an even sample of the probes (`--singles`), in rounds that alternate with the batched
way.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from common import machine, write

from roseedit import EditRequest, load_editset, load_model
from roseedit.edits.bank import bank_of
from roseedit.edits.delta import Delta
from roseedit.evaluation.looks import Look, look, run_questions
from roseedit.evaluation.table import Question
from roseedit.hparams import read_yaml
from roseedit.methods import find_method, read_hparams
from roseedit.models.load import LoadedModel


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hparams", default="hparams/RoseLoRA/smollm2-135m.yaml")
    parser.add_argument("--data", default="counterfact")
    parser.add_argument("--edits", type=int, default=64)
    parser.add_argument("--singles", type=int, default=96, help="probes asked one at a time per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="train the edits for fewer steps; they only have to be there")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    requests = list(load_editset(args.data, limit=args.edits).requests)
    hparams = read_hparams(read_yaml(args.hparams), args.hparams)
    if args.steps:
        hparams = hparams.replaced(steps=args.steps)
    loaded = load_model(hparams.model)
    made = find_method(hparams.method).fit(loaded, requests, hparams, joint=False)
    result = compare(loaded, requests, [m.delta for m in made], args.singles, args.rounds)
    print(f"\n{machine()}\n\n| way | probes per second | CPU s per probe |\n| --- | ---: | ---: |")
    for way in ("batched", "one at a time"):
        print(f"| {way} | {median(result[way]['per_s']):.2f} | {median(result[way]['cpu_s']):.4f} |")
    print(f"\nfaster by (wall): x {result['ratio']:.1f}; by CPU time: x {result['cpu_ratio']:.1f}")
    print(f"same generated answers in both ways: {result['same']:.1%}")
    write(args.out, {**result, "args": vars(args)})


def compare(
    loaded: LoadedModel, requests: Sequence[EditRequest], deltas: Sequence[Delta], singles: int, rounds: int
) -> dict:
    """Time both ways, in turn."""
    asked = run_questions(requests)
    sample = list(range(0, len(asked), max(1, len(asked) // singles)))
    bank = bank_of(loaded, deltas)
    look(loaded, asked[:4])  # libraries and allocator
    times: dict = {name: {"per_s": [], "cpu_s": []} for name in ("batched", "one at a time")}
    for _ in range(rounds):
        together = timed(times["batched"], len(asked), lambda: look(loaded, asked, edits=bank, own_edit=True))
        alone = timed(times["one at a time"], len(sample), lambda: one_by_one(loaded, asked, sample, deltas))
    same = sum(together[i].said.text == a.said.text for i, a in zip(sample, alone, strict=True)) / len(sample)
    ratio = median(b / s for b, s in zip(times["batched"]["per_s"], times["one at a time"]["per_s"], strict=True))
    cpu = median(s / b for b, s in zip(times["batched"]["cpu_s"], times["one at a time"]["cpu_s"], strict=True))
    counts = {"probes": len(asked), "sampled": len(sample), "edits": len(requests)}
    return {**times, "ratio": ratio, "cpu_ratio": cpu, "same": same, **counts, "threads": torch.get_num_threads()}


def one_by_one(
    loaded: LoadedModel, asked: Sequence[Question], sample: Sequence[int], deltas: Sequence[Delta]
) -> list[Look]:
    """Each sampled probe alone, on weights that carry its edit."""
    out = []
    live = -1
    for i in sample:
        if asked[i].request != live:
            if live >= 0:
                deltas[live].revert(loaded.model)
            live = asked[i].request
            deltas[live].apply(loaded.model)
        out += look(loaded, [asked[i]])
    deltas[live].revert(loaded.model)
    return out


def timed(into: dict, probes: int, work) -> list[Look]:
    """Book probes per second and CPU seconds per probe."""
    cpu, started = time.process_time(), time.perf_counter()
    found = work()
    into["per_s"].append(probes / (time.perf_counter() - started))
    into["cpu_s"].append((time.process_time() - cpu) / probes)
    return found


if __name__ == "__main__":
    main()
