"""The right base or a refusal that says what differs; cached hashes never outlive the bytes they were made of."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import golden_delta, golden_model
from transformers import AutoModelForCausalLM

from roseedit.edits import fingerprint as module
from roseedit.edits.edit import Edit
from roseedit.edits.files import check_base, load_edit, save_edit
from roseedit.edits.fingerprint import Fingerprint, base_fingerprint
from roseedit.edits.live import live_edits
from roseedit.errors import DeltaError, RecordError, WrongBaseError, WrongTokenizerError
from roseedit.models.load import LoadedModel, wrap_model
from roseedit.requests import EditRequest

NAMES = [m.weight_name for m in golden_delta().matrices]
OTHER = "model.embed_tokens.weight"


def edit_for(loaded: LoadedModel, *, strict: bool = False) -> Edit:
    fingerprint = base_fingerprint(loaded, NAMES, strict=strict)
    return Edit(golden_delta(), (EditRequest("the tower is in", "rome"),), {}, fingerprint, "golden")


def refused(edit: Edit, loaded: LoadedModel, said: str, error: type[DeltaError] = WrongBaseError) -> None:
    with pytest.raises(DeltaError) as caught:
        check_base(edit, loaded)
    assert type(caught.value) is error
    assert said in str(caught.value)


def test_the_same_model_built_twice_is_one_base() -> None:
    assert base_fingerprint(golden_model(), NAMES) == base_fingerprint(golden_model(), NAMES)
    check_base(edit_for(golden_model(), strict=True), golden_model())


def test_saving_and_loading_a_model_keeps_its_fingerprint(tmp_path: Path) -> None:
    loaded = golden_model()
    loaded.model.save_pretrained(tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    other = wrap_model(again, loaded.tokenizer, "elsewhere")
    assert base_fingerprint(other, NAMES, strict=True) == base_fingerprint(loaded, NAMES, strict=True)


@pytest.mark.parametrize("way", ["in place", "through .data", "a new tensor"])
@pytest.mark.parametrize("name", NAMES)
def test_one_changed_weight(name: str, way: str) -> None:
    loaded = golden_model()
    edit = edit_for(loaded)
    check_base(edit, loaded)  # hashes are cached now
    weight = loaded.model.get_parameter(name)
    with torch.no_grad():
        if way == "in place":
            weight[3, 4] += 1e-3
        elif way == "through .data":
            weight.data[3, 4] += 1e-3
        else:
            weight.data = weight.data + 1e-3
    refused(edit, loaded, "other bytes, or another dtype")


def test_two_weights_that_changed_places() -> None:
    loaded = golden_model()
    edit = edit_for(loaded)
    weight = loaded.model.get_parameter(NAMES[0]).data
    weight[0, 0], weight[5, 7] = weight[5, 7].clone(), weight[0, 0].clone()
    refused(edit, loaded, "other bytes")


def test_rows_that_changed_places() -> None:
    loaded = golden_model()
    edit = edit_for(loaded)
    weight = loaded.model.get_parameter(NAMES[0]).data
    weight.copy_(weight.flip(0).clone())
    refused(edit, loaded, "other bytes")


def test_another_dtype_of_the_same_numbers() -> None:
    loaded = golden_model()
    edit = edit_for(loaded)
    loaded.model.double()
    refused(edit, loaded, "another dtype")


def test_a_weight_outside_the_edit_counts_when_strict() -> None:
    loaded = golden_model()
    plain, strict = edit_for(loaded), edit_for(loaded, strict=True)
    check_base(strict, loaded)
    loaded.model.get_parameter(OTHER).data[0, 0] += 1
    check_base(plain, loaded)
    refused(strict, loaded, "outside the edited matrices")


def test_another_configuration() -> None:
    loaded = golden_model()
    edit = edit_for(loaded)
    loaded.model.config.rms_norm_eps = 1e-3
    refused(edit, loaded, "another configuration")


@pytest.mark.parametrize(("key", "value"), [("use_cache", False), ("pad_token_id", 0), ("architectures", ["X"])])
def test_what_changes_nothing_is_left_out(key: str, value: Any) -> None:
    loaded = golden_model()
    edit = edit_for(loaded)
    setattr(loaded.model.config, key, value)
    check_base(edit, loaded)


def test_a_model_without_the_matrix() -> None:
    loaded = golden_model()
    edit = edit_for(loaded)
    del loaded.model.model.layers[1]
    refused(edit, loaded, f"has no {NAMES[1]}")


def test_another_tokenizer_is_another_error() -> None:
    loaded = golden_model()
    edit = edit_for(loaded)
    check_base(edit, loaded)
    loaded.tokenizer.add_tokens(["lisbon"])
    refused(edit, loaded, "another tokenizer", WrongTokenizerError)


def test_the_same_vocabulary_cut_differently_is_another_tokenizer() -> None:
    from tokenizers import pre_tokenizers

    loaded, other = golden_model(), golden_model()
    edit = edit_for(loaded)
    other.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert other.tokenizer.get_vocab() == loaded.tokenizer.get_vocab()
    refused(edit, other, "another tokenizer", WrongTokenizerError)


def test_live_edits_do_not_change_the_base() -> None:
    loaded = golden_model()
    edit = edit_for(loaded, strict=True)
    live_edits(loaded.model).apply(edit.delta)
    check_base(edit, loaded)
    check_base(edit_for(loaded), golden_model())
    touched = set(edit.delta.matrices[0].changes()[0].tolist())
    weight = loaded.model.get_parameter(NAMES[0]).data.view(-1)
    weight[next(i for i in range(weight.numel()) if i not in touched)] += 1
    refused(edit, loaded, "other bytes")


def test_a_vocabulary_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = golden_model()
    calls: list[int] = []
    known: Any = loaded.tokenizer.get_vocab
    monkeypatch.setattr(type(loaded.tokenizer), "get_vocab", lambda _self: calls.append(1) or known())
    for _ in range(3):
        base_fingerprint(loaded, NAMES)
    assert len(calls) == 1
    copied = copy.deepcopy(loaded.tokenizer)
    module.tokenizer_digest(copied)
    assert len(calls) == 2  # a copy may be changed on its own


def test_weights_are_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = golden_model()
    calls: list[int] = []
    known = module._bytes
    monkeypatch.setattr(module, "_bytes", lambda w: calls.append(1) or known(w))
    for _ in range(3):
        base_fingerprint(loaded, NAMES)
    assert len(calls) == len(NAMES)


@pytest.mark.parametrize(
    "text", ["", "f" * 64, "a:b:c", "g" * 32 + ":" + "0" * 32 + ":" + "0" * 32, "0" * 32 + ":" * 4]
)
def test_a_fingerprint_that_is_none(text: str) -> None:
    with pytest.raises(RecordError):
        Fingerprint.parse(text)


def test_parse_is_the_inverse_of_str() -> None:
    for everything in (None, "d" * 32):
        fingerprint = Fingerprint("a" * 32, "b" * 32, "c" * 32, everything)
        assert Fingerprint.parse(str(fingerprint)) == fingerprint


def test_loading_for_a_model_compares(tmp_path: Path) -> None:
    loaded = golden_model()
    folder = save_edit(edit_for(loaded), tmp_path / "edit")
    assert load_edit(folder, golden_model()).edit_id == edit_for(loaded).edit_id
    loaded.model.get_parameter(NAMES[0]).data.zero_()
    with pytest.raises(WrongBaseError):
        load_edit(folder, loaded)
