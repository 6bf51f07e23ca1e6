"""A delta: per weight matrix, r outer products of a sparse column of B and a sparse row of A.

Only indices and values are kept. The change of one entry is computed as an integer multiple of 2^-40, so that deltas
add up exactly, in any order, and can be taken off again exactly (see `live.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from roseedit.errors import DeltaError, refusal
from roseedit.models.anatomy import Projection

GRID_BITS = 40  # 2^-40 is far below half a unit in the last place of any weight that matters, even in float32


@dataclass(frozen=True)
class SparseVectors:
    """r sparse vectors of one length.

    Attributes:
        index: All kept positions, vector after vector, int32.
        value: Their values, float32.
        pointer: (r + 1,) where each vector starts in the two above, int32.
    """

    index: Tensor
    value: Tensor
    pointer: Tensor

    @classmethod
    def of(cls, dense: Tensor) -> SparseVectors:
        """Keep the non-zero entries of (r, n)."""
        dense = dense.detach().float().cpu()
        which, index = dense.nonzero(as_tuple=True)
        pointer = torch.zeros(len(dense) + 1, dtype=torch.int32)
        pointer[1:] = torch.bincount(which, minlength=len(dense)).cumsum(0)
        return cls(index.int(), dense[which, index], pointer)

    def __len__(self) -> int:
        return len(self.pointer) - 1

    def dense(self, n: int) -> Tensor:
        """(r, n), float32, zeros included."""
        out = torch.zeros(len(self), n)
        which = torch.arange(len(self)).repeat_interleave(self.pointer.diff().long())
        out[which, self.index.long()] = self.value
        return out


@dataclass(frozen=True)
class MatrixDelta:
    """The change of one weight matrix: the sum of r outer products b_i a_i^T, scale included in b.

    Attributes:
        weight_name: Name of the parameter.
        d_in: Length of each a_i.
        d_out: Length of each b_i.
        transposed: True when the parameter is stored as (d_in, d_out).
        a: Rows of A.
        b: Columns of B.
    """

    weight_name: str
    d_in: int
    d_out: int
    transposed: bool
    a: SparseVectors
    b: SparseVectors

    @property
    def rank(self) -> int:
        """R."""
        return len(self.a)

    @property
    def density_bound(self) -> float:
        """sum_i (kept share of a_i) (kept share of b_i), the guarantee on `density`."""
        rectangles = self.a.pointer.diff().long() * self.b.pointer.diff().long()
        return min(1.0, int(rectangles.sum()) / (self.d_in * self.d_out))

    @property
    def density(self) -> float:
        """Share of the matrix that is touched."""
        return len(self.products()[0].unique()) / (self.d_in * self.d_out)

    @property
    def norm(self) -> float:
        """Frobenius norm of the change, from the factors: ||BA||^2 = <B^T B, A A^T>, free of any (d_out, d_in) work."""
        a, b = self.a.dense(self.d_in).double(), self.b.dense(self.d_out).double()
        return max(0.0, float(((b @ b.T) * (a @ a.T)).sum())) ** 0.5

    def products(self) -> tuple[Tensor, Tensor]:
        """The entries of every outer product, one product after another; an entry that several touch comes repeatedly.

        Returns:
            Flat positions in the stored parameter (int64), and changes in units of 2^-40 (int64). Each outer product is
            rounded by itself, so sums are exact in integers and do not depend on any order.
        """
        row_step, column_step = (1, self.d_out) if self.transposed else (self.d_in, 1)
        rows, columns = self.b.index.numpy() * np.int64(row_step), self.a.index.numpy() * np.int64(column_step)
        b, a = self.b.value.numpy() * np.float64(2.0**GRID_BITS), self.a.value.numpy().astype(np.float64)
        of_b, of_a = self.b.pointer.tolist(), self.a.pointer.tolist()
        sizes = self.b.pointer.diff().long() * self.a.pointer.diff().long()
        index, change = np.empty(int(sizes.sum()), dtype=np.int64), np.empty(int(sizes.sum()))
        at = 0
        for i, size in enumerate(sizes.tolist()):
            r, c = slice(of_b[i], of_b[i + 1]), slice(of_a[i], of_a[i + 1])
            shape = (r.stop - r.start, c.stop - c.start)
            np.add.outer(rows[r], columns[c], out=index[at : at + size].reshape(shape))
            np.multiply.outer(b[r], a[c], out=change[at : at + size].reshape(shape))
            at += size
        return torch.from_numpy(index), torch.from_numpy(np.rint(change, out=change).astype(np.int64))

    def changes(self) -> tuple[Tensor, Tensor]:
        """Every touched entry with its change.

        Returns:
            Sorted flat positions in the stored parameter (int64), and changes in units of 2^-40 (int64).
        """
        index, change = self.products()
        unique, place = index.unique(return_inverse=True)
        return unique, torch.zeros_like(unique).index_add_(0, place, change)


@dataclass(frozen=True)
class Delta:
    """What an edit does to a model's weights.

    Attributes:
        matrices: One change per weight matrix.
    """

    matrices: tuple[MatrixDelta, ...]

    @classmethod
    def from_factors(
        cls, projections: Mapping[str, Projection], factors: Mapping[str, tuple[Tensor, Tensor]], scale: float = 1.0
    ) -> Delta:
        """Make a delta of trained factors.

        Args:
            projections: Per module path its projection.
            factors: Per module path A, (r, d_in), and B, (d_out, r).
            scale: c in W0 + c B A.

        Returns:
            The delta.

        Raises:
            DeltaError: A factor holds NaN or infinity.
        """
        out = []
        for path, (a, b) in factors.items():
            if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
                message = refusal(f"factors of {path} with NaN or infinity", "finite numbers", "Lower lr or scale.")
                raise DeltaError(message)
            p = projections[path]
            vectors = SparseVectors.of(a), SparseVectors.of(b.mT * scale)
            out.append(MatrixDelta(p.weight_name, p.d_in, p.d_out, p.transposed, *vectors))
        return cls(tuple(out))

    @property
    def density(self) -> float:
        """Share of the adapted matrices' entries that are touched."""
        total = sum(m.d_in * m.d_out for m in self.matrices)
        return sum(m.density * m.d_in * m.d_out for m in self.matrices) / total

    @property
    def density_bound(self) -> float:
        """The guarantee on `density`."""
        total = sum(m.d_in * m.d_out for m in self.matrices)
        return sum(m.density_bound * m.d_in * m.d_out for m in self.matrices) / total

    @cached_property
    def norm(self) -> float:
        """Frobenius norm of the whole change."""
        return sum(m.norm**2 for m in self.matrices) ** 0.5

    @property
    def n_values(self) -> int:
        """Values stored: the non-zeros of A and B."""
        return sum(len(m.a.value) + len(m.b.value) for m in self.matrices)

    @cached_property
    def own_columns(self) -> frozenset[tuple[str, int]]:
        """The columns that outer products write alone, as pairs of weight name and column: an edit's neurons."""
        return frozenset(
            (m.weight_name, int(m.a.index[start]))
            for m in self.matrices
            for start, n in zip(m.a.pointer.tolist(), m.a.pointer.diff().tolist(), strict=False)
            if n == 1
        )

    @property
    def digest(self) -> str:
        """SHA-256 over all names, indices and values."""
        found = hashlib.sha256()
        for m in self.matrices:
            found.update(f"{m.weight_name} {m.d_in} {m.d_out} {m.transposed}".encode())
            for part in (m.a.index, m.a.value, m.a.pointer, m.b.index, m.b.value, m.b.pointer):
                found.update(part.contiguous().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    def apply(self, model: nn.Module) -> None:
        """Add the delta to the model's weights; the original bytes of touched entries are kept.

        Args:
            model: The model it was made for.

        Raises:
            DeltaError: It does not fit the model, or is applied already.
        """
        from roseedit.edits.live import live_edits

        live_edits(model).apply(self)

    def revert(self, model: nn.Module) -> None:
        """Take the delta off again, whatever was applied before or after it.

        Args:
            model: The model it was applied to.

        Raises:
            DeltaError: It is not applied, or something else has changed the weights since.
        """
        from roseedit.edits.live import live_edits

        live_edits(model).revert(self)

    def to_lora(self) -> dict[str, Tensor]:
        """The delta as weights of a stock PEFT LoRA adapter with lora_alpha = r, zeros included.

        Returns:
            `base_model.model.<module>.lora_A.weight`, (r, d_in), and `.lora_B.weight`, (d_out, r), per matrix.
        """
        out = {}
        for m in self.matrices:
            module = "base_model.model." + m.weight_name.removesuffix(".weight")
            out[f"{module}.lora_A.weight"] = m.a.dense(m.d_in)
            out[f"{module}.lora_B.weight"] = m.b.dense(m.d_out).T.contiguous()
        return out
