"""What decoding is asked: under which contract, within which budget, how to pick tokens and when to stop.

Loads no torch, so that bad input is refused at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from roseedit.errors import BudgetError, RequestError, SkipError, refusal

Contract = Literal["full", "bounded", "lossless"]
CONTRACTS = ("full", "bounded", "lossless")


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


@dataclass(frozen=True)
class DecodeSettings:
    """What is asked of decoding.

    Attributes:
        contract: `full`: all layers. `bounded`: a profile answers. `lossless`: a profile drafts, all layers verify.
        budget: Most layer cost that the profile may have, in (0, 1].
        max_new_tokens: Most new tokens; the model's window ends an answer too.
        stop_strings: Texts that end an answer beside the end mark.
        sampling: How tokens are picked.
        draft_length: Tokens per draft; left out: by measured times and acceptance.
        stale_is_fine: Lossless only: draft with profiles that were fitted on other weights.
    """

    contract: Contract = "full"
    budget: float | None = None
    max_new_tokens: int = 32
    stop_strings: tuple[str, ...] = ("\n",)
    sampling: Sampling = field(default_factory=Sampling)
    draft_length: int | None = None
    stale_is_fine: bool = False

    def __post_init__(self) -> None:
        if self.contract not in CONTRACTS:
            raise SkipError(refusal(f"contract {self.contract!r}", ", ".join(CONTRACTS), "Choose one of them."))
        if self.contract == "full" and self.budget is not None:
            message = refusal(f"budget {self.budget} with contract full", "bounded, lossless", "Name a contract.")
            raise BudgetError(message)
        if self.contract == "bounded" and self.budget is None:
            message = refusal("contract bounded without a budget", "a budget in (0, 1]", "Say what may be executed.")
            raise BudgetError(message)
        if self.budget is not None and not 0 < self.budget <= 1:
            raise BudgetError(refusal(f"budget {self.budget}", "0 < budget <= 1", "Give a share of layer cost."))
        if self.max_new_tokens < 1:
            raise RequestError(refusal(f"max_new_tokens {self.max_new_tokens}", "1 or more", "Raise it."))
        if any(not stop for stop in self.stop_strings):
            raise RequestError(refusal("an empty stop string", "texts with a character", "Leave it out."))
        if self.draft_length is not None and (self.contract != "lossless" or self.draft_length < 1):
            got = f"draft_length {self.draft_length} with contract {self.contract}"
            raise SkipError(refusal(got, "1 or more, with contract lossless", "Change one of the two."))
        if self.stale_is_fine and self.contract != "lossless":
            message = refusal("stale_is_fine with contract " + self.contract, "lossless", "Fit the profiles anew.")
            raise SkipError(message)
