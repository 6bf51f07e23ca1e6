"""What skipping costs in quality and gives in speed, sequence by sequence, for any executed set."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from roseedit.evaluation.metrics import bootstrap_interval
from roseedit.hadskip.costs import now
from roseedit.hadskip.paths import Healing, executing
from roseedit.hadskip.teacher import Teacher, all_positions, kl, student_logprobs
from roseedit.hadskip.texts import chunks
from roseedit.models.load import LoadedModel


@dataclass(frozen=True)
class TextScores:
    """Means per sequence against the full model.

    Attributes:
        loss: (sequences,) negative log-likelihood per token.
        full: (sequences,) the full model's.
        kl: (sequences,) KL(full || this) per token.
        agreement: (sequences,) share of positions with the same first choice.
    """

    loss: Tensor
    full: Tensor
    kl: Tensor
    agreement: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """All four by name."""
        return {"loss": self.loss, "full": self.full, "kl": self.kl, "agreement": self.agreement}

    @classmethod
    def mixed(cls, parts: Sequence[TextScores], weights: Tensor) -> TextScores:
        """The expectation when each sequence takes part i with its own probability.

        Args:
            parts: Scores of the same sequences.
            weights: (sequences, parts), rows sum to 1.

        Returns:
            The mixed scores.
        """
        names = ("loss", "full", "kl", "agreement")
        return cls(*((torch.stack([getattr(p, n) for p in parts], 1) * weights).sum(1) for n in names))


@torch.no_grad()
def text_scores(
    teacher: Teacher, layers: Sequence[int], healing: Healing | None, *, student: LoadedModel | None = None
) -> TextScores:
    """Score an executed set on the teacher's sequences.

    Args:
        teacher: The full model on the sequences.
        layers: The executed layers.
        healing: Their healing.
        student: Another model than the teacher's to run them on.

    Returns:
        The scores.
    """
    model = student or teacher.loaded
    path = executing(model, layers, healing)
    found: list[Tensor] = []
    for s in chunks(len(teacher.ids), 4):
        rows = torch.arange(s.start, s.stop)
        where = all_positions(len(rows), teacher.ids.shape[1])
        wanted = teacher.logprobs(rows, where)
        with path:
            said = student_logprobs(model, teacher.ids[rows], where)
        target = teacher.ids[rows][where[0], where[1] + 1][:, None].to(said.device)
        each = (
            -said.gather(1, target)[:, 0],
            -wanted.gather(1, target)[:, 0],
            kl(wanted, said),
            (wanted.argmax(1) == said.argmax(1)).float(),
        )
        found.append(torch.stack([e.view(len(rows), -1).mean(1) for e in each]).cpu())
    return TextScores(*torch.cat(found, 1))


def figures(scores: TextScores) -> dict[str, dict[str, float]]:
    """Summary with 95 % bootstrap intervals over sequences.

    Args:
        scores: Scores.

    Returns:
        `perplexity_ratio`, `kl` and `agreement`, each with mean, low, high and n.
    """
    ratio = _interval(scores.loss - scores.full)
    ratio = {key: v if key == "n" else float(torch.tensor(v).exp()) for key, v in ratio.items()}
    return {"perplexity_ratio": ratio, "kl": _interval(scores.kl), "agreement": _interval(scores.agreement)}


def _interval(values: Tensor) -> dict[str, float]:
    low, high = bootstrap_interval(values.tolist())
    return {"mean": float(values.mean()), "low": low, "high": high, "n": len(values)}


def better(ours: TextScores, theirs: TextScores) -> dict[str, float]:
    """Paired difference of the loss per token, ours less theirs; below 0 is better.

    Args:
        ours: Scores.
        theirs: Scores of the same sequences.

    Returns:
        Mean, low, high, n.
    """
    return _interval(ours.loss - theirs.loss)


@torch.no_grad()
def step_times(
    loaded: LoadedModel,
    sets: Mapping[str, tuple[Sequence[int], Healing | None]],
    *,
    rows: int = 1,
    context: int = 64,
    steps: int = 16,
    rounds: int = 3,
) -> dict[str, dict[str, float]]:
    """Seconds of prefill and of one decoding step, all sets in turn in each round, so that drift hits all alike.

    Args:
        loaded: The model.
        sets: Executed layers and healing by name.
        rows: Sequences side by side.
        context: Tokens of the prompt.
        steps: Decoding steps timed per round.
        rounds: Rounds; one more, not counted, comes first.

    Returns:
        Medians, by name: `prefill` and `decode`.
    """
    paths = {name: executing(loaded, layers, healing) for name, (layers, healing) in sets.items()}
    spent: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in paths}
    ids = torch.full((rows, context), loaded.pad_id, dtype=torch.long, device=loaded.device)
    for turn in range(rounds + 1):
        for name, path in paths.items():
            with path:
                first, each = _timed(loaded.model, ids, steps)
            if turn:
                spent[name][0].append(first)
                spent[name][1].extend(each)
    return {n: {"prefill": statistics.median(p), "decode": statistics.median(d)} for n, (p, d) in spent.items()}


def _timed(model: Any, ids: Tensor, steps: int) -> tuple[float, list[float]]:
    started = now()
    out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
    first, each = now() - started, []
    for _ in range(steps):
        started = now()
        out = model(input_ids=ids[:, -1:], past_key_values=out.past_key_values, use_cache=True)
        each.append(now() - started)
    return first, each
