"""`roseedit skip fit-classifier` and `classify`: an encoder classifier that skips layers per input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from roseedit.cli.console import out
from roseedit.errors import RequestError, refusal

FIT_EXAMPLES = """
Fine-tune an encoder for classification and train gates that skip layers of it per input, within a mean budget.

Data are JSON arrays of records with `sentence`, or `sentence1` and `sentence2`, and `label` (0, 1, ...).

**Examples**

`roseedit skip fit-classifier --model minilm-l6 --task sst2 --budget 0.5 --out sst2-0.5`

`roseedit skip fit-classifier --model my-bert --train train.json --dev dev.json --budget 0.75 --out mine`
"""
CLASSIFY_EXAMPLES = """
Classify text with a fitted classifier; the layers that ran are shown.

**Examples**

`roseedit skip classify sst2-0.5 --text "A warm, funny film." --text "Two hours I will not get back."`

`roseedit skip classify rte-0.5 --text "A man sleeps." --second "Somebody is awake."`
"""


def fit_classifier(  # noqa: PLR0917 - typer turns each into an option
    out_dir: Annotated[Path, typer.Option("--out", help="New folder for the classifier.")],
    model: Annotated[str, typer.Option(help="Hub id, folder or embedded alias of an encoder.")] = "minilm-l6",
    task: Annotated[str | None, typer.Option(help="sst2 or rte, from the folder that ROSEEDIT_DATA names.")] = None,
    budget: Annotated[float | None, typer.Option(help="Mean share of layers that may run.")] = None,
    train: Annotated[Path | None, typer.Option(help="JSON file to train on, in place of the task's.")] = None,
    dev: Annotated[Path | None, typer.Option(help="JSON file to judge on, in place of the task's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of all draws.")] = None,
    hparams: Annotated[Path | None, typer.Option(help="YAML file; left out: the one that ships for the model.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """See `FIT_EXAMPLES`."""
    settings = _settings(model, hparams, {"budget": budget, "seed": seed})
    from transformers.utils import logging as transformers_logging

    from roseedit.hadskip.encoder.compare import fit_and_compare
    from roseedit.hadskip.encoder.data import read_task
    from roseedit.hadskip.encoder.files import save_classifier
    from roseedit.hadskip.encoder.fit import ClassifierFit
    from roseedit.hadskip.files import check_free

    check_free(out_dir)
    learnt, judged = read_task(task, train, dev)
    transformers_logging.disable_progress_bar()
    gated, figures = fit_and_compare(ClassifierFit(settings, learnt, show=not as_json), judged)
    save_classifier(gated, out_dir)
    if as_json:
        out.print_json(json.dumps(figures))
        return
    _show(figures, settings.budget)
    out.print(f"saved in [bold]{out_dir}[/]")


def classify(
    folder: Annotated[Path, typer.Argument(help="Folder that `skip fit-classifier` wrote.")],
    text: Annotated[list[str], typer.Option(help="Text to classify. Repeatable.")],
    second: Annotated[list[str] | None, typer.Option(help="Second sentence of each pair. Repeatable.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """See `CLASSIFY_EXAMPLES`."""
    if second and len(second) != len(text):
        message = refusal(f"{len(text)} --text and {len(second)} --second", "one --second per --text", "Correct it.")
        raise RequestError(message)
    from transformers.utils import logging as transformers_logging

    from roseedit.hadskip.encoder.files import load_classifier

    transformers_logging.disable_progress_bar()
    gated = load_classifier(folder)
    said = gated.predict(list(zip(text, second, strict=True)) if second else text)
    if as_json:
        out.print_json(json.dumps([vars(p) for p in said]))
        return
    table = Table("text", "label", "probability", "layers run")
    for words, p in zip(text, said, strict=True):
        table.add_row(words, str(p.label), f"{p.probabilities[p.label]:.3f}", " ".join(map(str, p.layers_run)))
    out.print(table)


def _settings(model: str, hparams: Path | None, given: dict[str, Any]) -> Any:
    from roseedit.hadskip.encoder.settings import EncoderHparams
    from roseedit.hparams import from_mapping, read_yaml
    from roseedit.shipped import shipped_hparams

    file = hparams or shipped_hparams(model, EncoderHparams.method)
    base = read_yaml(file) if file else {}
    asked = {name: v for name, v in given.items() if v is not None}
    return from_mapping(EncoderHparams, {**base, "model": model, **asked}, str(file or "options"))


def _show(figures: dict[str, Any], budget: float) -> None:
    title = f"Development data, budget {budget}"
    table = Table("", "accuracy", "95 % interval", "n", "mean cost", title=title, title_justify="left")
    for s in figures["scores"]:
        interval = f"{s['low']:.3f} - {s['high']:.3f}"
        table.add_row(s["name"], f"{s['accuracy']:.3f}", interval, str(s["n"]), f"{s['cost']:.3f}")
    out.print(table)
    speed = f"speed-up measured, batches of 32: x{figures['speed_up']:.2f}"
    out.print(f"{speed}; mean cost on the calibration part {figures['calibrated_cost']:.3f}")
