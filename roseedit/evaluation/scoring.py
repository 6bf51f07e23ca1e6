"""The scoring core: `score` (teacher forced), `next_token` (distributions) and `generate` (what the model says).

Every metric of the package is a pure function of what these return. Rows are batched by length and padded on the
right with explicit positions. Rows of one batch may carry different edits, so that many edits are measured together:
pass a `RowEdits` and, per row, the index of its edit (-1 for none).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from roseedit.evaluation.prompts import RowEdits
from roseedit.models.encoding import Encoded, encode_pair, encode_prompt, pad_right, plan_batches
from roseedit.models.head import head_at
from roseedit.models.load import LoadedModel
from roseedit.models.replay import run_body

BATCH_TOKENS = 2048
Progress = Callable[[int], None]


@dataclass(frozen=True)
class PairScore:
    """Teacher-forced score of one prompt/target pair.

    Attributes:
        target: The target's token ids.
        logprobs: Natural log-probability of each target token.
        argmax: The model's own first choice at each target position.
    """

    target: tuple[int, ...]
    logprobs: tuple[float, ...]
    argmax: tuple[int, ...]

    @property
    def logprob(self) -> float:
        """Log-probability of the whole target."""
        return sum(self.logprobs)

    @property
    def token_accuracy(self) -> float:
        """Share of target tokens that are the model's first choice."""
        return sum(a == b for a, b in zip(self.argmax, self.target, strict=True)) / len(self.target)


def _rows(edits: RowEdits | None, indices: Sequence[int] | None, batch: Iterable[int]) -> AbstractContextManager[None]:
    if edits is None or indices is None:
        return nullcontext()
    return edits.on_rows(torch.tensor([indices[i] for i in batch], dtype=torch.long))


@torch.no_grad()
def score(
    loaded: LoadedModel,
    pairs: Sequence[tuple[str, str]],
    *,
    edits: RowEdits | None = None,
    rows: Sequence[int] | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
) -> list[PairScore]:
    """Score targets with the answer fed in.

    Args:
        loaded: The model.
        pairs: (prompt, target) pairs; targets without leading space.
        edits: Edits that rows may carry.
        rows: Per pair the index of its edit, -1 for none.
        batch_tokens: Most tokens in one forward pass, padding included.
        progress: Called with the number of pairs just done.

    Returns:
        One score per pair, in order.
    """
    encoded = [encode_pair(loaded.tokenizer, prompt, target) for prompt, target in pairs]
    return score_encoded(loaded, encoded, edits=edits, rows=rows, batch_tokens=batch_tokens, progress=progress)


@torch.no_grad()
def score_encoded(
    loaded: LoadedModel,
    encoded: Sequence[Encoded],
    *,
    edits: RowEdits | None = None,
    rows: Sequence[int] | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
) -> list[PairScore]:
    """`score` for pairs that are token ids already, for metrics with a boundary rule of their own.

    Args:
        loaded: The model.
        encoded: Token ids with the index of the first target token, which is at least 1.
        edits: Edits that rows may carry.
        rows: Per pair the index of its edit, -1 for none.
        batch_tokens: Most tokens in one forward pass, padding included.
        progress: Called with the number of pairs just done.

    Returns:
        One score per pair, in order.
    """
    out: list[PairScore | None] = [None] * len(encoded)
    for batch in plan_batches([len(e.ids) for e in encoded], batch_tokens):
        chosen = [encoded[i] for i in batch]
        with _rows(edits, rows, batch):
            scores = _score_batch(loaded, chosen)
        for i, result in zip(batch, scores, strict=True):
            out[i] = result
        if progress:
            progress(len(batch))
    return [result for result in out if result is not None]


def _score_batch(loaded: LoadedModel, batch: Sequence[Encoded]) -> list[PairScore]:
    ids, mask = pad_right([e.ids for e in batch], loaded.pad_id, loaded.device)
    rows = torch.tensor([i for i, e in enumerate(batch) for _ in e.target], device=loaded.device)
    columns = torch.tensor([e.start + k - 1 for e in batch for k in range(len(e.target))], device=loaded.device)
    with head_at(loaded.model, rows, columns):
        logprobs = run_body(loaded.model, ids, mask)[0].float().log_softmax(-1)
    wanted = ids[rows, columns + 1].to(logprobs.device)
    values = logprobs.gather(1, wanted[:, None])[:, 0].tolist()
    first = logprobs.argmax(-1).tolist()
    out, at = [], 0
    for e in batch:
        end = at + len(e.target)
        out.append(PairScore(e.target, tuple(values[at:end]), tuple(first[at:end])))
        at = end
    return out


@torch.no_grad()
def next_token(
    loaded: LoadedModel,
    prompts: Sequence[str],
    *,
    edits: RowEdits | None = None,
    rows: Sequence[int] | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> Tensor:
    """Log-probabilities of the token after each prompt.

    Args:
        loaded: The model.
        prompts: The prompts.
        edits: Edits that rows may carry.
        rows: Per prompt the index of its edit, -1 for none.
        batch_tokens: Most tokens in one forward pass.

    Returns:
        (prompts, vocabulary), float32, on the CPU.
    """
    encoded = [encode_prompt(loaded.tokenizer, prompt) for prompt in prompts]
    out: list[Tensor] = [torch.empty(0)] * len(prompts)
    for batch in plan_batches([len(e.ids) for e in encoded], batch_tokens):
        ids, mask = pad_right([encoded[i].ids for i in batch], loaded.pad_id, loaded.device)
        last = mask.sum(-1) - 1
        with _rows(edits, rows, batch), head_at(loaded.model, torch.arange(len(batch), device=ids.device), last):
            logprobs = run_body(loaded.model, ids, mask)[0].float().log_softmax(-1).cpu()
        for i, row in zip(batch, logprobs, strict=True):
            out[i] = row
    return torch.stack(out) if out else torch.empty(0, 0)
