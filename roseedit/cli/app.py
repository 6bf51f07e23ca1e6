"""The application: every command is registered here, and every error becomes one line."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.markup import escape

from roseedit import __version__
from roseedit.cli.console import err, out
from roseedit.cli.consolidate import CONSOLIDATE_EXAMPLES, consolidate
from roseedit.cli.data import data_app
from roseedit.cli.edit import EDIT_EXAMPLES, edit
from roseedit.cli.edits import edits_app
from roseedit.cli.evaluate import EVALUATE_EXAMPLES, evaluate
from roseedit.cli.export import add_commands
from roseedit.cli.generate import GENERATE_EXAMPLES, generate
from roseedit.cli.report import COMPARE_EXAMPLES, REPORT_EXAMPLES, compare, report
from roseedit.cli.skip import app as skip
from roseedit.cli.system import doctor, models
from roseedit.cli.tune import TUNE_EXAMPLES, tune
from roseedit.errors import RoseEditError

app = typer.Typer(
    help="Change what an open-weights language model believes, measure it honestly, and change it back bit for bit.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.command(help=EDIT_EXAMPLES)(edit)
app.command(help=EVALUATE_EXAMPLES)(evaluate)
app.command(help=COMPARE_EXAMPLES)(compare)
app.command(help=REPORT_EXAMPLES)(report)
app.command(help=TUNE_EXAMPLES)(tune)
app.command(help=GENERATE_EXAMPLES)(generate)
app.command()(models)
app.command()(doctor)
app.add_typer(data_app, name="data")
add_commands(edits_app)
edits_app.command(help=CONSOLIDATE_EXAMPLES)(consolidate)
app.add_typer(edits_app, name="edits")
app.add_typer(skip, name="skip")

USAGE_ERROR: Any = typer.BadParameter.__mro__[2]  # ClickException, which typer carries under a private name


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"roseedit {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before any command."""


def main() -> None:
    """Entry point: bad input is one line on stderr and exit code 2, never a traceback."""
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except RoseEditError as error:
        _fail(str(error))
    except USAGE_ERROR as error:
        _fail(f"{error.format_message()} (see --help)")
    except (typer.Abort, KeyboardInterrupt):
        err.print("interrupted; nothing was saved")
        sys.exit(130)


def _fail(message: str) -> None:
    text = escape(" ".join(message.split()))
    err.print("[bold red]error:[/]", text, highlight=False, soft_wrap=True, emoji=False)
    sys.exit(2)
