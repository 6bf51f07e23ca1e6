"""Do edits survive with layers skipped: joint edits, gates fitted on them, scores with all layers and within a budget.

    ROSEEDIT_DATA=... python benchmarks/skip_edits.py --limit 30 --budgets 0.75 0.5 --work runs/skip-edits

Reliability and generality are generated exact match, locality is token agreement with the edited model at full depth;
intervals by bootstrap over edits. A stopped run goes on: the joint edit and all stages of the fits are kept in --work.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import write

from roseedit import Editor, load_editset
from roseedit.edits.edit import Edit
from roseedit.hadskip.bench import Bench
from roseedit.hadskip.files import load_profiles, save_profiles
from roseedit.hadskip.fit import Fit
from roseedit.hadskip.settings import HadSkipHparams
from roseedit.hparams import from_mapping, read_yaml


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hparams", default="hparams/RoseLoRA/smollm2-135m.yaml")
    parser.add_argument("--skip-hparams", type=Path, default=Path("hparams/HadSkip/smollm2-135m.yaml"))
    parser.add_argument("--data", default="wikidata-counterfact")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--budgets", type=float, nargs="*", default=[0.75, 0.5])
    parser.add_argument("--baselines", nargs="*", default=["static-spans"])
    parser.add_argument("--sequences", type=int, default=32, help="of text")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    editor = Editor.from_hparams(args.hparams)
    edit = joint_edit(editor, args)
    base = from_mapping(HadSkipHparams, read_yaml(args.skip_hparams), str(args.skip_hparams))
    results = []
    print(f"\n{len(edit.requests)} joint edits of {args.data}\n")
    print("| budget | layers | reliability | full | ratio | generality | locality | perplexity x | n |")
    print("|---|---|---|---|---|---|---|---|---|")
    for budget in args.budgets:
        folder = args.work / f"gates-{len(edit.requests)}-{budget:g}"
        if not folder.exists():
            save_profiles(Fit(editor.loaded, base.replaced(budget=budget), [edit], work=args.work).run(), folder)
        bench = Bench(editor.loaded, load_profiles(folder), [edit], sequences=args.sequences, work=args.work)
        results.append(bench.run(args.baselines, speed=False))
        for line in results[-1]["lines"]:
            own, ratio = line["edits"], line["perplexity_ratio"]
            full = own["reliability"]["full"]
            cells = [_interval(own[name]) if name in own else "" for name in ("reliability", "generality", "locality")]
            print(
                f"| {budget:g} | {line['name']} | {cells[0]} | {full:.3f} | {own['reliability']['mean'] / full:.3f} "
                f"| {cells[1]} | {cells[2]} | {_interval(ratio)} | {own['reliability']['n']} |",
                flush=True,
            )
    write(args.out, {"results": results, "args": vars(args)})


def joint_edit(editor: Editor, args: argparse.Namespace) -> Edit:
    """All requests in one delta, live; from its files when it was made before."""
    folder = args.work / f"edit-{args.limit}"
    if folder.exists():
        return editor.load(folder)
    requests = list(load_editset(args.data, limit=args.limit).requests)
    edit = editor.edit(requests, mode="joint", evaluate=False).edits[0]
    editor.save(edit.edit_id, folder)
    return edit


def _interval(figure: dict[str, float]) -> str:
    return f"{figure['mean']:.3f} ({figure['low']:.3f} - {figure['high']:.3f})"


if __name__ == "__main__":
    main()
