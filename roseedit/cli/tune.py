"""`roseedit tune`: search for a method's settings on a slice of a data set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from roseedit.cli.console import err, out
from roseedit.errors import DataError, refusal

if TYPE_CHECKING:
    from roseedit.hparams import Hparams
    from roseedit.runs.options import Data

TUNE_EXAMPLES = """
Search for settings: the harmonic mean of reliability, generality, locality and portability gain on some edits.

Works for any model: places are searched as shares of depth, beginning at what ships for the model or at the defaults.
Stop it anywhere; the same command goes on. Report on other records than those it was tuned on.

**Examples**

`roseedit tune --model smollm2-135m --data wikidata-counterfact --method FT-M --trials 30 --out tuned/ft-m`

`roseedit tune --model gemma3-270m --data zsre-knowedit --offset 300 --limit 24 --trials 30 --out tuned/gemma`
"""


def tune(  # noqa: PLR0917 - typer turns each into an option
    data: Annotated[str, typer.Option(help="Name of an edit set.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Folder of the search: new, or the one to go on with.")],
    model: Annotated[str, typer.Option(help="Hub id, folder, .gguf file or embedded alias.")] = "smollm2-135m",
    method: Annotated[str, typer.Option(help="Editing method.")] = "RoseLoRA",
    trials: Annotated[int, typer.Option(help="Settings tried in all, earlier starts included.", min=1)] = 30,
    limit: Annotated[int, typer.Option(help="Edits that every trial is judged by.", min=1)] = 16,
    offset: Annotated[int, typer.Option(help="Records left out at the front of the file.", min=0)] = 0,
    file: Annotated[Path | None, typer.Option(help="A file in that set's schema, instead of the set's own.")] = None,
    hparams: Annotated[
        Path | None, typer.Option(help="YAML file to begin at; left out: the one that ships for the model.")
    ] = None,
    first: Annotated[int, typer.Option(help="Edits after which a hopeless trial is given up.", min=1)] = 4,
    seed: Annotated[int, typer.Option(help="Of the search.", min=0)] = 0,
    threads: Annotated[int, typer.Option(help="Processor threads.", min=1)] = 1,
) -> None:
    """See `TUNE_EXAMPLES`."""
    start = _start(model, method, hparams)
    from roseedit.tuning import TuneOptions
    from roseedit.tuning import tune as search

    options = TuneOptions(trials=trials, first=first, seed=seed, threads=threads)
    try:
        found = search(start, _slice(data, file, offset, limit), out_dir, options)
    except KeyboardInterrupt:
        err.print(f"stopped; the same command goes on with the trials in {out_dir}")
        raise typer.Exit(130) from None
    out.print(f"best of {found.trials} trials: number {found.trial}, harmonic mean {found.value:.3f} on {limit} edits")
    out.print(f"written: [bold]{out_dir}[/] (best.yaml, trials.md, trials.csv, search.png)")


def _start(model: str, method: str, hparams: Path | None) -> Hparams:
    from roseedit.hparams import read_yaml
    from roseedit.methods import find_method
    from roseedit.shipped import shipped_hparams

    source = hparams if hparams is not None else shipped_hparams(model, method)
    values = read_yaml(source) if source is not None else {}
    return find_method(method).read({"method": method, **values, "model": model}, str(source or "hparams"))


def _slice(name: str, file: Path | None, offset: int, limit: int) -> Data:
    """Records `offset` to `offset + limit` of a set."""
    from roseedit.editsets import load_editset
    from roseedit.runs import data_of

    data = data_of(load_editset(name, file, offset + limit), offset + limit)
    if len(data.requests) <= offset:
        message = refusal(f"--offset {offset} of {len(data.requests)} edits", "less", "Lower it.")
        raise DataError(message)
    return replace(data, requests=data.requests[offset:])
