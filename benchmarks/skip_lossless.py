"""The long form of the lossless promise: equal to stock greedy, and how fast, prompt by prompt.

    python benchmarks/skip_lossless.py --gates my-gates --prompts 200 --out runs/skip-lossless.jsonl
    python benchmarks/skip_lossless.py --prompts 4 --new-tokens 12          # a smoke run, profiles without quality

For every prompt, profile and draft length (1, 4, 8, adaptive; alone and in batches): is the text token for token that
of transformers' own greedy generate()? And, adaptive, what share of plain speed? Each line of --out is one finished
piece of work; the same command continues where it stopped. Differences are listed with the margin of the full model's
top two.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import machine
from skip_speed import TEXT, speed_profiles

from roseedit import load_editset, load_model
from roseedit.evaluation.metrics import bootstrap_interval
from roseedit.hadskip.choosing import FixedChooser
from roseedit.hadskip.decode import Decoder
from roseedit.hadskip.files import load_profiles
from roseedit.hadskip.profile import SkipProfiles
from roseedit.hadskip.response import Accounts, DecodeSettings
from roseedit.models.encoding import encode_prompt
from roseedit.models.load import LoadedModel

LENGTHS: tuple[int | None, ...] = (1, 4, 8, None)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--gates", type=Path)
    parser.add_argument("--data", help="an edit set whose prompts are taken; left out: pieces of a text")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="JSON lines, one per finished batch of prompts")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    loaded = load_model(args.model)
    profiles = load_profiles(args.gates) if args.gates else speed_profiles(loaded, (0.85, 0.5))
    profiles.check(loaded)
    rows = prompt_rows(loaded, args)
    done = read_done(args.out)
    for at in range(0, len(rows), args.batch):
        for profile in profiles.profiles:
            if (at, profile.name) in done:
                continue
            line = {
                "at": at,
                "profile": profile.name,
                **one_batch(loaded, profiles, profile.name, rows[at:][: args.batch], args),
            }
            done[at, profile.name] = line
            if args.out:
                args.out.parent.mkdir(parents=True, exist_ok=True)
                with args.out.open("a") as out:
                    out.write(json.dumps(line) + "\n")
    report(list(done.values()))


def read_done(path: Path | None) -> dict[tuple[int, str], dict[str, Any]]:
    """What an earlier run has finished; a line cut off by its end is left out."""
    out: dict[tuple[int, str], dict[str, Any]] = {}
    for text in path.read_text().splitlines() if path and path.exists() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        out[line["at"], line["profile"]] = line
    return out


def prompt_rows(loaded: LoadedModel, args: argparse.Namespace) -> list[list[int]]:
    """Ids of the prompts."""
    if args.data:
        prompts = [request.prompt for request in load_editset(args.data, limit=args.prompts).requests]
    else:
        words = (TEXT * 20).split()
        prompts = [" ".join(words[3 * i : 3 * i + 5 + i % 11]) for i in range(args.prompts)]
    return [list(encode_prompt(loaded.tokenizer, prompt).ids) for prompt in prompts]


def one_batch(
    loaded: LoadedModel, profiles: SkipProfiles, name: str, rows: Sequence[Sequence[int]], args: argparse.Namespace
) -> dict[str, Any]:
    """All draft lengths on one batch of prompts, alone and together."""
    wanted = [stock(loaded, ids, args.new_tokens) for ids in rows]
    decoder = Decoder(loaded, profiles, FixedChooser(profiles, name))
    checked, faults = 0, []
    plain, skipping = [], []
    drafted = accepted = 0
    for length in LENGTHS:
        settings = DecodeSettings("lossless", 1.0, args.new_tokens, (), draft_length=length)
        said = decoder.generate_ids(rows, settings, ends=frozenset())
        for i, ids in enumerate(rows):
            accounts = Accounts()
            alone = decoder.generate_ids([ids], settings, accounts=accounts, ends=frozenset())[0]
            for batch, tokens in ((1, alone.tokens), (len(rows), said[i].tokens)):
                checked += 1
                if tokens != wanted[i]:
                    faults.append(
                        {"row": i, "length": length, "batch": batch, "margin": margin(loaded, ids, wanted[i], tokens)}
                    )
            if length is None:
                skipping.append(accounts.decode_seconds)
                own = Accounts()
                full = DecodeSettings("full", None, args.new_tokens, ())
                decoder.generate_ids([ids], full, accounts=own, ends=frozenset())
                plain.append(own.decode_seconds)
                drafted, accepted = drafted + alone.drafted, accepted + alone.accepted
    return {
        "checked": checked,
        "faults": faults,
        "plain": plain,
        "lossless": skipping,
        "drafted": drafted,
        "accepted": accepted,
    }


@torch.no_grad()
def stock(loaded: LoadedModel, ids: Sequence[int], new: int) -> tuple[int, ...]:
    """Transformers' own greedy continuation."""
    given = torch.tensor([list(ids)], device=loaded.device)
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": new, "eos_token_id": -1}
    out = loaded.model.generate(given, attention_mask=torch.ones_like(given), **options)
    return tuple(out[0, len(ids) :].tolist())


@torch.no_grad()
def margin(loaded: LoadedModel, ids: Sequence[int], wanted: Sequence[int], said: Sequence[int]) -> float:
    """Logit distance of the full model's top two where the two texts part."""
    n = next(i for i, (a, b) in enumerate(zip(wanted, said, strict=True)) if a != b)
    logits = loaded.model(torch.tensor([[*ids, *wanted[:n]]], device=loaded.device)).logits[0, -1]
    top = logits.topk(2).values
    return float(top[0] - top[1])


def report(lines: list[dict[str, Any]]) -> None:
    """Print per profile: equality, speed with its interval, acceptance."""
    print(f"\n{machine()}\n\n| profile | equal | checked | speed over plain, mean | 95 % interval | n | drafts right |")
    print("| --- | ---: | ---: | ---: | :---: | ---: | ---: |")
    for name in sorted({line["profile"] for line in lines}):
        own = [line for line in lines if line["profile"] == name]
        checked, faults = sum(line["checked"] for line in own), [fault for line in own for fault in line["faults"]]
        pairs = [(p, s) for line in own for p, s in zip(line["plain"], line["lossless"], strict=True)]
        ratios = [p / s for p, s in pairs]
        mean = sum(p for p, _ in pairs) / sum(s for _, s in pairs)
        low, high = bootstrap_interval(ratios)
        drafted = sum(line["drafted"] for line in own)
        share = sum(line["accepted"] for line in own) / drafted if drafted else float("nan")
        print(
            f"| {name} | {checked - len(faults)} | {checked} | {mean:.3f} | {low:.3f} - {high:.3f} | {len(ratios)} "
            f"| {share:.2f} |"
        )
        for fault in faults:
            print(f"  differs: {fault}")


if __name__ == "__main__":
    main()
