"""Where in a model a fact can be told from its neighbours, before anything is trained.

    python benchmarks/where.py --limit 32 --out runs/where.json

For every layer and kind of matrix, one input direction is fitted per request: 1 on the last token of its prompt and
rewrites, as near to 0 as ridge regression allows on its anchors (all made from the request alone). Then it is tried on
what was not fitted: the rephrase, on which an edit should fire ("passes"), and the locality probes, on which it should
not ("leaks"). The more passes and the less leaks, the better an edit of that matrix can be. Forward passes only: a few
minutes, against hours for a search that trains.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import torch
from common import machine, write
from torch import Tensor

from roseedit import EditRequest, load_editset, load_model
from roseedit.hparams import read_yaml
from roseedit.models.anatomy import Projection
from roseedit.models.encoding import encode_prompt, pad_right, plan_batches
from roseedit.models.load import LoadedModel
from roseedit.models.replay import run_body
from roseedit.roselora.config import RoseLoRAHparams, read_roselora
from roseedit.roselora.objective import anchor_prompts
from roseedit.roselora.wordings import rewritten_prompts

KINDS = ("fact", "anchor", "rephrase", "locality")
LAST = 3  # tokens of each anchor
FIRED = 0.4  # share of the value on the fact itself that counts as firing


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hparams", default="hparams/RoseLoRA/smollm2-135m.yaml")
    parser.add_argument("--data", default="wikidata-counterfact")
    parser.add_argument("--skip", type=int, default=100, help="records left out at the start; they are for scoring")
    parser.add_argument("--limit", type=int, default=32)
    parser.add_argument("--roles", nargs="*", default=["mlp.down", "attn.o"])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    hparams = read_roselora(read_yaml(args.hparams), args.hparams)
    loaded = load_model(hparams.model)
    requests = load_editset(args.data, limit=args.skip + args.limit).requests[args.skip :]
    asked = [prompts_of(request, hparams) for request in requests]
    projections = loaded.anatomy.select(tuple(args.roles), range(loaded.anatomy.n_layers))
    found = inputs_of(loaded, projections, [text for own in asked for _, text in own])
    print(f"\n{machine()}\n\n| matrix | leaks, mean | fires on locality | passes, mean | fires on rephrase |")
    print("| --- | ---: | ---: | ---: | ---: |")
    results = {}
    for p in sorted(projections, key=lambda p: (p.role, p.layer)):
        results[p.module_name] = told_apart(asked, found[p.module_name], hparams.start_ridge)
        print(f"| {p.role} {p.layer} | {' | '.join(f'{x:.2f}' for x in results[p.module_name].values())} |")
    write(args.out, {"matrices": results, "n": len(requests), "args": vars(args)})


def prompts_of(request: EditRequest, hparams: RoseLoRAHparams) -> list[tuple[str, str]]:
    """(kind, prompt) pairs of one request."""
    rng = random.Random(request.request_id)
    local = [p.prompt for p in request.locality if p.aliases]
    texts = (
        [request.prompt, *rewritten_prompts(request, hparams.rewrites, rng)],
        anchor_prompts(request, hparams),
        request.rephrase,
        rng.sample(local, min(6, len(local))),
    )
    return [(kind, text) for kind, own in zip(KINDS, texts, strict=True) for text in own]


@torch.no_grad()
def inputs_of(
    loaded: LoadedModel, projections: Sequence[Projection], prompts: Sequence[str]
) -> dict[str, list[Tensor]]:
    """Per matrix and prompt what enters it on the last tokens, (tokens, d_in) in half precision."""
    encoded = [encode_prompt(loaded.tokenizer, prompt).ids for prompt in prompts]
    kept: dict[str, list[Tensor]] = {p.module_name: [torch.empty(0)] * len(prompts) for p in projections}
    batch: list[int] = []

    def keep(path: str, inputs: Tensor) -> None:
        x = inputs.reshape(len(batch), -1, inputs.shape[-1])
        for place, i in enumerate(batch):
            kept[path][i] = x[place, max(0, len(encoded[i]) - LAST) : len(encoded[i])].half()

    handles = [
        loaded.model.get_submodule(path).register_forward_pre_hook(lambda _, args, path=path: keep(path, args[0]))
        for path in kept
    ]
    for chosen in plan_batches([len(ids) for ids in encoded], 1024):
        batch[:] = chosen
        run_body(loaded.model, *pad_right([encoded[i] for i in chosen], loaded.pad_id, loaded.device), head=False)
    for handle in handles:
        handle.remove()
    return kept


def told_apart(asked: Sequence[Sequence[tuple[str, str]]], inputs: Sequence[Tensor], ridge: float) -> dict[str, float]:
    """Means over the requests of one matrix's leaks and passes."""
    shares: dict[str, list[float]] = {name: [] for name in ("leaks", "leaks_fired", "passes", "passes_fired")}
    at = 0
    for own in asked:
        mine = inputs[at : at + len(own)]
        at += len(own)
        by_kind = {kind: [x.float() for (k, _), x in zip(own, mine, strict=True) if k == kind] for kind in KINDS}
        direction = fitted(torch.stack([x[-1] for x in by_kind["fact"]]), torch.cat(by_kind["anchor"]), ridge)
        for kind, name in (("locality", "leaks"), ("rephrase", "passes")):
            if by_kind[kind]:
                values = torch.stack([x[-1] for x in by_kind[kind]]) @ direction
                shares[name].append(float(values.abs().mean() if kind == "locality" else values.mean()))
                shares[f"{name}_fired"].append(float((values > FIRED).float().mean()))
    return {name: mean(values) for name, values in shares.items()}


def fitted(facts: Tensor, anchors: Tensor, ridge: float) -> Tensor:
    """The direction that is least on the anchors among those that are 1 on the facts; exactly 1 on the first."""
    penalty = ridge * anchors.square().sum(-1).mean()
    gram = anchors.mT @ anchors + penalty * torch.eye(anchors.shape[1])
    towards = torch.cholesky_solve(facts.mT, torch.linalg.cholesky(gram))
    inner = facts @ towards
    inner += 1e-3 * inner.diagonal().mean() * torch.eye(len(facts))
    direction = towards @ torch.linalg.solve(inner, torch.ones(len(facts)))
    return direction / (facts[0] @ direction)


if __name__ == "__main__":
    main()
