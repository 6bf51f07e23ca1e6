"""What decoding answers with, what it is asked, and where its time went."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from roseedit.errors import BudgetError, RequestError, SkipError, refusal
from roseedit.hadskip.sampling import Sampling

Contract = Literal["full", "bounded", "lossless"]
CONTRACTS = ("full", "bounded", "lossless")


@dataclass(frozen=True)
class Response:
    """One continuation.

    Attributes:
        text: The continuation up to the stop, without it.
        tokens: All generated ids, the end mark included.
        stop: `"eos"`, `"stop_string"` or `"cap"` (the token limit or the model's window was reached).
        contract: `"full"`, `"bounded"` or `"lossless"`.
        profile: Name of the profile that answered or drafted; None under `full`.
        layers_run: Layers that ran per answered (`bounded`) or drafted (`lossless`) token; all under `full`.
        n_layers: Layers of the model.
        drafted: Tokens drafted for this sequence.
        accepted: How many of them the full model agreed with.
        passes: Full-model or profile passes that answered this sequence, prefill included, drafts not.
    """

    text: str
    tokens: tuple[int, ...]
    stop: str
    contract: Contract
    profile: str | None
    layers_run: tuple[int, ...]
    n_layers: int
    drafted: int = 0
    accepted: int = 0
    passes: int = 0

    @property
    def acceptance(self) -> float | None:
        """Share of drafted tokens that were right; None when nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else None

    @property
    def natural(self) -> bool:
        """True when the model stopped by itself."""
        return self.stop != "cap"


@dataclass(frozen=True)
class Piece:
    """A piece of a streamed answer.

    Attributes:
        index: Which prompt.
        text: New text; pieces of one prompt add up to its response's text.
        response: The whole answer, with the last piece; None before.
    """

    index: int
    text: str
    response: Response | None = None


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


@dataclass
class Accounts:
    """Where the time of decoding went; filled while it runs, sums over calls.

    Attributes:
        prefill_seconds: Passes over prompts, choosing left out.
        choosing_seconds: Choosing profiles.
        decode_seconds: Everything after the first token.
        gate_bytes: Bytes of gate parameters read.
        prompts: Prompts answered.
        tokens: Tokens generated.
    """

    prefill_seconds: float = 0.0
    choosing_seconds: float = 0.0
    decode_seconds: float = 0.0
    gate_bytes: int = 0
    prompts: int = 0
    tokens: int = 0

    @property
    def gate_share(self) -> float:
        """Share of all time that choosing took."""
        total = self.prefill_seconds + self.choosing_seconds + self.decode_seconds
        return self.choosing_seconds / total if total else 0.0
