"""`roseedit edits consolidate`: all applied edits of a ledger as one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from roseedit.cli.console import out
from roseedit.cli.edit import open_editor, result_as_json, show_result

if TYPE_CHECKING:
    from roseedit.hparams import Hparams

CONSOLIDATE_EXAMPLES = """
Fit what all applied edits ask anew, jointly, into one edit that takes their place. Reverting it brings them back.

**Examples**

`roseedit edits consolidate edits/`

`roseedit edits consolidate edits/ --hparams hparams/RoseLoRA/many-smollm2-135m.yaml --keep` leaves the facts of the
oldest edit as they are, where it is a consolidation by the same settings that can be gone on from, and fits only what
came later.
"""


def consolidate(  # noqa: PLR0917 - typer turns each into an option
    ledger: Annotated[Path, typer.Argument(help="Folder of the ledger.", show_default=False)],
    keep: Annotated[bool, typer.Option("--keep", help="Leave the facts of the oldest edit as they are.")] = False,
    evaluate: Annotated[bool, typer.Option("--evaluate", help="Show what the model says before and after.")] = False,
    model: Annotated[str | None, typer.Option(help="Left out: the one that the newest edit was made on.")] = None,
    hparams: Annotated[Path | None, typer.Option(help="YAML file; left out: the newest edit's settings.")] = None,
    health: Annotated[bool, typer.Option("--health", help="Check the model's health; undo if it does harm.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """See `CONSOLIDATE_EXAMPLES`."""
    settings = _settings(ledger, model, hparams)
    with open_editor(settings, show_progress=not as_json, ledger=ledger, health=health) as editor:
        members = len(editor.edits)
        result = editor.consolidate(keep=keep, evaluate=evaluate)
    if as_json:
        out.print_json(json.dumps(result_as_json(result)))
        return
    show_result(result)
    (edit,) = result.edits
    out.print(f"{members} edits are one now: [bold]{edit.edit_id}[/], {len(edit.requests)} facts", highlight=False)
    if keep:
        kept = edit.report.get("kept", 0)
        out.print(f"{kept} of them as they were" if kept else "all fitted anew: the oldest edit is none to go on from")


def _settings(ledger: Path, model: str | None, hparams: Path | None) -> Hparams:
    """Those of a file, or of the newest applied edit."""
    from roseedit.edits.ledger import Ledger
    from roseedit.edits.ledger.plans import newest_live
    from roseedit.errors import LedgerError, refusal
    from roseedit.making import settings_of

    with Ledger(ledger) as book:
        newest = newest_live(book.states)
        if newest is None:
            raise LedgerError(refusal("a ledger without applied edits", "two or more", "See `roseedit edits list`."))
        made_with = json.loads(str(book.states[newest].record.hparams))
    settings = settings_of(hparams or made_with)
    return settings.replaced(model=model) if model else settings
