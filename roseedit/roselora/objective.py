"""What is asked of an edit: training rows with their target or anchor positions, and the loss at those positions.

A *fact* row asks for the new answer (cross-entropy on target tokens, end mark included when asked). An *anchor* row
asks for no change (KL from the base model's distribution to the edited one's at the end of the prompt). Each row
carries its weight, so that the loss of an edit is the same sum wherever its rows are batched.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from roseedit.models.encoding import encode_pair, encode_prompt, ends_of
from roseedit.models.load import LoadedModel
from roseedit.requests import EditRequest
from roseedit.roselora.anchors import (
    exchanged_prompts,
    known_relation_prompts,
    negated_prompts,
    other_pairs,
    other_relation_prompts,
    other_subject_prompts,
)
from roseedit.roselora.asking import relation_words
from roseedit.roselora.config import RoseLoRAHparams
from roseedit.roselora.prose import PROSE
from roseedit.roselora.wordings import (
    context_prompts,
    framed_prompts,
    reworded_prompts,
    rewritten_prompts,
)

TOP = 256


@dataclass(frozen=True)
class Row:
    """One training sequence.

    Attributes:
        edit: Which edit of the bank it belongs to.
        request: Which request; in a joint run many share one edit.
        ids: Its tokens.
        columns: Positions whose next-token distribution is looked at; empty where nothing but the subject is seen.
        labels: Wanted next tokens there; empty for an anchor.
        weight: Its share in the loss.
        turn: Rows may take turns: this one is looked at in steps t with t % turns == turn.
        turns: How many turns there are; 0: it is never trained on, and only shows where its answer begins.
        subject: Positions at which the request's subject ends, wherever the prompt names it; with `many_at: subject`.
    """

    edit: int
    request: int
    ids: tuple[int, ...]
    columns: tuple[int, ...]
    labels: tuple[int, ...]
    weight: float
    turn: int = 0
    turns: int = 1
    subject: tuple[int, ...] = ()

    def brief(self) -> Row:
        """A fact up to the first token of its answer: the prompt alone, with one label."""
        if not self.labels:
            return self
        end = self.columns[0] + 1
        return replace(self, ids=self.ids[:end], columns=self.columns[:1], labels=self.labels[:1])

    def due(self, step: int) -> bool:
        """Whether the row is looked at in this step."""
        return self.turns > 0 and step % self.turns == self.turn


def request_seed(request: EditRequest, seed: int, salt: str) -> int:
    """A seed that depends on the request and not on its neighbours.

    Args:
        request: The request.
        seed: The run's seed.
        salt: What the numbers are for.

    Returns:
        A 63-bit integer.
    """
    digest = hashlib.sha256(f"{seed}/{salt}/{request.request_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def build_rows(
    loaded: LoadedModel, request: EditRequest, number: int, edit: int, hparams: RoseLoRAHparams
) -> list[Row]:
    """All training rows of one request.

    Args:
        loaded: The model.
        request: The request.
        number: Its place among the requests of the bank.
        edit: Its edit's place in the bank.
        hparams: The settings.

    Returns:
        Fact rows first, then anchors.
    """
    always, in_turn = fact_prompts(request, hparams)
    share = 1 / (len(always) + bool(in_turn))
    rows = [_fact_row(loaded, prompt, request, number, edit, hparams, share) for prompt in always]
    in_turns = [_fact_row(loaded, prompt, request, number, edit, hparams, share) for prompt in in_turn]
    rows += taking_turns(in_turns, hparams.taught if hparams.support == "neurons" else 0)
    if hparams.kl_weight or hparams.preserve_weight or hparams.support == "neurons":
        rows += _anchor_rows(loaded, anchor_prompts(request, hparams), request, number, edit, hparams)
    # The request itself was checked against the window; what was made from it may be longer.
    return [row for row in rows if row is rows[0] or len(row.ids) <= loaded.anatomy.window]


def taking_turns(rows: Sequence[Row], taught: int) -> list[Row]:
    """Let rows take turns, one in each step.

    Args:
        rows: Fact rows.
        taught: How many of them, evenly spread, are trained on; 0: all.

    Returns:
        The rows; those that are not trained on end where their answer begins.
    """
    n = len(rows)
    some = sorted({k * n // taught for k in range(taught)}) if taught else list(range(n))
    turn = {i: t for t, i in enumerate(some)}
    return [
        replace(row, turn=turn[i], turns=len(some)) if i in turn else replace(row.brief(), turns=0)
        for i, row in enumerate(rows)
    ]


def fact_prompts(request: EditRequest, hparams: RoseLoRAHparams) -> tuple[list[str], list[str]]:
    """The wordings in which one request is trained.

    Args:
        request: The request.
        hparams: The settings.

    Returns:
        Those asked in every step, the request's own first, and those of which one is asked in a step. Of the prompts
        behind a text every other one is itself reworded, where it can be. All requests stand behind the same texts, so
        that a text is run once for many.
    """
    rng = random.Random(request_seed(request, hparams.seed, "rows"))
    always = [request.prompt, *context_prompts(request, hparams.contexts, rng)]
    rewritten = rewritten_prompts(request, hparams.rewrites, rng)
    reworded = _reworded(request, hparams)
    behind = context_prompts(request, hparams.after_text, random.Random(f"{hparams.seed}/prose"), PROSE)
    for i, prompt in zip(range(1, len(behind), 2), itertools.cycle(reworded)):
        behind[i] = behind[i].replace(request.prompt, prompt)
    return always, rewritten + behind + reworded


def _reworded(request: EditRequest, hparams: RoseLoRAHparams) -> list[str]:
    return reworded_prompts(request, hparams.rewordings, random.Random(request_seed(request, hparams.seed, "words")))


def _fact_row(  # noqa: PLR0917 - one call site
    loaded: LoadedModel,
    prompt: str,
    request: EditRequest,
    number: int,
    edit: int,
    hparams: RoseLoRAHparams,
    share: float,
) -> Row:
    encoded = encode_pair(loaded.tokenizer, prompt, request.target_new, end_mark=hparams.end_mark)
    columns = tuple(range(encoded.start - 1, len(encoded.ids) - 1))
    named = _named(loaded, prompt, request, hparams)
    return Row(edit, number, encoded.ids[:-1], columns, encoded.target, share, subject=named)


def _named(loaded: LoadedModel, prompt: str, request: EditRequest, hparams: RoseLoRAHparams) -> tuple[int, ...]:
    """Where the subject ends in a prompt whose answer comes next; looked for only if neurons may open there."""
    if hparams.many_at != "subject" or not request.subject or request.subject not in prompt:
        return ()
    return ends_of(loaded.tokenizer, prompt, request.subject)


def anchor_prompts(request: EditRequest, hparams: RoseLoRAHparams) -> list[str]:
    """The anchors of one request, kinds in turn.

    Args:
        request: The request.
        hparams: The settings.

    Returns:
        The prompts.
    """
    rng = random.Random(request_seed(request, hparams.seed, "anchors"))
    subjects = other_subject_prompts(request, hparams.anchor_subjects, rng, _reworded(request, hparams))
    relations = other_relation_prompts(request, hparams.anchor_relations, rng)
    prompts = subjects + relations + exchanged_prompts(request, relation_words(request), hparams.anchor_mutations, rng)
    prompts += framed_prompts(other_pairs(request, relation_words(request), hparams.anchor_frames, rng), rng)
    prompts += negated_prompts(request, hparams.anchor_negations)
    prompts += known_relation_prompts(request, hparams.anchor_known, rng)
    rng.shuffle(prompts)
    return prompts


def _anchor_rows(  # noqa: PLR0917 - one call site
    loaded: LoadedModel,
    prompts: Sequence[str],
    request: EditRequest,
    number: int,
    edit: int,
    hparams: RoseLoRAHparams,
) -> list[Row]:
    turns = turns_of(len(prompts), hparams.anchors_per_step)
    rows = []
    for i, prompt in enumerate(prompts):
        turn = i % turns
        together = len(range(turn, len(prompts), turns))
        ids = encode_prompt(loaded.tokenizer, prompt).ids
        named = _named(loaded, prompt, request, hparams)
        rows.append(Row(edit, number, ids, (len(ids) - 1,), (), hparams.kl_weight / together, turn, turns, named))
    return rows


def turns_of(n_anchors: int, per_step: int) -> int:
    """In how many turns all anchors of an edit have been looked at.

    Args:
        n_anchors: Anchors of the edit.
        per_step: Anchors in one step.

    Returns:
        At least 1.
    """
    return max(1, -(-n_anchors // per_step))


@dataclass(frozen=True)
class BaseTop:
    """The base model's distribution at anchor positions: its top entries exactly, the rest as one bucket.

    Attributes:
        tokens: (positions, k) token ids.
        logprobs: (positions, k) natural log-probabilities.
    """

    tokens: Tensor
    logprobs: Tensor

    @classmethod
    def of(cls, logits: Tensor, k: int = TOP) -> BaseTop:
        """Keep the top `k` entries of (positions, vocabulary) logits."""
        logprobs = logits.float().log_softmax(-1)
        values, tokens = logprobs.topk(min(k, logprobs.shape[-1]), dim=-1)
        return cls(tokens, values)

    def take(self, positions: Tensor) -> BaseTop:
        """The given positions only."""
        return BaseTop(self.tokens[positions], self.logprobs[positions])


def fact_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-probability of each wanted token.

    Args:
        logits: (positions, vocabulary).
        labels: (positions,).

    Returns:
        (positions,), float32.
    """
    return torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")


def pushing(unsure: Tensor, rows: Tensor) -> Tensor:
    """A row's weight goes to the tokens that still need it, so that a long answer's rest never drowns its first.

    Args:
        unsure: (positions,), boolean.
        rows: (positions,), the row of each.

    Returns:
        (positions,): the row's positions over its unsure ones where unsure, else 0. All unsure gives ones.
    """
    wanted = unsure.float()
    size = int(rows.max()) + 1 if len(rows) else 0
    all_of = torch.zeros(size, device=rows.device).index_add_(0, rows, torch.ones_like(wanted))
    left = torch.zeros_like(all_of).index_add_(0, rows, wanted)
    return wanted * (all_of / left.clamp(min=1))[rows]


def anchor_losses(logits: Tensor, base: BaseTop) -> Tensor:
    """KL(base || edited) at each anchor position, over the base's top entries and one bucket for the rest.

    Merging the rest can only lower the divergence, and keeps memory at k values per position instead of a vocabulary.

    Args:
        logits: (positions, vocabulary) of the edited model.
        base: The base model at the same positions.

    Returns:
        (positions,), float32, at least 0 up to rounding.
    """
    logits = logits.float()
    after = logits.gather(1, base.tokens) - logits.logsumexp(-1, keepdim=True)
    before = base.logprobs
    rest_before = (1 - before.exp().sum(-1)).clamp(min=1e-6)
    rest_after = (1 - after.exp().sum(-1)).clamp(min=1e-6)
    top = (before.exp() * (before - after)).sum(-1)
    return top + rest_before * (rest_before.log() - rest_after.log())


def preservation(keys: Tensor, a: Tensor, b: Tensor, unit: Tensor) -> Tensor:
    """How much an edit changes what a matrix gives out on the inputs that anchors bring to it.

    The KL sees the end of the network only and one anchor at a time; this sees every anchor in every step, costs two
    thin products, and steers the sparse supports towards inputs that anchors do not use.

    Args:
        keys: (E, n, d_in), inputs of the matrix on the anchors' last tokens; rows of zeros where there are fewer.
        a: (E, r, d_in).
        b: (E, d_out, r), scale included.
        unit: (E,), squared length of the frozen matrix's own output, summed over these inputs; 0 without any.

    Returns:
        (E,): squared length of the change, summed over the anchors' tokens, relative to `unit`.
    """
    inner = (keys @ a.to(keys.dtype).mT).float()
    length = ((inner @ (b.mT @ b)) * inner).sum((-2, -1))  # |B A k|^2 without forming B A k
    return length / torch.where(unit > 0, unit, 1.0)
