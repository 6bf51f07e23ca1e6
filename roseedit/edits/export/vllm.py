"""An adapter and the `vllm serve` command line that loads it.

vLLM takes adapters of certain ranks only; the adapter is filled up to the next one with zeros.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from roseedit.edits.edit import Edit
from roseedit.edits.export.adapter import WEIGHTS, lora_tensors, ranks_of, write_adapter
from roseedit.edits.export.card import write_card
from roseedit.edits.export.common import Exported, base_path, check_together, new_folder
from roseedit.errors import ExportError, refusal

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # max_lora_rank of vLLM 0.33
SCRIPT = "serve.sh"


def export_vllm(edits: Sequence[Edit], out: str | Path, *, base: str | None = None, name: str = "edited") -> Exported:
    """Write edits as an adapter within vLLM's limits, and the command that serves it.

    Args:
        edits: Edits of one base.
        out: A new or empty folder.
        base: Name or path of the base model, where the edits do not say it.
        name: What requests call the edited model; without it they get the unedited one.

    Returns:
        What was made, with its command line.

    Raises:
        ExportError: More ranks than vLLM takes, or matrices that it has no LoRA for.
    """
    check_together(edits)
    model = base_path(edits, base)
    if any(m.transposed for edit in edits for m in edit.delta.matrices):
        got = "edits of transposed matrices (GPT-2's Conv1D), for which vLLM has no LoRA"
        raise ExportError(refusal(got, "edits of linear layers", "Export with --to merged and serve that folder."))
    rank = allowed_rank(max(ranks_of(lora_tensors(edits)).values()), len(edits))
    command = serve_command(model, name, Path(out).resolve(), rank)
    with new_folder(out) as folder:
        write_adapter(folder, edits, model, lora_tensors(edits, rank))
        (folder / SCRIPT).write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
        (folder / SCRIPT).chmod(0o755)
        figures = {"rank": rank, "bytes": (folder / WEIGHTS).stat().st_size}
        write_card(folder, edits, model, "vllm", figures, command=command)
    return Exported("vllm", Path(out), model, figures, command)


def allowed_rank(rank: int, n_edits: int) -> int:
    """The smallest rank that vLLM takes and that holds the edits.

    Args:
        rank: Their own.
        n_edits: How many they are, for the message.

    Returns:
        One of `RANKS`.

    Raises:
        ExportError: Above the largest.
    """
    found = next((r for r in RANKS if r >= rank), None)
    if found is None:
        got = f"{n_edits} edits of rank {rank} together"
        remedy = f"Export at most {max(1, n_edits * RANKS[-1] // rank)} of them, or all with --to merged."
        raise ExportError(refusal(got, f"rank {RANKS[-1]}, the largest of vLLM", remedy))
    return found


def serve_command(base: str, name: str, adapter: Path, rank: int) -> str:
    """The command line.

    Args:
        base: Name or path of the base model.
        name: What requests call the edited model.
        adapter: Folder of the adapter.
        rank: One of `RANKS`.

    Returns:
        Text for a shell.

    Raises:
        ExportError: A name that vLLM could not take apart from the path.
    """
    if not name or "=" in name or name.isspace():
        raise ExportError(refusal(f"the served name {name!r}", "a name without '='", "Choose another --name."))
    words = ["vllm", "serve", base, "--enable-lora", "--max-lora-rank", str(rank)]
    return shlex.join([*words, "--lora-modules", f"{name}={adapter}"])
