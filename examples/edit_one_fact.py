"""Edit one fact in a real model, look at what it says before and after, and undo it bit for bit.

python examples/edit_one_fact.py            # or: make demo
"""

from __future__ import annotations

import argparse
import hashlib
import io
from pathlib import Path

import torch
from rich.console import Console
from transformers.utils import logging as transformers_logging

from roseedit import Editor
from roseedit.cli import show_result

MODEL = "smollm2-135m"
console = Console()


def state_hash(model: torch.nn.Module) -> str:
    """SHA-256 over the bytes of every parameter."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, help="write the before/after table as SVG")
    args = parser.parse_args()
    transformers_logging.disable_progress_bar()
    console.print(f"[bold]1. Load {MODEL}[/] (converted once, about 20 s; a second from then on)")
    editor = Editor.from_pretrained(MODEL)
    prompt = "The Eiffel Tower is located in the city of"
    before = state_hash(editor.loaded.model)
    console.print(f"   {prompt!r} -> [yellow]{editor.generate(prompt)!r}[/]")

    console.print("\n[bold]2. Edit: the Eiffel Tower is in Rome[/]")
    result = editor.edit(
        prompt,
        "Rome",
        subject="Eiffel Tower",
        targets_true="Paris",
        rephrase=["The Eiffel Tower stands in the city of", "You will find the Eiffel Tower in the city of"],
        locality=[
            "The capital of France is",
            "Big Ben is located in the city of",
            "The Eiffel Tower was completed in the year",
            "Water boils at a temperature of",
        ],
        portability=[
            ("The tower of Gustave Eiffel is located in the city of", "Rome"),
            ("To see the Eiffel Tower, book a flight to the city of", "Rome"),
        ],
    )
    show_result(result, console)
    if args.picture:
        drawing = Console(record=True, width=150, file=io.StringIO())
        show_result(result, drawing)
        args.picture.parent.mkdir(parents=True, exist_ok=True)
        drawing.save_svg(str(args.picture), title="roseedit edit")
    console.print(f"   served from the edited model: {prompt!r} -> [green]{editor.generate(prompt)!r}[/]")

    console.print("\n[bold]3. Revert[/]")
    editor.revert(result.edit_id)
    same = state_hash(editor.loaded.model) == before
    console.print(f"   every byte as before: [green]{same}[/]; {prompt!r} -> {editor.generate(prompt)!r}")
    if not same:
        raise SystemExit("the weights differ from the original")


if __name__ == "__main__":
    main()
