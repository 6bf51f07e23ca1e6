"""Settings of a HadSkip fit of an encoder classifier, read strictly from YAML like those of any method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from roseedit.hadskip.encoder.gates import FEATURES
from roseedit.hparams import Hparams, value
from roseedit.models.lowp import ARITHMETIC

STARTS = ("I0", "I1", "I2")
SWEEPS = ("alone", "above")


@dataclass(frozen=True)
class EncoderHparams(Hparams):
    """How an encoder is fine-tuned and its gates are trained. Field texts are in the definitions."""

    method: ClassVar[str] = "HadSkipEncoder"

    model: str = value("minilm-l6", "hub id, local folder or embedded alias of an encoder")
    budget: float = value(0.5, "mean share of layer cost that may run", above=0.0, high=1.0)
    protect: tuple[int, ...] = value((0,), "layers never gated; negative ones count from the top")
    max_tokens: int = value(128, "longer inputs are cut", low=4)
    held_out: float = value(0.1, "share of the training data set aside for calibration", above=0.0, high=0.5)

    pooling: str = value("mean", "what the head sees: the first token or the mean", choices=("first", "mean"))
    dropout: float = value(0.1, "of the head's input, in training", low=0.0, high=0.9)
    rows: int = value(32, "inputs per step", low=1)
    epochs: float = value(2.0, "passes over the data of the full model's fine-tuning", above=0.0)
    lr: float = value(1e-4, "its largest step size", above=0.0)
    weight_decay: float = value(0.01, "of all trainings", low=0.0)

    skip_epochs: float = value(2.0, "passes of the gates' training, and of each baseline's", above=0.0)
    skip_lr: float = value(1e-4, "largest step size of encoder and head in it", above=0.0)
    gate_lr: float = value(1e-5, "largest step size of the gates", above=0.0)
    feature: str = value("both", "what a gate sees of its input", choices=FEATURES)
    confidence: bool = value(True, "gates see, besides, how unsure the head would be if the encoder ended here")
    init: str = value("I2", "start of the gates", choices=STARTS)
    sweep: str = value("above", "what the sweep drops: a layer alone, or it and all above", choices=SWEEPS)
    judged: int = value(1024, "training inputs of the sweep (I1, I2)", low=8)
    needed: float = value(0.1, "share of the labels of I2 that say a layer is needed", above=0.0, high=0.9)
    warm: float = value(0.8, "share of its steps that first bring the encoder to the budget", low=0.0, high=0.9)
    refit: bool = value(True, "I2 once more on the trained encoder, before the calibration")
    homotopy: bool = value(True, "false: the final budget from the first step (ablation)")
    noise: float = value(0.0, "scale of the logistic noise on scores in training", low=0.0)
    penalty: float = value(1.0, "largest weight of the budget's hinge", above=0.0)
    distil: float = value(1.0, "weight of the KL from the full model, at temperature 2", low=0.0)
    hidden: float = value(0.0, "weight of the distance of pooled states from the full model's", low=0.0)
    train_dtype: str = value("auto", "arithmetic of the training; bfloat16 where it is native", choices=ARITHMETIC)
