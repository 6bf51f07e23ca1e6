"""The edit engine: an edit does not depend on its neighbours, and nothing is left on the model, whatever happens."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from roseedit.errors import CapacityError
from roseedit.evaluation.scoring import score
from roseedit.models.load import LoadedModel
from roseedit.requests import EditRequest
from roseedit.roselora.adapter import FactorBank, Factors
from roseedit.roselora.config import RoseLoRAHparams, read_roselora
from roseedit.roselora.engine import adapted, train_independent
from roseedit.roselora.sparsity import density, density_bound, kept_count
from roseedit.roselora.trainer import Trained

Tiny = Callable[..., LoadedModel]
Digest = Callable[..., str]
Attached = Callable[..., Any]
SURE = 0.5
SETTINGS = {
    "layers": [1, 2, 3],
    "modules": ["mlp.down", "attn.o"],
    "rank": 3,
    "keep": 0.25,
    "lr": 0.05,
    "rewrites": 0,
    "after_text": 0,
    "preserve_weight": 0.2,
    "anchor_mutations": 2,
    "anchor_frames": 2,
    "steps": 24,
    "prune_start": 2,
    "prune_end": 10,
    "kl_weight": 0.1,
    "anchor_subjects": 2,
    "anchor_relations": 3,
    "anchors_per_step": 2,
    "stop_probability": SURE,
    "train_dtype": "weights",
    "batch_tokens": 2048,
}
SHORT = {"steps": 4, "prune_start": 1, "prune_end": 3, "anchor_subjects": 1, "anchor_relations": 1}
REQUESTS = [
    EditRequest("The Tower is in the city of", "Rome", subject="Tower"),
    EditRequest("Oslo lies in", "the Alps", subject="Oslo"),
    EditRequest("The mother of Li Wei is called", "Eve", subject="Li Wei"),
    EditRequest("A b c", "d"),
]
NAMES = ["llama", "gpt2"]
# Sums run in another order in a bank than alone. Adam divides by the gradient's own size, so that a difference of 1e-7
# grows over the steps; measured 3e-6 at most here, while different edits differ by more than 1.
TOLERANCE = 1e-4


def settings(**changes: Any) -> RoseLoRAHparams:
    """The settings of these tests."""
    return read_roselora({**SETTINGS, **changes})


def delta(trained: Trained, name: str) -> Tensor:
    """B A of one matrix."""
    pair = trained.factors[name]
    return pair.b @ pair.a


def furthest(a: list[Trained], b: list[Trained]) -> float:
    """Largest difference of any entry of any edit's change."""
    assert len(a) == len(b)
    return max(
        float((delta(x, name) - delta(y, name)).abs().max()) for x, y in zip(a, b, strict=True) for name in x.factors
    )


@pytest.fixture(params=NAMES)
def loaded(request: pytest.FixtureRequest, tiny: Tiny) -> LoadedModel:
    """A gated model with separate projections, and one with fused, transposed ones."""
    return tiny(request.param)


def test_an_edit_in_a_bank_equals_the_same_alone(loaded: LoadedModel) -> None:
    together = train_independent(loaded, REQUESTS, settings())
    alone = [train_independent(loaded, [request], settings())[0] for request in REQUESTS]
    assert [t.steps for t in together] == [t.steps for t in alone]
    assert [t.converged for t in together] == [t.converged for t in alone]
    assert furthest(together, alone) < TOLERANCE
    assert furthest(together[:1], together[1:2]) > 1000 * TOLERANCE
    assert len({t.steps for t in together}) > 1  # some left the bank before others


def test_with_dropout_an_edit_in_a_bank_equals_the_same_alone(loaded: LoadedModel) -> None:
    hparams = settings(dropout=0.1)
    together = train_independent(loaded, REQUESTS, hparams)
    assert furthest(together[1:2], train_independent(loaded, REQUESTS[1:2], hparams)) < TOLERANCE


def test_order_and_neighbours_do_not_matter(loaded: LoadedModel) -> None:
    forward = train_independent(loaded, REQUESTS, settings())
    backward = train_independent(loaded, REQUESTS[::-1], settings())
    assert furthest(forward, backward[::-1]) < TOLERANCE


def test_the_same_run_twice_gives_the_same_bits(loaded: LoadedModel) -> None:
    first, second = (train_independent(loaded, REQUESTS, settings()) for _ in range(2))
    assert furthest(first, second) == 0.0


def test_the_global_generator_is_neither_used_nor_moved(loaded: LoadedModel) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = train_independent(loaded, REQUESTS[:2], settings())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert furthest(first, train_independent(loaded, REQUESTS[:2], settings())) == 0.0
    assert furthest(first, train_independent(loaded, REQUESTS[:2], settings(seed=1))) > 0.0


@pytest.mark.parametrize("keep", [0.05, 0.25])
def test_each_row_of_a_and_column_of_b_has_exactly_its_count(loaded: LoadedModel, keep: float) -> None:
    hparams = settings(keep=keep)
    shapes = {p.module_name: p for p in adapted(loaded, hparams)}
    for trained in train_independent(loaded, REQUESTS, hparams):
        assert set(trained.factors) == set(shapes)
        for name, pair in trained.factors.items():
            p = shapes[name]
            assert pair.a.shape == (3, p.d_in)
            assert pair.b.shape == (p.d_out, 3)
            assert (pair.a != 0).sum(-1).tolist() == [kept_count(p.d_in, keep)] * 3
            assert (pair.b != 0).sum(-2).tolist() == [kept_count(p.d_out, keep)] * 3
            product = (pair.b.double() @ pair.a.double()) != 0
            assert float(product.double().mean()) <= float(density(pair.a, pair.b)) + 1e-6
            assert float(density(pair.a, pair.b)) <= float(density_bound(pair.a, pair.b)) + 1e-6


def test_a_and_b_may_keep_different_shares(loaded: LoadedModel) -> None:
    hparams = settings(keep=0.1, keep_b=0.5)
    shapes = {p.module_name: p for p in adapted(loaded, hparams)}
    for trained in train_independent(loaded, REQUESTS[:2], hparams):
        for name, pair in trained.factors.items():
            assert (pair.a != 0).sum(-1).tolist() == [kept_count(shapes[name].d_in, 0.1)] * 3
            assert (pair.b != 0).sum(-2).tolist() == [kept_count(shapes[name].d_out, 0.5)] * 3


def test_keeping_all_prunes_nothing(loaded: LoadedModel) -> None:
    for trained in train_independent(loaded, REQUESTS[:2], settings(keep=1.0)):
        for pair in trained.factors.values():
            assert (pair.a != 0).all()
            assert (pair.b != 0).all()


def test_an_edit_that_converged_says_its_target(loaded: LoadedModel) -> None:
    results = train_independent(loaded, REQUESTS, settings())
    before = score(loaded, [(r.prompt, r.target_new) for r in REQUESTS])
    assert any(t.converged for t in results)
    for request, trained, old in zip(REQUESTS, results, before, strict=True):
        bank = {name: Factors(pair.a[None], pair.b[None]) for name, pair in trained.factors.items()}
        edits = FactorBank(loaded.model, bank, settings().scale)
        (new,) = score(loaded, [(request.prompt, request.target_new)], edits=edits, rows=[0])
        assert new.logprob > old.logprob
        if trained.converged:
            assert trained.probability >= SURE
            assert trained.steps > settings().prune_end  # never before the last prune
            assert new.token_accuracy == 1.0
            assert min(new.logprobs) >= math.log(SURE) - 1e-4


def test_training_leaves_the_model_as_it_was(loaded: LoadedModel, digest: Digest, attached: Attached) -> None:
    for i, parameter in enumerate(loaded.model.parameters()):
        parameter.requires_grad_(i % 3 != 0)
    before = digest(loaded.model), attached(loaded.model)
    flags = [p.requires_grad for p in loaded.model.parameters()]
    train_independent(loaded, REQUESTS, settings())
    assert (digest(loaded.model), attached(loaded.model)) == before
    assert [p.requires_grad for p in loaded.model.parameters()] == flags
    assert all(p.grad is None for p in loaded.model.parameters())
    assert not loaded.model.training


class Fault(Exception):
    """Raised on purpose."""


NEVER = range(0)


class Saboteur:
    """Counts the calls of one module and raises in chosen ones; also notes the size of each of the model's batches."""

    def __init__(
        self, loaded: LoadedModel, path: str, error: Callable[[], Exception] | None = None, calls: range = NEVER
    ) -> None:
        self.calls, self.sizes = 0, [0]
        self.error, self.bad = error, calls
        self.handles = [
            loaded.model.get_submodule(path).register_forward_pre_hook(self._count),
            loaded.model.register_forward_pre_hook(self._measure, with_kwargs=True),
        ]

    def _measure(self, _module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        self.sizes.append(kwargs["input_ids"].numel())

    def _count(self, *_: Any) -> None:
        self.calls += 1
        if self.calls - 1 in self.bad and self.error is not None:
            raise self.error()

    def leave(self) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            handle.remove()


def calls_of(loaded: LoadedModel, path: str, hparams: RoseLoRAHparams, requests: list[EditRequest]) -> int:
    """How often a module is called in an undisturbed run."""
    spy = Saboteur(loaded, path)
    train_independent(loaded, requests, hparams)
    spy.leave()
    return spy.calls


@pytest.mark.parametrize("part", ["embeddings", "edited", "head"])
def test_a_forward_that_raises_at_any_call_leaves_the_model_as_it_was(
    loaded: LoadedModel, digest: Digest, attached: Attached, part: str
) -> None:
    hparams = settings(**SHORT)
    path = adapted(loaded, hparams)[0].module_name if part == "edited" else getattr(loaded.anatomy, part)
    n_calls = calls_of(loaded, path, hparams, REQUESTS[:2])
    assert n_calls >= SHORT["steps"]
    next(iter(loaded.model.parameters())).requires_grad_(False)
    flags = [p.requires_grad for p in loaded.model.parameters()]
    before = digest(loaded.model), attached(loaded.model)
    for n in range(n_calls):
        saboteur = Saboteur(loaded, path, Fault, range(n, n + 1))
        with pytest.raises(Fault):
            train_independent(loaded, REQUESTS[:2], hparams)
        saboteur.leave()
        assert (digest(loaded.model), attached(loaded.model)) == before, n
        assert [p.requires_grad for p in loaded.model.parameters()] == flags, n
        assert all(p.grad is None for p in loaded.model.parameters()), n


MEMORY_ERRORS: dict[str, Callable[[], Exception]] = {
    "gpu": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu, windows": lambda: RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    "cpu, linux": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 4000000000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
}
TIGHT = {**SHORT, "steps": 6, "batch_tokens": 256}


KINDS = sorted(MEMORY_ERRORS)


@pytest.mark.parametrize("kind", KINDS)
def test_out_of_memory_halves_the_passes_and_changes_no_result(
    loaded: LoadedModel, digest: Digest, attached: Attached, kind: str
) -> None:
    hparams = settings(**TIGHT)
    undisturbed = train_independent(loaded, REQUESTS, hparams)
    head = loaded.anatomy.head
    n_calls = calls_of(loaded, head, hparams, REQUESTS)
    before = digest(loaded.model), attached(loaded.model)
    for n in range(n_calls - TIGHT["steps"], n_calls):
        saboteur = Saboteur(loaded, head, MEMORY_ERRORS[kind], range(n, n + 1))
        disturbed = train_independent(loaded, REQUESTS, hparams)
        saboteur.leave()
        assert furthest(disturbed, undisturbed) < TOLERANCE, n
        failed = n + 1
        assert max(saboteur.sizes[: failed + 1]) > 128, n
        assert max(saboteur.sizes[failed + 1 :]) <= 128, n
        assert (digest(loaded.model), attached(loaded.model)) == before


def test_out_of_memory_before_the_first_step_halves_too(loaded: LoadedModel) -> None:
    hparams = settings(**TIGHT)
    undisturbed = train_independent(loaded, REQUESTS, hparams)
    saboteur = Saboteur(loaded, loaded.anatomy.head, MEMORY_ERRORS["gpu"], range(1))
    disturbed = train_independent(loaded, REQUESTS, hparams)
    saboteur.leave()
    assert furthest(disturbed, undisturbed) < TOLERANCE


def test_no_room_for_a_single_row_is_a_capacity_error(loaded: LoadedModel, digest: Digest, attached: Attached) -> None:
    hparams = settings(**TIGHT)
    n_calls = calls_of(loaded, loaded.anatomy.head, hparams, REQUESTS)
    before = digest(loaded.model), attached(loaded.model)
    saboteur = Saboteur(loaded, loaded.anatomy.head, MEMORY_ERRORS["gpu"], range(n_calls - 3, 10_000))
    with pytest.raises(CapacityError, match=r"got too little memory for one row; allowed: room for .* tokens"):
        train_independent(loaded, REQUESTS, hparams)
    saboteur.leave()
    assert (digest(loaded.model), attached(loaded.model)) == before


def test_other_runtime_errors_are_not_taken_for_a_lack_of_memory(loaded: LoadedModel) -> None:
    def error() -> Exception:
        return RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    hparams = settings(**TIGHT)
    n_calls = calls_of(loaded, loaded.anatomy.head, hparams, REQUESTS)
    saboteur = Saboteur(loaded, loaded.anatomy.head, error, range(n_calls - 1, n_calls))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        train_independent(loaded, REQUESTS, hparams)
    saboteur.leave()
