"""Text as many corpora store it: every mark stands apart from its word.

WikiText writes "20 @.@ 5 metres ( 67 ft )" and "the city 's". To a model these are other tokens than prose has, and a
neuron that has met prose alone may open at them: at "metres ( " or "father '" hundreds of a thousand do.
"""

from __future__ import annotations

import re

MARKS = (
    (re.compile(r"""([();:"!?%$£€°\u2013]|,(?!\d))"""), r" \1 "),
    (re.compile(r"(?<=\w)'(?=s?\b|\s)"), " '"),
    (re.compile(r"(?<=\d)([.,])(?=\d)|(?<=\w)(-)(?=\w)"), r" @\1\2@ "),  # inside a number or a word, as WikiText has it
    (re.compile(r"(?<=\w)\.(?=\s|$)"), " ."),
    (re.compile(r"\s+"), " "),
)


def set_apart(text: str) -> str:
    """The same text with spaces around its marks.

    Args:
        text: Prose.

    Returns:
        It, each mark a word of its own.
    """
    for mark, apart in MARKS:
        text = mark.sub(apart, text)
    return text.strip()
