"""GGUF: a whole tiny model as a GGUF file, edited, read back by transformers and compared to the bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from roseedit.edits.delta import Delta, MatrixDelta, SparseVectors
from roseedit.edits.edit import Edit
from roseedit.edits.export.forms import export_edits
from roseedit.edits.export.gguf import find_converter, replaced_weights, write_edited
from roseedit.edits.fingerprint import base_fingerprint
from roseedit.edits.live import live_edits
from roseedit.errors import ExportError
from roseedit.models.load import LoadedModel, load_model
from roseedit.requests import EditRequest

Tiny = Callable[..., LoadedModel]
Q8 = gguf.GGMLQuantizationType.Q8_0
F32 = gguf.GGMLQuantizationType.F32


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """How llama.cpp orders the rows of q and k: the two halves of every head in turn."""
    return weight.reshape(heads, 2, len(weight) // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(loaded: LoadedModel, path: Path) -> None:
    """A llama as llama.cpp's converter would write it; matrices of 32 columns in Q8_0."""
    config, tokenizer = loaded.model.config, loaded.tokenizer
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if token == tokenizer.eos_token else 1 for token, _ in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in loaded.model.state_dict().items():
        data = tensor.detach().numpy()
        role = name.split(".")[-2]
        if role in heads:
            data = interleaved(data, heads[role])
        target = names.get_name(name, try_suffixes=(".weight",))
        assert target is not None, name
        if data.ndim == 2 and data.shape[1] % 32 == 0 and "embed" not in name and "head" not in name:
            writer.add_tensor(target, gguf.quants.quantize(data, Q8), raw_dtype=Q8)
        else:
            writer.add_tensor(target, data.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def base(tiny: Tiny, tmp_path: Path) -> LoadedModel:
    """A model that was loaded from a GGUF file."""
    write_gguf(tiny("llama"), tmp_path / "tiny.gguf")
    return load_model(str(tmp_path / "tiny.gguf"), device="cpu", dtype="float32")


def edit_of(loaded: LoadedModel, *roles: str, seed: int = 0) -> Edit:
    generator = torch.Generator().manual_seed(seed)

    def sparse(n: int) -> SparseVectors:
        kept = torch.rand(2, n, generator=generator) < 0.5
        return SparseVectors.of(0.1 * torch.randn(2, n, generator=generator) * kept)

    matrices = tuple(
        MatrixDelta(p.weight_name, p.d_in, p.d_out, p.transposed, sparse(p.d_in), sparse(p.d_out))
        for p in loaded.anatomy.select(roles, (1, 3))
    )
    fingerprint = base_fingerprint(loaded, [m.weight_name for m in matrices])
    return Edit(Delta(matrices), (EditRequest("The Tower is in", "Rome"),), {"seed": seed}, fingerprint, loaded.name)


def live_weights(loaded: LoadedModel, edits: list[Edit]) -> dict[str, Tensor]:
    with live_edits(loaded.model).only([edit.delta for edit in edits]):
        return {name: p.detach().clone() for name, p in loaded.model.named_parameters()}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_edited_file_is_the_live_model(base: LoadedModel, tmp_path: Path, dtype: str) -> None:
    edits = [edit_of(base, "mlp.down", "attn.q", "attn.k", "attn.o"), edit_of(base, "mlp.down", "mlp.up", seed=1)]
    done = export_edits(edits, "gguf", tmp_path / "out", base, dtype=dtype)
    again = load_model(str(tmp_path / "out" / "model.gguf"), device="cpu", dtype="float32")
    plain, wanted = live_weights(base, []), live_weights(base, edits)
    touched = {m.weight_name for edit in edits for m in edit.delta.matrices}
    cast = getattr(torch, dtype)
    for name, p in again.model.named_parameters():
        if name in touched:
            assert not torch.equal(p, plain[name])
            assert torch.equal(p, wanted[name].to(cast).float()), name
        else:
            assert torch.equal(p, plain[name]), name
    assert done.figures["requests"] == 2
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"model.gguf", "README.md", "roseedit.json"}


def test_all_that_is_not_edited_is_copied_byte_for_byte(base: LoadedModel, tmp_path: Path) -> None:
    edit = edit_of(base, "mlp.down")
    source, target = Path(base.name), tmp_path / "edited.gguf"
    new = replaced_weights(source, [edit], base)
    assert set(new) == {"blk.1.ffn_down.weight", "blk.3.ffn_down.weight"}
    write_edited(source, target, new, torch.float32)
    old, now = gguf.GGUFReader(source), gguf.GGUFReader(target)
    fields: list[dict[str, Any]] = [
        {f.name: f.contents() for f in reader.fields.values() if not f.name.startswith("GGUF.")}
        for reader in (old, now)
    ]
    assert fields[0] == fields[1]
    for before, after in zip(old.tensors, now.tensors, strict=True):
        assert before.name == after.name
        if before.name not in new:
            assert before.tensor_type == after.tensor_type
            assert np.array_equal(before.data, after.data)
        else:
            assert after.tensor_type == F32
    assert any(t.tensor_type == Q8 for t in now.tensors)


def test_a_file_that_is_not_the_base_is_refused(base: LoadedModel, tiny: Tiny, tmp_path: Path) -> None:
    other = tiny("llama")
    other.model.get_parameter("model.layers.1.mlp.down_proj.weight").data[0, 0] += 1
    write_gguf(other, tmp_path / "other.gguf")
    with pytest.raises(ExportError, match="other numbers or in an unknown order"):
        export_edits([edit_of(base, "mlp.down")], "gguf", tmp_path / "out", base, base=str(tmp_path / "other.gguf"))
    assert not (tmp_path / "out").exists()


def test_without_a_gguf_base_the_converter_is_asked_for(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tiny("llama")
    edit = edit_of(loaded, "mlp.down")
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_converter() is None
    with pytest.raises(ExportError, match=r"without llama\.cpp's convert_hf_to_gguf\.py.*Set LLAMA_CPP"):
        export_edits([edit], "gguf", tmp_path / "out", loaded, base="some/model")
    (tmp_path / "convert_hf_to_gguf.py").write_text("import sys; sys.exit('unknown architecture')")
    assert find_converter() == tmp_path / "convert_hf_to_gguf.py"
    with pytest.raises(ExportError, match="unknown architecture"):
        export_edits([edit], "gguf", tmp_path / "out", loaded, base="some/model")
    assert not (tmp_path / "out").exists()


def test_a_converter_gets_the_merged_checkpoint(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The converter here is this test's own writer, called as llama.cpp's is; its file is read back and compared."""
    loaded = tiny("llama")
    edit = edit_of(loaded, "mlp.down", "attn.q")
    here = Path(__file__).resolve()
    script = f"""
import sys
sys.path[:0] = [{str(here.parent)!r}, {str(here.parents[2])!r}]
from pathlib import Path
import test_export_gguf as t
from roseedit.models.load import load_model
folder, flag, out, flag2, kind = sys.argv[1:]
assert (flag, flag2, kind) == ("--outfile", "--outtype", "f32")
t.Q8 = t.F32  # what a converter with --outtype f32 does
t.write_gguf(load_model(folder, device="cpu"), Path(out))
"""
    (tmp_path / "convert_hf_to_gguf.py").write_text(script)
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    export_edits([edit], "gguf", tmp_path / "out", loaded, base="some/model", measure=False)
    again = load_model(str(tmp_path / "out" / "model.gguf"), device="cpu", dtype="float32")
    wanted = live_weights(loaded, [edit])
    for name, p in again.model.named_parameters():
        assert torch.equal(p, wanted[name]), name
