"""Hyper-parameters: strict loading, all faults at once, and the published preset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from roseedit.errors import HparamsError
from roseedit.hparams import as_mapping, from_mapping, read_yaml
from roseedit.roselora.config import PAPER, RoseLoRAHparams, read_roselora

# The authors' editing code, as the reference (sections 1.6, 2 and 3) lists it.
PUBLISHED = {
    "rank": 8,
    "scale": 4.0,
    "dropout": 0.1,
    "keep": 0.05,
    "beta": 0.8,
    "prune_start": 3,
    "prune_end": 20,
    "steps": 25,
    "lr": 5e-4,
    "tie_rule": "threshold",
    "norm_constraint": "entry",
    "norm_limit": 3e-3,
    "norm_unit": "absolute",
    "end_mark": False,
    "contexts": 0,
    "kl_weight": 0.0,
    "stop_loss": 0.1,
}


def refusal_of(values: dict[str, Any]) -> str:
    """The message with which values are refused."""
    with pytest.raises(HparamsError) as caught:
        read_roselora(values, "my.yaml")
    message = str(caught.value)
    assert message.startswith("my.yaml: ")
    return message


@pytest.mark.parametrize(
    ("key", "hint"), [("rnak", "Did you mean 'rank'?"), ("layer", "Did you mean 'layers'"), ("qqqq", "Known names: ")]
)
def test_an_unknown_key_names_the_nearest(key: str, hint: str) -> None:
    message = refusal_of({key: 1})
    assert f"unknown key {key!r}" in message
    assert hint in message


@pytest.mark.parametrize(
    ("key", "raw", "allowed"),
    [
        ("rank", "four", "a whole number"),
        ("rank", 4.5, "a whole number"),
        ("rank", True, "a whole number"),
        ("rank", [4], "a whole number"),
        ("rank", None, "a whole number"),
        ("keep", "much", "a number"),
        ("keep", True, "a number"),
        ("keep", [0.1], "a number"),
        ("end_mark", "yes", "true or false"),
        ("end_mark", 1, "true or false"),
        ("model", 7, "text"),
        ("modules", [3], "text"),
        ("layers", [1, "two"], "a whole number"),
        ("layers", 1.5, "a whole number"),
        ("anatomy", "model.layers", "a mapping"),
    ],
)
def test_a_wrong_type_is_refused(key: str, raw: Any, allowed: str) -> None:
    message = refusal_of({key: raw})
    assert f"{key}: got " in message
    assert f"allowed: {allowed}" in message
    assert "It is: " in message


@pytest.mark.parametrize(
    ("key", "raw", "allowed"),
    [
        ("rank", 0, "at least 1 and at most 512"),
        ("rank", 513, "at least 1 and at most 512"),
        ("keep", 0.0, "above 0.0 and at most 1.0"),
        ("keep", 1.01, "above 0.0 and at most 1.0"),
        ("keep", float("nan"), "a finite number"),
        ("lr", float("inf"), "a finite number"),
        ("seed", -1, "at least 0"),
        ("layers", [2, -1], "at least 0"),
        ("depth", [0.5, 1.5], "at least 0.0 and at most 1.0"),
        ("tie_rule", "topk", "top_k, threshold. Did you mean 'top_k'?"),
        ("dtype", "float8", "default, float32, bfloat16, float16, auto"),
    ],
)
def test_a_value_out_of_range_is_refused(key: str, raw: Any, allowed: str) -> None:
    message = refusal_of({key: raw})
    assert f"{key}: got " in message
    assert f"allowed: {allowed}" in message


def test_all_faults_come_in_one_message() -> None:
    message = refusal_of({"rnak": 4, "keep": 2.0, "end_mark": "no", "rank": 4, "tie_rule": "none"})
    for piece in ("unknown key 'rnak'", "keep: got 2.0", "end_mark: got 'no'", "tie_rule: got 'none'"):
        assert piece in message


def test_numbers_in_scientific_notation_are_numbers(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("method: RoseLoRA\nlr: 5e-4\nnorm_limit: 1E-2\nscale: 2\n")
    values = read_yaml(file)
    assert values["lr"] == "5e-4"  # YAML 1.1 reads it as text
    hparams = read_roselora(values)
    assert (hparams.lr, hparams.norm_limit, hparams.scale) == (5e-4, 1e-2, 2.0)
    assert type(hparams.scale) is float


@pytest.mark.parametrize(
    ("raw", "kept"), [("auto", "auto"), ("all", "all"), ([2, 20], (2, 20)), (5, (5,)), ((1,), (1,))]
)
def test_layers_are_auto_all_or_a_list(raw: Any, kept: Any) -> None:
    assert read_roselora({"layers": raw}).layers == kept


def test_another_word_for_layers_is_refused() -> None:
    message = refusal_of({"layers": "upper"})
    assert "got layers 'upper'; allowed: 'auto', 'all' or a list of indices" in message


@pytest.mark.parametrize(
    ("values", "piece"),
    [
        ({"steps": 20, "prune_end": 20}, "got steps 20; allowed: above prune_end (20). Raise steps"),
        ({"prune_start": 8, "prune_end": 8}, "got prune_end 8; allowed: above prune_start (8). Raise it"),
        ({"depth": [0.8, 0.5]}, "got depth [0.8, 0.5]; allowed: two shares in rising order"),
        ({"depth": [0.5]}, "got depth [0.5]; allowed: two shares in rising order"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(values: dict[str, Any], piece: str) -> None:
    assert piece in refusal_of(values)


def test_one_step_after_the_last_prune_is_enough() -> None:
    assert read_roselora({"steps": 21, "prune_end": 20}).steps == 21


def test_paper_gives_the_published_constants() -> None:
    hparams = read_roselora({"paper": True})
    assert {key: getattr(hparams, key) for key in PUBLISHED} == PUBLISHED


def contradicting(key: str) -> Any:
    """A value that is fine by itself and not the published one."""
    for value in (getattr(RoseLoRAHparams(), key), 0.5, 1, 2, 4, 19, "all"):
        try:
            kept = getattr(read_roselora({key: value}), key)
        except HparamsError:
            continue
        if kept != PAPER[key]:
            return kept
    raise AssertionError(f"no value for {key}")


@pytest.mark.parametrize("key", sorted(PAPER))
def test_paper_refuses_every_contradicting_key(key: str) -> None:
    changed = contradicting(key)
    message = refusal_of({"paper": True, key: changed})
    assert f"paper: true with {key} ({changed!r}, published {PAPER[key]!r})" in message
    assert "Leave these keys out" in message


def test_paper_accepts_keys_that_agree_or_are_free() -> None:
    hparams = read_roselora(
        {"paper": True, "keep": 0.05, "lr": "5e-4", "layers": "all", "modules": ["attn.q", "attn.v"]}
    )
    assert (hparams.keep, hparams.layers, hparams.modules) == (0.05, "all", ("attn.q", "attn.v"))


def test_as_mapping_round_trips_through_yaml() -> None:
    values = {"layers": [1, 3], "modules": ["mlp.up"], "anatomy": {"layers": "m.layers"}, "revision": "main", "lr": 0.5}
    hparams = read_roselora(values)
    mapping = as_mapping(hparams)
    assert mapping["method"] == "RoseLoRA"
    assert mapping["layers"] == [1, 3]
    assert read_roselora(yaml.safe_load(yaml.safe_dump(mapping))) == hparams


@pytest.mark.parametrize("values", [{}, {"paper": True}])
def test_as_mapping_round_trips(values: dict[str, Any]) -> None:
    hparams = read_roselora(values)
    assert from_mapping(RoseLoRAHparams, as_mapping(hparams), "again") == hparams


def test_replaced_is_checked_like_a_file() -> None:
    hparams = RoseLoRAHparams(support="entries")
    assert hparams.replaced(rank=2).rank == 2
    assert hparams.rank != 2
    with pytest.raises(HparamsError, match="rank: got 0"):
        hparams.replaced(rank=0)
    with pytest.raises(HparamsError, match="Did you mean 'rank'"):
        hparams.replaced(rnak=2)


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "smollm2-135m.yaml").write_text("rank: 4\n")
    with pytest.raises(HparamsError, match=r"does not exist.*Did you mean 'smollm2-135m.yaml'"):
        read_yaml(tmp_path / "smollm2-130m.yaml")
    with pytest.raises(HparamsError, match=r"does not exist.*Check the path"):
        read_yaml(tmp_path / "none" / "a.yaml")


@pytest.mark.parametrize(
    ("content", "piece"),
    [
        (b"a: [1", "which is not YAML"),
        (b"\xff\xfe\x00", "which is not YAML"),
        (b"- 1\n", "holding list"),
        (b"", "holding NoneType"),
    ],
)
def test_a_file_without_a_mapping_is_refused(tmp_path: Path, content: bytes, piece: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(content)
    with pytest.raises(HparamsError) as caught:
        read_yaml(file)
    assert piece in str(caught.value)
    assert "allowed: a" in str(caught.value)
