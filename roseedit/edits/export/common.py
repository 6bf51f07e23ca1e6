"""What all exports share.

Edits that belong together, the name of their base, their summed change, and a folder that appears whole or not at all.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from roseedit import __version__
from roseedit.edits.delta import GRID_BITS
from roseedit.edits.edit import Edit, request_as_mapping
from roseedit.edits.files import check_free
from roseedit.edits.record import edit_figures
from roseedit.errors import ExportError, ModelError, refusal
from roseedit.models.embedded import EMBEDDED, embedded_folder

SIDECAR = "roseedit.json"


@dataclass(frozen=True)
class Exported:
    """What an export made.

    Attributes:
        form: `peft`, `merged`, `patch`, `gguf` or `vllm`.
        folder: Where it lies.
        base: Name or path of the base model, as other tools take it.
        figures: Sizes, ranks, and scores where they were measured.
        command: A command line that uses it, where there is one.
    """

    form: str
    folder: Path
    base: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    command: str | None = None


@dataclass(frozen=True)
class SummedChange:
    """All edits' change of one matrix.

    Attributes:
        index: Sorted flat positions in the stored parameter, int64.
        total: Sums of the changes in units of 2^-40, int64.
        shape: Of the stored parameter.
    """

    index: Tensor
    total: Tensor
    shape: tuple[int, int]

    def merged_into(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """A weight with the change added, rounded once.

        Args:
            weight: The unedited weight.
            dtype: Of the result; the untouched entries are cast.

        Returns:
            A new tensor.
        """
        out = weight.detach().to(dtype, copy=True).contiguous()
        old = weight.detach().reshape(-1)[self.index.to(weight.device)].double()
        out.view(-1)[self.index.to(out.device)] = (old + self.total.to(old.device).double() * 2.0**-GRID_BITS).to(dtype)
        return out


def check_together(edits: Sequence[Edit]) -> None:
    """Refuse edits that cannot be exported as one.

    Args:
        edits: The edits.

    Raises:
        ExportError: None, one twice, or edits of different bases.
    """
    if not edits:
        raise ExportError(refusal("no edit to export", "one or more", "Name the folders of saved edits."))
    ids = [edit.edit_id for edit in edits]
    twice = sorted({i for i in ids if ids.count(i) > 1})
    if twice:
        raise ExportError(refusal(f"the edit {twice[0]} twice", "each edit once", "Leave one of them out."))
    first = edits[0]
    shapes: dict[str, tuple[int, int, bool]] = {}
    for edit in edits:
        if not _same_base(first, edit):
            got = f"edits of different bases, {first.edit_id} of {first.model_name!r} and {edit.edit_id} of"
            message = refusal(f"{got} {edit.model_name!r}", "edits of one base model", "Export them one by one.")
            raise ExportError(message)
        for m in edit.delta.matrices:
            shape = (m.d_in, m.d_out, m.transposed)
            if shapes.setdefault(m.weight_name, shape) != shape:
                message = refusal(
                    f"{m.weight_name} of two shapes", "edits of one base model", "Export them one by one."
                )
                raise ExportError(message)


def _same_base(one: Edit, other: Edit) -> bool:
    """By configuration and tokenizer, and by weights where both touch the same matrices.

    Edits of the first file format have a single hash, which says less.
    """
    parts = [edit.fingerprint.split(":") for edit in (one, other)]
    names = [{m.weight_name for m in edit.delta.matrices} for edit in (one, other)]
    n = 3 if names[0] == names[1] else 2
    return min(map(len, parts)) < 3 or parts[0][:n] == parts[1][:n]


def base_path(edits: Sequence[Edit], base: str | None = None) -> str:
    """Name of the base model for tools that know nothing of roseedit.

    Args:
        edits: The edits.
        base: What the user calls it; left out: what it was called when the edits were made.

    Returns:
        A hub id or an absolute path; an embedded alias becomes the folder of its converted weights.

    Raises:
        ExportError: A model that had no name, or an embedded one that is not installed.
    """
    name = base or edits[0].model_name
    if name in EMBEDDED:
        try:
            return str(embedded_folder(name).resolve())
        except ModelError as error:
            raise ExportError(str(error)) from error
    if name in ("", "model"):
        message = refusal("edits of a model that had no name", "a hub id or a folder", "Pass --base.")
        raise ExportError(message)
    return str(Path(name).resolve()) if Path(name).exists() else name


def summed_changes(edits: Sequence[Edit]) -> dict[str, SummedChange]:
    """What all edits together do to each matrix, as exact integers.

    Args:
        edits: The edits.

    Returns:
        Per parameter name its change; the order of the edits does not matter.
    """
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    shapes: dict[str, tuple[int, int]] = {}
    for edit in edits:
        for m in edit.delta.matrices:
            found.setdefault(m.weight_name, []).append(m.changes())
            shapes[m.weight_name] = (m.d_in, m.d_out) if m.transposed else (m.d_out, m.d_in)
    out = {}
    for name, parts in found.items():
        index, inverse = torch.cat([i for i, _ in parts]).unique(return_inverse=True)
        total = torch.zeros(len(index), dtype=torch.int64).index_add_(0, inverse, torch.cat([c for _, c in parts]))
        out[name] = SummedChange(index, total, shapes[name])
    return out


@contextmanager
def new_folder(out: str | Path) -> Iterator[Path]:
    """A folder to fill that takes its final name only if the block ends well.

    Args:
        out: A new or empty folder.

    Yields:
        A temporary neighbour.

    Raises:
        DeltaError: The folder holds something already.
    """
    target = Path(out)
    check_free(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as name:
        work = Path(name) / target.name
        work.mkdir()
        yield work
        work.replace(target)


def provenance(edits: Sequence[Edit]) -> dict[str, Any]:
    """Where an export came from, as JSON values.

    Args:
        edits: Its edits.

    Returns:
        Version, and per edit its id, base, requests, sizes and scores.
    """
    return {
        "roseedit": __version__,
        "edits": [
            {
                "edit_id": edit.edit_id,
                "model_name": edit.model_name,
                "fingerprint": edit.fingerprint,
                "delta_sha256": edit.delta.digest,
                "requests": [request_as_mapping(request) for request in edit.requests],
                "figures": edit_figures(edit),
                "scores": dict(edit.scores),
            }
            for edit in edits
        ],
    }


def write_sidecar(folder: Path, edits: Sequence[Edit], **more: Any) -> None:
    """Write `roseedit.json` beside what was exported.

    Args:
        folder: The export.
        edits: Its edits.
        **more: Further JSON values.
    """
    values = {**provenance(edits), **more}
    (folder / SIDECAR).write_text(json.dumps(values, indent=1, ensure_ascii=False), encoding="utf-8")
