"""Profiles as objects and as files: what is refused, what survives the trip, what a changed edit does to them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from roseedit.edits.delta import Delta
from roseedit.edits.fingerprint import served_fingerprint
from roseedit.errors import BudgetError, ProfileFileError, SkipError, StaleProfilesError
from roseedit.hadskip.choosing import FixedChooser, PromptBatch, chooser_of
from roseedit.hadskip.files import load_profiles, record_hash, save_profiles
from roseedit.hadskip.paths import Healing, edited_layers, protected_layers
from roseedit.hadskip.profile import Profile, SkipProfiles
from roseedit.models.load import LoadedModel

Tiny = Callable[..., LoadedModel]
SETS = {"full": range(6), "five": (0, 1, 2, 4, 5), "four": (0, 1, 2, 5), "three": (0, 1, 5)}


@pytest.fixture
def loaded(tiny: Tiny) -> LoadedModel:
    return tiny("llama", num_hidden_layers=6)


def made(loaded: LoadedModel) -> SkipProfiles:
    pair = torch.randn(2, 32), torch.randn(32, 2)
    return SkipProfiles.of(
        loaded,
        SETS,
        measured={"four": {"perplexity": 12.5, "speed": 1.25}},
        healings={"h": Healing({3: torch.ones(32)}, {4: pair})},
        healing_of={"four": "h"},
        gates={"w": torch.arange(4.0)},
        gate_settings={"looks_at": 2},
        made_by={"budget": 0.7},
    )


def an_edit(loaded: LoadedModel, layer: int) -> Delta:
    p = next(p for p in loaded.anatomy.projections if p.layer == layer and p.role == "mlp.down")
    return Delta.from_factors({p.module_name: p}, {p.module_name: (torch.ones(1, p.d_in), torch.ones(p.d_out, 1))})


def test_costs_protection_and_nesting(loaded: LoadedModel) -> None:
    profiles = made(loaded)
    assert [p.cost for p in profiles.profiles] == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6])
    assert profiles.protected == (0, 1, 5)
    assert profiles.nested
    assert not SkipProfiles.of(loaded, {"a": (0, 1, 2, 5), "b": (0, 1, 3, 4, 5)}).nested
    assert profiles.profiles[1].skipped(6) == (3,)


def test_a_budget_picks_the_costliest_within_it(loaded: LoadedModel) -> None:
    profiles = made(loaded)
    assert profiles.within(None) == (0, 1, 2, 3)
    assert profiles.within(5 / 6) == (1, 2, 3)
    assert profiles.within(0.7) == (2, 3)
    for budget in (0.49, 0, -1, 1.1, float("nan")):
        with pytest.raises(BudgetError, match="allowed"):
            profiles.within(budget)


def test_the_fixed_chooser(loaded: LoadedModel) -> None:
    profiles = made(loaded)
    prompts = PromptBatch(torch.zeros(3, 2, dtype=torch.long), torch.ones(3, 2))
    assert FixedChooser(profiles).choose(loaded, prompts, 0.7) == [2, 2, 2]
    assert FixedChooser(profiles, "three").choose(loaded, prompts, None) == [3, 3, 3]
    with pytest.raises(BudgetError, match="full"):
        FixedChooser(profiles, "full").choose(loaded, prompts, 0.5)
    with pytest.raises(SkipError, match="'six'"):
        FixedChooser(profiles, "six")
    assert isinstance(chooser_of(replace(profiles, gate_settings={})), FixedChooser)


BAD_PROFILES: dict[str, dict[str, Any]] = {
    "name": {"name": "a b"},
    "empty": {"layers": ()},
    "unsorted": {"layers": (1, 0)},
    "twice": {"layers": (0, 0)},
    "negative": {"layers": (-1, 0)},
    "no cost": {"cost": 0.0},
    "cost above one": {"cost": 1.5},
    "figure": {"measured": {"kl": float("nan")}},
    "figure as text": {"measured": {"kl": "low"}},
}


@pytest.mark.parametrize("name", sorted(BAD_PROFILES))
def test_bad_profiles_are_refused(name: str) -> None:
    good = {"name": "a", "layers": (0, 1), "cost": 0.5}
    with pytest.raises(SkipError, match="allowed"):
        Profile(**{**good, **BAD_PROFILES[name]})


def test_bad_sets_of_profiles_are_refused(loaded: LoadedModel) -> None:
    profiles = made(loaded)
    one = profiles.profiles[0]
    nine = tuple(replace(one, name=f"p{i}") for i in range(9))
    bad: list[dict[str, Any]] = [
        {"profiles": ()},
        {"profiles": nine},
        {"profiles": (one, one)},
        {"profiles": (Profile("x", (0, 5), 0.3),)},
        {"profiles": (Profile("x", (0, 1, 5, 6), 0.3),)},
        {"healings": {}},
        {"fingerprint": "abc"},
    ]
    for change in bad:
        with pytest.raises(SkipError, match="allowed"):
            replace(profiles, **change)
    with pytest.raises(SkipError, match="protected"):
        SkipProfiles.of(loaded, {"x": (0, 2, 5)})


def test_files_bring_everything_back(loaded: LoadedModel, tmp_path: Path) -> None:
    profiles = made(loaded)
    again = load_profiles(save_profiles(profiles, tmp_path / "p"))
    for name in ("model_name", "n_layers", "protected", "fingerprint", "profiles", "gate_settings", "made_by"):
        assert getattr(again, name) == getattr(profiles, name)
    assert torch.equal(again.gates["w"], profiles.gates["w"])
    healed, before = again.healing(2), profiles.healing(2)
    assert healed is not None
    assert before is not None
    assert {k: v.tolist() for k, v in healed.tensors().items()} == {k: v.tolist() for k, v in before.tensors().items()}
    assert again.healing(0) is None
    again.check(loaded)
    with pytest.raises(ProfileFileError, match="in use"):
        save_profiles(profiles, tmp_path / "p")
    save_profiles(profiles, tmp_path / "p", overwrite=True)


def _rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads((folder / "profiles.json").read_text())
    change(record)
    record["record_sha256"] = record_hash(record)
    (folder / "profiles.json").write_text(json.dumps(record))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no record": lambda f: (f / "profiles.json").unlink(),
    "not json": lambda f: (f / "profiles.json").write_text("{"),
    "changed record": lambda f: (f / "profiles.json").write_text(
        (f / "profiles.json").read_text().replace('"n_layers": 6', '"n_layers": 7')
    ),
    "no blob": lambda f: (f / "gates.safetensors").unlink(),
    "flipped bit": lambda f: (f / "healing.safetensors").write_bytes(
        (f / "healing.safetensors").read_bytes()[:-1] + b"\x01"
    ),
    "a pickle": lambda f: (f / "gates.pt").write_bytes(b"x"),
    "format": lambda f: _rewrite(f, lambda r: r.update(format=2)),
    "part missing": lambda f: _rewrite(f, lambda r: r.pop("profiles")),
    "unknown part": lambda f: _rewrite(f, lambda r: r["profiles"][0].update(speed=2)),
    "bad value": lambda f: _rewrite(f, lambda r: r["profiles"][0].update(cost=2)),
    "layers as text": lambda f: _rewrite(f, lambda r: r["profiles"][0].update(layers="012345")),
}


@pytest.mark.parametrize("name", sorted(DAMAGE))
def test_damaged_files_are_refused(loaded: LoadedModel, tmp_path: Path, name: str) -> None:
    folder = save_profiles(made(loaded), tmp_path / "p")
    DAMAGE[name](folder)
    with pytest.raises(ProfileFileError, match="allowed"):
        load_profiles(folder)


def test_a_stale_fingerprint_is_refused(loaded: LoadedModel, tiny: Tiny) -> None:
    profiles = made(loaded)
    profiles.check(loaded)
    delta = an_edit(loaded, 1)
    delta.apply(loaded.model)
    with pytest.raises(
        StaleProfilesError, match=r"got the weights .* allowed: the weights .*Fit anew: roseedit skip fit"
    ):
        profiles.check(loaded)
    profiles.check(loaded, stale_is_fine=True)
    delta.revert(loaded.model)
    profiles.check(loaded)
    with pytest.raises(SkipError, match="6 layers"):
        profiles.check(tiny("llama"))


def test_an_edited_layer_is_in_no_skipped_set(loaded: LoadedModel) -> None:
    profiles = made(loaded)
    delta = an_edit(loaded, 3)
    delta.apply(loaded.model)
    assert edited_layers(loaded) == (3,)
    assert protected_layers(loaded) == (0, 1, 3, 5)
    for fine in (False, True):
        with pytest.raises(SkipError, match=r"skips layers \[3\]"):
            profiles.check(loaded, stale_is_fine=fine)
    with pytest.raises(SkipError, match=r"protected \[3\]"):
        SkipProfiles.of(loaded, {"five": SETS["five"]})
    fitted = SkipProfiles.of(loaded, {"x": (0, 1, 3, 5)})
    fitted.check(loaded)
    delta.revert(loaded.model)
    with pytest.raises(StaleProfilesError):
        fitted.check(loaded)


def test_the_fingerprint_follows_the_weights(loaded: LoadedModel) -> None:
    first = served_fingerprint(loaded)
    assert served_fingerprint(loaded) == first
    weight = next(loaded.model.parameters())
    with torch.no_grad():
        old = weight[0, 0].clone()
        weight[0, 0] += 1
        assert served_fingerprint(loaded) != first
        weight[0, 0] = old
    assert served_fingerprint(loaded) == first
    weight.data *= 2  # what a merged adapter does
    assert served_fingerprint(loaded) != first


def test_a_prefix_cache_is_keyed_by_profile(loaded: LoadedModel) -> None:
    """Under the bounded contract deeper K/V depend on what ran; no two profiles may share a key."""
    profiles = made(loaded)
    salts = [profiles.cache_salt(i) for i in range(4)]
    assert len(set(salts)) == 4
    assert salts == [made(loaded).cache_salt(i) if i != 2 else salts[2] for i in range(4)]
    healed = SkipProfiles.of(
        loaded, SETS, healings={"h": Healing({3: torch.full((32,), 2.0)})}, healing_of={"four": "h"}
    )
    assert healed.cache_salt(2) != salts[2]
