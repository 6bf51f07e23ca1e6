"""HadSkip for encoder classifiers on tiny random BERT, RoBERTa and MPNet: no file, no network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from typer.testing import CliRunner

from roseedit.cli.app import app
from roseedit.errors import (
    AnatomyError,
    BudgetError,
    DataError,
    HparamsError,
    ModelError,
    ProfileFileError,
    RequestError,
    SkipError,
)
from roseedit.hadskip.encoder.classifier import EncoderClassifier
from roseedit.hadskip.encoder.compare import score
from roseedit.hadskip.encoder.data import Encoded, Example, n_classes, read_examples, read_task, split
from roseedit.hadskip.encoder.embedded import ALIASES
from roseedit.hadskip.encoder.exits import ExitRule, calibrate_exit, entropy_depths, exit_logits, patience_depths
from roseedit.hadskip.encoder.files import GatedClassifier, load_classifier, save_classifier
from roseedit.hadskip.encoder.fit import ClassifierFit, gated_layers
from roseedit.hadskip.encoder.gates import EncoderGates, GateRouter, pooled, theta_at
from roseedit.hadskip.encoder.load import LoadedEncoder, load_encoder
from roseedit.hadskip.encoder.measure import calibrate, judge, threshold_for
from roseedit.hadskip.encoder.routing import FixedLayers, RandomDepth
from roseedit.hadskip.encoder.settings import EncoderHparams
from roseedit.hadskip.encoder.starts import Sweep, initialise, sweep
from roseedit.hadskip.encoder.structure import find_encoder
from roseedit.hadskip.encoder.training import Targets, distillation, student_loss
from roseedit.hadskip.homotopy import Homotopy

N, HIDDEN = 4, 16
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "a", "the", "dull", "warm", "plot"]
SHAPE = {
    "vocab_size": len(WORDS),
    "hidden_size": HIDDEN,
    "intermediate_size": 32,
    "num_hidden_layers": N,
    "num_attention_heads": 2,
    "max_position_embeddings": 40,
}
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "bert": (hf.BertConfig, hf.BertModel, {}),
    "roberta": (hf.RobertaConfig, hf.RobertaModel, {"pad_token_id": 0}),
    "mpnet": (hf.MPNetConfig, hf.MPNetModel, {"pad_token_id": 0}),
}


def tokenizer() -> hf.PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    marks = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    names = ["input_ids", "attention_mask"]
    return hf.PreTrainedTokenizerFast(tokenizer_object=made, model_input_names=names, **marks)


def encoder(kind: str) -> LoadedEncoder:
    config, model, extra = KINDS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = model(config(**SHAPE, **extra)).eval()
        made.set_attn_implementation("eager")
        for p in made.parameters():  # initialised as it comes, tiny layers hardly move their input
            p.data.mul_(3.0) if p.dim() > 1 else None
    return LoadedEncoder(kind, made, tokenizer(), find_encoder(made))


@pytest.fixture(params=KINDS)
def loaded(request: pytest.FixtureRequest) -> LoadedEncoder:
    return encoder(request.param)


def examples(n: int = 48) -> list[Example]:
    draws = torch.Generator().manual_seed(1)
    made = []
    for i in range(n):
        length = int(torch.randint(1, 7, (1,), generator=draws))
        words = [WORDS[6 + int(j)] for j in torch.randint(6, (length,), generator=draws)]
        made.append(Example((" ".join([("bad", "good")[i % 2], *words]),), i % 2))
    return made


def rows_of(loaded: LoadedEncoder, n: int = 12) -> Encoded:
    return Encoded.of(examples(n), loaded.tokenizer, 32)


def some_gates(classifier: EncoderClassifier, data: Encoded, feature: str = "both") -> EncoderGates:
    """Gates that are open for about half of the rows each."""
    gates = EncoderGates((1, 2, 3), HIDDEN, feature, open_bias=0.0)
    gates.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    gates.bias.data = -(sweep(classifier, gates, data, len(data)).seen * gates.weight).sum(-1).quantile(0.5, 0)
    return gates


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with its tokenizer, saved."""
    path, made = tmp_path_factory.mktemp("encoder"), encoder("bert")
    made.model.save_pretrained(path)
    made.tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.json and dev.json of a small task."""
    path = tmp_path_factory.mktemp("task")
    for name, n in (("train", 64), ("dev", 24)):
        records = [{"sentence": e.texts[0], "label": e.label} for e in examples(n)]
        (path / f"{name}.json").write_text(json.dumps(records))
    return path


def settings(model: Path | str, **changes: object) -> EncoderHparams:
    small = {"model": str(model), "rows": 8, "epochs": 1, "skip_epochs": 2, "judged": 16, "held_out": 0.25, "lr": 1e-3}
    return EncoderHparams().replaced(**{**small, "device": "cpu", **changes})


@pytest.fixture(scope="module")
def fitted(folder: Path) -> tuple[ClassifierFit, GatedClassifier]:
    fit = ClassifierFit(settings(folder, train_dtype="weights"), examples(64))
    fit.finetune()
    gated = fit.fit_gates()
    return fit, GatedClassifier(gated.classifier, gated.gates, fit.max_tokens, 1, {})


def test_parts_are_found_by_structure(loaded: LoadedEncoder) -> None:
    parts = loaded.parts
    assert (parts.n_layers, parts.hidden_size) == (N, HIDDEN)
    assert (parts.embeddings_name, parts.layers_name) == ("embeddings", "encoder.layer")
    assert parts.returns_tuple == (loaded.name == "mpnet")
    ids = torch.full((1, parts.window), 4)
    loaded.model(input_ids=ids, attention_mask=torch.ones_like(ids))  # the longest input that it claims to take
    with pytest.raises((IndexError, RuntimeError)):
        loaded.model(input_ids=torch.full((1, parts.window + 3), 4), attention_mask=torch.ones(1, parts.window + 3))


def test_decoders_are_refused() -> None:
    config = hf.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=16, vocab_size=12)
    with pytest.raises(AnatomyError, match=r"allowed: an encoder with a module of embeddings"):
        find_encoder(hf.GPT2Model(config))
    with pytest.raises(AnatomyError, match="which decodes"):
        find_encoder(hf.BertModel(hf.BertConfig(**SHAPE, is_decoder=True)))


def test_all_gates_open_is_the_stock_model_bit_for_bit(loaded: LoadedEncoder) -> None:
    classifier, data = EncoderClassifier(loaded, 2), rows_of(loaded)
    classifier.head.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    batch = data.batch(torch.arange(12))
    gates = EncoderGates(range(N), HIDDEN, "first", open_bias=5.0)
    stock = pooled(loaded.model(**batch).last_hidden_state, batch["attention_mask"], "first")
    for mix in (False, True):
        output = classifier(batch, GateRouter(gates), mix=mix)
        if not mix:
            assert torch.equal(output.logits, classifier.head(stock))
        assert torch.allclose(output.logits, classifier.head(stock), atol=1e-5)
        assert output.run.min() == 1
    assert all("forward" not in layer.__dict__ for layer in loaded.parts.layers(loaded.model))


@pytest.mark.parametrize("feature", ["first", "mean", "both"])
def test_gathered_rows_give_what_mixed_rows_give(loaded: LoadedEncoder, feature: str) -> None:
    classifier, data = EncoderClassifier(loaded, 2, "mean"), rows_of(loaded)
    gates = some_gates(classifier, data, feature)
    classifier.head.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    batch = data.batch(torch.arange(12))
    with torch.no_grad():
        gathered, mixed = (classifier(batch, GateRouter(gates), mix=mix, keep=True) for mix in (False, True))
    assert torch.equal(gathered.run, mixed.run)
    assert 0 < gathered.run[:, 1:].sum() < gathered.run[:, 1:].numel()  # some ran, some did not
    assert torch.allclose(gathered.logits, mixed.logits, atol=1e-4)
    assert gathered.pooled is not None and mixed.pooled is not None
    assert torch.allclose(gathered.pooled, mixed.pooled, atol=1e-4)


def test_a_row_that_skips_is_not_computed(loaded: LoadedEncoder) -> None:
    classifier, data = EncoderClassifier(loaded, 2), rows_of(loaded)
    seen: list[int] = []
    router = GateRouter(some_gates(classifier, data))
    layer = loaded.parts.layers(loaded.model)[2]
    inner = next(m for m in layer.modules() if isinstance(m, torch.nn.Linear))
    inner.register_forward_hook(lambda _m, args, _o: seen.append(len(args[0])))
    run = classifier(data.batch(torch.arange(12)), router).run
    assert 0 < run[:, 2].sum() < 12
    assert seen == [int(run[:, 2].sum())]
    classifier(data.batch(torch.arange(12)), FixedLayers([0, 1, 3]))
    assert len(seen) == 1


def test_a_row_gets_the_same_answer_in_any_batch(loaded: LoadedEncoder) -> None:
    classifier, data = EncoderClassifier(loaded, 2, "mean"), rows_of(loaded)
    classifier.head.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    router = GateRouter(some_gates(classifier, data))
    together, alone = judge(classifier, data, router, size=12), judge(classifier, data, router, size=1)
    assert torch.equal(together.run, alone.run)
    assert torch.allclose(together.logits, alone.logits, atol=1e-4)


def test_gradients_reach_every_gate_and_the_encoder(loaded: LoadedEncoder) -> None:
    classifier, data = EncoderClassifier(loaded, 2, "mean"), rows_of(loaded)
    gates = some_gates(classifier, data)
    classifier.head.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    draws = torch.Generator().manual_seed(0)
    output = classifier(data.batch(torch.arange(12)), GateRouter(gates, 1.0, draws), mix=True, generator=draws)
    assert set(output.run.unique().tolist()) == {0.0, 1.0}
    torch.nn.functional.cross_entropy(output.logits, data.labels).backward()
    assert gates.weight.grad is not None and gates.bias.grad is not None
    assert (gates.weight.grad.abs().sum(1) > 0).all() and (gates.bias.grad.abs() > 0).all()
    assert all(p.grad is not None for p in loaded.parts.layers(loaded.model)[3].parameters())


def test_mean_cost_on_calibration_data_equals_the_budget(fitted: tuple[ClassifierFit, GatedClassifier]) -> None:
    fit, gated = fitted
    grain = 3 / (N * len(fit.held_out))
    for budget in (0.5, 0.75):
        reached = calibrate(gated.classifier, gated.gates, fit.held_out, budget)
        assert reached == judge(gated.classifier, fit.held_out, GateRouter(gated.gates)).cost
        assert budget - grain <= reached <= budget + 1e-6


def test_threshold_is_the_nearest_that_is_not_too_dear() -> None:
    assert threshold_for(lambda t: 1 - t, 0.4, 0.0, 1.0) == pytest.approx(0.6, abs=1e-4)
    assert threshold_for(lambda t: 1.0 if t < 0.3 else 0.2, 0.5, 0.0, 1.0) == pytest.approx(0.3, abs=1e-4)


def test_training_comes_down_to_the_budget(folder: Path) -> None:
    from roseedit.hadskip.encoder.training import GateTraining

    fit = ClassifierFit(settings(folder, skip_epochs=12, warm=0.0), examples(64))
    fit.finetune()
    gates = fit._open_gates(fit.full)
    initialise(gates, "I1", fit.found, 0.5)
    training = GateTraining(fit.full, gates, fit.train, fit.targets, fit.settings)
    training.run()
    costs = [told["cost"] for told in training.history]
    assert costs[0] > 0.9
    assert sum(costs[-8:]) / 8 == pytest.approx(0.5, abs=0.12)


def test_the_same_seed_gives_the_same_fit_and_leaves_global_draws_alone(folder: Path) -> None:
    state = torch.get_rng_state()
    weights = []
    for _ in range(2):
        fit = ClassifierFit(settings(folder), examples(64))
        fit.finetune()
        weights.append(fit.fit_gates().gates.weight)
    assert torch.equal(*weights)
    assert torch.equal(torch.get_rng_state(), state)


def test_theta_opens_the_share_that_is_asked_for() -> None:
    scores = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    for share in (0.2, 0.5, 0.9):
        assert (scores > theta_at(scores, share, 0.0)).float().mean() == pytest.approx(share, abs=1e-3)
        soft = torch.sigmoid((scores - theta_at(scores, share, 0.7)) / 0.7)
        assert soft.mean() == pytest.approx(share, abs=1e-3)


def test_scores_are_float32_under_autocast(loaded: LoadedEncoder) -> None:
    classifier, data = EncoderClassifier(loaded, 2), rows_of(loaded)
    classifier.head.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    gates = EncoderGates((1,), HIDDEN, "mean", head=classifier.head)
    gates.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    batch = data.batch(torch.arange(12))
    x = loaded.model(**batch).last_hidden_state
    exact = gates.score(1, x, batch["attention_mask"])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gates.score(1, x, batch["attention_mask"]), exact)


def test_gates_see_how_unsure_the_head_is(loaded: LoadedEncoder) -> None:
    classifier = EncoderClassifier(loaded, 2)
    gates = EncoderGates((1,), HIDDEN, "first", head=classifier.head)
    x, mask = torch.randn(3, 5, HIDDEN, generator=torch.Generator().manual_seed(0)), torch.ones(3, 5)
    assert torch.allclose(gates.seen(x, mask)[:, -1], torch.full((3,), 2.0).log())  # a head of zeros knows nothing
    classifier.head.bias.data = torch.tensor([20.0, -20.0])
    assert (gates.seen(x, mask)[:, -1] < 1e-6).all()
    assert [name for name, _ in gates.named_parameters()] == ["weight", "bias"]


def test_random_depths_are_prefixes(loaded: LoadedEncoder) -> None:
    draws = torch.Generator().manual_seed(0)
    classifier, data = EncoderClassifier(loaded, 2), rows_of(loaded)
    router = RandomDepth(Homotopy(20, 0.5), (1, 2, 3), N, draws)
    runs = [classifier(data.batch(torch.arange(12)), router).run for _ in range(20)]
    for run in runs:
        assert (run[:, 1:] <= run[:, :-1]).all()
    depths = [set(run.sum(1).tolist()) for run in runs]
    assert depths[0] <= {3.0, 4.0}
    assert depths[-1] == {1.0, 2.0, 3.0}
    ends = classifier(data.batch(torch.arange(12)), RandomDepth(Homotopy(1, 0.75, on=False), (1, 2), N, draws)).run
    assert ends[:, [0, 3]].all() and (ends[:, 2] <= ends[:, 1]).all()
    assert set(ends.sum(1).tolist()) == {2.0, 3.0, 4.0}


def test_starts_are_nested(folder: Path) -> None:
    fit = ClassifierFit(settings(folder), examples(64))
    fit.finetune()
    gates = fit._open_gates(fit.full)
    found = sweep(fit.full, gates, fit.train, 32)
    assert found.kl.shape == (32, 3) and (found.kl >= -1e-6).all()
    initialise(gates, "I0", None, 0.5)
    assert (gates.bias == 3).all() and (gates.weight == 0).all()
    judged = judge(fit.full, fit.held_out, GateRouter(gates))
    assert torch.equal(judged.logits, judge(fit.full, fit.held_out).logits)
    initialise(gates, "I1", found, 0.5)
    assert gates.bias.argsort().tolist() == found.kl.clamp(min=1e-6).log().mean(0).argsort().tolist()
    assert (gates.weight == 0).all()
    initialise(gates, "I2", found, 0.5)
    assert (gates.weight != 0).any()
    z = (found.seen - gates.mean) / gates.scale
    assert torch.allclose(z.mean(0), torch.zeros_like(gates.mean), atol=1e-4)


def test_a_sweep_drops_one_layer_or_all_above(folder: Path) -> None:
    fit = ClassifierFit(settings(folder), examples(64))
    fit.finetune()
    gates, batch = fit._open_gates(fit.full), fit.train.batch(torch.arange(8))
    full = torch.log_softmax(fit.full(batch).logits, -1)
    for kind, kept in (("alone", [0, 1, 3]), ("above", [0, 1])):
        other = torch.log_softmax(fit.full(batch, FixedLayers(kept)).logits, -1)
        wanted = (full.exp() * (full - other)).sum(-1)
        assert torch.allclose(sweep(fit.full, gates, fit.train, 8, kind).kl[:, 1], wanted, atol=1e-5)


def test_i2_learns_which_inputs_need_a_layer() -> None:
    draws = torch.Generator().manual_seed(0)
    seen = torch.randn(200, 3, 2 * HIDDEN, generator=draws)
    found = Sweep((1, 2, 3), (seen[:, :, 0] > 0).float() + 0.01 * torch.rand(200, 3, generator=draws), seen)
    gates = EncoderGates((1, 2, 3), HIDDEN, "both")
    initialise(gates, "I2", found, 0.5)
    assert gates.weight.argmax(1).tolist() == [0, 0, 0]


def test_distillation_is_zero_only_for_the_teacher(loaded: LoadedEncoder) -> None:
    logits = torch.tensor([[2.0, -1.0], [0.3, 0.1]])
    assert distillation(logits, logits).item() == pytest.approx(0.0, abs=1e-6)
    assert distillation(logits, logits.flip(1)).item() > 0.1
    classifier, data, hparams = EncoderClassifier(loaded, 2), rows_of(loaded), EncoderHparams(distil=0.0, hidden=1.0)
    rows = torch.arange(4)
    with torch.no_grad():
        full = classifier(data.batch(rows), keep=True)
        short = classifier(data.batch(rows), FixedLayers([0, 3]), keep=True)
    targets = Targets(full.logits, full.pooled)
    entropy = torch.nn.functional.cross_entropy(full.logits, data.labels[rows])
    assert student_loss(full, data.labels[rows], rows, targets, hparams) == pytest.approx(float(entropy))
    assert student_loss(short, data.labels[rows], rows, targets, hparams) > float(entropy) + 1e-3


def test_exit_rules() -> None:
    sure, unsure = [8.0, -8.0], [0.1, 0.0]
    logits = torch.tensor([[unsure, sure, sure, sure], [unsure, unsure, unsure, unsure], [sure, sure, sure, sure]])
    assert entropy_depths(logits, 0.1).tolist() == [2, 4, 1]
    flips = torch.tensor([[sure, sure[::-1], sure, sure], [sure, sure, sure, sure], [sure, sure[::-1], sure, unsure]])
    assert patience_depths(flips, 1).tolist() == [4, 2, 4]
    assert patience_depths(flips, 0).tolist() == [1, 1, 1]
    assert patience_depths(flips, 2).tolist() == [4, 3, 4]


@pytest.mark.parametrize("rule", ["patience", "entropy"])
def test_exits_meet_the_budget_on_calibration_data(folder: Path, rule: str) -> None:
    fit = ClassifierFit(settings(folder), examples(64))
    fit.finetune()
    student, exits = fit.fit_exits()
    logits = exit_logits(student, exits, fit.held_out)
    assert torch.allclose(logits[:, -1], judge(student, fit.held_out).logits, atol=1e-5)
    found = calibrate_exit(rule, logits, 0.6)
    right, cost = found.judged(logits, fit.held_out.labels)
    assert 0.6 - 3 / (N * len(right)) <= cost <= 0.6 + 1e-6
    assert ExitRule("patience", (0, 0), 1.0).judged(logits, fit.held_out.labels)[1] == pytest.approx(1 / N)


def test_fixed_sets_have_the_budgets_size(fitted: tuple[ClassifierFit, GatedClassifier]) -> None:
    fit, _ = fitted
    for name in ("static", "even", "random", "prefix"):
        student, router = fit.fit_static(name)
        assert len(router.layers) == 2 and 0 in router.layers
        assert judge(student, fit.held_out, router).cost == 0.5
    assert fit.fit_static("prefix")[1].layers == {0, 1}
    with pytest.raises(SkipError, match=r"got baseline 'best'; allowed: static, even, random, prefix"):
        fit.fit_static("best")


def test_a_saved_classifier_predicts_the_same(fitted: tuple[ClassifierFit, GatedClassifier], tmp_path: Path) -> None:
    _, gated = fitted
    texts = [e.texts[0] for e in examples(10)]
    again = load_classifier(save_classifier(gated, tmp_path / "saved"))
    assert again.predict(texts) == gated.predict(texts)
    assert not [p for p in (tmp_path / "saved").iterdir() if p.suffix not in {".json", ".safetensors", ".txt"}]
    with pytest.raises(ProfileFileError, match="which is in use"):
        save_classifier(gated, tmp_path / "saved")


def test_theta_is_set_anew_on_inputs_without_labels(
    fitted: tuple[ClassifierFit, GatedClassifier], tmp_path: Path
) -> None:
    gated = load_classifier(save_classifier(fitted[1], tmp_path / "saved"))
    texts = [e.texts[0] for e in examples(40)]
    for budget in (0.5, 0.75, 1.0):
        reached = gated.recalibrate(texts, budget)
        assert reached == pytest.approx(sum(len(p.layers_run) for p in gated.predict(texts)) / (40 * N))
        assert budget - 4 / (40 * N) <= reached <= budget + 1e-6
    with pytest.raises(BudgetError, match=r"got budget 0\.2 with 1 of 4 layers without a gate; allowed: 0\.250 to 1"):
        gated.recalibrate(texts, 0.2)


def test_damaged_files_are_refused(fitted: tuple[ClassifierFit, GatedClassifier], tmp_path: Path) -> None:
    path = save_classifier(fitted[1], tmp_path / "saved")
    record, blob = (path / "classifier.json").read_bytes(), (path / "gates.safetensors").read_bytes()
    (path / "gates.safetensors").write_bytes(blob[:-1] + bytes([blob[-1] ^ 1]))
    with pytest.raises(ProfileFileError, match=r"gates\.safetensors, missing or other than its record says"):
        load_classifier(path)
    (path / "gates.safetensors").write_bytes(blob)
    (path / "classifier.json").write_bytes(record.replace(b'"pooling": "mean"', b'"pooling": "first"'))
    with pytest.raises(ProfileFileError, match="differs from its own hash"):
        load_classifier(path)
    (path / "classifier.json").write_bytes(record)
    (path / "extra.bin").write_bytes(b"")
    with pytest.raises(ProfileFileError, match=r"a folder with extra\.bin in it"):
        load_classifier(path)
    with pytest.raises(ProfileFileError, match=r"which holds no classifier\.json"):
        load_classifier(tmp_path)


def test_bad_texts_are_refused(fitted: tuple[ClassifierFit, GatedClassifier]) -> None:
    gated = fitted[1]
    for texts, said in (
        ([], "got no text"),
        (["good", " "], "got input 1 with 0"),
        ([("a", "b")], "got input 0 with 2"),
    ):
        with pytest.raises(RequestError, match=said):
            gated.predict(texts)


RECORDS: list[tuple[object, str]] = [
    ({"a": 1}, "holding dict"),
    ([], "holding an empty array"),
    ([{"label": 0}], "record 0 of bad.json without text in sentence1 and sentence2"),
    ([{"sentence": " ", "label": 0}], "record 0 of bad.json without text in sentence"),
    ([{"sentence": "a", "label": 0}, {"sentence": "a", "label": "yes"}], "record 1 of bad.json with label 'yes'"),
    ([{"sentence": "a", "label": True}], "with label True"),
    ([{"sentence": "a", "label": 0}, {"sentence1": "a", "sentence2": "b", "label": 0}], "single sentences and pairs"),
]


@pytest.mark.parametrize(("records", "said"), RECORDS)
def test_bad_records_are_refused(records: object, said: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(json.dumps(records))
    with pytest.raises(DataError, match=said) as caught:
        read_examples(tmp_path / "bad.json")
    assert "; allowed: " in str(caught.value)


def test_bad_data_is_refused(tmp_path: Path, task: Path) -> None:
    (tmp_path / "broken.json").write_text("[{")
    (tmp_path / "other.json").write_text(json.dumps([{"sentence": "a", "label": 7}]))
    (tmp_path / "pair.json").write_text(json.dumps([{"sentence1": "a", "sentence2": "b", "label": 0}]))
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: read_examples(tmp_path / "none.json"), "got no file"),
        (lambda: read_examples(tmp_path / "broken.json"), "which is not JSON"),
        (lambda: read_task("mnli"), r"got task 'mnli'; allowed: sst2, rte\. Choose"),
        (lambda: read_task(None, task / "train.json"), "neither a task nor both files"),
        (lambda: read_task(None, task / "train.json", tmp_path / "other.json"), r"labels \[7\] that only"),
        (lambda: read_task(None, task / "train.json", tmp_path / "pair.json"), "pairs in the other"),
        (lambda: n_classes([Example(("a",), 0), Example(("b",), 2)]), r"training labels \[0, 2\]"),
        (lambda: n_classes([Example(("a",), 0)]), r"training labels \[0\]"),
        (lambda: split(examples(4), 0.1, 0), "4 training examples with a share of 0.1"),
    ]
    for call, said in cases:
        with pytest.raises(DataError, match=said):
            call()


def test_bad_budgets_settings_and_models_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BudgetError, match=r"got budget 0\.33 with 2 protected layers of 6.*Raise the budget to 0\.334"):
        gated_layers((0, -1), 6, 0.33)
    assert gated_layers((0, -1), 6, 0.34) == (1, 2, 3, 4)
    assert gated_layers((), 3, 0.1) == (0, 1, 2)
    with pytest.raises(SkipError, match=r"got protect \[6\]; allowed: layers -6 to 5"):
        gated_layers((6,), 6, 0.5)
    with pytest.raises(SkipError, match="all 2 layers protected"):
        gated_layers((0, 1), 2, 1.0)
    with pytest.raises(HparamsError, match=r"budget: got 1\.5; allowed: above 0\.0 and at most 1\.0"):
        EncoderHparams().replaced(budget=1.5)
    with pytest.raises(HparamsError, match=r"init: got 'I3'; allowed: I0, I1, I2"):
        EncoderHparams().replaced(init="I3")
    with pytest.raises(ModelError, match=r"could not be loaded; allowed: a hub id, a local folder"):
        load_encoder(str(tmp_path))
    monkeypatch.setitem(ALIASES, "gone", ("no_such", "", "do it"))
    with pytest.raises(ModelError, match=r"'gone', whose package is missing; .* Install it: do it"):
        load_encoder("gone")
    with pytest.raises(SkipError, match=r"exit rule 'hope'; allowed: patience, entropy"):
        calibrate_exit("hope", torch.zeros(2, 3, 2), 0.5)
    with pytest.raises(SkipError, match="start 'I1' without a sweep"):
        initialise(EncoderGates((1, 2), HIDDEN, "first"), "I1", None, 0.5)


def test_scores_have_intervals() -> None:
    found = score("x", [1.0] * 80 + [0.0] * 20, 0.5)
    assert (found.accuracy, found.n) == (0.8, 100)
    assert 0.7 <= found.low < 0.8 < found.high <= 0.9


def test_batches_cover_every_row_once_an_epoch() -> None:
    data = Encoded.of(examples(50), tokenizer(), 32)
    steps = data.steps(8, 14, torch.Generator().manual_seed(0))
    assert torch.cat(steps[:7]).sort().values.tolist() == list(range(50))
    assert torch.cat(steps[7:]).sort().values.tolist() == list(range(50))
    assert torch.cat(steps[:7]).tolist() != torch.cat(steps[7:]).tolist()
    assert data.batch(torch.tensor([0, 1]))["input_ids"].shape == (2, int(data.lengths[:2].max()))


def test_command_line_end_to_end(folder: Path, task: Path, tmp_path: Path) -> None:
    hparams = tmp_path / "small.yaml"
    hparams.write_text("epochs: 2\nskip_epochs: 2\nrows: 8\nlr: 1e-3\njudged: 16\nheld_out: 0.25\ndevice: cpu\n")
    files = ["--train", str(task / "train.json"), "--dev", str(task / "dev.json"), "--hparams", str(hparams)]
    asked = ["skip", "fit-classifier", "--model", str(folder), *files, "--budget", "0.5", "--seed", "3", "--out"]
    done = CliRunner().invoke(app, [*asked, str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    for part in ("full", "gated", "accuracy", "mean cost", "1.000", "speed-up measured"):
        assert part in done.output
    said = CliRunner().invoke(app, ["skip", "classify", str(tmp_path / "out"), "--text", "a good film", "--json"])
    (answer,) = json.loads(said.output)
    assert answer["label"] in (0, 1) and sum(answer["probabilities"]) == pytest.approx(1.0)
    assert 0 in answer["layers_run"]
    record = json.loads((tmp_path / "out" / "classifier.json").read_text())
    assert record["made_by"]["settings"]["seed"] == 3
    again = CliRunner().invoke(app, [*asked, str(tmp_path / "out")])
    assert isinstance(again.exception, ProfileFileError)
    pair = CliRunner().invoke(app, ["skip", "classify", str(tmp_path / "out"), "--text", "a", "--second", "b"])
    assert isinstance(pair.exception, RequestError)
