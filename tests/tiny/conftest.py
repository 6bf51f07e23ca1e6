"""Tiny random models of every architecture, with a tokenizer built in memory: no file, no network, no real weights."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from roseedit.models.load import LoadedModel, wrap_model

EOS = "<|end|>"
WORDS = (" Rome", " Paris", " the", " city", " of", " in", " is", "The", " Tower")
N_LAYERS = 4
HIDDEN = 32
INNER = 48
DEVICE = os.environ.get("ROSEEDIT_TEST_DEVICE", "cpu")


def _merges(word: str) -> list[tuple[str, str]]:
    """BPE merges that build a word letter by letter; bytes are spelled as byte-level BPE does."""
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(word)[0][0]
    return [(letters[:i], letters[i]) for i in range(1, len(letters))]


def build_tokenizer(*, across_words: bool = False, extra: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """Byte-level BPE: 256 bytes, a few whole words and an end mark.

    Args:
        across_words: Do not split text into words first, so that a token may span a prompt's end.
        extra: More words, merged before the others.

    Returns:
        A fast tokenizer with an end mark and without a pad token.
    """
    merges = list(dict.fromkeys(pair for word in (*extra, *WORDS) for pair in _merges(word)))
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *dict.fromkeys(a + b for a, b in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not across_words)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, clean_up_tokenization_spaces=False)


_LLAMA = {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_UNTIED = {"tie_word_embeddings": False}  # tied and random, Gemma's scaled embeddings only repeat the last token
_PLAIN = {key: value for key, value in _LLAMA.items() if key != "num_key_value_heads"}
_GPT = {"n_embd": HIDDEN, "n_layer": N_LAYERS, "n_head": 4, "n_positions": 128, "n_inner": INNER}

# The one table: name -> (config class, its settings).
TABLE: dict[str, tuple[type, dict[str, Any]]] = {
    "llama": (hf.LlamaConfig, _LLAMA),
    "qwen2": (hf.Qwen2Config, _LLAMA),
    "qwen3": (hf.Qwen3Config, {**_LLAMA, "head_dim": 8}),
    "mistral": (hf.MistralConfig, _LLAMA),
    "gemma3": (hf.Gemma3TextConfig, {**_LLAMA, "head_dim": 8, "query_pre_attn_scalar": 8, **_UNTIED}),
    "gpt2": (hf.GPT2Config, _GPT),
    "gptneox": (hf.GPTNeoXConfig, _PLAIN),
    "opt": (
        hf.OPTConfig,
        {
            "hidden_size": HIDDEN,
            "ffn_dim": INNER,
            "word_embed_proj_dim": HIDDEN,
            "num_hidden_layers": N_LAYERS,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
        },
    ),
    "phi": (hf.PhiConfig, _PLAIN),
    "gptj": (hf.GPTJConfig, {**_GPT, "rotary_dim": 4}),
}


def build_model(name: str, **changes: Any) -> LoadedModel:
    """One model of the table, seeded, in float32, weights large enough that logits differ clearly.

    Args:
        name: Key of `TABLE`.
        **changes: Config values that differ from the table's.

    Returns:
        The wrapped model.
    """
    kind, settings = TABLE[name]
    tokenizer = build_tokenizer()
    end = tokenizer.eos_token_id
    ids = {"vocab_size": len(tokenizer), "eos_token_id": end, "bos_token_id": end, "pad_token_id": end}
    config = kind(**{**settings, **ids, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(sum(name.encode()))
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        generator = torch.Generator().manual_seed(sum(name.encode()))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:  # a narrow head could not be sure of any token
                    std = 0.5 if parameter is model.get_output_embeddings().weight else 0.2
                    parameter.normal_(0.0, std, generator=generator)
    return wrap_model(model.to(DEVICE), tokenizer, name)


def state_digest(model: nn.Module) -> str:
    """sha256 over names and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def attachments(model: nn.Module) -> dict[str, tuple[int, int, int, int, bool]]:
    """Per module: hooks of each kind, and whether its forward is patched."""
    return {
        name: (
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            len(module._backward_hooks),
            len(module._backward_pre_hooks),
            "forward" in vars(module),
        )
        for name, module in model.named_modules()
    }


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Tiny products are slower on several threads, and one thread keeps the order of sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny() -> Callable[..., LoadedModel]:
    """`tiny(name, **config_changes)`: a fresh model of the table."""
    return build_model


@pytest.fixture(params=sorted(TABLE))
def any_model(request: pytest.FixtureRequest) -> LoadedModel:
    """Every architecture in turn."""
    return build_model(request.param)


@pytest.fixture
def frozen_model(any_model: LoadedModel) -> LoadedModel:
    any_model.model.requires_grad_(False)
    return any_model


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """`make_tokenizer(across_words=..., extra=...)`."""
    return build_tokenizer


@pytest.fixture(scope="session")
def digest() -> Callable[[nn.Module], str]:
    """sha256 of a model's state."""
    return state_digest


@pytest.fixture(scope="session")
def attached() -> Callable[[nn.Module], dict[str, tuple[int, int, int, int, bool]]]:
    """What is hooked or patched on a model."""
    return attachments
