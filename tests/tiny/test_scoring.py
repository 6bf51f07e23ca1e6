"""The scoring core: batches equal single rows, rows carry edits of their own, and generation is transformers' own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from roseedit.evaluation.generation import generate
from roseedit.evaluation.prompts import Generated
from roseedit.evaluation.scoring import PairScore, next_token, score
from roseedit.models.load import LoadedModel
from roseedit.roselora.adapter import FactorBank, Factors

Tiny = Callable[..., LoadedModel]
PAIRS = [
    ("The Tower is in the city of", "Rome"),
    ("The city", "of Paris, not of Rome"),
    ("Where?", "in"),
    ("The Tower of the city of Rome is in Paris and the Tower", "is the city"),
    ("x", "yz"),
]
PROMPTS = [prompt for prompt, _ in PAIRS]
TOLERANCE = 1e-5  # float32, other batch shapes sum in another order


def close(a: Sequence[PairScore], b: Sequence[PairScore]) -> bool:
    """Same tokens, same first choices, log-probabilities within tolerance."""
    return all(
        x.target == y.target
        and x.argmax == y.argmax
        and torch.allclose(torch.tensor(x.logprobs), torch.tensor(y.logprobs), atol=TOLERANCE)
        for x, y in zip(a, b, strict=True)
    )


def random_bank(loaded: LoadedModel, n: int = 3, modules: tuple[str, ...] = ("mlp.down", "attn.o")) -> FactorBank:
    """A bank of random edits, large enough to change what the model says."""
    draw = torch.Generator().manual_seed(1)
    factors = {
        p.module_name: Factors(torch.randn(n, 2, p.d_in, generator=draw), torch.randn(n, p.d_out, 2, generator=draw))
        for p in loaded.anatomy.select(modules, (1, 3))
    }
    return FactorBank(loaded.model, factors, scale=0.2)


@torch.no_grad()
def merge(loaded: LoadedModel, bank: FactorBank, edit: int) -> None:
    """Write W0 + c B A of one edit into the weights."""
    for p in loaded.anatomy.projections:
        if p.module_name in bank.factors:
            pair = bank.factors[p.module_name]
            change = bank.scale * pair.b[edit] @ pair.a[edit]
            loaded.model.get_submodule(p.module_name).weight += change.T if p.transposed else change


def test_a_score_is_the_models_own_log_probability(any_model: LoadedModel) -> None:
    for (prompt, target), got in zip(PAIRS, score(any_model, PAIRS), strict=True):
        ids = any_model.tokenizer(f"{prompt} {target}", return_tensors="pt")["input_ids"]
        start = len(any_model.tokenizer(prompt)["input_ids"])
        with torch.no_grad():
            logprobs = any_model.model(ids).logits[0].log_softmax(-1)
        wanted = ids[0, start:]
        expected = logprobs[start - 1 : -1].gather(1, wanted[:, None])[:, 0]
        assert got.target == tuple(wanted.tolist())
        assert got.argmax == tuple(logprobs[start - 1 : -1].argmax(-1).tolist())
        assert torch.allclose(torch.tensor(got.logprobs), expected, atol=TOLERANCE)
        assert got.logprob == pytest.approx(float(expected.sum()), abs=1e-4)


def test_batched_rows_equal_single_rows(any_model: LoadedModel) -> None:
    alone = [score(any_model, [pair])[0] for pair in PAIRS]
    assert close(score(any_model, PAIRS), alone)
    assert close(score(any_model, PAIRS, batch_tokens=40), alone)


def test_order_does_not_matter(any_model: LoadedModel) -> None:
    order = [3, 0, 4, 2, 1]
    straight = score(any_model, PAIRS)
    assert close(score(any_model, [PAIRS[i] for i in order]), [straight[i] for i in order])


def test_token_accuracy() -> None:
    assert PairScore((1, 2, 3, 4), (-1.0,) * 4, (1, 0, 3, 0)).token_accuracy == 0.5


def test_next_token_is_the_distribution_after_the_prompt(any_model: LoadedModel) -> None:
    got = next_token(any_model, PROMPTS)
    assert got.shape == (len(PROMPTS), any_model.model.config.vocab_size)
    for prompt, row in zip(PROMPTS, got, strict=True):
        ids = any_model.tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            assert torch.allclose(row, any_model.model(ids).logits[0, -1].log_softmax(-1), atol=TOLERANCE)


def test_nothing_asked_nothing_answered(tiny: Tiny) -> None:
    loaded = tiny("llama")
    assert score(loaded, []) == []
    assert generate(loaded, []) == []
    assert next_token(loaded, []).numel() == 0


def test_progress_counts_every_row(tiny: Tiny) -> None:
    loaded = tiny("llama")
    scored: list[int] = []
    said: list[int] = []
    score(loaded, PAIRS, batch_tokens=20, progress=scored.append)
    generate(loaded, PROMPTS, batch_tokens=60, progress=said.append)
    assert sum(scored) == sum(said) == len(PAIRS)
    assert len(scored) > 1
    assert len(said) > 1


ROWS = [2, -1, 0, 1, 0]


def test_rows_carry_edits_of_their_own(any_model: LoadedModel) -> None:
    bank = random_bank(any_model)
    mixed = score(any_model, PAIRS, edits=bank, rows=ROWS)
    base = score(any_model, PAIRS)
    for i, edit in enumerate(ROWS):
        alone = score(any_model, [PAIRS[i]], edits=bank, rows=[edit])
        assert close([mixed[i]], alone)
        assert close([mixed[i]], [base[i]]) == (edit == -1)


@pytest.mark.parametrize("edit", [0, 2])
def test_an_edit_on_rows_equals_the_merged_weights(any_model: LoadedModel, edit: int) -> None:
    bank = random_bank(any_model, modules=tuple({p.role for p in any_model.anatomy.projections}))
    beside = score(any_model, PAIRS, edits=bank, rows=[edit] * len(PAIRS))
    merge(any_model, bank, edit)
    merged = score(any_model, PAIRS)
    for x, y in zip(beside, merged, strict=True):
        assert torch.allclose(torch.tensor(x.logprobs), torch.tensor(y.logprobs), atol=1e-4)


def test_a_bank_of_one_equals_its_edit_in_a_larger_bank(any_model: LoadedModel) -> None:
    bank = random_bank(any_model)
    single = {
        name: Factors(pair.a.unsqueeze(0), pair.b.unsqueeze(0))
        for name, pair in ((name, f.pick(1)) for name, f in bank.factors.items())
    }
    one = FactorBank(any_model.model, single, bank.scale)
    rows = len(PAIRS)
    assert close(
        score(any_model, PAIRS, edits=one, rows=[0] * rows), score(any_model, PAIRS, edits=bank, rows=[1] * rows)
    )


def test_rows_without_an_edit_are_the_base_model_bit_for_bit(any_model: LoadedModel) -> None:
    bank = random_bank(any_model)
    assert score(any_model, PAIRS, edits=bank, rows=[-1] * len(PAIRS)) == score(any_model, PAIRS)
    mixed = score(any_model, PAIRS, edits=bank, rows=ROWS)
    assert mixed[1] == score(any_model, PAIRS)[1]


def test_a_bank_leaves_nothing_on_the_model(
    any_model: LoadedModel, digest: Callable[..., str], attached: Callable[..., Any]
) -> None:
    before = digest(any_model.model), attached(any_model.model)
    bank = random_bank(any_model)
    score(any_model, PAIRS, edits=bank, rows=ROWS)
    generate(any_model, PROMPTS, edits=bank, rows=ROWS, max_new_tokens=3)
    with pytest.raises(KeyError), bank.on_rows(torch.tensor([0])):
        raise KeyError
    assert (digest(any_model.model), attached(any_model.model)) == before


class Spelling:
    """A tokenizer that decodes to ids, so that texts are equal only where tokens are."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.inner(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """`<12><7>`."""
        return "".join(f"<{i}>" for i in ids)


def spelled(loaded: LoadedModel) -> LoadedModel:
    """The same model, texts spelled as ids."""
    return replace(loaded, tokenizer=Spelling(loaded.tokenizer))


def reference(loaded: LoadedModel, prompt: str, new: int) -> Generated:
    """What transformers' own greedy search says to a single prompt."""
    ids: Tensor = loaded.tokenizer(prompt, return_tensors="pt")["input_ids"]
    mask = torch.ones_like(ids)
    pad = loaded.pad_id
    out = loaded.model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=new, pad_token_id=pad)
    said = out[0, ids.shape[1] :].tolist()
    ends = loaded.model.generation_config.eos_token_id
    ended = said[-1] in (ends if isinstance(ends, list) else [ends])
    text = "".join(f"<{i}>" for i in (said[:-1] if ended else said))
    return Generated(text, "eos" if ended else "cap", len(said))


def tokens(generated: Generated) -> list[int]:
    """The ids of a spelled text."""
    return [int(i) for i in generated.text.strip("<>").split("><")] if generated.text else []


def longest(generated: Sequence[Generated]) -> int:
    """The row with most tokens."""
    return max(range(len(generated)), key=lambda i: generated[i].n_tokens)


def end_at(loaded: LoadedModel, token: int) -> None:
    """Give the model a second end mark, so that random weights reach one."""
    loaded.model.generation_config.eos_token_id = [loaded.tokenizer.eos_token_id, token]


def test_generate_equals_transformers_greedy_search(any_model: LoadedModel) -> None:
    got = generate(spelled(any_model), PROMPTS, max_new_tokens=12, stop_strings=())
    assert got == [reference(any_model, prompt, 12) for prompt in PROMPTS]
    assert len({g.text for g in got}) > 1


def test_generate_equals_transformers_at_the_end_mark(any_model: LoadedModel) -> None:
    """Rows that meet the end mark leave the batch, the others go on as before."""
    free = generate(spelled(any_model), PROMPTS, max_new_tokens=12, stop_strings=())
    row = longest(free)
    late = tokens(free[row])[5]
    end_at(any_model, late)
    got = generate(spelled(any_model), PROMPTS, max_new_tokens=12, stop_strings=())
    assert got == [reference(any_model, prompt, 12) for prompt in PROMPTS]
    assert got[row].stop == "eos"
    assert got[row].natural
    assert got[row].n_tokens == tokens(free[row]).index(late) + 1
    assert late not in tokens(got[row])


@pytest.mark.parametrize("name", ["gemma3", "mistral"])
def test_generate_equals_transformers_beyond_a_sliding_window(tiny: Tiny, name: str) -> None:
    loaded = tiny(name, sliding_window=6)
    got = generate(spelled(loaded), PROMPTS, max_new_tokens=12, stop_strings=())
    assert got == [reference(loaded, prompt, 12) for prompt in PROMPTS]


def test_batches_and_order_do_not_change_what_is_said(any_model: LoadedModel) -> None:
    loaded = spelled(any_model)
    alone = [generate(loaded, [prompt], max_new_tokens=8, stop_strings=())[0] for prompt in PROMPTS]
    assert generate(loaded, PROMPTS, max_new_tokens=8, stop_strings=()) == alone
    assert generate(loaded, PROMPTS[::-1], max_new_tokens=8, stop_strings=(), batch_tokens=50) == alone[::-1]


def test_generate_with_edits_equals_the_merged_weights(any_model: LoadedModel) -> None:
    loaded = spelled(any_model)
    bank = random_bank(any_model)
    mixed = generate(loaded, PROMPTS, edits=bank, rows=ROWS, max_new_tokens=6, stop_strings=())
    base = generate(loaded, PROMPTS, max_new_tokens=6, stop_strings=())
    assert mixed[1] == base[1]
    assert mixed != base
    merge(any_model, bank, 0)
    merged = generate(loaded, PROMPTS, max_new_tokens=6, stop_strings=())
    assert [mixed[i] for i, edit in enumerate(ROWS) if edit == 0] == [
        merged[i] for i, edit in enumerate(ROWS) if edit == 0
    ]


def test_a_stop_string_ends_and_is_cut_off(any_model: LoadedModel) -> None:
    loaded = spelled(any_model)
    free = generate(loaded, PROMPTS, max_new_tokens=10, stop_strings=())
    row = longest(free)
    stop = f"<{tokens(free[row])[4]}>"
    got = generate(loaded, PROMPTS, max_new_tokens=10, stop_strings=("never", stop))
    for before, after in zip(free, got, strict=True):
        if stop in before.text:
            cut = before.text[: before.text.index(stop)]
            assert after == Generated(cut, "stop_string", cut.count("<") + 1)
            assert after.natural
        else:
            assert after == before
    assert got[row].stop == "stop_string"


@pytest.mark.parametrize("cap", [1, 2, 7])
def test_the_cap(any_model: LoadedModel, cap: int) -> None:
    loaded = spelled(any_model)
    long = generate(loaded, PROMPTS, max_new_tokens=9, stop_strings=())
    for whole, got in zip(long, generate(loaded, PROMPTS, max_new_tokens=cap, stop_strings=()), strict=True):
        assert tokens(got) == tokens(whole)[:cap]
        if whole.n_tokens > cap:
            assert (got.stop, got.n_tokens, got.natural) == ("cap", cap, False)


def test_rows_that_are_done_leave_the_batch(any_model: LoadedModel) -> None:
    free = generate(spelled(any_model), PROMPTS, max_new_tokens=10, stop_strings=())
    end_at(any_model, tokens(free[longest(free)])[2])
    sizes: list[int] = []
    handle = any_model.model.register_forward_pre_hook(
        lambda _m, _a, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    got = generate(spelled(any_model), PROMPTS, max_new_tokens=10, stop_strings=())
    handle.remove()
    expected = [sum(g.n_tokens > n for g in got) for n in range(10)]
    assert sizes == [n for n in expected if n]
    assert sizes[-1] < sizes[0] == len(PROMPTS)


def test_rows_keep_their_own_edits_when_others_leave(any_model: LoadedModel) -> None:
    """One row ends at its first token, so that those behind it move up."""
    loaded = spelled(any_model)
    bank = random_bank(any_model)
    rows = [2, -1, 0, 1, 2]
    free = generate(loaded, PROMPTS, edits=bank, rows=rows, max_new_tokens=6, stop_strings=())
    firsts = [tokens(g)[0] for g in free]
    leaving = next(i for i in range(len(rows)) if sum(firsts[i] in tokens(g) for g in free) < len(rows))
    end_at(any_model, firsts[leaving])
    mixed = generate(loaded, PROMPTS, edits=bank, rows=rows, max_new_tokens=6, stop_strings=())
    assert mixed[leaving].n_tokens == 1
    assert max(g.n_tokens for g in mixed) > 2
    for prompt, edit, got in zip(PROMPTS, rows, mixed, strict=True):
        assert got == generate(loaded, [prompt], edits=bank, rows=[edit], max_new_tokens=6, stop_strings=())[0]


def test_generation_ends_at_the_models_window(tiny: Tiny) -> None:
    loaded = tiny("gpt2", n_positions=16)
    (got,) = generate(loaded, ["The Tower in the"], max_new_tokens=32, stop_strings=())
    assert got.stop == "cap"
    assert got.n_tokens <= 16


def test_the_text_is_decoded_without_the_end_mark(tiny: Tiny) -> None:
    loaded = tiny("llama")
    free = generate(spelled(loaded), ["The Tower"], max_new_tokens=6, stop_strings=())[0]
    end_at(loaded, tokens(free)[3])
    n = tokens(free).index(tokens(free)[3])
    got = generate(loaded, ["The Tower"], max_new_tokens=6, stop_strings=())[0]
    assert got == Generated(loaded.tokenizer.decode(tokens(free)[:n]), "eos", n + 1)
