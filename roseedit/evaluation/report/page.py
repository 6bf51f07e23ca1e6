"""One self-contained HTML page of one or several runs: nothing is loaded from anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from importlib import resources
from typing import Any

from roseedit.evaluation.report import plots
from roseedit.evaluation.report.browse import MOST, edits_of, for_script
from roseedit.evaluation.report.compare import Cell, Line, comparison, differences, names_of
from roseedit.evaluation.report.record import RunRecord
from roseedit.evaluation.report.text import ARROWS, SECTIONS, interval, number

_COST = (
    ("edit_s_per_edit", "seconds per edit"),
    ("edit_s", "seconds making edits"),
    ("score_s", "seconds measuring them"),
    ("base_s", "seconds measuring the base (0: taken from the cache)"),
    ("probes", "probes"),
    ("peak_memory_mib", "peak memory of a process, MiB"),
    ("threads", "threads per process"),
)


def page(runs: Sequence[RunRecord], *, most: int = MOST) -> str:
    """The page.

    Args:
        runs: One or more runs.
        most: Edits per run that can be browsed.

    Returns:
        HTML.

    Raises:
        RunError: matplotlib is not installed.
    """
    title = " vs ".join(dict.fromkeys(run.method for run in runs)) + f" on {runs[0].identity['data']['name']}"
    body = "".join(_body(runs, title, most))
    style, script = (_resource(name) for name in ("page.css", "page.js"))
    data = for_script([{"name": n, **edits_of(run, most)} for n, run in zip(names_of(runs), runs, strict=True)])
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><style>{style}</style></head><body>{body}'
        f'<script type="application/json" id="data">{data}</script><script>{script}</script></body></html>\n'
    )


def _resource(name: str) -> str:
    return resources.files("roseedit.evaluation.report").joinpath(name).read_text(encoding="utf-8")


def _body(runs: Sequence[RunRecord], title: str, most: int) -> Iterator[str]:
    yield f"<header><h1>{escape(title)}</h1><p>{_origin(runs)}</p></header><main>"
    yield "".join(f'<p class="note">{escape(text)}</p>' for text in differences(runs))
    yield f'<section id="figures"><h2>Figures</h2>{_table(runs)}</section>'
    drawn = "".join(_plots(runs))
    yield f'<section id="plots"><h2>Plots</h2><div class="plots">{drawn}</div></section>' if drawn else ""
    ability = _ability(runs)
    yield f'<section id="ability"><h2>General ability</h2>{ability}</section>' if ability else ""
    yield f'<section id="edits"><h2>Edits, one by one</h2>{_browser(runs, most)}</section>'
    yield f'<section id="cost"><h2>Cost</h2>{_cost(runs)}</section>'
    yield f'<section id="origin"><h2>What was run</h2>{_identities(runs)}</section></main>'


def _origin(runs: Sequence[RunRecord]) -> str:
    run = runs[0]
    counts, data = run.summary["counts"], run.identity["data"]
    kind = {"alone": "each alone on the base model", "end": "measured with all edits live"}[run.summary["stage"]]
    facts = f"{counts['edits']} edits of {data['name']} (SHA-256 {data['sha256'][:12]}), {kind}"
    base = f"base {run.identity['hparams']['model']}, fingerprint {run.identity['base']['fingerprint'][:12]}"
    return escape(f"{facts}; {base}. Generated answers: greedy, natural stop, normalised, aliases accepted.")


def _table(runs: Sequence[RunRecord]) -> str:
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in names_of(runs))
    out = [f'<div class="scroll"><table class="figures"><thead><tr><th scope="col">figure</th>{names}</tr></thead>']
    lines = comparison(runs)
    for section, title in SECTIONS.items():
        own = [line for line in lines if line.section == section]
        if own:
            out.append(f'<tbody><tr class="section"><th colspan="{len(runs) + 1}">{escape(title)}</th></tr>')
            out += [_row(line) for line in own]
            out.append("</tbody>")
    out.append(
        '</table></div><p class="small">Mean after the edit, 95 % bootstrap interval over edits, n edits with such '
    )
    out.append("a probe; in grey the unedited model. ↑ higher is better, ↓ lower is better.</p>")
    return "".join(out)


def _row(line: Line) -> str:
    group = ' class="group"' if ":" in line.name else ""
    cells = "".join(f"<td>{_cell(cell)}</td>" for cell in line.cells)
    return (
        f'<tr{group}><th scope="row">{escape(line.label.removeprefix("- "))}{ARROWS[line.direction]}</th>{cells}</tr>'
    )


def _cell(cell: Cell | None) -> str:
    if cell is None or cell.side["mean"] is None:
        return "-"
    mean = number(cell.side["mean"])
    shown = f"<b>{mean}</b>" if cell.best else mean
    known = "" if cell.side["low"] is None else f"<small>{interval(cell.side)}</small>"
    before = "" if cell.before is None else f"before {number(cell.before)}, "
    return f'<span class="mean">{shown}</span> {known}<small class="under">{before}n {cell.side["n"]}</small>'


def _ability(runs: Sequence[RunRecord]) -> str:
    out = []
    for name, run in _named(runs):
        for x in run.summary.get("ability", []):
            cells = "".join(f"<td>{number(x[key])}</td>" for key in ("before", "after", "change"))
            task = escape(f"{name}: {x['task']}, {x['metric']}")
            out.append(f'<tr><th scope="row">{task}</th>{cells}<td>{interval(x)}</td><td>{x["n"]}</td></tr>')
    if not out:
        return ""
    heads = ("task", "before", "after", "change", "95 % interval", "n")
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(out)}</tbody></table></div>'


def _plots(runs: Sequence[RunRecord]) -> Iterator[str]:
    for title, svg in (
        ("Reliability against locality", plots.trade_off(runs)),
        ("Portability by group", plots.by_group(runs)),
        ("Locality by group", plots.by_group(runs, "locality")),
        ("Forgetting along the sequence", plots.forgetting(runs)),
    ):
        if svg:
            yield f"<figure><figcaption>{title}</figcaption>{svg}</figure>"


def _browser(runs: Sequence[RunRecord], most: int) -> str:
    options = "".join(f'<option value="{n}">{escape(name)}</option>' for n, name in enumerate(names_of(runs)))
    choose = f'<label>run <select id="run">{options}</select></label>' if len(runs) > 1 else ""
    filters = (
        ("all", "all edits"),
        ("any", "any failure"),
        ("prompt", "edit not said"),
        ("rephrase", "rephrase missed"),
        ("portability", "consequence missed"),
        ("locality", "other answers changed"),
    )
    listed = "".join(f'<option value="{value}">{text}</option>' for value, text in filters)
    cut = any(len(run.requests) > most for run in runs)
    note = f'<p class="small">Only the first {most} edits of each run are in this page.</p>' if cut else ""
    return (
        f'<form class="controls" id="controls">{choose}<label>show <select id="filter">{listed}</select></label>'
        '<label class="grow">search <input id="search" type="search" placeholder="subject, prompt or answer"></label>'
        f'</form>{note}<p id="count" class="small" aria-live="polite"></p><div id="list"></div>'
        '<nav class="pages"><button id="previous" type="button">Previous</button><span id="where"></span>'
        '<button id="next" type="button">Next</button></nav>'
        "<noscript><p>The edits are shown by a script, which this browser does not run.</p></noscript>"
    )


def _cost(runs: Sequence[RunRecord]) -> str:
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in names_of(runs))
    rows = []
    for key, label in _COST:
        cells = "".join(f"<td>{_amount(run.cost.get(key))}</td>" for run in runs)
        rows.append(f'<tr><th scope="row">{escape(label)}</th>{cells}</tr>')
    where = "; ".join(f"{n}: {r.identity['base']['device']}, {r.identity['base']['dtype']}" for n, r in _named(runs))
    head = f'<thead><tr><th scope="col">cost</th>{names}</tr></thead>'
    table = f'<div class="scroll"><table>{head}<tbody>{"".join(rows)}</tbody></table></div>'
    return f'{table}<p class="small">Summed over processes. {escape(where)}.</p>'


def _named(runs: Sequence[RunRecord]) -> Iterator[tuple[str, RunRecord]]:
    return zip(names_of(runs), runs, strict=True)


def _amount(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _identities(runs: Sequence[RunRecord]) -> str:
    out = []
    for name, run in _named(runs):
        left_out = "".join(f"<li>{escape(r['reason'])}</li>" for r in run.summary["rejected"])
        listed = f"<h3>Records left out</h3><ul>{left_out}</ul>" if left_out else ""
        notes = "".join(f"<li>{escape(r['reason'])}</li>" for r in run.summary["notes"])
        listed += f"<h3>Records taken with something left out</h3><ul>{notes}</ul>" if notes else ""
        text = escape(json.dumps(run.identity, indent=1, sort_keys=True, ensure_ascii=False))
        out.append(f"<details><summary>{escape(name)}</summary><pre>{text}</pre>{listed}</details>")
    return "".join(out)
