"""`roseedit skip`: fit gates that skip layers within a budget, compare them with static choices, show what there is."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from roseedit.cli.console import out
from roseedit.cli.skip_encoder import CLASSIFY_EXAMPLES, classify, fit_classifier
from roseedit.cli.skip_encoder import FIT_EXAMPLES as CLASSIFIER_EXAMPLES
from roseedit.errors import SkipError, refusal

if TYPE_CHECKING:
    from roseedit.edits.edit import Edit
    from roseedit.hadskip.profile import SkipProfiles
    from roseedit.models.load import LoadedModel

app = typer.Typer(help="HadSkip: gates that skip layers of the edited model, within a budget.", no_args_is_help=True)
app.command(name="fit-classifier", help=CLASSIFIER_EXAMPLES)(fit_classifier)
app.command(help=CLASSIFY_EXAMPLES)(classify)
FIT_EXAMPLES = """
Fit gates and healing on the model as it is served, edits applied. The backbone is not changed.

Stopped, the same command goes on where it was.

**Examples**

`roseedit skip fit --model smollm2-135m --budget 0.75 --out gates-0.75`

`roseedit skip fit --model smollm2-135m --ledger edits --budget 0.75 --out gates-of-edits`

`roseedit skip fit --model smollm2-135m --edit my-edit --budget 0.6 --text my.txt --healing lora --out gates-0.6`
"""
BENCH_EXAMPLES = """
Compare gates with static choices of the same mean cost, healed and trained alike.

**Example**

`roseedit skip bench --model smollm2-135m --gates gates-0.75 --gates gates-0.6 --out bench`
"""
EXPORT_EXAMPLES = """
Write a profile for other programs.

`checkpoint`: the layers that one profile runs, as a stock checkpoint: a smaller model, or a draft for speculative
decoding. Healing has no place in it and is left out. `code`: the whole model with its gates and healing, for
`from_pretrained(..., trust_remote_code=True)`; roseedit is not needed to run it.

**Examples**

`roseedit skip export smollm2-135m-0.6 --to checkpoint --out draft`

`roseedit skip export gates-of-edits --to code --ledger edits --out served`
"""
Model = Annotated[str, typer.Option(help="Hub id, folder, .gguf file or embedded alias.")]
Edits = Annotated[list[Path] | None, typer.Option("--edit", help="Folder of a saved edit to bring live. Repeatable.")]
InLedger = Annotated[Path | None, typer.Option("--ledger", help="Bring live what is applied in this ledger.")]


@app.command(help=FIT_EXAMPLES)
def fit(  # noqa: PLR0917 - typer turns each into an option
    out_dir: Annotated[Path, typer.Option("--out", help="New folder for the gates.")],
    model: Model = "smollm2-135m",
    budget: Annotated[float | None, typer.Option(help="Mean share of layer cost that may run.")] = None,
    edit: Edits = None,
    ledger: InLedger = None,
    text: Annotated[str | None, typer.Option(help="wikitext2 (its validation part) or a text file.")] = None,
    healing: Annotated[str | None, typer.Option(help="What skipped layers do: none, scale or lora.")] = None,
    hparams: Annotated[Path | None, typer.Option(help="YAML file; left out: the one that ships for the model.")] = None,
    work: Annotated[
        Path | None,
        typer.Option(help="Folder for unfinished fits; several budgets may share it.", show_default="OUT.work"),
    ] = None,
) -> None:
    """See `FIT_EXAMPLES`."""
    settings = _settings(model, hparams, {"budget": budget, "text": text, "healing": healing})
    _check_free(out_dir)
    loaded, edits = _loaded(model, edit or [], ledger)
    from roseedit.hadskip.files import save_profiles
    from roseedit.hadskip.fit import Fit

    work = work or out_dir.with_name(out_dir.name + ".work")
    profiles = Fit(loaded, settings, edits, work=work, show=True, brought_by=_brought_by(edit or [], ledger)).run()
    save_profiles(profiles, out_dir)
    _show(profiles)
    out.print(f"saved in [bold]{out_dir}[/]")


@app.command(help=BENCH_EXAMPLES)
def bench(  # noqa: PLR0917 - typer turns each into an option
    gates: Annotated[list[str], typer.Option(help="Folder that `skip fit` wrote, or shipped gates. Repeatable.")],
    model: Model = "smollm2-135m",
    edit: Edits = None,
    ledger: InLedger = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(help="influence, static-kl, static-spans, even, random, prefix-exit, dense. Repeatable."),
    ] = None,
    sequences: Annotated[int, typer.Option(min=2, help="Test sequences.")] = 64,
    text: Annotated[str, typer.Option(help="wikitext2 (its test part) or a text file.")] = "wikitext2",
    speed: Annotated[bool, typer.Option(help="Time the gates' profiles too.")] = True,
    out_dir: Annotated[Path | None, typer.Option("--out", help="Folder for bench.json and bench.png.")] = None,
    work: Annotated[Path, typer.Option(help="Folder for unfinished runs.")] = Path("skip-bench.work"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """See `BENCH_EXAMPLES`."""
    from roseedit.hadskip.baselines import BASELINES

    names = baseline or list(BASELINES)
    for name in names:
        if name not in BASELINES:
            raise SkipError(refusal(f"baseline {name!r}", ", ".join(BASELINES), "Choose among them."))
    from roseedit.hadskip.bench import Bench
    from roseedit.hadskip.files import load_profiles
    from roseedit.hadskip.shipped import find_gates

    all_profiles = [load_profiles(find_gates(folder)) for folder in gates]
    loaded, edits = _loaded(model, edit or [], ledger)
    results = []
    for profiles in all_profiles:
        run = Bench(loaded, profiles, edits, sequences=sequences, text=text, work=work, show=not as_json)
        results.append(run.run(names, speed=speed))
        if not as_json:
            _show_bench(results[-1])
    if as_json:
        out.print_json(json.dumps(results))
    if out_dir is not None:
        from roseedit.hadskip.plot import draw

        out_dir.mkdir(parents=True, exist_ok=True)
        (out_dir / "bench.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
        draw(results, out_dir / "bench.png")
        if not as_json:
            out.print(f"written: {out_dir / 'bench.json'}, {out_dir / 'bench.png'}")


@app.command(help=EXPORT_EXAMPLES)
def export(  # noqa: PLR0917 - typer turns each into an option
    gates: Annotated[str, typer.Argument(help="Folder that `skip fit` wrote, or the name of shipped gates.")],
    out_dir: Annotated[Path, typer.Option("--out", help="New folder.")],
    to: Annotated[str, typer.Option(help="checkpoint: the layers of one profile. code: the model with its gates.")],
    profile: Annotated[str | None, typer.Option(help="Which profile; left out: the cheapest. For checkpoint.")] = None,
    model: Model = "smollm2-135m",
    edit: Edits = None,
    ledger: InLedger = None,
) -> None:
    """See `EXPORT_EXAMPLES`."""
    if to not in {"checkpoint", "code"}:
        raise SkipError(refusal(f"--to {to!r}", "checkpoint, code", "Choose one of them."))
    _check_free(out_dir)
    from roseedit.hadskip.export.custom import export_custom
    from roseedit.hadskip.export.dropped import export_dropped, layers_of
    from roseedit.hadskip.files import load_profiles
    from roseedit.hadskip.shipped import find_gates

    profiles = load_profiles(find_gates(gates))
    name = profile or min(profiles.profiles, key=lambda p: p.cost).name
    layers_of(profiles, name)
    loaded, _ = _loaded(model, edit or [], ledger)
    if to == "code":
        export_custom(loaded, profiles, out_dir)
    else:
        done = export_dropped(loaded, profiles, name, out_dir)
        figures = ", ".join(f"{n} {v['mean']:.3f}" for n, v in done.figures.items() if isinstance(v, dict))
        out.print(f"{done.figures['layers']} layers, against the full model on the calibration text: {figures}")
    out.print(f"written to [bold]{out_dir}[/]; how to use it stands in its README.md")


@app.command()
def show(
    folder: Annotated[str, typer.Argument(help="Folder that `skip fit` wrote, or the name of shipped gates.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show the profiles in a folder: executed layers, cost, figures and the command that made them."""
    from roseedit.hadskip.files import load_profiles
    from roseedit.hadskip.shipped import find_gates

    profiles = load_profiles(find_gates(folder))
    if as_json:
        listed = [{**vars(p), "layers": list(p.layers), "measured": dict(p.measured)} for p in profiles.profiles]
        record = {"model": profiles.model_name, "fingerprint": profiles.fingerprint, "profiles": listed}
        out.print_json(json.dumps({**record, "made_by": dict(profiles.made_by)}))
        return
    _show(profiles)
    out.print(f"model {profiles.model_name}, weights {profiles.fingerprint[:12]}, protected {list(profiles.protected)}")
    out.print(str(profiles.made_by.get("command", "")), highlight=False)


def _settings(model: str, hparams: Path | None, given: dict[str, Any]) -> Any:
    from roseedit.hadskip.settings import HadSkipHparams
    from roseedit.hparams import from_mapping, read_yaml
    from roseedit.shipped import shipped_hparams

    file = hparams or shipped_hparams(model, "HadSkip")
    base = read_yaml(file) if file else {}
    return from_mapping(
        HadSkipHparams, {**base, "model": model, **{k: v for k, v in given.items() if v is not None}}, str(file or "")
    )


def _check_free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SkipError(refusal(f"the folder {str(folder)!r}, which is in use", "a new or empty one", "Name another."))


def _brought_by(folders: list[Path], ledger: Path | None) -> str:
    """The options that bring the edits live, folders by their last part."""
    named = [("--ledger", ledger)] if ledger else []
    return "".join(f" {option} {folder.name}" for option, folder in [*named, *(("--edit", f) for f in folders)])


def _loaded(model: str, folders: list[Path], ledger: Path | None) -> tuple[LoadedModel, list[Edit]]:
    """The model with edits live: those of a ledger, then those in folders. The ledger is only read."""
    from transformers.utils import logging as transformers_logging

    from roseedit.edits.book import Book
    from roseedit.edits.files import load_edit
    from roseedit.edits.ledger import Ledger
    from roseedit.models.load import load_model

    transformers_logging.disable_progress_bar()
    with Ledger(ledger) if ledger else nullcontext() as known:  # a broken ledger is refused before the model is loaded
        loaded = load_model(model)
        book = Book(loaded, known)
        for folder in folders:
            book.put_on(load_edit(folder, loaded))
    return loaded, list(book.edits.values())


def _show(profiles: SkipProfiles) -> None:
    table = Table("profile", "cost", "skipped layers", "figures", title="Profiles", title_justify="left")
    for p in sorted(profiles.profiles, key=lambda p: -p.cost):
        figures = ", ".join(f"{name} {value:.3g}" for name, value in p.measured.items())
        skipped = " ".join(map(str, p.skipped(profiles.n_layers)))
        table.add_row(p.name, f"{p.cost:.3f}", skipped, figures)
    out.print(table)


def _show_bench(result: dict[str, Any]) -> None:
    title = f"{result['model']}, budget {result['budget']}, {result['sequences']} x {result['tokens']} tokens"
    table = Table("", "cost", "perplexity x", "KL", "agreement", "gates' gain", title=title, title_justify="left")
    for line in result["lines"]:
        gain = line.get("gates_less_this")
        said = "" if gain is None else f"{-gain['mean']:+.3f} ({-gain['high']:+.3f} to {-gain['low']:+.3f})"
        cells = [_interval(line[name]) for name in ("perplexity_ratio", "kl", "agreement")]
        table.add_row(line["name"], f"{line['cost']:.3f}", *cells, said)
    out.print(table)
    for line in result["lines"]:
        for name, figure in line.get("edits", {}).items():
            out.print(f"{line['name']}: {name} {_interval(figure)}, n {figure['n']}, full model {figure['full']:.3f}")
    gates = result["lines"][0]
    for rows in (1, 8):
        if speed := gates.get(f"speed_batch_{rows}"):
            limit = f"limit (L+r)/(k+r) {speed['limit']:.2f}, reached {speed['reached']:.2f} of it"
            out.print(f"batch {rows}: decode x{speed['decode']:.2f}, prefill x{speed['prefill']:.2f}; {limit}")


def _interval(figure: dict[str, float]) -> str:
    return f"{figure['mean']:.3f} ({figure['low']:.3f} - {figure['high']:.3f})"
