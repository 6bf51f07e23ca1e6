"""A picture of where edits sit: layers down, matrices across, colour by how much of a matrix is touched or changed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from roseedit.edits.delta import GRID_BITS
from roseedit.edits.edit import Edit
from roseedit.edits.export.common import summed_changes
from roseedit.errors import ExportError, near_names, refusal

MEASURES = {
    "share": "entries touched, % of the matrix",
    "norm": "Frobenius norm of the change",
    "edits": "edits that touch the matrix",
}
SUFFIXES = (".png", ".svg", ".pdf")
_LAYER = re.compile(r"^(.*?)\.(\d+)\.(.+?)(?:\.weight)?$")
_LABELLED = 24  # columns and layers up to which every cell has its number


@dataclass(frozen=True)
class EditMap:
    """Where edits sit.

    Attributes:
        layers: Layer numbers, one per row.
        modules: Module names inside a layer, one per column; what lies outside the layers comes last.
        values: (layers, modules) per key of `MEASURES`; NaN where nothing is touched.
        ids: Ids of the edits.
    """

    layers: tuple[int, ...]
    modules: tuple[str, ...]
    values: dict[str, Tensor]
    ids: tuple[str, ...]


def edit_map(edits: Sequence[Edit], n_layers: int | None = None) -> EditMap:
    """Count what edits touch.

    Args:
        edits: One or more edits of one base.
        n_layers: Layers of the base; left out: up to the highest touched one.

    Returns:
        The map.

    Raises:
        ExportError: No edit, no matrix inside a layer, or fewer layers than are touched.
    """
    if not edits:
        raise ExportError(refusal("no edit to draw", "one or more", "Name the folders of saved edits."))
    places = {m.weight_name: place_of(m.weight_name) for edit in edits for m in edit.delta.matrices}
    highest = max(layer for layer, _ in places.values())
    if n_layers is not None and n_layers <= highest:
        message = refusal(f"{n_layers} layers and an edit in layer {highest}", "more layers", "Change --layers.")
        raise ExportError(message)
    layers = tuple(range(n_layers or highest + 1))
    modules = tuple(sorted({module for _, module in places.values()}))
    values = {name: torch.full((len(layers), len(modules)), float("nan")) for name in MEASURES}
    touching = [name for edit in edits for name in {m.weight_name for m in edit.delta.matrices}]
    for name, change in summed_changes(edits).items():
        layer, module = places[name]
        at = (layer, modules.index(module))
        values["share"][at] = 100 * len(change.index) / (change.shape[0] * change.shape[1])
        values["norm"][at] = float((change.total.double() * 2.0**-GRID_BITS).norm())
        values["edits"][at] = touching.count(name)
    return EditMap(layers, modules, values, tuple(edit.edit_id for edit in edits))


def place_of(name: str) -> tuple[int, str]:
    """Layer and module of a matrix, by the first number in its name.

    Args:
        name: Name of the parameter.

    Returns:
        E.g. 20 and `mlp.down_proj`.

    Raises:
        ExportError: It lies in no numbered layer.
    """
    found = _LAYER.match(name)
    if found is None:
        message = refusal(f"{name}, which lies in no numbered layer", "matrices inside layers", "Leave that edit out.")
        raise ExportError(message)
    return int(found[2]), found[3]


def draw_map(where: EditMap, out: str | Path, *, measure: str = "share", title: str | None = None) -> Path:
    """Write the picture.

    Args:
        where: Of `edit_map`.
        out: A `.png`, `.svg` or `.pdf` file; replaced if it exists.
        measure: A key of `MEASURES`.
        title: Above the picture; left out: how many edits.

    Returns:
        The file.

    Raises:
        ExportError: Another kind of file, an unknown measure, or matplotlib is not installed.
    """
    target = Path(out)
    check_picture(target, measure)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        message = refusal("an environment without matplotlib", "matplotlib", "pip install 'roseedit[plots]'.")
        raise ExportError(message) from error
    n_rows, n_columns = len(where.layers), len(where.modules)
    figure = Figure(figsize=(2.6 + 1.1 * n_columns, 1.8 + 0.26 * n_rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    values = where.values[measure]
    image = axes.imshow(values.numpy(), aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
    axes.set_facecolor("0.93")
    axes.set_xticks(range(n_columns), where.modules, rotation=30, ha="right")
    step = max(1, n_rows // 40)
    axes.set_yticks(range(0, n_rows, step), [str(layer) for layer in where.layers[::step]])
    axes.set_ylabel("layer")
    axes.set_xticks([x - 0.5 for x in range(1, n_columns)], minor=True)
    axes.set_yticks([y - 0.5 for y in range(1, n_rows)], minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="minor", length=0)
    if n_columns <= _LABELLED:
        _label(axes, values)
    figure.colorbar(image, ax=axes, label=MEASURES[measure])
    n = len(where.ids)
    axes.set_title(title or (f"edit {where.ids[0]}" if n == 1 else f"{n} edits"))
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=150, metadata={"Date": None} if target.suffix == ".svg" else None)
    return target


def check_picture(target: Path, measure: str) -> None:
    """Refuse what cannot be drawn before anything is read.

    Args:
        target: The file.
        measure: A key of `MEASURES`.

    Raises:
        ExportError: Another kind of file, or an unknown measure.
    """
    if target.suffix.lower() not in SUFFIXES:
        raise ExportError(refusal(f"a picture called {target.name!r}", ", ".join(SUFFIXES), "Change its ending."))
    if measure not in MEASURES:
        raise ExportError(refusal(f"measure {measure!r}", ", ".join(MEASURES), near_names(measure, MEASURES)))


def _label(axes: object, values: Tensor) -> None:
    largest = float(values.nan_to_num(0).max())
    for row, column in values.isfinite().nonzero().tolist():
        number = float(values[row, column])
        colour = "black" if number > 0.6 * largest else "white"
        axes.text(column, row, f"{number:.3g}", ha="center", va="center", color=colour, fontsize=8)  # type: ignore[attr-defined]
