"""`roseedit edits export|diff|map`: saved edits in other tools' forms, side by side, and as a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from roseedit.cli.console import out
from roseedit.errors import RequestError, refusal

if TYPE_CHECKING:
    from roseedit.edits.diff import EditDiff, Sizes
    from roseedit.edits.edit import Edit
    from roseedit.edits.export.common import Exported

EXPORT_EXAMPLES = """
Export saved edits, together, in a form that other tools read.

**Forms**

`peft`: a stock LoRA adapter · `vllm`: the same within vLLM's limits, with the command that serves it · `merged`: a full
checkpoint · `patch`: touched entries, old and new · `gguf`: a GGUF file

**Examples**

`roseedit edits export my-edit other-edit --to peft --out adapter`

`roseedit edits export my-edit --to merged --dtype bfloat16 --out edited-model`

`roseedit edits export --ledger edits/ --to peft --out adapter`   (all that is applied; or name ids)

`roseedit edits export my-edit --to vllm --name fixed --out adapter && adapter/serve.sh`
"""
DIFF_EXAMPLES = """
Compare two saved edits: matrices, rows, columns, shared entries, and whether they pull the same way.

**Examples**

`roseedit edits diff my-edit other-edit`

`roseedit edits diff my-edit other-edit --json`
"""
MAP_EXAMPLES = """
Draw where edits sit: layers down, matrices across.

**Examples**

`roseedit edits map my-edit --out where.png`

`roseedit edits map my-edit other-edit --show edits --layers 30 --out where.svg`
"""
Folders = Annotated[
    list[Path] | None,
    typer.Argument(help="Folders of saved edits; with --ledger, ids in it (none: all applied).", show_default=False),
]
InLedger = Annotated[Path | None, typer.Option("--ledger", help="Take the edits out of this ledger, by id.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def read_edits(named: list[Path] | None, ledger: Path | None = None) -> list[Edit]:
    """Saved edits, in order.

    Args:
        named: Folders, or ids when there is a ledger; none means all applied edits of the ledger.
        ledger: The folder of a ledger.

    Returns:
        The edits.

    Raises:
        RequestError: Nothing is named, or nothing is applied.
    """
    from roseedit.edits.files import load_edit
    from roseedit.edits.ledger import Ledger

    if ledger is None:
        edits = [load_edit(folder) for folder in named or []]
    else:
        with Ledger(ledger, create=False) as book:
            ids = [str(one) for one in named or []] or [standing.edit_id for standing in book.live]
            edits = [book.load(edit_id) for edit_id in ids]
    if not edits:
        got = "no folders" if ledger is None else "a ledger in which nothing is applied"
        raise RequestError(refusal(got, "at least one edit", "Name folders of saved edits, or ids with --ledger."))
    return edits


def export(  # noqa: PLR0917 - typer turns each into an option
    to: Annotated[str, typer.Option(help="peft, vllm, merged, patch or gguf.")],
    target: Annotated[Path, typer.Option("--out", help="A new or empty folder.")],
    folders: Folders = None,
    ledger: InLedger = None,
    base: Annotated[
        str | None, typer.Option(help="What the export calls its base; left out: what the edits call it.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Where the base lies now, for forms that read its weights.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16, for merged and gguf; left out: the base's.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What requests call the edited model, for vllm.")] = None,
    measure: Annotated[
        bool | None, typer.Option("--measure/--no-measure", help="Ask merged and gguf models the edit prompts.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """See `EXPORT_EXAMPLES`."""
    from roseedit.edits.export.forms import NEEDS_MODEL, check_options, export_edits, load_base
    from roseedit.edits.files import check_free

    options = {"base": base, "dtype": dtype, "name": name, "measure": measure}
    check_options(to, **options)
    check_free(target)
    edits = read_edits(folders, ledger)
    loaded = None
    if to in NEEDS_MODEL:
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        loaded = load_base(edits[0], model)
    done = export_edits(edits, to, target, loaded, **options)
    if as_json:
        out.print_json(json.dumps(_as_json(done, edits), default=str))
    else:
        show_export(done, edits)


def _as_json(done: Exported, edits: list[Edit]) -> dict[str, Any]:
    return {
        "form": done.form,
        "folder": str(done.folder),
        "base": done.base,
        "edits": [edit.edit_id for edit in edits],
        "figures": dict(done.figures),
        "command": done.command,
    }


def show_export(done: Exported, edits: list[Edit]) -> None:
    """Say what was made.

    Args:
        done: The export.
        edits: Its edits.
    """
    table = Table(show_header=False, title=f"{done.form} in {done.folder}", title_justify="left")
    table.add_row("edits", ", ".join(edit.edit_id for edit in edits[:8]) + (" ..." if len(edits) > 8 else ""))
    table.add_row("base", escape(done.base))
    for key, value in done.figures.items():
        table.add_row(key.replace("_", " "), escape(_figure(value)))
    out.print(table)
    for path in sorted(done.folder.iterdir()):
        out.print(f"  {path.name}", highlight=False)
    if done.command:
        out.print(done.command, highlight=False, soft_wrap=True, markup=False)


def _figure(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['mean']:.3f} ({value['low']:.3f} - {value['high']:.3f}), n = {value['n']}"
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "none"
    return str(value)


def diff(
    a: Annotated[Path, typer.Argument(help="The first edit: folder, or id with --ledger.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="The second.", show_default=False)],
    ledger: InLedger = None,
    top: Annotated[int, typer.Option(min=0, help="How many of the largest entries to show.")] = 10,
    as_json: AsJson = False,
) -> None:
    """See `DIFF_EXAMPLES`."""
    from roseedit.edits.diff import diff_edits

    first, second = read_edits([a, b], ledger)
    found = diff_edits(first, second, largest=top)
    if as_json:
        out.print_json(json.dumps(found.as_mapping(top)))
        return
    show_diff(found, first, second, top)


def show_diff(found: EditDiff, a: Edit, b: Edit, top: int) -> None:
    """Draw the comparison.

    Args:
        found: It.
        a: The first edit.
        b: The second.
        top: How many of the largest entries.
    """
    for side, edit in (("a", a), ("b", b)):
        out.print(f"[bold]{side}[/] {escape(str(edit))}", highlight=False)
    if not found.same_base:
        out.print("[yellow]The two were made for different bases.[/]")
    table = Table("matrix", "entries", "shared", "cosine", "norms")
    touched = Table("matrix", "rows", "columns")
    for m in found.matrices:
        numbers = [f"{m.entries.jaccard:.1%}", _signed(m.cosine), f"{m.norm_a:.3g} · {m.norm_b:.3g}"]
        table.add_row(_place(m.weight), _sizes(m.entries), *numbers)
        touched.add_row(_place(m.weight), _sizes(m.rows), _sizes(m.columns))
    table.add_section()
    whole = found.entries
    table.add_row("all", _sizes(whole), f"{whole.jaccard:.1%}", _signed(found.cosine), "")
    out.print(table)
    out.print(touched)
    out.print("in a · in b · in both; shared: entries in both / in either", highlight=False)
    largest = found.largest(top)
    if largest:
        table = Table("matrix", "row", "column", "change in a", "change in b", title="Largest", title_justify="left")
        for entry in largest:
            numbers = [str(entry.row), str(entry.column), _signed(entry.a), _signed(entry.b)]
            table.add_row(_place(entry.weight), *numbers)
        out.print(table)


def _place(weight: str) -> str:
    """Layer and module; the whole name where there is no layer."""
    from roseedit.edits.heatmap import place_of
    from roseedit.errors import ExportError

    try:
        layer, module = place_of(weight)
    except ExportError:
        return escape(weight)
    return escape(f"{layer} {module}")


def _sizes(sizes: Sizes) -> str:
    return " · ".join(_short(n) for n in (sizes.a, sizes.b, sizes.both))


def _short(n: int) -> str:
    return str(n) if n < 10_000 else f"{n / 1000:.1f}k"


def _signed(number: float | None) -> str:
    return "" if number is None else f"{number:+.4f}"


def map_(  # noqa: PLR0917 - typer turns each into an option
    target: Annotated[Path, typer.Option("--out", help="A .png, .svg or .pdf file.")],
    folders: Folders = None,
    ledger: InLedger = None,
    show: Annotated[str, typer.Option(help="share, norm or edits.")] = "share",
    layers: Annotated[
        int | None, typer.Option(min=1, help="Layers of the base.", show_default="up to the last")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Above the picture.")] = None,
) -> None:
    """See `MAP_EXAMPLES`."""
    from roseedit.edits.heatmap import check_picture, draw_map, edit_map

    check_picture(target, show)
    path = draw_map(edit_map(read_edits(folders, ledger), layers), target, measure=show, title=title)
    out.print(f"drawn in [bold]{escape(str(path))}[/]")


def add_commands(group: typer.Typer) -> None:
    """Give a group the three commands of this file.

    Args:
        group: The group `edits`.
    """
    group.command("export", help=EXPORT_EXAMPLES)(export)
    group.command("diff", help=DIFF_EXAMPLES)(diff)
    group.command("map", help=MAP_EXAMPLES)(map_)
