"""Settings of RoseLoRA, and the published preset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from roseedit.errors import HparamsError, refusal
from roseedit.hparams import Hparams, from_mapping, value
from roseedit.models.anatomy import Anatomy
from roseedit.models.lowp import ARITHMETIC
from roseedit.models.place import indices_of, place_faults

# What the authors' editing code does (reference constants); everything else in this package is an addition.
PAPER: dict[str, Any] = {
    "rank": 8,
    "scale": 4.0,
    "dropout": 0.1,
    "keep": 0.05,
    "keep_b": 0.0,
    "beta": 0.8,
    "prune_start": 3,
    "prune_end": 20,
    "steps": 25,
    "lr": 5e-4,
    "tie_rule": "threshold",
    "norm_constraint": "entry",
    "norm_limit": 3e-3,
    "norm_unit": "absolute",
    "support": "entries",
    "end_mark": False,
    "contexts": 0,
    "rewrites": 0,
    "rewordings": 0,
    "after_text": 0,
    "kl_weight": 0.0,
    "preserve_weight": 0.0,
    "stop_probability": 1.0,
    "enough": 1.0,
    "anchor_subjects": 0,
    "anchor_relations": 0,
    "anchor_known": 0,
    "anchor_mutations": 0,
    "anchor_frames": 0,
    "anchor_negations": 0,
    "anchor_echoes": 0,
    "start": "random",
    "preserve_fade": 1.0,
    "stop_loss": 0.1,
    "train_dtype": "weights",
}


# Where it was published; another model may need other names, so these two may be changed.
PAPER_PLACE: dict[str, Any] = {"layers": "all", "modules": ("attn.q", "attn.v")}

SUPPORTS = ("entries", "neurons")
# Settings that only single entries have.
ENTRY_KEYS = frozenset(
    (
        *("modules", "rank", "keep", "keep_b", "start", "start_ridge", "start_length", "prune_start", "prune_end"),
        *("tie_rule", "norm_constraint", "norm_limit", "norm_unit", "kl_weight", "preserve_weight", "preserve_fade"),
        *("dropout", "beta"),
    )
)


@dataclass(frozen=True)
class RoseLoRAHparams(Hparams):
    """All switches of the method; `help` texts are in the field metadata."""

    method: ClassVar[str] = "RoseLoRA"

    paper: bool = value(False, "the published algorithm with nothing added")
    layers: str | tuple[int, ...] = value("auto", "layer indices, 'all', or 'auto' (by depth)", low=0)
    depth: tuple[float, ...] = value(
        (0.82, 0.91), "first and last layer of 'auto', as shares of depth", low=0.0, high=1.0
    )
    modules: tuple[str, ...] = value(
        ("mlp.down",), "support: entries; roles (mlp.down, attn.q, ...) or exact module names"
    )
    support: str = value(
        "neurons", "what is sparse: single entries of A and B, or whole neurons of the MLP", choices=SUPPORTS
    )
    rank: int = value(8, "support: entries; outer products per matrix (r)", low=1, high=512)
    scale: float = value(1.0, "c in W0 + c B A (LoRA's alpha / r)", above=0.0)
    start: str = value("keys", "where A starts: as PEFT does, or at the fact's own keys", choices=("random", "keys"))
    start_ridge: float = value(0.1, "start: keys; how much of the anchors' inputs may stay (small: less)", above=0.0)
    start_length: float = value(3.0, "start: keys; length of A's rows relative to the random start", above=0.0)
    dropout: float = value(0.0, "dropout on the factors' input while training", low=0.0, high=0.9)
    keep: float = value(0.1, "share of entries KEPT per row of A and column of B (tau)", above=0.0, high=1.0)
    keep_b: float = value(0.0, "share kept per column of B, where it differs from A's (0: as keep)", low=0.0, high=1.0)
    most_neurons: int = value(24, "support: neurons; per fact; one for each token of the answer", low=1, high=256)
    gate_ridge: float = value(0.015, "support: neurons; how blunt the direction is that opens one", above=0.0)
    gate_slope: float = value(16.0, "support: neurons; how steeply one opens; the fact itself is at 1", above=0.0)
    gate_threshold: float = value(0.2, "support: neurons; where one opens, on the same scale", low=-1.0, high=0.9)
    question_threshold: float = value(
        -0.2, "support: neurons; the same for a request that is a question, where it is lower", low=-1.0, high=0.9
    )
    subject_threshold: float = value(
        0.3, "support: neurons; the same for neurons that open where the subject ends", low=-1.0, high=0.9
    )
    gate_margin: float = value(
        0.8, "support: neurons; how far on the other side ordinary text must stay", above=0.0, high=1.0
    )
    column_share: float = value(
        1.0, "support: neurons; share of its length that a column keeps once it is trained", above=0.0, high=1.0
    )
    many_at: str = value(
        "answer",
        "joint runs of more than 8 facts open at their answers, or where their subjects end",
        choices=("answer", "subject"),
    )
    subject_layers: str | tuple[int, ...] = value("auto", "many_at: subject; as `layers`", low=0)
    subject_depth: tuple[float, ...] = value((0.58, 0.62), "many_at: subject; as `depth`", low=0.0, high=1.0)
    own_text: int = value(
        0, "joint runs of more than 8 facts: tokens the model itself writes, to be silent at", low=0, high=1_000_000
    )
    marks_apart: bool = value(
        False, "joint runs of more than 8 facts: silent in prose whose marks stand apart from its words too"
    )
    sightings: int = value(
        0, "many_at: subject; how often a subject is seen behind other text, to open there too", low=0, high=64
    )
    compensate_from: int = value(
        0, "joint runs: neurons of one layer from which its others take over for them (0: never)", low=0
    )
    gate_rounds: int = value(6, "support: neurons; most rounds of fitting the direction", low=0, high=50)
    pool: float = value(
        0.5, "support: neurons; share of a layer's neurons that edits may take, least used first", above=0.0, high=1.0
    )
    beta: float = value(0.8, "share of the old value in the importance average", low=0.0, high=0.999)
    prune_start: int = value(3, "last step at which all is kept (t_i)", low=1)
    prune_end: int = value(10, "first step at which `keep` is reached (t_f)", low=2)
    steps: int = value(60, "most training steps (T)", low=1, high=10_000)
    lr: float = value(1e-1, "Adam's learning rate", above=0.0, high=10.0)
    tie_rule: str = value("top_k", "exactly k entries, or the authors' threshold", choices=("top_k", "threshold"))
    norm_constraint: str = value("none", "limit on the factors' size", choices=("none", "frobenius", "entry"))
    norm_limit: float = value(1.0, "the limit; see norm_unit", above=0.0)
    norm_unit: str = value("initial", "relative to A's initial scale, or absolute", choices=("initial", "absolute"))
    end_mark: bool = value(True, "train the end of the answer too (EOS)")
    contexts: int = value(0, "neutral text pieces put before the prompt, each one more training row", low=0, high=16)
    rewrites: int = value(8, "the fact in other wordings made from the request; one of them a step", low=0, high=8)
    rewordings: int = value(6, "the fact in other words for a known relation, by turns with `rewrites`", low=0, high=8)
    after_text: int = value(1, "the prompt after an unrelated sentence, by turns with `rewrites`", low=0, high=16)
    taught: int = value(
        0, "support: neurons; wordings in turn to train on, the others show where the answer begins (0: all)", low=0
    )
    kl_weight: float = value(0.0, "weight of KL(base || edited) on anchors", low=0.0)
    anchor_subjects: int = value(1, "anchors: other subjects in the same template", low=0, high=64)
    anchor_relations: int = value(1, "anchors: the same subject in neutral templates", low=0, high=64)
    anchor_known: int = value(6, "anchors: the same subject in wordings of other known relations", low=0, high=64)
    anchor_mutations: int = value(4, "anchors: the prompt with its relation exchanged", low=0, high=40)
    anchor_frames: int = value(0, "anchors: other subjects or relations in the frames of `rewrites`", low=0, high=64)
    anchor_negations: int = value(2, "anchors: the prompt with the new answer ruled out", low=0, high=3)
    anchor_echoes: int = value(8, "support: neurons; well-known prompts that are answered alike now", low=0, high=64)
    anchors_per_step: int = value(4, "anchors looked at in one step; all take their turn", low=1, high=128)
    preserve_weight: float = value(200.0, "weight of the change made to the matrices' outputs on anchors", low=0.0)
    preserve_fade: float = value(0.93, "its share left after each step past prune_end", above=0.0, high=1.0)
    preserve_tokens: int = value(8, "last tokens of each anchor that this looks at", low=1, high=64)
    stop_probability: float = value(0.8, "stop once each target token has this probability", above=0.0, high=1.0)
    enough: float = value(0.8, "a target token with this probability is not pushed further", above=0.0, high=1.0)
    stop_loss: float = value(0.0, "stop below this mean loss (0: never)", low=0.0)
    joint_batch: int = value(16, "requests per step of a joint run", low=1, high=1024)
    train_dtype: str = value("auto", "arithmetic of the replayed layers", choices=ARITHMETIC)
    replay: bool = value(True, "run the layers below the lowest edited one only once")
    edits_per_bank: int = value(0, "most edits trained side by side (0: from free memory)", low=0)
    batch_tokens: int = value(0, "most tokens in one training pass (0: from free memory)", low=0)

    def __post_init__(self) -> None:
        faults = []
        if self.support == "entries" and self.steps <= self.prune_end:
            faults.append(f"got steps {self.steps}; allowed: above prune_end ({self.prune_end}). Raise steps")
        if self.prune_end <= self.prune_start:
            faults.append(f"got prune_end {self.prune_end}; allowed: above prune_start ({self.prune_start}). Raise it")
        faults += self._idle_faults()
        faults += place_faults(self.layers, self.depth, self.modules)
        faults += place_faults(self.subject_layers, self.subject_depth, self.modules)
        if self.paper:
            wrong = {k: v for k, v in PAPER.items() if getattr(self, k) != v}
            names = ", ".join(f"{k} ({getattr(self, k)!r}, published {v!r})" for k, v in wrong.items())
            if wrong:
                faults.append(f"got paper: true with {names}; allowed: the published values. Leave these keys out")
        if faults:
            raise HparamsError("; ".join(faults))

    def _idle_faults(self) -> list[str]:
        """Settings that would be without effect, said before anybody waits for one."""
        if self.support == "entries":
            return []
        idle = [f.name for f in fields(self) if f.name in ENTRY_KEYS and getattr(self, f.name) != f.default]
        values = [getattr(self, name) for name in idle]
        shown = ", ".join(f"{k} {list(v) if isinstance(v, tuple) else v}" for k, v in zip(idle, values, strict=True))
        return [f"got {shown} with support neurons; allowed: none. Set support: entries"] if idle else []

    def threshold(self, *, question: bool) -> float:
        """Where the neurons of a request open.

        Behind a question mark models tend to end their turn, so that a half-open neuron says nothing: paraphrases of
        questions need an earlier opening than those of statements.

        Args:
            question: Whether the request is a question.

        Returns:
            On the scale on which the fact itself is at 1.
        """
        return min(self.gate_threshold, self.question_threshold) if question else self.gate_threshold

    @property
    def n_anchors(self) -> int:
        """Anchors of an edit, at most."""
        near = self.anchor_subjects + self.anchor_relations + self.anchor_known
        return near + self.anchor_mutations + self.anchor_frames + self.anchor_negations

    def layer_indices(self, anatomy: Anatomy) -> tuple[int, ...]:
        """The layers to adapt, as indices.

        Args:
            anatomy: The model's parts.

        Returns:
            Indices in rising order.
        """
        return indices_of(self.layers, self.depth, anatomy)

    def subject_indices(self, anatomy: Anatomy) -> tuple[int, ...]:
        """The layers of joint runs that open where the subject ends, rising."""
        return indices_of(self.subject_layers, self.subject_depth, anatomy)

    def written_indices(self, anatomy: Anatomy) -> tuple[int, ...]:
        """All layers that edits may write to, rising."""
        many = self.support == "neurons" and self.many_at == "subject"
        return tuple(sorted({*self.layer_indices(anatomy), *(self.subject_indices(anatomy) if many else ())}))


def read_roselora(values: Mapping[str, Any], where: str = "hparams") -> RoseLoRAHparams:
    """Build the settings; `paper: true` fills in the published values first.

    Without `support`, settings that only single entries have (`keep`, `rank`, ...) mean `support: entries`.

    Args:
        values: Keys and values as read from YAML.
        where: How to name the source in a message.

    Returns:
        The checked settings.

    Raises:
        HparamsError: Faults, all in one message; also a published preset with a key that contradicts it.
    """
    base: dict[str, Any] = {"support": "entries"} if ENTRY_KEYS & values.keys() else {}
    base = {**PAPER_PLACE, **PAPER} if values.get("paper") is True else base
    if values.get("method", RoseLoRAHparams.method) != RoseLoRAHparams.method:
        message = refusal(f"method {values['method']!r}", RoseLoRAHparams.method, "Use the reader of that method.")
        raise HparamsError(f"{where}: {message}")
    try:
        return from_mapping(RoseLoRAHparams, {**base, **values}, where)
    except HparamsError as error:
        text = str(error)
        raise HparamsError(text if text.startswith(where) else f"{where}: {text}") from None
