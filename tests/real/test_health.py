"""The health check on the real model: a destructive edit does not stay, a harmless one does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from roseedit.editor import Editor
from roseedit.edits.delta import Delta
from roseedit.edits.edit import Edit
from roseedit.edits.fingerprint import base_fingerprint
from roseedit.errors import RejectedError
from roseedit.requests import EditRequest

pytestmark = pytest.mark.real


def noise(rows: int, n: int, generator: torch.Generator) -> torch.Tensor:
    """Rows of which a fifth is not zero."""
    return torch.randn(rows, n, generator=generator) * (torch.rand(rows, n, generator=generator) < 0.2)


def random_edit(editor: Editor, size: float) -> Edit:
    """Noise of a given size on two matrices."""
    generator = torch.Generator().manual_seed(0)
    projections = {p.module_name: p for p in editor.loaded.anatomy.select(("mlp.down",), (20, 21))}
    factors = {
        name: (size * noise(4, p.d_in, generator), noise(4, p.d_out, generator).T.contiguous())
        for name, p in projections.items()
    }
    delta = Delta.from_factors(projections, factors)
    fingerprint = base_fingerprint(editor.loaded, [m.weight_name for m in delta.matrices])
    return Edit(delta, (EditRequest("A b c", f"noise of size {size}"),), {}, fingerprint, "smollm2-135m", {})


def test_a_destructive_edit_is_rejected(editor: Editor, digest: Callable[[nn.Module], str]) -> None:
    before = digest(editor.loaded.model)
    checked = Editor(editor.loaded, editor.hparams.replaced(health={"new_tokens": 8}), show_progress=False)
    with pytest.raises(RejectedError, match="perplexity") as caught:
        checked.apply(random_edit(editor, 1.0))
    figures = caught.value.figures
    assert figures["perplexity"] > 2 * figures["perplexity_base"]
    assert 5 < figures["perplexity_base"] < 100
    assert digest(editor.loaded.model) == before
    checked.apply(random_edit(editor, 1e-4))
    checked.revert()
    assert digest(editor.loaded.model) == before
