"""Speed of the edit engine, side by side in one run.

    python benchmarks/engine_speed.py --edits 64 --out runs/speed.json

Ways to make the same independent edits: the engine (one bank, replay of the upper layers), the same code one edit at a
time without replay, and what people write by hand, one fact at a time (plain_loops.py): PEFT LoRA (rank 8, q/v) of 25
and of 70 steps, and FT-M (one mlp.down, 25 steps at most, stop at loss 0.01). CPU seconds of the whole process are
compared. Every way makes its edits in so many parts, by turns (A B C, A B C, ...), so that a machine that drifts does
not favour one of them. What the engine finds out once about a model (ordinary text, well-known prompts) is measured by
itself and shared out over all edits: other ways write to the model, after which it is found out anew. Where there is a
GPU the edits are made there; then the wall time counts, and the share of products is one of the GPU's busy time.

The arithmetic limit is what the engine's products would take at the rate of one large product on this machine, in the
arithmetic that the engine uses: nothing that makes the same passes can be faster.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from common import machine, write
from plain_loops import ft_m_loop, lora_loop
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from roseedit import load_editset, load_model
from roseedit.hparams import read_yaml
from roseedit.models.lowp import products_are_low
from roseedit.requests import EditRequest
from roseedit.roselora.config import read_roselora
from roseedit.roselora.engine import train_independent
from roseedit.roselora.neurons.remembered import KEPT

Part = Sequence[EditRequest]
Times = dict[str, list[float]]
PRODUCTS = (
    "aten::mm",
    "aten::addmm",
    "aten::bmm",
    "aten::baddbmm",
    "aten::_scaled_dot_product",
    "mkldnn",
    "aten::linear",
)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hparams", default="hparams/RoseLoRA/smollm2-135m.yaml")
    parser.add_argument("--data", default="wikidata-counterfact")
    parser.add_argument("--edits", type=int, default=64)
    parser.add_argument("--singles", type=int, default=64, help="how many of them, evenly spread, go one at a time")
    parser.add_argument("--profiled", type=int, default=16, help="edits of the profiling pass")
    parser.add_argument("--rounds", type=int, default=2, help="parts; a bank holds 32 edits of smollm2-135m")
    parser.add_argument("--ways", nargs="+", help="only these of them, by the first letters of their names")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if not 1 <= args.rounds <= min(args.singles, args.edits):
        parser.error(f"--rounds {args.rounds}: at least 1, and every part needs an edit: at most --singles and --edits")
    requests = list(load_editset(args.data, limit=args.edits).requests)
    hparams = read_roselora(read_yaml(args.hparams), args.hparams)
    loaded = load_model(hparams.model)
    alone = hparams.replaced(edits_per_bank=1, replay=False)
    singles = requests[:: max(1, len(requests) // args.singles)][: args.singles]
    ways: dict[str, tuple[Callable[[Part], Any], Part]] = {
        "engine": (lambda part: train_independent(loaded, part, hparams), requests),
        "one at a time, no replay": (lambda part: train_independent(loaded, part, alone), singles),
        "PEFT LoRA loop, 25 steps": (lambda part: lora_loop(loaded, part, 25), singles),
        "PEFT LoRA loop, 70 steps": (lambda part: lora_loop(loaded, part, 70), singles),
        "FT-M loop": (lambda part: ft_m_loop(loaded, part), singles),
    }
    if args.ways:
        if strange := [way for way in args.ways if not any(name.startswith(way) for name in ways)]:
            parser.error(f"--ways {strange}: allowed are beginnings of {', '.join(ways)}")
        ways = {name: way for name, way in ways.items() if name.startswith(("engine", *args.ways))}
    lora_loop(loaded, singles[:1], 2)  # warm the allocator and the libraries up
    train_independent(loaded, requests[:2], hparams)
    per_edit, wall = by_turns(ways, args.rounds, lambda: train_independent(loaded, requests[:1], hparams))
    once = once_per_model(loaded.model, lambda: train_independent(loaded, requests[:1], hparams))
    print(f"\nfound out once per model: {once[0]:.1f} CPU s, {once[1]:.1f} s; shared out over {len(requests)} edits")
    for times, spent in zip((per_edit, wall), once, strict=True):
        times["engine"] = [t + spent / len(requests) for t in times["engine"]]
    on_gpu = loaded.device.type == "cuda"
    ratios = report(per_edit, wall, "wall" if on_gpu else "CPU")
    share, busy = share_of_products(lambda: train_independent(loaded, requests[: args.profiled], hparams), on_gpu)
    print(f"\nshare of the engine's time in matrix products: {share:.0%}")
    if on_gpu:
        print(f"share of the time in which the GPU has work: {busy:.0%}")
    dtype = torch.bfloat16 if products_are_low(loaded, hparams.train_dtype) else loaded.model.dtype
    rate = matrix_rate(dtype, loaded.device)
    limit = arithmetic_limit(lambda: train_independent(loaded, requests, hparams), len(requests), rate)
    reached = limit["limit_s_per_edit"] / mean(wall["engine"])
    print(
        f"arithmetic limit: {limit['flops_per_edit'] / 1e9:.1f} GFLOP per edit at "
        f"{limit['flops_per_s'] / 1e9:.0f} GFLOP/s ({dtype}) are {limit['limit_s_per_edit']:.2f} s; "
        f"the engine's speed is {reached:.0%} of it"
    )
    result = {"cpu_s_per_edit": per_edit, "wall_s_per_edit": wall, "ratios": ratios, "share_of_products": share}
    result |= {"arithmetic_limit": limit, "reached": reached, "once_cpu_s": once[0], "once_wall_s": once[1]}
    write(args.out, {**result, "args": vars(args), "model": hparams.model})


def by_turns(
    ways: dict[str, tuple[Callable[[Part], Any], Part]], rounds: int, warm: Callable[[], Any]
) -> tuple[Times, Times]:
    """CPU and wall seconds per edit of each way, in each of its parts; parts are of equal size, but for one edit."""
    cpu: Times = {name: [] for name in ways}
    wall: Times = {name: [] for name in ways}
    for part in range(rounds):
        for name, (make, edits) in ways.items():
            own = edits[len(edits) * part // rounds : len(edits) * (part + 1) // rounds]
            warm()
            used, spent = seconds(lambda make=make, own=own: make(own))
            cpu[name].append(used / len(own))
            wall[name].append(spent / len(own))
    return cpu, wall


def seconds(make: Callable[[], Any]) -> tuple[float, float]:
    """CPU and wall seconds."""
    used, started = time.process_time(), time.perf_counter()
    make()
    finish()
    return time.process_time() - used, time.perf_counter() - started


def once_per_model(model: Any, edit: Callable[[], Any]) -> tuple[float, float]:
    """How much longer an edit takes that has to find out all about its model."""
    KEPT.pop(model, None)
    cold, warm = seconds(edit), seconds(edit)
    return max(0.0, cold[0] - warm[0]), max(0.0, cold[1] - warm[1])


def finish() -> None:
    """Wait for the GPU, if it was used."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def report(per_edit: dict[str, list[float]], wall: dict[str, list[float]], counted: str) -> dict[str, float]:
    """Print the ratios of `counted` seconds, before the slow profiling pass; returns them."""
    compared = wall if counted == "wall" else per_edit
    print(
        f"\n{machine()}\n\n| way | CPU s per edit | wall s per edit | engine is faster by ({counted}) |\n"
        "| --- | ---: | ---: | ---: |"
    )
    ratios = {}
    for name, values in per_edit.items():
        ratios[name] = mean(compared[name]) / mean(compared["engine"])
        print(f"| {name} | {mean(values):.2f} | {mean(wall[name]):.2f} | x {ratios[name]:.1f} |", flush=True)
    return ratios


def share_of_products(make: Callable[[], Any], on_gpu: bool) -> tuple[float, float]:
    """Share of the profiled operator time that is matrix products, and share of the wall time that is profiled."""
    started = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as seen:
        make()
        finish()
    wall, events = time.perf_counter() - started, seen.key_averages()
    if on_gpu:  # kernels are listed once more by themselves
        spent = {e.key: e.self_device_time_total for e in events if e.key.startswith("aten::")}
    else:
        spent = {e.key: e.self_cpu_time_total for e in events}
    total = sum(spent.values())
    return sum(t for key, t in spent.items() if key.startswith(PRODUCTS)) / total, total / 1e6 / wall


def arithmetic_limit(make: Callable[[], Any], edits: int, rate: float) -> dict[str, float]:
    """What all products of a run are, and how long they would take at the machine's rate."""
    with FlopCounterMode(display=False) as counted:
        make()
    flops = counted.get_total_flops() / edits
    return {"flops_per_edit": flops, "flops_per_s": rate, "limit_s_per_edit": flops / rate}


def matrix_rate(dtype: torch.dtype, device: torch.device, rounds: int = 20) -> float:
    """FLOPs per second of a product of two square matrices: the best of some rounds."""
    size = 1536 if device.type == "cpu" else 8192
    x, y = torch.randn(2, size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        x @ y
        finish()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


if __name__ == "__main__":
    main()
