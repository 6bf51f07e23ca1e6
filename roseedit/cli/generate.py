"""`roseedit generate`: let a model, edited or not, continue prompts, with all its layers or some."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from roseedit.cli.console import err, out
from roseedit.errors import RequestError, refusal

if TYPE_CHECKING:
    from roseedit.editor import Editor
    from roseedit.hadskip.response import Response

DEFAULT_MODEL = "smollm2-135m"
GENERATE_EXAMPLES = """
Continue prompts, with edits applied, under one of three contracts.

`full` runs all layers. `lossless` lets fewer layers draft and all layers verify: the same text. `bounded` lets fewer
layers answer: faster, and the text may differ within the quality that was measured for the gates.

**Examples**

`roseedit generate --model smollm2-135m --prompt "The capital of France is"`

`roseedit generate --prompt "Water boils at" --contract bounded --budget 0.75` (gates that ship for the model)

`roseedit generate --ledger edits --prompt "The Eiffel Tower is in" --contract bounded --budget 0.75 --gates my-gates`

`roseedit generate --prompt "Once upon a time" --temperature 0.8 --seed 7 --stop "END" --max-new-tokens 100 --stream`
"""


def generate(  # noqa: PLR0917 - typer turns each into an option
    prompt: Annotated[list[str], typer.Option(help="Text to continue. May be repeated.")],
    model: Annotated[str, typer.Option(help="Hub id, folder, .gguf file or embedded alias.")] = DEFAULT_MODEL,
    edit: Annotated[list[Path] | None, typer.Option(help="Folder of a saved edit to apply. May be repeated.")] = None,
    ledger: Annotated[Path | None, typer.Option(help="Bring live what is applied in this ledger.")] = None,
    contract: Annotated[str, typer.Option(help="full, lossless or bounded.")] = "full",
    budget: Annotated[float | None, typer.Option(help="Share of layer cost that may be executed, in (0, 1].")] = None,
    gates: Annotated[
        str | None,
        typer.Option(help="Folder of fitted gates, or the name of shipped ones; left out: those for model and budget."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most new tokens.")] = 32,
    temperature: Annotated[float, typer.Option(help="0 picks the most probable token, above 0 samples.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Sample among the k most probable; 0 for all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Sample among the most probable with this total; 1 for all.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of sampling: the same seed gives the same text.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends an answer. May be repeated.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer as it comes; for one prompt.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """See `GENERATE_EXAMPLES`."""
    if stream and (len(prompt) > 1 or as_json):
        message = refusal("--stream with several prompts or --json", "one prompt, as text", "Leave --stream out.")
        raise RequestError(message)
    drawn = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    asked = _options(contract, budget, max_new_tokens, stop, **drawn)
    _check_folders(model, contract, budget, gates, edit or [])
    editor = _editor(model, edit or [], ledger)
    if stream:
        _show_stream(editor, prompt[0], gates, asked)
        return
    said = editor.generate(prompt, gates=gates, detailed=True, **asked)
    if as_json:
        records = [{"prompt": text, **_record(response)} for text, response in zip(prompt, said, strict=True)]
        out.print_json(json.dumps(records))
        return
    for text, response in zip(prompt, said, strict=True):
        out.print(f"[dim]{escape(text)}[/]{escape(response.text)}", highlight=False, soft_wrap=True)
        _show_note(response)


def _options(
    contract: str, budget: float | None, max_new_tokens: int, stop: list[str] | None, **sampling: Any
) -> dict[str, Any]:
    """Everything about the answer, checked before a model is loaded."""
    from roseedit.hadskip.contract import DecodeSettings, Sampling

    stops = tuple(stop) if stop else ("\n",)
    settings = DecodeSettings(contract, budget, max_new_tokens, stops, Sampling(**sampling))  # type: ignore[arg-type]
    return {
        "contract": settings.contract,
        "budget": budget,
        "max_new_tokens": max_new_tokens,
        "stop": stops,
        "sampling": settings.sampling,
    }


def _check_folders(model: str, contract: str, budget: float | None, gates: str | None, edits: list[Path]) -> None:
    """Refuse folders and gates that do not exist before a model is loaded."""
    from roseedit.hadskip.shipped import find_gates, gates_for

    for path in edits:
        if not path.is_dir():
            raise RequestError(refusal(f"the folder {str(path)!r}", "one that exists", "Check the path."))
    if gates is not None:
        find_gates(gates)
    elif contract != "full":
        gates_for(model, budget)


def _editor(model: str, edits: list[Path], ledger: Path | None) -> Editor:
    from transformers.utils import logging as transformers_logging

    from roseedit.editor import Editor
    from roseedit.edits.ledger import Ledger

    transformers_logging.disable_progress_bar()
    editor = Editor.from_pretrained(model, ledger=Ledger(ledger) if ledger else None)  # only read
    for folder in edits:
        editor.load(folder)
    return editor


def _show_stream(editor: Editor, prompt: str, gates: str | None, asked: dict[str, Any]) -> None:
    pieces = editor.stream(prompt, gates=gates, **asked)
    out.print(f"[dim]{escape(prompt)}[/]", end="", highlight=False, soft_wrap=True)
    for piece in pieces:
        out.print(escape(piece.text), end="", highlight=False, soft_wrap=True)
        if piece.response is not None:
            out.print()
            _show_note(piece.response)


def _show_note(response: Response) -> None:
    """What ran, on the error stream, so that the answer can be piped on; nothing under the full contract."""
    if response.contract == "full":
        return
    layers = f"{len(response.layers_run)} of {response.n_layers} layers"
    note = f"{response.contract}: profile {response.profile}, {layers}"
    if response.contract == "lossless":
        share = "nothing drafted" if response.acceptance is None else f"{response.acceptance:.0%} of drafts right"
        note = f"{note} draft, {share}, {response.passes} full passes for {len(response.tokens)} tokens"
    err.print(f"[dim]{escape(note)}[/]", highlight=False)


def _record(response: Response) -> dict[str, Any]:
    return {
        "text": response.text,
        "stop": response.stop,
        "n_tokens": len(response.tokens),
        "contract": response.contract,
        "profile": response.profile,
        "layers_run": list(response.layers_run),
        "n_layers": response.n_layers,
        "drafted": response.drafted,
        "accepted": response.accepted,
        "passes": response.passes,
    }
