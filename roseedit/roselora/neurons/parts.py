"""Finished parts of one change: worn by the model while the next is fitted, and put together at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from roseedit.models.load import LoadedModel
from roseedit.roselora.adapter import Factors
from roseedit.roselora.neurons.mlp import weight_of
from roseedit.roselora.trainer import Trained


@contextmanager
def wearing(loaded: LoadedModel, parts: Sequence[Trained]) -> Iterator[None]:
    """Inside the block the model has the changes; its own parameters are put aside unwritten."""
    own: dict[str, nn.Parameter] = {}
    projections = {p.module_name: p for p in loaded.anatomy.projections}
    try:
        for path in {path for part in parts for path in part.factors}:
            module = loaded.model.get_submodule(path)
            own[path] = module.weight
            changed = weight_of(loaded.model, projections[path]).float().clone()
            for part in parts:
                if path in part.factors:
                    changed += part.factors[path].b @ part.factors[path].a
            changed = changed.t() if projections[path].transposed else changed
            module.weight = nn.Parameter(changed.to(own[path].dtype).contiguous(), requires_grad=False)
        yield
    finally:
        for path, weight in own.items():
            loaded.model.get_submodule(path).weight = weight


def merged(parts: Sequence[Trained]) -> Trained:
    """Several changes as one."""
    if len(parts) == 1:
        return parts[0]
    found: dict[str, list[Factors]] = {}
    for part in parts:
        for path, factors in part.factors.items():
            found.setdefault(path, []).append(factors)
    whole = {p: Factors(torch.cat([f.a for f in own]), torch.cat([f.b for f in own], 1)) for p, own in found.items()}
    steps, sure = sum(part.steps for part in parts), min(part.probability for part in parts)
    return Trained(whole, steps, sure, all(part.converged for part in parts))
