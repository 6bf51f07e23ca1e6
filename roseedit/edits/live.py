"""What is applied to a model right now, so exactly that any edit can be taken off in any order.

For each touched entry the original value is kept beside the integer sum of all live changes (see `delta.py`), and the
weight is written as `original + sum * 2^-40`, rounded once. Integer sums do not depend on order, so the weights depend
on the *set* of live deltas only; an entry that no delta touches any more gets its original bytes back.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from roseedit.edits.delta import Delta, MatrixDelta
from roseedit.edits.touched import Touched, gathered
from roseedit.edits.versions import brought_back, writing
from roseedit.errors import DeltaError, refusal

_LIVE: weakref.WeakKeyDictionary[nn.Module, LiveEdits] = weakref.WeakKeyDictionary()


def live_edits(model: nn.Module) -> LiveEdits:
    """The one record of what is applied to `model`.

    Args:
        model: The model.

    Returns:
        Its record, made on first use.
    """
    if model not in _LIVE:
        _LIVE[model] = LiveEdits(model)
    return _LIVE[model]


class LiveEdits:
    """The deltas applied to one model.

    Args:
        model: The model; only weakly held.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)
        self._deltas: list[Delta] = []
        self._touched: dict[str, Touched] = {}

    @property
    def deltas(self) -> tuple[Delta, ...]:
        """What is applied, in order of application."""
        return tuple(self._deltas)

    def apply(self, delta: Delta) -> None:
        """Add one delta; all of it or, if it does not fit, nothing.

        Args:
            delta: The delta.

        Raises:
            DeltaError: It is applied already, a matrix is missing or has another shape, or the weights were changed
                by something else since an edit was applied there.
        """
        self._refuse_live([delta])
        weights = [self._weight(m) for m in delta.matrices]
        added: list[MatrixDelta] = []
        try:
            for m, weight in zip(delta.matrices, weights, strict=True):
                self._add(m, weight)
                added.append(m)
        except BaseException:
            for m in added:
                self._remove(m)
            raise
        self._deltas.append(delta)

    def apply_all(self, deltas: Sequence[Delta]) -> None:
        """Add many deltas at once, all or none: the same weights as one after another, in a fraction of the time.

        Args:
            deltas: The deltas.

        Raises:
            DeltaError: As for `apply`.
        """
        self._refuse_live(deltas)
        by_name: dict[str, list[MatrixDelta]] = {}
        for delta in deltas:
            for m in delta.matrices:
                self._weight(m)
                by_name.setdefault(m.weight_name, []).append(m)
        added: list[str] = []
        try:
            for name, changes in by_name.items():
                self._add_many(changes, self._parameter(name))
                added.append(name)
        except BaseException:
            for name in added:
                for m in by_name[name]:
                    self._remove(m)
            raise
        self._deltas += deltas

    def revert(self, delta: Delta) -> None:
        """Take one delta off.

        Args:
            delta: The delta, the very object that was applied.

        Raises:
            DeltaError: It is not applied, or the weights were changed by something else since.
        """
        at = next((i for i, live in enumerate(self._deltas) if live is delta), None)
        if at is None:
            raise DeltaError(refusal("a delta that is not applied", "one that is", "See the list of live edits."))
        found = [self._held(m) for m in delta.matrices]
        for m, held in zip(delta.matrices, found, strict=True):
            self._check_own(m, self._touched[m.weight_name], held)
        for m, held in zip(delta.matrices, found, strict=True):
            self._remove(m, held)
        del self._deltas[at]

    @contextmanager
    def only(self, deltas: Sequence[Delta] = ()) -> Iterator[None]:
        """The model with exactly these deltas on it, for the length of a block; then what was live is live again.

        Args:
            deltas: The deltas; none for the model as it was before any edit.

        Yields:
            Nothing.
        """
        before = self.deltas
        try:
            for delta in before:
                self.revert(delta)
            self.apply_all(deltas)
            yield
        finally:
            for delta in self.deltas:
                if all(delta is not live for live in before):
                    self.revert(delta)
            self.apply_all([delta for delta in before if all(delta is not live for live in self._deltas)])

    def pristine(self, weight_name: str) -> Tensor:
        """A parameter as it was before any edit.

        Args:
            weight_name: Its name.

        Returns:
            A detached copy (or the parameter itself when nothing touches it).
        """
        weight = self._parameter(weight_name).detach()
        if weight_name not in self._touched:
            return weight
        return self._touched[weight_name].restored(weight)

    def _refuse_live(self, deltas: Sequence[Delta]) -> None:
        seen = {id(live) for live in self._deltas}
        for delta in deltas:
            if id(delta) in seen:
                raise DeltaError(refusal("a delta that is applied already", "one that is not", "Revert it first."))
            seen.add(id(delta))

    def _parameter(self, name: str) -> nn.Parameter:
        model = self._model()
        if model is None:
            raise DeltaError(refusal("a model that is gone", "a live model", "Keep a reference to it."))
        try:
            return model.get_parameter(name)
        except AttributeError:
            message = refusal(f"a delta for {name!r}, which this model lacks", "its own base model", "Load that one.")
            raise DeltaError(message) from None

    def _weight(self, m: MatrixDelta) -> nn.Parameter:
        weight = self._parameter(m.weight_name)
        shape = (m.d_in, m.d_out) if m.transposed else (m.d_out, m.d_in)
        if tuple(weight.shape) != shape or not weight.is_contiguous() or not weight.is_floating_point():
            got = f"{m.weight_name} of shape {tuple(weight.shape)}, {weight.dtype}"
            raise DeltaError(refusal(got, f"a contiguous floating-point matrix {shape}", "Load the delta's own base."))
        return weight

    def _check_own(self, m: MatrixDelta, touched: Touched, held: Held) -> None:
        """Foreign changes to what is about to be written would be lost, or make the revert wrong: say so instead."""
        now = self._parameter(m.weight_name).detach().view(-1).index_select(0, held.index)
        if not torch.equal(now, touched.expected(held.index, held.place, held.original)):
            message = refusal(
                f"{m.weight_name} changed by something other than roseedit while edits were live",
                "weights that only roseedit changes between apply and revert",
                "Reload the model, or undo that change.",
            )
            raise DeltaError(message)

    @torch.no_grad()
    def _add(self, m: MatrixDelta, weight: nn.Parameter) -> None:
        index, change = m.products()
        flat = weight.detach().view(-1)
        touched, held = self._make_room(m, index.to(weight.device), change.to(weight.device), weight)
        touched.shift(held.place, held.change, 1)
        try:
            with writing(weight):
                touched.write(flat, held.index, touched.changed(held.place, held.original))
        except BaseException:
            touched.shift(held.place, held.change, -1)
            raise
        self._touched[m.weight_name] = touched

    @torch.no_grad()
    def _add_many(self, changes: Sequence[MatrixDelta], weight: nn.Parameter) -> None:
        index, total, count = (t.to(weight.device) for t in gathered(changes))
        touched, held = self._make_room(changes[0], index, total, weight)
        touched.shift(held.place, total, count)
        with writing(weight):
            touched.write(weight.detach().view(-1), index, touched.changed(held.place, held.original))
        self._touched[changes[0].weight_name] = touched

    def _make_room(self, m: MatrixDelta, index: Tensor, change: Tensor, weight: nn.Parameter) -> tuple[Touched, Held]:
        flat = weight.detach().view(-1)
        touched = (self._touched.get(m.weight_name) or Touched.nothing(flat)).holding(index, flat)
        held = Held.of(touched, index, change)
        self._check_own(m, touched, held)
        return touched, held

    def _held(self, m: MatrixDelta) -> Held:
        device = self._parameter(m.weight_name).device
        index, change = m.products()
        return Held.of(self._touched[m.weight_name], index.to(device), change.to(device))

    @torch.no_grad()
    def _remove(self, m: MatrixDelta, held: Held | None = None) -> None:
        held = held or self._held(m)
        touched = self._touched[m.weight_name]
        touched.shift(held.place, -held.change, -1)
        weight = self._parameter(m.weight_name)
        with writing(weight):
            touched.write(weight.detach().view(-1), held.index, touched.current(held.place, held.original))
        left = touched.compact()
        if left is None:
            del self._touched[m.weight_name]
            brought_back(weight)
        else:
            self._touched[m.weight_name] = left


@dataclass(frozen=True)
class Held:
    """Entries of one change of one matrix.

    Attributes:
        index: Flat positions in the parameter.
        place: Where they stand in the record of touched entries.
        original: Their original values.
        change: In units of 2^-40.
    """

    index: Tensor
    place: Tensor
    original: Tensor
    change: Tensor

    @classmethod
    def of(cls, touched: Touched, index: Tensor, change: Tensor) -> Held:
        """Look entries up that `touched` holds."""
        place = touched.places(index)
        return cls(index, place, touched.original.index_select(0, place), change)
