"""The harmonic mean over figures, and search spaces, by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from roseedit.evaluation.overall import by_edit, overall
from roseedit.methods import find_method, method_names, read_hparams
from roseedit.methods.space import Knob, fitted, values_of, with_values

NAN = math.nan
DEEP: Any = SimpleNamespace(n_layers=31)


def test_the_harmonic_mean_is_that_of_the_means() -> None:
    found = overall([[1, 0, 1, 0], [1, 1, 1, 1]])
    assert found.mean == pytest.approx(2 / (1 / 0.5 + 1))
    assert found.n == 4
    assert 0 <= found.low < found.mean < found.high <= 1


def test_missing_values_are_left_out_and_zero_makes_all_zero() -> None:
    assert overall([[1, NAN], [NAN, 0.5]]).mean == pytest.approx(2 / 3)
    assert overall([[0.5, 0.5], [NAN, NAN]]).mean == 0.5
    assert overall([[0, 0], [1, 1]]).mean == 0
    assert overall([[0, -1], [1, 1]], floor=0.01).mean == pytest.approx(2 / (100 + 1))
    assert math.isnan(overall([[NAN], [NAN]]).mean)
    assert math.isnan(overall([[1.0]], interval=False).low)


def test_equal_edits_have_no_interval_to_speak_of() -> None:
    found = overall([[0.25] * 9, [0.5] * 9])
    assert (found.low, found.high) == pytest.approx((found.mean, found.mean))


def test_parts_are_means_inside_each_edit() -> None:
    lines = [
        ("a", "prompt", "exact_match", 0.0, 1.0),
        ("a", "portability", "exact_match", 0.0, 1.0),
        ("a", "portability", "exact_match", 1.0, 1.0),
        ("b", "prompt", "exact_match", 0.0, 0.0),
        ("b", "locality", "easyedit_locality", 1.0, 0.25),
    ]
    rows = pd.DataFrame(lines, columns=["edit", "kind", "metric", "before", "after"])
    found = by_edit(rows, ["b", "a"])
    assert found["reliability"] == [0.0, 1.0]
    assert found["portability_before"][1] == 0.5
    assert found["portability_gain"][1] == 0.5
    assert found["locality"][0] == 0.25
    assert math.isnan(found["portability"][0])
    assert math.isnan(found["locality"][1])


@pytest.mark.parametrize("name", method_names())
def test_every_space_holds_its_own_settings(name: str) -> None:
    knobs = find_method(name).space
    assert knobs
    assert len({knob.name for knob in knobs}) == len(knobs)
    base = read_hparams({"method": name})
    values = values_of(base, knobs, DEEP)
    again = with_values(base, values)
    for knob in knobs:
        for end in knob.choices or (knob.low, knob.high):
            one = int(end) if knob.whole else end
            with_values(again, {**values, knob.name: one})
    assert values_of(again, knobs, DEEP) == pytest.approx(values, abs=0.04)


def test_layers_are_searched_as_shares_of_depth() -> None:
    knobs = find_method("RoseLoRA").space
    base = read_hparams({"layers": [12, 13], "support": "entries"})
    values = values_of(base, knobs, DEEP)
    assert values["depth.middle"] == pytest.approx(12.5 / 30)
    assert values["depth.span"] == pytest.approx(1 / 30)
    found: Any = with_values(base, {"depth.middle": 0.95, "depth.span": 0.2})
    assert (found.layers, found.depth) == ("auto", (0.85, 1.0))
    assert with_values(base, {"modules": "attn.q+attn.v"}).modules == ("attn.q", "attn.v")  # type: ignore[attr-defined]


def test_modules_that_a_model_lacks_are_not_tried() -> None:
    fused: Any = SimpleNamespace(
        n_layers=12,
        projections=[
            SimpleNamespace(role="attn.qkv", module_name="h.0.attn.c_attn"),
            SimpleNamespace(role="mlp.down", module_name="h.0.mlp.c_proj"),
        ],
    )
    knobs, start = fitted(find_method("LoRA").space, read_hparams({"method": "LoRA"}), fused)
    assert next(k for k in knobs if k.name == "modules").choices == ("attn.qkv", "mlp.down")
    assert start.modules == ("attn.qkv",)  # type: ignore[attr-defined]
    kept = read_hparams({"method": "LoRA", "modules": ["c_proj"]})
    assert fitted(find_method("LoRA").space, kept, fused)[1] == kept


def test_a_knob_takes_the_nearest_value() -> None:
    assert Knob("lr", 1e-4, 1e-2).fitted(0.0) == 1e-4
    assert Knob("rank", 1, 16, whole=True).fitted(99) == 16
    assert Knob("kind", choices=("a", "b")).fitted("c") is None
