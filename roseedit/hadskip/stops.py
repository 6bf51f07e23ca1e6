"""Text of a growing token sequence, piece by piece, and where a stop string cuts it.

Only a short window of tokens is decoded anew per token; bytes of an unfinished character are held back, and so is text
that may be the beginning of a stop string.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

UNFINISHED = "\ufffd"


class GrowingText:
    """The text of one sequence.

    Args:
        tokenizer: Turns ids into text.
        stops: Texts that end it.
        watched: False when nobody needs the text before the end; then nothing is decoded until then.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str], watched: bool) -> None:
        self.tokenizer = tokenizer
        self.stops = tuple(stops)
        self.watched = watched or bool(self.stops)
        self.ids: list[int] = []
        self.text = ""
        self.given = 0
        self._start = 0  # the window: ids[_start:_read] are known to read as _known
        self._read = 0
        self._known = ""

    def push(self, token: int) -> bool:
        """Add a token; True when a stop string is complete, the text being cut there."""
        self.ids.append(token)
        if not self.watched:
            return False
        seen = self._decode(self._start)
        if seen.endswith(UNFINISHED) or len(seen) <= len(self._known):
            return False
        before = len(self.text)
        self.text += seen[len(self._known) :]
        self._start, self._read = self._read, len(self.ids)
        self._known = self._decode(self._start)
        return self._cut(before)

    def _decode(self, start: int) -> str:
        return self.tokenizer.decode(self.ids[start:], skip_special_tokens=True)

    def _cut(self, before: int) -> bool:
        longest = max((len(stop) for stop in self.stops), default=0)
        found = [at for stop in self.stops if (at := self.text.find(stop, max(0, before - longest + 1))) >= 0]
        if not found:
            return False
        self.text = self.text[: min(found)]
        return True

    def piece(self) -> str:
        """What is new and certain since the last call."""
        end = len(self.text) - self._uncertain()
        out = self.text[self.given : end]
        self.given = max(self.given, end)
        return out

    def _uncertain(self) -> int:
        lengths = (n for stop in self.stops for n in range(len(stop) - 1, 0, -1) if self.text.endswith(stop[:n]))
        return max(lengths, default=0)

    def finish(self, *, cut: bool) -> str:
        """The end is reached; the last piece.

        Args:
            cut: True when a stop string ended it: the text stands. Else it is what all tokens together read as.

        Returns:
            What was not given out yet.
        """
        if not cut:
            whole = self._decode(0)
            self.text = whole if whole.startswith(self.text[: self.given]) else self.text
        out = self.text[self.given :]
        self.given = len(self.text)
        return out
