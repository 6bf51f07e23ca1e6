"""All that is read off a model about some prompts, from one pass over each of them.

What the model says, teacher-forced scores of answers, and the distribution of the next token: each needs the prompt's
keys and values, which are computed once (see `prompts.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from roseedit.evaluation.generation import MAX_NEW_TOKENS, check_lengths, plan_prompts
from roseedit.evaluation.prompts import Generated, PromptBatch, RowEdits
from roseedit.evaluation.scoring import BATCH_TOKENS, PairScore, score_encoded
from roseedit.models.encoding import Encoded, encode_pair, encode_prompt
from roseedit.models.load import LoadedModel


@dataclass
class Read:
    """What was read off about one prompt.

    Attributes:
        said: What the model generated.
        answers: Per answer its teacher-forced score, None for None.
        following: (vocabulary,) next-token log-probabilities on the CPU, where wanted.
    """

    said: Generated
    answers: list[PairScore | None]
    following: Tensor | None = None


@torch.no_grad()
def read(
    loaded: LoadedModel,
    prompts: Sequence[str],
    answers: Sequence[Sequence[str | None]],
    *,
    following: Sequence[bool],
    edits: RowEdits | None = None,
    rows: Sequence[int] | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_tokens: int = BATCH_TOKENS,
) -> list[Read]:
    """Generate, score answers and look at the next token.

    Args:
        loaded: The model.
        prompts: The prompts, used as they are.
        answers: Per prompt the answers to score, without leading space.
        following: Per prompt whether the next token's distribution is wanted.
        edits: Edits that rows may carry.
        rows: Per prompt the index of its edit, -1 for none.
        max_new_tokens: Most new tokens.
        batch_tokens: Most tokens in one batch, new ones included.

    Returns:
        One reading per prompt, in order; the same as `generate`, `score` and `next_token` give, up to rounding.

    Raises:
        RequestError: An empty prompt, or one that fills the window.
    """
    encoded = [encode_prompt(loaded.tokenizer, prompt).ids for prompt in prompts]
    check_lengths(prompts, encoded, loaded.anatomy.window)
    pairs = [_pairs(loaded, prompt, own) for prompt, own in zip(prompts, answers, strict=True)]
    longest = max((len(e.target) for own in pairs for e in own if e), default=0)
    out: dict[int, Read] = {}
    for batch in plan_prompts(loaded, [len(ids) for ids in encoded], max(max_new_tokens, longest), batch_tokens):
        own_rows = [rows[i] for i in batch] if rows is not None else None
        asked = PromptBatch(loaded, [encoded[i] for i in batch], edits, own_rows)
        scores = _scored(asked, [encoded[i] for i in batch], [pairs[i] for i in batch])
        nexts = asked.following().cpu() if any(following[i] for i in batch) else None
        for place, (i, said) in enumerate(zip(batch, asked.finish(max_new_tokens), strict=True)):
            out[i] = Read(said, scores[place], nexts[place].clone() if nexts is not None and following[i] else None)
    found = [out[i] for i in range(len(prompts))]
    _score_rest(loaded, pairs, found, edits, rows)
    return found


def _pairs(loaded: LoadedModel, prompt: str, answers: Sequence[str | None]) -> list[Encoded | None]:
    return [encode_pair(loaded.tokenizer, prompt, answer) if answer else None for answer in answers]


def _scored(
    asked: PromptBatch, ids: Sequence[tuple[int, ...]], pairs: Sequence[Sequence[Encoded | None]]
) -> list[list[PairScore | None]]:
    """Scores of the answers whose tokens follow the prompt's own; None for the others."""
    out: list[list[PairScore | None]] = [[None] * len(own) for own in pairs]
    answers = [(p, k, e) for p, own in enumerate(pairs) for k, e in enumerate(own) if e and e.target]
    slots = [(p, k, e) for p, k, e in answers if e.ids[: e.start] == ids[p]]
    if not slots:
        return out
    logprobs, first = (t.tolist() for t in asked.answers([p for p, _, _ in slots], [e.target for _, _, e in slots]))
    at = 0
    for p, k, e in slots:
        end = at + len(e.target)
        out[p][k] = PairScore(e.target, tuple(logprobs[at:end]), tuple(first[at:end]))
        at = end
    return out


def _score_rest(
    loaded: LoadedModel,
    pairs: Sequence[Sequence[Encoded | None]],
    found: Sequence[Read],
    edits: RowEdits | None,
    rows: Sequence[int] | None,
) -> None:
    """Answers whose first token reaches into the prompt are scored by passes of their own."""
    left = [(i, k, e) for i, own in enumerate(pairs) for k, e in enumerate(own) if e and found[i].answers[k] is None]
    own_rows = [rows[i] for i, _, _ in left] if rows is not None else None
    scored = score_encoded(loaded, [e for _, _, e in left], edits=edits, rows=own_rows)
    for (i, k, _), result in zip(left, scored, strict=True):
        found[i].answers[k] = result
