"""`roseedit edit`: change one fact and show the table of before and after."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from roseedit.cli.console import out
from roseedit.errors import RequestError, refusal

if TYPE_CHECKING:
    import pandas

    from roseedit.editor import Editor, EditResult
    from roseedit.hparams import Hparams

WIDE = 110  # columns a terminal needs for all figures of the table
DEFAULT_MODEL = "smollm2-135m"
EDIT_EXAMPLES = """
Edit one fact and show what the model says before and after.

**Examples**

`roseedit edit --model smollm2-135m --prompt "The Eiffel Tower is located in the city of" --target Rome
--subject "Eiffel Tower" --rephrase "The city where the Eiffel Tower stands is" --locality "The capital of Spain is"`

`roseedit edit --hparams hparams/RoseLoRA/smollm2-135m.yaml --prompt ... --target ... --save my-edit --json`

`roseedit edit --prompt ... --target ... --subject ... --ledger edits/ --health` (then see `roseedit edits --help`)
"""


def edit(  # noqa: PLR0917 - typer turns each into an option
    prompt: Annotated[str, typer.Option(help="Text that the model is to continue with the target.")],
    target: Annotated[str, typer.Option(help="The new answer, without leading space.")],
    model: Annotated[
        str | None, typer.Option(help="Hub id, folder, .gguf file or embedded alias.", show_default=DEFAULT_MODEL)
    ] = None,
    subject: Annotated[str | None, typer.Option(help="What the fact is about; must occur in the prompt.")] = None,
    target_true: Annotated[str | None, typer.Option(help="The old answer, for its probability in the table.")] = None,
    rephrase: Annotated[list[str] | None, typer.Option(help="Another wording to look at. May be repeated.")] = None,
    locality: Annotated[list[str] | None, typer.Option(help="A prompt that must not change. May be repeated.")] = None,
    portability: Annotated[
        list[str] | None, typer.Option(help="A consequence, as 'PROMPT => ANSWER'. May be repeated.")
    ] = None,
    hparams: Annotated[Path | None, typer.Option(help="YAML file; left out: the one that ships for the model.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write the edit into this new folder.")] = None,
    ledger: Annotated[
        Path | None, typer.Option(help="Ledger folder: its applied edits are on the model, this one is entered.")
    ] = None,
    replace: Annotated[bool, typer.Option(help="Revert edits of the ledger that this one contradicts.")] = False,
    health: Annotated[
        bool, typer.Option("--health", help="Check the model's health; take the edit off if it does harm.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Bind the edit to every weight of its base, not only those it changes.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """See `EDIT_EXAMPLES`."""
    consequences = [_consequence(text) for text in portability or []]
    request = _request(prompt, target, subject, target_true, rephrase or [], locality or [], consequences)
    if save is not None:
        from roseedit.edits.files import check_free

        check_free(save)
    if ledger is not None and ledger.is_dir() and any(ledger.iterdir()):
        from roseedit.edits.ledger import Ledger
        from roseedit.edits.ledger.plans import contradicted

        with Ledger(ledger) as known:
            contradicted(known.states, [request], replace=replace)
    settings = _settings(model, hparams)
    with open_editor(settings, show_progress=not as_json, ledger=ledger, health=health, strict=strict) as editor:
        _edit_and_show(editor, request, replace, save, as_json)


def _edit_and_show(editor: Editor, request: Any, replace: bool, save: Path | None, as_json: bool) -> None:
    result = editor.edit(request, replace=replace)
    if save is not None:
        editor.save(result.edit_id, save)
    if as_json:
        out.print_json(json.dumps({**result_as_json(result), "saved": str(save) if save else None}))
        return
    show_result(result)
    if editor.ledger is not None:
        gone = f"; reverted for it: {', '.join(result.replaced)}" if result.replaced else ""
        out.print(f"entered in the ledger [bold]{editor.ledger.folder}[/]{gone}")
    if save is not None:
        out.print(f"saved in [bold]{save}[/]")


def _consequence(text: str) -> tuple[str, str]:
    prompt, arrow, answer = text.partition("=>")
    if not arrow or not prompt.strip() or not answer.strip():
        message = refusal(f"--portability {text!r}", "'PROMPT => ANSWER'", "Put => between prompt and answer.")
        raise RequestError(message)
    return prompt.strip(), answer.strip()


def _request(prompt: str, target: str, subject: str | None, target_true: str | None, *probes: Any) -> Any:
    """Check all that needs no model before torch is even imported."""
    from roseedit.requests import check_requests, make_requests

    rephrase, locality, portability = probes
    requests = make_requests(
        prompt,
        target,
        subjects=subject if subject is None else [subject],
        targets_true=target_true if target_true is None else [target_true],
        rephrase=rephrase or None,
        locality=locality or None,
        portability=portability or None,
    )
    check_requests(requests)
    return requests[0]


def _settings(model: str | None, hparams: Path | None) -> Hparams:
    from roseedit.hparams import read_yaml
    from roseedit.methods import read_hparams
    from roseedit.shipped import shipped_hparams

    source = hparams if hparams is not None else shipped_hparams(model or DEFAULT_MODEL)
    settings = read_hparams(read_yaml(source), str(source)) if source is not None else read_hparams({})
    if model is not None or source is None:
        settings = settings.replaced(model=model or DEFAULT_MODEL)
    return settings


def open_editor(
    settings: Hparams, *, show_progress: bool, ledger: Path | None, health: bool = False, strict: bool = False
) -> Editor:
    """An editor without the progress bars of other libraries.

    Args:
        settings: What to edit and how.
        show_progress: Draw its own.
        ledger: Folder of the ledger, if any.
        health: Check the model's health, by the usual limits unless the settings have others.
        strict: Bind edits to every weight.

    Returns:
        The editor.
    """
    if health and settings.health is None:
        settings = settings.replaced(health=True)
    if strict:
        settings = settings.replaced(strict=True)
    from transformers.utils import logging as transformers_logging

    from roseedit.editor import Editor

    transformers_logging.disable_progress_bar()
    return Editor.from_hparams(settings, show_progress=show_progress, ledger=ledger)


def show_result(result: EditResult, console: Console = out) -> None:
    """Draw the before/after table of an edit.

    Args:
        result: The result; with metrics.
        console: Where to draw.
    """
    if result.metrics is None:
        return
    table = Table(title=" · ".join(str(edit) for edit in result.edits), title_justify="left", expand=True)
    for name, ratio in (("", None), ("prompt", 4), ("before", 3), ("after", 3), ("", None)):
        table.add_column(name, ratio=ratio, no_wrap=ratio is None)
    figures_shown = ("P(new)", "P(old)", "KL") if console.width >= WIDE else ("P(new)",)
    for name in figures_shown:
        table.add_column(name, justify="right", no_wrap=True)
    for line in result.metrics.to_dict("records"):
        table.add_row(*_cells(line)[: 5 + len(figures_shown)])
    console.print(table)
    report = result.edits[0].report
    figures = (
        f"{report['steps']} steps, {result.seconds:.1f} s; touched {report['density']:.2%} of the adapted matrices"
    )
    console.print(f"{figures} (guaranteed at most {report['density_bound']:.2%}); {report['values']} values stored")
    if not result.applied:
        console.print("The edits were measured one by one; none of them is live on the model now.")


def _cells(line: dict[str, Any]) -> list[str]:
    verdict = "[green]✓[/]" if line["after_ok"] is True else "[red]✗[/]" if line["after_ok"] is False else ""
    name = line["kind"] if line["group"] == line["kind"] else f"{line['kind']}: {line['group']}"
    said = [_short(line["before"]), _short(line["after"])]
    new = _change(line["p_new_before"], line["p_new_after"]) if line["kind"] != "locality" else ""
    old = _change(line["p_old_before"], line["p_old_after"])
    kl = "" if _missing(line["kl"]) else f"{line['kl']:.3f}"
    return [name, escape(line["prompt"]), *said, verdict, new, old, kl]


def _missing(number: float | None) -> bool:
    return number is None or math.isnan(number)


def _change(before: float | None, after: float | None) -> str:
    return "" if _missing(before) or _missing(after) else f"{before:.2f}→{after:.2f}"


def _short(text: str, most: int = 60) -> str:
    text = " ".join(text.split())
    return escape(text if len(text) <= most else text[: most - 1] + "…")


def result_as_json(result: EditResult) -> dict[str, Any]:
    """A result as plain JSON values.

    Args:
        result: The result.

    Returns:
        Its edits, how they were made, and the table where one was asked for.
    """
    return {
        "edits": [{"edit_id": e.edit_id, "report": dict(e.report), "fingerprint": e.fingerprint} for e in result.edits],
        "mode": result.mode,
        "applied": result.applied,
        "seconds": round(result.seconds, 3),
        "table": _records(result.metrics),
    }


def _records(table: pandas.DataFrame | None) -> list[dict[str, Any]]:
    return [] if table is None else json.loads(table.to_json(orient="records"))
