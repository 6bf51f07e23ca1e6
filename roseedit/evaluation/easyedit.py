"""Token accuracy as EasyEdit computes it, for comparison with published tables. Columns are named `easyedit_*`.

EasyEdit feeds the reference answer in and asks at how many of its positions the model's first choice is the next
token. It always puts one space between prompt and answer, and finds the answer's first token by counting the tokens
of the prompt alone. Where that goes wrong (a token across the boundary, an answer with a space of its own) its figure
is reproduced, not mended: the headline metrics are elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from roseedit.evaluation.prompts import RowEdits
from roseedit.evaluation.scoring import BATCH_TOKENS, PairScore, Progress, score_encoded
from roseedit.models.encoding import Encoded, encode_pair
from roseedit.models.load import LoadedModel
from roseedit.requests import Probe


def easyedit_encode(tokenizer: Any, prompt: str, target: str) -> Encoded:
    """Encode a pair as EasyEdit does.

    Args:
        tokenizer: A Hugging Face tokenizer.
        prompt: Text before the answer.
        target: The answer.

    Returns:
        Tokens of "prompt target", and as start the number of tokens of the prompt alone.
    """
    ids = tuple(tokenizer(f"{prompt} {target}")["input_ids"])
    return Encoded(ids, min(len(tokenizer(prompt)["input_ids"]), len(ids)))


def easyedit_scores(
    loaded: LoadedModel,
    pairs: Sequence[tuple[str, str]],
    *,
    known: Sequence[PairScore | None] | None = None,
    edits: RowEdits | None = None,
    rows: Sequence[int] | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
) -> list[PairScore]:
    """Teacher-forced scores with EasyEdit's boundary.

    Args:
        loaded: The model.
        pairs: (prompt, answer) pairs.
        known: What `scoring.score` gave for the same pairs under the same edits, if it is at hand: only pairs that
            EasyEdit encodes differently are scored anew.
        edits: Edits that rows may carry.
        rows: Per pair the index of its edit, -1 for none.
        batch_tokens: Most tokens in one forward pass.
        progress: Called with the number of pairs just scored.

    Returns:
        One score per pair, in order; one without tokens where the boundary leaves none to the answer.
    """
    encoded = [easyedit_encode(loaded.tokenizer, prompt, target) for prompt, target in pairs]
    out: list[PairScore | None] = list(known) if known is not None else [None] * len(pairs)
    for i, (own, (prompt, target)) in enumerate(zip(encoded, pairs, strict=True)):
        if out[i] is not None and own != encode_pair(loaded.tokenizer, prompt, target):
            out[i] = None
        if own.start in (0, len(own.ids)):
            out[i] = PairScore((), (), ())
    where = [i for i, found in enumerate(out) if found is None]
    chosen = [rows[i] for i in where] if rows is not None else None
    given = [encoded[i] for i in where]
    scored = score_encoded(loaded, given, edits=edits, rows=chosen, batch_tokens=batch_tokens, progress=progress)
    for i, result in zip(where, scored, strict=True):
        out[i] = result
    return [found for found in out if found is not None]


def easyedit_accuracy(scored: PairScore) -> float:
    """EasyEdit's `rewrite_acc`, `rephrase_acc` and portability `acc` of one prompt.

    Args:
        scored: From `easyedit_scores`.

    Returns:
        Share of the answer's tokens that are the model's first choice; NaN without tokens, as in EasyEdit.
    """
    return scored.token_accuracy if scored.target else math.nan


def easyedit_locality(before: PairScore, after: PairScore) -> float:
    """EasyEdit's locality `acc` of one prompt: same first choice as before, right or wrong.

    Args:
        before: Unedited model on the reference answer, from `easyedit_scores`.
        after: Edited model, same pair.

    Returns:
        Share of the answer's positions; NaN without tokens.
    """
    hits = [x == y for x, y in zip(before.argmax, after.argmax, strict=True)]
    return sum(hits) / len(hits) if hits else math.nan


def easyedit_answer(probe: Probe) -> str | None:
    """The only answer that EasyEdit looks at.

    Args:
        probe: A probe with any number of alias lists.

    Returns:
        The first alias of the first list, or None when there is no answer.
    """
    return probe.aliases[0] if probe.aliases else None


def easyedit_over_groups(groups: Mapping[Hashable, Sequence[float]]) -> float:
    """One edit's portability or locality as EasyEdit's KnowEdit script sums it up.

    Args:
        groups: Per group the figures of its prompts.

    Returns:
        Mean inside each group, then over the groups; NaN when every figure is missing.
    """
    kept = [[value for value in values if not math.isnan(value)] for values in groups.values()]
    means = [sum(values) / len(values) for values in kept if values]
    return sum(means) / len(means) if means else math.nan
