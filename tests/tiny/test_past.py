"""Rows that go on from their first tokens say what whole ones say, and pull what whole ones pull."""

from __future__ import annotations

import pytest
import torch

from roseedit.models.encoding import pad_right
from roseedit.models.load import LoadedModel
from roseedit.models.past import Past, PastCache, has_past, pasts_of
from roseedit.models.replay import capture_activations, replaying, run_body
from roseedit.roselora.trainer import frozen

ROWS = [[5, 9, 17, 33, 8, 21], [12, 40, 7, 3], [25, 11, 60, 2, 45]]
CUT = (4, 0, 2)


def test_every_model_goes_on_from_its_first_tokens(any_model: LoadedModel) -> None:
    assert has_past(any_model)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_logits_and_gradients_are_those_of_whole_rows(any_model: LoadedModel, layer: int) -> None:
    loaded = any_model
    model, anatomy = loaded.model, loaded.anatomy
    ids, mask = pad_right(ROWS, loaded.pad_id, loaded.device)
    with frozen(model):
        stored = capture_activations(model, anatomy, layer, ids, mask).requires_grad_()
        with replaying(model, anatomy, layer, stored):
            whole = run_body(model, ids, mask)
        firsts = [row[:n] for row, n in zip(ROWS, CUT, strict=True)]
        entering = [stored[i, :n].detach() for i, n in enumerate(CUT)]
        pasts = pasts_of(loaded, layer, firsts, entering, 8)
        assert [past.length for past in pasts] == list(CUT)
        rest, after = pad_right([row[n:] for row, n in zip(ROWS, CUT, strict=True)], loaded.pad_id, loaded.device)
        later = stored.new_zeros(*rest.shape, stored.shape[2])
        for i, n in enumerate(CUT):
            later[i, : len(ROWS[i]) - n] = stored[i, n : len(ROWS[i])].detach()
        later.requires_grad_()
        with replaying(model, anatomy, layer, later):
            said = run_body(model, rest, after, past=PastCache(anatomy.n_layers, layer, pasts))
        for i, n in enumerate(CUT):
            length = len(ROWS[i]) - n
            torch.testing.assert_close(said[i, :length], whole[i, n : n + length], rtol=1e-4, atol=1e-5)
            assert torch.equal(said[i, :length].argmax(-1), whole[i, n : n + length].argmax(-1))
        if layer:  # the lowest is entered by ids
            ends = [len(row) - 1 for row in ROWS]
            sum(whole[i, end, 7] for i, end in enumerate(ends)).backward()
            sum(said[i, end - n, 7] for i, (end, n) in enumerate(zip(ends, CUT, strict=True))).backward()
            for i, n in enumerate(CUT):
                length = len(ROWS[i]) - n
                torch.testing.assert_close(later.grad[i, :length], stored.grad[i, n : n + length], rtol=1e-3, atol=1e-6)


def test_a_pass_without_any_past_is_a_plain_one(any_model: LoadedModel) -> None:
    ids, mask = pad_right(ROWS, any_model.pad_id, any_model.device)
    cache = PastCache(any_model.anatomy.n_layers, 0, [Past()] * len(ROWS))
    with torch.no_grad():
        torch.testing.assert_close(
            run_body(any_model.model, ids, mask, past=cache), run_body(any_model.model, ids, mask)
        )
    assert cache.seen(1).shape[:2] == (2, len(ROWS))
