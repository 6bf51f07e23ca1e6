"""Growing text: what is given out early never has to be taken back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roseedit.hadskip.stops import GrowingText
from tests.tiny.conftest import build_tokenizer

TOKENIZER: Any = build_tokenizer()


def grow(text: str, stops: tuple[str, ...], watched: bool = True) -> tuple[str, list[str], bool]:
    growing = GrowingText(TOKENIZER, stops, watched)
    pieces, cut = [], False
    for token in TOKENIZER(text)["input_ids"]:
        cut = growing.push(token)
        if cut:
            break
        pieces.append(growing.piece())
    pieces.append(growing.finish(cut=cut))
    return growing.text, pieces, cut


@given(
    st.text(alphabet="abc \néß漢😀", max_size=30),
    st.lists(st.sampled_from(["ab", "b\n", "😀", "ca ", "c"]), max_size=3),
)
def test_pieces_add_up_to_the_text_before_the_first_stop(text: str, stops: list[str]) -> None:
    found = [text.index(stop) for stop in stops if stop in text]
    said, pieces, cut = grow(text, tuple(stops))
    assert "".join(pieces) == said
    assert cut == bool(found)
    if found:
        assert text.startswith(said)
        assert not any(stop in said for stop in stops)
    else:
        assert said == text


def test_the_earliest_stop_cuts() -> None:
    assert grow("one two three", ("three", "two"))[0] == "one "


def test_what_may_become_a_stop_is_held_back() -> None:
    _, pieces, _ = grow("xSTOx", ("STOP",))
    assert pieces == ["x", "", "", "", "STOx", ""]


def test_an_unfinished_character_is_held_back() -> None:
    _, pieces, _ = grow("a漢", ())
    assert pieces == ["a", "", "", "漢", ""]


def test_nothing_is_decoded_when_nobody_watches() -> None:
    class Silent:
        calls = 0

        def decode(self, ids: list[int], **_: Any) -> str:
            self.calls += 1
            return "x" * len(ids)

    silent = Silent()
    growing = GrowingText(silent, (), False)
    for token in range(5):
        assert not growing.push(token)
    assert silent.calls == 0
    assert growing.finish(cut=False) == "xxxxx"


@pytest.mark.parametrize("text", ["", "a"])
def test_short_texts(text: str) -> None:
    assert grow(text, ("zz",))[0] == text
