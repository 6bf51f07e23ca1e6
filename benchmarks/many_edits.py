"""Many facts on one model: joint edits of growing size, and a sequence that is consolidated, beside each other.

    ROSEEDIT_DATA=... python benchmarks/many_edits.py --out runs/many                          # hours on two cores
    ROSEEDIT_DATA=... python benchmarks/many_edits.py --out runs/many --counts 1 10 --sequence 10
    ROSEEDIT_DATA=... python benchmarks/many_edits.py --out runs/m --hparams hparams/RoseLoRA/thousand-smollm2-135m.yaml
      --counts 1000 --more counterfact:paraphrases   # the public file has 605 facts; the rest comes from another set

Every row is a run of `roseedit.runs.evaluate` in a folder of its own under --out, measured with all edits live: stop it
anywhere, the same command goes on. Reliability and generality are generated exact match at a natural stop, locality is
token agreement with the unedited model, "unchanged" its generated answers; perplexity is that of WikiText-2's test part
over the unedited model's. `--sequence N` makes N edits one after another in a ledger, measures them, consolidates, says
whether the consolidated delta is the joint one, byte for byte, and measures it like the others. With `--every M` it is
consolidated after every M edits too, what is fitted already left as it is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import figure, write

from roseedit import Editor, load_editset
from roseedit.edits.edit import Edit
from roseedit.edits.files import load_edit
from roseedit.evaluation.overall import by_edit
from roseedit.evaluation.perplexity import perplexity, wikitext
from roseedit.hparams import Hparams, read_yaml
from roseedit.methods import read_hparams
from roseedit.progress import bar
from roseedit.requests import EditRequest
from roseedit.roselora.neurons.subjects import subject_key
from roseedit.runs import RunOptions, data_of, evaluate, read_run
from roseedit.runs.files import Layout
from roseedit.runs.options import Data

COUNTS = (1, 10, 100, 300, 1000)
TEXT = {"max_tokens": 16_384, "context": 512, "stride": 448}  # of WikiText-2's test part
SHOWN = ("reliability", "generality", "locality", "unchanged")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hparams", default="hparams/RoseLoRA/smollm2-135m.yaml")
    parser.add_argument("--data", default="counterfact")
    parser.add_argument("--more", help="set whose facts about further subjects follow when the first has no more")
    parser.add_argument("--counts", type=int, nargs="*", default=list(COUNTS), help="records of the joint runs")
    parser.add_argument("--sequence", type=int, default=0, help="records of the sequence; 0: none")
    parser.add_argument("--every", type=int, default=0, help="edits of the sequence after which it is consolidated too")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs; go on with it by the same command")
    args = parser.parse_args()
    hparams = read_hparams(read_yaml(args.hparams), args.hparams)
    print("| edits | mode | " + " | ".join(SHOWN) + " | perplexity x | s / edit |\n|---|---|" + "---:|" * 6, flush=True)
    lines = [measured(hparams, args, count, "joint") for count in args.counts]
    result: dict[str, Any] = {"lines": lines, "args": vars(args)}
    if args.sequence:
        lines.append(measured(hparams, args, args.sequence, "sequential"))
        result["consolidated"] = consolidated(hparams, args)
        lines.append(measured(hparams, args, args.sequence, "joint", "consolidated"))
        print(f"\nconsolidated delta is the joint one, byte for byte: {result['consolidated']['equal']}")
    if len(args.counts) > 1:
        joint = [line for line in lines if line["mode"] == "joint"]
        plot(args.out / f"many-{args.data}.png", sorted(joint, key=lambda line: line["edits"]))
    write(args.out / "many.json", result)


def measured(hparams: Hparams, args: argparse.Namespace, count: int, mode: Any, name: str = "") -> dict[str, Any]:
    """One line: the run, made where it is missing; `name` where it is not called after its mode."""
    name = name or mode
    folder = args.out / f"{args.data}-{name}-{count}"
    options = RunOptions(mode=mode, threads=1, checkpoints=0, cache=args.out / "base-scores")
    evaluate(hparams, facts(args.data, args.more, count), folder, options)
    run = read_run(folder)
    values = by_edit(run.rows[run.rows["stage"] == "end"], [str(r["key"]) for r in run.requests])
    line: dict[str, Any] = {"mode": name, "records": count, "edits": len(run.requests), "folder": str(folder)}
    line |= {name: figure([v for v in values[name] if not math.isnan(v)]) for name in SHOWN}
    line["perplexity_ratio"] = _perplexity_ratio(hparams, folder)
    line["seconds_per_edit"] = run.cost.get("edit_s_per_edit")
    cells = [f"{line[n]['mean']:.2f} ({line[n]['low']:.2f} - {line[n]['high']:.2f})" for n in SHOWN]
    seconds = "-" if line["seconds_per_edit"] is None else f"{line['seconds_per_edit']:.2f}"
    print(
        f"| {line['edits']} | {name} | {' | '.join(cells)} | {line['perplexity_ratio']:.3f} | {seconds} |", flush=True
    )
    return line


def facts(name: str, more: str | None, count: int) -> Data:
    """The first records of a set and, where it has too few, facts about other subjects of a second one."""
    first = load_editset(name, limit=count)
    missing = count - first.n_records
    if more is None or missing <= 0:
        return data_of(first, count)
    second, there = load_editset(more), {subject_key(request) for request in first.requests}
    others: list[EditRequest] = []
    for request in second.requests:
        if subject_key(request) not in there:
            there.add(subject_key(request))
            others.append(request)
    both = first.requests + tuple(others[: count - len(first.requests)])
    sha256 = hashlib.sha256(f"{first.sha256} {second.sha256}".encode()).hexdigest()
    return Data(f"{data_of(first).name}+{data_of(second).name}", sha256, both, limit=count)


def _perplexity_ratio(hparams: Hparams, folder: Path) -> float:
    """Of the model with a run's edits on it to the unedited one's."""

    def of(kept: Path, edits: Sequence[Path]) -> float:
        if not kept.exists():
            editor = Editor.from_hparams(hparams, show_progress=False)
            for edit in edits:
                editor.load(edit)
            kept.write_text(json.dumps({"perplexity": perplexity(editor.loaded, wikitext(), **TEXT).value, **TEXT}))
        return float(json.loads(kept.read_text())["perplexity"])

    edits = sorted(path for path in (folder / "edits").iterdir() if path.is_dir())
    base = re.sub(r"[^\w.-]+", "-", f"base-perplexity-{hparams.model}.json")
    return of(folder / "perplexity.json", edits) / of(folder.parent / base, [])


def consolidated(hparams: Hparams, args: argparse.Namespace) -> dict[str, Any]:
    """Edits one by one in a ledger, then as one: compared with the joint edit, and laid where `measured` finds it."""
    layout = Layout(args.out / f"{args.data}-joint-{args.sequence}")
    beside = Layout(args.out / f"{args.data}-consolidated-{args.sequence}")
    joint, made_by = load_edit(layout.edit(0)), json.loads(layout.identity.read_text())["hparams"]
    sizes = {name: made_by[name] for name in ("edits_per_bank", "batch_tokens")}  # of passes: they decide on last bits
    with Editor.from_hparams(
        hparams.replaced(**sizes), ledger=args.out / f"{args.data}-ledger-{args.sequence}"
    ) as editor:
        if len(editor.edits) != 1 or len(editor.edits[0].requests) < len(joint.requests):
            there = {r.request_id for edit in editor.edits for r in edit.requests}
            with bar(len(joint.requests), "one by one", True, len(there)) as progress:
                for count, request in enumerate(joint.requests, 1):
                    if request.request_id not in there:
                        editor.edit(request, mode="sequential", evaluate=False)
                        progress(1)
                        if args.every and count % args.every == 0:
                            editor.consolidate(keep=True)
            if len(editor.edits) > 1:
                editor.consolidate(keep=bool(args.every))
        found = sha_of(editor.edits[0])
        _lay(editor, layout, beside)
    return {"equal": found == sha_of(joint), "sha256": found, "joint_sha256": sha_of(joint)}


def _lay(editor: Editor, joint: Layout, beside: Layout) -> None:
    """Make the only live edit that of a run which answers the joint run's requests, with its settings."""
    if beside.edit(0).exists():
        return
    beside.edits.mkdir(parents=True, exist_ok=True)
    for path in (joint.identity, joint.requests):
        shutil.copy(path, beside.root / path.name)
    editor.save(editor.edits[0].edit_id, beside.edit(0))


def sha_of(edit: Edit) -> str:
    """Checksum of a delta's numbers."""
    total = hashlib.sha256()
    for matrix in sorted(edit.delta.matrices, key=lambda m: m.weight_name):
        total.update(matrix.weight_name.encode())
        for part in (matrix.a, matrix.b):
            total.update(part.index.numpy().tobytes() + part.value.numpy().tobytes() + part.pointer.numpy().tobytes())
    return total.hexdigest()


def plot(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Figures against the number of facts."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(drawing)
    axes = drawing.subplots()
    xs = [line["edits"] for line in lines]
    for name in SHOWN:
        ys = [line[name]["mean"] for line in lines]
        errors = [[abs(line[name]["mean"] - line[name][side]) for line in lines] for side in ("low", "high")]
        axes.errorbar(xs, ys, yerr=errors, marker="o", capsize=2, label=name)
    axes.plot(xs, [line["perplexity_ratio"] - 1 for line in lines], "k--", marker="s", label="perplexity, growth")
    axes.set(xscale="log", xlabel="facts in one delta", ylim=(-0.03, 1.03))
    axes.legend(fontsize="small")
    drawing.savefig(path, dpi=120)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
