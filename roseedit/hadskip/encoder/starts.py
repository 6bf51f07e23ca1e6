"""Where the gates start: I0 all open, I1 by layer, I2 by layer and input; the first is the full model itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from roseedit.errors import SkipError, refusal
from roseedit.hadskip.encoder.classifier import EncoderClassifier
from roseedit.hadskip.encoder.data import Encoded
from roseedit.hadskip.encoder.gates import EncoderGates
from roseedit.hadskip.encoder.routing import FixedLayers
from roseedit.hadskip.encoder.settings import STARTS

KAPPA = 1.0  # how far a layer's importance moves its bias


@dataclass(frozen=True)
class Sweep:
    """What dropping each layer, alone or with all above it, does.

    Attributes:
        layers: The layers that may be skipped.
        kl: (rows, layers), KL(full || without) of the class distributions.
        seen: (rows, layers, features), what each layer's gate sees in the full model.
    """

    layers: tuple[int, ...]
    kl: Tensor
    seen: Tensor


@torch.no_grad()
def sweep(classifier: EncoderClassifier, gates: EncoderGates, data: Encoded, judged: int, kind: str = "alone") -> Sweep:
    """Drop each layer, alone or with all above it, on the first rows.

    Args:
        classifier: The full model.
        gates: For the layers, and for what they see.
        data: Training rows, in random order.
        judged: How many of them.
        kind: `"alone"` or `"above"`.

    Returns:
        What it did.
    """
    device, losses, look = classifier.head.weight.device, [], _Look(gates)
    for rows in torch.arange(min(judged, len(data))).split(64):
        batch = data.batch(rows, device)
        full = torch.log_softmax(classifier(batch, look).logits, -1)
        others = [_without(classifier, batch, layer, kind) for layer in gates.layers]
        losses.append(torch.stack([_kl(full, other) for other in others], 1).cpu())
    seen = [torch.cat(look.seen[layer]) for layer in gates.layers]
    return Sweep(gates.layers, torch.cat(losses), torch.stack(seen, 1))


class _Look:
    """A router that runs everything and notes what the gates see."""

    def __init__(self, gates: EncoderGates) -> None:
        self.gates = gates
        self.seen: dict[int, list[Tensor]] = {layer: [] for layer in gates.layers}

    def decide(self, layer: int, x: Tensor, mask: Tensor) -> Tensor | None:
        if layer in self.seen:
            self.seen[layer].append(self.gates.seen(x, mask).cpu())
        return None


def _without(classifier: EncoderClassifier, batch: dict[str, Tensor], layer: int, kind: str) -> Tensor:
    kept = [i for i in range(classifier.parts.n_layers) if i < layer or (kind == "alone" and i > layer)]
    return torch.log_softmax(classifier(batch, FixedLayers(kept)).logits, -1)


def _kl(full: Tensor, other: Tensor) -> Tensor:
    return nn.functional.kl_div(other, full, reduction="none", log_target=True).sum(-1)


@torch.no_grad()
def initialise(gates: EncoderGates, start: str, found: Sweep | None, budget: float, open_bias: float = 3.0) -> None:
    """Set the gates' start.

    I0: all open, blind to their input. I1: a_l rises with the layer's mean importance (the log of its KL, standardised
    over layers). I2: besides, w_l by logistic regression on labels per input, "dropping this layer alone costs more
    than delta", delta so that a share `budget` of all labels is open.

    Args:
        gates: The gates.
        start: `"I0"`, `"I1"` or `"I2"`.
        found: From `sweep`; not needed for I0.
        budget: Share of labels that are to be open.
        open_bias: a_0.

    Raises:
        SkipError: An unknown start, no sweep, or I2 without scikit-learn.
    """
    if start not in STARTS or (start != "I0" and found is None):
        got = f"start {start!r} " + ("without a sweep" if found is None else "with one")
        raise SkipError(refusal(got, "I0, or I1 and I2 with a sweep", "Correct it."))
    gates.weight.zero_()
    gates.bias.fill_(open_bias)
    gates.theta.zero_()
    if found is None or start == "I0":
        return
    weight = found.kl.clamp(min=1e-6).log().mean(0)
    gates.bias.add_(KAPPA * (weight - weight.mean()) / weight.std(correction=0).clamp(min=1e-6))
    if start == "I2":
        gates.weight.copy_(_label_fit(found, budget))


def _label_fit(found: Sweep, budget: float) -> Tensor:
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        message = refusal("start I2 without scikit-learn", "I0, I1", "pip install 'roseedit[hadskip]'.")
        raise SkipError(message) from error
    labels = (found.kl > torch.quantile(found.kl.flatten(), 1.0 - budget)).numpy()
    weight = torch.zeros(found.seen.shape[1:])
    for j in range(len(found.layers)):
        if labels[:, j].any() and not labels[:, j].all():
            fitted = LogisticRegression(C=0.01, max_iter=200).fit(found.seen[:, j].numpy(), labels[:, j])
            weight[j] = torch.from_numpy(fitted.coef_[0]).float()
    return weight
