"""A stock LoRA adapter: several edits concatenated along the rank, exactly.

Row i of A and column i of B of every edit become one rank of the adapter; with lora_alpha = r the adapter's scale is 1.
What comes out is read by PEFT, by transformers and by vLLM without roseedit.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from roseedit import __version__
from roseedit.edits.edit import Edit
from roseedit.edits.export.card import write_card
from roseedit.edits.export.common import Exported, base_path, check_together, new_folder, write_sidecar
from roseedit.errors import ExportError, refusal

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."


def export_peft(edits: Sequence[Edit], out: str | Path, *, base: str | None = None) -> Exported:
    """Write edits as one PEFT adapter.

    Args:
        edits: Edits of one base.
        out: A new or empty folder.
        base: Name or path of the base model, where the edits do not say it.

    Returns:
        What was made; `figures["rank"]` is the largest rank of a matrix.

    Raises:
        ExportError: Edits that do not belong together, or PEFT is not installed.
    """
    check_together(edits)
    model = base_path(edits, base)
    tensors = lora_tensors(edits)
    ranks = ranks_of(tensors)
    with new_folder(out) as folder:
        write_adapter(folder, edits, model, tensors)
        figures = {"rank": max(ranks.values()), "matrices": len(ranks), "bytes": (folder / WEIGHTS).stat().st_size}
        write_card(folder, edits, model, "peft", figures)
    return Exported("peft", Path(out), model, figures)


def lora_tensors(edits: Sequence[Edit], rank: int | None = None) -> dict[str, Tensor]:
    """The adapter's weights.

    Args:
        edits: Edits of one base.
        rank: Fill every matrix up to this rank with zeros; left out: each keeps its own.

    Returns:
        Per matrix `base_model.model.<module>.lora_A.weight`, (r, d_in), and `.lora_B.weight`, (d_out, r).
    """
    parts: dict[str, list[Tensor]] = {}
    for edit in edits:
        for name, tensor in edit.delta.to_lora().items():
            parts.setdefault(name, []).append(tensor)
    return {name: _joined(found, 0 if "lora_A" in name else 1, rank) for name, found in parts.items()}


def _joined(parts: list[Tensor], along: int, rank: int | None) -> Tensor:
    joined = torch.cat(parts, along)
    missing = 0 if rank is None else rank - joined.shape[along]
    if missing > 0:
        shape = (missing, joined.shape[1]) if along == 0 else (joined.shape[0], missing)
        joined = torch.cat([joined, torch.zeros(shape)], along)
    return joined.contiguous()


def ranks_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Rank per module.

    Args:
        tensors: Of `lora_tensors`.

    Returns:
        Ranks by module path.
    """
    ends = ".lora_A.weight"
    return {
        name.removeprefix(_PREFIX).removesuffix(ends): len(tensor)
        for name, tensor in tensors.items()
        if name.endswith(ends)
    }


def write_adapter(folder: Path, edits: Sequence[Edit], base: str, tensors: Mapping[str, Tensor]) -> None:
    """Write configuration, weights and where they came from.

    Args:
        folder: An existing folder.
        edits: The edits.
        base: Name or path of the base model.
        tensors: Of `lora_tensors`.

    Raises:
        ExportError: PEFT is not installed.
    """
    from safetensors.torch import save_file

    _config(edits, base, ranks_of(tensors)).save_pretrained(folder)
    metadata = {"format": "pt", "roseedit": __version__, "edits": json.dumps([edit.edit_id for edit in edits])}
    metadata["fingerprints"] = json.dumps([edit.fingerprint for edit in edits])
    save_file(dict(tensors), folder / WEIGHTS, metadata)
    write_sidecar(folder, edits)


def _config(edits: Sequence[Edit], base: str, ranks: Mapping[str, int]) -> Any:
    """PEFT matches patterns from the right, and reads the keys of rank_pattern as regular expressions."""
    try:
        from peft import LoraConfig
    except ImportError as error:
        message = refusal("an environment without PEFT", "peft 0.17 or later", "pip install 'roseedit[peft]'.")
        raise ExportError(message) from error
    usual = Counter(ranks.values()).most_common(1)[0][0]
    special = {re.escape(module): rank for module, rank in ranks.items() if rank != usual}
    return LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        revision=edits[0].hparams.get("revision"),
        inference_mode=True,
        r=usual,
        lora_alpha=usual,
        target_modules=sorted(ranks),
        rank_pattern=special,
        alpha_pattern=dict(special),
        lora_dropout=0.0,
        bias="none",
        fan_in_fan_out=any(m.transposed for edit in edits for m in edit.delta.matrices),
    )
