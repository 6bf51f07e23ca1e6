"""The loss of an answer part by part is the loss by logits, and so is its gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from roseedit.models import answers
from roseedit.models.answers import AnswerHead, ends_in_head
from roseedit.models.head import frozen_head
from roseedit.models.load import LoadedModel
from roseedit.models.lowp import Bfloat16Products, usual_rows


def by_logits(loaded: LoadedModel, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    weight, bias = frozen_head(loaded.model) or (torch.empty(0), None)
    return nn.functional.cross_entropy(nn.functional.linear(hidden, weight.float(), bias), labels, reduction="none")


def asked(loaded: LoadedModel, n: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, loaded.anatomy.hidden_size, generator=generator).requires_grad_()
    return hidden, torch.randint(0, len(loaded.model.get_output_embeddings().weight), (n,), generator=generator)


@pytest.mark.parametrize("at_once", [3, 64])
def test_losses_and_gradients_are_those_of_the_logits(
    frozen_model: LoadedModel, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not ends_in_head(frozen_model.model, frozen_model.anatomy):
        pytest.skip("something stands behind this head")
    monkeypatch.setattr(answers, "POSITIONS", at_once)
    hidden, labels = asked(frozen_model)
    weights = torch.linspace(0.5, 2.0, len(labels))
    wanted = by_logits(frozen_model, hidden, labels)
    (own,) = torch.autograd.grad((wanted * weights).sum(), hidden)
    found = AnswerHead(frozen_model.model).losses(hidden, labels, enough=1.1)
    (gradient,) = torch.autograd.grad((found * weights).sum(), hidden)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient, own, rtol=1e-4, atol=1e-6)


def test_sure_tokens_are_not_pushed(frozen_model: LoadedModel) -> None:
    hidden, labels = asked(frozen_model)
    sure = (-by_logits(frozen_model, hidden, labels)).exp().detach()
    enough = float(sure.sort().values[4:6].mean())
    found = AnswerHead(frozen_model.model).losses(hidden, labels, enough)
    (gradient,) = torch.autograd.grad(found.sum(), hidden)
    assert torch.equal(gradient.any(-1), sure < enough)


def test_narrow_heads_agree(frozen_model: LoadedModel) -> None:
    hidden, labels = asked(frozen_model)
    products = Bfloat16Products(frozen_model.model, frozen_model.anatomy, range(frozen_model.anatomy.n_layers))
    with products.active():
        found = AnswerHead(frozen_model.model).losses(hidden, labels, enough=1.1)
    torch.testing.assert_close(found, by_logits(frozen_model, hidden, labels), rtol=0.05, atol=0.05)


def test_a_trained_head_is_refused(frozen_model: LoadedModel) -> None:
    head = frozen_model.model.get_output_embeddings()
    head.weight.requires_grad_()
    try:
        assert not ends_in_head(frozen_model.model, frozen_model.anatomy)
        with pytest.raises(ValueError, match="use logits"):
            AnswerHead(frozen_model.model).losses(*asked(frozen_model), enough=1.0)
    finally:
        head.weight.requires_grad_(requires_grad=False)


def test_a_cap_behind_the_head_is_seen(frozen_model: LoadedModel) -> None:
    model = frozen_model.model
    own = model.forward

    def capped(*args: object, **kwargs: object) -> object:
        out = own(*args, **kwargs)
        out.logits = 3 * torch.tanh(out.logits / 3) + 1
        return out

    model.forward = capped
    try:
        assert not ends_in_head(model, frozen_model.anatomy)
    finally:
        model.__dict__.pop("forward", None)


def test_usual_rows_are_few_and_near() -> None:
    sizes = {usual_rows(n) for n in range(1, 513)}
    assert len(sizes) < 16
    assert all(0 <= usual_rows(n) - n < 64 for n in range(1, 513))
