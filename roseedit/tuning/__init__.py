"""Searching for a method's settings on some edits, resumably: `roseedit tune`. The search itself is Optuna's."""

from roseedit.tuning.search import Tuned, TuneOptions, tune

__all__ = ["TuneOptions", "Tuned", "tune"]
