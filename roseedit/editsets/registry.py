"""Which edit sets there are, where their files lie, and how a record of each is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from roseedit.editsets.counterfact import parse_counterfact, parse_flat
from roseedit.editsets.fields import Record
from roseedit.editsets.hub import HubSource
from roseedit.editsets.mquake import parse_mquake
from roseedit.editsets.questions import parse_qaedit, parse_wikibigedit
from roseedit.editsets.wikibio import parse_wikibio
from roseedit.editsets.wikidata import parse_recent, parse_wikidata
from roseedit.editsets.zsre import parse_zsre
from roseedit.errors import DataError, near_names, refusal
from roseedit.requests import EditRequest

_KNOWEDIT = "6d218881e60c7c8be836bd2befd598eb3b318be4"


@dataclass(frozen=True)
class Editset:
    """One data set.

    Attributes:
        name: What the user calls it.
        description: One line for listings.
        files: Per split where the real file lies under the data folder; the first split is the default.
        sample: Name of the sample file in the repository's `data` folder.
        parse: Turns a raw record into a request or, where a record holds several facts, into several; no `source`.
        id_keys: Raw names that a record's own number may have; else its position in the file is used.
        hub: Where it is on the Hugging Face Hub, where that is known.
    """

    name: str
    description: str
    files: Mapping[str, str]
    sample: str
    parse: Callable[[Record], EditRequest | tuple[EditRequest, ...]]
    id_keys: tuple[str, ...] = ()
    hub: HubSource | None = None

    @property
    def default_split(self) -> str:
        """The split that is loaded unless another one is named."""
        return next(iter(self.files))


def _knowedit(**files: str | None) -> HubSource:
    paths = {split: f"benchmark/{file}" for split, file in files.items()}
    return HubSource("zjunlp/KnowEdit", paths, _KNOWEDIT)


_ALL = (
    Editset(
        name="counterfact",
        description="CounterFact, original schema: false facts, paraphrases, neighbouring subjects",
        files={
            "full": "counterfact/counterfact_full.json",
            "paraphrases": "counterfact/counterfact_paraphrases_1k.json",
        },
        sample="counterfact_sample.json",
        parse=parse_counterfact,
        id_keys=("case_id", "id"),
        hub=HubSource("azhx/counterfact", {"train": None, "test": None}),
    ),
    Editset(
        name="counterfact-flat",
        description="CounterFact in EasyEdit's flat form: one neighbour, no true paraphrase",
        files={split: f"counterfact/counterfact-{split}.json" for split in ("edit", "train", "val")},
        sample="counterfact_flat_sample.json",
        parse=parse_flat,
        id_keys=("case_id",),
    ),
    Editset(
        name="zsre",
        description="ZsRE, MEND's split: questions, one rewording, unrelated questions, one-hop portability",
        files={
            "portability": "zsre/zsre_mend_eval_portability_gpt4.json",
            "eval": "zsre/zsre_mend_eval_3k.json",
            "train": "zsre/zsre_mend_train_1k.json",
        },
        sample="zsre_sample.json",
        parse=parse_zsre,
    ),
    Editset(
        name="zsre-knowedit",
        description="KnowEdit's ZsRE: questions with one portability prompt and same-subject locality",
        files={"test": "knowedit/ZsRE/ZsRE-test-all.json"},
        sample="zsre_knowedit_sample.json",
        parse=parse_wikidata,
        hub=_knowedit(test="ZsRE/ZsRE-test-all.json"),
    ),
    Editset(
        name="wikidata-recent",
        description="KnowEdit wiki_recent: recent true facts with portability and same-subject locality",
        files={
            "test": "knowedit/wiki_recent/recent_test.json",
            "train": "knowedit/wiki_recent/recent_train.json",
        },
        sample="wikidata_recent_sample.json",
        parse=parse_recent,
        hub=_knowedit(test="wiki_recent/recent_test.json", train="wiki_recent/recent_train.json"),
    ),
    Editset(
        name="wikidata-counterfact",
        description="KnowEdit wiki_counterfact: false facts with portability and same-subject locality",
        files={
            "test": "knowedit/wiki_counterfact/test_cf.json",
            "train": "knowedit/wiki_counterfact/train_cf.json",
        },
        sample="wikidata_sample.json",
        parse=parse_wikidata,
        hub=_knowedit(test="wiki_counterfact/test_cf.json", train="wiki_counterfact/train_cf.json"),
    ),
    Editset(
        name="wikibio",
        description="KnowEdit WikiBio: next sentences of biographies; judge by likelihood, not by exact match",
        files={
            "test": "knowedit/WikiBio/wikibio-test-all.json",
            "train": "knowedit/WikiBio/wikibio-train-all.json",
        },
        sample="wikibio_sample.json",
        parse=parse_wikibio,
        hub=_knowedit(test="WikiBio/wikibio-test-all.json", train="WikiBio/wikibio-train-all.json"),
    ),
    Editset(
        name="mquake",
        description="MQuAKE: chains of false facts, one request each, multi-hop questions with the last one",
        files={"hard": "other_edits/MQuAKE-hard.json"},
        sample="mquake_sample.json",
        parse=parse_mquake,
        id_keys=("case_id",),
    ),
    Editset(
        name="wikibigedit",
        description="WikiBigEdit: true facts as questions, one rewording, one related question",
        files={"3k": "other_edits/wikibigedit_3k.json"},
        sample="wikibigedit_sample.json",
        parse=parse_wikibigedit,
        hub=HubSource(
            "lukasthede/WikiBigEdit",
            {
                "20240201": "wiki_big_edit_20240201_20240220.json",
                "20240220": "wiki_big_edit_20240220_20240301.json",
                "20240301": "wiki_big_edit_20240301_20240320.json",
                "20240320": "wiki_big_edit_20240320_20240401.json",
                "20240401": "wiki_big_edit_20240401_20240501.json",
            },
        ),
    ),
    Editset(
        name="qaedit",
        description="QAEdit: questions of open QA sets, one rewording, five unrelated questions",
        files={"inter": "other_edits/QAEdit_inter_1k.json"},
        sample="qaedit_sample.json",
        parse=parse_qaedit,
        id_keys=("id",),
    ),
)
_EDITSETS = {editset.name: editset for editset in _ALL}


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


def find_split(name: str, split: str | None = None, *, hub: bool = False) -> tuple[Editset, str]:
    """Look an edit set and one of its splits up.

    Args:
        name: Its name, or `"NAME:SPLIT"`.
        split: Name of a split; None for the one in `name`, or else the default.
        hub: The default is the Hub's, whose splits differ for some sets.

    Returns:
        The entry, and the split.

    Raises:
        DataError: There is no such set or split, or two different splits are named.
    """
    name, _, named = name.partition(":")
    editset = find(name)
    if named and split and named != split:
        message = refusal(f"the splits {named!r} and {split!r}", "one split", "Name it once.")
        raise DataError(message)
    default = editset.hub.default_split if hub and editset.hub else editset.default_split
    chosen = named or split or default
    known = {*editset.files, *(editset.hub.files if editset.hub else ())}
    if chosen not in known:
        raise DataError(refusal(f"split {chosen!r} of {name!r}", "a known split", near_names(chosen, known)))
    return editset, chosen
