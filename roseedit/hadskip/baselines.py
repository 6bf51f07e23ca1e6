"""What gates must beat: choices that are the same for every input, at the same cost and with the same healing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from roseedit.errors import SkipError, refusal
from roseedit.hadskip.distil import DistilSettings, lr_at
from roseedit.hadskip.paths import executing
from roseedit.hadskip.teacher import Teacher, kl, some_positions, student_logprobs
from roseedit.models.load import LoadedModel

BASELINES = ("influence", "static-kl", "static-spans", "even", "random", "prefix-exit", "dense")


def baseline_set(
    name: str, n_layers: int, skippable: Sequence[int], run: int, *, importance: Tensor | None = None, seed: int = 0
) -> tuple[int, ...]:
    """The executed layers of a static choice.

    Args:
        name: `influence` (ShortGPT: least 1 - cos dropped), `static-kl`, `static-spans` and `dense` go by the
            importance given; `even`: the dropped ones evenly spaced; `random`; `prefix-exit`: the first `run` layers,
            whatever is protected.
        n_layers: Layers of the model.
        skippable: Layers that may be dropped.
        run: How many layers run.
        importance: (len(skippable),), for the choices that need one.
        seed: Of `random`.

    Returns:
        Indices, sorted.

    Raises:
        SkipError: An unknown name, or more to drop than may be dropped.
    """
    drop = n_layers - run
    if name not in BASELINES or not 0 <= drop <= len(skippable):
        got = f"baseline {name!r} with {run} of {n_layers} layers run"
        allowed = f"{', '.join(BASELINES)}; at most {len(skippable)} dropped"
        raise SkipError(refusal(got, allowed, "Choose another."))
    if name == "prefix-exit":
        return tuple(range(run))
    if name == "even":
        places = [round((i + 0.5) * len(skippable) / drop - 0.5) for i in range(drop)]
        gone = {skippable[i] for i in places}
    elif name == "random":
        order = torch.randperm(len(skippable), generator=torch.Generator().manual_seed(seed))
        gone = {skippable[int(i)] for i in order[:drop]}
    else:
        if importance is None:
            raise SkipError(refusal(f"baseline {name!r} without importance", "one per layer", "Pass it."))
        gone = {skippable[int(i)] for i in importance.argsort()[:drop]}
    return tuple(i for i in range(n_layers) if i not in gone)


def shorter_dense(
    teacher: Teacher, layers: Sequence[int], settings: DistilSettings, progress: Callable[[int], None] | None = None
) -> LoadedModel:
    """A shorter model of its own: the given layers, all their weights trained as long as a healing would be.

    Args:
        teacher: The full model on the training sequences; left as it is.
        layers: The layers it keeps.
        settings: As for healing.
        progress: Called with 1 after every step.

    Returns:
        A copy of the model; run it with `executing(copy, layers)`.
    """
    student = replace(teacher.loaded, model=copy.deepcopy(teacher.loaded.model))
    weights = [p.requires_grad_(True) for p in student.model.parameters()]
    optimiser = torch.optim.Adam(weights, lr=settings.lr, betas=(0.9, 0.99))
    path = executing(student, layers)
    for step in range(settings.steps):
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        for group in optimiser.param_groups:
            group["lr"] = lr_at(step, settings.steps, settings.lr)
        rows = torch.randint(len(teacher.ids), (settings.rows,), generator=generator)
        where = some_positions(len(rows), teacher.ids.shape[1], settings.positions, generator)
        wanted = teacher.logprobs(rows, where)
        with path:
            loss = kl(wanted, student_logprobs(student, teacher.ids[rows], where)).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        if progress:
            progress(1)
    for p in weights:
        p.grad = None
        p.requires_grad_(False)
    return student
