"""Every error roseedit raises on purpose.

Each message says three things: what was *got*, what is *allowed*, and the *remedy*. `RoseEditError` is the base that
a caller catches to tell "the input was wrong" from a defect; all children are also `ValueError`s, so code that
expects the standard exception keeps working.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RoseEditError(ValueError):
    """Base of all deliberate errors."""


class RequestError(RoseEditError):
    """An edit request, or a set of them, that cannot be carried out."""


class HparamsError(RoseEditError):
    """A hyper-parameter file or value that is not understood or out of range."""


class ModelError(RoseEditError):
    """A model that cannot be found, loaded or understood."""


class AnatomyError(ModelError):
    """The parts of a model (layers, projections, norm, head) could not be found by structure."""


class DeltaError(RoseEditError):
    """A delta that does not fit the model or whose file is damaged."""


class DataError(RoseEditError):
    """A data-set file or record that does not have the expected form."""


class CapacityError(RoseEditError):
    """Not enough memory for even a single edit."""


class SkipError(RoseEditError):
    """Layers, profiles or a contract of HadSkip that cannot be used as asked."""


class BudgetError(SkipError):
    """A budget that no profile meets, or that lies below what must always run."""


class StaleProfilesError(SkipError):
    """Profiles that were fitted on other weights than the ones that are served."""


class ProfileFileError(SkipError):
    """Files of skip profiles that are missing, damaged or of another format."""


def refusal(got: str, allowed: str, remedy: str) -> str:
    """Build the one message form used across the package.

    Args:
        got: What the caller passed.
        allowed: What would have been accepted.
        remedy: What to do about it.

    Returns:
        One line of text.
    """
    return f"got {got}; allowed: {allowed}. {remedy}"


def near_names(word: str, known: Iterable[str]) -> str:
    """A hint such as ``Did you mean 'rank'?``, or a plain pointer when nothing is close.

    Args:
        word: The unknown name.
        known: The names that exist.

    Returns:
        One sentence.
    """
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=2, cutoff=0.6)
    if close:
        return "Did you mean " + " or ".join(repr(name) for name in close) + "?"
    return "Known names: " + ", ".join(names) + "."
