"""Ordinary text at which no edit should speak."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources

import torch

from roseedit.models.encoding import encode_prompt
from roseedit.models.load import LoadedModel
from roseedit.roselora.anchors import KINDS, SUBJECTS
from roseedit.roselora.config import RoseLoRAHparams
from roseedit.roselora.neurons.apart import set_apart
from roseedit.roselora.neurons.mlp import Neurons
from roseedit.roselora.neurons.remembered import remembered
from roseedit.roselora.neurons.texts import Ordinary, Texts
from roseedit.roselora.prose import PROSE
from roseedit.roselora.trainer import frozen
from roseedit.roselora.wordings import framed_prompts

PASSAGES = "ordinary.txt"  # longer prose, and measures, written for this package like the other
PROMPTS = 96  # of the kind that edits ask: a well-known name and a relation


def ordinary_texts(seed: int, *, wide: bool = False, marks_apart: bool = False) -> list[str]:
    """Prose, and questions about others.

    Args:
        seed: Which pairs of names and relations are drawn.
        wide: Much more prose, for many facts in one edit: what each says by mistake adds up.
        marks_apart: With `wide`, that prose with its marks apart from its words too.

    Returns:
        The texts.
    """
    rng = random.Random(f"{seed}/ordinary")
    pairs = [(rng.choice(SUBJECTS), rng.choice(KINDS)[0]) for _ in range(PROMPTS)]
    passages = resources.files(__package__).joinpath(PASSAGES).read_text(encoding="utf-8").splitlines() if wide else []
    apart = map(set_apart, passages) if marks_apart else ()
    return [*PROSE, *passages, *apart, *framed_prompts(pairs, rng)]


def ordinary_ids(loaded: LoadedModel, hparams: RoseLoRAHparams, *, wide: bool = False) -> list[tuple[int, ...]]:
    """The ordinary texts as token ids; `wide` as of `ordinary_texts`."""
    texts = ordinary_texts(hparams.seed, wide=wide, marks_apart=hparams.marks_apart)
    return [tuple(encode_prompt(loaded.tokenizer, text).ids) for text in texts]


def ordinary_look(
    loaded: LoadedModel, neurons: Neurons, hparams: RoseLoRAHparams, tokens: int, *, wide: bool = False
) -> Ordinary:
    """What a layer's MLP does in ordinary text, remembered for as long as no weight of the model is written.

    Args:
        loaded: The model.
        neurons: The layer's neurons.
        hparams: The settings.
        tokens: Most tokens in one pass.
        wide: As of `ordinary_texts`.

    Returns:
        The look.
    """

    def look() -> Ordinary:
        return _look(loaded, neurons, ordinary_ids(loaded, hparams, wide=wide), hparams, tokens)

    apart = wide and hparams.marks_apart
    key = "ordinary", neurons.layer, hparams.seed, hparams.train_dtype, wide, apart
    return remembered(loaded.model, key, loaded.model.parameters(), look)


def with_more(  # noqa: PLR0917 - one call site
    ordinary: Ordinary,
    loaded: LoadedModel,
    neurons: Neurons,
    texts: Sequence[tuple[int, ...]],
    hparams: RoseLoRAHparams,
    tokens: int,
) -> Ordinary:
    """Further texts beside the ordinary ones; which neurons are idle is judged by those alone.

    Args:
        ordinary: The look at the ordinary texts.
        loaded: The model.
        neurons: The layer's neurons.
        texts: As token ids.
        hparams: The settings.
        tokens: Most tokens in one pass.

    Returns:
        The look at both.
    """
    if not texts:
        return ordinary
    return replace(ordinary, x=torch.cat([ordinary.x, _look(loaded, neurons, texts, hparams, tokens).x]))


def _look(
    loaded: LoadedModel, neurons: Neurons, texts: Sequence[tuple[int, ...]], hparams: RoseLoRAHparams, tokens: int
) -> Ordinary:
    with frozen(loaded.model):
        return Texts(loaded, neurons, texts, tokens, hparams.train_dtype, hparams.replay).look()
