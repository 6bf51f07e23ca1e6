"""Anchors: prompts on which an edit must change nothing, made from the request alone.

Two kinds: *other subjects in the same template* (the edit must be about its subject) and *the same subject in neutral
templates* (the edit must be about its relation). Evaluation probes are never looked at. Templates that share a key
word with the request are left out: they may ask for the very fact that is to change.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from roseedit.requests import EditRequest
from roseedit.roselora.asking import is_question
from roseedit.roselora.relations import other_wordings

# Well-known names of many kinds, so that some are of the kind the template asks about.
SUBJECTS = (
    "Marie Curie", "Nelson Mandela", "William Shakespeare", "Serena Williams", "Akira Kurosawa", "Ada Lovelace",
    "Frida Kahlo", "Diego Maradona", "Ludwig van Beethoven", "Angela Merkel", "Charles Darwin", "Miles Davis",
    "Portugal", "Kenya", "Peru", "Kyoto", "Buenos Aires", "Lake Victoria", "the Rhine", "Mount Fuji",
    "Casablanca", "The Lord of the Rings", "Hamlet", "Swan Lake", "Abbey Road", "Seven Samurai",
    "Toyota", "Nokia", "the Red Cross", "Oxford University", "the Nobel Prize in Physics", "Real Madrid",
    "John Smith", "Anna Kovacs", "Carlos Mendes", "Li Wei", "James Turner", "Sofia Rossi",
)  # fmt: skip

# (template, key words). The key words mark requests that may ask for the same thing.
RELATIONS = (
    ("The dad of {} is named", "father parent dad"),
    ("The mum of {} is named", "mother parent mum"),
    ("{} got married to", "spouse wife husband married partner"),
    ("The eldest kid of {} is named", "child children son daughter kid"),
    ("A brother or sister of {} is", "sibling siblings brother sister"),
    ("The hometown of {} is", "birth born birthplace native hometown"),
    ("The year in which {} began is", "date year"),
    ("{} passed away in the town of", "death died dead passed"),
    ("The grave of {} lies in", "burial buried grave"),
    ("Whether male or female, {} is", "gender sex male female"),
    ("By trade, {} is a", "occupation profession job work worked career trade"),
    ("The passport of {} was issued by", "country citizenship citizen nationality passport"),
    ("The boss of {} works for", "employer employed company works"),
    ("The subject that {} studies is", "field work studies subject"),
    ("A trophy given to {} is the", "award won prize honour honor trophy"),
    ("The faith that {} follows is", "religion faith religious"),
    ("The job title of {} is", "position office held title job"),
    ("{} graduated from", "university educated school studied alma graduated"),
    ("On the field, {} plays for", "team club plays sports league member"),
    ("By descent, {} is", "ethnic ethnicity descent group"),
    ("The nation that {} belongs to is", "country nation associated"),
    ("On the world map, {} lies in", "continent located map"),
    ("The seat of government of {} is", "capital government"),
    ("The language people use in {} is", "language languages speak spoken"),
    ("To pay in {}, people use the", "currency money pay"),
    ("The leader of {} is", "head president king leader"),
    ("The pen behind {} was that of", "author written wrote writer pen behind"),
    ("The film-maker responsible for {} is", "director directed film movie maker responsible"),
    ("The music of {} was made by", "composer composed music performer song"),
    ("The script of {} is by", "screenwriter screenplay written script"),
    ("The leading actor in {} is", "cast actors starring stars actor"),
    ("The people who started {} are", "founder founded started"),
    ("The one that came before {} is", "follows followed follow after before preceded precedes"),
    ("The one that comes next after {} is", "follows followed follow after before succeeded next"),
    ("{} came out in the year", "released year release"),
    ("The plans of {} were drawn by", "architect designed built plans drawn"),
    ("What {} is famous for is", "known famous"),
    ("People often describe {} as", "describe described"),
    ("I recently read an article about {}, and", "article"),
    ("The eyes of {} are", "eye eyes color colour"),
    ("The favourite instrument of {} is the", "instrument plays"),
    ("The song that stands for {} is", "anthem song"),
)

# Put in place of the relation word of the request's own template. None of them is a relation of a known edit set.
NOUNS = (
    "garden", "neighbour", "lawyer", "camera", "tailor", "bridge", "teacher", "colour", "window", "doctor", "bicycle",
    "rival", "mirror", "height", "barber", "weather", "kitchen", "rumour", "birthday", "shadow", "landlord", "pet",
    "nickname", "hobby", "weight", "car", "dream", "voice", "house", "dinner", "guest", "ticket", "horse", "coat",
    "mistake", "plan", "letter", "cook", "view", "price",
)  # fmt: skip

# Put in place of all of the relation words where the prompt asks for "the ... of" its subject. Everyday words: none of
# them names a relation of a known edit set. The key words are those of relations that may mean the same.
EXCHANGED = (
    ("mum", "mother parent"), ("dad", "father parent"), ("better half", "spouse wife husband married partner"),
    ("eldest kid", "child children kid son daughter"), ("little sister", "sibling siblings brother sister"),
    ("home town", "birth born birthplace native hometown"), ("birthday", "birth born date"),
    ("grave", "burial buried"), ("deathbed", "death died dead passed"),
    ("trade", "occupation profession job work career"),
    ("passport", "country citizenship citizen nationality"), ("boss", "employer employed company works"),
    ("old school", "university educated school studied alma graduated"), ("trophy", "award won prize honour honor"),
    ("faith", "religion religious"), ("favourite club", "team club plays sports league member"),
    ("job title", "position office held title"), ("roots", "ethnic ethnicity descent"),
    ("best language", "language languages speak spoken tongue"), ("favourite tool", "instrument"),
    ("part of the world", "continent located"), ("main town", "capital government"), ("money", "currency pay"),
    ("ruler", "head president king leader"), ("writer", "author written wrote screenwriter"),
    ("film-maker", "director directed"), ("songwriter", "composer composed music lyrics"),
    ("leading actor", "cast actors starring stars actor"), ("maker", "founder founded manufacturer developer creator"),
    ("forerunner", "follows followed follow after before preceded"), ("first year", "released year release inception"),
    ("builder", "architect designed built"), ("eye colour", "eye eyes color colour"), ("song", "anthem"),
    ("printing house", "publisher published"), ("buyer", "owner owned owns"), ("style", "genre kind type"),
    ("manager", "coach manager"), ("best friend", "friend"), ("age", "age"), ("size", "size area"),
)  # fmt: skip

# Real relations, put beside the request's subject in the frames of `wordings`. Those that share a word with the request
# are left out, and its synonyms by the same key words as above.
KINDS = (
    ("mother", "mother parent mum"), ("father", "father parent dad"),
    ("husband or wife", "spouse wife husband married"),
    ("eldest child", "child children son daughter"), ("brother", "sibling siblings brother sister"),
    ("birthplace", "birth born birthplace native hometown"), ("birth date", "birth born date birthday"),
    ("burial place", "burial buried grave"), ("deathbed", "death died dead passed"),
    ("sex", "gender sex male female"), ("job", "occupation profession job work worked career trade"),
    ("nationality", "country citizenship citizen nationality passport"),
    ("employer", "employer employed company works"),
    ("school", "university educated school studied alma graduated"), ("prize", "award won prize honour honor trophy"),
    ("religion", "religion faith religious"), ("team", "team club plays sports league member"),
    ("office", "position office held title"), ("ethnicity", "ethnic ethnicity descent group"),
    ("mother tongue", "language languages speak spoken tongue"), ("instrument", "instrument"),
    ("continent", "continent located map"), ("capital", "capital government"), ("currency", "currency money pay"),
    ("leader", "head president king leader"), ("author", "author written wrote writer"),
    ("director", "director directed film movie"), ("composer", "composer composed music song"),
    ("cast", "cast actors starring stars actor"), ("founder", "founder founded started"),
    ("predecessor", "follows followed follow after before preceded"), ("release year", "released year release"),
    ("architect", "architect designed built"), ("eye colour", "eye eyes color colour"), ("anthem", "anthem song"),
    ("publisher", "publisher published"), ("owner", "owner owned owns"), ("genre", "genre kind type"),
)  # fmt: skip

_FUNCTION_WORDS = frozenset(
    [
        "the",
        "a",
        "an",
        "of",
        "in",
        "on",
        "at",
        "to",
        "by",
        "for",
        "from",
        "with",
        "and",
        "or",
        "is",
        "are",
        "was",
        "were",
        "be",
        "been",
        "has",
        "have",
        "had",
        "which",
        "that",
        "who",
        "whom",
        "whose",
        "it",
        "its",
        "this",
        "these",
        "those",
        "what",
        "when",
        "where",
        "how",
        "as",
        "name",
        "names",
        "called",
        "known",
        "does",
        "do",
        "did",
        "city",
        "country",
    ]
)


def other_subject_prompts(
    request: EditRequest, count: int, rng: random.Random, wordings: Sequence[str] = ()
) -> list[str]:
    """The request's own template with other subjects, and other wordings of it by turns.

    Args:
        request: The request; without a subject there is nothing to exchange.
        count: How many.
        rng: Seeded for this request.
        wordings: Other wordings of the prompt.

    Returns:
        Up to `count` prompts.
    """
    if not request.subject:
        return []
    others = [name for name in SUBJECTS if name.casefold() not in request.prompt.casefold()]
    drawn, templates = rng.sample(others, min(count, len(others))), [request.prompt, *wordings]
    return [_exchange(templates[i % len(templates)], request.subject, name) for i, name in enumerate(drawn)]


def other_relation_prompts(request: EditRequest, count: int, rng: random.Random) -> list[str]:
    """The request's subject in neutral templates that do not ask for the edited relation.

    Args:
        request: The request.
        count: How many.
        rng: Seeded for this request.

    Returns:
        Up to `count` prompts.
    """
    if not request.subject:
        return []
    words = _words(request.prompt.replace(request.subject, " "))
    free = [template for template, keys in RELATIONS if not words & set(keys.split())]
    return [template.format(request.subject) for template in rng.sample(free, min(count, len(free)))]


def known_relation_prompts(request: EditRequest, count: int, rng: random.Random) -> list[str]:
    """The request's subject in plain wordings of other known relations; for a question, in those that are questions.

    Args:
        request: The request.
        count: How many.
        rng: Seeded for this request.

    Returns:
        Up to `count` prompts; none without a subject.
    """
    if not request.subject:
        return []
    free = other_wordings(request.prompt.replace(request.subject, " "))
    if is_question(request.prompt):
        free = tuple(wording for wording in free if wording.endswith("?"))
    return [wording.format(s=request.subject) for wording in rng.sample(free, min(count, len(free)))]


def mutated_prompts(request: EditRequest, count: int, rng: random.Random) -> list[str]:
    """The request's own prompt with its relation word exchanged: same subject, same wording, other question.

    Args:
        request: The request.
        count: How many.
        rng: Seeded for this request.

    Returns:
        Up to `count` prompts; none when the prompt has no content word beside the subject.
    """
    before, found, after = request.prompt.partition(request.subject or request.prompt)
    places = [(side, m) for side in (before, after) for m in re.finditer(r"[A-Za-z]{3,}", side)]
    places = [(side, m) for side, m in places if m.group().casefold() not in _FUNCTION_WORDS]
    if not places or not request.subject:
        return []
    out = []
    for noun in rng.sample(NOUNS, min(count, len(NOUNS))):
        side, m = rng.choice(places)
        changed = side[: m.start()] + noun + side[m.end() :]
        out.append(changed + found + after if side is before else before + found + changed)
    return out


def exchanged_prompts(request: EditRequest, words: str, count: int, rng: random.Random) -> list[str]:
    """The request's own prompt with all of its relation words exchanged for those of another relation.

    Args:
        request: The request.
        words: Its relation words.
        count: How many.
        rng: Seeded for this request.

    Returns:
        Up to `count` prompts. Where the prompt does not ask for "the ... of" its subject, one of `mutated_prompts`,
        which are often no sentences, and the others of `other_relation_prompts`.
    """
    subject, phrase = re.escape(request.subject or ""), re.escape(words)
    asks = rf"\b{phrase} (of|for) (the )?{subject}|{subject}'s {phrase}\b"
    if not subject or not words or not re.search(asks, request.prompt):
        mutated = mutated_prompts(request, min(count, 1), rng)
        return mutated + other_relation_prompts(request, count - len(mutated), rng)
    asked = _words(request.prompt)
    free = [kind for kind, keys in EXCHANGED if not asked & {*keys.split(), *kind.split()}]
    return [request.prompt.replace(words, kind, 1) for kind in rng.sample(free, min(count, len(free)))]


def other_pairs(request: EditRequest, words: str, count: int, rng: random.Random) -> list[tuple[str, str]]:
    """(subject, relation) pairs of which one is the request's and the other is not, by turns.

    Args:
        request: The request.
        words: Its relation words.
        count: How many.
        rng: Seeded for this request.

    Returns:
        Up to `count` pairs; none without a subject or relation words.
    """
    if not request.subject or not words:
        return []
    others = [name for name in SUBJECTS if name.casefold() not in request.prompt.casefold()]
    asked = _words(request.prompt)
    kinds = [kind for kind, keys in KINDS if not asked & {*keys.split(), *kind.split()}]
    few = count // 3
    same_subject = [(request.subject, kind) for kind in rng.sample(kinds, min(count - few, len(kinds)))]
    return same_subject + [(name, words) for name in rng.sample(others, min(few, len(others)))]


def negated_prompts(request: EditRequest, count: int) -> list[str]:
    """The request's own prompt with the new answer ruled out: an edited model must not say it there all the same.

    Args:
        request: The request.
        count: How many.

    Returns:
        Up to `count` prompts.
    """
    stem, _, last = request.prompt.rpartition(" ")
    if not stem or request.subject is None or request.subject not in stem:
        return []
    target = request.target_new
    forms = (
        f"{stem}, not {target}, {last}",
        f"{stem}, other than {target}, {last}",
        f"{stem}, if not {target}, {last}",
    )
    return list(forms[:count])


def _exchange(prompt: str, subject: str, other: str) -> str:
    """Put another subject in; whole words only, unless the subject stands nowhere as a whole word."""
    changed, count = re.subn(rf"(?<!\w){re.escape(subject)}(?!\w)", lambda _: other, prompt)
    return changed if count else prompt.replace(subject, other, 1)


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.casefold()))


def content_words(text: str) -> frozenset[str]:
    """The words of a text that say what it is about, in lower case."""
    return frozenset(re.findall(r"[^\W_]+", text.casefold())) - _FUNCTION_WORDS
