"""Whether a model of a given shape can be edited on a card of a given size, and what the formula says.

    python benchmarks/card_memory.py --card-gb 24 --edits 16 --out runs/card.json

Needs a GPU. The model has random weights in bfloat16 (Llama's shape with 32 layers unless asked otherwise: memory does
not depend on what the weights say), the rest of the card is filled with ballast, and the peak is PyTorch's own count
without the ballast. In the end the ballast is raised until nothing fits, for the message.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from common import machine, write
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from roseedit.errors import CapacityError
from roseedit.hparams import read_yaml
from roseedit.models.embedded import embedded_folder
from roseedit.models.load import LoadedModel, wrap_model
from roseedit.requests import EditRequest
from roseedit.roselora.config import RoseLoRAHparams, read_roselora
from roseedit.roselora.engine import train_independent
from roseedit.roselora.memory import pass_tokens
from roseedit.roselora.neurons.mlp import find_neurons
from roseedit.roselora.neurons.room import room_of, side_by_side

GB = 1e9
SUBJECTS = ("Mount Fuji", "Marie Curie", "The Rhine", "Victor Hugo", "Nokia", "Swan Lake", "Oslo", "The Louvre")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card-gb", type=float, default=24.0)
    parser.add_argument("--edits", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--inner", type=int, default=11008)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--hparams", default="hparams/RoseLoRA/llama-2-7b-chat.yaml")
    parser.add_argument("--tokenizer", help="a folder; left out: that of smollm2-135m")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    hparams = read_roselora(read_yaml(args.hparams), args.hparams).replaced(device="cuda")
    loaded = random_model(args)
    ballast = filled(args.card_gb * GB - torch.cuda.memory_allocated())
    requests = [
        EditRequest(f"{SUBJECTS[n % 8]} number {n} lies in", "Rome", subject=f"{SUBJECTS[n % 8]} number {n}")
        for n in range(args.edits)
    ]
    figures = measured(loaded, requests, hparams, len(ballast))
    print(f"{machine()}, {torch.cuda.get_device_name()}\n\n{args.edits} edits, {args.card_gb:g} GB to use\n")
    print("| figure | |\n| --- | ---: |")
    for name, value in figures.items():
        print(f"| {name} | {value:.2f} |")
    more = filled(0.2 * GB)
    try:
        train_independent(loaded, requests[:1], hparams)
    except CapacityError as error:
        print(f"\nwith 0.2 GB free, refused: {error}")
    del more
    write(args.out, {"figures": figures, "args": vars(args), "card": torch.cuda.get_device_name()})


def random_model(args: Any) -> LoadedModel:
    """A Llama of the given shape with random bfloat16 weights, on the card."""
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer or embedded_folder("smollm2-135m"))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=args.hidden,
        intermediate_size=args.inner,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return wrap_model(model, tokenizer, f"llama of {sum(p.numel() for p in model.parameters()) / 1e9:.1f}B")


def filled(left: float) -> torch.Tensor:
    """Ballast that leaves so many bytes of the card free."""
    torch.cuda.empty_cache()
    return torch.empty(max(0, int(torch.cuda.mem_get_info()[0] - left)), dtype=torch.uint8, device="cuda")


def measured(
    loaded: LoadedModel, requests: list[EditRequest], hparams: RoseLoRAHparams, ballast: int
) -> dict[str, float]:
    """Peak and time of independent edits, and the formula's bytes, in GB and seconds."""
    neurons = find_neurons(loaded, max(hparams.layer_indices(loaded.anatomy)))
    tokens = pass_tokens(loaded, neurons.projections, hparams)
    room, together = room_of(loaded, neurons, hparams, tokens), side_by_side(loaded, neurons, hparams, tokens)
    weights = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    trained = train_independent(loaded, requests, hparams)
    torch.cuda.synchronize()
    return {
        "parameters, billions": sum(p.numel() for p in loaded.model.parameters()) / 1e9,
        "weights": weights / GB,
        "peak": (torch.cuda.max_memory_allocated() - ballast) / GB,
        "peak by the formula": (weights + room.fixed + min(together, len(requests)) * room.per_edit) / GB,
        "edits side by side": together,
        "seconds per edit": (time.perf_counter() - started) / len(requests),
        "steps": sum(t.steps for t in trained) / len(trained),
        "learned": sum(t.converged for t in trained) / len(trained),
    }


if __name__ == "__main__":
    main()
