"""Speed of decoding with layers skipped, against plain decoding in the same run and against the limit.

    python benchmarks/skip_speed.py --gates my-gates --out runs/skip-speed.json
    python benchmarks/skip_speed.py --budgets 0.85 0.75 0.6 0.5     # without gates: profiles for speed only

Plain decoding (all layers, the same loop), transformers' own generate(), every profile under `bounded`, and `lossless`
take turns, in rounds, on the same prompts; medians are compared. The limit of decoding is (L + r) / (k + r) in bytes,
r being the head; that of a prompt pass is L / k. Without --gates the upper layers are kept, which says nothing about
quality (and makes poor drafts), and all about speed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import machine, write

from roseedit import load_model
from roseedit.hadskip.choosing import Chooser, FixedChooser, chooser_of
from roseedit.hadskip.costs import layer_costs, speed_limit
from roseedit.hadskip.decode import Decoder
from roseedit.hadskip.files import load_profiles
from roseedit.hadskip.pace import forget_pace
from roseedit.hadskip.paths import protected_layers
from roseedit.hadskip.profile import SkipProfiles
from roseedit.hadskip.response import Accounts, Contract, DecodeSettings
from roseedit.models.load import LoadedModel

TEXT = (
    "The history of bridges begins with fallen trees and stepping stones. Later people learned to build arches of "
    "stone and, much later, of iron and steel. A good bridge carries its load for centuries, if it is looked after. "
    "Engineers inspect every joint, measure how far the deck bends, and write down what they find. "
)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--gates", type=Path, help="folder of fitted gates")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.85, 0.75, 0.6, 0.5])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--long-prompt", type=int, default=256, help="tokens of the prompts whose pass is timed")
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--text", type=Path, help="prompts are windows of this text")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    loaded = load_model(args.model)
    profiles = load_profiles(args.gates) if args.gates else speed_profiles(loaded, args.budgets)
    text = args.text.read_text() if args.text else TEXT
    result = [measure(loaded, profiles, text, rows, args) for rows in args.batches]
    print(f"\n{machine()}")
    for one in result:
        show(one)
    write(args.out, {"args": vars(args), "batches": result})


def speed_profiles(loaded: LoadedModel, budgets: Sequence[float]) -> SkipProfiles:
    """Protected layers and the last others, as many as each budget allows."""
    costs, protected = layer_costs(loaded), protected_layers(loaded)
    sets = {}
    for budget in budgets:
        own = list(protected)
        for layer in reversed(range(loaded.anatomy.n_layers)):
            if layer not in own and sum(costs[i] for i in own) + costs[layer] <= budget + 1e-6:
                own.append(layer)
        sets[f"b{budget}"] = sorted(own)
    return SkipProfiles.of(loaded, sets)


def prompts_of(loaded: LoadedModel, text: str, rows: int, tokens: int) -> list[list[int]]:
    """Different windows of a text, repeated if it is too short."""
    ids = loaded.tokenizer(text)["input_ids"]
    ids = ids * (1 + (rows + tokens) // len(ids) + tokens // len(ids))
    return [ids[i * 7 % len(ids) :][:tokens] if len(ids) > tokens + i * 7 else ids[i : i + tokens] for i in range(rows)]


def measure(
    loaded: LoadedModel, profiles: SkipProfiles, text: str, rows: int, args: argparse.Namespace
) -> dict[str, Any]:
    """All ways at one batch size, in rounds."""
    short, long = (prompts_of(loaded, text, rows, n) for n in (args.prompt_tokens, args.long_prompt))
    ways: dict[str, Callable[[], dict[str, float]]] = {
        "plain": lambda: timed(Decoder(loaded), short, long, "full", args)
    }
    ways["stock generate()"] = lambda: stock(loaded, short, args.new_tokens)
    for profile in profiles.profiles:
        chooser = FixedChooser(profiles, profile.name)
        for contract in ("bounded", "lossless"):
            ways[f"{contract} {profile.name}"] = way(loaded, profiles, chooser, contract, short, long, args)
    gate = chooser_of(profiles)
    if not isinstance(gate, FixedChooser):
        ways["bounded, gate chooses"] = way(loaded, profiles, gate, "bounded", short, long, args)
    forget_pace(loaded)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(args.rounds + 1):
        for name, run in ways.items():
            found[name].append(run())
    return {"rows": rows, "ways": {name: table_line(loaded, profiles, name, found) for name in ways}}


def way(
    loaded: LoadedModel, profiles: SkipProfiles, chooser: Chooser, contract: Contract, *rest: Any
) -> Callable[[], dict[str, float]]:
    """One way, ready to be run again and again."""
    short, long, args = rest
    decoder = Decoder(loaded, profiles, chooser)
    return lambda: timed(decoder, short, long, contract, args)


def timed(
    decoder: Decoder, short: list[list[int]], long: list[list[int]], contract: Contract, args: argparse.Namespace
) -> dict[str, float]:
    """Seconds per token of decoding, and of one pass over long prompts."""
    budget = None if contract == "full" else 1.0
    settings = DecodeSettings(contract, budget, args.new_tokens, ())
    accounts = Accounts()
    said = decoder.generate_ids(short, settings, accounts=accounts, ends=frozenset())
    tokens = max(len(response.tokens) for response in said) - 1
    prompt = Accounts()
    decoder.generate_ids(long, DecodeSettings(contract, budget, 1, ()), accounts=prompt, ends=frozenset())
    drafted = sum(response.drafted for response in said)
    return {
        "decode": accounts.decode_seconds / tokens,
        "prefill": prompt.prefill_seconds + prompt.choosing_seconds,
        "gate_share": accounts.gate_share,
        "acceptance": sum(response.accepted for response in said) / drafted if drafted else float("nan"),
        "drafted": drafted / sum(len(response.tokens) for response in said),
    }


@torch.no_grad()
def stock(loaded: LoadedModel, rows: list[list[int]], new: int) -> dict[str, float]:
    """Transformers' own generate(), its prompt pass taken off by a run of one token."""
    ids = torch.tensor(rows, device=loaded.device)
    asked = {"attention_mask": torch.ones_like(ids), "do_sample": False, "eos_token_id": -1}
    spent = []
    for n in (1, new):
        started = time.perf_counter()
        loaded.model.generate(ids, max_new_tokens=n, **asked)
        spent.append(time.perf_counter() - started)
    nan = float("nan")
    return {
        "decode": (spent[1] - spent[0]) / (new - 1),
        "prefill": nan,
        "gate_share": 0,
        "acceptance": nan,
        "drafted": 0,
    }


def table_line(
    loaded: LoadedModel, profiles: SkipProfiles, name: str, found: dict[str, list[dict[str, float]]]
) -> dict[str, Any]:
    """Medians over rounds, the first one left out, and the limits."""
    plain = {key: median(one[key] for one in found["plain"][1:]) for key in ("decode", "prefill")}
    own = {key: median(one[key] for one in found[name][1:]) for key in found[name][0]}
    line: dict[str, Any] = {
        "decode_ms": 1e3 * own["decode"],
        "decode_speed": plain["decode"] / own["decode"],
        "prefill_speed": plain["prefill"] / own["prefill"],
        **{key: own[key] for key in ("gate_share", "acceptance", "drafted")},
    }
    profile = next((p for p in profiles.profiles if name == f"bounded {p.name}"), None)
    if profile is not None:
        limit = speed_limit(loaded, profile.layers)
        line |= {"cost": profile.cost, "limit": limit, "of_limit": line["decode_speed"] / limit}
        line |= {"prefill_limit": 1 / profile.cost, "of_prefill_limit": line["prefill_speed"] * profile.cost}
    return line


def show(one: dict[str, Any]) -> None:
    """Print one batch size."""
    print(f"\n### batch {one['rows']}\n")
    print("| way | ms/token | speed | limit | reached | prompt | limit | reached | gate | drafts right | drafted |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    keys = ("decode_speed", "limit", "of_limit", "prefill_speed", "prefill_limit", "of_prefill_limit")
    for name, line in one["ways"].items():
        cells = [f"{line['decode_ms']:.1f}", *(number(line.get(key)) for key in keys), f"{line['gate_share']:.2%}"]
        print(f"| {name} | {' | '.join([*cells, number(line['acceptance']), number(line['drafted'])])} |")


def number(value: float | None) -> str:
    """Three digits, or nothing."""
    return "" if value is None or value != value else f"{value:.3f}"  # noqa: PLR0124 - NaN


if __name__ == "__main__":
    main()
