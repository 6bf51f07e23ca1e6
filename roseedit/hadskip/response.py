"""What decoding answers with, and where its time went."""

from __future__ import annotations

from dataclasses import dataclass

from roseedit.hadskip.contract import Contract


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
