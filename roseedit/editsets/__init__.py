"""Data sets of edits. Nothing outside this folder knows a data set's key names: all of them become `EditRequest`s."""

from __future__ import annotations

from roseedit.editsets.conflicts import Contradiction, contradictions, repeats, without_contradictions
from roseedit.editsets.loading import LoadedEditset, RecordNote, RejectedRecord, cases, load_editset
from roseedit.editsets.places import DATA_VARIABLE, data_folder
from roseedit.editsets.registry import Editset, find, names

__all__ = [
    "Contradiction",
    "DATA_VARIABLE",
    "Editset",
    "LoadedEditset",
    "RecordNote",
    "RejectedRecord",
    "cases",
    "contradictions",
    "data_folder",
    "find",
    "load_editset",
    "names",
    "repeats",
    "without_contradictions",
]
