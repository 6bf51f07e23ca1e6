"""The one record type that every call and every data set is turned into, and all checks on it.

This file knows nothing of models: what needs a tokenizer (a target without tokens, a prompt longer than the window)
takes one as an argument and looks at nothing else of the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from roseedit.errors import RequestError, refusal


@dataclass(frozen=True)
class Probe:
    """A prompt whose answer is looked at before and after an edit.

    Attributes:
        group: Name of the column it is reported in, e.g. ``"Reasoning"`` or ``"neighborhood"``.
        prompt: The text given to the model.
        answers: Accepted answers, one tuple of aliases per answer; empty where only "unchanged" is asked.
    """

    group: str
    prompt: str
    answers: tuple[tuple[str, ...], ...] = ()

    @property
    def aliases(self) -> tuple[str, ...]:
        """All accepted strings, first answer first (rule: any alias of any answer counts)."""
        return tuple(alias for answer in self.answers for alias in answer)


@dataclass(frozen=True)
class EditRequest:
    """One fact to be changed.

    Attributes:
        prompt: Text that the model is to continue with `target_new`.
        target_new: The new answer, without a leading space.
        subject: What the fact is about; must occur in `prompt` literally. Anchors are built from it.
        target_true: The old answer, where known.
        rephrase: Other wordings of `prompt` (scored as generality, never trained on).
        locality: Probes whose answers must not change.
        portability: Probes whose answers must follow from the new fact.
        target_aliases: Further accepted spellings of `target_new`.
        source: Where the record came from, e.g. ``"counterfact:17"``.
    """

    prompt: str
    target_new: str
    subject: str | None = None
    target_true: str | None = None
    rephrase: tuple[str, ...] = ()
    locality: tuple[Probe, ...] = ()
    portability: tuple[Probe, ...] = ()
    target_aliases: tuple[str, ...] = ()
    source: str | None = None

    @property
    def request_id(self) -> str:
        """Twelve hex digits that depend on subject, prompt and new target alone."""
        text = "\x1f".join((self.subject or "", self.prompt, self.target_new))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def accepted(self) -> tuple[str, ...]:
        """`target_new` and its aliases."""
        return (self.target_new, *self.target_aliases)


def answer_separator(prompt: str, target: str) -> str:
    """The text between prompt and target: one space unless either side already brings white space.

    Args:
        prompt: Text before the answer.
        target: The answer.

    Returns:
        ``" "`` or ``""``.
    """
    return "" if target[:1].isspace() or prompt[-1:].isspace() else " "


def check_request(request: EditRequest, where: str = "request") -> None:
    """Refuse a request that no model could carry out.

    Args:
        request: The request.
        where: How to name it in a message, e.g. ``"request 3"``.

    Raises:
        RequestError: Empty prompt or target, subject not in the prompt, target equal to the old answer, or an empty
            rephrase or probe prompt.
    """
    _check_text(request, where)
    if not request.prompt.strip():
        raise RequestError(f"{where}: " + refusal(f"the prompt {request.prompt!r}", "a prompt with text", "State it."))
    if not request.target_new.strip():
        message = refusal(f"the target {request.target_new!r}", "a target with text", "State the new answer.")
        raise RequestError(f"{where}: {message}")
    _check_subject(request, where)
    if request.target_true is not None and _same(request.target_new, request.target_true):
        message = refusal(
            f"the new target {request.target_new!r}, equal to the old answer",
            "a target that differs from target_true",
            "Change one of the two; an edit that changes nothing is not made.",
        )
        raise RequestError(f"{where}: {message}")
    _check_probes(request, where)


def _check_text(request: EditRequest, where: str) -> None:
    named: list[tuple[str, Any]] = [("prompt", request.prompt), ("target", request.target_new)]
    named += [("rephrase", text) for text in request.rephrase]
    named += [(f"{p.group} probe", p.prompt) for p in (*request.locality, *request.portability)]
    named += [(n, v) for n, v in (("subject", request.subject), ("target_true", request.target_true)) if v is not None]
    for name, text in named:
        if not isinstance(text, str):
            raise RequestError(f"{where}: " + refusal(f"{text!r} as {name}", "text", "Pass a string."))


def _check_subject(request: EditRequest, where: str) -> None:
    if request.subject is None:
        return
    if not request.subject.strip():
        message = refusal(
            "an empty subject", "text that occurs in the prompt, or no subject", "Leave it out or set it."
        )
        raise RequestError(f"{where}: {message}")
    if request.subject not in request.prompt:
        message = refusal(
            f"the subject {request.subject!r}, which is not in the prompt {request.prompt!r}",
            "a subject that occurs in the prompt letter for letter",
            "Copy the subject out of the prompt.",
        )
        raise RequestError(f"{where}: {message}")


def _check_probes(request: EditRequest, where: str) -> None:
    prompts = [("rephrase", text) for text in request.rephrase]
    prompts += [(f"locality probe {p.group!r}", p.prompt) for p in request.locality]
    prompts += [(f"portability probe {p.group!r}", p.prompt) for p in request.portability]
    for name, text in prompts:
        if not text.strip():
            message = refusal(f"an empty prompt as {name}", "a prompt with text", "Fill it in or leave it out.")
            raise RequestError(f"{where}: {message}")


def _same(a: str, b: str) -> bool:
    return a.strip().casefold() == b.strip().casefold()


def check_requests(requests: Sequence[EditRequest]) -> None:
    """Check every request, and the set for contradictions.

    Args:
        requests: The requests of one call.

    Raises:
        RequestError: No request at all, a bad one, or two that ask different answers for one prompt.
    """
    if not requests:
        raise RequestError(refusal("no requests", "one or more", "Pass a prompt and a target."))
    seen: dict[str, tuple[int, str]] = {}
    for i, request in enumerate(requests):
        check_request(request, f"request {i}")
        j, target = seen.setdefault(request.prompt.strip(), (i, request.target_new))
        if not _same(target, request.target_new):
            message = refusal(
                f"{target!r} and {request.target_new!r} as answers to the same prompt {request.prompt!r}",
                "one answer per prompt",
                f"Requests {j} and {i} contradict each other: keep one of them.",
            )
            raise RequestError(message)


def check_tokens(requests: Sequence[EditRequest], tokenizer: Any, window: int) -> None:
    """Check what only a tokenizer can tell.

    Args:
        requests: Requests that passed `check_requests`.
        tokenizer: A Hugging Face tokenizer.
        window: The model's longest input, in tokens.

    Raises:
        RequestError: A target that tokenises to nothing, or a prompt that does not fit the window with its target.
    """
    for i, request in enumerate(requests):
        target = answer_separator(request.prompt, request.target_new) + request.target_new
        n_target = len(tokenizer(target, add_special_tokens=False)["input_ids"])
        bare = len(tokenizer(request.target_new.strip(), add_special_tokens=False)["input_ids"])
        if n_target == 0 or bare == 0:
            message = refusal(
                f"the target {request.target_new!r}, which this tokenizer turns into no tokens",
                "a target of at least one token",
                "Use characters that the model's vocabulary knows.",
            )
            raise RequestError(f"request {i}: {message}")
        probes = (p.prompt for p in (*request.locality, *request.portability))
        for text in (request.prompt, *request.rephrase, *probes):
            n_prompt = len(tokenizer(text)["input_ids"])
            if n_prompt + n_target + 1 > window:
                message = refusal(
                    f"a prompt of {n_prompt} tokens ({text[:40]!r}...) with a target of {n_target}",
                    f"at most {window} tokens together, the model's window, one of them for the end mark",
                    "Shorten the prompt.",
                )
                raise RequestError(f"request {i}: {message}")


def make_requests(
    prompts: str | EditRequest | Sequence[str] | Sequence[EditRequest],
    targets: str | Sequence[str] | None = None,
    *,
    subjects: str | Sequence[str | None] | None = None,
    targets_true: str | Sequence[str | None] | None = None,
    rephrase: str | Sequence[str | Sequence[str]] | None = None,
    locality: Sequence[Any] | None = None,
    portability: Sequence[Any] | None = None,
) -> list[EditRequest]:
    """Turn the arguments of `Editor.edit` into requests.

    Args:
        prompts: One prompt, a list of prompts, or ready requests (then nothing else may be given).
        targets: One target per prompt.
        subjects: One subject per prompt.
        targets_true: One old answer per prompt.
        rephrase: Per prompt a rephrase or a list of them. For a single prompt also a plain list of strings.
        locality: Per prompt a list of probes; a probe is a string or a `Probe`. For a single prompt also that list.
        portability: As `locality`; a probe without answers cannot be scored, so use `Probe` or (prompt, answer).

    Returns:
        One request per prompt.

    Raises:
        RequestError: Lists of unequal length, targets missing, or extra arguments beside ready requests.
    """
    given = {"subjects": subjects, "targets_true": targets_true, "rephrase": rephrase, "locality": locality}
    given |= {"targets": targets, "portability": portability}
    listed: Sequence[Any] = [prompts] if isinstance(prompts, (str, EditRequest)) else _listed("prompts", prompts)
    ready = [item for item in listed if isinstance(item, EditRequest)]
    if ready:
        extra = sorted(name for name, value in given.items() if value is not None)
        if extra or len(ready) != len(listed):
            message = refusal(
                f"EditRequest objects together with {', '.join(extra) or 'plain strings'}",
                "either EditRequest objects alone or strings with targets",
                "Put everything into the EditRequest.",
            )
            raise RequestError(message)
        return ready
    if targets is None:
        raise RequestError(refusal("prompts without targets", "one target per prompt", "Pass targets=..."))
    single = isinstance(prompts, str)
    columns = {name: _column(name, value, len(listed), single) for name, value in given.items()}
    return [
        _one_request(prompt, {name: column[i] for name, column in columns.items()}) for i, prompt in enumerate(listed)
    ]


def _column(name: str, value: Any, n: int, single: bool) -> list[Any]:
    """One value per prompt. For a single prompt, lists of probes or rephrases may come unwrapped."""
    if value is None:
        return [None] * n
    if isinstance(value, (str, Probe)) or (single and _is_pair(value, name)):
        value = [value]
    value = _listed(name, value)
    if single and name in ("rephrase", "locality", "portability"):
        flat = not any(isinstance(item, list) for item in value)
        value = [value] if flat else value
    if len(value) != n:
        message = refusal(f"{len(value)} {name} for {n} prompts", f"{n} {name}", "Give one entry per prompt.")
        raise RequestError(message)
    return value


def _listed(name: str, value: Any) -> list[Any]:
    if not isinstance(value, Iterable) or isinstance(value, (Mapping, bytes)):
        message = refusal(f"{value!r} as {name}", "text, a list of texts, or probes where they fit", "Change it.")
        raise RequestError(message)
    return list(value)


def _one_request(prompt: str, fields: dict[str, Any]) -> EditRequest:
    rephrase = fields["rephrase"]
    return EditRequest(
        prompt=prompt,
        target_new=fields["targets"],
        subject=fields["subjects"],
        target_true=fields["targets_true"],
        rephrase=()
        if rephrase is None
        else (rephrase,)
        if isinstance(rephrase, str)
        else tuple(_listed("rephrase", rephrase)),
        locality=tuple(_probes(fields["locality"], "locality")),
        portability=tuple(_probes(fields["portability"], "portability")),
    )


def _is_pair(item: Any, group: str) -> bool:
    """(prompt, answer) or (prompt, aliases); a tuple of locality prompts is just a sequence."""
    if group != "portability" or not isinstance(item, tuple) or len(item) != 2 or not isinstance(item[0], str):
        return False
    return isinstance(item[1], str) or (
        isinstance(item[1], (list, tuple)) and all(isinstance(alias, str) for alias in item[1])
    )


def _probes(items: Any, group: str) -> Iterable[Probe]:
    if items is None:
        return
    single = isinstance(items, (str, Probe)) or _is_pair(items, group)
    for item in [items] if single else _listed(group, items):
        if isinstance(item, Probe):
            yield item
        elif isinstance(item, str):
            yield Probe(group, item)
        elif _is_pair(item, "portability"):
            answers = (item[1],) if isinstance(item[1], str) else tuple(item[1])
            yield Probe(group, item[0], (answers,))
        else:
            message = refusal(f"{item!r} as a {group} probe", "a string, (prompt, answer) or Probe", "Use one of them.")
            raise RequestError(message)
