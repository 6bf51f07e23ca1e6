"""What is applied to a model right now, so exactly that any edit can be taken off in any order.

For each touched entry the original value is kept beside the integer sum of all live changes (see `delta.py`), and the
weight is written as `original + sum * 2^-40`, rounded once. Integer sums do not depend on order, so the weights depend
on the *set* of live deltas only; an entry that no delta touches any more gets its original bytes back.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from roseedit.edits.delta import GRID_BITS, Delta, MatrixDelta
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


@dataclass
class _Touched:
    """The touched entries of one parameter.

    Attributes:
        index: Sorted flat positions.
        original: Their original values, in the parameter's dtype.
        total: Integer sum of all live changes.
        count: How many live deltas touch each.
    """

    index: Tensor
    original: Tensor
    total: Tensor
    count: Tensor

    def current(self) -> Tensor:
        """What the weights must be now."""
        changed = (self.original.double() + self.total.double() * 2.0**-GRID_BITS).to(self.original.dtype)
        return torch.where(self.count > 0, changed, self.original)

    def where(self, mask: Tensor) -> _Touched:
        """The entries of a mask only."""
        return _Touched(self.index[mask], self.original[mask], self.total[mask], self.count[mask])


class LiveEdits:
    """The deltas applied to one model.

    Args:
        model: The model; only weakly held.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)
        self._deltas: list[Delta] = []
        self._touched: dict[str, _Touched] = {}

    @property
    def deltas(self) -> tuple[Delta, ...]:
        """What is applied, in order of application."""
        return tuple(self._deltas)

    def apply(self, delta: Delta) -> None:
        """Add one delta; all of it or, if it does not fit, nothing.

        Args:
            delta: The delta.

        Raises:
            DeltaError: It is applied already, or a matrix is missing or has another shape.
        """
        if any(delta is live for live in self._deltas):
            raise DeltaError(refusal("a delta that is applied already", "one that is not", "Revert it first."))
        weights = [self._weight(m) for m in delta.matrices]
        self._check_untouched_by_others(delta)
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
        self._check_untouched_by_others(delta)
        for m in delta.matrices:
            self._remove(m)
        del self._deltas[at]

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
        touched = self._touched[weight_name]
        copy = weight.clone().contiguous()
        copy.view(-1)[touched.index] = touched.original
        return copy

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

    def _check_untouched_by_others(self, delta: Delta) -> None:
        """Foreign changes to touched entries would be lost or would make the revert wrong: say so instead."""
        for m in delta.matrices:
            touched = self._touched.get(m.weight_name)
            if touched is None:
                continue
            weight = self._parameter(m.weight_name).detach().view(-1)
            if not torch.equal(weight[touched.index], touched.current()):
                message = refusal(
                    f"{m.weight_name} changed by something other than roseedit while edits were live",
                    "weights that only roseedit changes between apply and revert",
                    "Reload the model, or undo that change.",
                )
                raise DeltaError(message)

    @torch.no_grad()
    def _add(self, m: MatrixDelta, weight: nn.Parameter) -> None:
        index, change = (t.to(weight.device) for t in m.changes())
        flat = weight.detach().view(-1)
        old = self._touched.get(m.weight_name)
        touched = _empty_like(index, flat) if old is None else old
        fresh = index[~torch.isin(index, touched.index)]
        touched = _merged(touched, fresh, flat[fresh])
        at = torch.searchsorted(touched.index, index)
        touched.total[at] += change
        touched.count[at] += 1
        self._touched[m.weight_name] = touched
        flat[index] = touched.current()[at]

    @torch.no_grad()
    def _remove(self, m: MatrixDelta) -> None:
        weight = self._parameter(m.weight_name)
        index, change = (t.to(weight.device) for t in m.changes())
        touched = self._touched[m.weight_name]
        at = torch.searchsorted(touched.index, index)
        touched.total[at] -= change
        touched.count[at] -= 1
        weight.detach().view(-1)[index] = touched.current()[at]
        left = touched.where(touched.count > 0)
        if len(left.index):
            self._touched[m.weight_name] = left
        else:
            del self._touched[m.weight_name]


def _empty_like(index: Tensor, flat: Tensor) -> _Touched:
    return _Touched(
        index[:0], flat[:0].clone(), index[:0].clone(), torch.zeros(0, dtype=torch.int32, device=flat.device)
    )


def _merged(touched: _Touched, fresh: Tensor, original: Tensor) -> _Touched:
    index = torch.cat([touched.index, fresh])
    order = index.argsort()
    total = torch.cat([touched.total, torch.zeros_like(fresh)])
    count = torch.cat([touched.count, torch.zeros(len(fresh), dtype=torch.int32, device=fresh.device)])
    return _Touched(index[order], torch.cat([touched.original, original])[order], total[order], count[order])
