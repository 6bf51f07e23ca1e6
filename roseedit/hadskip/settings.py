"""Settings of a HadSkip fit, read strictly from YAML like those of any method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from roseedit.hadskip.healing import KINDS
from roseedit.hadskip.importance import INITS
from roseedit.hparams import Hparams, value
from roseedit.models.lowp import ARITHMETIC


@dataclass(frozen=True)
class HadSkipHparams(Hparams):
    """How gates and healing are fitted. Field texts are in the definitions."""

    method: ClassVar[str] = "HadSkip"

    budget: float = value(0.75, "mean share of layer cost that may run", above=0.0, high=1.0)
    text: str = value("wikitext2", "text to fit on: wikitext2 (validation part) or a file")
    protect: tuple[int, ...] = value((), "layers never skipped, beside 0, 1, the last and the edited ones", low=0)
    tokens: int = value(128, "tokens per sequence", low=8)
    sequences: int = value(192, "most sequences for training; a shorter text gives what it has", low=4)
    held_out: int = value(48, "sequences for calibration, never trained on", low=2)
    judged: int = value(24, "sequences of the leave-one-out sweep (I1, I2)", low=2)
    answer_weight: float = value(1.0, "weight of the edits' own answers in the training of the healing", low=0)
    edit_share: float = value(0.5, "share of training sequences that hold the edits' answers", low=0, high=0.9)

    init: str = value("spans", "start of the gates", choices=INITS)
    span_sequences: int = value(24, "sequences on which the start `spans` finds what to drop together", low=1)
    homotopy: bool = value(True, "false: the final budget from the first step (ablation)")
    gate_steps: int = value(40, "steps of the gates' training", low=0)
    gate_tokens: int = value(64, "tokens per sequence in these steps, in which both branches of each layer run", low=8)
    gate_lr: float = value(0.05, "step size of the gates", above=0.0)
    components: int = value(16, "principal directions of the pooled state that a gate sees", low=1)
    penalty: float = value(20.0, "largest weight of the budget's hinge", above=0.0)

    healing: str = value("lora", "what skipped layers do instead: nothing, a scale, a low-rank map", choices=KINDS)
    rank: int = value(32, "rank of the low-rank maps", low=1)
    solve_sequences: int = value(96, "sequences for the closed-form solution", low=1)
    healing_steps: int = value(60, "steps of its training after that", low=0)
    healing_lr: float = value(1e-3, "step size of that training", above=0.0)

    train_dtype: str = value("auto", "arithmetic of the training; bfloat16 where it is native", choices=ARITHMETIC)
    rows: int = value(8, "sequences per step", low=1)
    positions: float = value(0.5, "share of token positions looked at in a step", above=0.0, high=1.0)
    profiles: int = value(4, "most profiles", low=1, high=8)
