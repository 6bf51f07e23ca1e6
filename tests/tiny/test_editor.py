"""The Editor: three modes, trials, reverts, refusals before any work, and nothing left behind by a failure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tokenizers import normalizers
from torch import nn

from roseedit.editor import MODES, Editor
from roseedit.errors import AnatomyError, DeltaError, HparamsError, RequestError, RoseEditError
from roseedit.evaluation.scoring import score
from roseedit.models.load import LoadedModel
from roseedit.requests import EditRequest, Probe

Tiny = Callable[..., LoadedModel]
Digest = Callable[[nn.Module], str]
Attached = Callable[[nn.Module], Any]

SETTINGS: dict[str, Any] = {
    "layers": [1, 2, 3],
    "modules": ["mlp.down", "attn.o"],
    "rank": 3,
    "keep": 0.25,
    "lr": 0.05,
    "steps": 24,
    "prune_start": 2,
    "prune_end": 10,
    "kl_weight": 0.1,
    "preserve_weight": 0.0,
    "anchor_subjects": 1,
    "anchor_relations": 1,
    "anchor_mutations": 0,
    "enough": 1.0,
    "stop_probability": 0.5,
    "train_dtype": "weights",
}
SHORT = {"steps": 3, "prune_start": 1, "prune_end": 2, "anchor_subjects": 0, "anchor_relations": 0}
REQUESTS = [
    EditRequest("The Tower is in the city of", "Rome", subject="Tower", target_true="Paris"),
    EditRequest("Oslo lies in", "the Alps", subject="Oslo", locality=(Probe("near", "Bergen lies in"),)),
    EditRequest("The mother of Li Wei is called", "Eve", subject="Li Wei"),
]


def editor_of(loaded: LoadedModel, **changes: Any) -> Editor:
    """An editor with the settings of these tests."""
    editor = Editor.from_pretrained(loaded.model, loaded.tokenizer, {**SETTINGS, **changes})
    editor.show_progress = False
    return editor


def probabilities(loaded: LoadedModel, requests: Sequence[EditRequest]) -> list[float]:
    """Of each whole target."""
    scores = score(loaded, [(r.prompt, r.target_new) for r in requests])
    return [float(torch.tensor(s.logprob).exp()) for s in scores]


class Fault(Exception):
    """Raised on purpose."""


class Forwards:
    """How often a module was called; call number `at` raises after `look` was called."""

    def __init__(self, at: int = -1, look: Callable[[], None] | None = None) -> None:
        self.n, self.at, self.look = 0, at, look

    def __call__(self, *_: Any) -> None:
        self.n += 1
        if self.n - 1 == self.at:
            if self.look:
                self.look()
            raise Fault


@contextmanager
def counting(module: nn.Module, at: int = -1, look: Callable[[], None] | None = None) -> Iterator[Forwards]:
    """Count the calls of a module inside the block."""
    forwards = Forwards(at, look)
    handle = module.register_forward_pre_hook(forwards)
    try:
        yield forwards
    finally:
        handle.remove()


@pytest.fixture
def loaded(tiny: Tiny) -> LoadedModel:
    """One gated model with separate projections."""
    return tiny("llama")


@pytest.fixture
def editor(loaded: LoadedModel) -> Editor:
    """On that model."""
    return editor_of(loaded)


# --- modes ------------------------------------------------------------------------------------------------------------


def test_joint_makes_one_live_edit_of_all(editor: Editor, digest: Digest) -> None:
    before, base = probabilities(editor.loaded, REQUESTS), digest(editor.loaded.model)
    result = editor.edit(REQUESTS)
    assert (result.mode, result.applied, len(result.edits)) == ("joint", True, 1)
    assert result.edits == editor.edits
    assert result.edits[0].requests == tuple(REQUESTS)
    assert all(new > old for new, old in zip(probabilities(editor.loaded, REQUESTS), before, strict=True))
    assert editor.revert() is result.edits[0]
    assert editor.edits == ()
    assert digest(editor.loaded.model) == base


def test_sequential_makes_one_live_edit_each(editor: Editor, digest: Digest) -> None:
    before, base = probabilities(editor.loaded, REQUESTS), digest(editor.loaded.model)
    result = editor.edit(REQUESTS, mode="sequential")
    assert (result.mode, result.applied) == ("sequential", True)
    assert result.edits == editor.edits
    assert [e.requests for e in result.edits] == [(r,) for r in REQUESTS]
    assert probabilities(editor.loaded, REQUESTS)[-1] > before[-1]
    states = [digest(editor.loaded.model)]
    for _ in REQUESTS:
        editor.revert()
        states.append(digest(editor.loaded.model))
    assert states[-1] == base
    assert len(set(states)) == len(REQUESTS) + 1


def test_the_second_of_a_sequence_is_made_on_the_edited_model(loaded: LoadedModel, tiny: Tiny) -> None:
    second = editor_of(loaded).edit(REQUESTS[:2], mode="sequential", evaluate=False).edits[1]
    stepwise = editor_of(tiny("llama"))
    stepwise.edit(REQUESTS[0], mode="sequential", evaluate=False)
    (again,) = stepwise.edit(REQUESTS[1], mode="sequential", evaluate=False).edits
    (alone,) = editor_of(tiny("llama")).edit(REQUESTS[1], mode="sequential", evaluate=False).edits
    name = again.delta.matrices[0].weight_name

    def values(edit: Any) -> torch.Tensor:
        (m,) = (m for m in edit.delta.matrices if m.weight_name == name)
        out: torch.Tensor = m.a.dense(m.d_in)
        return out

    torch.testing.assert_close(values(second), values(again), atol=1e-5, rtol=0)
    assert not torch.allclose(values(second), values(alone), atol=1e-3)
    assert second.fingerprint == again.fingerprint == alone.fingerprint  # of the base, whatever is live


def test_independent_measures_each_edit_alone_and_leaves_the_model(
    editor: Editor, digest: Digest, attached: Attached
) -> None:
    before = digest(editor.loaded.model), attached(editor.loaded.model)
    result = editor.edit(REQUESTS, mode="independent")
    assert (digest(editor.loaded.model), attached(editor.loaded.model)) == before
    assert (result.mode, result.applied, editor.edits) == ("independent", False, ())
    assert len(result.edits) == len(REQUESTS)
    assert result.metrics is not None
    asked = result.metrics[result.metrics.kind == "prompt"]
    assert asked.request.tolist() == [0, 1, 2]
    for i, (request, edit) in enumerate(zip(REQUESTS, result.edits, strict=True)):
        assert edit.requests == (request,)
        row = asked.iloc[i]
        assert row.p_new_after > row.p_new_before
        editor.apply(edit)
        assert probabilities(editor.loaded, [request])[0] == pytest.approx(row.p_new_after, rel=1e-2)
        assert editor.generate(request.prompt) == row.after
        editor.revert(edit.edit_id)
    assert digest(editor.loaded.model) == before[0]


def test_a_joint_edit_of_six_learns_all(loaded: LoadedModel) -> None:
    requests = [
        *REQUESTS,
        EditRequest("A b c", "d"),
        EditRequest("The city is of", "Paris"),
        EditRequest("Water is made of", "stone", subject="Water"),
    ]
    before = probabilities(loaded, requests)
    editor = editor_of(loaded, steps=60, rank=6, kl_weight=0.0)
    result = editor.edit(requests)
    after = probabilities(loaded, requests)
    assert all(new > old for new, old in zip(after, before, strict=True)), (before, after)
    assert sum(new > 0.1 for new in after) >= 5, (before, after)
    assert result.metrics is not None
    asked = result.metrics[result.metrics.kind == "prompt"]
    assert asked.p_new_after.tolist() == pytest.approx(after, rel=1e-3)
    assert asked.p_new_before.tolist() == pytest.approx(before, rel=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_metrics_only_where_asked(editor: Editor, mode: Any) -> None:
    result = editor.edit(REQUESTS[1], mode=mode, evaluate=False)
    assert result.metrics is None
    assert len(result.edits) == 1
    assert result.edit_id == result.edits[0].edit_id


def test_the_table_has_a_row_per_probe(editor: Editor) -> None:
    result = editor.edit(
        "Oslo lies in",
        "Rome",
        subject="Oslo",
        targets_true="Norway",
        rephrase=["Oslo is in", "Where Oslo is:"],
        locality=["Bergen lies in"],
        portability=[("Oslo's country is", "Italy")],
    )
    assert result.metrics is not None
    assert result.metrics.kind.tolist() == ["prompt", "rephrase", "rephrase", "locality", "portability"]
    assert result.metrics.p_old_after.notna().tolist() == [True, True, True, False, False]
    assert result.metrics.kl.notna().tolist() == [False, False, False, True, False]
    assert result.metrics.kl[3] >= 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kept", ["nothing", "outputs on anchors"])
def test_requests_without_a_subject_or_without_anchors_can_be_made(editor: Editor, mode: Any, kept: str) -> None:
    weight = 30.0 if kept == "outputs on anchors" else 0.0
    bare = [EditRequest("A b c", "d"), EditRequest("E f g", "h")]
    for requests, changes in (
        (bare, {}),
        ([bare[0], REQUESTS[1]], {}),
        (REQUESTS[:2], {"anchor_subjects": 0, "anchor_relations": 0}),
    ):
        hparams = {**SHORT, "anchor_subjects": 1, "anchor_relations": 1, "preserve_weight": weight, **changes}
        one = editor_of(editor.loaded, **hparams)
        with one.trial(requests, mode=mode, evaluate=False) as result:
            assert len(result.edits) == (1 if mode == "joint" else 2)


def test_edit_id_of_several_is_refused(editor: Editor) -> None:
    result = editor.edit(REQUESTS[:2], mode="independent", evaluate=False)
    with pytest.raises(RequestError, match=r"got edit_id of 2 edits; allowed: .* Use result\.edits"):
        _ = result.edit_id


# --- trial, revert, apply ---------------------------------------------------------------------------------------------


def test_trial_is_live_inside_and_gone_after(editor: Editor, digest: Digest) -> None:
    before = digest(editor.loaded.model)
    with editor.trial(REQUESTS[:2], mode="sequential") as result:
        assert editor.edits == result.edits
        assert len(result.edits) == 2
        assert digest(editor.loaded.model) != before
    assert editor.edits == ()
    assert digest(editor.loaded.model) == before


def test_trial_reverts_when_the_block_raises(editor: Editor, digest: Digest) -> None:
    kept = editor.edit(REQUESTS[0], evaluate=False).edits[0]
    before = digest(editor.loaded.model)
    with pytest.raises(Fault), editor.trial(REQUESTS[1], evaluate=False):
        assert digest(editor.loaded.model) != before
        raise Fault
    assert editor.edits == (kept,)
    assert digest(editor.loaded.model) == before


def test_trial_does_not_mind_a_revert_inside(editor: Editor, digest: Digest) -> None:
    before = digest(editor.loaded.model)
    with editor.trial(REQUESTS[0], evaluate=False) as result:
        editor.revert(result.edit_id)
    assert digest(editor.loaded.model) == before


def test_revert_takes_the_newest_or_the_named(editor: Editor, digest: Digest) -> None:
    states = [digest(editor.loaded.model)]
    edits = []
    for request in REQUESTS:
        edits += editor.edit(request, evaluate=False).edits
        states.append(digest(editor.loaded.model))
    assert editor.edits == tuple(edits)
    assert editor.revert() is edits[2]
    assert digest(editor.loaded.model) == states[2]
    assert editor.revert(edits[0].edit_id) is edits[0]
    assert editor.edits == (edits[1],)
    assert digest(editor.loaded.model) not in states
    editor.apply(edits[0])
    assert editor.edits == (edits[1], edits[0])
    assert digest(editor.loaded.model) == states[2]  # the set of live edits decides, not their order
    assert editor.revert() is edits[0]
    assert editor.revert(edits[1]) is edits[1]
    assert digest(editor.loaded.model) == states[0]


def test_revert_of_what_is_not_live_is_refused(editor: Editor, digest: Digest) -> None:
    with pytest.raises(RequestError, match=r"got edit the newest, .*; allowed: no edit is live\. "):
        editor.revert()
    edit = editor.edit(REQUESTS[0], evaluate=False).edits[0]
    before = digest(editor.loaded.model)
    with pytest.raises(RequestError, match=rf"got edit 0123, which is not live; allowed: {edit.edit_id}\. "):
        editor.revert("0123")
    assert digest(editor.loaded.model) == before
    editor.revert(edit.edit_id)
    with pytest.raises(RequestError, match=rf"got edit {edit.edit_id}, which is not live"):
        editor.revert(edit.edit_id)


def test_apply_twice_is_refused(editor: Editor, digest: Digest) -> None:
    edit = editor.edit(REQUESTS[0], evaluate=False).edits[0]
    before = digest(editor.loaded.model)
    with pytest.raises(RequestError, match=rf"got edit {edit.edit_id}, which is live; allowed: .* Revert it first"):
        editor.apply(edit)
    assert editor.edits == (edit,)
    assert digest(editor.loaded.model) == before


def test_the_same_edit_again_is_refused_before_any_work(editor: Editor, digest: Digest) -> None:
    editor.edit(REQUESTS[0], evaluate=False)
    before = digest(editor.loaded.model)
    with counting(editor.loaded.model) as forwards, pytest.raises(RequestError, match=r"got .*; allowed: "):
        editor.edit(REQUESTS[0], evaluate=False)
    assert digest(editor.loaded.model) == before
    assert forwards.n == 0


def test_the_same_request_twice_in_a_sequence_is_refused_before_any_work(editor: Editor, digest: Digest) -> None:
    before = digest(editor.loaded.model)
    with counting(editor.loaded.model) as forwards, pytest.raises(RequestError, match=r"got .*; allowed: "):
        editor.edit([REQUESTS[0], REQUESTS[0]], mode="sequential", evaluate=False)
    assert digest(editor.loaded.model) == before
    assert editor.edits == ()
    assert forwards.n == 0


def test_edits_of_different_weights_have_different_ids(editor: Editor) -> None:
    made = {}
    for mode in MODES:
        (made[mode],) = editor.edit(REQUESTS[0], mode=mode, evaluate=False).edits
        if mode != "independent":
            editor.revert()
    editor.edit(REQUESTS[1], evaluate=False)
    (made["on top"],) = editor.edit(REQUESTS[0], mode="sequential", evaluate=False).edits
    ids: dict[float, str] = {round(edit.delta.norm, 4): edit.edit_id for edit in made.values()}
    assert len(ids) >= 3  # joint, alone, and on top of another edit
    assert len(set(ids.values())) == len(ids), made


def test_an_edit_of_another_model_is_refused(editor: Editor, tiny: Tiny, digest: Digest) -> None:
    edit = editor.edit(REQUESTS[0], evaluate=False).edits[0]
    other = editor_of(tiny("gpt2"))
    before = digest(other.loaded.model)
    with pytest.raises(DeltaError, match=rf"got the model .* not the base of edit {edit.edit_id}: .*; allowed: "):
        other.apply(edit)
    assert digest(other.loaded.model) == before


def test_a_strict_edit_is_bound_to_every_weight_of_its_base(tiny: Tiny) -> None:
    loaded = tiny("llama")
    plain, strict = editor_of(loaded, **SHORT), editor_of(loaded, **SHORT, strict=True)
    loose = plain.edit(REQUESTS[1], evaluate=False).edits[0]
    plain.revert(loose.edit_id)
    bound = strict.edit(REQUESTS[0], evaluate=False).edits[0]
    strict.revert(bound.edit_id)
    assert "strict" not in bound.hparams
    strict.apply(bound)
    strict.revert(bound.edit_id)
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[0, 0] += 1  # outside of what either edit changes
    plain.apply(loose)
    with pytest.raises(DeltaError, match="outside the edited matrices"):
        strict.apply(bound)


def test_save_of_what_is_not_live_is_refused(editor: Editor, tmp_path: Any) -> None:
    with pytest.raises(RequestError, match=r"got edit 0123, .*; allowed: no edit is live"):
        editor.save("0123", tmp_path / "edit")
    assert not (tmp_path / "edit").exists()


def test_generate_takes_one_prompt_or_a_list(editor: Editor) -> None:
    one = editor.generate("Oslo lies in", max_new_tokens=4)
    assert isinstance(one, str)
    assert editor.generate(["Oslo lies in", "A b c"], max_new_tokens=4)[0] == one


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_model_object_without_tokenizer_is_refused(loaded: LoadedModel) -> None:
    with counting(loaded.model) as forwards, pytest.raises(HparamsError, match=r"got a model object without .*allowed"):
        Editor.from_pretrained(loaded.model)
    assert forwards.n == 0


@dataclass(frozen=True)
class Bad:
    """A call that must be refused, and what the message names."""

    says: str
    args: tuple[Any, ...] = ("Oslo lies in", "Rome")
    options: tuple[tuple[str, Any], ...] = ()


LONG = "Oslo lies in " * 40
BAD: dict[str, Bad] = {
    "no requests": Bad("no requests", ([], [])),
    "empty prompt": Bad("prompt ''", ("", "Rome")),
    "blank prompt": Bad("prompt ' \\n'", (" \n", "Rome")),
    "prompt that is no text": Bad("3 as prompt", ([3], ["Rome"])),
    "no targets": Bad("without targets", ("Oslo lies in",)),
    "empty target": Bad("target ''", ("Oslo lies in", "")),
    "blank target": Bad("target ' '", ("Oslo lies in", " ")),
    "subject not in prompt": Bad("'Bergen'", options=(("subject", "Bergen"),)),
    "subject in other letters": Bad("'oslo'", options=(("subject", "oslo"),)),
    "empty subject": Bad("empty subject", options=(("subject", ""),)),
    "target equal to old answer": Bad("equal to the old answer", options=(("targets_true", "Rome"),)),
    "target equal but for case": Bad("equal to the old answer", options=(("targets_true", " rome"),)),
    "target without tokens": Bad("into no tokens", ("Oslo lies in", "\u200b")),
    "fewer targets": Bad("1 targets for 2 prompts", (["A b", "C d"], ["x"])),
    "more targets": Bad("2 targets for 1 prompts", (["A b"], ["x", "y"])),
    "one target for two": Bad("1 targets for 2 prompts", (["A b", "C d"], "x")),
    "fewer subjects": Bad("1 subjects for 2", (["A b", "C d"], ["x", "y"]), (("subjects", ["A"]),)),
    "more old answers": Bad("3 targets_true for 2", (["A b", "C d"], ["x", "y"]), (("targets_true", ["p", "q", "r"]),)),
    "fewer rephrases": Bad("1 rephrase for 2", (["A b", "C d"], ["x", "y"]), (("rephrase", [["A"]]),)),
    "contradiction": Bad("'x' and 'y' as answers", (["A b", "A b "], ["x", "y"])),
    "prompt beyond the window": Bad("at most 128 tokens", (LONG, "Rome")),
    "target beyond the window": Bad("at most 128 tokens", ("Oslo lies in", LONG)),
    "rephrase beyond the window": Bad("at most 128 tokens", options=(("rephrase", [LONG]),)),
    "locality beyond the window": Bad("at most 128 tokens", options=(("locality", [LONG]),)),
    "empty rephrase": Bad("empty prompt as rephrase", options=(("rephrase", [""]),)),
    "empty locality": Bad("empty prompt as locality", options=(("locality", [" "]),)),
    "portability that is no probe": Bad("3 as a portability probe", options=(("portability", [3]),)),
    "unknown mode": Bad("mode 'batch'", options=(("mode", "batch"),)),
    "requests with targets": Bad("together with targets", ([REQUESTS[0]], ["Rome"])),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_bad_input_is_refused_before_the_model_runs(
    editor: Editor, digest: Digest, attached: Attached, name: str
) -> None:
    bad, loaded = BAD[name], editor.loaded
    loaded.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    before = digest(loaded.model), attached(loaded.model)
    with counting(loaded.model) as forwards, pytest.raises(RoseEditError) as caught:
        editor.edit(*bad.args, **dict(bad.options))
    message = str(caught.value)
    assert "got " in message
    assert "; allowed: " in message
    assert bad.says in message
    assert "\n" not in message
    assert forwards.n == 0
    assert editor.edits == ()
    assert (digest(loaded.model), attached(loaded.model)) == before


PLACES: dict[str, tuple[dict[str, Any], str]] = {
    "layer out of range": ({"layers": [4]}, "got layer 4; allowed: 0 to 3. "),
    "unknown module": ({"modules": ["mlp.dwn"]}, "got module 'mlp.dwn', which this model lacks; allowed: "),
    "one known, one unknown": ({"modules": ["mlp.down", "c_proj"]}, "got module 'c_proj', which this model lacks"),
}


@pytest.mark.parametrize("name", sorted(PLACES))
def test_settings_that_do_not_fit_the_model_are_refused(loaded: LoadedModel, digest: Digest, name: str) -> None:
    changes, says = PLACES[name]
    hparams = editor_of(loaded).hparams.replaced(**changes)
    before = digest(loaded.model)
    with counting(loaded.model) as forwards, pytest.raises(AnatomyError) as caught:
        Editor(loaded, hparams)
    assert says in str(caught.value)
    assert "allowed: " in str(caught.value)
    assert forwards.n == 0
    assert digest(loaded.model) == before


def test_a_near_miss_in_a_module_name_gets_a_hint(loaded: LoadedModel) -> None:
    with pytest.raises(AnatomyError, match=r"Did you mean .*'mlp\.down'"):
        editor_of(loaded, modules=["mlp.dwn"])


def test_an_unknown_method_or_key_is_refused(loaded: LoadedModel) -> None:
    with counting(loaded.model) as forwards:
        with pytest.raises(HparamsError, match=r"got method 'RosaLoRA'; allowed: .*Did you mean 'RoseLoRA'"):
            editor_of(loaded, method="RosaLoRA")
        with pytest.raises(HparamsError, match=r"unknown key 'rnk'.*Did you mean 'rank'"):
            editor_of(loaded, rnk=3)
    assert forwards.n == 0


# --- failures ---------------------------------------------------------------------------------------------------------

SMALL = {"max_position_embeddings": 24}  # the window ends generation early
PAIR = [EditRequest("Oslo lies in", "Rome", subject="Oslo", target_true="Paris"), EditRequest("A b c", "d")]


def short_editor(tiny: Tiny, name: str) -> Editor:
    """A few steps, a small window."""
    return editor_of(tiny(name, **SMALL), **SHORT)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("part", ["model", "edited"])
def test_a_forward_that_raises_at_any_call_leaves_nothing(
    tiny: Tiny, digest: Digest, attached: Attached, mode: Any, part: str
) -> None:
    editor = short_editor(tiny, "llama")
    model = editor.loaded.model
    module = model if part == "model" else model.get_submodule("model.layers.2.mlp.down_proj")
    before = digest(model), attached(model)
    with counting(module) as forwards:
        for edit in editor.edit(PAIR, mode=mode).edits:
            if mode != "independent":
                editor.revert(edit.edit_id)
    assert forwards.n > SHORT["steps"]
    left = []
    for n in range(forwards.n):
        with counting(module, n) as failing, pytest.raises(Fault):
            editor.edit(PAIR, mode=mode)
        assert failing.n == n + 1
        if (digest(model), attached(model)) != before or editor.edits:
            left.append(n)
            for edit in editor.edits:
                editor.revert(edit.edit_id)
    assert left == [], f"of {forwards.n} calls"
    assert (digest(model), attached(model)) == before


def test_a_failure_in_the_middle_of_a_sequence_takes_earlier_edits_back(
    tiny: Tiny, digest: Digest, attached: Attached
) -> None:
    editor = short_editor(tiny, "gpt2")
    model = editor.loaded.model
    kept = editor.edit("The city", "Rome", evaluate=False).edits
    requests = [*PAIR, EditRequest("The", "Eve")]
    before = digest(model), attached(model)
    with counting(model) as forwards:
        for edit in reversed(editor.edit(requests, mode="sequential", evaluate=False).edits):
            editor.revert(edit.edit_id)
    seen: list[int] = []
    for n in (forwards.n - 1, forwards.n // 2):
        with (
            counting(model, n, lambda: seen.append(len(editor.edits))),
            pytest.raises(Fault),
        ):
            editor.edit(requests, mode="sequential", evaluate=False)
        assert (digest(model), attached(model)) == before
        assert editor.edits == kept
    assert seen == [3, 2]  # the one before, and those of this sequence that were live already


def test_after_a_failure_the_same_call_works(tiny: Tiny, digest: Digest) -> None:
    editor, undisturbed = short_editor(tiny, "llama"), short_editor(tiny, "llama")
    with counting(editor.loaded.model, 12), pytest.raises(Fault):
        editor.edit(PAIR)
    assert editor.edit(PAIR).edit_id == undisturbed.edit(PAIR).edit_id
    assert digest(editor.loaded.model) == digest(undisturbed.loaded.model)


def test_a_model_in_bfloat16_can_be_edited_with_anchors(tiny: Tiny, digest: Digest) -> None:
    loaded = tiny("llama")
    loaded.model.to(torch.bfloat16)
    before = digest(loaded.model)
    one = editor_of(loaded, **{**SHORT, "anchor_subjects": 1, "preserve_weight": 30.0})
    with one.trial(REQUESTS[1], evaluate=False):
        assert digest(loaded.model) != before
    assert digest(loaded.model) == before
