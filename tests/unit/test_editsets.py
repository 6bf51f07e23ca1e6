"""Data-set loaders: samples, every published oddity, broken files, and the real files where they are at hand."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from roseedit.editsets import DATA_VARIABLE, find, load_editset, loading, names
from roseedit.errors import DataError
from roseedit.requests import EditRequest, Probe, check_requests

SAMPLES = Path(__file__).resolve().parents[2] / "data"
REAL = os.environ.get(DATA_VARIABLE)
needs_real = pytest.mark.skipif(not REAL, reason=f"{DATA_VARIABLE} is not set: no folder with the real sets to read")

WIKI: dict[str, Any] = {
    "subject": "Oslo", "prompt": "Oslo lies in", "target_new": "Peru", "portability": {}, "locality": {},
}  # fmt: skip
ZSRE: dict[str, Any] = {
    "subject": "Oslo", "src": "Where is Oslo?", "pred": "Norway", "rephrase": "Oslo is where?", "alt": "Peru",
    "answers": ["Norway"], "loc": "nq question: how many", "loc_ans": "two", "cond": "",
}  # fmt: skip
COUNTERFACT: dict[str, Any] = {
    "case_id": 7, "pararel_idx": 1,
    "requested_rewrite": {
        "prompt": "{} lies in", "subject": "Oslo", "relation_id": "P17",
        "target_new": {"str": "Peru", "id": "Q419"}, "target_true": {"str": "Norway", "id": "Q20"},
    },
    "paraphrase_prompts": ["Oh.\n\nOslo is in"], "neighborhood_prompts": ["Bergen lies in"],
    "attribute_prompts": ["Lima lies in"], "generation_prompts": ["Oslo", "Oslo"],
}  # fmt: skip
BASE = {"counterfact": COUNTERFACT, "zsre": ZSRE, "wikidata-counterfact": WIKI, "wikidata-recent": WIKI}


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_VARIABLE, raising=False)


def _write(folder: Path, content: Any) -> Path:
    path = folder / "set.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def _one(folder: Path, name: str, record: dict[str, Any]) -> EditRequest:
    loaded = load_editset(name, _write(folder, [record]))
    assert loaded.rejected == ()
    return loaded.requests[0]


def _reason(folder: Path, name: str, record: dict[str, Any]) -> str:
    """The reason for rejecting `record`, behind a good one."""
    loaded = load_editset(name, _write(folder, [BASE[name], record]))
    assert [r.index for r in loaded.rejected] == [1] and len(loaded.requests) == 1
    return loaded.rejected[0].reason


# --- samples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file", "count"),
    [
        ("counterfact", "counterfact_sample.json", 16),
        ("zsre", "zsre_sample.json", 14),
        ("wikidata-counterfact", "wikidata_sample.json", 15),
        ("counterfact-flat", "counterfact_flat_sample.json", 6),
        ("zsre-knowedit", "zsre_knowedit_sample.json", 5),
        ("wikidata-recent", "wikidata_recent_sample.json", 5),
        ("wikibio", "wikibio_sample.json", 4),
        ("mquake", "mquake_sample.json", 5),
        ("wikibigedit", "wikibigedit_sample.json", 5),
        ("qaedit", "qaedit_sample.json", 5),
    ],
)
def test_sample_loads_whole(name: str, file: str, count: int) -> None:
    loaded = load_editset(name)
    assert (loaded.name, loaded.path, loaded.rejected) == (name, SAMPLES / file, ())
    assert len(loaded.requests) == count
    assert loaded.sha256 == hashlib.sha256((SAMPLES / file).read_bytes()).hexdigest()
    check_requests(loaded.requests)
    assert len({r.source for r in loaded.requests}) == count
    assert (loaded.origin, loaded.split, loaded.notes, loaded.revision) == ("sample", "sample", (), None)
    assert all(r.subject for r in loaded.requests)


def test_the_first_samples_have_every_kind_of_probe() -> None:
    for name in ("counterfact", "zsre", "wikidata-counterfact"):
        assert all(r.target_true and r.rephrase and r.locality for r in load_editset(name).requests)


@pytest.mark.parametrize("file", [find(name).sample for name in names()])
def test_sample_has_one_record_a_line(file: str) -> None:
    text = (SAMPLES / file).read_text(encoding="utf-8")
    lines = text.splitlines()
    assert lines[0] == "[" and lines[-1] == "]" and text.endswith("\n")
    assert [json.loads(line.rstrip(",")) for line in lines[1:-1]] == json.loads(text)


def test_counterfact_sample_keeps_the_published_shape() -> None:
    for record in json.loads((SAMPLES / "counterfact_sample.json").read_text(encoding="utf-8")):
        assert list(record) == list(COUNTERFACT)
        assert len(record["paraphrase_prompts"]) == 2 and len(record["neighborhood_prompts"]) >= 3
        assert len(record["attribute_prompts"]) >= 2 and len(record["generation_prompts"]) >= 2
        assert all(record["requested_rewrite"]["subject"] in text for text in record["paraphrase_prompts"])


def test_counterfact_fields() -> None:
    river = next(r for r in load_editset("counterfact").requests if r.subject == "Danube")
    assert river == EditRequest(
        prompt="The river Danube ends its course in the",
        target_new="North Sea",
        subject="Danube",
        target_true="Black Sea",
        rephrase=(
            "The bell rang twice. The water of the Danube flows into the",
            "The mouth of the Danube lies on the",
        ),
        locality=(
            Probe("neighborhood", "The river Dnieper ends its course in the", (("Black Sea",),)),
            Probe("neighborhood", "The river Dniester ends its course in the", (("Black Sea",),)),
            Probe("neighborhood", "The river Southern Bug ends its course in the", (("Black Sea",),)),
            Probe("attribute", "The river Elbe ends its course in the", (("North Sea",),)),
            Probe("attribute", "The river Weser ends its course in the", (("North Sea",),)),
            Probe("attribute", "The river Thames ends its course in the", (("North Sea",),)),
        ),
        source="counterfact:100016",
    )


def test_zsre_fields() -> None:
    assert load_editset("zsre").requests[0] == EditRequest(
        prompt="Who was a founder of Apple Inc.?",
        target_new="Larry Page",
        subject="Apple Inc.",
        target_true="Steve Jobs",
        rephrase=("Apple Inc. was started by whom?",),
        locality=(Probe("nq", "nq question: how many days are there in a leap year", (("366",),)),),
        portability=(Probe("one_hop", "In which US state was the founder of Apple Inc. born?", (("Michigan",),)),),
        source="zsre:0",
    )


def test_wikidata_fields() -> None:
    assert load_editset("wikidata-counterfact").requests[0] == EditRequest(
        prompt="The Eiffel Tower is located in the city of",
        target_new="Rome",
        subject="Eiffel Tower",
        target_true="Paris",
        rephrase=("The city where the Eiffel Tower stands is",),
        locality=(
            Probe(
                "Relation_Specificity",
                "The Eiffel Tower was designed by the company of",
                (("Gustave Eiffel", "Alexandre Gustave Eiffel", "Eiffel"),),
            ),
            Probe(
                "Relation_Specificity",
                "The metal from which the Eiffel Tower is built is",
                (("wrought iron", "iron", "puddled iron"),),
            ),
        ),
        portability=(
            Probe(
                "Reasoning",
                "The Eiffel Tower is located in the country of",
                (("Italy", "Italian Republic", "Italia"),),
            ),
            Probe("Subject_Aliasing", "La Tour Eiffel is located in the city of", (("Rome", "Roma"),)),
        ),
        source="wikidata-counterfact:0",
    )


# --- oddities of the published files ---------------------------------------------------------------------------------


def test_counterfact_prompts_pass_unchanged_and_lists_may_be_absent(tmp_path: Path) -> None:
    request = _one(tmp_path, "counterfact", COUNTERFACT)
    assert request.rephrase == ("Oh.\n\nOslo is in",) and request.source == "counterfact:7"
    bare = _one(tmp_path, "counterfact", {"requested_rewrite": COUNTERFACT["requested_rewrite"]})
    assert (bare.rephrase, bare.locality, bare.source) == ((), (), "counterfact:0")


@pytest.mark.parametrize("template", ["Oslo lies in", "{} and {} lie in"])
def test_counterfact_template_needs_one_gap(tmp_path: Path, template: str) -> None:
    rewrite = {**COUNTERFACT["requested_rewrite"], "prompt": template}
    assert "{} once" in _reason(tmp_path, "counterfact", {**COUNTERFACT, "requested_rewrite": rewrite})


def test_counterfact_braces_in_a_subject_are_only_text(tmp_path: Path) -> None:
    rewrite = {**COUNTERFACT["requested_rewrite"], "prompt": "{} in {1} lies in", "subject": "O{0}slo"}
    assert _one(tmp_path, "counterfact", {"requested_rewrite": rewrite}).prompt == "O{0}slo in {1} lies in"


def test_zsre_without_portability_and_with_blanks_around_the_target(tmp_path: Path) -> None:
    request = _one(tmp_path, "zsre", {**ZSRE, "alt": " Peru "})
    assert (request.target_new, request.portability) == ("Peru", ())
    assert request.locality == (Probe("nq", "nq question: how many", (("two",),)),)


@pytest.mark.parametrize("alt", ["Norway", " norway", "Norge"])
def test_zsre_target_already_true_by_any_answer(tmp_path: Path, alt: str) -> None:
    assert "equal to the old answer" in _reason(
        tmp_path, "zsre", {**ZSRE, "alt": alt, "answers": ["Kingdom", "Norway", "Norge"]}
    )


def test_zsre_empty_target_and_unanswered_hop(tmp_path: Path) -> None:
    assert "the target ''" in _reason(tmp_path, "zsre", {**ZSRE, "alt": " "})
    hop = {"Recalled Relation": "", "New Question": "Which?", "New Answer": ""}
    assert "New Answer" in _reason(tmp_path, "zsre", {**ZSRE, "portability": hop})


@pytest.mark.parametrize(
    ("truth", "expected"),
    [
        ("Norway", "Norway"),
        (["Norway", "Norge"], "Norway"),
        ([["Norway", "Norge"], ["Europe"]], "Norway"),
        ("", None),
        ([], None),
        ([[]], None),
        (None, None),
    ],
)
def test_wikidata_forms_of_the_old_answer(tmp_path: Path, truth: Any, expected: str | None) -> None:
    assert _one(tmp_path, "wikidata-counterfact", {**WIKI, "ground_truth": truth}).target_true == expected


@pytest.mark.parametrize(
    ("truth", "expected"),
    [
        ("Inca", (("Inca",),)),
        (["Inca", "Quechua"], (("Inca", "Quechua"),)),
        ([["Inca", "Quechua"], [" Aymara"]], (("Inca", "Quechua"), ("Aymara",))),
        (["Inca", ["Aymara", ""]], (("Inca",), ("Aymara",))),
    ],
)
def test_wikidata_forms_of_an_answer(tmp_path: Path, truth: Any, expected: tuple[tuple[str, ...], ...]) -> None:
    items = [{"prompt": "They speak", "ground_truth": truth}]
    record = {**WIKI, "portability": {"Reasoning": items}, "locality": {"Relation_Specificity": items}}
    request = _one(tmp_path, "wikidata-counterfact", record)
    assert request.portability == (Probe("Reasoning", "They speak", expected),)
    assert request.locality == (Probe("Relation_Specificity", "They speak", expected),)


def test_wikidata_absent_keys_and_empty_objects(tmp_path: Path) -> None:
    bare = {key: WIKI[key] for key in ("subject", "prompt", "target_new")}
    expected = EditRequest("Oslo lies in", "Peru", subject="Oslo", source="wikidata-recent:0")
    assert _one(tmp_path, "wikidata-recent", bare) == expected
    assert _one(tmp_path, "wikidata-recent", {**WIKI, "rephrase": "", "portability": None}) == expected


@pytest.mark.parametrize("key", ["rephrase", "rephrase_prompt"])
def test_wikidata_both_names_of_the_rewording(tmp_path: Path, key: str) -> None:
    assert _one(tmp_path, "wikidata-counterfact", {**WIKI, key: "In which land is Oslo"}).rephrase


def test_forgetfulness_keeps_its_answers_only_where_they_are_sound(tmp_path: Path) -> None:
    item = {"prompt": "Oslo, which is not in Peru, is in", "ground_truth": [["Peru"]]}
    record = {**WIKI, "locality": {"Forgetfulness": [item], "Relation_Specificity": [item]}}
    kept = _one(tmp_path, "wikidata-counterfact", record).locality
    asked = _one(tmp_path, "wikidata-recent", record).locality
    assert [p.answers for p in kept] == [(("Peru",),), (("Peru",),)]
    assert [(p.group, p.answers) for p in asked] == [("Forgetfulness", ()), ("Relation_Specificity", (("Peru",),))]


# --- records that are no edit ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"subject": None}, "null under 'subject'"),
        ({"subject": " "}, "an empty subject"),
        ({"subject": "Bergen"}, "which is not in the prompt"),
        ({"prompt": ""}, "the prompt ''"),
        ({"prompt": 3}, "the number 3 under 'prompt'"),
        ({"target_new": ""}, "the target ''"),
        ({"ground_truth": "peru "}, "equal to the old answer"),
        ({"ground_truth": {"a": 1}}, "an object under 'ground_truth'"),
        ({"ground_truth": [["a", 1]]}, "the number 1 under 'ground_truth'"),
        ({"locality": []}, "a list under 'locality'"),
        ({"locality": {"Forgetfulness": ["text"]}}, "text in 'Forgetfulness'"),
        ({"locality": {"Forgetfulness": "text"}}, "text under 'Forgetfulness'"),
        ({"locality": {"Forgetfulness": [{"prompt": " "}]}}, "an empty prompt"),
        ({"portability": {"Reasoning": [{"prompt": "So", "ground_truth": []}]}}, "without an answer"),
    ],
)
def test_broken_record_is_rejected_with_its_reason(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    reason = _reason(tmp_path, "wikidata-counterfact", {**WIKI, **change})
    assert reason.startswith("record 1: ") and words in reason and "allowed:" in reason


@pytest.mark.parametrize(
    ("name", "key"),
    [("wikidata-counterfact", "subject"), ("wikidata-counterfact", "prompt"), ("wikidata-counterfact", "target_new"),
     ("zsre", "src"), ("zsre", "alt"), ("counterfact", "requested_rewrite")],
)  # fmt: skip
def test_missing_key_is_named(tmp_path: Path, name: str, key: str) -> None:
    record = {k: v for k, v in BASE[name].items() if k != key}
    assert f"no {key!r}" in _reason(tmp_path, name, record)


def test_limit_counts_records_of_the_file(tmp_path: Path) -> None:
    path = _write(tmp_path, [WIKI, {**WIKI, "subject": "Bergen"}, WIKI])
    loaded = load_editset("wikidata-recent", path, limit=2)
    assert (len(loaded.requests), [r.index for r in loaded.rejected]) == (1, [1])
    assert len(load_editset("counterfact", limit=3).requests) == 3
    with pytest.raises(DataError, match="limit=0"):
        load_editset("counterfact", limit=0)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"{not json", "not JSON"),
        (b'{"a": 1}\n{"a": 2}\n', "2 records of which none can be used"),
        (b"\xff\xfe\x00", "not JSON"),
        (b'{"a": 1}', "got an object; allowed: a JSON array"),
        (b"[5]", "record 0: got the number 5; allowed: a JSON object"),
        (b"[]", "an empty array"),
        (b'[{"subject": "x"}]', "1 records of which none can be used"),
    ],
)
def test_broken_file_is_refused_by_name(tmp_path: Path, raw: bytes, words: str) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(raw)
    with pytest.raises(DataError) as caught:
        load_editset("zsre", path)
    assert str(path) in str(caught.value) and words in str(caught.value)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(DataError, match="a readable file"):
            load_editset("zsre", str(path))


def test_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    path = tmp_path / "bom.json"
    path.write_text(json.dumps([ZSRE]), encoding="utf-8-sig")
    assert len(load_editset("zsre", path).requests) == 1


def test_sources_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_VARIABLE, "")
    assert load_editset("zsre").path == SAMPLES / "zsre_sample.json"
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    with pytest.raises(DataError, match=r"path=.*ROSEEDIT_DATA.*zsre_mend_eval_portability_gpt4"):
        load_editset("zsre")
    real = tmp_path / "zsre" / "zsre_mend_eval_portability_gpt4.json"
    real.parent.mkdir()
    real.write_text(json.dumps([ZSRE]), encoding="utf-8")
    assert load_editset("zsre").path == real
    assert load_editset("zsre", SAMPLES / "zsre_sample.json").path == SAMPLES / "zsre_sample.json"


def test_without_a_sample_both_remedies_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "samples_folder", lambda: tmp_path)
    for name in names():
        with pytest.raises(DataError, match=r"Pass path=\.\.\. or let ROSEEDIT_DATA name a folder"):
            load_editset(name)


def test_unknown_name_gets_a_hint() -> None:
    with pytest.raises(DataError, match="Did you mean 'counterfact'"):
        load_editset("counterfacts")
    with pytest.raises(DataError, match=r"Known names: .*zsre"):
        load_editset("qqq")
    assert len(names()) == 10


def test_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    file = tmp_path / "zsre" / "zsre_mend_train_1k.json"
    file.parent.mkdir()
    file.write_text(json.dumps([ZSRE]), encoding="utf-8")
    for loaded in (
        load_editset("zsre", split="train"),
        load_editset("zsre:train"),
        load_editset("zsre:train", split="train"),
    ):
        assert (loaded.path, loaded.split, loaded.origin, loaded.n_records) == (file, "train", "data folder", 1)
    with pytest.raises(DataError, match="Did you mean 'train'"):
        load_editset("zsre:trian")
    with pytest.raises(DataError, match="one split"):
        load_editset("zsre:train", split="eval")
    monkeypatch.delenv(DATA_VARIABLE)
    with pytest.raises(DataError, match="the split 'train' of 'zsre' without ROSEEDIT_DATA"):
        load_editset("zsre:train")


def test_json_lines_and_the_place_of_a_broken_line(tmp_path: Path) -> None:
    lines = [
        json.dumps(ZSRE, ensure_ascii=False),
        "{broken",
        "5",
        "",
        json.dumps({**ZSRE, "src": "Where\u2028is Oslo?"}),
    ]
    for name in ("set.jsonl", "set.json"):
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        loaded = load_editset("zsre", path)
        assert (loaded.n_records, loaded.n_loaded, len(loaded.requests)) == (4, 2, 2)
        assert [r.index for r in loaded.rejected] == [1, 2]
        assert "a line that is not JSON" in loaded.rejected[0].reason and "the number 5" in loaded.rejected[1].reason


def test_every_record_is_loaded_or_rejected(tmp_path: Path) -> None:
    loaded = load_editset("zsre", _write(tmp_path, [5, ZSRE, {**ZSRE, "alt": ""}, ZSRE, None]), limit=4)
    assert (loaded.n_records, loaded.n_loaded, [r.index for r in loaded.rejected]) == (4, 2, [0, 2])


# --- the real files --------------------------------------------------------------------------------------------------

# set and split, records loaded, already true, without a target
REAL_COUNTS = [
    ("counterfact:full", 605, 0, 0),
    ("counterfact:paraphrases", 962, 0, 0),
    ("counterfact-flat:edit", 9418, 0, 0),
    ("counterfact-flat:train", 9445, 0, 0),
    ("counterfact-flat:val", 1809, 0, 0),
    ("zsre:portability", 621, 17, 0),
    ("zsre:eval", 2306, 98, 0),
    ("zsre:train", 976, 21, 2),
    ("zsre-knowedit:test", 864, 33, 0),
    ("wikidata-recent:test", 866, 0, 0),
    ("wikidata-recent:train", 570, 0, 0),
    ("wikidata-counterfact:test", 519, 0, 0),
    ("wikidata-counterfact:train", 1421, 6, 0),
    ("wikibio:test", 306, 0, 0),
    ("wikibio:train", 461, 0, 0),
    ("mquake:hard", 363, 0, 0),
    ("wikibigedit:3k", 2999, 0, 0),
    ("qaedit:inter", 989, 0, 0),
]


@needs_real
@pytest.mark.parametrize(("name", "accepted", "already_true", "no_target"), REAL_COUNTS)
def test_real_counts_and_every_rejection_is_justified(
    name: str, accepted: int, already_true: int, no_target: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(REAL))
    loaded = load_editset(name)
    raw = json.loads(loaded.path.read_text(encoding="utf-8"))
    # read the raw record here, not through the loader: a wrong rejection must not confirm itself
    empty = {i for i, r in enumerate(raw) if any(not target for target, _ in _raw_edits(r))}
    noop = {i for i, r in enumerate(raw) if any(target in truths for target, truths in _raw_edits(r))} - empty
    assert {r.index for r in loaded.rejected} == noop | empty
    assert loaded.n_records == len(raw) and loaded.notes == ()
    assert len(loaded.requests) == sum(len(_raw_edits(r)) for i, r in enumerate(raw) if i not in noop | empty)
    _skip_other_revision(len(raw), accepted + already_true + no_target)
    assert (loaded.n_loaded, len(noop), len(empty)) == (accepted, already_true, no_target)


def test_every_local_file_of_every_set_is_counted() -> None:
    assert [name for name, *_ in REAL_COUNTS] == [f"{name}:{split}" for name in names() for split in find(name).files]


def _raw_edits(record: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """New target and true answers of each edit of a raw record, in lower case."""
    if "requested_rewrite" in record:
        facts = record["requested_rewrite"]
        pairs = [
            (x["target_new"]["str"], [x["target_true"]["str"]]) for x in (facts if isinstance(facts, list) else [facts])
        ]
    else:
        key = next(k for k in ("alt", "labels", "target", "target_new") if k in record)
        truths = next((record[k] for k in ("answers", "ground_truth", "target_true") if k in record), [])
        pairs = [(record[key], [truths] if isinstance(truths, str) else truths)]
    return [(target.strip().lower(), [text.strip().lower() for text in truths]) for target, truths in pairs]


@needs_real
@pytest.mark.parametrize(
    ("name", "records", "locality", "portability"),
    [
        ("counterfact", 605, {"neighborhood": 6050, "attribute": 6050}, {}),
        ("zsre", 638, {"nq": 621}, {"one_hop": 621}),
        (
            "wikidata-counterfact",
            519,
            {"Relation_Specificity": 3432, "Forgetfulness": 286},
            {"Logical_Generalization": 244, "Reasoning": 1311, "Subject_Aliasing": 1495},
        ),
        (
            "wikidata-recent",
            866,
            {"Relation_Specificity": 3648, "Forgetfulness": 564},
            {"Logical_Generalization": 516, "Reasoning": 6562, "Subject_Aliasing": 831},
        ),
        ("counterfact-flat", 9418, {"neighborhood": 9418}, {"easyedit_rephrase": 9418}),
        ("wikibio", 306, {"Relation_Specificity": 612}, {}),
        ("mquake", 363, {}, {"multi_hop": 1089}),
        ("wikibigedit", 2999, {"other_subject": 2999}, {}),
        ("qaedit", 989, {"nq": 4945}, {}),
    ],
)
def test_real_probe_counts(
    name: str, records: int, locality: dict[str, int], portability: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(REAL))
    loaded = load_editset(name)
    requests = loaded.requests
    _skip_other_revision(loaded.n_records, records)
    assert _by_group([p for r in requests for p in r.locality]) == locality
    assert _by_group([p for r in requests for p in r.portability]) == portability


def _skip_other_revision(found: int, expected: int) -> None:
    if found != expected:
        pytest.skip(f"another revision of the file: {found} records, the stated counts are for {expected}")


def _by_group(probes: list[Probe]) -> dict[str, int]:
    groups = [probe.group for probe in probes]
    return {group: groups.count(group) for group in set(groups)}
