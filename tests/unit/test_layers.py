"""Imports point downwards: who may know whom."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "roseedit"
MAY_NOT = {
    "evaluation": ("methods", "roselora", "editor", "runs", "cli"),
    "methods": ("evaluation", "editor", "runs", "cli"),
    "roselora": ("evaluation", "methods", "editor", "runs", "cli"),
    "models": ("evaluation", "methods", "roselora", "editor", "edits", "editsets", "runs", "cli"),
    "runs": ("cli",),
}


@pytest.mark.parametrize("room", sorted(MAY_NOT))
def test_a_room_knows_only_what_is_below_it(room: str) -> None:
    upwards = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in (ROOT / room).rglob("*.py")
        for name in _imported(path)
        if name.startswith(tuple(f"roseedit.{above}" for above in MAY_NOT[room]))
    ]
    assert not upwards


def _imported(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    plain = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    return plain + [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
