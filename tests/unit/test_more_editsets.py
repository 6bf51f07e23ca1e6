"""The flat, biographical, chained and question sets, the Hub, contradictions and guessing."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from roseedit.editsets import (
    DATA_VARIABLE,
    cases,
    contradictions,
    find,
    load_editset,
    names,
    registry,
    repeats,
    without_contradictions,
)
from roseedit.editsets.guess import guess_editset
from roseedit.editsets.hub import HubSource, resolve_revision
from roseedit.editsets.reading import read_records
from roseedit.errors import DataError
from roseedit.requests import EditRequest, Probe, check_requests

SAMPLES = Path(__file__).resolve().parents[2] / "data"
REAL = os.environ.get(DATA_VARIABLE)
needs_real = pytest.mark.skipif(not REAL, reason=f"{DATA_VARIABLE} is not set: no folder with the real sets to read")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_VARIABLE, raising=False)


def _load(folder: Path, name: str, *records: Any) -> Any:
    path = folder / "set.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return load_editset(name, path)


# --- fields ----------------------------------------------------------------------------------------------------------


def test_flat_counterfact_keeps_its_doubtful_rephrase_apart() -> None:
    first = load_editset("counterfact-flat").requests[1]
    assert first == EditRequest(
        prompt="The mother tongue of Victor Hugo was",
        target_new="Dutch",
        subject="Victor Hugo",
        target_true="French",
        locality=(Probe("neighborhood", "The mother tongue of Molière was", (("French",),)),),
        portability=(Probe("easyedit_rephrase", "At home, Victor Hugo and his family spoke", (("Dutch",),)),),
        source="counterfact-flat:100102",
    )


def test_counterfact_copies_with_paraphrases_alone(tmp_path: Path) -> None:
    record = {
        "id": "cf_1", "subject": "Oslo", "relation": "P17", "target_true": "Norway", "target_new": "Peru",
        "prompt": "{} lies in", "paraphrase_prompts": ["Oh. Oslo is in", "Oslo, a city of"],
    }  # fmt: skip
    (request,) = _load(tmp_path, "counterfact", record).requests
    assert request == EditRequest(
        prompt="Oslo lies in",
        target_new="Peru",
        subject="Oslo",
        target_true="Norway",
        rephrase=("Oh. Oslo is in", "Oslo, a city of"),
        source="counterfact:cf_1",
    )


def test_wikibio_takes_the_subject_as_the_passage_spells_it(tmp_path: Path) -> None:
    record = {
        "text": "Marie CURIE was born in 1867. ",
        "labels": " She moved. ",
        "concept": "marie curie",
        "locality": {},
    }
    loaded = _load(tmp_path, "wikibio", record, {**record, "concept": "ada lovelace"}, {**record, "labels": " "})
    assert [(r.prompt, r.target_new, r.subject) for r in loaded.requests] == [
        ("Marie CURIE was born in 1867.", "She moved.", "Marie CURIE"),
        ("Marie CURIE was born in 1867.", "She moved.", None),
    ]
    assert [n.index for n in loaded.notes] == [1] and "without subject" in loaded.notes[0].note
    assert [r.index for r in loaded.rejected] == [2]
    assert loaded.requests[0].rephrase == loaded.requests[0].portability == ()


def test_mquake_keeps_facts_apart_and_asks_the_chain_once() -> None:
    first, second = cases(load_editset("mquake").requests)
    assert [r.source for r in first] == ["mquake:100201/0", "mquake:100201/1"]
    assert [(r.prompt, r.target_new, r.target_true) for r in first] == [
        ("Hamlet was written by", "Jane Austen", "William Shakespeare"),
        ("Jane Austen was born in the country of", "Portugal", "England"),
    ]
    assert [r.target_aliases for r in first] == [("Austen",), ("Portuguese Republic",)]
    assert first[0].rephrase == ("Who wrote Hamlet?",) and first[0].portability == ()
    assert first[1].portability[0] == Probe(
        "multi_hop", "In which country was the author of Hamlet born?", (("Portugal", "Portuguese Republic"),)
    )
    assert [len(r.portability) for r in second] == [0, 0, 3]


def test_mquake_refuses_a_chain_with_a_fact_that_is_no_edit(tmp_path: Path) -> None:
    case = json.loads((SAMPLES / "mquake_sample.json").read_text(encoding="utf-8"))[0]
    same = json.loads(json.dumps(case))
    same["requested_rewrite"][1]["target_new"]["str"] = "england"
    bare = json.loads(json.dumps(case))
    del bare["requested_rewrite"][0]["subject"]
    single = {**case, "requested_rewrite": case["requested_rewrite"][0]}
    loaded = _load(
        tmp_path, "mquake", case, same, bare, single, {**case, "requested_rewrite": []}, {**case, "new_answer": ""}
    )
    assert (loaded.n_records, loaded.n_loaded, len(loaded.requests)) == (6, 1, 2)
    reasons = [r.reason for r in loaded.rejected]
    for reason, words in zip(
        reasons,
        ["record 1: fact 1: got the new target 'england'", "record 2: fact 0: got no 'subject'", "'counterfact'",
         "no facts", "an empty 'new_answer'"],
        strict=True,
    ):  # fmt: skip
        assert words in reason


def test_wikibigedit_in_both_forms(tmp_path: Path) -> None:
    published = {
        "subject": "Oslo", "update": "Where is oslo?", "ans": " Norway ", "rephrase": "Oslo is where?",
        "personas": "Ahoy, where be Oslo?", "mhop": "Which language?", "mhop_ans": "Norwegian",
        "loc": "Where is Rome?", "loc_ans": "Italy",
    }  # fmt: skip
    renamed = {
        "prompt": "Where is oslo?", "target_new": "Norway", "subject": "Oslo", "rephrase_prompt": "Oslo is where?",
        "locality_prompt": "Where is Rome?", "locality_ground_truth": "Italy",
    }  # fmt: skip
    first, second = _load(tmp_path, "wikibigedit", published, renamed).requests
    assert first.subject == "oslo" and first.target_true is None
    assert [(p.group, p.answers) for p in first.portability] == [
        ("persona", (("Norway",),)),
        ("multi_hop", (("Norwegian",),)),
    ]
    assert replace(first, portability=(), source=None) == replace(second, source=None)
    (no_hop,) = _load(tmp_path, "wikibigedit", {**published, "mhop": None, "mhop_ans": "", "personas": None}).requests
    assert no_hop.portability == ()


def test_qaedit_fields() -> None:
    assert load_editset("qaedit").requests[2] == EditRequest(
        prompt="in which year did the berlin wall fall",
        target_new="1989",
        subject="berlin wall",
        rephrase=("When was the Berlin Wall opened?",),
        locality=(
            Probe("nq", "how many legs does a spider have", (("eight",),)),
            Probe("nq", "what is the largest planet of the solar system", (("Jupiter",),)),
            Probe("nq", "which gas do plants take in", (("carbon dioxide",),)),
        ),
        source="qaedit:3",
    )


@pytest.mark.parametrize("name", names())
def test_a_record_with_nothing_in_it_is_rejected_by_every_set(tmp_path: Path, name: str) -> None:
    (good, *_), _ = read_records(SAMPLES / find(name).sample)
    loaded = _load(tmp_path, name, {}, good, dict.fromkeys(good), dict.fromkeys(good, 7))
    assert [r.index for r in loaded.rejected] == [0, 2, 3]
    assert all("allowed:" in r.reason for r in loaded.rejected)


# --- the Hub, with a folder of the same layout in its place ----------------------------------------------------------


def _stand_in(monkeypatch: pytest.MonkeyPatch, name: str, folder: Path) -> None:
    editset = find(name)
    assert editset.hub is not None
    source = HubSource(str(folder), editset.hub.files, editset.hub.revision)
    monkeypatch.setitem(registry._EDITSETS, name, replace(editset, hub=source))


def test_a_published_file_is_read_byte_for_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = (SAMPLES / "wikidata_sample.json").read_bytes()
    file = tmp_path / "benchmark" / "wiki_counterfact" / "test_cf.json"
    file.parent.mkdir(parents=True)
    file.write_bytes(raw)
    _stand_in(monkeypatch, "wikidata-counterfact", tmp_path)
    monkeypatch.setenv(DATA_VARIABLE, "/nowhere")  # hub goes before the folder
    loaded = load_editset("wikidata-counterfact", hub=True)
    monkeypatch.delenv(DATA_VARIABLE)
    assert loaded.requests == load_editset("wikidata-counterfact").requests
    assert (loaded.origin, loaded.split, loaded.sha256) == ("hub", "test", hashlib.sha256(raw).hexdigest())


def test_a_published_table_is_read_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    import pandas as pd

    rows = json.loads((SAMPLES / "counterfact_sample.json").read_text(encoding="utf-8"))
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        pd.DataFrame(rows).to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    _stand_in(monkeypatch, "counterfact", tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    loaded = load_editset("counterfact:test", hub=True)
    assert loaded.requests == load_editset("counterfact").requests
    assert loaded.origin == "hub" and len(loaded.sha256) == 64
    assert load_editset("counterfact", hub=True).split == "train"


def test_the_hub_file_is_asked_for_at_one_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[str] = []

    class Recorder:
        def download(self, url: str) -> str:
            asked.append(url)
            return str(SAMPLES / "wikidata_sample.json")

    monkeypatch.setattr(datasets, "DownloadManager", Recorder)
    loaded = load_editset("wikidata-counterfact:train", hub=True)
    assert loaded.revision and len(loaded.revision) == 40
    assert asked == [f"hf://datasets/zjunlp/KnowEdit@{loaded.revision}/benchmark/wiki_counterfact/train_cf.json"]
    assert load_editset("wikidata-counterfact", hub=True, revision=COMMIT).revision == COMMIT


def test_a_branch_is_resolved_to_the_commit_it_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    class Api:
        def dataset_info(self, repo: str, revision: str | None = None) -> Any:
            assert (repo, revision) == ("some/set", "main")
            return type("Info", (), {"sha": COMMIT})()

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert resolve_revision(HubSource("some/set", {}), "main") == COMMIT


def test_what_the_hub_cannot_give_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"hub=True for mquake:hard.*\(none\).*Pass path"):
        load_editset("mquake", hub=True)
    with pytest.raises(DataError, match="one source"):
        load_editset("zsre", tmp_path / "x.json", hub=True)
    with pytest.raises(DataError, match="without hub"):
        load_editset("zsre", revision=COMMIT)

    import huggingface_hub

    class Offline:
        def dataset_info(self, repo: str, revision: str | None = None) -> Any:
            raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "HfApi", Offline)
    with pytest.raises(DataError, match=r"no answer for azhx/counterfact.*no route to host"):
        load_editset("counterfact", hub=True)


# --- contradictions --------------------------------------------------------------------------------------------------


def test_contradictions_and_repeats() -> None:
    asked = [("A is", "x"), ("B is", "y"), (" a IS", "X "), ("A is", "z"), ("B is", "y"), ("C is", "x")]
    requests = [EditRequest(prompt, target) for prompt, target in asked]
    (found,) = contradictions(requests)
    assert (found.prompt, found.indices, found.targets) == ("A is", (0, 2, 3), ("x", "X ", "z"))
    assert repeats(requests) == [(0, 2), (1, 4)]
    kept = without_contradictions(requests)
    assert [r.target_new for r in kept] == ["x", "y", "X ", "y", "x"]
    check_requests(kept)


@needs_real
@pytest.mark.parametrize(
    ("name", "count"),
    [("counterfact-flat:edit", 54), ("counterfact-flat:train", 54), ("counterfact-flat:val", 4),
     ("wikidata-counterfact:test", 10), ("wikidata-recent:test", 1), ("counterfact:paraphrases", 1)],
)  # fmt: skip
def test_contradictions_of_the_real_files(name: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(REAL))
    requests = load_editset(name).requests
    assert len(contradictions(requests)) == count
    check_requests(without_contradictions(requests))


# --- guessing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names())
def test_the_schema_of_every_sample_is_guessed(name: str) -> None:
    records, _ = read_records(SAMPLES / find(name).sample)
    assert guess_editset(records) == (name, 1.0)


@needs_real
@pytest.mark.parametrize("name", [f"{name}:{split}" for name in names() for split in find(name).files])
def test_the_schema_of_every_real_file_is_guessed(name: str) -> None:
    editset, _, split = name.partition(":")
    records, _ = read_records(Path(str(REAL)) / find(editset).files[split])
    assert guess_editset(records)[0] == editset


def test_an_unknown_form_is_not_guessed() -> None:
    assert guess_editset([{"a": 1}, 5]) == (None, 0.0)
    assert guess_editset([]) == (None, 0.0)
