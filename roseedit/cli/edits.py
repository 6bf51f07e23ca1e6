"""`roseedit edits`: look into a ledger of edits, and change what is applied in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from roseedit.cli.console import out

if TYPE_CHECKING:
    from roseedit.edits.ledger import Plan, Standing

HELP = """
Look into a ledger of edits, and change what is applied in it.

A ledger is made by `roseedit edit --ledger FOLDER ...` or `Editor(..., ledger=FOLDER)`. What is changed here is on the
model when an Editor opens the ledger next.

**Examples**

`roseedit edits list edits/` · `roseedit edits show edits/ 3f2a` · `roseedit edits log edits/ --limit 20`

`roseedit edits revert edits/ 3f2a --why "source withdrawn"` · `roseedit edits redo edits/`

`roseedit edits consolidate edits/ --keep`

`roseedit edits verify edits/ --head 8c1d...` · `roseedit edits gc edits/ --dry-run`
"""
edits_app = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode="markdown")
Folder = Annotated[Path, typer.Argument(help="Folder of the ledger.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Replace = Annotated[bool, typer.Option(help="Revert live edits that it contradicts, in the same step.")]
COLOURS = {"applied": "green", "reverted": "yellow", "rejected": "red", "consolidated": "blue"}


@edits_app.command("list")
def list_edits(
    ledger: Folder,
    state: Annotated[str | None, typer.Option(help="applied, reverted, rejected or consolidated only.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the edits: state, request, density, norm, scores, when.

    Example: `roseedit edits list edits/ --state applied`
    """
    from roseedit.edits.ledger import Ledger
    from roseedit.errors import LedgerError, near_names, refusal

    if state is not None and state not in COLOURS:
        raise LedgerError(refusal(f"--state {state!r}", ", ".join(COLOURS), near_names(state, COLOURS)))
    with Ledger(ledger) as book:
        found = [s for s in book.states.values() if state in (None, s.state)]
        _complain(book.fault)
    if as_json:
        out.print_json(json.dumps([_plain(s) for s in found]))
        return
    table = Table(title=f"{len(found)} edits in {escape(str(ledger))}", title_justify="left")
    for name in ("edit", "state", "request", "density", "norm", "scores", "when"):
        right, narrow = name in ("density", "norm"), name in ("edit", "state", "density", "norm")
        table.add_column(name, justify="right" if right else "left", no_wrap=narrow, overflow="fold")
    for s in found:
        table.add_row(*_line(s))
    out.print(table)


@edits_app.command()
def show(ledger: Folder, edit: Annotated[str, typer.Argument(help="Its id or the beginning of it.")]) -> None:
    """Print all that the ledger knows of an edit, as JSON: record, settings, figures, history.

    Example: `roseedit edits show edits/ 3f2a`
    """
    from roseedit.edits.ledger import Ledger

    with Ledger(ledger) as book:
        standing = book.find(edit)
        history = [
            {"at": e.at, "action": e.action, "entry": e.seq, **e.details}
            for e in book.entries
            if e.edit_id == standing.edit_id
        ]
        files = str(book.blobs.path(str(standing.record.blob)))
        _complain(book.fault)
    record = standing.record
    more = {n: json.loads(getattr(record, n) or "null") for n in ("hparams", "versions", "report")}
    more |= {"fingerprint": record.fingerprint, "model": record.model_name, "blob": record.blob, "entry": record.hash}
    members = {"consolidates": list(standing.members), "into": standing.into}
    out.print_json(json.dumps({**_plain(standing), **members, **more, "files": files, "history": history}))


@edits_app.command()
def apply(
    ledger: Folder,
    edit: Annotated[str, typer.Argument(help="Id of a reverted edit, or folder of a saved one.")],
    replace: Replace = False,
) -> None:
    """Apply a reverted edit again, or enter one that was saved with `roseedit edit --save`.

    Examples: `roseedit edits apply edits/ 3f2a` · `roseedit edits apply edits/ my-edit/ --replace`
    """
    from roseedit.edits.ledger import Ledger
    from roseedit.edits.ledger.plans import contradicted, plan_apply, plan_new

    with Ledger(ledger, write=True, create=False) as book:
        if Path(edit).is_dir():
            from roseedit.edits.files import load_edit

            saved = load_edit(edit)
            book.check_same_base(saved)
            known = saved.edit_id in book.states
            gone = () if known else contradicted(book.states, saved.requests, replace=replace)
            plan = (
                plan_apply(book.states, saved.edit_id, replace=replace)
                if known
                else plan_new(book.states, [saved], replaces=gone)
            )
        else:
            plan = plan_apply(book.states, book.find(edit).edit_id, replace=replace)
        book.commit(plan)
    _tell(plan)


@edits_app.command()
def revert(
    ledger: Folder,
    edit: Annotated[str | None, typer.Argument(help="Its id; left out: the newest applied one.")] = None,
    why: Annotated[str | None, typer.Option(help="A reason, for the log.")] = None,
) -> None:
    """Take an edit off; a consolidation gives back the edits that it stands for.

    Example: `roseedit edits consolidate edits/` · `roseedit edits revert edits/ 3f2a --why "source withdrawn"`
    """
    from roseedit.edits.ledger import Ledger
    from roseedit.edits.ledger.plans import newest_live, plan_revert

    with Ledger(ledger, write=True, create=False) as book:
        wanted = book.find(edit).edit_id if edit else _there(newest_live(book.states), "applied")
        plan = plan_revert(book.states, wanted, why)
        book.commit(plan)
    _tell(plan)


@edits_app.command()
def redo(
    ledger: Folder,
    edit: Annotated[str | None, typer.Argument(help="Its id; left out: the one reverted last.")] = None,
    replace: Replace = False,
) -> None:
    """Apply the edit again that was reverted last.

    Example: `roseedit edits redo edits/`
    """
    from roseedit.edits.ledger import Ledger
    from roseedit.edits.ledger.plans import newest_reverted, plan_apply

    with Ledger(ledger, write=True, create=False) as book:
        wanted = book.find(edit).edit_id if edit else _there(newest_reverted(book.states), "reverted")
        plan = plan_apply(book.states, wanted, replace=replace)
        book.commit(plan)
    _tell(plan)


@edits_app.command()
def verify(
    ledger: Folder,
    head: Annotated[str | None, typer.Option(help="A head noted earlier, which must still be in the chain.")] = None,
    set_aside: Annotated[bool, typer.Option(help="Move a broken tail into the quarantine table.")] = False,
    as_json: AsJson = False,
) -> None:
    """Walk the chain and all files. Exit code 1 when something is not as it was written.

    Note the head that is printed somewhere else: with `--head` it shows later that nothing was cut off or rewritten.

    Example: `roseedit edits verify edits/ --head 8c1d2f`
    """
    from roseedit.edits.ledger import Ledger

    with Ledger(ledger, write=set_aside, create=False, mending=set_aside) as book:
        if set_aside:
            out.print(f"{book.set_aside()} entries moved into the quarantine table")
        report = book.verify(head)
    if as_json:
        faults = [{"entry": f.seq, "what": f.what, "breaks": f.breaks} for f in report.faults]
        figures = {"entries": report.entries, "head": report.head, "broken": report.broken}
        out.print_json(
            json.dumps({"ok": report.ok, **figures, "faults": faults, "leftovers": len(report.unreferenced)})
        )
    else:
        for fault in report.faults:
            out.print(f"[red]✗[/] {escape(str(fault))}", highlight=False, soft_wrap=True)
        if report.broken:
            out.print(f"{report.broken} entries from there on count for nothing (see --set-aside)")
        if report.unreferenced:
            out.print(f"{len(report.unreferenced)} leftovers of interrupted writes; harmless, gc removes them")
        mark = "[green]✓[/]" if report.ok else "[red]✗[/]"
        out.print(
            f"{mark} {report.entries} sound entries; head {report.head or 'none'}", highlight=False, soft_wrap=True
        )
    if not report.ok:
        raise typer.Exit(1)


@edits_app.command()
def gc(ledger: Folder, dry_run: Annotated[bool, typer.Option(help="Only say what would go.")] = False) -> None:
    """Remove files that no entry names, left by interrupted writes. Nothing that was ever entered is removed.

    Example: `roseedit edits gc edits/ --dry-run`
    """
    from roseedit.edits.ledger import Ledger

    with Ledger(ledger, write=not dry_run, create=False) as book:
        gone = book.gc(dry_run=dry_run)
    for path in gone:
        out.print(escape(str(path)), highlight=False, soft_wrap=True)
    out.print(f"{len(gone)} {'would be removed' if dry_run else 'removed'}")


@edits_app.command()
def log(
    ledger: Folder,
    limit: Annotated[int, typer.Option(help="Newest entries to show; 0 shows all.", min=0)] = 30,
    as_json: AsJson = False,
) -> None:
    """Show what was done, oldest first.

    Example: `roseedit edits log edits/ --limit 5`
    """
    from roseedit.edits.ledger import Ledger

    with Ledger(ledger) as book:
        entries = book.entries[-limit:] if limit else book.entries
        _complain(book.fault)
    if as_json:
        keys = ("seq", "at", "action", "edit_id", "call", "hash")
        lines = [{**{k: getattr(e, k) for k in keys}, "detail": e.details} for e in entries]
        out.print_json(json.dumps(lines))
        return
    table = Table("entry", "when", "what", "edit", "detail")
    for e in entries:
        colour = COLOURS.get(e.action, "magenta")
        details = "; ".join(f"{k} {_short(v)}" for k, v in e.details.items())
        table.add_row(str(e.seq), e.at[:19], f"[{colour}]{e.action}[/]", e.edit_id or "", escape(details))
    out.print(table)


def _there(edit_id: str | None, state: str) -> str:
    from roseedit.errors import LedgerError, refusal

    if edit_id is None:
        raise LedgerError(refusal(f"a ledger without an edit that is {state}", f"an {state} edit", "See the list."))
    return edit_id


def _complain(fault: Any) -> None:
    if fault is not None:
        from roseedit.cli.console import err

        err.print(f"[red]the chain is broken at {escape(str(fault))}; what follows is not shown[/]", soft_wrap=True)


def _tell(plan: Plan) -> None:
    for draft in plan.drafts:
        out.print(f"[{COLOURS[draft.action]}]{draft.action}[/] {draft.edit_id}", highlight=False)


def _line(s: Standing) -> list[str]:
    asked = json.loads(s.record.requests or "[]")
    first = f"{asked[0]['prompt']} → {asked[0]['target_new']}"
    more = f" (+{len(asked) - 1})" if len(asked) > 1 else ""
    metrics = json.loads(s.record.metrics or "null") or {}
    scores = " ".join(f"{name[:3]} {m['rate']:.2f}" for name, m in metrics.items())
    cells = [s.edit_id, f"[{COLOURS[s.state]}]{s.state}[/]", escape(_short(first) + more)]
    return [*cells, f"{s.record.density:.2%}", f"{s.record.norm:.3g}", scores, s.changed.at[:19]]


def _plain(s: Standing) -> dict[str, Any]:
    record = s.record
    figures = {n: json.loads(getattr(record, n) or "null") for n in ("requests", "metrics")}
    sizes = {"density": record.density, "norm": record.norm}
    return {"edit_id": s.edit_id, "state": s.state, "entered": record.at, "changed": s.changed.at, **sizes, **figures}


def _short(value: Any, most: int = 70) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= most else text[: most - 1] + "…"
