"""What a run with neurons takes is reckoned before it starts, and refused where it cannot fit."""

from __future__ import annotations

import pytest

from roseedit.errors import CapacityError
from roseedit.models.load import LoadedModel
from roseedit.roselora.config import RoseLoRAHparams
from roseedit.roselora.neurons import room
from roseedit.roselora.neurons.mlp import find_neurons


def test_bfloat16_copies_count_where_they_are_made(frozen_model: LoadedModel) -> None:
    neurons = find_neurons(frozen_model, 0)
    own = room.room_of(frozen_model, neurons, RoseLoRAHparams(train_dtype="weights"), 256)
    low = room.room_of(frozen_model, neurons, RoseLoRAHparams(train_dtype="bfloat16"), 256)
    assert low.fixed > own.fixed
    assert low.per_edit == own.per_edit > 0


def test_more_wordings_and_anchors_take_more(frozen_model: LoadedModel) -> None:
    neurons, few = find_neurons(frozen_model, 0), RoseLoRAHparams(rewordings=0, anchor_known=0)
    per_edit = [
        room.room_of(frozen_model, neurons, hparams, 256).per_edit
        for hparams in (few, few.replaced(anchor_known=6), few.replaced(anchor_known=6, rewordings=6))
    ]
    assert per_edit[0] < per_edit[1] < per_edit[2]


def test_fewer_edits_share_little_memory(frozen_model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    neurons, hparams = find_neurons(frozen_model, 0), RoseLoRAHparams()
    needs = room.room_of(frozen_model, neurons, hparams, 256)
    monkeypatch.setattr(room, "free_memory", lambda _device: needs.fixed + 3 * needs.per_edit)
    assert room.side_by_side(frozen_model, neurons, hparams, 256) == 3
    assert room.side_by_side(frozen_model, neurons, hparams.replaced(edits_per_bank=2), 256) == 2


def test_what_cannot_fit_is_refused_with_figures(frozen_model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "free_memory", lambda _device: 1000)
    with pytest.raises(CapacityError, match=r"0 MB free, with [\d,]+ MB wanted.*bfloat16"):
        room.side_by_side(frozen_model, find_neurons(frozen_model, 0), RoseLoRAHparams(), 256)
