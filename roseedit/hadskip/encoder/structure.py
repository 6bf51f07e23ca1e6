"""Find the parts of an encoder by structure: the embeddings, the list of layers, what a layer returns.

BERT, MiniLM, RoBERTa, MPNet and their kin share one shape: a module of embeddings that holds the table of tokens and
a norm, then a list of layers that each hold an attention. Decoders keep their token table beside the layers instead;
that, and `is_decoder`, is how they are told apart.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import nn

from roseedit.errors import AnatomyError, refusal
from roseedit.models.anatomy import returns_tuple


@dataclass(frozen=True)
class EncoderParts:
    """The parts of one encoder, by path.

    Attributes:
        embeddings_name: Path of the embeddings.
        layers_name: Path of the list of layers.
        n_layers: How many there are.
        hidden_size: Width of the states.
        window: Longest input in tokens.
        returns_tuple: Whether a layer returns a tuple, as MPNet's does, instead of a tensor.
    """

    embeddings_name: str
    layers_name: str
    n_layers: int
    hidden_size: int
    window: int
    returns_tuple: bool

    def layers(self, encoder: nn.Module) -> list[nn.Module]:
        """The layers of a model with these parts.

        Args:
            encoder: The model.

        Returns:
            One module per layer, the lowest first.
        """
        found: Any = encoder.get_submodule(self.layers_name)
        return list(found)


def find_encoder(encoder: Any) -> EncoderParts:
    """Find the parts of an encoder.

    Args:
        encoder: A transformers model without a task head, as `AutoModel` loads it.

    Returns:
        The parts.

    Raises:
        AnatomyError: It is a decoder, an encoder with a decoder, or a part was not found.
    """
    config = encoder.config
    if getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False):
        raise _not_found(f"{type(encoder).__name__}, which decodes")
    embeddings = _embeddings(encoder)
    layers_name, layers = _layers(encoder, int(getattr(config, "num_hidden_layers", 0)))
    padding = getattr(encoder.get_submodule(embeddings), "padding_idx", None)
    positions = int(getattr(config, "max_position_embeddings", 512))
    return EncoderParts(
        embeddings_name=embeddings,
        layers_name=layers_name,
        n_layers=len(layers),
        hidden_size=int(config.hidden_size),
        window=positions if padding is None else positions - int(padding) - 1,  # RoBERTa's kin count from there
        returns_tuple=returns_tuple(encoder, layers[0]),
    )


def _embeddings(encoder: Any) -> str:
    table = encoder.get_input_embeddings()
    for name, module in encoder.named_modules():
        held = list(module.children())
        if name and any(m is table for m in held) and any(isinstance(m, nn.LayerNorm) for m in held):
            return str(name)
    raise _not_found("no module that holds the token embeddings and a LayerNorm")


def _layers(encoder: nn.Module, n_layers: int) -> tuple[str, nn.ModuleList]:
    for name, module in encoder.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers > 0 and _has_attention(module[0]):
            return name, module
    raise _not_found(f"no list of {n_layers} layers that each hold an attention")


def _has_attention(layer: nn.Module) -> bool:
    return any("attention_mask" in inspect.signature(child.forward).parameters for child in layer.children())


def _not_found(got: str) -> AnatomyError:
    allowed = "an encoder with a module of embeddings and a list of layers, like BERT, RoBERTa, MPNet or MiniLM"
    return AnatomyError(refusal(f"a model that is not understood: {got}", allowed, "Choose such a model."))
