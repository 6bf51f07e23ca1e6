"""The baselines do what they say: each is held against a plain loop, and limits, stops and joint runs are counted."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from roseedit.baselines.rows import answer_row, last_token_row
from roseedit.editor import Editor
from roseedit.errors import HparamsError, RequestError
from roseedit.evaluation.scoring import score
from roseedit.methods import MadeDelta, find_method, read_hparams
from roseedit.models.encoding import encode_pair
from roseedit.models.load import LoadedModel
from roseedit.requests import EditRequest, Probe

Tiny = Callable[..., LoadedModel]
Digest = Callable[[nn.Module], str]
REQUESTS = [
    EditRequest("The Tower is in the city of", "Rome", subject="Tower"),
    EditRequest("Oslo lies in", "the Alps", subject="Oslo"),
    EditRequest("The mother of Li Wei is called", "Eve", subject="Li Wei"),
]
PATH = "model.layers.2.mlp.down_proj"


@pytest.fixture
def loaded(tiny: Tiny) -> LoadedModel:
    """One small Llama."""
    return tiny("llama")


def fit(loaded: LoadedModel, requests: list[EditRequest], joint: bool = False, **settings: Any) -> list[MadeDelta]:
    """Through the registry."""
    hparams = read_hparams({"layers": [2], "batch_tokens": 2048, **settings})
    return find_method(hparams.method).fit(loaded, requests, hparams, joint=joint)


def change(made: MadeDelta, at: int = 0) -> Tensor:
    """B A of one matrix."""
    m = made.delta.matrices[at]
    return m.b.dense(m.d_out).T @ m.a.dense(m.d_in)


def probabilities(loaded: LoadedModel, made: MadeDelta, requests: list[EditRequest]) -> list[float]:
    """Of each request's whole answer with the delta on the model."""
    made.delta.apply(loaded.model)
    scored = score(loaded, [(r.prompt, r.target_new) for r in requests])
    made.delta.revert(loaded.model)
    return [math.exp(s.logprob) for s in scored]


def plain_loss(loaded: LoadedModel, request: EditRequest, *, last: bool, end_mark: bool) -> Tensor:
    """The mean loss over the answer's tokens, written down a second time."""
    encoded = encode_pair(loaded.tokenizer, request.prompt, request.target_new, end_mark=end_mark)
    logits = loaded.model(torch.tensor([encoded.ids])).logits[0].log_softmax(-1)
    at = [encoded.start - 1 if last else c for c in range(encoded.start - 1, len(encoded.ids) - 1)]
    return -torch.stack([logits[c, t] for c, t in zip(at, encoded.target, strict=True)]).mean()


@pytest.mark.parametrize(("method", "last"), [("FT-M", False), ("FT-L", True)])
@pytest.mark.parametrize("end_mark", [False, True])
def test_fine_tuning_equals_a_plain_loop_on_the_weight(tiny: Tiny, method: str, last: bool, end_mark: bool) -> None:
    steps, request = 6, REQUESTS[1]
    made = fit(tiny("llama"), REQUESTS, method=method, steps=steps, lr=1e-3, stop_loss=0.0, end_mark=end_mark)
    other = tiny("llama")
    weight = other.model.get_parameter(f"{PATH}.weight")
    start = weight.detach().clone()
    optimizer = torch.optim.Adam([weight], lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        plain_loss(other, request, last=last, end_mark=end_mark).backward()
        optimizer.step()
    assert made[1].report["steps"] == steps
    torch.testing.assert_close(change(made[1]), weight.detach() - start, atol=5e-4, rtol=0)  # single entries
    assert float((change(made[1]) - weight.detach() + start).abs().mean()) < 2e-6
    assert float(change(made[1]).abs().mean()) > 1e-3


def test_lora_equals_a_plain_loop_through_peft(tiny: Tiny) -> None:
    peft = pytest.importorskip("peft")
    steps, request = 6, REQUESTS[0]
    settings = {"method": "LoRA", "modules": ["attn.q", "attn.v"], "rank": 3, "alpha": 6.0, "steps": 1, "lr": 1e-9}
    made = fit(tiny("llama"), [request], **{**settings, "steps": steps, "lr": 5e-3, "stop_loss": 0.0})[0]
    start = fit(tiny("llama"), [request], **settings)[0]  # one step too small to move A
    other = tiny("llama")
    names = [m.weight_name.removesuffix(".weight") for m in made.delta.matrices]
    wrapped = peft.get_peft_model(other.model, peft.LoraConfig(r=3, lora_alpha=6, target_modules=names))
    for m in start.delta.matrices:
        layer = other.model.get_submodule(m.weight_name.removesuffix(".weight"))
        layer.lora_A["default"].weight.data.copy_(m.a.dense(m.d_in))
    wrapped.train()
    optimizer = torch.optim.Adam([p for p in wrapped.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        plain_loss(other, request, last=False, end_mark=True).backward()
        optimizer.step()
    for at, name in enumerate(names):
        want = other.model.get_submodule(name).get_delta_weight("default").detach()
        torch.testing.assert_close(change(made, at), want, atol=1e-5, rtol=0)
        assert float(want.abs().max()) > 1e-3


def test_the_last_token_is_asked_for_everything(loaded: LoadedModel) -> None:
    right = answer_row(loaded, REQUESTS[1], 0, 0, end_mark=False)
    last = last_token_row(loaded, REQUESTS[1], 0, 0, end_mark=False)
    assert last.labels == right.labels
    assert len(right.labels) > 1
    assert set(last.columns) == {right.columns[0]}
    assert last.ids == right.ids[: right.columns[0] + 1]


def test_an_edit_stops_by_itself_and_leaves_its_neighbours_going(loaded: LoadedModel) -> None:
    made = fit(loaded, REQUESTS, method="FT-M", lr=2e-2, steps=90, stop_loss=0.1)
    assert all(m.report["converged"] for m in made)
    assert len({m.report["steps"] for m in made}) > 1
    assert max(m.report["steps"] for m in made) < 90
    for request, m in zip(REQUESTS, made, strict=True):
        found = probabilities(loaded, m, [request])[0]
        labels = answer_row(loaded, request, 0, 0, end_mark=True).labels
        assert found > math.exp(-0.1 * len(labels))  # the mean loss over these is below 0.1
        assert m.report["probability"] > math.exp(-0.1 * len(labels))


@pytest.mark.parametrize("kind", ["entry", "frobenius"])
def test_a_limit_holds(loaded: LoadedModel, kind: str) -> None:
    made = fit(loaded, REQUESTS[:1], method="FT-M", lr=5e-3, steps=5, norm_constraint=kind, norm_limit=2e-3)[0]
    found = change(made)
    size = found.abs().max() if kind == "entry" else found.square().mean().sqrt()
    assert float(size) == pytest.approx(2e-3, rel=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "FT-M", "layers": [1, 2], "lr": 2e-2},
        {"method": "LoRA", "modules": ["mlp.down", "attn.o"], "layers": [1, 2], "lr": 2e-2},
    ],
    ids=lambda s: s["method"],
)
def test_joint_edits_share_one_delta(loaded: LoadedModel, settings: dict[str, Any]) -> None:
    made = fit(loaded, REQUESTS, joint=True, steps=90, joint_batch=2, stop_loss=0.1, **settings)
    assert len(made) == 1
    assert min(probabilities(loaded, made[0], REQUESTS)) > 0.4
    assert made[0].report["converged"]
    assert 3 < made[0].report["steps"] < 180


def test_weight_decay_pulls_towards_the_base(loaded: LoadedModel) -> None:
    norms = [
        fit(loaded, REQUESTS[:1], method="FT-M", lr=1e-3, steps=20, stop_loss=0.0, weight_decay=w)[0].report["norm"]
        for w in (0.0, 1.0)
    ]
    assert norms[1] < 0.9 * norms[0]


ADA = {
    "method": "AdaLoRA",
    "layers": [0, 1, 2, 3],
    "modules": ["mlp.down", "attn.o"],
    "rank": 1,
    "init_rank": 3,
    "steps": 14,
    "allocate_start": 2,
    "allocate_end": 8,
    "lr": 3e-2,
}


def fit_ada(loaded: LoadedModel, **changes: Any) -> list[MadeDelta]:
    """AdaLoRA on the first two requests."""
    pytest.importorskip("peft")
    hparams = read_hparams({**ADA, **changes})
    return find_method("AdaLoRA").fit(loaded, REQUESTS[:2], hparams, joint=False)


def test_adalora_hands_its_budget_out(loaded: LoadedModel) -> None:
    made = fit_ada(loaded, stop_loss=0.0)
    for m in made:
        ranks = m.report["ranks"]
        assert len(ranks) == 8
        assert sum(ranks.values()) == 8  # of 24 at the start
        assert len(set(ranks.values())) > 1  # and not evenly
        assert m.report["steps"] == 14
    assert made[0].report["ranks"] != made[1].report["ranks"]
    assert min(probabilities(loaded, made[0], REQUESTS[:1])) > 0.5


def test_adalora_without_allocation_keeps_every_rank(loaded: LoadedModel) -> None:
    made = fit_ada(loaded, allocate=False, steps=6, stop_loss=0.0)[0]
    assert set(made.report["ranks"].values()) == {3}


def test_adalora_stops_after_its_ranks_are_final(loaded: LoadedModel) -> None:
    made = fit_ada(loaded, steps=40, stop_loss=0.5)[0]
    assert made.report["converged"]
    assert 8 < made.report["steps"] < 40
    assert sum(made.report["ranks"].values()) == 8


def test_adalora_neither_uses_nor_moves_the_global_generator(loaded: LoadedModel) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = fit_ada(loaded, dropout=0.1)[1]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again = fit_ada(loaded, dropout=0.1)[1]
    assert again.delta.digest == first.delta.digest
    assert fit_ada(loaded, dropout=0.1, seed=1)[1].delta.digest != first.delta.digest


def test_in_context_edits_cannot_be_applied(loaded: LoadedModel, digest: Digest) -> None:
    editor = Editor.from_pretrained(loaded.model, loaded.tokenizer, {"method": "InContext"})
    before = digest(loaded.model)
    for mode in ("joint", "sequential", "independent"):
        with pytest.raises(RequestError, match="got an edit by InContext, which changes no weights"):
            editor.edit(REQUESTS[0], mode=mode)  # type: ignore[arg-type]
    assert editor.edits == ()
    assert digest(loaded.model) == before


def test_in_context_edits_stand_before_the_prompt(loaded: LoadedModel) -> None:
    hparams = read_hparams({"method": "InContext", "template": "{prompt} {target}. "})
    alone = find_method("InContext").fit(loaded, REQUESTS, hparams, joint=False)
    assert [m.context for m in alone][1] == "Oslo lies in the Alps. "
    together = find_method("InContext").fit(loaded, REQUESTS, hparams, joint=True)
    assert together[0].context == "".join(m.context for m in alone)
    assert not any(m.delta.matrices for m in alone + together)


def test_a_run_puts_the_context_before_every_prompt_of_its_edit(loaded: LoadedModel, tmp_path: Path) -> None:
    from io import BytesIO

    import pandas as pd

    from roseedit.runs.identity import FORMAT, base_of, decode_settings, versions
    from roseedit.runs.units import items_of
    from roseedit.runs.work import UnitWorker

    probe = Probe("hop", "The Tower stands near", (("Rome",),))
    requests = [EditRequest(r.prompt, r.target_new, subject=r.subject, portability=(probe,)) for r in REQUESTS]
    hparams = read_hparams({"method": "InContext", "template": "{prompt} {target}. "})
    identity = {"format": FORMAT, "base": base_of(loaded), "decode": decode_settings(), "versions": versions()}
    worker = UnitWorker(loaded, hparams, items_of(requests), {**identity, "plan": {"threads": 1}}, tmp_path)
    rows = pd.read_parquet(BytesIO(worker.do([0, 1, 2]).rows))
    found = rows[(rows["metric"] == "p_answer") & (rows["kind"] == "portability")]
    assert list(found["prompt"]) == [probe.prompt] * 3
    for r, after, before in zip(REQUESTS, found["after"], found["before"], strict=True):
        pairs = [(f"{r.prompt} {r.target_new}. {probe.prompt}", "Rome"), (probe.prompt, "Rome")]
        want = [math.exp(s.logprob) for s in score(loaded, pairs)]
        assert [after, before] == pytest.approx(want, rel=1e-4)
        assert after != pytest.approx(before, rel=1e-2)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"method": "FT-M", "layer": 3}, "unknown key 'layer'. Did you mean 'layers'?"),
        ({"method": "FT-L", "norm_constraint": "linf"}, "allowed: none, frobenius, entry"),
        ({"method": "LoRA", "rank": 0}, "got 0; allowed: at least 1"),
        ({"method": "LoRA", "depth": [0.8, 0.2]}, "two shares in rising order"),
        ({"method": "AdaLoRA", "rank": 8, "init_rank": 8}, "below init_rank"),
        ({"method": "AdaLoRA", "steps": 20}, "rising numbers"),
        ({"method": "InContext", "template": "{subject} is {target}"}, "{prompt} and {target}"),
    ],
)
def test_faulty_settings_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(HparamsError) as caught:
        read_hparams(values, "H.yaml")
    assert str(caught.value).startswith("H.yaml: ")
    assert said in str(caught.value)


def test_settings_of_another_method_are_refused(loaded: LoadedModel) -> None:
    with pytest.raises(HparamsError, match="got LoRAHparams; allowed: FTMHparams"):
        find_method("FT-M").fit(loaded, REQUESTS, read_hparams({"method": "LoRA"}), joint=False)
    with pytest.raises(HparamsError, match="H: got method 'FT-M'"):
        find_method("FT-L").read({"method": "FT-M"}, "H")
