"""Peak memory of independent edits, beside what the model takes by itself and what the formula says.

    python benchmarks/memory.py --edits 64 --out runs/memory.json

Resident memory of this process, Linux only. "Loaded" is what the process grew by when the model was loaded and run
once; the peak is taken from there until the last edit is made, deltas included, and counted from before the model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from common import machine, write

from roseedit import load_editset, load_model
from roseedit.hparams import read_yaml
from roseedit.models.encoding import encode_prompt
from roseedit.roselora.config import read_roselora
from roseedit.roselora.engine import train_independent
from roseedit.roselora.memory import pass_tokens
from roseedit.roselora.neurons.mlp import find_neurons
from roseedit.roselora.neurons.room import room_of, side_by_side

MB = 1e6
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hparams", default="hparams/RoseLoRA/smollm2-135m.yaml")
    parser.add_argument("--data", default="wikidata-counterfact")
    parser.add_argument("--edits", type=int, default=64)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    hparams = read_roselora(read_yaml(args.hparams), args.hparams)
    requests = list(load_editset(args.data, limit=args.edits).requests)
    load_model(hparams.model)  # the libraries that come with it; the model itself is let go at once
    before = resident("VmRSS")
    loaded = load_model(hparams.model)
    with torch.no_grad():
        loaded.model(torch.tensor([encode_prompt(loaded.tokenizer, requests[0].prompt).ids]))
    own = resident("VmRSS") - before
    RESET.write_text("5")
    train_independent(loaded, requests, hparams)
    peak = resident("VmHWM") - before
    neurons = find_neurons(loaded, max(hparams.layer_indices(loaded.anatomy)))
    tokens = pass_tokens(loaded, neurons.projections, hparams)
    room, together = room_of(loaded, neurons, hparams, tokens), side_by_side(loaded, neurons, hparams, tokens)
    weights = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    said = (weights + room.fixed + min(together, len(requests)) * room.per_edit) / MB
    figures = {
        "weights": weights / MB,
        "loaded and run once": own,
        "peak": peak,
        "peak over loaded": peak / own,
        "peak over weights": peak / (weights / MB),
        "peak by the formula": said,
    }
    print(f"{machine()}\n\n{len(requests)} edits of {loaded.name}, MB\n\n| figure | |\n| --- | ---: |")
    for name, value in figures.items():
        print(f"| {name} | {value:.2f} |" if " over " in name else f"| {name} | {value:.0f} |")
    write(args.out, {"figures": figures, "args": vars(args)})


def resident(which: str) -> float:
    """Resident memory in MB: `VmRSS` now, `VmHWM` at its highest since it was reset."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) * 1024 / MB


if __name__ == "__main__":
    main()
