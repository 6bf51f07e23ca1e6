"""How unlikely an answer's tokens are, with the way to make them likelier, without ever holding all their logits.

A position's logits are as many as the vocabulary has tokens, and autograd keeps several copies of them: for a small
model that is half as much as its weights. Here some positions at a time go through the head, and what the loss asks of
the hidden state is worked out on the spot.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from roseedit.models.anatomy import Anatomy
from roseedit.models.head import frozen_head, headless
from roseedit.models.lowp import filled_up, usual_rows
from roseedit.models.replay import layers_off, run_body

POSITIONS = 64  # through the head at a time: enough for its products to be bound by arithmetic
TOKENS = 1024  # of a vocabulary at a time in float32 on a CPU: wide products write past its caches, 46 GFLOP/s for 63


@torch.no_grad()
def ends_in_head(model: Any, anatomy: Anatomy) -> bool:
    """Whether a model's logits are what its head says, with no cap or scale behind it, and the head can be taken over.

    Args:
        model: The model, frozen.
        anatomy: Its parts.

    Returns:
        True when an `AnswerHead` may be used.
    """
    if frozen_head(model) is None:
        return False
    head = model.get_output_embeddings()
    ids = torch.zeros(1, 2, dtype=torch.long, device=head.weight.device)
    with layers_off(model, anatomy, 0):
        logits = run_body(model, ids, torch.ones_like(ids))
        with headless(model):
            hidden = run_body(model, ids, torch.ones_like(ids))
        return bool(torch.allclose(head(hidden), logits, rtol=1e-3, atol=1e-5))


class AnswerHead:
    """The head of a model on the tokens of answers, some at a time in memory that is used again and again.

    Args:
        model: The model, its head as `ends_in_head` wants it.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.sure = torch.empty(0)
        self.low = self.chosen = self.sure

    def losses(self, hidden: Tensor, labels: Tensor, enough: float) -> Tensor:
        """Negative log-probability of each wanted token.

        Args:
            hidden: (positions, hidden), what enters the head.
            labels: (positions,), the wanted tokens.
            enough: Tokens with this probability are not pushed: their gradient is 0.

        Returns:
            (positions,), float32, with a gradient to `hidden`.

        Raises:
            ValueError: The head is not frozen, or not a plain one.
        """
        weights = frozen_head(self.model)
        if weights is None:
            msg = "the head is trained or not a plain linear map; use logits"
            raise ValueError(msg)
        self._make_room(weights[0])
        nll: Tensor = _Losses.apply(hidden, self, weights, labels, enough)  # type: ignore[no-untyped-call]
        return nll

    def _make_room(self, weight: Tensor) -> None:
        shape = usual_rows(POSITIONS), len(weight)
        if self.sure.shape != shape or self.chosen.dtype != weight.dtype:
            self.sure = torch.empty(shape, device=weight.device)
            self.chosen = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
            narrow = weight.dtype != self.sure.dtype
            self.low = torch.zeros_like(self.chosen) if narrow else self.sure

    def part(
        self, hidden: Tensor, weights: tuple[Tensor, Tensor | None], labels: Tensor, enough: float
    ) -> tuple[Tensor, Tensor]:
        """Losses of at most `POSITIONS` positions, and the gradient of each to its hidden state."""
        weight, bias = weights
        n = len(hidden)
        sure, low = self.sure[:n], self.low[:n]
        asked = filled_up(hidden.to(weight.dtype))
        _multiply(asked, weight, self.low[: len(asked)])
        if low.dtype != sure.dtype:
            sure.copy_(low)
        if bias is not None:
            sure.add_(bias)
        torch.softmax(sure, -1, out=sure)
        wanted = sure.gather(1, labels[:, None])
        unsure = (wanted[:, 0] < enough).nonzero()[:, 0]
        sure.scatter_add_(1, labels[:, None], torch.full_like(wanted, -1))
        if low.dtype != sure.dtype:
            low.copy_(sure)
        torch.index_select(low, 0, unsure, out=self.chosen[: len(unsure)])
        gradient = torch.zeros_like(hidden)
        pull = self.chosen[: usual_rows(len(unsure))] @ weight  # of what is left in the last rows nothing is read
        gradient[unsure] = pull[: len(unsure)].to(hidden.dtype)
        return -wanted[:, 0].clamp(min=torch.finfo(wanted.dtype).tiny).log(), gradient


def _multiply(hidden: Tensor, weight: Tensor, out: Tensor) -> None:
    """(n, hidden) by the head, into (n, vocabulary)."""
    step = TOKENS if weight.dtype == torch.float32 and weight.device.type == "cpu" else len(weight)
    for rows, columns in zip(weight.split(step), out.split(step, dim=1), strict=True):
        torch.mm(hidden, rows.mT, out=columns)


class _Losses(torch.autograd.Function):
    """Cross-entropy through a frozen head, part by part; the gradient is made on the way."""

    @staticmethod
    def forward(  # noqa: PLR0917 - called by autograd alone
        ctx: Any,
        hidden: Tensor,
        head: AnswerHead,
        weights: tuple[Tensor, Tensor | None],
        labels: Tensor,
        enough: float,
    ) -> Tensor:
        pairs = zip(hidden.split(POSITIONS), labels.split(POSITIONS), strict=True)
        found = [head.part(h, weights, wanted, enough) for h, wanted in pairs]
        ctx.save_for_backward(torch.cat([gradient for _, gradient in found]))
        return torch.cat([nll for nll, _ in found])

    @staticmethod
    def backward(ctx: Any, *pushed: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * pushed[0][:, None].to(gradient.dtype), None, None, None, None
