"""`roseedit data`: which edit sets there are, what is in them, and what is wrong with a file."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from roseedit.cli.console import out
from roseedit.errors import DataError, refusal

if TYPE_CHECKING:
    from roseedit.editsets import Editset, LoadedEditset
    from roseedit.requests import EditRequest, Probe

data_app = typer.Typer(
    help="Edit sets: what is where, what is in it, what is wrong with a file.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
SHOW_EXAMPLES = """
Show records as roseedit reads them.

**Examples**

`roseedit data show counterfact --n 3`

`roseedit data show zsre:train --start 100`

`roseedit data show wikidata-counterfact --file my/test_cf.json --json`

`roseedit data show wikidata-recent --hub`
"""
CHECK_EXAMPLES = """
Check a file: how many records it has, which of them are refused and why, and which contradict one another.

**Examples**

`roseedit data check my/counterfact.json`

`roseedit data check my/edits.jsonl --set zsre --strict`

`roseedit data check` checks every file of every set that is there.
"""
MOST_SHOWN = 10
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


@data_app.command("list")
def list_sets(as_json: AsJson = False) -> None:
    """List the edit sets: which files are where, and how many records they have.

    Looked for in the folder that ROSEEDIT_DATA names, else among the samples that come with roseedit.
    """
    from roseedit.editsets import DATA_VARIABLE, data_folder, find, names

    folder = data_folder()
    lines = [line for name in names() for line in _set_lines(find(name), folder)]
    if as_json:
        out.print_json(json.dumps(lines))
        return
    table = Table(title=f"Edit sets · {DATA_VARIABLE}={folder or 'not set'}", title_justify="left", box=box.SIMPLE)
    table.add_column("name", no_wrap=True)
    table.add_column("split", no_wrap=True)
    table.add_column("records", justify="right", no_wrap=True)
    table.add_column("where", overflow="fold")
    last = ""
    for line in lines:
        missing = line["where"] in ("missing", "unreadable")
        where = f"[yellow]{line['where']}[/]: " if missing else ""
        count = "" if line["records"] is None else f"{line['records']:,}"
        table.add_row("" if line["name"] == last else line["name"], line["split"], count, where + escape(line["file"]))
        last = line["name"]
    out.print(table)
    for name in names():
        out.print(f"[bold]{name}[/]  {find(name).description}", highlight=False)


def _set_lines(editset: Editset, folder: Path | None) -> list[dict[str, Any]]:
    from roseedit.editsets.places import samples_folder

    if folder is not None:
        files = {split: (folder / path, path) for split, path in editset.files.items()}
    else:
        samples = samples_folder()
        files = {"sample": (samples / editset.sample, editset.sample)} if samples else {}
    place = "sample" if folder is None else "data folder"
    lines = [_line(editset.name, split, place, *where) for split, where in files.items()]
    if editset.hub is not None:
        at = f"{editset.hub.repo}@{(editset.hub.revision or 'newest')[:10]} ({', '.join(editset.hub.files)})"
        lines.append(_entry(editset.name, "--hub", "hub", at, None))
    return lines


def _line(name: str, split: str, place: str, file: Path, shown: str) -> dict[str, Any]:
    from roseedit.editsets.reading import read_records

    if not file.is_file():
        return _entry(name, split, "missing", shown, None)
    try:
        return _entry(name, split, place, shown, len(read_records(file)[0]))
    except DataError:
        return _entry(name, split, "unreadable", shown, None)


def _entry(name: str, split: str, where: str, file: str, records: int | None) -> dict[str, Any]:
    return {"name": name, "split": split, "where": where, "file": file, "records": records}


@data_app.command(help=SHOW_EXAMPLES)
def show(  # noqa: PLR0917 - typer turns each into an option
    name: Annotated[str, typer.Argument(help="An edit set of `roseedit data list`, or NAME:SPLIT.")],
    n: Annotated[int, typer.Option(help="How many edits to show.", min=1)] = 3,
    start: Annotated[int, typer.Option(help="The first one to show, from 0.", min=0)] = 0,
    file: Annotated[Path | None, typer.Option(help="A file in that set's schema.")] = None,
    hub: Annotated[bool, typer.Option("--hub", help="Fetch the set from the Hugging Face Hub.")] = False,
    revision: Annotated[str | None, typer.Option(help="Commit, branch or tag on the Hub.")] = None,
    as_json: AsJson = False,
) -> None:
    """See `SHOW_EXAMPLES`."""
    from roseedit.editsets import load_editset

    loaded = load_editset(name, file, hub=hub, revision=revision)
    requests = loaded.requests[start : start + n]
    if not requests:
        message = refusal(f"--start {start}", f"0 to {len(loaded.requests) - 1}", "There are no more edits.")
        raise DataError(message)
    if as_json:
        out.print_json(json.dumps([asdict(request) for request in requests]))
        return
    _heading(loaded)
    for request in requests:
        out.print(_tree(request), highlight=False)


def _heading(loaded: LoadedEditset) -> None:
    from roseedit.editsets.registry import find

    out.print(f"[bold]{loaded.name}[/]  {find(loaded.name).description}", highlight=False)
    at = f" at {loaded.revision}" if loaded.revision else ""
    source = escape(f"{loaded.path}{at}")
    out.print(f"{loaded.origin}: {source}\nsha256 {loaded.sha256}", highlight=False, soft_wrap=True)
    parts = f"{loaded.n_records:,} records: {loaded.n_loaded:,} loaded, {len(loaded.rejected):,} refused"
    out.print(f"{parts}; {len(loaded.requests):,} edits\n", highlight=False)


def _tree(request: EditRequest) -> Tree:
    old = f"  [dim](was {escape(request.target_true)})[/]" if request.target_true else ""
    also = f"  [dim]also {escape(', '.join(request.target_aliases))}[/]" if request.target_aliases else ""
    arrow = f"{_short(request.prompt)} [bold]→ {_short(request.target_new)}[/]{old}{also}"
    tree = Tree(f"[cyan]{escape(request.source or request.request_id)}[/]  {arrow}")
    tree.add(f"subject: {escape(request.subject) if request.subject else '[yellow]none[/]'}")
    if request.rephrase:
        branch = tree.add("rephrase")
        for text in request.rephrase:
            branch.add(_short(text))
    for kind, probes in (("locality", request.locality), ("portability", request.portability)):
        for group in dict.fromkeys(p.group for p in probes):
            _add_group(tree, f"{kind}: {group}", [p for p in probes if p.group == group])
    return tree


def _add_group(tree: Tree, title: str, probes: list[Probe], most: int = 3) -> None:
    branch = tree.add(f"{escape(title)} ({len(probes)})")
    for probe in probes[:most]:
        answers = " & ".join(" | ".join(names[:4]) + (" | …" if len(names) > 4 else "") for names in probe.answers)
        branch.add(f"{_short(probe.prompt)} [dim]→ {_short(answers) if answers else 'unchanged'}[/]")
    if len(probes) > most:
        branch.add(f"… {len(probes) - most} more")


def _short(text: str, most: int = 160) -> str:
    text = " ".join(text.split())
    return escape(text if len(text) <= most else text[: most - 1] + "…")


@data_app.command(help=CHECK_EXAMPLES)
def check(
    file: Annotated[Path | None, typer.Argument(help="A JSON array or JSON Lines; left out, all sets.")] = None,
    editset: Annotated[str | None, typer.Option("--set", help="Its edit set; left out, it is guessed.")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 when a record is refused or two contradict each other.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """See `CHECK_EXAMPLES`."""
    from roseedit.editsets import load_editset

    if file is None:
        if editset is not None:
            raise DataError(refusal("--set without a file", "a file with --set, or neither", "Name the file."))
        reports = _all_reports()
        if as_json:
            out.print_json(json.dumps(reports))
        else:
            _show_all(reports)
    else:
        name, guessed = _which(file, editset)
        reports = [_report(load_editset(name, file), guessed)]
        if as_json:
            out.print_json(json.dumps(reports[0]))
        else:
            _show_report(reports[0])
    if strict and any(report["refused"] or report["contradictions"] for report in reports):
        raise typer.Exit(1)


def _all_reports() -> list[dict[str, Any]]:
    from roseedit.editsets import data_folder, find, load_editset, names

    folder = data_folder()
    splits = [(name, split) for name in names() for split in (find(name).files if folder else [None])]
    there = [(n, s) for n, s in splits if s is None or (folder and (folder / find(n).files[s]).is_file())]
    return [_report(load_editset(name, split=split), None) for name, split in there]


def _show_all(reports: list[dict[str, Any]]) -> None:
    """Per file its own count of records beside what became of them."""
    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1))
    table.add_column("set", no_wrap=True)
    for heading in ("records", "loaded", "refused", "edits", "conflicts"):
        table.add_column(heading, justify="right", no_wrap=True)
    for r in reports:
        counts = (r["records"], r["loaded"], len(r["refused"]), r["edits"], len(r["contradictions"]))
        table.add_row(r["name"], *(f"{count:,}" for count in counts))
    out.print(table)
    for r in reports:
        if r["refused"]:
            out.print(f"[bold]{r['name']}[/]", highlight=False)
            _show_refused(r["refused"])


def _which(file: Path, editset: str | None) -> tuple[str, float | None]:
    from roseedit.editsets import names
    from roseedit.editsets.guess import guess_editset
    from roseedit.editsets.reading import read_records

    if editset is not None:
        return editset, None
    name, share = guess_editset(read_records(file)[0])
    if name is None:
        allowed = f"records in the schema of {', '.join(names())}"
        raise DataError(f"{file}: " + refusal("no record of a known form", allowed, "Name the schema with --set."))
    return name, share


def _report(loaded: LoadedEditset, guessed: float | None) -> dict[str, Any]:
    from roseedit.editsets import contradictions, repeats

    requests = loaded.requests
    return {
        "set": loaded.name,
        "name": f"{loaded.name}:{loaded.split}",
        "guessed_from": guessed,
        "file": str(loaded.path),
        "sha256": loaded.sha256,
        "records": loaded.n_records,
        "loaded": loaded.n_loaded,
        "edits": len(requests),
        "refused": [{"index": r.index, "reason": r.reason} for r in loaded.rejected],
        "notes": [{"index": r.index, "note": r.note} for r in loaded.notes],
        "contradictions": [
            {"prompt": c.prompt, "edits": [requests[i].source for i in c.indices], "targets": list(c.targets)}
            for c in contradictions(requests)
        ],
        "repeats": [[requests[i].source for i in group] for group in repeats(requests)],
        "probes": _probe_counts(requests),
    }


def _probe_counts(requests: tuple[EditRequest, ...]) -> dict[str, dict[str, int]]:
    kinds = {
        "rephrase": [("rephrase", r) for r in requests for _ in r.rephrase],
        "locality": [(p.group, r) for r in requests for p in r.locality],
        "portability": [(p.group, r) for r in requests for p in r.portability],
    }
    probes = Counter((kind, group) for kind, found in kinds.items() for group, _ in found)
    edits = {(kind, group, id(r)) for kind, found in kinds.items() for group, r in found}
    with_any = Counter((kind, group) for kind, group, _ in edits)
    return {
        f"{kind}: {group}" if kind != group else kind: {"edits": with_any[kind, group], "probes": count}
        for (kind, group), count in probes.items()
    }


def _show_report(report: dict[str, Any]) -> None:
    guessed = report["guessed_from"]
    how = "" if guessed is None else f" (guessed from its keys: {guessed:.0%} of the records looked at)"
    out.print(f"[bold]{report['set']}[/]{how}\n{escape(report['file'])}\nsha256 {report['sha256']}", highlight=False)
    counts = f"{report['records']:,} records: {report['loaded']:,} loaded, {len(report['refused']):,} refused"
    out.print(f"{counts}; {report['edits']:,} edits", highlight=False)
    table = Table("probes", title_justify="left")
    table.add_column("edits with some", justify="right")
    table.add_column("in all", justify="right")
    for name, numbers in report["probes"].items():
        table.add_row(escape(name), f"{numbers['edits']:,}", f"{numbers['probes']:,}")
    out.print(table)
    _show_refused(report["refused"])
    _show_list("loaded with something left out", [r["note"] for r in report["notes"]], "yellow")
    lines = [f"{c['prompt']!r}: {' / '.join(c['targets'])} ({', '.join(c['edits'])})" for c in report["contradictions"]]
    _show_list("contradictory prompts", lines, "yellow")
    _show_list("repeated edits", [" = ".join(group) for group in report["repeats"]], "yellow")


def _show_refused(refused: list[dict[str, Any]]) -> None:
    """Refused records by kind: what differs between two reasons of one kind stands in quotes."""
    kinds: dict[str, list[int]] = {}
    for r in refused:
        got, _, rest = r["reason"].removeprefix(f"record {r['index']}: ").partition("; allowed: ")
        kind = f"{got}; allowed: {rest.partition('. ')[0]}"
        kinds.setdefault(QUOTED.sub("…", kind), []).append(r["index"])
    lines = []
    for kind, where in kinds.items():
        some = ", ".join(map(str, where[:MOST_SHOWN])) + (", …" if len(where) > MOST_SHOWN else "")
        lines.append(f"{len(where):,} x {kind} (records {some})")
    out.print(f"[red]{len(refused):,} refused[/]" if refused else "[green]none refused[/]", highlight=False)
    for line in lines[:MOST_SHOWN]:
        out.print(f"  {_short(line, 300)}", highlight=False, soft_wrap=True)


def _show_list(title: str, lines: list[str], colour: str) -> None:
    if not lines:
        return
    out.print(f"[{colour}]{len(lines):,} {title}[/]", highlight=False)
    for line in lines[:MOST_SHOWN]:
        out.print(f"  {_short(line, 300)}", highlight=False, soft_wrap=True)
    if len(lines) > MOST_SHOWN:
        out.print(f"  … {len(lines) - MOST_SHOWN:,} more (--json lists all)", highlight=False)
