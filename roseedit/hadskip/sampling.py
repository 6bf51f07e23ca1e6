"""Which token comes next: greedy, or sampled so that the same seed gives the same text whoever drafted it.

Sampling is by Gumbel noise: the token is argmax(scores + noise), an exact sample of softmax(scores). The noise of a
sequence's t-th token depends on seed, sequence and t alone. Draft and target use the *same* noise, so a draft is right
exactly when the target would have drawn that token; what comes out is what the target alone would have drawn, and it
agrees with the target's distribution without any correction. (Accepting with probability min(1, P/Q) and drawing the
rest anew has the same distribution too, but other bytes than plain sampling.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from roseedit.errors import RequestError, refusal


@dataclass(frozen=True)
class Sampling:
    """How tokens are picked.

    Attributes:
        temperature: 0 is greedy.
        top_k: Only the k most probable; 0 for all.
        top_p: Only the smallest set with this probability; 1 for all.
        min_p: Only tokens with this share of the largest probability; 0 for all.
        repetition_penalty: Above 1 makes tokens that occurred less probable.
        seed: Of the noise.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        faults = [
            ("temperature", self.temperature, self.temperature >= 0, "0 or more"),
            ("top_k", self.top_k, self.top_k >= 0, "0 or more"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0, at most 1"),
            ("min_p", self.min_p, 0 <= self.min_p <= 1, "0 to 1"),
            ("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0, "above 0"),
            ("seed", self.seed, 0 <= self.seed < 2**63, "0 to 2^63 - 1"),
        ]
        for name, value, right, allowed in faults:
            if not right:
                raise RequestError(refusal(f"{name} {value}", allowed, "Change it."))

    def config(self) -> Any:
        """The same as a transformers `GenerationConfig`, from which its stock processors are built."""
        from transformers import GenerationConfig

        drawn: dict[str, Any] = {"do_sample": self.temperature > 0, "repetition_penalty": self.repetition_penalty}
        if self.temperature > 0:
            drawn |= {"temperature": self.temperature, "top_k": self.top_k or None, "top_p": self.top_p}
            drawn["min_p"] = self.min_p or None
        return GenerationConfig(**drawn)


class Picker:
    """Picks tokens for the rows of one batch with stock logits processors, the same for draft and target.

    Args:
        model: The transformers model, whose own factory builds the processors.
        config: A `GenerationConfig`; only what concerns the choice of tokens is read.
        seed: Of the noise.
    """

    def __init__(self, model: Any, config: Any, seed: int) -> None:
        self.model = model
        self.config = config
        self.seed = seed
        self.draws = bool(config.do_sample)
        sample = self.processors_for(1)
        self.untouched = not len(sample)
        self.alike = all(type(p).__name__ in _MEMORYLESS for p in sample)
        self._shared = sample

    def processors_for(self, prompt_length: int) -> Any:
        """Stock processors for a prompt of this length."""
        return self.model._get_logits_processor(
            generation_config=self.config, input_ids_seq_length=prompt_length, device=str(self.model.device)
        )

    def pick(self, logits: Tensor, rows: Sequence[PickRow], drafts: Tensor | None = None, ahead: int = 0) -> Tensor:
        """The next tokens after the last committed one and after drafts.

        Args:
            logits: (rows, n, vocabulary); position j follows the first `ahead + j` drafts.
            rows: What each row has said.
            drafts: (rows, ahead + n - 1 or more) drafted tokens; None when there are none yet.
            ahead: Drafts before the first position.

        Returns:
            (rows, n) token ids.
        """
        if self.untouched and not self.draws:
            return logits.argmax(-1)
        scores = self._processed(logits.float(), rows, drafts, ahead)
        if self.draws:
            n = logits.shape[1]
            noise = [torch.stack([row.noise(ahead + j, scores) for j in range(n)]) for row in rows]
            scores = scores + torch.stack(noise)
        return scores.argmax(-1)

    def _processed(self, logits: Tensor, rows: Sequence[PickRow], drafts: Tensor | None, ahead: int) -> Tensor:
        if self.untouched:
            return logits
        if self.alike:
            flat = logits.reshape(-1, logits.shape[-1])
            return self._shared(torch.zeros(len(flat), 1, dtype=torch.long, device=flat.device), flat).view_as(logits)
        out = torch.empty_like(logits)
        for i, row in enumerate(rows):
            known = torch.tensor([row.ids], device=logits.device)
            if drafts is not None:
                known = torch.cat([known, drafts[i : i + 1]], 1)
            for j in range(logits.shape[1]):
                out[i, j] = row.processors(known[:, : len(row.ids) + ahead + j], logits[i : i + 1, j])[0]
        return out


# Processors that look at the scores alone; all others get each row's own history.
_MEMORYLESS = {
    "TemperatureLogitsWarper",
    "TopKLogitsWarper",
    "TopPLogitsWarper",
    "MinPLogitsWarper",
    "TypicalLogitsWarper",
    "EpsilonLogitsWarper",
    "EtaLogitsWarper",
    "SuppressTokensLogitsProcessor",
    "InfNanRemoveLogitsProcessor",
}


class PickRow:
    """What picking knows of one sequence: all ids so far, its processors and its noise.

    Args:
        picker: Whose row it is.
        prompt: Ids of the prompt.
        index: Number of the sequence within the call, so that no two share their noise.
    """

    def __init__(self, picker: Picker, prompt: Sequence[int], index: int) -> None:
        self.ids = list(prompt)
        self.n_prompt = len(self.ids)
        self.processors: Any = None if picker.untouched else picker.processors_for(self.n_prompt)
        self._seed = _seed(picker.seed, index)
        self._generator: torch.Generator | None = None
        self._drawn: dict[int, Tensor] = {}
        self._next = 0

    def noise(self, ahead: int, like: Tensor) -> Tensor:
        """Gumbel noise of the token `ahead` places after the last committed one; asked again, the same again."""
        at = len(self.ids) - self.n_prompt + ahead
        if self._generator is None:
            self._generator = torch.Generator(like.device).manual_seed(self._seed)
        while self._next <= at:
            drawn = torch.empty(like.shape[-1], device=like.device).exponential_(generator=self._generator)
            self._drawn[self._next] = -drawn.clamp_min_(torch.finfo(torch.float32).tiny).log_()
            self._next += 1
        return self._drawn[at]

    def append(self, token: int) -> None:
        """Book a committed token."""
        self._drawn.pop(len(self.ids) - self.n_prompt, None)
        self.ids.append(token)


def _seed(seed: int, index: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {index}".encode()).digest()[:8], "big") >> 1
