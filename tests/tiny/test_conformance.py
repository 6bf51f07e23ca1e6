"""One table of checks that every architecture and every registered method passes, through the public door.

An edit is made once per architecture and method; each check then gets a fresh, equal model, so no check can disturb
another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from roseedit.editor import Editor
from roseedit.edits.bank import bank_of
from roseedit.edits.edit import Edit
from roseedit.errors import DeltaError
from roseedit.evaluation.scoring import score
from roseedit.methods import changes_weights, find_method, method_names
from roseedit.models.encoding import encode_prompt, pad_right
from roseedit.models.load import LoadedModel
from roseedit.models.replay import capture_activations, replaying, run_body
from roseedit.requests import EditRequest

Digest = Callable[[nn.Module], str]
Attached = Callable[[nn.Module], Any]
Build = Callable[..., LoadedModel]

REQUEST = EditRequest("The Tower is in the city of", "Rome", subject="Tower", target_true="Paris")
OTHER = EditRequest("A b c lies in", "Paris", subject="A b c")
PROMPTS = (REQUEST.prompt, "Oslo lies in", "A b c d e f g")
# Small settings per method; a method without an entry runs with its defaults.
SETTINGS: dict[str, dict[str, Any]] = {
    "RoseLoRA": {
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
    },
    "RoseLoRA, neurons": {
        "method": "RoseLoRA",
        "layers": [2],
        "lr": 0.2,
        "steps": 40,
        "stop_probability": 0.5,
        "rewrites": 2,
        "rewordings": 0,
        "gate_ridge": 0.03,
        "gate_threshold": -0.3,
        "gate_margin": 0.6,
        "anchor_subjects": 3,
        "anchor_relations": 6,
        "anchor_known": 0,
        "anchor_frames": 7,
        "pool": 1.0,
        "train_dtype": "weights",
    },
    "FT-M": {"layers": [1, 2], "lr": 5e-3, "steps": 12, "norm_constraint": "entry", "norm_limit": 0.05},
    "FT-L": {"layers": [1], "lr": 5e-3, "steps": 12},
    "LoRA": {"layers": [1, 2, 3], "modules": ["mlp.down", "attn.o"], "rank": 3, "lr": 2e-2, "steps": 12},
    "AdaLoRA": {
        "layers": [1, 2, 3],
        "modules": ["mlp.down", "attn.o"],
        "rank": 2,
        "init_rank": 4,
        "lr": 5e-2,
        "steps": 16,
        "allocate_start": 3,
        "allocate_end": 9,
    },
}
ATOL = 2e-4  # W x + B (A x) against (W + B A) x: sums in another order, logits of size 10
GROWN = 1e-2  # after training in batches of other shapes: Adam makes much of differences in tiny gradients
MADE: dict[tuple[str, str], Edit] = {}


@dataclass
class Case:
    """One architecture with one method.

    Attributes:
        editor: On a fresh model that carries nothing.
        edit: Made on an equal model.
        build: Makes another equal model.
        digest: SHA-256 of a model's state.
        folder: An empty place.
    """

    editor: Editor
    edit: Edit
    build: Callable[[], LoadedModel]
    digest: Digest
    folder: Path

    @property
    def loaded(self) -> LoadedModel:
        """The editor's model."""
        return self.editor.loaded

    def another(self) -> Editor:
        """An editor on a second, equal model."""
        loaded = self.build()
        return Editor.from_pretrained(loaded.model, loaded.tokenizer, self.editor.hparams)


def editor_on(loaded: LoadedModel, method: str) -> Editor:
    """Through the door that users take."""
    settings = {"method": method, **SETTINGS.get(method, {})}
    editor = Editor.from_pretrained(loaded.model, loaded.tokenizer, settings)
    editor.show_progress = False
    return editor


def ids_of(loaded: LoadedModel, prompts: Sequence[str] = PROMPTS) -> tuple[Tensor, Tensor]:
    """The prompts as a right-padded batch."""
    return pad_right([encode_prompt(loaded.tokenizer, p).ids for p in prompts], loaded.pad_id, loaded.device)


@torch.no_grad()
def logits_of(loaded: LoadedModel, model: nn.Module | None = None) -> Tensor:
    """Logits at the real tokens."""
    ids, mask = ids_of(loaded)
    return run_body(loaded.model if model is None else model, ids, mask)[mask.bool()]


def probability(loaded: LoadedModel) -> float:
    """Of the whole target after the prompt."""
    return math.exp(score(loaded, [(REQUEST.prompt, REQUEST.target_new)])[0].logprob)


def check_anatomy(case: Case) -> None:
    anatomy = case.loaded.anatomy
    assert anatomy.n_layers == case.loaded.model.config.num_hidden_layers
    for role in ("mlp.down", "attn.o"):
        assert [p.layer for p in anatomy.projections if p.role == role] == list(range(anatomy.n_layers))
    known = {p.weight_name: p for p in anatomy.projections}
    parameters = dict(case.loaded.model.named_parameters())
    assert case.edit.delta.matrices
    for m in case.edit.delta.matrices:
        p = known[m.weight_name]
        assert (m.d_in, m.d_out, m.transposed) == (p.d_in, p.d_out, p.transposed)
        assert parameters[m.weight_name].shape == ((p.d_in, p.d_out) if p.transposed else (p.d_out, p.d_in))


@torch.no_grad()
def check_replay(case: Case) -> None:
    edited = {m.weight_name for m in case.edit.delta.matrices}
    layer = min(p.layer for p in case.loaded.anatomy.projections if p.weight_name in edited)
    model, anatomy = case.loaded.model, case.loaded.anatomy
    ids, mask = ids_of(case.loaded)
    stored = capture_activations(model, anatomy, layer, ids, mask)
    before = logits_of(case.loaded)
    case.editor.apply(case.edit)
    whole = logits_of(case.loaded)
    with replaying(model, anatomy, layer, stored):  # stored before the edit: nothing below that layer is edited
        again = run_body(model, ids, mask)[mask.bool()]
    torch.testing.assert_close(again, whole, atol=1e-5, rtol=0)
    assert (whole - before).abs().max() > 0.1


def check_edit(case: Case) -> None:
    result = case.another().edit(REQUEST)
    assert result.applied
    assert result.metrics is not None
    row = result.metrics.iloc[0]
    assert row["p_new_after"] > 1.5 * row["p_new_before"]
    assert result.edits[0].edit_id == case.edit.edit_id
    before = probability(case.loaded)
    case.editor.apply(case.edit)
    assert before == pytest.approx(row["p_new_before"], rel=1e-3)
    assert probability(case.loaded) == pytest.approx(row["p_new_after"], rel=1e-2)


def check_density(case: Case) -> None:
    weights = {n: p.detach().clone() for n, p in case.loaded.model.named_parameters()}
    case.editor.apply(case.edit)
    matrices = {m.weight_name: m for m in case.edit.delta.matrices}
    touched = total = 0
    for name, p in case.loaded.model.named_parameters():
        changed = int((p != weights[name]).sum())
        if name not in matrices:
            assert changed == 0, name
            continue
        m = matrices[name]
        assert (changed > 0) == (m.density > 0)  # a method may give a matrix no rank at all
        assert changed <= m.density * p.numel() + 1e-6 <= m.density_bound * p.numel() + 2e-6
        touched, total = touched + changed, total + p.numel()
    delta = case.edit.delta
    assert touched
    assert touched / total <= delta.density + 1e-9 <= delta.density_bound + 2e-9
    assert delta.density_bound <= 1
    assert delta.density_bound < 1 or SETTINGS.get(case.edit.hparams["method"], {}).get("keep") is None


def check_revert(case: Case) -> None:
    before = case.digest(case.loaded.model)
    case.editor.apply(case.edit)
    assert case.digest(case.loaded.model) != before
    case.editor.revert(case.edit.edit_id)
    assert case.digest(case.loaded.model) == before


def check_save_and_load(case: Case) -> None:
    case.editor.apply(case.edit)
    case.editor.save(case.edit.edit_id, case.folder / "edit")
    other = case.another()
    loaded = other.load(case.folder / "edit")
    assert other.edits == (loaded,)
    assert loaded.edit_id == case.edit.edit_id
    assert loaded.requests == case.edit.requests
    assert case.digest(other.loaded.model) == case.digest(case.loaded.model)
    assert torch.equal(logits_of(other.loaded), logits_of(case.loaded))


def check_wrong_base(case: Case) -> None:
    case.editor.apply(case.edit)
    case.editor.save(case.edit.edit_id, case.folder / "edit")
    other = case.another()
    weight = other.loaded.model.get_parameter(case.edit.delta.matrices[0].weight_name)
    with torch.no_grad():
        weight[0, 0] = torch.nextafter(weight[0, 0], weight.new_tensor(torch.inf))
    before = case.digest(other.loaded.model)
    named = f"got the model '{other.loaded.name}', which is not the base of edit {case.edit.edit_id}: "
    for refused in (lambda: other.load(case.folder / "edit"), lambda: other.apply(case.edit)):
        with pytest.raises(DeltaError) as caught:
            refused()
        assert str(caught.value).startswith(named)
        assert "; allowed: " in str(caught.value)
    assert other.edits == ()
    assert case.digest(other.loaded.model) == before


@torch.no_grad()
def check_bank(case: Case) -> None:
    bank = bank_of(case.loaded, [case.edit.delta])
    # An edit may rightly be silent everywhere else: each row begins with what it is about.
    ids, mask = ids_of(case.loaded, [REQUEST.prompt + tail for tail in ("", " and more", " once")])
    plain = run_body(case.loaded.model, ids, mask)
    with bank.on_rows(torch.tensor([0, -1, 0])):
        mixed = run_body(case.loaded.model, ids, mask)
    case.editor.apply(case.edit)
    applied = run_body(case.loaded.model, ids, mask)
    for row, (want, other) in enumerate([(applied, plain), (plain, applied), (applied, plain)]):
        real = mask[row].bool()
        torch.testing.assert_close(mixed[row][real], want[row][real], atol=ATOL, rtol=0)
        assert (mixed[row][real] - other[row][real]).abs().max() > 50 * ATOL


def check_lora(case: Case) -> None:
    peft = pytest.importorskip("peft")
    matrices = case.edit.delta.matrices
    turned = {m.transposed for m in matrices}
    assert len(turned) == 1
    config = peft.LoraConfig(
        r=matrices[0].rank,
        lora_alpha=matrices[0].rank,
        lora_dropout=0.0,
        target_modules=[m.weight_name.removesuffix(".weight") for m in matrices],
        fan_in_fan_out=turned.pop(),
    )
    wrapped = peft.get_peft_model(case.build().model, config).eval()
    lora = case.edit.delta.to_lora()
    said = peft.set_peft_model_state_dict(wrapped, lora)
    assert not said.unexpected_keys
    assert not [key for key in said.missing_keys if "lora_" in key]
    assert len(lora) == 2 * len(matrices)
    before = logits_of(case.loaded)
    case.editor.apply(case.edit)
    applied = logits_of(case.loaded)
    torch.testing.assert_close(logits_of(case.loaded, wrapped), applied, atol=ATOL, rtol=0)
    assert (applied - before).abs().max() > 50 * ATOL


@torch.no_grad()
def check_neighbours(case: Case) -> None:
    """An edit that was made among others does what the same edit made alone does, and what neighbours do not."""
    loaded, hparams = case.loaded, case.editor.hparams
    before = case.digest(loaded.model)
    with torch.enable_grad():
        method = find_method(hparams.method)
        made = [
            m.delta for group in ([OTHER, REQUEST], [REQUEST]) for m in method.fit(loaded, group, hparams, joint=False)
        ]
    assert case.digest(loaded.model) == before
    ids, mask = ids_of(loaded)
    bank, real = bank_of(loaded, made), mask.bool()
    said = []
    for edit in range(3):
        with bank.on_rows(torch.full((len(ids),), edit)):
            said.append(run_body(loaded.model, ids, mask)[real])
    torch.testing.assert_close(said[1], said[2], atol=GROWN, rtol=0)
    assert (said[1] - said[0]).abs().max() > 20 * GROWN


class Broken(Exception):
    """Raised by a forward pass of these tests."""


def check_failing_forward(case: Case) -> None:
    model, layers = case.loaded.model, case.loaded.model.get_submodule(case.loaded.anatomy.layers_name)
    before, flags = case.digest(model), [p.requires_grad for p in model.parameters()]
    for at in (1, 4):
        calls = iter(range(1, 1000))

        def fail(_module: nn.Module, _args: Any, at: int = at, calls: Any = calls) -> None:
            if next(calls) == at:
                raise Broken

        handle = layers[-1].register_forward_pre_hook(fail)
        with pytest.raises(Broken):
            case.editor.edit(REQUEST, evaluate=False)
        handle.remove()
        assert case.editor.edits == ()
        assert case.digest(model) == before
        assert [p.requires_grad for p in model.parameters()] == flags


CHECKS: dict[str, Callable[[Case], None]] = {
    "anatomy": check_anatomy,
    "replay": check_replay,
    "edit": check_edit,
    "density": check_density,
    "revert": check_revert,
    "save and load": check_save_and_load,
    "wrong base": check_wrong_base,
    "bank": check_bank,
    "lora": check_lora,
    "neighbours": check_neighbours,
    "failing forward": check_failing_forward,
}


@pytest.fixture(params=[*(name for name in method_names() if changes_weights(name)), "RoseLoRA, neurons"])
def case(request: pytest.FixtureRequest, any_model: LoadedModel, tiny: Build, digest: Digest, tmp_path: Path) -> Case:
    """Every architecture with every method."""
    name = any_model.name
    key = (name, request.param)
    if key not in MADE:
        MADE[key] = editor_on(tiny(name), request.param).edit(REQUEST, evaluate=False).edits[0]
    return Case(editor_on(any_model, request.param), MADE[key], lambda: tiny(name), digest, tmp_path)


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
@pytest.mark.parametrize("check", sorted(CHECKS))
def test_conformance(case: Case, check: str, attached: Attached) -> None:
    before = attached(case.loaded.model)
    CHECKS[check](case)
    assert attached(case.loaded.model) == before
