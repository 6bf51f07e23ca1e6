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

KAPPA = 1.5  # how far one place in the order of importance moves a bias
STIFFNESS = 0.01  # scikit-learn's C, the inverse of the ridge


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
def initialise(gates: EncoderGates, start: str, found: Sweep | None, needed: float, open_bias: float = 3.0) -> None:
    """Set the gates' start, and the mean and spread of what they see.

    I0: all open, blind to their input. I1: a_l rises with the layer's place by mean importance, the log of its KL.
    I2: w_l and a_l by logistic regression on labels per input, "dropping it costs more than delta", delta so that a
    share `needed` of all labels says so; then s_l is the log odds that an input needs the layer.

    Args:
        gates: The gates.
        start: `"I0"`, `"I1"` or `"I2"`.
        found: From `sweep`; not needed for I0.
        needed: Share of labels that say a layer is needed.
        open_bias: a_0 of I0 and I1.

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
    gates.mean.copy_(found.seen.mean(0))
    gates.scale.copy_(found.seen.std(0).clamp(min=1e-3))
    if start == "I1":
        place = found.kl.clamp(min=1e-6).log().mean(0).argsort().argsort().float()
        gates.bias.add_((KAPPA * (place - place.mean())).to(gates.bias))
        return
    weight, bias = _label_fit((found.seen.to(gates.mean) - gates.mean) / gates.scale, found.kl, needed)
    gates.weight.copy_(weight)
    gates.bias.copy_(bias)


def _label_fit(z: Tensor, losses: Tensor, needed: float) -> tuple[Tensor, Tensor]:
    """Logistic regression per layer; where all labels agree, the log odds of that, counted with one more of each."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        message = refusal("start I2 without scikit-learn", "I0, I1", "pip install 'roseedit[hadskip]'.")
        raise SkipError(message) from error
    labels = losses > torch.quantile(losses.flatten(), 1.0 - needed)
    weight, counts = torch.zeros(z.shape[1:]), labels.float().sum(0)
    bias = torch.log((counts + 1) / (len(labels) - counts + 1))
    for j in range(z.shape[1]):
        own = labels[:, j].numpy()
        if own.any() and not own.all():
            fitted = LogisticRegression(C=STIFFNESS, max_iter=200).fit(z[:, j].cpu().numpy(), own)
            weight[j] = torch.from_numpy(fitted.coef_[0]).float()
            bias[j] = float(fitted.intercept_[0])
    return weight, bias
