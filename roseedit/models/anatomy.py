"""Find the parts of a causal LM by structure, never by the model's name.

What is looked for:

* **layers**: the longest `ModuleList` with `num_hidden_layers` members that each hold an attention;
* **attention**: the child of a layer whose `forward` takes an `attention_mask`;
* **projections**: the modules with a two-dimensional weight (`nn.Linear`, or GPT-2's transposed `Conv1D`). Inside the
  attention the last one registered maps back to the hidden size, outside it (the MLP) likewise;
* **final norm**: the sibling of the layers with one-dimensional weights of the hidden size;
* **embeddings and head**: through transformers' own accessors; tied when they share memory.

This file knows nothing of editing. Where a structure differs, every answer can be given in YAML under `anatomy:`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from roseedit.errors import AnatomyError, near_names, refusal

ROLES = ("attn.q", "attn.k", "attn.v", "attn.qkv", "attn.o", "mlp.gate", "mlp.up", "mlp.down")
OVERRIDES = ("layers", "final_norm", "attention", *ROLES)


@dataclass(frozen=True)
class Projection:
    """One weight matrix that an edit may change.

    Attributes:
        module_name: Path of the module in the model.
        role: One of `ROLES`.
        layer: Index of the decoder layer.
        d_in: Length of the input vector.
        d_out: Length of the output vector.
        transposed: True when the weight is stored as (d_in, d_out), as in GPT-2's Conv1D.
        packed: True when the weight is stored as indices (4 bit), which no edit can change.
    """

    module_name: str
    role: str
    layer: int
    d_in: int
    d_out: int
    transposed: bool
    packed: bool = False

    @property
    def weight_name(self) -> str:
        """Name of the parameter."""
        return f"{self.module_name}.weight"


@dataclass(frozen=True)
class Anatomy:
    """The parts of one model, by path.

    Attributes:
        layers_name: Path of the list of decoder layers.
        n_layers: How many there are.
        hidden_size: Width of the residual stream.
        projections: All projections of all layers, lowest layer first.
        final_norm: Path of the norm before the head.
        embeddings: Path of the input embeddings.
        head: Path of the output projection.
        tied: True when head and embeddings share their weight.
        window: Longest input in tokens.
        layer_returns_tuple: True when a layer's forward returns a tuple, as GPT-J's does, instead of a tensor.
    """

    layers_name: str
    n_layers: int
    hidden_size: int
    projections: tuple[Projection, ...]
    final_norm: str
    embeddings: str
    head: str
    tied: bool
    window: int
    layer_returns_tuple: bool

    def select(self, modules: tuple[str, ...], layers: tuple[int, ...]) -> tuple[Projection, ...]:
        """The projections named by role or by the exact last part of their path, in the given layers.

        Args:
            modules: Roles (`"mlp.down"`) or module names (`"down_proj"`).
            layers: Layer indices, from 0.

        Returns:
            The matching projections, lowest layer first.

        Raises:
            AnatomyError: A layer out of range, a name that matches nothing, or a projection that is packed.
        """
        for layer in layers:
            if not 0 <= layer < self.n_layers:
                message = refusal(f"layer {layer}", f"0 to {self.n_layers - 1}", "Change `layers` in the hparams file.")
                raise AnatomyError(message)
        for name in modules:
            if not any(_named(p, name) for p in self.projections):
                known = {p.role for p in self.projections} | {
                    p.module_name.rpartition(".")[2] for p in self.projections
                }
                hint = near_names(name, known)
                raise AnatomyError(refusal(f"module {name!r}, which this model lacks", ", ".join(sorted(known)), hint))
        found = tuple(p for p in self.projections if p.layer in layers and any(_named(p, name) for name in modules))
        if packed := next((p.module_name for p in found if p.packed), None):
            whole = sorted({p.layer for p in self.projections if not p.packed}) or "none"
            do = "Load the model with `quantize` and these `layers`."
            raise AnatomyError(refusal(f"{packed}, which is stored in 4 bit", f"layers kept whole, here {whole}", do))
        return found


def _named(projection: Projection, name: str) -> bool:
    return name in (projection.role, projection.module_name.rpartition(".")[2])


def find_anatomy(model: Any, overrides: Mapping[str, str] | None = None) -> Anatomy:
    """Find the parts of `model`.

    Args:
        model: A transformers causal LM.
        overrides: Answers that replace the search: `layers` and `final_norm` as full paths, `attention` and the roles
            of `ROLES` as paths inside one layer.

    Returns:
        The anatomy.

    Raises:
        AnatomyError: A part was not found, or an override names nothing.
    """
    given = dict(overrides or {})
    for key in given:
        if key not in OVERRIDES:
            raise AnatomyError(refusal(f"anatomy key {key!r}", ", ".join(OVERRIDES), near_names(key, OVERRIDES)))
    config = _text_config(model)
    layers_name, layers = _find_layers(model, config, given)
    hidden = int(config.hidden_size)
    projections = tuple(p for i, layer in enumerate(layers) for p in _layer_projections(layer, i, layers_name, given))
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embeddings is None or head is None:
        raise _not_found("embeddings and head", "get_input_embeddings() and get_output_embeddings()", "a causal LM")
    return Anatomy(
        layers_name=layers_name,
        n_layers=len(layers),
        hidden_size=hidden,
        projections=projections,
        final_norm=given.get("final_norm") or _find_norm(model, layers_name, hidden),
        embeddings=_path_of(model, embeddings),
        head=_path_of(model, head),
        tied=embeddings.weight.data_ptr() == head.weight.data_ptr(),
        window=int(getattr(config, "max_position_embeddings", 2048)),
        layer_returns_tuple=returns_tuple(model, layers[0], use_cache=False),
    )


class _Seen(Exception):
    """Ends the probing pass of `returns_tuple` after one layer."""


@torch.no_grad()
def returns_tuple(model: Any, layer: nn.Module, **options: Any) -> bool:
    """Ask a layer itself, on one token: annotations are not kept in step with what layers return.

    Args:
        model: The model.
        layer: Its first layer; nothing above it runs.
        options: What the model's forward takes besides.

    Returns:
        True when the layer's forward returns a tuple, False for a tensor, and for a model without weights.
    """
    answers: list[bool] = []
    device = next(layer.parameters()).device
    if device.type == "meta":
        return False

    def look(_module: nn.Module, _args: Any, output: Any) -> None:
        answers.append(isinstance(output, tuple))
        raise _Seen

    handle = layer.register_forward_hook(look)
    try:
        model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), **options)
    except _Seen:
        pass
    finally:
        handle.remove()
    return answers[0]


def _text_config(model: Any) -> Any:
    config = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _not_found(what: str, looked_for: str, key: str) -> AnatomyError:
    message = refusal(
        f"a model in which no {what} could be found",
        f"a model with {looked_for}",
        f"Name it in the hparams file under `anatomy:`, key `{key}` (python: model.named_modules() lists the paths).",
    )
    return AnatomyError(message)


def _submodule(model: nn.Module, path: str, key: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        names = [name for name, _ in model.named_modules() if name]
        message = refusal(
            f"anatomy {key}: {path!r}, which this model lacks", "a module path", near_names(path, names[:40])
        )
        raise AnatomyError(message) from None


def _path_of(model: nn.Module, module: nn.Module) -> str:
    return next(name for name, found in model.named_modules() if found is module)


def _find_layers(model: nn.Module, config: Any, given: Mapping[str, str]) -> tuple[str, nn.ModuleList]:
    if "layers" in given:
        found = _submodule(model, given["layers"], "layers")
        if not isinstance(found, nn.ModuleList):
            message = refusal(
                f"anatomy layers: {given['layers']!r}", "the path of a ModuleList", "Name the list itself."
            )
            raise AnatomyError(message)
        return given["layers"], found
    for name, module in model.named_modules():
        if (
            isinstance(module, nn.ModuleList)
            and len(module) == config.num_hidden_layers
            and _attention(module[0], given)
        ):
            return name, module
    looked_for = f"a ModuleList of {config.num_hidden_layers} layers, each with an attention"
    raise _not_found("list of decoder layers", looked_for, "layers")


def _attention(layer: nn.Module, given: Mapping[str, str]) -> nn.Module | None:
    if "attention" in given:
        return _submodule(layer, given["attention"], "attention")
    takes_mask = (c for c in layer.children() if "attention_mask" in inspect.signature(c.forward).parameters)
    return next(takes_mask, None)


def _find_norm(model: nn.Module, layers_name: str, hidden: int) -> str:
    parent_name = layers_name.rpartition(".")[0]
    parent = model.get_submodule(parent_name)
    for name, child in parent.named_children():
        shapes = [tuple(p.shape) for p in child.parameters()]
        if shapes and all(shape == (hidden,) for shape in shapes):
            return f"{parent_name}.{name}" if parent_name else name
    raise _not_found("final norm", f"weights of shape ({hidden},) beside the layers", "final_norm")


def _is_projection(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.dim() == 2 and not isinstance(module, nn.Embedding)


def _layer_projections(layer: nn.Module, index: int, layers_name: str, given: Mapping[str, str]) -> list[Projection]:
    named = {role: given[role] for role in ROLES if role in given}
    attention = _attention(layer, given)
    inside = {} if attention is None else dict(attention.named_modules())
    members = {id(module) for module in inside.values()}
    found = [(name, module) for name, module in layer.named_modules() if _is_projection(module)]
    attn = [(name, module) for name, module in found if id(module) in members]
    mlp = [(name, module) for name, module in found if id(module) not in members]
    if not named and (len(attn) < 2 or len(mlp) < 2 or len(mlp) > 3):
        looked_for = "two to four projections in the attention and two or three in the MLP"
        raise _not_found(f"projections in layer {index} ({[n for n, _ in found]})", looked_for, "mlp.down")
    roles = named or {**_attention_roles([n for n, _ in attn]), **_mlp_roles([n for n, _ in mlp])}
    prefix = f"{layers_name}.{index}"
    return [_projection(_submodule(layer, path, role), f"{prefix}.{path}", role, index) for role, path in roles.items()]


def _attention_roles(names: list[str]) -> dict[str, str]:
    *inputs, output = names
    if len(inputs) == 1:
        return {"attn.qkv": inputs[0], "attn.o": output}
    leaves = {name.rpartition(".")[2][0]: name for name in inputs}
    roles = {f"attn.{letter}": leaves[letter] for letter in "qkv" if letter in leaves}
    return {**roles, "attn.o": output}


def _mlp_roles(names: list[str]) -> dict[str, str]:
    *inputs, down = names
    if len(inputs) == 1:
        return {"mlp.up": inputs[0], "mlp.down": down}
    gate = next((name for name in inputs if "gate" in name), inputs[0])
    up = next(name for name in inputs if name != gate)
    return {"mlp.gate": gate, "mlp.up": up, "mlp.down": down}


def _projection(module: Any, path: str, role: str, layer: int) -> Projection:
    transposed = not isinstance(module, nn.Linear) and hasattr(module, "nf")
    if not module.weight.is_floating_point():
        return Projection(path, role, layer, module.in_features, module.out_features, transposed, packed=True)
    rows, columns = module.weight.shape
    d_in, d_out = (rows, columns) if transposed else (columns, rows)
    return Projection(path, role, layer, int(d_in), int(d_out), transposed)
