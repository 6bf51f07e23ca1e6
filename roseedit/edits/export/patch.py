"""Only what changes: positions, old values and new values of the touched entries, in the base's own precision.

Anybody with safetensors and ten lines of Python can put it on and take it off; the ten lines stand in the model card.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from roseedit.edits.edit import Edit
from roseedit.edits.export.card import write_card
from roseedit.edits.export.common import Exported, base_path, check_together, new_folder, summed_changes, write_sidecar
from roseedit.edits.files import check_base
from roseedit.edits.live import live_edits
from roseedit.models.load import LoadedModel

PATCH = "patch.safetensors"


def export_patch(edits: Sequence[Edit], out: str | Path, loaded: LoadedModel, *, base: str | None = None) -> Exported:
    """Write edits as a patch of the base's weights.

    Args:
        edits: Edits of one base.
        out: A new or empty folder.
        loaded: The base; left as it is.
        base: What to call it in the model card.

    Returns:
        What was made.

    Raises:
        ExportError: Edits that do not belong together.
        WrongBaseError: The model is not their base.
    """
    from safetensors.torch import save_file

    check_together(edits)
    for edit in edits:
        check_base(edit, loaded)
    tensors = patch_tensors(edits, loaded)
    model = base_path(edits, base)
    with new_folder(out) as folder:
        save_file(tensors, folder / PATCH, {"format": "pt"})
        entries = sum(len(t) for name, t in tensors.items() if name.endswith(":index"))
        figures = {"entries": entries, "bytes": (folder / PATCH).stat().st_size, "dtype": str(loaded.model.dtype)[6:]}
        write_sidecar(folder, edits)
        write_card(folder, edits, model, "patch", figures)
    return Exported("patch", Path(out), model, figures)


def patch_tensors(edits: Sequence[Edit], loaded: LoadedModel) -> dict[str, Tensor]:
    """Touched entries whose bytes change.

    Args:
        edits: The edits.
        loaded: The base, whatever is live on it.

    Returns:
        Per parameter `<name>:index` (flat positions, int64), `<name>:old` and `<name>:new` in its dtype.
    """
    out = {}
    for name, change in summed_changes(edits).items():
        weight = live_edits(loaded.model).pristine(name).cpu()
        new = change.merged_into(weight, weight.dtype).view(-1)[change.index]
        old = weight.reshape(-1)[change.index]
        differ = old.view(torch.uint8).view(len(old), -1).ne(new.view(torch.uint8).view(len(old), -1)).any(1)
        out[f"{name}:index"] = change.index[differ]
        out[f"{name}:old"], out[f"{name}:new"] = old[differ], new[differ]
    return out
