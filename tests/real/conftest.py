"""One editor on the embedded SmolLM2-135M for all tests of this folder; without its package they are skipped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from roseedit.editor import Editor
from roseedit.models.embedded import EMBEDDED, find_parts

ROOT = Path(__file__).resolve().parents[2]
ALIAS = "smollm2-135m"


def parameters_digest(model: nn.Module) -> str:
    """sha256 over names and bytes of all parameters."""
    digest = hashlib.sha256()
    for name, p in model.named_parameters():
        digest.update(name.encode())
        digest.update(p.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


@pytest.fixture(scope="session")
def shared_editor() -> Editor:
    """The editor that all tests share; ask for `editor`, which looks after it."""
    if not find_parts(EMBEDDED[ALIAS]):
        pytest.skip(f"the embedded model is missing; {EMBEDDED[ALIAS].install}")
    editor = Editor.from_hparams(ROOT / "hparams" / "RoseLoRA" / f"{ALIAS}.yaml", show_progress=False)
    return editor


@pytest.fixture(scope="session")
def pristine(shared_editor: Editor) -> str:
    """Digest of the model as it was loaded."""
    return parameters_digest(shared_editor.loaded.model)


@pytest.fixture
def editor(shared_editor: Editor, pristine: str) -> Iterator[Editor]:
    """The shared editor; whatever a test leaves live is taken off, and the weights must be the loaded ones again."""
    yield shared_editor
    while shared_editor.edits:
        shared_editor.revert()
    assert parameters_digest(shared_editor.loaded.model) == pristine


@pytest.fixture(scope="session")
def digest() -> Callable[[nn.Module], str]:
    """sha256 of a model's parameters."""
    return parameters_digest
