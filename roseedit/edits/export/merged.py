"""A full checkpoint with the edits merged in: exact sums in float32, then one cast to the wanted precision."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from roseedit.edits.edit import Edit
from roseedit.edits.export.card import write_card
from roseedit.edits.export.common import (
    Exported,
    base_path,
    check_together,
    new_folder,
    summed_changes,
    write_sidecar,
)
from roseedit.edits.export.measure import survival
from roseedit.edits.files import check_base
from roseedit.edits.live import live_edits
from roseedit.errors import ExportError, near_names, refusal
from roseedit.models.load import LoadedModel, load_model
from roseedit.models.quantized import refuse_packed

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def export_merged(
    edits: Sequence[Edit],
    out: str | Path,
    loaded: LoadedModel,
    *,
    base: str | None = None,
    dtype: str | None = None,
    measure: bool = True,
) -> Exported:
    """Write the edited model as a checkpoint of its own.

    Args:
        edits: Edits of one base.
        out: A new or empty folder.
        loaded: The base; left as it was, live edits included.
        base: What to call it in the model card.
        dtype: `float32`, `bfloat16` or `float16`; left out: the base's own.
        measure: Load what was written and ask it the edit prompts.

    Returns:
        What was made; with `measure`, `figures` holds the edits' success before and after the cast.

    Raises:
        ExportError: An unknown dtype, a value that it cannot hold, or a base in 4 bit.
        WrongBaseError: The model is not the edits' base.
    """
    check_together(edits)
    refuse_packed(loaded.anatomy)
    wanted = precision(dtype, loaded)
    for edit in edits:
        check_base(edit, loaded)
    model = base_path(edits, base)
    with new_folder(out) as folder:
        with live_edits(loaded.model).only():
            save_merged(edits, folder, loaded, wanted)
        figures: dict[str, Any] = {"dtype": str(wanted).removeprefix("torch."), "bytes": _size(folder)}
        if measure:
            again = load_model(str(folder), dtype=figures["dtype"], device=str(loaded.device))
            figures |= survival(loaded, again, edits).as_mapping()
        write_sidecar(folder, edits, figures=figures)
        write_card(folder, edits, model, "merged", figures)
    return Exported("merged", Path(out), model, figures)


def precision(dtype: str | None, loaded: LoadedModel) -> torch.dtype:
    """The precision to write.

    Args:
        dtype: A key of `PRECISIONS`, or None.
        loaded: The base.

    Returns:
        A torch dtype.

    Raises:
        ExportError: Another name.
    """
    if dtype is None:
        return loaded.model.dtype
    if dtype not in PRECISIONS:
        message = refusal(f"dtype {dtype!r}", ", ".join(PRECISIONS), near_names(dtype, PRECISIONS))
        raise ExportError(message)
    return PRECISIONS[dtype]


def save_merged(edits: Sequence[Edit], folder: Path, loaded: LoadedModel, dtype: torch.dtype) -> None:
    """Write weights, configuration and tokenizer; the model in memory keeps its own weights and precision.

    Args:
        edits: The edits.
        folder: An existing folder.
        loaded: The base, without live edits.
        dtype: Of the weights in the file.
    """
    loaded.model.save_pretrained(folder, state_dict=merged_state(edits, loaded.model, dtype))
    loaded.tokenizer.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in {"dtype", *({"torch_dtype"} & set(config))}:
        config[key] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def merged_state(edits: Sequence[Edit], model: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """All weights with the edits in them. Tied weights stay one tensor.

    Args:
        edits: The edits.
        model: The base, without live edits.
        dtype: Of the result.

    Returns:
        A state dictionary.

    Raises:
        ExportError: A value that the dtype cannot hold.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    own = {name: names.get(id(p), name) for name, p in model.named_parameters(remove_duplicate=False)}
    changes = {own.get(name, name): change for name, change in summed_changes(edits).items()}
    done: dict[str, Tensor] = {}
    out: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        first = own.get(name, name)
        if first not in done:
            change = changes.get(first)
            exact = tensor.detach() if change is None else change.merged_into(tensor, torch.float32)
            done[first] = exact.to(dtype) if exact.is_floating_point() else exact
            if change is not None and not bool(torch.isfinite(done[first]).all()):
                message = refusal(f"{first} with values too large for {dtype}", "a wider dtype", "Use bfloat16.")
                raise ExportError(message)
        out[name] = done[first]
    return out


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
