"""The model and the edit behind `tests/golden/`, made of integers alone, so that no random generator is involved."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from roseedit.edits.delta import Delta, MatrixDelta, SparseVectors
from roseedit.models.load import LoadedModel, wrap_model

WORDS = ("the", "tower", "is", "in", "rome", "paris", "<end>")


def spread(n: int, seed: int) -> Tensor:
    """(n,) numbers in [-0.5, 0.5), exact in float32."""
    steps = torch.arange(1, n + 1, dtype=torch.int64) * 2654435761 + seed * 40503
    return ((steps >> 7) % 4096).float() / 4096 - 0.5


def golden_model() -> LoadedModel:
    """Two layers, 16 wide."""
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        bos_token_id=6,
        eos_token_id=6,
        pad_token_id=6,
    )
    model = LlamaForCausalLM(config).float()
    with torch.no_grad():
        for i, (_, weight) in enumerate(sorted(model.named_parameters())):
            weight.copy_(spread(weight.numel(), i).view(weight.shape))
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="the"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", unk_token="the")
    return wrap_model(model, tokenizer, "golden")


def golden_delta() -> Delta:
    """Two matrices of rank 3 and 2."""
    return Delta(
        (
            MatrixDelta("model.layers.0.mlp.down_proj.weight", 24, 16, False, _sparse(3, 24, 1), _sparse(3, 16, 2)),
            MatrixDelta("model.layers.1.mlp.down_proj.weight", 24, 16, False, _sparse(2, 24, 3), _sparse(2, 16, 4)),
        )
    )


def _sparse(rows: int, n: int, seed: int) -> SparseVectors:
    values = spread(rows * n, seed).view(rows, n)
    return SparseVectors.of(torch.where(values.abs() > 0.35, values, 0.0))
