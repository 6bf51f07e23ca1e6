"""Requests: every refusal with got / allowed / remedy, the conveniences of `make_requests`, and the request id."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest

from roseedit.errors import RequestError, RoseEditError
from roseedit.requests import (
    EditRequest,
    Probe,
    answer_separator,
    check_request,
    check_requests,
    check_tokens,
    make_requests,
)

PROMPT = "The Eiffel Tower is located in the city of"
GOOD = EditRequest(PROMPT, "Rome", subject="Eiffel Tower", target_true="Paris")


def refusal_of(request: EditRequest) -> str:
    """The message with which a request is refused."""
    with pytest.raises(RequestError) as caught:
        check_request(request, "request 7")
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "pieces"),
    [
        ({"prompt": ""}, ("got the prompt ''", "allowed: a prompt with text", "State it")),
        ({"prompt": " \n"}, ("got the prompt ' \\n'", "allowed: a prompt with text", "State it")),
        ({"target_new": ""}, ("got the target ''", "allowed: a target with text", "State the new answer")),
        ({"target_new": "  "}, ("got the target '  '", "allowed: a target with text", "State the new answer")),
        (
            {"subject": " "},
            ("got an empty subject", "allowed: text that occurs in the prompt", "Leave it out or set it"),
        ),
        (
            {"subject": "eiffel tower"},
            ("got the subject 'eiffel tower'", repr(PROMPT), "letter for letter", "Copy the subject out of the prompt"),
        ),
        (
            {"target_true": " rome "},
            ("got the new target 'Rome', equal to the old answer", "differs from target_true", "Change one of the two"),
        ),
        (
            {"rephrase": ("fine", " ")},
            ("got an empty prompt as rephrase", "allowed: a prompt with text", "leave it out"),
        ),
        ({"locality": (Probe("near", ""),)}, ("got an empty prompt as locality probe 'near'", "Fill it in")),
        ({"portability": (Probe("hop", "\t"),)}, ("got an empty prompt as portability probe 'hop'", "Fill it in")),
    ],
)
def test_a_bad_request_is_refused_with_got_allowed_and_remedy(changes: dict[str, Any], pieces: tuple[str, ...]) -> None:
    message = refusal_of(replace(GOOD, **changes))
    assert message.startswith("request 7: got ")
    assert "; allowed: " in message
    for piece in pieces:
        assert piece in message


def test_refusals_are_value_errors_of_the_package() -> None:
    assert issubclass(RequestError, RoseEditError)
    assert issubclass(RoseEditError, ValueError)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"subject": None},
        {"target_true": None},
        {"locality": (Probe("near", "Big Ben is in"),)},
        {"rephrase": ("Where?",)},
    ],
)
def test_a_good_request_passes(changes: dict[str, Any]) -> None:
    check_request(replace(GOOD, **changes))


def test_no_requests_are_refused() -> None:
    with pytest.raises(RequestError, match="got no requests; allowed: one or more"):
        check_requests([])


def test_the_bad_one_of_several_is_named() -> None:
    with pytest.raises(RequestError, match=r"^request 1: got the target ''"):
        check_requests([GOOD, EditRequest("Big Ben is in", "")])


def test_contradicting_requests_are_refused() -> None:
    other = EditRequest("Big Ben is in", "Bonn")
    with pytest.raises(RequestError) as caught:
        check_requests([other, GOOD, replace(GOOD, target_new="Berlin")])
    message = str(caught.value)
    assert "got 'Rome' and 'Berlin' as answers to the same prompt" in message
    assert "allowed: one answer per prompt" in message
    assert "Requests 1 and 2 contradict each other: keep one" in message


def test_the_same_answer_twice_is_no_contradiction() -> None:
    check_requests([GOOD, replace(GOOD, target_new="rome "), EditRequest("Big Ben is in", "Bonn")])


class LetterTokenizer:
    """One token per letter; knows no digits."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [1] * add_special_tokens + [ord(c) for c in text if not c.isdigit()]}


def test_a_target_without_tokens_is_refused() -> None:
    with pytest.raises(RequestError) as caught:
        check_tokens([GOOD, EditRequest("Big Ben was built in", "1859")], LetterTokenizer(), 100)
    message = str(caught.value)
    assert message.startswith("request 1: got the target '1859'")
    assert "allowed: a target of at least one token" in message
    assert "Use characters that the model's vocabulary knows" in message


@pytest.mark.parametrize(
    "changes",
    [{}, {"rephrase": ("x" * 60,)}, {"locality": (Probe("g", "x" * 60),)}, {"portability": (Probe("g", "x" * 60),)}],
)
def test_a_prompt_beyond_the_window_is_refused(changes: dict[str, Any]) -> None:
    request = replace(GOOD, **changes)
    longest = max(len(PROMPT), *(60 for _ in changes), 0)
    needed = 1 + longest + len(" Rome") + 1  # start mark, prompt, target, end mark
    check_tokens([request], LetterTokenizer(), needed)
    with pytest.raises(RequestError) as caught:
        check_tokens([request], LetterTokenizer(), needed - 1)
    message = str(caught.value)
    assert f"got a prompt of {longest + 1} tokens" in message
    assert f"allowed: at most {needed - 1} tokens" in message
    assert "Shorten the prompt" in message


@pytest.mark.parametrize(
    ("prompt", "target", "separator"),
    [("in", "Rome", " "), ("in ", "Rome", ""), ("in", " Rome", ""), ("in\n", " Rome", "")],
)
def test_the_separator_is_one_blank_unless_a_side_has_white_space(prompt: str, target: str, separator: str) -> None:
    assert answer_separator(prompt, target) == separator


def test_a_single_prompt_takes_plain_values() -> None:
    (request,) = make_requests(
        PROMPT,
        "Rome",
        subjects="Eiffel Tower",
        targets_true="Paris",
        rephrase=["Where is the Eiffel Tower?", "The Eiffel Tower lies in"],
        locality=["Big Ben is in", Probe("near", "The Louvre is in")],
        portability=[("People there speak", "Italian"), ("Its river is", ["Tiber", "Tevere"])],
    )
    assert request == EditRequest(
        PROMPT,
        "Rome",
        "Eiffel Tower",
        "Paris",
        ("Where is the Eiffel Tower?", "The Eiffel Tower lies in"),
        (Probe("locality", "Big Ben is in"), Probe("near", "The Louvre is in")),
        (
            Probe("portability", "People there speak", (("Italian",),)),
            Probe("portability", "Its river is", (("Tiber", "Tevere"),)),
        ),
    )


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("rephrase", "Where?", ("Where?",)),
        ("rephrase", [["Where?", "Which city?"]], ("Where?", "Which city?")),
        ("locality", "Big Ben is in", (Probe("locality", "Big Ben is in"),)),
        ("locality", Probe("near", "Big Ben is in"), (Probe("near", "Big Ben is in"),)),
        ("locality", [["Big Ben is in"]], (Probe("locality", "Big Ben is in"),)),
        ("portability", [], ()),
    ],
)
def test_a_single_prompt_takes_lists_wrapped_or_not(field: str, value: Any, expected: tuple[Any, ...]) -> None:
    (request,) = make_requests(PROMPT, "Rome", **{field: value})
    assert getattr(request, field) == expected


def test_lists_give_one_entry_per_prompt() -> None:
    first, second = make_requests(
        ["A is in", "B is in"],
        ["X", "Y"],
        subjects=["A", None],
        targets_true=[None, "Z"],
        rephrase=["Where is A?", ["Where is B?", "B lies in"]],
        locality=[["C is in"], []],
        portability=[("There one speaks", "Xish"), [("q", "r"), Probe("hop", "s")]],
    )
    assert (first.subject, first.target_true, first.rephrase) == ("A", None, ("Where is A?",))
    assert first.locality == (Probe("locality", "C is in"),)
    assert first.portability == (Probe("portability", "There one speaks", (("Xish",),)),)
    assert (second.subject, second.target_true, second.rephrase) == (None, "Z", ("Where is B?", "B lies in"))
    assert second.locality == ()
    assert second.portability == (Probe("portability", "q", (("r",),)), Probe("hop", "s"))


@pytest.mark.parametrize("name", ["targets", "subjects", "targets_true", "rephrase", "locality", "portability"])
def test_lists_of_unequal_length_are_refused(name: str) -> None:
    given: dict[str, Any] = {"targets": ["X", "Y"], name: ["p", "q", "r"]}
    with pytest.raises(RequestError, match=f"got 3 {name} for 2 prompts; allowed: 2 {name}. Give one entry per prompt"):
        make_requests(["A is in", "B is in"], **given)


def test_one_target_is_not_spread_over_prompts() -> None:
    with pytest.raises(RequestError, match="got 1 targets for 2 prompts"):
        make_requests(["A is in", "B is in"], "X")


def test_prompts_without_targets_are_refused() -> None:
    with pytest.raises(RequestError, match="got prompts without targets; allowed: one target per prompt"):
        make_requests(PROMPT)


@pytest.mark.parametrize("prompts", [GOOD, [GOOD], [GOOD, GOOD]])
def test_ready_requests_pass_through(prompts: Any) -> None:
    assert make_requests(prompts) == ([prompts] if isinstance(prompts, EditRequest) else prompts)


@pytest.mark.parametrize(
    ("prompts", "given", "named"),
    [
        (GOOD, {"targets": "Rome"}, "targets"),
        ([GOOD], {"subjects": ["Eiffel Tower"], "locality": [[]]}, "locality, subjects"),
        ([GOOD, PROMPT], {}, "plain strings"),
    ],
)
def test_ready_requests_take_nothing_beside_them(prompts: Any, given: dict[str, Any], named: str) -> None:
    with pytest.raises(RequestError) as caught:
        make_requests(prompts, **given)
    message = str(caught.value)
    assert f"got EditRequest objects together with {named}; allowed: " in message
    assert "Put everything into the EditRequest" in message


@pytest.mark.parametrize("probe", [3, ("a", "b", "c"), {"prompt": "p"}])
def test_a_probe_of_an_unknown_form_is_refused(probe: Any) -> None:
    with pytest.raises(RequestError) as caught:
        make_requests(PROMPT, "Rome", locality=[probe])
    message = str(caught.value)
    assert f"got {probe!r} as a locality probe; allowed: a string, (prompt, answer) or Probe" in message


@pytest.mark.parametrize(
    ("prompt", "target", "more"), [(1, "Rome", {}), (PROMPT, None, {}), (PROMPT, "Rome", {"rephrase": [None]})]
)
def test_what_is_not_text_is_refused(prompt: Any, target: Any, more: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        check_requests(make_requests([prompt], [target], **{k: [v] for k, v in more.items()}))


def test_the_probes_of_a_request_can_be_passed_on() -> None:
    probes = (Probe("near", "p"), Probe("near", "q"))
    assert make_requests([PROMPT], ["Rome"], locality=[probes])[0].locality == probes


def test_the_request_id_is_stable() -> None:
    text = "\x1f".join(("Eiffel Tower", PROMPT, "Rome"))
    assert GOOD.request_id == hashlib.sha256(text.encode()).hexdigest()[:12]


def test_the_request_id_does_not_depend_on_probes_or_old_answers() -> None:
    probes = {"rephrase": ("Where?",), "locality": (Probe("a", "b"),), "portability": (Probe("c", "d"),)}
    assert (
        replace(GOOD, target_true=None, source="x:1", target_aliases=("Roma",), **probes).request_id == GOOD.request_id
    )


@pytest.mark.parametrize("changes", [{"prompt": PROMPT + " x"}, {"target_new": "Bonn"}, {"subject": None}])
def test_the_request_id_depends_on_what_is_edited(changes: dict[str, Any]) -> None:
    assert replace(GOOD, **changes).request_id != GOOD.request_id


def test_aliases_are_flattened_in_order() -> None:
    assert Probe("g", "p", (("a", "b"), ("c",))).aliases == ("a", "b", "c")
    assert replace(GOOD, target_aliases=("Roma",)).accepted == ("Rome", "Roma")
