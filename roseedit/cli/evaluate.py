"""`roseedit evaluate`: make and measure the edits of a whole set, resumably."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markdown import Markdown

from roseedit.cli.console import err, out
from roseedit.errors import RunError, refusal

if TYPE_CHECKING:
    from roseedit.runs.options import Data

EVALUATE_EXAMPLES = """
Make the edits of a set, measure each by what the model says, and write a table.

Stop it anywhere; the same command goes on where it stopped and ends with the same bytes.

**Examples**

`roseedit evaluate --hparams hparams/RoseLoRA/smollm2-135m.yaml --data counterfact --limit 100 --out runs/cf`

`roseedit evaluate --hparams H.yaml --data zsre --mode sequential --limit 50 --out runs/seq`

`roseedit evaluate --hparams H.yaml --data counterfact --workers 2 --out runs/cf` (two processes)

`roseedit evaluate --hparams H.yaml --data counterfact --shard 0/3 --out runs/cf` (one of three, on a shared disk)

`torchrun --nproc-per-node 2 -m roseedit.cli evaluate --launcher torchrun ... --out runs/cf`

`roseedit evaluate --launcher ray --workers 8 --address auto ... --out runs/cf`
"""


def evaluate(  # noqa: PLR0917 - typer turns each into an option
    hparams: Annotated[Path, typer.Option(help="YAML file with the method, its settings and the model.")],
    data: Annotated[str, typer.Option(help="Name of an edit set.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Directory of the run: new, or the one to go on with.")],
    file: Annotated[Path | None, typer.Option(help="A file in that set's schema, instead of the set's own.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only this many records from the front of the file.", min=1)] = None,
    mode: Annotated[
        str, typer.Option(help="independent (each edit alone), joint (one delta) or sequential (one after another).")
    ] = "independent",
    seed: Annotated[int | None, typer.Option(help="Replaces the seed of the hparams file.", min=0)] = None,
    shard: Annotated[str, typer.Option(help="Do only shard i of n, as i/n, from 0.")] = "0/1",
    launcher: Annotated[str, typer.Option(help="local, torchrun or ray.")] = "local",
    workers: Annotated[int, typer.Option(help="Processes (local) or actors (ray), one model each.", min=1)] = 1,
    address: Annotated[str | None, typer.Option(help="Ray cluster; left out: one on this machine.")] = None,
    ability: Annotated[
        bool, typer.Option("--ability", help="Also general ability before and after (joint, sequential), all tasks.")
    ] = False,
    ability_task: Annotated[
        list[str] | None, typer.Option(help="Only this task of ability, such as wikitext2. May be repeated.")
    ] = None,
    ability_limit: Annotated[int | None, typer.Option(help="Items per task of ability.", min=1)] = None,
    checkpoints: Annotated[int, typer.Option(help="Looks at all edits so far while a sequence grows.", min=0)] = 4,
    unit: Annotated[int | None, typer.Option(help="Edits made and measured side by side.", show_default="32")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads per process; part of what the run is.")] = None,
    base_cache: Annotated[Path | None, typer.Option(help="Folder of base-model scores shared by runs.")] = None,
) -> None:
    """See `EVALUATE_EXAMPLES`."""
    from roseedit.hparams import read_yaml
    from roseedit.methods import read_hparams
    from roseedit.runs import RunOptions
    from roseedit.runs import evaluate as run

    choice: Any = {"mode": mode, "launcher": launcher}
    options = RunOptions(
        unit=unit,
        threads=threads,
        checkpoints=checkpoints,
        ability=_tasks(ability, ability_task),
        ability_limit=ability_limit,
        workers=workers,
        shard=_shard(shard),
        address=address,
        cache=base_cache,
        **choice,
    )
    options.check()
    settings = read_hparams(read_yaml(hparams), str(hparams))
    try:
        complete = run(settings, _data(data, file, limit), out_dir, options, seed=seed)
    except KeyboardInterrupt:
        err.print(f"stopped; the same command goes on with what is finished in {out_dir}")
        raise typer.Exit(130) from None
    if not _speaks():
        return
    if complete:
        out.print(Markdown((out_dir / "table.md").read_text(encoding="utf-8")))
        out.print(f"written: [bold]{out_dir}[/] (rows/, summary.json, table.md, cost.json)")
    else:
        out.print(f"shard {shard} is finished; the table comes with the last shard")


def _speaks() -> bool:
    """Under torchrun only the first rank prints."""
    import os

    return os.environ.get("RANK", "0") == "0"


def _tasks(everything: bool, named: list[str] | None) -> tuple[str, ...]:
    if named or not everything:
        return tuple(named or ())
    from roseedit.evaluation.ability import known_tasks

    return known_tasks()


def _shard(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not slash or not index.isdecimal() or not count.isdecimal():
        raise RunError(refusal(f"--shard {text!r}", "i/n, such as 0/3", "Write it so."))
    return int(index), int(count)


def _data(name: str, file: Path | None, limit: int | None) -> Data:
    from roseedit.editsets import load_editset
    from roseedit.runs import data_of

    return data_of(load_editset(name, file, limit), limit)
