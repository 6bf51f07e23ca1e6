"""Quality of independent edits: each alone on the base model, measured by what the model says.

    python benchmarks/independent_quality.py --data wikidata-counterfact --limit 100 --out runs/quality.json

Reliability and generality are generated exact match at a natural stop; portability is token accuracy and locality token
agreement with the unedited model, both teacher forced on the first alias, as EasyEdit computes them (labelled so).
Means are taken inside each edit first, then over edits.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence
from pathlib import Path

from common import figure, show, write

from roseedit import Editor, EditRequest, load_editset
from roseedit.edits.bank import bank_of
from roseedit.evaluation.generation import generate
from roseedit.evaluation.metrics import exact_match, mean_by_edit, token_agreement
from roseedit.evaluation.scoring import score
from roseedit.methods import find_method
from roseedit.requests import Probe
from roseedit.roselora.adapter import FactorBank
from roseedit.roselora.objective import anchor_prompts, fact_prompts


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hparams", default="hparams/RoseLoRA/smollm2-135m.yaml")
    parser.add_argument("--data", default="wikidata-counterfact")
    parser.add_argument("--skip", type=int, default=0, help="records left out at the start")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    requests = list(load_editset(args.data, limit=args.skip + args.limit).requests)[args.skip :]
    editor = Editor.from_hparams(args.hparams)
    loaded = editor.loaded
    cpu, started = time.process_time(), time.perf_counter()
    made = find_method(editor.hparams.method).fit(loaded, requests, editor.hparams, joint=False)
    cost = {"cpu_s_per_edit": (time.process_time() - cpu) / len(requests), "wall_s": time.perf_counter() - started}
    bank = bank_of(loaded, [m.delta for m in made])
    figures = {
        "reliability (generated, natural stop)": figure(said(editor, requests, bank, rephrase=False)),
        "generality (generated, natural stop)": figure(said(editor, requests, bank, rephrase=True)),
        **forced(editor, requests, bank),
        "density of the product": figure([float(m.report["density"]) for m in made]),
        "steps": figure([float(m.report["steps"]) for m in made]),
    }
    leaks = shared_with_probes(editor, requests)
    show(f"{args.data}, first {len(requests)} records, {loaded.name}", figures)
    print(
        f"\n{cost['cpu_s_per_edit']:.2f} CPU s per edit ({cost['wall_s']:.0f} s in all); "
        f"anchors and wordings equal to a probe: {leaks}"
    )
    write(args.out, {"figures": figures, "cost": cost, "equal_to_a_probe": leaks, "args": vars(args)})


def said(editor: Editor, requests: Sequence[EditRequest], bank: FactorBank, *, rephrase: bool) -> list[float]:
    """Generated exact match per edit, on the prompt or its rephrases."""
    prompts = [(i, text) for i, r in enumerate(requests) for text in (r.rephrase if rephrase else (r.prompt,))]
    rows = [i for i, _ in prompts]
    answers = generate(editor.loaded, [text for _, text in prompts], edits=bank, rows=rows)
    hits = [float(exact_match(a, requests[i].accepted)) for a, i in zip(answers, rows, strict=True)]
    return mean_by_edit(hits, rows)


def forced(editor: Editor, requests: Sequence[EditRequest], bank: FactorBank) -> dict[str, dict[str, float]]:
    """Teacher-forced portability (before and after) and locality."""
    port = [(i, p) for i, r in enumerate(requests) for p in r.portability if p.aliases]
    loc = [(i, p) for i, r in enumerate(requests) for p in r.locality if p.aliases]

    def scores(probes: list[tuple[int, Probe]], edited: bool) -> list:
        rows = [i for i, _ in probes] if edited else None
        return score(editor.loaded, [(p.prompt, p.aliases[0]) for _, p in probes], edits=bank, rows=rows)

    before, after = scores(port, False), scores(port, True)
    agreement = [token_agreement(b, a) for b, a in zip(scores(loc, False), scores(loc, True), strict=True)]
    out = {
        "portability before (token accuracy)": figure(_by_edit(port, [s.token_accuracy for s in before])),
        "portability (token accuracy)": figure(_by_edit(port, [s.token_accuracy for s in after])),
        "locality (token agreement)": figure(_by_edit(loc, agreement)),
    }
    for what, probes, values in (
        ("portability", port, [s.token_accuracy for s in after]),
        ("locality", loc, agreement),
    ):
        for group in sorted({p.group for _, p in probes}):
            own = [(x, v) for x, v in zip(probes, values, strict=True) if x[1].group == group]
            out[f"{what}: {group}"] = figure(_by_edit([x for x, _ in own], [v for _, v in own]))
    return out


def _by_edit(probes: Sequence[tuple[int, Probe]], values: Sequence[float]) -> list[float]:
    return mean_by_edit(values, [i for i, _ in probes])


def shared_with_probes(editor: Editor, requests: Sequence[EditRequest]) -> int:
    """How many anchors and other wordings that are trained on happen to equal an evaluation probe; must be 0."""
    count = 0
    for r in requests:
        trained = itertools.chain(*fact_prompts(r, editor.hparams))
        probes = {p.prompt for p in (*r.locality, *r.portability)} | set(r.rephrase)
        count += len(probes & ({*anchor_prompts(r, editor.hparams), *trained} - {r.prompt}))
    return count


if __name__ == "__main__":
    main()
