"""A request's subject behind other text: its neuron is to know it there too.

What stands where a subject ends depends a little on what stands before it, more than on what is asked of it; the
request's own wordings show it at the beginning of a text only, or behind prose of one manner. Here the subject stands
behind sentences that the model itself wrote, and nothing comes after it: such rows cost a look and no training. All
requests of a run share the sentences, so that each is run once.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from roseedit.models.encoding import encode_prompt
from roseedit.models.load import LoadedModel
from roseedit.requests import EditRequest
from roseedit.roselora.objective import Row
from roseedit.roselora.prose import PROSE

SHORTEST, LONGEST = 9, 150  # characters of a sentence


def sentences_of(texts: Sequence[str], count: int, seed: int) -> list[str]:
    """Draw sentences.

    Args:
        texts: Where from; the last sentence of each may be cut off and is left out.
        count: How many.
        seed: Of the drawing.

    Returns:
        Up to `count`; where the texts have no sentence of a fitting length, from the package's own prose.
    """
    parts = {part.strip() for text in texts for part in re.split(r"(?<=[.!?])\s+", text)[:-1]}
    fitting = sorted(part for part in parts if SHORTEST <= len(part) <= LONGEST) or PROSE
    return random.Random(f"{seed}/sightings").sample(fitting, min(count, len(fitting)))


def sighting_rows(
    loaded: LoadedModel, request: EditRequest, number: int, edit: int, sentences: Sequence[str]
) -> list[Row]:
    """A request's subject behind each sentence.

    Args:
        loaded: The model.
        request: The request; it has a subject.
        number: Its place among the requests of the bank.
        edit: Its edit's place in the bank.
        sentences: What to put in front.

    Returns:
        Rows that ask for nothing: no columns, no labels, the subject's end at their last token.
    """
    rows = [encode_prompt(loaded.tokenizer, f"{sentence} {request.subject}").ids for sentence in sentences]
    fitting = [ids for ids in rows if len(ids) <= loaded.anatomy.window]
    return [Row(edit, number, tuple(ids), (), (), 0.0, subject=(len(ids) - 1,)) for ids in fitting]
