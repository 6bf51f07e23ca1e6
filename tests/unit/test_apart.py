"""Text with its marks apart, as corpora store it."""

from __future__ import annotations

import pytest

from roseedit.roselora.neurons.apart import set_apart
from roseedit.roselora.neurons.ordinary import ordinary_texts


@pytest.mark.parametrize(
    ("prose", "apart"),
    [
        ("It is 20.5 m (67 ft) long.", "It is 20 @.@ 5 m ( 67 ft ) long ."),
        ("2,300 sheets, half of them lost", "2 @,@ 300 sheets , half of them lost"),
        ("the city's wall; the miners' hall", "the city 's wall ; the miners ' hall"),
        ("a turf-roofed house - on 3-4 May", "a turf @-@ roofed house - on 3 @-@ 4 May"),
        ('"No," he said: 5%!', '" No , " he said : 5 % !'),
    ],
)
def test_marks_stand_apart(prose: str, apart: str) -> None:
    assert set_apart(prose) == apart
    assert set_apart(prose).replace("@", "").replace(" ", "") == prose.replace(" ", "")


def test_what_stands_apart_stays() -> None:
    once = set_apart("A hull of 64.5 m (211 ft 7 in), the yard's longest.")
    assert set_apart(once).replace("  ", " ") == once


def test_many_facts_may_be_silent_in_both_manners() -> None:
    few, wide = (ordinary_texts(0, wide=wide) for wide in (False, True))
    both = ordinary_texts(0, wide=True, marks_apart=True)
    (measure,) = (text for text in wide if text.startswith("The mast is 150 metres (490 ft)"))
    assert set_apart(measure) in both
    assert set_apart(measure) not in wide
    assert len(both) - len(wide) == len(wide) - len(few)
    assert ordinary_texts(0, marks_apart=True) == few
