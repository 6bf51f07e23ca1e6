"""Anatomy: parts are found by structure in every architecture, and what cannot be found is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from roseedit.errors import AnatomyError
from roseedit.models.anatomy import ROLES, find_anatomy
from roseedit.models.load import LoadedModel
from roseedit.models.quantized import outline

Tiny = Callable[..., LoadedModel]
HIDDEN, INNER, KV, LAYERS = 32, 48, 16, 4

_SPLIT = {
    "attn.q": (HIDDEN, HIDDEN),
    "attn.k": (HIDDEN, HIDDEN),
    "attn.v": (HIDDEN, HIDDEN),
    "attn.o": (HIDDEN, HIDDEN),
}
_GROUPED = {**_SPLIT, "attn.k": (HIDDEN, KV), "attn.v": (HIDDEN, KV)}
_FUSED = {"attn.qkv": (HIDDEN, 3 * HIDDEN), "attn.o": (HIDDEN, HIDDEN)}
_MLP = {"mlp.up": (HIDDEN, INNER), "mlp.down": (INNER, HIDDEN)}
_GATED = {**_MLP, "mlp.gate": (HIDDEN, INNER)}

# name -> (role -> (d_in, d_out), leaf name of mlp.down, layers, final norm, layer returns a tuple)
EXPECTED: dict[str, tuple[dict[str, tuple[int, int]], str, str, str, bool]] = {
    "llama": (_GROUPED | _GATED, "down_proj", "model.layers", "model.norm", False),
    "qwen2": (_GROUPED | _GATED, "down_proj", "model.layers", "model.norm", False),
    "qwen3": (_GROUPED | _GATED, "down_proj", "model.layers", "model.norm", False),
    "mistral": (_GROUPED | _GATED, "down_proj", "model.layers", "model.norm", False),
    "gemma3": (_GROUPED | _GATED, "down_proj", "model.layers", "model.norm", False),
    "gpt2": (_FUSED | _MLP, "c_proj", "transformer.h", "transformer.ln_f", False),
    "gptneox": (_FUSED | _MLP, "dense_4h_to_h", "gpt_neox.layers", "gpt_neox.final_layer_norm", False),
    "opt": (_SPLIT | _MLP, "fc2", "model.decoder.layers", "model.decoder.final_layer_norm", False),
    "phi": (_SPLIT | _MLP, "fc2", "model.layers", "model.final_layernorm", False),
    "gptj": (_SPLIT | _MLP, "fc_out", "transformer.h", "transformer.ln_f", True),
}


def test_every_architecture_of_the_table_has_its_expectation(any_model: LoadedModel) -> None:
    assert any_model.name in EXPECTED


def test_all_roles_with_their_shapes(any_model: LoadedModel) -> None:
    shapes, down, layers, norm, returns_tuple = EXPECTED[any_model.name]
    anatomy = any_model.anatomy
    assert (anatomy.layers_name, anatomy.n_layers, anatomy.hidden_size) == (layers, LAYERS, HIDDEN)
    assert (anatomy.final_norm, anatomy.window) == (norm, 128)
    assert anatomy.layer_returns_tuple == returns_tuple
    for layer in range(LAYERS):
        found = {p.role: (p.d_in, p.d_out) for p in anatomy.projections if p.layer == layer}
        assert found == shapes
    for p in anatomy.projections:
        parameter = dict(any_model.model.named_parameters())[p.weight_name]
        assert tuple(parameter.shape) == ((p.d_in, p.d_out) if p.transposed else (p.d_out, p.d_in))
        assert p.module_name.startswith(f"{layers}.{p.layer}.")
        assert p.transposed == (any_model.name == "gpt2")
    assert {p.module_name.rpartition(".")[2] for p in anatomy.projections if p.role == "mlp.down"} == {down}
    assert [p.layer for p in anatomy.projections] == sorted(p.layer for p in anatomy.projections)


def test_modules_map_vectors_as_the_anatomy_says(any_model: LoadedModel) -> None:
    """Also for GPT-2, whose weights are stored the other way round."""
    seen: dict[str, tuple[int, int]] = {}

    def look(role: str) -> Callable[..., None]:
        return lambda _module, args, out: seen.update({role: (args[0].shape[-1], out.shape[-1])})

    projections = any_model.anatomy.projections
    handles = [any_model.model.get_submodule(p.module_name).register_forward_hook(look(p.role)) for p in projections]
    any_model.model(torch.zeros(1, 3, dtype=torch.long))
    for handle in handles:
        handle.remove()
    assert seen == EXPECTED[any_model.name][0]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_head_and_embeddings_tied_or_not(tiny: Tiny, name: str, tied: bool) -> None:
    loaded = tiny(name, tie_word_embeddings=tied)
    anatomy = loaded.anatomy
    head, embeddings = (loaded.model.get_submodule(path) for path in (anatomy.head, anatomy.embeddings))
    assert head is loaded.model.get_output_embeddings()
    assert embeddings is loaded.model.get_input_embeddings()
    assert anatomy.tied == (head.weight is embeddings.weight)
    assert anatomy.tied == tied
    assert len(anatomy.projections) == LAYERS * len(EXPECTED[name][0])


def test_select_by_role(any_model: LoadedModel) -> None:
    chosen = any_model.anatomy.select(("mlp.down", "attn.o"), (3, 1))
    assert [(p.layer, p.role) for p in chosen] == [(1, "attn.o"), (1, "mlp.down"), (3, "attn.o"), (3, "mlp.down")]


def test_select_by_exact_leaf_name(any_model: LoadedModel) -> None:
    leaf = EXPECTED[any_model.name][1]
    chosen = any_model.anatomy.select((leaf,), (2,))
    assert chosen
    assert all(p.module_name.rpartition(".")[2] == leaf and p.layer == 2 for p in chosen)
    for part in (leaf[:-1], leaf[1:], leaf.upper()):
        with pytest.raises(AnatomyError):
            any_model.anatomy.select((part,), (2,))


def test_layer_2_is_not_layer_20(tiny: Tiny) -> None:
    anatomy = tiny("llama", num_hidden_layers=22).anatomy
    assert [p.module_name for p in anatomy.select(("mlp.down",), (2,))] == ["model.layers.2.mlp.down_proj"]
    assert [p.layer for p in anatomy.select(("mlp.down",), (2, 20))] == [2, 20]


@pytest.mark.parametrize("layer", [-1, 4])
def test_an_unknown_layer_is_refused(tiny: Tiny, layer: int) -> None:
    with pytest.raises(AnatomyError, match=f"got layer {layer}; allowed: 0 to 3. Change `layers`"):
        tiny("llama").anatomy.select(("mlp.down",), (1, layer))


def test_an_unknown_module_names_the_nearest(tiny: Tiny) -> None:
    with pytest.raises(AnatomyError) as caught:
        tiny("llama").anatomy.select(("mlp.down", "donw_proj"), (1,))
    message = str(caught.value)
    assert "got module 'donw_proj', which this model lacks; allowed: attn.k, " in message
    assert "Did you mean 'down_proj'" in message


class Plain(nn.Module):
    """A causal model without any attention."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_hidden_layers=2, hidden_size=8, max_position_embeddings=16)
        self.embed = nn.Embedding(10, 8)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8)) for _ in range(2)])
        self.norm = nn.LayerNorm(8)
        self.out = nn.Linear(8, 10)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def get_output_embeddings(self) -> nn.Module:
        return self.out

    def forward(self, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        hidden = self.embed(input_ids)
        for block in self.blocks:
            hidden = block(hidden)
        return self.out(self.norm(hidden))


def test_a_model_without_attention_is_refused_with_the_yaml_key() -> None:
    with pytest.raises(AnatomyError) as caught:
        find_anatomy(Plain())
    message = str(caught.value)
    assert "got a model in which no list of decoder layers could be found" in message
    assert "allowed: a model with a ModuleList of 2 layers, each with an attention" in message
    assert "`anatomy:`, key `layers`" in message


def test_overrides_replace_the_search() -> None:
    anatomy = find_anatomy(Plain(), {"layers": "blocks", "attention": "0", "mlp.up": "0", "mlp.down": "1"})
    assert (anatomy.layers_name, anatomy.final_norm, anatomy.head) == ("blocks", "norm", "out")
    found = [(p.module_name, p.role, p.d_in, p.d_out) for p in anatomy.projections]
    assert found[:2] == [("blocks.0.0", "mlp.up", 8, 16), ("blocks.0.1", "mlp.down", 16, 8)]
    assert len(found) == 4


def test_an_override_agrees_with_the_search(any_model: LoadedModel) -> None:
    anatomy = any_model.anatomy
    given = {p.role: p.module_name.split(".0.", 1)[1] for p in anatomy.projections if p.layer == 0}
    given |= {"layers": anatomy.layers_name, "final_norm": anatomy.final_norm}
    assert find_anatomy(any_model.model, given) == replace(anatomy)


@pytest.mark.parametrize(
    ("overrides", "pieces"),
    [
        (
            {"layer": "model.layers"},
            ("got anatomy key 'layer'", "allowed: layers, final_norm", "Did you mean 'layers'"),
        ),
        ({"mlp.dwon": "x"}, ("got anatomy key 'mlp.dwon'", "mlp.down", "Did you mean 'mlp.down'")),
        ({"layers": "model.layer"}, ("got anatomy layers: 'model.layer', which this model lacks", "'model.layers'")),
        ({"layers": "model"}, ("got anatomy layers: 'model'", "allowed: the path of a ModuleList")),
        ({"attention": "attn"}, ("got anatomy attention: 'attn', which this model lacks",)),
        ({"mlp.down": "mlp.c_proj"}, ("got anatomy mlp.down: 'mlp.c_proj', which this model lacks",)),
    ],
)
def test_a_wrong_override_is_refused(tiny: Tiny, overrides: dict[str, str], pieces: tuple[str, ...]) -> None:
    model = tiny("llama").model
    with pytest.raises(AnatomyError) as caught:
        find_anatomy(model, overrides)
    for piece in pieces:
        assert piece in str(caught.value)


def test_looking_changes_nothing(
    any_model: LoadedModel, digest: Callable[..., str], attached: Callable[..., Any]
) -> None:
    before = digest(any_model.model), attached(any_model.model)
    find_anatomy(any_model.model)
    assert (digest(any_model.model), attached(any_model.model)) == before


def test_roles_are_known_names(any_model: LoadedModel) -> None:
    assert {p.role for p in any_model.anatomy.projections} <= set(ROLES)


def test_an_outline_without_weights_has_the_same_parts(any_model: LoadedModel, tmp_path: Path) -> None:
    any_model.model.config.save_pretrained(tmp_path)
    found = outline(str(tmp_path))
    assert replace(found, tied=False, layer_returns_tuple=False) == replace(
        any_model.anatomy, tied=False, layer_returns_tuple=False
    )
