"""How sure a model is of a token."""

from __future__ import annotations

import torch

from roseedit.roselora.objective import Row, fact_losses, pushing, sureness


def test_both_measures_against_their_definition() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(40, 7), torch.randint(0, 7, (40,))
    probabilities = logits.double().softmax(-1)
    wanted = probabilities.gather(1, labels[:, None])[:, 0]
    rivals = probabilities.scatter(1, labels[:, None], 0.0).amax(1)
    nll = fact_losses(logits, labels)
    assert torch.allclose(sureness(logits, labels, nll, "probability").double(), wanted, atol=1e-6)
    assert torch.allclose(sureness(logits, labels, nll, "lead").double(), wanted / (wanted + rivals), atol=1e-6)


def test_a_lead_above_a_half_is_what_greedy_decoding_says() -> None:
    torch.manual_seed(1)
    logits, labels = torch.randn(200, 5), torch.randint(0, 5, (200,))
    lead = sureness(logits, labels, fact_losses(logits, labels), "lead")
    assert torch.equal(lead > 0.5, logits.argmax(1) == labels)
    assert (lead > 0.5).any()
    assert (lead < 0.5).any()


def test_the_weight_of_a_row_goes_to_its_unsure_tokens() -> None:
    unsure = torch.tensor([True, False, True, True, False, False])
    rows = torch.tensor([0, 0, 0, 1, 1, 2])
    assert pushing(unsure, rows).tolist() == [1.5, 0.0, 1.5, 2.0, 0.0, 0.0]
    assert pushing(torch.ones(6, dtype=torch.bool), rows).tolist() == [1.0] * 6
    assert pushing(unsure[:0], rows[:0]).tolist() == []


def test_a_brief_fact_ends_where_its_answer_begins() -> None:
    row = Row(0, 0, (5, 6, 7, 8, 9), (2, 3, 4), (8, 9, 1), 0.5, turn=1, turns=3)
    assert row.brief() == Row(0, 0, (5, 6, 7), (2,), (8,), 0.5, turn=1, turns=3)
    anchor = Row(0, 0, (5, 6, 7), (2,), (), 0.5)
    assert anchor.brief() == anchor
