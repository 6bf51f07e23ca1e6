"""General ability before and after an edit: lm-evaluation-harness on the live model, and perplexity of running text."""

from __future__ import annotations

from roseedit.evaluation.ability.documents import TASK_FILES
from roseedit.evaluation.ability.measure import WIKITEXT2, known_tasks, measure_ability
from roseedit.evaluation.ability.rows import AbilityChange, AbilityRow, ability_change

__all__ = [
    "AbilityChange",
    "AbilityRow",
    "TASK_FILES",
    "WIKITEXT2",
    "ability_change",
    "known_tasks",
    "measure_ability",
]
