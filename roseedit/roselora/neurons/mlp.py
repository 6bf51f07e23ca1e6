"""The MLP of one layer as a list of neurons: a row that opens, a row that carries, a column that writes.

A neuron says f(g x + b) (u x + c) d, or f(g x + b) d where the MLP has no gate: f is the activation, g the neuron's row
of the matrix in front of it, u its row of the other inward matrix, d its column of `mlp.down`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from roseedit.errors import AnatomyError, refusal
from roseedit.models.anatomy import Projection
from roseedit.models.load import LoadedModel

ACTIVATION_KEYS = ("hidden_activation", "hidden_act", "activation_function")
AGREES = 5e-2  # of the largest input of mlp.down; what was looked at may have come out of bfloat16 products


@dataclass(frozen=True)
class Neurons:
    """One layer's neurons.

    Attributes:
        layer: Index of the layer.
        opens: The matrix whose output goes through the activation.
        carries: The other inward matrix of a gated MLP; None without a gate.
        down: The outward matrix.
        activation: f.
    """

    layer: int
    opens: Projection
    carries: Projection | None
    down: Projection
    activation: Callable[[Tensor], Tensor]

    @property
    def projections(self) -> tuple[Projection, ...]:
        """The matrices that an edit of neurons touches."""
        return (self.opens, *((self.carries,) if self.carries else ()), self.down)


@dataclass(frozen=True)
class Rows:
    """Inward rows of some neurons.

    Attributes:
        weight: (R, d_in).
        bias: (R,).
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """(..., d_in) -> (..., R)."""
        return x @ self.weight.mT + self.bias


def find_neurons(loaded: LoadedModel, layer: int) -> Neurons:
    """The neurons of a layer.

    Args:
        loaded: The model.
        layer: Index of the layer.

    Returns:
        Their matrices and activation.

    Raises:
        AnatomyError: The layer's MLP or its activation is not of a known kind.
    """
    own = {p.role: p for p in loaded.anatomy.projections if p.layer == layer}
    if "mlp.up" not in own or "mlp.down" not in own:
        message = refusal(f"layer {layer} without mlp.up and mlp.down", "a plain or gated MLP", "Set support: entries.")
        raise AnatomyError(message)
    gate = own.get("mlp.gate")
    opens, carries = (gate, own["mlp.up"]) if gate else (own["mlp.up"], None)
    return Neurons(layer, opens, carries, own["mlp.down"], _activation(loaded.model))


def _activation(model: Any) -> Callable[[Tensor], Tensor]:
    from transformers.activations import ACT2FN

    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    names = [getattr(config, key, None) for key in ACTIVATION_KEYS]
    name = next((name for name in names if isinstance(name, str) and name in ACT2FN), None)
    if name is None:
        message = refusal(
            "a model whose activation its configuration does not name",
            ", ".join(ACTIVATION_KEYS),
            "Set support: entries.",
        )
        raise AnatomyError(message)
    return ACT2FN[name]


def weight_of(model: Any, projection: Projection) -> Tensor:
    """A projection's weight as (d_out, d_in), detached, in its own dtype."""
    weight = model.get_parameter(projection.weight_name).detach()
    return weight.t() if projection.transposed else weight


def inward_rows(model: Any, projection: Projection, which: Tensor) -> Rows:
    """The rows that chosen neurons have now.

    Args:
        model: The model.
        projection: An inward matrix.
        which: (R,) neurons.

    Returns:
        The rows in float32.
    """
    weight = weight_of(model, projection)[which].float()
    bias = model.get_submodule(projection.module_name).bias if _has_bias(model, projection) else None
    zeros = torch.zeros(len(which), device=weight.device)
    return Rows(weight, zeros if bias is None else bias.detach()[which].float())


def _has_bias(model: Any, projection: Projection) -> bool:
    return getattr(model.get_submodule(projection.module_name), "bias", None) is not None


def said(neurons: Neurons, x: Tensor, opens: Rows, carries: Rows | None) -> Tensor:
    """What neurons hand to their columns.

    Args:
        neurons: Their layer.
        x: (..., d_in), what enters the MLP.
        opens: Their opening rows.
        carries: Their carrying rows, in a gated MLP.

    Returns:
        (..., R).
    """
    out = neurons.activation(opens(x))
    return out if carries is None else out * carries(x)


def check_said(neurons: Neurons, model: Any, x: Tensor, inner: Tensor) -> None:
    """Make sure that this file's picture of the MLP is the model's.

    Args:
        neurons: A layer's neurons.
        model: The model.
        x: (n, d_in), what entered the MLP.
        inner: (n, neurons), what entered `mlp.down` then.

    Raises:
        AnatomyError: They do not belong together.
    """
    which = torch.arange(min(64, inner.shape[-1]), device=x.device)
    opens = inward_rows(model, neurons.opens, which)
    carries = inward_rows(model, neurons.carries, which) if neurons.carries else None
    off = (said(neurons, x.float(), opens, carries) - inner[:, which].float()).abs().max()
    if float(off) > AGREES * float(inner.abs().max()) + 1e-6:
        got = f"an MLP in layer {neurons.layer} that is no list of plain or gated neurons"
        raise AnatomyError(refusal(got, "f(W x) or f(W x) * (V x)", "Set support: entries."))
