"""How much each layer matters, per sequence: what the gates start from.

`leave_one_out` is the KL caused by dropping one layer, with its healing. Which layers are best dropped together is
another question: `spans` answers it.
ShortGPT's block influence 1 - cos(x_{l-1}, x_l), which needs no head, is the usual static baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from roseedit.errors import SkipError, refusal
from roseedit.hadskip.gate import Gates
from roseedit.hadskip.healing import Step, entering, through
from roseedit.hadskip.paths import Healing
from roseedit.hadskip.teacher import Teacher, all_positions, kl, student_logprobs
from roseedit.hadskip.texts import chunks
from roseedit.models.replay import replaying

SPREAD = 3.0  # how much further apart spans set the gates than I1 does: half a span is dear
INITS = ("I0", "I1", "I2", "spans", "random")


@dataclass(frozen=True)
class Importance:
    """What one sweep over the layers found.

    Attributes:
        layers: The layers that may be skipped.
        kl: (sequences, layers), mean KL per token when this layer alone is dropped.
        influence: (layers,), 1 - cos(x_{l-1}, x_l), averaged over tokens.
        healing: What each layer would do instead, were it dropped alone.
        order: Layers in the order in which they are best dropped (`spans`), the first one first.
    """

    layers: tuple[int, ...]
    kl: Tensor
    influence: Tensor
    healing: Healing
    order: tuple[int, ...] = ()


@torch.no_grad()
def leave_one_out(
    teacher: Teacher,
    layers: Sequence[int],
    *,
    judged: int,
    kind: str = "lora",
    rank: int = 32,
    progress: Callable[[int], None] | None = None,
) -> Importance:
    """Drop each layer alone.

    Args:
        teacher: The full model on some sequences; all of them fit the healing.
        layers: The layers that may be skipped, the last layer not among them.
        judged: How many of the sequences the KL is computed on.
        kind: Kind of healing.
        rank: Rank of its low-rank pairs.
        progress: Called with 1 after every layer.

    Returns:
        What it found.
    """
    loaded, ids, wanted = teacher.loaded, teacher.ids, sorted(layers)
    states = entering(loaded, wanted[0], ids)
    losses, influence = [], []
    steps: dict[int, Step] = {}
    for layer in range(wanted[0], wanted[-1] + 1):
        after = through(loaded, layer, states, ids)
        if layer in wanted:
            steps[layer] = Step.fitted(states, after, kind, rank)
            influence.append(1 - nn.functional.cosine_similarity(states, after, dim=-1).mean())
            losses.append(_kl_from(teacher, layer + 1, steps[layer](states[:judged])))
        states = after
        if progress:
            progress(1)
    return Importance(tuple(wanted), torch.stack(losses, 1), torch.stack(influence), Step.healing(steps))


def _kl_from(teacher: Teacher, layer: int, states: Tensor) -> Tensor:
    """Mean KL per sequence when `states` enter `layer`."""
    loaded, found = teacher.loaded, []
    for s in chunks(len(states), 4):
        rows = torch.arange(s.start, s.stop)
        where = all_positions(len(rows), teacher.ids.shape[1])
        with replaying(loaded.model, loaded.anatomy, layer, states[s]):
            said = student_logprobs(loaded, teacher.ids[rows], where)
        found.append(kl(teacher.logprobs(rows, where), said).view(len(rows), -1).mean(1).cpu())
    return torch.cat(found)


@torch.no_grad()
def initialise(
    gates: Gates,
    level: str,
    importance: Importance,
    features: Tensor,
    budget: float,
    *,
    open_bias: float = 3.0,
    kappa: float = 1.5,
    seed: int = 0,
) -> None:
    """Set the gates' start.

    I0: all open, alike. I1: a_l rises with the layer's mean importance. I2: besides, w_l and a_l are fitted to labels
    per input, "dropping this layer alone costs more than delta", delta so that a share `budget` of all labels is open.
    spans: as I2, with a_l by the order in which layers are best dropped. random: open or shut by chance.

    Args:
        gates: The gates.
        level: `"I0"`, `"I1"`, `"I2"`, `"spans"` or `"random"`.
        importance: From `leave_one_out`.
        features: (sequences, features) of the judged sequences.
        budget: Share of the labels that are to be open.
        open_bias: a_0.
        kappa: How far importance moves a_l.
        seed: Of the random start.

    Raises:
        SkipError: An unknown level, or I2 without scikit-learn.
    """
    if level not in INITS:
        raise SkipError(refusal(f"initialisation {level!r}", ", ".join(INITS), "Choose one of them."))
    gates.weight.zero_()
    gates.bias.fill_(open_bias)
    if level == "random":
        generator = torch.Generator().manual_seed(seed)
        gates.bias.copy_(torch.randn(gates.bias.shape, generator=generator))
    if level in {"I1", "I2"}:
        gates.bias.add_(kappa * _standardised(importance.kl.clamp(min=1e-6).log().mean(0)))
    if level == "spans":
        gates.bias.add_(SPREAD * kappa * _standardised(ranks(importance)))
    if level in {"I2", "spans"}:
        weight, bias = _label_fit(gates.components(features), importance.kl, budget)
        gates.weight.copy_(weight)
        gates.bias.add_(bias)


def ranks(importance: Importance) -> Tensor:
    """Place in the order of dropping, then by the KL of the first sweep; the last places are the layers to keep.

    Args:
        importance: With an order.

    Returns:
        (layers,).
    """
    rest = [importance.layers[int(j)] for j in importance.kl.mean(0).argsort()]
    order = [*importance.order, *(layer for layer in rest if layer not in importance.order)]
    return torch.tensor([float(order.index(layer)) for layer in importance.layers])


def _standardised(x: Tensor) -> Tensor:
    return (x - x.mean()) / x.std().clamp(min=1e-6)


def _label_fit(components: Tensor, losses: Tensor, budget: float) -> tuple[Tensor, Tensor]:
    """Logistic regression per layer; the bias is relative to the layer's own share of open labels."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        message = refusal("initialisation I2 without scikit-learn", "I0, I1", "pip install 'roseedit[hadskip]'.")
        raise SkipError(message) from error
    labels = losses > torch.quantile(losses.flatten(), 1.0 - budget)
    weight, bias = torch.zeros(losses.shape[1], components.shape[1]), torch.zeros(losses.shape[1])
    for j in range(losses.shape[1]):
        own = labels[:, j].numpy()
        if own.any() and not own.all():
            fitted = LogisticRegression(C=0.05, max_iter=200).fit(components.numpy(), own)
            weight[j] = torch.from_numpy(fitted.coef_[0]).float()
    return weight, bias
