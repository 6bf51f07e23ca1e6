"""What the ledger's tests share: quick edits that need no training, a model of the weights with its own arithmetic, and
a fixed series of calls whose outcome is known call by call.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from roseedit.editor import Editor
from roseedit.edits.delta import Delta
from roseedit.edits.edit import Edit
from roseedit.edits.live import live_edits
from roseedit.hparams import Hparams, from_mapping
from roseedit.methods import MadeDelta, registry
from roseedit.models.load import LoadedModel
from roseedit.requests import EditRequest

PATHS = ("model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj")
RANK, KEPT = 3, 9


@dataclass(frozen=True)
class SyntheticHparams(Hparams):
    """Nothing but the seed matters."""

    method: ClassVar[str] = "Synthetic"
    size: float = 0.5


class Synthetic:
    """Deltas drawn at random, seeded by the requests."""

    def read(self, values: Mapping[str, Any], where: str) -> Hparams:
        """As every method."""
        return from_mapping(SyntheticHparams, values, where)

    def check(self, loaded: LoadedModel, hparams: Hparams) -> None:
        """Nothing to refuse."""

    def fit(
        self,
        loaded: LoadedModel,
        requests: Sequence[EditRequest],
        hparams: Hparams,
        *,
        joint: bool,
        progress: Callable[[float], None] | None = None,
    ) -> list[MadeDelta]:
        """One delta for all, or one each."""
        size = hparams.size if isinstance(hparams, SyntheticHparams) else 0.0
        groups = [tuple(requests)] if joint else [(request,) for request in requests]
        projections = {p.module_name: p for p in loaded.anatomy.projections}
        out = []
        for group in groups:
            rng = np.random.default_rng([int(r.request_id, 16) for r in group])
            factors = {}
            for path in PATHS:
                p = projections[path]
                factors[path] = (_sparse(rng, RANK, p.d_in) * size, _sparse(rng, RANK, p.d_out).T.contiguous())
            delta = Delta.from_factors(projections, factors)
            out.append(MadeDelta(delta, {"steps": 1, "converged": True}))
        return out


def _sparse(rng: np.random.Generator, rows: int, n: int) -> torch.Tensor:
    out = np.zeros((rows, n), dtype=np.float32)
    for row in out:
        row[rng.choice(n, KEPT, replace=False)] = rng.normal(size=KEPT)
    return torch.from_numpy(out)


def open_editor(loaded: LoadedModel, ledger: Path | None, **settings: Any) -> Editor:
    """An editor with synthetic edits."""
    registry._METHODS["Synthetic"] = "ledger_world:Synthetic"
    hparams = {"method": "Synthetic", "model": "tiny", **settings}
    editor = Editor.from_pretrained(loaded.model, loaded.tokenizer, hparams, ledger=ledger)
    editor.show_progress = False
    return editor


def leave(editor: Editor) -> None:
    """Close the ledger and give the model back as it was loaded."""
    editor.close()
    live = live_edits(editor.loaded.model)
    for delta in live.deltas:
        live.revert(delta)


def fact(i: int, answer: str = "") -> EditRequest:
    """A fact that contradicts none with another number."""
    return EditRequest(f"The colour of stone number {i} is", answer or f"shade {i}", subject=f"stone number {i}")


class DictionaryModel:
    """What the weights must be, in Python integers: per entry the sum of round(b * a * 2^40) over the live edits."""

    def __init__(self, loaded: LoadedModel) -> None:
        parameters = dict(loaded.model.named_parameters())
        self.base = {f"{p}.weight": parameters[f"{p}.weight"].detach().numpy().copy() for p in PATHS}
        self.edits: dict[str, dict[tuple[str, int, int], int]] = {}

    def learn(self, edit: Edit) -> None:
        """Work an edit's entries out, once."""
        if edit.edit_id in self.edits:
            return
        sums: dict[tuple[str, int, int], int] = {}
        for m in edit.delta.matrices:
            a, b = m.a.dense(m.d_in).double().tolist(), m.b.dense(m.d_out).double().tolist()
            for row, column in zip(a, b, strict=True):
                for o, y in enumerate(column):
                    for i, x in enumerate(row):
                        if x and y:
                            key = (m.weight_name, o, i)
                            sums[key] = sums.get(key, 0) + round(y * x * 2**40)
        self.edits[edit.edit_id] = sums

    def weights(self, live: Sequence[str]) -> dict[str, bytes]:
        """Bytes of the edited matrices with these edits live."""
        totals: dict[tuple[str, int, int], int] = {}
        for edit_id in live:
            for key, change in self.edits[edit_id].items():
                totals[key] = totals.get(key, 0) + change
        out = {name: w.copy() for name, w in self.base.items()}
        for (name, o, i), total in totals.items():
            out[name][o, i] = np.float32(float(self.base[name][o, i]) + total / 2**40)
        return {name: w.tobytes() for name, w in out.items()}


def weights_of(loaded: LoadedModel) -> dict[str, bytes]:
    """Bytes of the same matrices on the model."""
    parameters = dict(loaded.model.named_parameters())
    return {f"{p}.weight": parameters[f"{p}.weight"].detach().numpy().tobytes() for p in PATHS}


def calls(seed: int, n: int) -> Iterator[Callable[[Editor], Any]]:
    """A fixed series of calls, one of each kind first, then at random; each looks at what is live by itself."""
    rng = random.Random(seed)
    kinds = ["edit", "sequence", "revert", "redo", "replace", "consolidate", "revert", "edit"]
    kinds += rng.choices(("edit", "sequence", "revert", "redo", "replace", "consolidate"), (5, 1, 4, 3, 2, 1), k=n)
    for i, kind in enumerate(kinds[:n]):
        yield _call(kind, i, rng.random())


def _call(kind: str, i: int, pick: float) -> Callable[[Editor], Any]:
    def run(editor: Editor) -> Any:
        live = editor.edits
        if kind == "sequence":
            return editor.edit([fact(100 * i + 1), fact(100 * i + 2)], mode="sequential", evaluate=False)
        if kind == "revert" and live:
            return editor.revert(live[int(pick * len(live))].edit_id)
        if kind == "redo" and any(s.state == "reverted" for s in _states(editor)):
            return editor.redo(replace=True)
        single = [e for e in live if len(e.requests) == 1]
        if kind == "replace" and single:
            old = single[int(pick * len(single))].requests[0]
            new = EditRequest(old.prompt, f"tint {i}", subject=old.subject)
            return editor.edit(new, evaluate=False, replace=True)
        if kind == "consolidate" and len(live) > 1:
            return editor.consolidate()
        return editor.edit(fact(100 * i), evaluate=False)

    return run


def _states(editor: Editor) -> list[Any]:
    return list(editor.ledger.states.values()) if editor.ledger else []
