"""The wrapper with a stock GenerationConfig, the Editor's contracts, and the command that shows them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, TextIteratorStreamer

from roseedit.editor import Editor
from roseedit.errors import BudgetError, ProfileFileError, SkipError
from roseedit.hadskip.decode import Decoder
from roseedit.hadskip.files import save_profiles
from roseedit.hadskip.profile import SkipProfiles
from roseedit.hadskip.response import Response
from roseedit.hadskip.sampling import Sampling
from roseedit.hadskip.wrapper import SkippingModel
from roseedit.models.encoding import pad_right
from roseedit.models.load import LoadedModel

Tiny = Callable[..., LoadedModel]
PROMPTS = ["The Tower is in", "Paris", "In the city of Paris the Tower is"]


@pytest.fixture
def loaded(tiny: Tiny) -> LoadedModel:
    return tiny("llama")


def wrapped(loaded: LoadedModel, contract: Any = "lossless", budget: float | None = None) -> SkippingModel:
    return SkippingModel(Decoder(loaded, SkipProfiles.of(loaded, {"p": (0, 1, 3)})), contract, budget)


def encoded(loaded: LoadedModel, side: str) -> dict[str, torch.Tensor]:
    rows = [loaded.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    ids, mask = pad_right(rows, loaded.pad_id, loaded.device)
    if side == "left":
        order = mask.argsort(dim=1, stable=True)
        ids, mask = ids.gather(1, order), mask.gather(1, order)
    return {"input_ids": ids, "attention_mask": mask}


CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "penalties": {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    "at least": {"min_new_tokens": 9},
    "forbidden": {"suppress_tokens": [5, 6], "bad_words_ids": [[7]]},
}


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize("contract", ["full", "lossless"])
def test_a_stock_config_gives_what_stock_gives(loaded: LoadedModel, name: str, contract: Any) -> None:
    inputs = encoded(loaded, "left")
    config = GenerationConfig(max_new_tokens=10, do_sample=False, **CONFIGS[name])
    stock = loaded.model.generate(**inputs, generation_config=config)
    model = wrapped(loaded, contract)
    said = model.generate(**inputs, generation_config=config)
    assert said.tolist() == stock.tolist()
    assert [r.contract for r in model.responses] == [contract] * 3
    as_dict = model.generate(
        inputs["input_ids"], config, attention_mask=inputs["attention_mask"], return_dict_in_generate=True
    )
    assert as_dict.sequences.tolist() == stock.tolist()


def test_right_padding_and_no_mask(loaded: LoadedModel) -> None:
    left, right = (wrapped(loaded).generate(**encoded(loaded, side), max_new_tokens=6) for side in ("left", "right"))
    assert left[:, -6:].tolist() == right[:, -6:].tolist()
    ids = encoded(loaded, "left")["input_ids"][2:]
    stock = loaded.model.generate(ids, max_length=ids.shape[1] + 5, do_sample=False)
    assert wrapped(loaded).generate(ids, max_length=ids.shape[1] + 5).tolist() == stock.tolist()


def test_sampling_with_a_stock_config(loaded: LoadedModel) -> None:
    inputs = encoded(loaded, "left")
    config = GenerationConfig(max_new_tokens=8, do_sample=True, temperature=0.9, top_k=30, top_p=0.95)
    said = [wrapped(loaded, contract).generate(**inputs, generation_config=config) for contract in ("full", "lossless")]
    assert said[0].tolist() == said[1].tolist()
    assert said[0].tolist() != wrapped(loaded).generate(**inputs, max_new_tokens=8).tolist()


def test_a_stock_streamer(loaded: LoadedModel) -> None:
    streamer = TextIteratorStreamer(loaded.tokenizer, skip_prompt=True)
    model = wrapped(loaded)
    ids = encoded(loaded, "left")["input_ids"][2:]
    out = model.generate(ids, max_new_tokens=8, streamer=streamer)
    assert "".join(streamer) == loaded.tokenizer.decode(out[0, ids.shape[1] :])
    with pytest.raises(SkipError, match="one row"):
        model.generate(**encoded(loaded, "left"), max_new_tokens=8, streamer=streamer)


def test_the_wrapper_answers_for_the_model(loaded: LoadedModel) -> None:
    model = wrapped(loaded)
    assert model.config is loaded.model.config
    assert model.device == loaded.model.device
    ids = encoded(loaded, "left")["input_ids"]
    assert torch.equal(model(ids).logits, loaded.model(ids).logits)


REFUSALS: dict[str, dict[str, Any]] = {
    "num_beams": {"num_beams": 4},
    "num_return_sequences": {"num_return_sequences": 2, "do_sample": True},
    "penalty_alpha": {"penalty_alpha": 0.6},
    "prompt_lookup_num_tokens": {"prompt_lookup_num_tokens": 3},
    "guidance_scale": {"guidance_scale": 1.5},
    "cache_implementation": {"cache_implementation": "static"},
    "output_scores": {"output_scores": True, "return_dict_in_generate": True},
    "assistant_model": {"assistant_model": object()},
    "logits_processor": {"logits_processor": [object()]},
    "stopping_criteria": {"stopping_criteria": [object()]},
    "watermarking_config": {"watermarking_config": {"bias": 2.5}},
    "inputs_embeds": {"inputs_embeds": torch.zeros(1, 2, 32)},
    "forced_eos_token_id": {"forced_eos_token_id": 3},
    "pixel_values": {"pixel_values": torch.zeros(1)},
}


@pytest.mark.parametrize("name", sorted(REFUSALS))
def test_what_it_cannot_do_is_refused_by_name(loaded: LoadedModel, name: str) -> None:
    with pytest.raises(SkipError, match=name):
        wrapped(loaded).generate(**encoded(loaded, "left"), max_new_tokens=4, **REFUSALS[name])


def test_bad_contracts_are_refused_at_once(loaded: LoadedModel) -> None:
    with pytest.raises(BudgetError):
        wrapped(loaded, "bounded")
    with pytest.raises(SkipError, match="max_length 3"):
        wrapped(loaded).generate(**encoded(loaded, "left"), max_length=3)
    with pytest.raises(SkipError, match="no ids"):
        wrapped(loaded).generate()


def test_the_editor_generates_under_a_contract(loaded: LoadedModel, tmp_path: Path) -> None:
    editor = Editor.from_pretrained(loaded.model, loaded.tokenizer)
    profiles = SkipProfiles.of(loaded, {"p": (0, 1, 3)})
    plain = editor.generate(PROMPTS, max_new_tokens=8)
    assert editor.generate(PROMPTS, max_new_tokens=8, contract="lossless", gates=profiles) == plain
    assert editor.generate(PROMPTS[0], max_new_tokens=8) == plain[0]
    folder = save_profiles(profiles, tmp_path / "p")
    said = editor.generate(PROMPTS, max_new_tokens=8, contract="bounded", budget=0.8, gates=folder, detailed=True)
    assert all(
        isinstance(r, Response) and (r.contract, r.profile, r.layers_run) == ("bounded", "p", (0, 1, 3)) for r in said
    )
    assert [r.text.strip() for r in said] != plain
    sampling = Sampling(0.9, seed=5)
    drawn = editor.generate(PROMPTS, sampling=sampling, stop="x")
    assert drawn == editor.generate(PROMPTS, contract="lossless", gates=folder, sampling=sampling, stop=["x"])
    pieces = list(editor.stream(PROMPTS[0], contract="bounded", budget=0.8, gates=folder, max_new_tokens=8))
    assert "".join(piece.text for piece in pieces) == said[0].text
    with pytest.raises(ProfileFileError):
        editor.generate(PROMPTS, contract="lossless", gates=tmp_path)
    with pytest.raises(SkipError, match="none ship"):
        editor.generate(PROMPTS, contract="lossless")
    with pytest.raises(BudgetError):
        editor.generate(PROMPTS, contract="bounded", gates=folder)


def test_an_edit_makes_the_editors_gates_stale(loaded: LoadedModel) -> None:
    """The text of an edited model is never produced by a profile that was fitted without the edit."""
    editor = Editor.from_pretrained(loaded.model, loaded.tokenizer, {"layers": [1]})
    profiles = SkipProfiles.of(loaded, {"p": (0, 1, 3)})
    editor.edit("The Tower is in", "Rome", evaluate=False)
    with pytest.raises(SkipError, match="were not fitted"):
        editor.generate(PROMPTS, contract="bounded", budget=0.8, gates=profiles)
    editor.revert()
    editor.generate(PROMPTS, contract="bounded", budget=0.8, gates=profiles, max_new_tokens=2)
