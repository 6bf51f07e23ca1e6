"""Taking single fields out of a raw record, with a clear refusal when they are not there or not in a known form."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from roseedit.errors import DataError, refusal
from roseedit.requests import Probe

Record = Mapping[str, Any]


def required_text(record: Record, key: str) -> str:
    """Take a text that every record must have.

    Args:
        record: A raw record or a part of one.
        key: Its raw name.

    Returns:
        The text, unchanged.

    Raises:
        DataError: The key is absent or its value is not text.
    """
    if key not in record:
        raise DataError(refusal(f"no {key!r}", f"text under {key!r}", f"Keys here: {', '.join(record) or 'none'}."))
    return _text(record[key], key)


def optional_text(record: Record, key: str) -> str | None:
    """Take a text that a record may lack.

    Args:
        record: A raw record or a part of one.
        key: Its raw name.

    Returns:
        The text, or None when it is absent, null or blank.

    Raises:
        DataError: The value is there and is not text.
    """
    value = record.get(key)
    if value is None:
        return None
    text = _text(value, key)
    return text if text.strip() else None


def text_list(record: Record, key: str) -> tuple[str, ...]:
    """Take a list of texts that a record may lack; a single text counts as a list of one.

    Args:
        record: A raw record or a part of one.
        key: Its raw name.

    Returns:
        The texts; nothing when the key is absent, null or a blank text.

    Raises:
        DataError: The value is neither text nor a list of texts.
    """
    value = record.get(key)
    if value is None or isinstance(value, str):
        return (value,) if value and value.strip() else ()
    return tuple(_text(item, key) for item in _list(value, key))


def section(record: Record, key: str) -> Record:
    """Take an object inside a record that may be absent, null or empty.

    Args:
        record: A raw record or a part of one.
        key: Its raw name.

    Returns:
        The object, or an empty one.

    Raises:
        DataError: The value is there and is not an object.
    """
    value = record.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise DataError(refusal(f"{json_kind(value)} under {key!r}", "an object", "Repair the record."))
    return value


def object_list(record: Record, key: str) -> tuple[Record, ...]:
    """Take a list of objects that may be absent, null or empty.

    Args:
        record: A raw record or a part of one.
        key: Its raw name.

    Returns:
        The objects.

    Raises:
        DataError: The value is not a list, or something in it is not an object.
    """
    items = _list(record.get(key) or [], key)
    for item in items:
        if not isinstance(item, dict):
            raise DataError(refusal(f"{json_kind(item)} in {key!r}", "an object", "Repair the record."))
    return tuple(items)


def alias_lists(value: Any, key: str) -> tuple[tuple[str, ...], ...]:
    """Bring the three published forms of an answer into one: a tuple of names per answer.

    Args:
        value: Text (one answer), a list of texts (names of one answer), a list of lists (one per answer), or None.
        key: Its raw name, for messages.

    Returns:
        Answers without blank names and without outer blanks; empty when there is no answer.

    Raises:
        DataError: The value has another form.
    """
    if value is None:
        return ()
    flat = isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))
    answers = (_names(item, key) for item in ([value] if flat else _list(value, key)))
    return tuple(names for names in answers if names)


def old_answer(truths: Sequence[str], target: str) -> str | None:
    """Choose the old answer of a record with several true ones.

    The first one, unless the target is among them: then that one, so that the check of the request sees the edit that
    changes nothing.

    Args:
        truths: True answers; blank ones are passed over.
        target: The new answer.

    Returns:
        One of them, or None when there is none.
    """
    named = [truth.strip() for truth in truths if truth.strip()]
    same = [truth for truth in named if truth.casefold() == target.strip().casefold()]
    return next(iter(same + named), None)


def subject_in(prompt: str, subject: str | None) -> str | None:
    """The subject as the prompt spells it.

    Args:
        prompt: The edit prompt.
        subject: The subject as the record gives it, perhaps in other case, perhaps not in the prompt at all.

    Returns:
        The same text cut out of the prompt, or None when it is not there.
    """
    if not subject or not subject.strip():
        return None
    found = re.search(re.escape(subject.strip()), prompt, re.IGNORECASE)
    return found.group() if found else None


def one_probe(group: str, prompt: str | None, answer: Any) -> tuple[Probe, ...]:
    """A probe that a record may lack.

    Args:
        group: Its group.
        prompt: Its prompt, or None.
        answer: Its answer, in any published form.

    Returns:
        The probe, or nothing without a prompt.

    Raises:
        DataError: The answer has an unknown form.
    """
    return () if prompt is None else (Probe(group, prompt, alias_lists(answer, f"answer of {group}")),)


def _names(value: Any, key: str) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else _list(value, key)
    texts = (_text(item, key).strip() for item in items)
    return tuple(text for text in texts if text)


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise DataError(refusal(f"{json_kind(value)} under {key!r}", "text", "Put it in quotes or repair the record."))
    return value


def _list(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(refusal(f"{json_kind(value)} under {key!r}", "a list", "Repair the record."))
    return value


def json_kind(value: Any) -> str:
    """Name a JSON value's type for a message.

    Args:
        value: Anything that `json.loads` returns.

    Returns:
        Such as ``"a list"`` or ``"the number 3"``.
    """
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), f"the number {value!r}")
