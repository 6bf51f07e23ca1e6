"""Ordinary text at which no edit should speak."""

from __future__ import annotations

import random
from importlib import resources

from roseedit.models.load import LoadedModel
from roseedit.roselora.anchors import KINDS, SUBJECTS
from roseedit.roselora.config import RoseLoRAHparams
from roseedit.roselora.neurons.looks import Ordinary, look_at_texts
from roseedit.roselora.neurons.mlp import Neurons
from roseedit.roselora.neurons.remembered import remembered
from roseedit.roselora.prose import PROSE
from roseedit.roselora.trainer import frozen
from roseedit.roselora.wordings import framed_prompts

PASSAGES = "ordinary.txt"  # longer prose, written for this package like the other
PROMPTS = 96  # of the kind that edits ask: a well-known name and a relation


def ordinary_texts(seed: int, *, wide: bool = False) -> list[str]:
    """Prose, and questions about others.

    Args:
        seed: Which pairs of names and relations are drawn.
        wide: Much more prose, for many facts in one edit: what each says by mistake adds up.

    Returns:
        The texts.
    """
    rng = random.Random(f"{seed}/ordinary")
    pairs = [(rng.choice(SUBJECTS), rng.choice(KINDS)[0]) for _ in range(PROMPTS)]
    passages = resources.files(__package__).joinpath(PASSAGES).read_text(encoding="utf-8").splitlines() if wide else []
    return [*PROSE, *passages, *framed_prompts(pairs, rng)]


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
        texts = ordinary_texts(hparams.seed, wide=wide)
        with frozen(loaded.model):
            return look_at_texts(loaded, neurons, texts, tokens, hparams.train_dtype, replay=hparams.replay)

    key = "ordinary", neurons.layer, hparams.seed, hparams.train_dtype, wide
    return remembered(loaded.model, key, loaded.model.parameters(), look)
