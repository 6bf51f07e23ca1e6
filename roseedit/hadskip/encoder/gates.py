"""The gates of an encoder: one per layer that may be skipped, each asked when its layer is reached.

    s_l = w_l . (z_l - m_l) / d_l + a_l      z_l: LN(p(x_{l-1})) and the entropy of what the head would say of x_{l-1};
                                             p: first token, mean over real tokens, or both; m, d: fixed mean and spread
    open when s_l > theta                    theta: one number, calibrated on held-out training data

In training values are hard with the gradient of soft ones (`straight_through`), noisy, and theta follows the budget of
the moment; at inference there is no noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from roseedit.hadskip.gate import straight_through

FEATURES = ("first", "mean", "both")


def pooled(x: Tensor, mask: Tensor, feature: str) -> Tensor:
    """One vector per row.

    Args:
        x: (rows, tokens, hidden).
        mask: (rows, tokens), 1 for real tokens.
        feature: `"first"` for the first token, `"mean"` over real tokens, or `"both"`.

    Returns:
        (rows, hidden), or (rows, 2 * hidden) for both; float32.
    """
    first = x[:, 0].float()
    if feature == "first":
        return first
    weights = mask.to(x.device).float()[..., None]
    mean = (x.float() * weights).sum(1) / weights.sum(1)
    return mean if feature == "mean" else torch.cat((first, mean), -1)


def theta_at(scores: Tensor, share: float, noise: float) -> float:
    """The threshold at which a share of gates is open.

    Args:
        scores: s_l before any threshold, any shape.
        share: Share of them that is to be open, in [0, 1].
        noise: Scale k of the noise n, over which the share is the expected one,
            P(s + k n > theta) = sigmoid((s - theta) / k); 0 for none.

    Returns:
        theta.
    """
    flat = scores.flatten().double()
    if not noise:
        return float(torch.quantile(flat, 1.0 - share))
    low, high = float(flat.min()) - 20 * noise, float(flat.max()) + 20 * noise
    for _ in range(40):
        middle = (low + high) / 2
        open_share = float(torch.sigmoid((flat - middle) / noise).mean())
        low, high = (middle, high) if open_share > share else (low, middle)
    return (low + high) / 2


class EncoderGates(nn.Module):
    """Gates of the layers that may be skipped.

    Args:
        layers: These layers.
        hidden_size: Width of the states.
        feature: What a gate sees; one of `FEATURES`.
        open_bias: Start of every a_l: open.
        head: The classification head: gates then see, beside the pooled state, the entropy of what the head would say
            if the encoder ended here. It stays the classifier's; no gradient flows into it from here.
        pooling: What the head sees.

    Attributes:
        weight: (layers, features), w_l.
        bias: (layers,), a_l.
        mean: (layers, features) buffer, subtracted from what gates see, so that w_l speaks of differences of inputs.
        scale: (layers, features) buffer, what is left is divided by it.
        theta: Scalar buffer, the threshold.
    """

    theta: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        layers: Sequence[int],
        hidden_size: int,
        feature: str,
        open_bias: float = 3.0,
        *,
        head: nn.Linear | None = None,
        pooling: str = "first",
    ) -> None:
        super().__init__()
        self.layers, self.feature, self.pooling = tuple(layers), feature, pooling
        self._heads = () if head is None else (head,)  # in a tuple, a module is not registered as ours
        shape = (len(self.layers), hidden_size * (2 if feature == "both" else 1) + len(self._heads))
        self.weight = nn.Parameter(torch.zeros(shape))
        self.bias = nn.Parameter(torch.full((len(self.layers),), float(open_bias)))
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))
        self.register_buffer("theta", torch.tensor(0.0))

    @property
    def confidence(self) -> bool:
        """Whether gates see what the head would say."""
        return bool(self._heads)

    def seen(self, x: Tensor, mask: Tensor) -> Tensor:
        """What a gate sees, not yet centred.

        Args:
            x: (rows, tokens, hidden), what enters its layer.
            mask: (rows, tokens).

        Returns:
            (rows, features).
        """
        both = pooled(x, mask, self.feature)
        parts = [nn.functional.layer_norm(both, both.shape[-1:])]
        for head in self._heads:
            with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
                said = head(pooled(x, mask, self.pooling)).softmax(-1)
                parts.append(torch.special.entr(said).sum(-1, keepdim=True))
        return torch.cat(parts, -1)

    def score(self, layer: int, x: Tensor, mask: Tensor) -> Tensor:
        """s_l less theta; positive is open.

        Args:
            layer: One of `layers`.
            x: (rows, tokens, hidden), what enters it.
            mask: (rows, tokens).

        Returns:
            (rows,).
        """
        j = self.layers.index(layer)
        z = (self.seen(x, mask) - self.mean[j]) / self.scale[j]
        products = z * self.weight[j]  # no matrix product: autocast would round scores to bfloat16
        return products.sum(-1) + self.bias[j] - self.theta


class GateRouter:
    """Routes by gates.

    Args:
        gates: The gates.
        temperature: Of the soft gates whose gradient is used; None at inference.
        generator: Source of the noise; None for none.
        noise: Its scale, above 0.
    """

    def __init__(
        self,
        gates: EncoderGates,
        temperature: float | None = None,
        generator: torch.Generator | None = None,
        noise: float = 1.0,
    ) -> None:
        self.gates, self.temperature, self.generator, self.noise = gates, temperature, generator, noise
        self.scores: list[Tensor] = []  # (rows,) per gated layer, theta added back

    def decide(self, layer: int, x: Tensor, mask: Tensor) -> Tensor | None:
        """See `Router`."""
        if layer not in self.gates.layers:
            return None
        scores = self.gates.score(layer, x, mask)
        self.scores.append(scores.detach() + self.gates.theta)
        if self.temperature is None:
            return (scores > 0).float()
        return straight_through(scores / self.noise, self.temperature / self.noise, self.generator)
