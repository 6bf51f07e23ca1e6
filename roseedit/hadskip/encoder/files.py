"""The files of a gated classifier: the encoder as transformers writes it, head and gates as safetensors, a record.

Loading trusts nothing: the record carries its own hash and those of the weights, and a folder with pickled files in it
is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from roseedit import __version__
from roseedit.edits.files import PICKLES
from roseedit.edits.storage import write_file
from roseedit.errors import BudgetError, ProfileFileError, RequestError, RoseEditError, refusal
from roseedit.hadskip.encoder.classifier import EncoderClassifier
from roseedit.hadskip.encoder.data import Encoded
from roseedit.hadskip.encoder.gates import EncoderGates, GateRouter
from roseedit.hadskip.encoder.load import load_encoder
from roseedit.hadskip.encoder.measure import calibrate, judge
from roseedit.hadskip.files import check_free, record_hash

FORMAT = 1
RECORD, GATES, ENCODER = "classifier.json", "gates.safetensors", "model.safetensors"


@dataclass(frozen=True)
class Prediction:
    """What a gated classifier says about one input.

    Attributes:
        label: The most probable class.
        probabilities: One per class.
        layers_run: Indices of the layers that ran.
    """

    label: int
    probabilities: tuple[float, ...]
    layers_run: tuple[int, ...]


class GatedClassifier:
    """A classifier whose gates pick layers per input; made by `ClassifierFit`, read by `load_classifier`.

    Args:
        classifier: Encoder and head, trained along with the gates.
        gates: Calibrated.
        max_tokens: Longer inputs are cut.
        sentences: 1, or 2 for pairs.
        made_by: Settings and figures of the fit, as plain JSON.
    """

    def __init__(
        self,
        classifier: EncoderClassifier,
        gates: EncoderGates,
        max_tokens: int,
        sentences: int,
        made_by: Mapping[str, Any],
    ) -> None:
        self.classifier, self.gates, self.max_tokens = classifier, gates, max_tokens
        self.sentences, self.made_by = sentences, dict(made_by)

    def predict(self, texts: Sequence[str | Sequence[str]], *, rows: int = 32) -> list[Prediction]:
        """Classify.

        Args:
            texts: One string per input, or a pair of strings where the classifier was fitted on pairs.
            rows: Inputs per batch.

        Returns:
            One prediction per input, in the same order.

        Raises:
            RequestError: No input, an empty text, or the wrong number of sentences.
        """
        data = self._encoded(texts)
        found = judge(self.classifier, data, GateRouter(self.gates), rows)
        probabilities = found.logits.softmax(-1)
        return [
            Prediction(int(p.argmax()), tuple(p.tolist()), tuple(ran.nonzero().flatten().tolist()))
            for p, ran in zip(probabilities, found.run, strict=True)
        ]

    def recalibrate(self, texts: Sequence[str | Sequence[str]], budget: float) -> float:
        """Set theta anew so that the mean cost on these inputs equals a budget; labels are not needed.

        Args:
            texts: A few hundred inputs of the kind that will be classified, as `predict` takes them.
            budget: Mean share of layers that may run.

        Returns:
            The mean cost reached, at most the budget.

        Raises:
            RequestError: As `predict`.
            BudgetError: The layers without a gate alone cost more, or the budget is above 1.
        """
        n_layers = self.classifier.parts.n_layers
        always = (n_layers - len(self.gates.layers)) / n_layers
        if not always <= budget + 1e-9 <= 1 + 1e-6:
            got = f"budget {budget} with {n_layers - len(self.gates.layers)} of {n_layers} layers without a gate"
            raise BudgetError(refusal(got, f"{always:.3f} to 1", "Choose one in between."))
        return calibrate(self.classifier, self.gates, self._encoded(texts), budget)

    def _encoded(self, texts: Sequence[str | Sequence[str]]) -> Encoded:
        inputs = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
        self._check(inputs)
        return Encoded(inputs, self.classifier.tokenizer, self.max_tokens)

    def _check(self, inputs: Sequence[tuple[str, ...]]) -> None:
        if not inputs:
            raise RequestError(refusal("no text", "one or more", "Give some."))
        for i, texts in enumerate(inputs):
            if len(texts) != self.sentences or not all(isinstance(t, str) and t.strip() for t in texts):
                wanted = "one text" if self.sentences == 1 else f"{self.sentences} texts"
                got = f"input {i} with {sum(bool(str(t).strip()) for t in texts)} non-empty texts"
                raise RequestError(refusal(got, f"{wanted} per input, as the classifier was fitted", "Correct it."))


def save_classifier(gated: GatedClassifier, folder: str | Path) -> Path:
    """Write a gated classifier.

    Args:
        gated: The classifier.
        folder: A new or empty folder.

    Returns:
        The folder.

    Raises:
        ProfileFileError: The folder holds something already.
    """
    target = Path(folder)
    check_free(target)
    target.mkdir(parents=True, exist_ok=True)
    classifier, gates = gated.classifier, gated.gates
    encoder: Any = classifier.encoder
    encoder.save_pretrained(target)
    classifier.tokenizer.save_pretrained(target)
    head = {f"head.{name}": t for name, t in classifier.head.state_dict().items()}
    _write(target / GATES, head | {f"gates.{name}": t for name, t in gates.state_dict().items()})
    record: dict[str, Any] = {
        "format": FORMAT,
        "roseedit": __version__,
        "model_name": classifier.name,
        "n_classes": classifier.n_classes,
        "pooling": classifier.pooling,
        "gated_layers": list(gates.layers),
        "feature": gates.feature,
        "confidence": gates.confidence,
        "max_tokens": gated.max_tokens,
        "sentences": gated.sentences,
        "made_by": gated.made_by,
        "sha256": {name: _sha256(target / name) for name in (ENCODER, GATES)},
    }
    record["record_sha256"] = record_hash(json.loads(json.dumps(record)))
    write_file(target / RECORD, json.dumps(record, indent=1, ensure_ascii=False).encode())
    return target


def load_classifier(folder: str | Path, *, device: str = "cpu") -> GatedClassifier:
    """Read a gated classifier.

    Args:
        folder: Where it was saved.
        device: Where it goes.

    Returns:
        The classifier; it predicts what it predicted when it was saved.

    Raises:
        ProfileFileError: Files missing, damaged, pickled or of another format.
    """
    source = Path(folder)
    record = _read_record(source)
    try:
        for name in (ENCODER, GATES):
            _check_hash(source / name, record["sha256"][name])
        return _gated(source, record, device)
    except ProfileFileError:
        raise
    except (RoseEditError, KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        got = f"{str(source)!r} with a missing or wrong part ({error})"
        raise ProfileFileError(refusal(got, "the files as saved", "Copy them anew.")) from error


def _gated(source: Path, record: dict[str, Any], device: str) -> GatedClassifier:
    from safetensors.torch import load_file

    loaded = load_encoder(str(source), device=device)
    loaded.name = str(record["model_name"])
    tensors = load_file(source / GATES)
    if not all(bool(torch.isfinite(t).all()) for t in tensors.values()):
        raise ProfileFileError(refusal(f"{GATES} with NaN or infinity", "finite numbers", "Fit anew."))
    classifier = EncoderClassifier(loaded, int(record["n_classes"]), str(record["pooling"]))
    head, width = classifier.head if record["confidence"] else None, loaded.parts.hidden_size
    feature = str(record["feature"])
    gates = EncoderGates(record["gated_layers"], width, feature, head=head, pooling=classifier.pooling)
    for module, prefix in ((classifier.head, "head."), (gates, "gates.")):
        module.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
    made_by, sentences = dict(record["made_by"]), int(record["sentences"])
    return GatedClassifier(classifier.to(device), gates.to(device), int(record["max_tokens"]), sentences, made_by)


def _read_record(source: Path) -> dict[str, Any]:
    if not (source / RECORD).is_file():
        got = f"{str(source)!r}, which holds no {RECORD}"
        raise ProfileFileError(refusal(got, "a folder that `skip fit-classifier` wrote", "Check the path."))
    pickled = sorted(p.name for p in source.iterdir() if p.suffix.lower() in PICKLES)
    if pickled:
        got = f"a folder with {', '.join(pickled)} in it"
        raise ProfileFileError(refusal(got, "safetensors and json only", "Remove that file."))
    try:
        record = json.loads((source / RECORD).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ProfileFileError(refusal(f"{RECORD} that is not JSON", "the file as saved", "Copy it anew.")) from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        got = f"classifier format {record.get('format') if isinstance(record, dict) else type(record).__name__!r}"
        raise ProfileFileError(refusal(got, f"{FORMAT}", "Use the version of roseedit that wrote it."))
    if record_hash(record) != record.get("record_sha256"):
        got = f"{RECORD} that differs from its own hash"
        raise ProfileFileError(refusal(got, "the file as it was saved", "Copy it anew."))
    return record


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save

    write_file(path, save({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _check_hash(path: Path, wanted: str) -> None:
    if _sha256(path) != wanted:
        got = f"{path.name}, missing or other than its record says"
        raise ProfileFileError(refusal(got, "the file as saved", "Copy it anew."))
