"""Editing methods behind one small protocol and a registry; RoseLoRA is one of them, on equal terms."""

from roseedit.methods.registry import (
    EditingMethod,
    GrowingMethod,
    MadeDelta,
    changes_weights,
    find_method,
    method_names,
    read_hparams,
)

__all__ = [
    "EditingMethod",
    "GrowingMethod",
    "MadeDelta",
    "changes_weights",
    "find_method",
    "method_names",
    "read_hparams",
]
