"""MiniLM-L6: the wheel's model is understood, learns a small task, and its gates keep to the budget."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from roseedit.hadskip.encoder.classifier import EncoderClassifier
from roseedit.hadskip.encoder.compare import fit_and_compare
from roseedit.hadskip.encoder.data import Encoded, Example
from roseedit.hadskip.encoder.embedded import ALIASES, alias_folder
from roseedit.hadskip.encoder.files import load_classifier, save_classifier
from roseedit.hadskip.encoder.fit import ClassifierFit
from roseedit.hadskip.encoder.gates import EncoderGates, GateRouter, pooled
from roseedit.hadskip.encoder.load import load_encoder
from roseedit.hadskip.encoder.settings import EncoderHparams

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(alias_folder("minilm-l6") is None, reason=f"its package is missing: {ALIASES['minilm-l6'][2]}"),
]
PRAISE = ("wonderful", "moving", "brilliant", "charming", "superb", "delightful", "gripping", "funny")
BLAME = ("dreadful", "tedious", "clumsy", "lifeless", "awful", "boring", "stale", "pointless")
THINGS = ("film", "plot", "cast", "script", "score", "ending", "dialogue", "camera work")


def reviews() -> list[Example]:
    return [
        Example((f"the {thing} was {word}",), label)
        for thing in THINGS
        for label, words in ((1, PRAISE), (0, BLAME))
        for word in words
    ]


def test_parts_and_open_gates() -> None:
    loaded = load_encoder("minilm-l6")
    assert (loaded.parts.n_layers, loaded.parts.hidden_size, loaded.parts.window) == (6, 384, 512)
    data = Encoded.of(reviews()[:8], loaded.tokenizer, 32)
    batch = data.batch(torch.arange(8))
    classifier = EncoderClassifier(loaded, 2)
    classifier.head.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        stock = pooled(loaded.model(**batch).last_hidden_state, batch["attention_mask"], "first")
        gates = EncoderGates(range(1, 6), 384, "both")
        assert torch.equal(classifier(batch, GateRouter(gates)).logits, classifier.head(stock))


def test_a_small_task_is_learnt_within_the_budget(tmp_path: Path) -> None:
    reviewed = reviews()
    held = [e for i, e in enumerate(reviewed) if i % 5 == 0]
    train = [e for i, e in enumerate(reviewed) if i % 5]
    settings = EncoderHparams(device="cpu", held_out=0.2, rows=8, epochs=6, skip_epochs=12, judged=64)
    gated, figures = fit_and_compare(ClassifierFit(settings, train), held, passes=1)
    full, skipped = figures["scores"]
    assert full["accuracy"] > 0.9 and full["cost"] == 1.0
    assert skipped["accuracy"] > 0.9
    assert 0.3 < figures["calibrated_cost"] <= 0.5 + 1e-6  # twenty rows of one pattern: thresholds come in jumps
    assert skipped["cost"] < 0.65  # the same kind of text: near the calibrated cost
    again = load_classifier(save_classifier(gated, tmp_path / "reviews"))
    said = again.predict(["the songs were superb", "the pacing was dreadful"])
    assert [p.label for p in said] == [1, 0]
    assert said == gated.predict(["the songs were superb", "the pacing was dreadful"])
