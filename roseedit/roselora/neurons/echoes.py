"""Well-known prompts that a model answers as it answers the request: an edit must stay shut there.

The stream in front of a late MLP holds the coming token beside subject and relation, so that what opens at the Eiffel
Tower's city opens a little at the capital of France, too. Which prompts are answered alike is found out from the model
itself: a table of some three hundred well-known facts is asked once, and those count whose next-token distribution
shares mass with the one at the request. Nothing but the request is looked at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import torch
import yaml
from torch import Tensor

from roseedit.models.encoding import encode_prompt
from roseedit.models.load import LoadedModel
from roseedit.roselora.anchors import content_words
from roseedit.roselora.batches import RowStore
from roseedit.roselora.neurons.looks import Place, look_at
from roseedit.roselora.neurons.remembered import remembered
from roseedit.roselora.objective import BaseTop, Row

TABLE = "known.yaml"
SHARED = 0.1  # least probability that two prompts give to the same next tokens
TOKENS = 1024  # of a pass through the top; a distribution over the vocabulary is kept for each of its rows


@dataclass(frozen=True)
class Known:
    """What a model makes of the table.

    Attributes:
        x: (n, d_in), what enters the layer's MLP at the end of each prompt, float32.
        says: What comes next, (n, k).
        words: Per prompt the words of the name that it asks about.
    """

    x: Tensor
    says: BaseTop
    words: tuple[frozenset[str], ...]


@cache
def known_prompts() -> tuple[tuple[str, frozenset[str]], ...]:
    """The table: prompts, each with the words of the name in it."""
    rows = yaml.safe_load(resources.files(__package__).joinpath(TABLE).read_text(encoding="utf-8"))
    pairs = [(row["asked"].format(name), name) for row in rows for name in re.split(r",\s*", row["names"].strip())]
    return tuple((prompt[0].upper() + prompt[1:], content_words(name)) for prompt, name in pairs)


def known_look(loaded: LoadedModel, place: Place, tokens: int, arithmetic: str) -> Known:
    """Ask the table; remembered for as long as no weight of the model is written.

    Args:
        loaded: The model, frozen.
        place: The edited layer.
        tokens: Most tokens in one pass.
        arithmetic: As of `products_in`.

    Returns:
        What it makes of it.
    """
    key = "known", place.neurons.layer, place.start, arithmetic
    return remembered(loaded.model, key, loaded.model.parameters(), lambda: _look(loaded, place, tokens, arithmetic))


def _look(loaded: LoadedModel, place: Place, tokens: int, arithmetic: str) -> Known:
    prompts = known_prompts()
    ids = [encode_prompt(loaded.tokenizer, prompt).ids[-loaded.anatomy.window :] for prompt, _ in prompts]
    rows = [Row(0, n, tuple(own), (len(own) - 1,), (0,), 1.0) for n, own in enumerate(ids)]
    look = look_at(loaded, rows, place, 1, tokens, arithmetic, again=True)
    ends = torch.stack([x[-1].float() for x in look.inputs])
    return Known(ends, says(loaded, place, rows, look.activations), tuple(words for _, words in prompts))


@torch.no_grad()
def says(loaded: LoadedModel, place: Place, rows: Sequence[Row], activations: Sequence[Tensor]) -> BaseTop:
    """What a model says next at the first place that each row looks at.

    Args:
        loaded: The model, frozen.
        place: The edited layer.
        rows: Fact rows.
        activations: Per row what enters layer `place.start`.

    Returns:
        (rows, k).
    """
    store = RowStore(loaded, [row.brief() for row in rows], place.start, TOKENS, ready=activations)
    order, parts = [], []
    for own, work in store.planned(range(len(rows))):
        order += own
        parts.append(BaseTop.of(work.logits(loaded, place.start)))
    found = BaseTop(torch.cat([top.tokens for top in parts]), torch.cat([top.logprobs for top in parts]))
    return found.take(torch.tensor(order, device=found.tokens.device).argsort())


def echoes(known: Known, said: BaseTop, prompt: str, most: int, vocabulary: int) -> Tensor:
    """The places of the table at which the model is about to say what it says at a request.

    Args:
        known: The table.
        said: What it says at the request, (1, k).
        prompt: The request's prompt; what asks about a name in it may ask for the very fact that is to change.
        most: Most places.
        vocabulary: Entries in a next-token distribution.

    Returns:
        (m, d_in), those that share most first.
    """
    own = torch.zeros(vocabulary, device=said.tokens.device)
    own[said.tokens[0]] = said.logprobs[0].exp()
    shared = torch.minimum(own[known.says.tokens], known.says.logprobs.exp()).sum(1)
    asked = content_words(prompt)
    shared[torch.tensor([bool(words & asked) for words in known.words], device=shared.device)] = 0.0
    order = shared.argsort(descending=True, stable=True)[:most]
    return known.x[order[shared[order] >= SHARED]]
