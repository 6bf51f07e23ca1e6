"""`roseedit compare` and `roseedit report`: finished runs as a table and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from roseedit.cli.console import out

if TYPE_CHECKING:
    from roseedit.evaluation.report.compare import Line
    from roseedit.evaluation.report.record import RunRecord

COMPARE_EXAMPLES = """
Put finished runs side by side: one line per figure, one column per run, the best in bold.

**Examples**

`roseedit compare runs/roselora runs/ft`

`roseedit compare runs/* --all --markdown table.md --csv table.csv`
"""
REPORT_EXAMPLES = """
Write finished runs as one self-contained HTML page: table, plots, every edit before and after, cost.

**Examples**

`roseedit report runs/roselora runs/ft --html report.html`
"""
Folders = Annotated[list[Path], typer.Argument(help="Directories written by `roseedit evaluate`.", metavar="DIR...")]


def compare(
    folders: Folders,
    everything: Annotated[bool, typer.Option("--all", help="All figures, not only the headline.")] = False,
    markdown: Annotated[Path | None, typer.Option(help="Also write the table as Markdown.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Also write the figures as CSV.")] = None,
) -> None:
    """See `COMPARE_EXAMPLES`."""
    from roseedit.evaluation.report.compare import as_csv, as_markdown, comparison, differences, names_of

    runs = _read(folders)
    lines = [line for line in comparison(runs) if everything or line.section == "headline"]
    out.print(_table(names_of(runs), lines))
    out.print("Mean after the edit, 95 % bootstrap interval over edits, n edits; best in bold.", style="dim")
    for text in differences(runs):
        out.print(f"[yellow]note:[/] {escape(text)}")
    for path, written in ((markdown, as_markdown), (csv, as_csv)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(written(runs), encoding="utf-8")
            out.print(f"written: [bold]{escape(str(path))}[/]")


def _read(folders: Sequence[Path]) -> list[RunRecord]:
    from roseedit.runs import read_run

    return [read_run(folder) for folder in folders]


def _table(names: Sequence[str], lines: Sequence[Line]) -> Table:
    from roseedit.evaluation.report.compare import cell_text
    from roseedit.evaluation.report.text import ARROWS

    table = Table("figure", show_edge=False)
    for name in names:
        table.add_column(escape(name), justify="right")
    for line in lines:
        cells = []
        for cell in line.cells:
            text = cell_text(cell).replace("**", "")
            cells.append(f"[bold green]{text}[/]" if cell and cell.best else text)
        indent = "  " if ":" in line.name else ""
        table.add_row(f"{indent}{escape(line.label.removeprefix('- '))}{ARROWS[line.direction]}", *cells)
    return table


def report(
    folders: Folders,
    html: Annotated[Path, typer.Option(help="The page to write.")],
    browse: Annotated[int, typer.Option(help="Edits per run that the page lets you look through.", min=0)] = 1000,
) -> None:
    """See `REPORT_EXAMPLES`."""
    from roseedit.evaluation.report.page import page

    text = page(_read(folders), most=browse)
    html.parent.mkdir(parents=True, exist_ok=True)
    html.write_text(text, encoding="utf-8")
    out.print(f"written: [bold]{escape(str(html))}[/]")
