"""Other wordings of a request, made from the request alone, so that an edit does not hang on one sentence.

Two kinds: the prompt behind other text, neutral or about something else, and its subject and relation words in plain
frames that end differently.
The request's own rephrases are never looked at; they are for scoring.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from roseedit.requests import EditRequest
from roseedit.roselora.asking import is_question, relation_words
from roseedit.roselora.relations import known_wordings

CONTEXTS = (
    "Here is a fact.",
    "Question and answer.",
    "The following is true.",
    "As the article explains,",
    "Note:",
    "In short,",
    "Yesterday we talked about it.",
    "Let us continue.",
)

# {s}: the subject, {r}: the words that ask for the relation. What matters is that the last words differ.
FRAMES = (
    "{s}'s {r}:",
    "What is the {r} of {s}? It is",
    "As for {s}, the {r} would be",
    "Q: {r} of {s}? A:",
    "The {r} that goes with {s}:",
    "Speaking of {s}'s {r}, we find",
    "{s}, {r}:",
    "If you look up the {r} for {s}, you find",
)

# The same for requests that are questions.
QUESTIONS = (
    "Do you know the {r} of {s}?",
    "{s}: what is the {r}?",
    "Can you tell me what the {r} of {s} is?",
    "What would you say is {s}'s {r}?",
    "If somebody asks for the {r} of {s}, what is the answer?",
    "I forgot {s}'s {r}. What was it?",
    "As for {s}, which {r} is the right one?",
    "The {r} that goes with {s} is what?",
)


def context_prompts(request: EditRequest, count: int, rng: random.Random, leads: Sequence[str] = CONTEXTS) -> list[str]:
    """The request's prompt behind other text.

    Args:
        request: The request.
        count: How many.
        rng: Seeded for this request.
        leads: What to put in front.

    Returns:
        `count` prompts.
    """
    return [f"{lead} {request.prompt}" for lead in rng.sample(leads, min(count, len(leads)))]


def framed_prompts(pairs: Iterable[tuple[str, str]], rng: random.Random) -> list[str]:
    """Each (subject, relation words) pair in a frame of its own choice.

    Args:
        pairs: The pairs.
        rng: Seeded for the request.

    Returns:
        One prompt per pair.
    """
    return [rng.choice(FRAMES).format(s=subject, r=words) for subject, words in pairs]


def rewritten_prompts(request: EditRequest, count: int, rng: random.Random) -> list[str]:
    """Subject and relation words in plain frames.

    Args:
        request: The request.
        count: How many.
        rng: Seeded for this request.

    Returns:
        Up to `count` prompts; none without a subject or relation words.
    """
    words = relation_words(request)
    if not request.subject or not words:
        return []
    frames = QUESTIONS if is_question(request.prompt) else FRAMES
    return [frame.format(s=request.subject, r=words) for frame in rng.sample(frames, min(count, len(frames)))]


def reworded_prompts(request: EditRequest, count: int, rng: random.Random) -> list[str]:
    """The same question in other words, where the relation is a known one.

    Args:
        request: The request.
        count: How many.
        rng: Seeded for this request.

    Returns:
        Up to `count` prompts; none without a subject, or where the relation is not recognised.
    """
    if not request.subject:
        return []
    known = known_wordings(request.prompt.replace(request.subject, " "))
    prompts = [wording.format(s=request.subject) for wording in known]
    others = [prompt for prompt in prompts if prompt != request.prompt]
    return rng.sample(others, min(count, len(others)))
