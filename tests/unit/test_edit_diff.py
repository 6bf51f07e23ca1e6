"""Comparing two edits, and the map of many: figures against dense matrices, pictures that can be read."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from golden import golden_delta, spread
from torch import Tensor

from roseedit.edits.delta import Delta, MatrixDelta, SparseVectors
from roseedit.edits.diff import diff_edits, shared_entries
from roseedit.edits.edit import Edit
from roseedit.edits.heatmap import draw_map, edit_map, place_of
from roseedit.errors import ExportError
from roseedit.requests import EditRequest

BASE = ":".join(["a" * 32, "b" * 32, "c" * 32])


def edit_of(*matrices: MatrixDelta, fingerprint: str = BASE, target: str = "rome") -> Edit:
    return Edit(Delta(matrices), (EditRequest("the tower is in", target),), {}, fingerprint, "golden")


def vectors(rows: int, n: int, seed: int) -> SparseVectors:
    values = spread(rows * n, seed).view(rows, n)
    return SparseVectors.of(torch.where(values.abs() > 0.25, values, 0.0))


def matrix(name: str, seed: int, *, transposed: bool = False) -> MatrixDelta:
    return MatrixDelta(name, 24, 16, transposed, vectors(3, 24, seed), vectors(3, 16, seed + 1))


def dense(m: MatrixDelta) -> Tensor:
    """(d_out, d_in)."""
    return m.b.dense(m.d_out).double().T @ m.a.dense(m.d_in).double()


@pytest.mark.parametrize("transposed", [False, True])
def test_figures_agree_with_dense_matrices(transposed: bool) -> None:
    one, two = (matrix("model.layers.3.mlp.w.weight", seed, transposed=transposed) for seed in (1, 7))
    (found,) = diff_edits(edit_of(one), edit_of(two)).matrices
    a, b = dense(one), dense(two)
    hit_a, hit_b = (set(m.changes()[0].tolist()) for m in (one, two))
    assert (found.entries.a, found.entries.b, found.entries.both) == (len(hit_a), len(hit_b), len(hit_a & hit_b))
    assert found.rows.both == int(((a != 0).any(1) & (b != 0).any(1)).sum())
    assert found.columns.a == int((a != 0).any(0).sum())
    assert found.norm_a == pytest.approx(float(a.norm()))
    assert found.cosine == pytest.approx(float((a * b).sum() / a.norm() / b.norm()))
    top = found.largest[0]
    assert max(abs(top.a), abs(top.b)) == pytest.approx(float(torch.maximum(a.abs(), b.abs()).max()))
    assert top.a == pytest.approx(float(a[top.row, top.column]))
    assert top.b == pytest.approx(float(b[top.row, top.column]))


def test_an_edit_beside_itself_and_its_opposite() -> None:
    one = matrix("model.layers.3.mlp.w.weight", 1)
    opposite = replace(one, b=SparseVectors(one.b.index, -one.b.value, one.b.pointer))
    same = diff_edits(edit_of(one), edit_of(one))
    assert same.entries.jaccard == 1
    assert same.cosine == pytest.approx(1)
    assert diff_edits(edit_of(one), edit_of(opposite)).cosine == pytest.approx(-1)


def test_edits_that_do_not_meet() -> None:
    one, two = matrix("model.layers.3.mlp.w.weight", 1), matrix("model.layers.4.mlp.w.weight", 1)
    found = diff_edits(edit_of(one), edit_of(two, fingerprint="d" + BASE[1:]))
    assert [m.weight for m in found.matrices] == [one.weight_name, two.weight_name]
    assert found.entries.both == 0
    assert found.cosine == 0
    assert [m.cosine for m in found.matrices] == [None, None]
    assert not found.same_base
    assert found.as_mapping()["matrices"][0]["entries"]["b"] == 0
    json.dumps(found.as_mapping())
    assert shared_entries([edit_of(one), edit_of(two)]) == 0
    assert shared_entries([edit_of(one), edit_of(one), edit_of(two)]) == len(one.changes()[0])


def test_largest_is_sorted_and_cut() -> None:
    found = diff_edits(edit_of(*golden_delta().matrices), edit_of(matrix("model.layers.0.mlp.w.weight", 5)), largest=7)
    largest = found.largest(5)
    sizes = [max(abs(e.a), abs(e.b)) for e in largest]
    assert len(largest) == 5
    assert sizes == sorted(sizes, reverse=True)


def test_a_map_counts_what_is_touched() -> None:
    one, two = matrix("model.layers.3.mlp.w.weight", 1), matrix("model.layers.1.attn.o.weight", 2, transposed=True)
    where = edit_map([edit_of(one), edit_of(one, two, target="paris")], n_layers=6)
    assert where.layers == (0, 1, 2, 3, 4, 5)
    assert where.modules == ("attn.o", "mlp.w")
    assert float(where.values["share"][3, 1]) == pytest.approx(100 * one.density, rel=1e-5)
    assert float(where.values["norm"][3, 1]) == pytest.approx(2 * one.norm, rel=1e-5)  # the same change twice
    assert float(where.values["norm"][1, 0]) == pytest.approx(two.norm, rel=1e-5)
    assert where.values["edits"][3, 1] == 2
    assert int(where.values["share"].isfinite().sum()) == 2


def test_places() -> None:
    assert place_of("model.layers.20.mlp.down_proj.weight") == (20, "mlp.down_proj")
    assert place_of("transformer.h.0.mlp.c_proj.weight") == (0, "mlp.c_proj")
    with pytest.raises(ExportError, match="no numbered layer"):
        place_of("lm_head.weight")


def test_pictures_are_written_and_differ(tmp_path: Path) -> None:
    edits = [edit_of(matrix("model.layers.3.mlp.w.weight", 1)), edit_of(*golden_delta().matrices)]
    png = draw_map(edit_map(edits, 5), tmp_path / "new" / "map.png", measure="norm", title="mine")
    assert png.read_bytes().startswith(b"\x89PNG")
    svg = draw_map(edit_map(edits, 5), tmp_path / "map.svg")
    assert ET.parse(svg).getroot().tag.endswith("svg")
    again = draw_map(edit_map(edits[:1], 5), tmp_path / "other.png", measure="norm", title="mine")
    assert png.read_bytes() != again.read_bytes()


def test_what_cannot_be_drawn(tmp_path: Path) -> None:
    edit = edit_of(matrix("model.layers.3.mlp.w.weight", 1))
    with pytest.raises(ExportError, match="no edit"):
        edit_map([])
    with pytest.raises(ExportError, match="3 layers and an edit in layer 3"):
        edit_map([edit], 3)
    with pytest.raises(ExportError, match=r"\.png, \.svg, \.pdf"):
        draw_map(edit_map([edit]), tmp_path / "map.gif")
    with pytest.raises(ExportError, match="Did you mean 'norm'"):
        draw_map(edit_map([edit]), tmp_path / "map.png", measure="norms")
