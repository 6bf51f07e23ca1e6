"""The decode loop against stock transformers: what comes out, whoever drafted it, whatever shares the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from roseedit.errors import BudgetError, RequestError, SkipError, StaleProfilesError
from roseedit.evaluation.generation import generate
from roseedit.hadskip.cache import SharedCache, columns_of
from roseedit.hadskip.choosing import FixedChooser, PromptBatch
from roseedit.hadskip.contract import DecodeSettings, Sampling
from roseedit.hadskip.decode import Decoder
from roseedit.hadskip.paths import executing
from roseedit.hadskip.profile import SkipProfiles
from roseedit.hadskip.response import Accounts, Piece
from roseedit.models.load import LoadedModel
from tests.tiny.test_skip_paths import dropped

Tiny = Callable[..., LoadedModel]
PROMPTS = (
    "The Tower is in",
    "Paris",
    "In the city of Paris the Tower is",
    "of",
    "The city of Rome is in the",
    "a b",
    "The Tower of the city",
    "is is is is",
)
NEW = 12


def rows_of(loaded: LoadedModel, prompts: Sequence[str] = PROMPTS) -> list[list[int]]:
    return [loaded.tokenizer(prompt)["input_ids"] for prompt in prompts]


@torch.no_grad()
def stock(model: Any, rows: Sequence[Sequence[int]], new: int = NEW, **options: Any) -> list[tuple[int, ...]]:
    """What transformers' own generate() says, prompt by prompt; the end mark is an ordinary token to it."""
    out = []
    asked = {"do_sample": False, "max_new_tokens": new, "eos_token_id": -1, **options}
    for ids in rows:
        given = torch.tensor([ids])
        said = model.generate(given, attention_mask=torch.ones_like(given), **asked)
        out.append(tuple(said[0, len(ids) :].tolist()))
    return out


_SAID: dict[tuple[str, tuple[int, ...]], list[tuple[int, ...]]] = {}


def stock_of(loaded: LoadedModel, layers: tuple[int, ...] = (0, 1, 2, 3)) -> list[tuple[int, ...]]:
    """`stock` on the usual prompts by a model that has only these layers; computed once per architecture."""
    key = (loaded.name, layers)
    if key not in _SAID:
        _SAID[key] = stock(loaded.model if len(layers) == 4 else dropped(loaded, layers), rows_of(loaded))
    return _SAID[key]


def endless(decoder: Decoder, rows: Sequence[Sequence[int]], contract: Any, **options: Any) -> list[tuple[int, ...]]:
    settings = DecodeSettings(contract, max_new_tokens=NEW, stop_strings=(), **options)
    return [response.tokens for response in decoder.generate_ids(rows, settings, ends=frozenset())]


def skipping(loaded: LoadedModel, layers: tuple[int, ...] = (0, 1, 3)) -> Decoder:
    return Decoder(loaded, SkipProfiles.of(loaded, {"p": layers}))


@torch.no_grad()
def test_a_the_full_path_is_stock_transformers_bitwise(any_model: LoadedModel) -> None:
    """Prompt in parts and token by token: the same logits, bit for bit, as with transformers' own cache."""
    ids = torch.tensor(rows_of(any_model)[2:3])
    cache, own = None, SharedCache(any_model, 4)
    at = 0
    for n in (4, 1, 2, 1, 1):
        part = ids[:, at : at + n]
        out = any_model.model(input_ids=part, past_key_values=cache, use_cache=True)
        cache, at = out.past_key_values, at + n
        with executing(any_model, range(4)):
            here = any_model.model(input_ids=part, past_key_values=own, use_cache=True).logits
        own.commit(n)
        assert torch.equal(here, out.logits)


def test_a_full_contract_says_what_stock_says(any_model: LoadedModel) -> None:
    rows = rows_of(any_model)
    wanted = stock_of(any_model)
    assert endless(Decoder(any_model), rows, "full") == wanted
    assert [said for ids in rows for said in endless(Decoder(any_model), [ids], "full")] == wanted


def test_b_decoding_leaves_the_model_as_it_was(
    any_model: LoadedModel, digest: Callable[..., str], attached: Callable[..., Any]
) -> None:
    before, hooks = digest(any_model.model), attached(any_model.model)
    ids = torch.tensor(rows_of(any_model)[:1])
    with torch.no_grad():
        logits = any_model.model(ids).logits
        for contract, budget in (("bounded", 0.8), ("lossless", 0.8), ("full", None)):
            endless(skipping(any_model), rows_of(any_model), contract, budget=budget)
        assert digest(any_model.model) == before
        assert attached(any_model.model) == hooks
        assert torch.equal(any_model.model(ids).logits, logits)


@pytest.mark.parametrize("length", [1, 4, 8, None])
def test_c_lossless_greedy_is_stock_greedy(any_model: LoadedModel, length: int | None) -> None:
    rows, wanted = rows_of(any_model), stock_of(any_model)
    decoder = skipping(any_model)
    assert endless(decoder, rows, "lossless", draft_length=length) == wanted
    assert endless(decoder, rows[2:3], "lossless", draft_length=length) == wanted[2:3]


@pytest.mark.parametrize("layers", [(0, 1, 5), (0, 1, 2, 5), (0, 1, 3, 4, 5), (0, 1, 2, 3, 4, 5)])
def test_c_whatever_the_profile(tiny: Tiny, layers: tuple[int, ...]) -> None:
    loaded = tiny("qwen3", num_hidden_layers=6)
    rows = rows_of(loaded)
    wanted = stock(loaded.model, rows)
    for length in (1, 4, 8):
        assert endless(skipping(loaded, layers), rows, "lossless", draft_length=length) == wanted


def test_c_drafts_are_made_and_some_are_wrong(any_model: LoadedModel) -> None:
    """The equality above is no empty one; a profile of all layers is always right."""
    settings = DecodeSettings("lossless", max_new_tokens=NEW, stop_strings=(), draft_length=4)
    rows = rows_of(any_model)
    found = skipping(any_model).generate_ids(rows, settings, ends=frozenset())
    assert sum(r.drafted for r in found) > sum(r.accepted for r in found)
    alike = skipping(any_model, (0, 1, 2, 3)).generate_ids(rows, settings, ends=frozenset())
    assert all(r.accepted >= r.drafted - 4 for r in alike)  # tokens after the limit are drafted in vain
    assert all(r.passes <= 1 + -(-NEW // 5) for r in alike)


@pytest.mark.parametrize("layers", [(0, 1, 3), (0, 1, 2, 3)])
def test_d_bounded_is_the_physically_dropped_model(any_model: LoadedModel, layers: tuple[int, ...]) -> None:
    rows = rows_of(any_model)
    wanted = stock_of(any_model, layers)
    decoder = skipping(any_model, layers)
    assert endless(decoder, rows, "bounded", budget=1.0) == wanted
    assert [said for ids in rows for said in endless(decoder, [ids], "bounded", budget=1.0)] == wanted


class ByState:
    """A chooser that looks at what enters a layer, every row by itself; its threshold is set by its first batch."""

    n_bytes = 4

    def __init__(self, looks_at: int) -> None:
        self.looks_at = looks_at
        self.threshold: float | None = None

    def choose(self, loaded: LoadedModel, prompts: PromptBatch, budget: float | None) -> Sequence[int]:
        assert prompts.states is not None
        mask = prompts.mask[..., None]
        means = ((prompts.states * mask).sum(1) / mask.sum(1)).abs().sum(-1)
        if self.threshold is None:
            ordered = means.sort().values
            self.threshold = float(ordered[3] + ordered[4]) / 2
        return (means > self.threshold).long().tolist()


def by_state(loaded: LoadedModel, looks_at: int = 2) -> Decoder:
    profiles = SkipProfiles.of(loaded, {"a": (0, 1, 3, 4, 5), "b": (0, 1, 2, 5)})
    return Decoder(loaded, profiles, ByState(looks_at))


@pytest.mark.parametrize(("name", "looks_at"), [("llama", 0), ("llama", 1), ("gptj", 2), ("gemma3", 2)])
def test_f_each_sequence_has_its_own_profile(tiny: Tiny, name: str, looks_at: int) -> None:
    """Mixed batches are split by profile; every row reads as if it were alone with that profile, and again the same."""
    loaded = tiny(name, num_hidden_layers=6) if name not in ("gpt2", "gptj") else tiny(name, n_layer=6)
    decoder = by_state(loaded, looks_at)
    rows = rows_of(loaded)
    settings = DecodeSettings("bounded", 1.0, max_new_tokens=NEW, stop_strings=())
    together = decoder.generate_ids(rows, settings, ends=frozenset())
    assert sorted(str(r.profile) for r in together) == ["a"] * 4 + ["b"] * 4
    profiles = decoder.profiles
    assert profiles is not None
    for ids, response in zip(rows, together, strict=True):
        alone = Decoder(loaded, profiles, FixedChooser(profiles, response.profile))
        assert alone.generate_ids([ids], settings, ends=frozenset())[0].tokens == response.tokens
        again = decoder.generate_ids([ids], settings, ends=frozenset())[0]
        assert (again.profile, again.tokens) == (response.profile, response.tokens)
        assert response.layers_run == ((0, 1, 3, 4, 5) if response.profile == "a" else (0, 1, 2, 5))
    lossless = DecodeSettings("lossless", 1.0, max_new_tokens=NEW, stop_strings=(), draft_length=3)
    mixed = decoder.generate_ids(rows, lossless, ends=frozenset())
    assert [r.profile for r in mixed] == [r.profile for r in together]
    assert [r.tokens for r in mixed] == stock(loaded.model, rows)


def test_a_gate_may_not_look_above_a_skipped_layer(tiny: Tiny) -> None:
    with pytest.raises(SkipError, match=r"looks at layer 3 .* skip \[2\]"):
        by_state(tiny("llama", num_hidden_layers=6), 3)


@torch.no_grad()
def test_g_after_each_cycle_all_layers_hold_the_full_models_keys(any_model: LoadedModel) -> None:
    """Equal lengths and, stronger, equal contents: whatever was drafted, K/V are those of a fresh full pass."""
    decoder = skipping(any_model)
    ids = rows_of(any_model)[2]
    settings = DecodeSettings("lossless", max_new_tokens=NEW, stop_strings=(), draft_length=3)
    call = decoder._call([ids], settings, None, ends=frozenset())
    row = decoder._row(0, ids, call)
    (group,) = decoder._prefill(call).groups([row])
    cycles = 0
    while group.rows:
        group.step()
        cycles += 1
        cached = torch.tensor([row.pick.ids[: group.cache.length]])
        if not group.rows:
            break
        assert group.cache.length == len(row.pick.ids) - 1
        fresh = any_model.model(cached, use_cache=True).past_key_values
        for own, stock_layer in zip(group.cache.slots, fresh.layers, strict=True):
            assert own.get_seq_length() == stock_layer.get_seq_length()
            assert torch.allclose(own.keys[:, :, : group.cache.length], stock_layer.keys, atol=1e-4)
            assert torch.allclose(own.values[:, :, : group.cache.length], stock_layer.values, atol=1e-4)
    assert cycles > 2


@torch.no_grad()
def test_bounded_keeps_keys_of_executed_layers_only(any_model: LoadedModel) -> None:
    decoder = skipping(any_model)
    settings = DecodeSettings("bounded", 0.8, max_new_tokens=NEW, stop_strings=())
    call = decoder._call(rows_of(any_model), settings, None, ends=frozenset())
    rows = [decoder._row(i, ids, call) for i, ids in enumerate(rows_of(any_model))]
    (group,) = decoder._prefill(call).groups(rows)
    group.step()
    assert [slot.keys is not None for slot in group.cache.slots] == [True, True, False, True]


def _distribution(model: Any, prompt: list[int], n_ids: int, temperature: float) -> Tensor:
    """Exact probability of each pair of next tokens, (n_ids * n_ids,)."""
    first = (model(torch.tensor([prompt])).logits[0, -1].double() / temperature).softmax(-1)
    after = torch.tensor([[*prompt, i] for i in range(n_ids)])
    second = (model(after).logits[:, -1].double() / temperature).softmax(-1)
    return (first[:, None] * second).flatten()


@torch.no_grad()
@pytest.mark.parametrize(("contract", "seed"), [("full", 1), ("lossless", 2), ("lossless", 3), ("bounded", 4)])
def test_h_samples_follow_the_target_distribution(tiny: Tiny, contract: Any, seed: int) -> None:
    loaded = tiny("llama", vocab_size=6, eos_token_id=None, bos_token_id=None, pad_token_id=None)
    prompt, n = [1, 4, 2], 4000
    answering = dropped(loaded, (0, 1, 3)) if contract == "bounded" else loaded.model
    wanted = _distribution(answering, prompt, 6, 1.5) * n
    settings = DecodeSettings(
        contract,
        None if contract == "full" else 1.0,
        max_new_tokens=3,
        stop_strings=(),
        sampling=Sampling(temperature=1.5, seed=seed),
        draft_length=2 if contract == "lossless" else None,
    )
    said = skipping(loaded).generate_ids([prompt] * n, settings, ends=frozenset())
    found = torch.zeros(36).double()
    for response in said:
        found[response.tokens[0] * 6 + response.tokens[1]] += 1
    rare = wanted < 5
    observed = [*found[~rare].tolist(), float(found[rare].sum())]
    expected = [*wanted[~rare].tolist(), float(wanted[rare].sum())]
    assert len(observed) > 8
    assert (
        stats.chisquare(observed[: None if expected[-1] else -1], expected[: None if expected[-1] else -1]).pvalue
        > 0.01
    )
    if contract == "lossless":
        assert 0 < sum(r.accepted for r in said) < sum(r.drafted for r in said)
        wrong = _distribution(dropped(loaded, (0, 1, 3)), prompt, 6, 1.5) * n
        assert stats.chisquare(found.tolist(), wrong.tolist()).pvalue < 1e-6  # the drafter's own is another one


@pytest.mark.parametrize("sampling", [Sampling(0.7, seed=3), Sampling(1.2, top_k=20, top_p=0.9, min_p=0.01, seed=4)])
def test_the_same_seed_gives_the_same_bytes_with_skip_off_and_on(any_model: LoadedModel, sampling: Sampling) -> None:
    rows = rows_of(any_model)
    decoder = skipping(any_model)
    plain = endless(decoder, rows, "full", sampling=sampling)
    assert endless(decoder, rows, "full", sampling=sampling) == plain
    for length in (4, None):
        assert endless(decoder, rows, "lossless", sampling=sampling, draft_length=length) == plain
    other = Sampling(sampling.temperature, seed=99)
    assert endless(decoder, rows, "full", sampling=other) != plain
    assert len(set(endless(decoder, [rows[0]] * 4, "full", sampling=sampling))) > 1  # sequences have noise of their own


def test_processors_with_a_memory_see_each_rows_own_history(any_model: LoadedModel) -> None:
    rows = rows_of(any_model)[:4]
    wanted = stock(any_model.model, rows, repetition_penalty=1.7)
    assert wanted != stock_of(any_model)[:4]
    for contract in ("full", "lossless"):
        assert endless(skipping(any_model), rows, contract, sampling=Sampling(repetition_penalty=1.7)) == wanted


@pytest.mark.parametrize("name", ["gemma3", "mistral"])
def test_sliding_windows_slide_right(tiny: Tiny, name: str) -> None:
    loaded = tiny(name, sliding_window=6)
    rows = rows_of(loaded)[:5]
    wanted = stock(loaded.model, rows)
    assert endless(skipping(loaded), rows, "full") == wanted
    assert endless(skipping(loaded), rows, "lossless", draft_length=4) == wanted
    assert endless(skipping(loaded), rows, "bounded", budget=0.8) == stock(dropped(loaded, (0, 1, 3)), rows)


def test_the_window_ends_an_answer(tiny: Tiny) -> None:
    loaded = tiny("gpt2", n_positions=20)  # learned positions: one too far would be an error
    ids = list(range(10, 20))
    for contract, length in (("full", None), ("lossless", 8)):
        settings = DecodeSettings(contract, max_new_tokens=50, stop_strings=(), draft_length=length)  # type: ignore[arg-type]
        response = skipping(loaded).generate_ids([ids], settings, ends=frozenset())[0]
        assert (len(response.tokens), response.stop) == (10, "cap")
        assert response.tokens == stock(loaded.model, [ids], 10)[0]


@pytest.mark.parametrize("contract", ["full", "lossless", "bounded"])
def test_text_and_stops_are_those_of_the_scoring_core(any_model: LoadedModel, contract: Any) -> None:
    decoder = skipping(any_model, (0, 1, 2, 3))
    for stops in (("\n",), ("e", "of"), (" the", "zz")):
        wanted = generate(any_model, PROMPTS, max_new_tokens=NEW, stop_strings=stops)
        budget = 1.0 if contract == "bounded" else None
        said = decoder.generate(PROMPTS, DecodeSettings(contract, budget, NEW, stops))
        assert [(r.text, r.stop, len(r.tokens)) for r in said] == [(w.text, w.stop, w.n_tokens) for w in wanted]


@pytest.mark.parametrize("name", ["llama", "gptj", "opt"])
def test_streamed_pieces_add_up(tiny: Tiny, name: str) -> None:
    decoder = skipping(tiny(name))
    for sampling in (Sampling(), Sampling(1.0, seed=7)):
        for contract, budget in (("full", None), ("bounded", 0.8), ("lossless", None)):
            settings = DecodeSettings(contract, budget, NEW, (" the", "x"), sampling)  # type: ignore[arg-type]
            wanted = decoder.generate(PROMPTS, settings)
            pieces: list[Piece] = list(decoder.stream(PROMPTS, settings))
            for i, response in enumerate(wanted):
                mine = [piece for piece in pieces if piece.index == i]
                assert "".join(piece.text for piece in mine) == response.text
                last = mine[-1].response
                assert last is not None
                assert last.tokens == response.tokens
            assert len(pieces) > 2 * len(PROMPTS)


def test_the_response_tells_what_ran(any_model: LoadedModel) -> None:
    decoder = skipping(any_model)
    accounts = Accounts()
    lossless = decoder.generate(PROMPTS, DecodeSettings("lossless", 0.8, NEW, draft_length=2), accounts)
    assert all((r.contract, r.profile, r.layers_run, r.n_layers) == ("lossless", "p", (0, 1, 3), 4) for r in lossless)
    assert any(r.acceptance is not None for r in lossless)
    full = decoder.generate(PROMPTS[:1], DecodeSettings())[0]
    assert (full.contract, full.profile, full.layers_run, full.acceptance) == ("full", None, (0, 1, 2, 3), None)
    assert accounts.prompts == len(PROMPTS)
    assert accounts.tokens == sum(len(r.tokens) for r in lossless)
    assert accounts.prefill_seconds > 0
    assert accounts.decode_seconds > 0
    assert 0 <= accounts.gate_share < 1


def test_what_cannot_be_done_is_refused_before_any_work(tiny: Tiny) -> None:
    loaded = tiny("llama")
    decoder = skipping(loaded)
    loaded.model.forward = None  # whatever reaches the model fails
    try:
        for settings, kind in (
            ({"contract": "exact"}, SkipError),
            ({"contract": "full", "budget": 0.5}, BudgetError),
            ({"contract": "bounded"}, BudgetError),
            ({"contract": "bounded", "budget": 0.0}, BudgetError),
            ({"contract": "full", "draft_length": 3}, SkipError),
            ({"contract": "lossless", "draft_length": 0}, SkipError),
            ({"contract": "bounded", "budget": 0.8, "stale_is_fine": True}, SkipError),
            ({"max_new_tokens": 0}, RequestError),
            ({"stop_strings": ("",)}, RequestError),
        ):
            with pytest.raises(kind, match="allowed"):
                DecodeSettings(**settings)  # type: ignore[arg-type]
        with pytest.raises(BudgetError, match=r"p 0\.750"):
            decoder.generate(PROMPTS, DecodeSettings("bounded", 0.5))
        with pytest.raises(BudgetError, match=r"p 0\.750"):
            decoder.stream(PROMPTS, DecodeSettings("lossless", 0.5))
        with pytest.raises(SkipError, match="without profiles"):
            Decoder(loaded).generate(PROMPTS, DecodeSettings("lossless"))
        for ids in ([], [1] * 128):
            with pytest.raises(RequestError, match="1 to 127"):
                decoder.generate_ids([[1], ids])
    finally:
        del loaded.model.forward


def test_k_stale_profiles_are_refused(tiny: Tiny) -> None:
    loaded = tiny("llama")
    decoder = skipping(loaded)
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[0, 0] += 1
    for settings in (DecodeSettings("bounded", 0.8), DecodeSettings("lossless")):
        with pytest.raises(StaleProfilesError):
            decoder.generate(PROMPTS, settings)
    fine = DecodeSettings("lossless", stale_is_fine=True, draft_length=2, max_new_tokens=NEW, stop_strings=())
    said = decoder.generate_ids(rows_of(loaded), fine, ends=frozenset())
    assert [r.tokens for r in said] == stock(loaded.model, rows_of(loaded))


def test_holes_are_closed(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that accept unequally leave masked columns; moving them together changes nothing that is said."""
    from roseedit.hadskip import group

    monkeypatch.setattr(group, "HOLES", 2)
    monkeypatch.setattr(group, "HOLE_SHARE", 0.0)
    for name in ("llama", "opt"):
        loaded = tiny(name)
        assert endless(skipping(loaded), rows_of(loaded), "lossless", draft_length=4) == stock_of(loaded)


def test_columns_move_to_the_left() -> None:
    columns, mask = columns_of(torch.tensor([[1, 0, 1, 1, 0], [0, 1, 0, 0, 1]]))
    assert mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert columns[:, :2].tolist() == [[0, 2], [1, 4]]
    assert columns[0, 2] == 3
