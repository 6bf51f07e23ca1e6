"""Skipping layers of a real model: lossless says what stock says, bounded what a dropped checkpoint says."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from roseedit.editor import Editor
from roseedit.hadskip.decode import Decoder
from roseedit.hadskip.files import save_profiles
from roseedit.hadskip.profile import SkipProfiles
from roseedit.hadskip.response import DecodeSettings
from roseedit.hadskip.sampling import Sampling
from roseedit.models.load import LoadedModel

pytestmark = pytest.mark.real
PROMPTS = ["The Eiffel Tower is located in the city of", "Water boils at", "Once upon a time, in a village by the sea,"]
SETS = {"b75": tuple(i for i in range(30) if i not in (3, 8, 13, 15, 17, 19, 21)), "b60": (0, 1, *range(14, 30))}
NEW = 8


def rows_of(loaded: LoadedModel) -> list[list[int]]:
    return [loaded.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]


@torch.no_grad()
def stock(loaded: LoadedModel, model: Any = None) -> list[tuple[int, ...]]:
    out = []
    for ids in rows_of(loaded):
        given = torch.tensor([ids])
        asked: dict[str, Any] = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": -1}
        said = (model or loaded.model).generate(given, attention_mask=torch.ones_like(given), **asked)
        out.append(tuple(said[0, len(ids) :].tolist()))
    return out


@pytest.fixture(scope="module")
def decoder(shared_editor: Editor) -> Decoder:
    return Decoder(shared_editor.loaded, SkipProfiles.of(shared_editor.loaded, SETS))


def said(decoder: Decoder, contract: Any, rows: list[list[int]] | None = None, **options: Any) -> list[tuple[int, ...]]:
    settings = DecodeSettings(contract, max_new_tokens=NEW, stop_strings=(), **options)
    return [r.tokens for r in decoder.generate_ids(rows or rows_of(decoder.loaded), settings, ends=frozenset())]


def test_lossless_is_stock_greedy(decoder: Decoder) -> None:
    wanted = stock(decoder.loaded)
    assert said(decoder, "full") == wanted
    for budget, length in ((0.8, 1), (0.8, 4), (0.8, 8), (0.6, 4)):
        assert said(decoder, "lossless", budget=budget, draft_length=length) == wanted
    assert said(decoder, "lossless", rows_of(decoder.loaded)[:1], budget=0.8, draft_length=4) == wanted[:1]


def test_lossless_sampling_is_plain_sampling(decoder: Decoder) -> None:
    sampling = Sampling(0.8, top_p=0.95, seed=11)
    assert said(decoder, "lossless", sampling=sampling, budget=0.8, draft_length=3) == said(
        decoder, "full", sampling=sampling
    )


def test_bounded_is_the_dropped_checkpoint(decoder: Decoder) -> None:
    small = copy.copy(decoder.loaded.model)
    small.config = copy.deepcopy(small.config)
    small.config.num_hidden_layers = len(SETS["b60"])
    small._modules = dict(small._modules)
    body = copy.copy(small.model)
    body._modules = dict(body._modules)
    body.config = small.config
    body.layers = torch.nn.ModuleList(copy.copy(small.model.layers[i]) for i in SETS["b60"])
    for at, layer in enumerate(body.layers):
        layer._modules = dict(layer._modules)
        layer.self_attn = copy.copy(layer.self_attn)
        layer.self_attn.layer_idx = at
    small.model = body
    assert said(decoder, "bounded", budget=0.6) == stock(decoder.loaded, small)


def test_the_command(shared_editor: Editor, tmp_path: Path) -> None:
    """The issue's own command line: lossless prints what full prints."""
    folder = save_profiles(SkipProfiles.of(shared_editor.loaded, SETS), tmp_path / "gates")
    base = [sys.executable, "-m", "roseedit.cli", "generate", "--prompt", PROMPTS[0], "--max-new-tokens", "6"]
    runs = (
        [],
        ["--contract", "lossless", "--gates", str(folder), "--stream"],
        ["--contract", "bounded", "--budget", "0.8", "--gates", str(folder)],
    )
    full, lossless, bounded = (
        subprocess.run([*base, *more], capture_output=True, text=True, timeout=300, check=True) for more in runs
    )
    assert full.stdout.startswith(PROMPTS[0])
    assert lossless.stdout == full.stdout
    assert "lossless: profile" in lossless.stderr
    assert "bounded: profile b75, 23 of 30 layers" in bounded.stderr
