"""Is the model still well after an edit? Three figures against limits: perplexity, size of the change, repetition.

What is measured is compared with the unedited model, so that harm adds up over edits and is not forgiven bit by bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from roseedit.edits.edit import Edit
from roseedit.edits.live import live_edits
from roseedit.errors import HparamsError, RejectedError, refusal
from roseedit.evaluation.generation import generate
from roseedit.hparams import HealthLimits
from roseedit.models.encoding import pad_right
from roseedit.models.load import LoadedModel
from roseedit.models.replay import run_body

NEUTRAL_PROMPTS = (
    "The weather this morning was",
    "To make a cup of tea, first",
    "My neighbour has a dog that",
    "The best way to learn a language is",
    "Once upon a time, in a small village,",
    "In the kitchen there was a table with",
    "The train was late because",
    "A good friend is someone who",
)
PHRASE = 4  # tokens
WINDOW = 256  # tokens of the calibration text looked at in one pass


class HealthGate:
    """Measures a model before and after edits.

    Args:
        loaded: The model.
        limits: What is allowed.

    Raises:
        HparamsError: The calibration text cannot be read or is too short.
    """

    def __init__(self, loaded: LoadedModel, limits: HealthLimits) -> None:
        self.loaded = loaded
        self.limits = limits
        self._ids = _calibration_ids(loaded, limits)
        self._base: dict[str, float] | None = None

    def prepare(self) -> None:
        """Measure the unedited model, once; live edits are taken off for that moment."""
        if self._base is None:
            with live_edits(self.loaded.model).only():
                self._base = self._measured()

    def check(self, edits: Sequence[Edit]) -> dict[str, Any]:
        """Measure the model with edits on it.

        Args:
            edits: The edits that came on last; they are live.

        Returns:
            All figures: `perplexity`, `perplexity_base`, `norm` (the largest of any matrix and edit), `norm_of` (which
            matrix), `repetition`, `repetition_base`, `limits`.

        Raises:
            RejectedError: A limit is broken. The edits are still on; whoever put them on takes them off.
        """
        self.prepare()
        base = self._base or {}
        figures: dict[str, Any] = dict(self._measured())
        figures |= {f"{name}_base": figure for name, figure in base.items()}
        figures["norm"], figures["norm_of"] = self._largest_norm(edits)
        figures["limits"] = asdict(self.limits)
        broken = self._broken(figures)
        if broken:
            message = refusal(
                f"an edit with {' and '.join(broken)}",
                "a model within the limits of health:",
                "It was taken off again. Make it with other settings, or raise the limit if the model may suffer.",
            )
            raise RejectedError(message, figures, edits)
        return figures

    def _broken(self, figures: dict[str, Any]) -> list[str]:
        out = []
        ratio = figures["perplexity"] / figures["perplexity_base"]
        if not ratio <= self.limits.perplexity:  # NaN breaks the limit too
            out.append(f"perplexity {ratio:.3g} times the unedited model's (limit {self.limits.perplexity:g})")
        if not figures["norm"] <= self.limits.norm:
            share, limit = f"{figures['norm']:.3g}", f"{self.limits.norm:g}"
            out.append(f"a change of {figures['norm_of']} by {share} of its norm (limit {limit})")
        rise = figures["repetition"] - figures["repetition_base"]
        if not rise <= self.limits.repetition:
            out.append(f"a share of repeated phrases that rose by {rise:.3g} (limit {self.limits.repetition:g})")
        return out

    def _measured(self) -> dict[str, float]:
        return {"perplexity": perplexity(self.loaded, self._ids), "repetition": self._repetition()}

    def _repetition(self) -> float:
        if not self.limits.new_tokens:
            return 0.0
        n = self.limits.new_tokens
        said = generate(self.loaded, NEUTRAL_PROMPTS, max_new_tokens=n, stop_strings=())
        tokens = [self.loaded.tokenizer(s.text, add_special_tokens=False)["input_ids"] for s in said]
        return sum(map(repeated_share, tokens)) / len(tokens)

    def _largest_norm(self, edits: Sequence[Edit]) -> tuple[float, str]:
        live = live_edits(self.loaded.model)
        own: dict[str, float] = {}
        largest = (0.0, "")
        for m in (m for edit in edits for m in edit.delta.matrices):
            name = m.weight_name
            if name not in own:
                own[name] = float(live.pristine(name).float().norm())
            largest = max(largest, (m.norm / own[name] if own[name] else math.inf, name))
        return largest


@torch.no_grad()
def perplexity(loaded: LoadedModel, ids: Sequence[int]) -> float:
    """Perplexity of a text, cut into pieces that do not see each other.

    Args:
        loaded: The model as it stands.
        ids: The text's tokens; at least two.

    Returns:
        exp of the mean negative log-probability of each token after the first of its piece.
    """
    width = min(WINDOW, loaded.anatomy.window)
    total, n = 0.0, 0
    for at in range(0, len(ids), width):
        piece = ids[at : at + width]
        if len(piece) < 2:
            continue
        tokens, mask = pad_right([piece], loaded.pad_id, loaded.device)
        logits = run_body(loaded.model, tokens, mask)[0, :-1].float()
        wanted = tokens[0, 1:].to(logits.device)
        total += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))
        n += len(piece) - 1
    mean = total / n
    return math.exp(mean) if mean < 700 else math.inf


def repeated_share(tokens: Sequence[int]) -> float:
    """Share of phrases of four tokens that occurred before in the same text.

    Args:
        tokens: The text's tokens.

    Returns:
        In [0, 1]; 0 for a text without such a phrase.
    """
    phrases = [tuple(tokens[i : i + PHRASE]) for i in range(len(tokens) - PHRASE + 1)]
    return 1 - len(set(phrases)) / len(phrases) if phrases else 0.0


def _calibration_ids(loaded: LoadedModel, limits: HealthLimits) -> list[int]:
    try:
        text = (
            Path(limits.text).read_text(encoding="utf-8")
            if limits.text
            else resources.files("roseedit.edits").joinpath("calibration.txt").read_text(encoding="utf-8")
        )
    except (OSError, UnicodeDecodeError) as error:
        got = f"the calibration text {limits.text!r}, which cannot be read ({error})"
        raise HparamsError(refusal(got, "a text file", "Check health: text in the hparams.")) from error
    ids: list[int] = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) < 2:
        got = f"a calibration text of {len(ids)} tokens"
        raise HparamsError(refusal(got, "two tokens or more", "Give a longer text."))
    return ids
