"""What a fit works on: sequences of text and of edits, and the layers that may be skipped."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from roseedit.edits.edit import Edit
from roseedit.errors import BudgetError, DataError, refusal
from roseedit.hadskip.costs import layer_costs
from roseedit.hadskip.paths import protected_layers
from roseedit.hadskip.settings import HadSkipHparams
from roseedit.hadskip.texts import read_text, token_rows
from roseedit.models.encoding import encode_pair
from roseedit.models.load import LoadedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Material:
    """What a fit works on.

    Attributes:
        train: (sequences, tokens).
        answers: The same shape, True for the tokens of an edit's answer, end mark included.
        held_out: (sequences, tokens), for calibration.
        layers: The layers that may be skipped.
        entry: The layer whose input the gates see, the first of these.
        costs: (layers,), their cost shares.
        fixed: Cost share of all other layers.
    """

    train: Tensor
    answers: Tensor
    held_out: Tensor
    layers: tuple[int, ...]
    entry: int
    costs: Tensor
    fixed: float

    @property
    def digest(self) -> str:
        """Hash of the sequences and the layers."""
        found = hashlib.sha256(json.dumps([self.layers, list(self.train.shape)]).encode())
        for ids in (self.train, self.held_out):
            found.update(ids.contiguous().numpy().tobytes())
        return found.hexdigest()


def material(loaded: LoadedModel, settings: HadSkipHparams, edits: Sequence[Edit] = ()) -> Material:
    """Collect sequences and layers.

    Args:
        loaded: The model, edits applied.
        settings: The settings.
        edits: The live edits, for their prompts and answers.

    Returns:
        The material.

    Raises:
        BudgetError: The protected layers alone cost more than the budget.
        DataError: The text is missing or too short.
    """
    layers = skippable(loaded, settings.protect)
    shares = layer_costs(loaded)
    fixed = sum(share for i, share in enumerate(shares) if i not in layers)
    if not layers or fixed > settings.budget:
        got = f"budget {settings.budget} with {loaded.anatomy.n_layers - len(layers)} protected layers"
        message = refusal(got, f"a budget above {fixed:.3f}", f"{len(layers)} layers may be skipped. Confine edits.")
        raise BudgetError(message)
    n_edits = round(settings.edit_share * settings.sequences) if edits else 0
    text = text_rows(loaded, settings, settings.sequences - n_edits)
    train, held_out = text[: -settings.held_out], text[-settings.held_out :]
    answers = torch.zeros_like(train, dtype=torch.bool)
    if n_edits:
        rows, own = edit_rows(loaded, edits, settings.tokens, n_edits, settings.seed)
        train, answers = torch.cat((rows, train)), torch.cat((own, answers))
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(settings.seed))
        train, answers = train[order], answers[order]
    return Material(train, answers, held_out, layers, layers[0], torch.tensor([shares[i] for i in layers]), fixed)


def text_rows(loaded: LoadedModel, settings: HadSkipHparams, wanted: int) -> Tensor:
    """Sequences of the text, for training and, last, the ones held out.

    Args:
        loaded: The model, for its tokenizer.
        settings: The settings.
        wanted: Most sequences for training; a shorter text gives what it has.

    Returns:
        (sequences, tokens).

    Raises:
        DataError: The text is missing, or too short for one step of the training beside the sequences held out.
    """
    whole = token_rows(loaded, read_text(settings.text), settings.tokens, seed=settings.seed)
    found = min(wanted, len(whole) - settings.held_out)
    if found < min(settings.rows, wanted):
        got = f"a text of {len(whole)} sequences of {settings.tokens} tokens"
        allowed = f"{settings.rows + settings.held_out} or more: rows of a step and those held out"
        raise DataError(refusal(got, allowed, "Give more text, or lower tokens, rows or held_out."))
    if found < wanted:
        logger.warning("the text has %d sequences for training, %d were asked for", found, wanted)
    return whole[: found + settings.held_out]


def skippable(loaded: LoadedModel, protect: Sequence[int] = ()) -> tuple[int, ...]:
    """The layers that gates may skip.

    Args:
        loaded: The model, edits applied.
        protect: Layers to protect beside the usual ones.

    Returns:
        Their indices.
    """
    kept = {*protected_layers(loaded), *protect}
    return tuple(i for i in range(loaded.anatomy.n_layers) if i not in kept)


def edit_rows(loaded: LoadedModel, edits: Sequence[Edit], tokens: int, rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Sequences made of the edits' prompts and answers, every edit about equally often.

    Args:
        loaded: The model.
        edits: The edits.
        tokens: Tokens per sequence.
        rows: How many sequences.
        seed: Of the order of the edits.

    Returns:
        (rows, tokens), and the same shape, True for the tokens of an answer.
    """
    requests = [request for edit in edits for request in edit.requests]
    encoded = [encode_pair(loaded.tokenizer, r.prompt, r.target_new, end_mark=True) for r in requests]
    generator = torch.Generator().manual_seed(seed)
    stream = itertools.chain.from_iterable(
        torch.randperm(len(encoded), generator=generator).tolist() for _ in itertools.count()
    )
    out = []
    for _ in range(rows):
        row: list[tuple[int, bool]] = []
        while len(row) < tokens:
            fact = encoded[next(stream)]
            row += [(token, i >= fact.start) for i, token in enumerate(fact.ids)]
        out.append(row[:tokens])
    both = torch.tensor(out)
    return both[..., 0], both[..., 1].bool()
