"""The budget schedule: which share of each row of A and each column of B is kept at step t."""

from __future__ import annotations


def keep_at(step: int, keep: float, start: int, end: int) -> float:
    """Cubic schedule from 1 down to `keep` (RoseLoRA, section 3; the form AdaLoRA uses for its ranks).

    Args:
        step: The step t, from 0.
        keep: Final kept share, in (0, 1].
        start: Last step t_i at which all is kept.
        end: First step t_f at which `keep` is reached.

    Returns:
        The kept share at step t, in [keep, 1].
    """
    if step <= start:
        return 1.0
    if step >= end:
        return keep
    left = 1.0 - (step - start) / (end - start)
    return keep + (1.0 - keep) * left**3
