"""Every error roseedit raises on purpose.

Each message says three things: what was *got*, what is *allowed*, and the *remedy*. `RoseEditError` is the base that
a caller catches to tell "the input was wrong" from a defect; all children are also `ValueError`s, so code that
expects the standard exception keeps working.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from roseedit.edits.edit import Edit


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


class LedgerError(RoseEditError):
    """A ledger that is missing, damaged or asked for something that its state does not allow."""


class LedgerBusyError(LedgerError):
    """A ledger that another process, or another object of this one, is writing to."""


class TamperError(LedgerError):
    """A ledger whose chain of entries is broken."""


class ConflictError(RequestError):
    """A request that contradicts an edit which is live."""


class RejectedError(RoseEditError):
    """Edits that were made, did the model harm beyond the limits, and were taken off again.

    Args:
        message: What was exceeded.
        figures: All figures of the health check.
        edits: The edits, off the model.
    """

    def __init__(self, message: str, figures: Mapping[str, Any], edits: Sequence[Edit]) -> None:
        super().__init__(message)
        self.figures = dict(figures)
        self.edits = tuple(edits)


class WrongBaseError(DeltaError):
    """An edit that was made for other weights or another configuration."""


class WrongTokenizerError(DeltaError):
    """An edit that was made for the same weights with another tokenizer."""


class EditNotFoundError(DeltaError):
    """No folder, or not both files of an edit in it."""


class TruncatedFileError(DeltaError):
    """A file that is shorter than it was when it was saved."""


class ChecksumError(DeltaError):
    """A file that holds other bytes than those that were saved."""


class RecordError(DeltaError):
    """An `edit.json` that cannot be read, or that lacks or contradicts what it must say."""


class NewerFormatError(DeltaError):
    """An edit that a later version of roseedit wrote, or one that never wrote any."""


class MissingTensorError(DeltaError):
    """A tensor that the record announces is not in the file."""


class ExtraTensorError(DeltaError):
    """A tensor in the file that the record does not announce."""


class TensorLayoutError(DeltaError):
    """A header that is no safetensors header, or tensors of a wrong type, shape or place."""


class AbsurdSizeError(DeltaError):
    """A size that no edit can have; found before anything of that size is allocated."""


class IndexRangeError(DeltaError):
    """An index outside its matrix, or pointers that do not fit the values."""


class DuplicateIndexError(DeltaError):
    """The same entry, or the same matrix, twice."""


class NotFiniteError(DeltaError):
    """NaN, infinity, or numbers so large that their product is one."""


class PickleFoundError(DeltaError):
    """A pickled file in the folder; nothing in it is opened."""


class SymlinkError(DeltaError):
    """A link in the folder that leads out of it."""


class ExportError(RoseEditError):
    """An edit that cannot be brought into the wanted form."""


class DataError(RoseEditError):
    """A data-set file or record that does not have the expected form."""


class RunError(RoseEditError):
    """An evaluation run that cannot be started, continued or read."""


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
