"""Which edit sets there are, where their files lie, and how a record of each is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from roseedit.editsets.counterfact import parse_counterfact
from roseedit.editsets.fields import Record
from roseedit.editsets.wikidata import parse_recent, parse_wikidata
from roseedit.editsets.zsre import parse_zsre
from roseedit.errors import DataError, near_names, refusal
from roseedit.requests import EditRequest


@dataclass(frozen=True)
class Editset:
    """One data set.

    Attributes:
        name: What the user calls it.
        description: One line for listings.
        sample: Name of the sample file in the repository's `data` folder, if there is one.
        relative_path: Where the real file lies under the data folder.
        parse: Turns a raw record into a request, without `source`.
        id_key: Raw name of the record's own number, if it has one; else its position in the file is used.
    """

    name: str
    description: str
    sample: str | None
    relative_path: str
    parse: Callable[[Record], EditRequest]
    id_key: str | None = None


_EDITSETS = {
    editset.name: editset
    for editset in (
        Editset(
            name="counterfact",
            description="CounterFact, original schema: false facts, paraphrases, neighbouring subjects",
            sample="counterfact_sample.json",
            relative_path="counterfact/counterfact_full.json",
            parse=parse_counterfact,
            id_key="case_id",
        ),
        Editset(
            name="zsre",
            description="ZsRE, MEND's split: questions, one rewording, unrelated questions, one-hop portability",
            sample="zsre_sample.json",
            relative_path="zsre/zsre_mend_eval_portability_gpt4.json",
            parse=parse_zsre,
        ),
        Editset(
            name="wikidata-counterfact",
            description="KnowEdit wiki_counterfact: false facts with portability and same-subject locality",
            sample="wikidata_sample.json",
            relative_path="knowedit/wiki_counterfact/test_cf.json",
            parse=parse_wikidata,
        ),
        Editset(
            name="wikidata-recent",
            description="KnowEdit wiki_recent: recent true facts with portability and same-subject locality",
            sample=None,
            relative_path="knowedit/wiki_recent/recent_test.json",
            parse=parse_recent,
        ),
        Editset(
            name="zsre-knowedit",
            description="KnowEdit's ZsRE: questions with one portability prompt and same-subject locality",
            sample=None,
            relative_path="knowedit/ZsRE/ZsRE-test-all.json",
            parse=parse_wikidata,
        ),
    )
}


def names() -> tuple[str, ...]:
    """List the edit sets.

    Returns:
        Their names, in the order they are documented.
    """
    return tuple(_EDITSETS)


def find(name: str) -> Editset:
    """Look an edit set up.

    Args:
        name: Its name.

    Returns:
        The entry.

    Raises:
        DataError: There is no such edit set.
    """
    if name not in _EDITSETS:
        raise DataError(refusal(f"the edit set {name!r}", "a known edit set", near_names(name, _EDITSETS)))
    return _EDITSETS[name]
