"""The full model as a teacher: its distributions at chosen positions, from states stored before its last layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from roseedit.hadskip.healing import entering
from roseedit.hadskip.texts import all_real
from roseedit.models.head import head_at
from roseedit.models.load import LoadedModel
from roseedit.models.replay import replaying, run_body


@dataclass(frozen=True)
class Teacher:
    """Sequences with what the full, edited model says about them.

    Attributes:
        loaded: The model.
        ids: (rows, tokens), without padding.
        states: (rows, tokens, hidden), what enters the last layer of the full model.
    """

    loaded: LoadedModel
    ids: Tensor
    states: Tensor

    @classmethod
    def of(cls, loaded: LoadedModel, ids: Tensor) -> Teacher:
        """Run the full model once over sequences.

        Args:
            loaded: The model, edits applied.
            ids: (rows, tokens), without padding.

        Returns:
            The teacher.
        """
        return cls(loaded, ids, entering(loaded, loaded.anatomy.n_layers - 1, ids))

    def first(self, tokens: int) -> Teacher:
        """The same sequences cut short; a causal model's states do not depend on what follows.

        Args:
            tokens: How many tokens to keep.

        Returns:
            The teacher of the beginnings.
        """
        return Teacher(self.loaded, self.ids[:, :tokens], self.states[:, :tokens])

    @torch.no_grad()
    def logprobs(self, rows: Tensor, where: tuple[Tensor, Tensor]) -> Tensor:
        """The full model's distributions.

        Args:
            rows: (n,) which sequences.
            where: Row (of these n) and token index of each wanted position.

        Returns:
            (positions, vocabulary) log-probabilities.
        """
        last = self.loaded.anatomy.n_layers - 1
        with replaying(self.loaded.model, self.loaded.anatomy, last, self.states[rows]):
            return student_logprobs(self.loaded, self.ids[rows], where)


def student_logprobs(loaded: LoadedModel, ids: Tensor, where: tuple[Tensor, Tensor]) -> Tensor:
    """Distributions of the model as it is patched right now.

    Args:
        loaded: The model.
        ids: (rows, tokens), without padding.
        where: Row and token index of each wanted position.

    Returns:
        (positions, vocabulary) log-probabilities, float32.
    """
    ids = ids.to(loaded.device)
    with head_at(loaded.model, *(w.to(loaded.device) for w in where)):
        return run_body(loaded.model, ids, all_real(ids))[0].float().log_softmax(-1)


def all_positions(rows: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Every position that has a next token.

    Args:
        rows: Sequences.
        tokens: Tokens of each.

    Returns:
        Row and token index of each.
    """
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(tokens - 1), indexing="ij")
    return row.flatten(), column.flatten()


def some_positions(rows: int, tokens: int, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A random share of the positions of each sequence: the head is a large part of a small model's pass.

    Args:
        rows: Sequences.
        tokens: Tokens of each.
        share: In (0, 1].
        generator: Source of the choice.

    Returns:
        Row and token index of each.
    """
    n = max(1, round(share * (tokens - 1)))
    columns = torch.stack([torch.randperm(tokens - 1, generator=generator)[:n] for _ in range(rows)])
    return torch.arange(rows).repeat_interleave(n), columns.flatten()


def kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student), position by position.

    Args:
        teacher: (positions, vocabulary) log-probabilities.
        student: The same of the skipped model.

    Returns:
        (positions,), in nats.
    """
    return (teacher.exp() * (teacher - student)).sum(-1)
