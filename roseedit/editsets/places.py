"""Where data lies: the folder that ROSEEDIT_DATA names, and the samples that come with roseedit."""

from __future__ import annotations

import os
from pathlib import Path

from roseedit.errors import DataError, refusal
from roseedit.shipped import shipped_dir

DATA_VARIABLE = "ROSEEDIT_DATA"


def data_folder() -> Path | None:
    """The folder with the real data sets.

    Returns:
        What ROSEEDIT_DATA names, or None when it is not set.
    """
    folder = os.environ.get(DATA_VARIABLE)
    return Path(folder).expanduser() if folder else None


def data_file(relative_path: str, folder: Path | None = None) -> Path:
    """A file under the data folder.

    Args:
        relative_path: Where it lies there.
        folder: Look here instead of where ROSEEDIT_DATA points.

    Returns:
        The file, which exists.

    Raises:
        DataError: No folder is known, or the file is not in it.
    """
    root = folder or data_folder()
    if root is None:
        remedy = f"Set the variable to a folder that holds {relative_path}."
        raise DataError(refusal(f"no {DATA_VARIABLE}", "a folder with the data sets", remedy))
    if not (root / relative_path).is_file():
        remedy = f"Let {DATA_VARIABLE} name a folder that holds {relative_path}."
        raise DataError(refusal(f"no file {root / relative_path}", "a file that exists", remedy))
    return root / relative_path


def samples_folder() -> Path | None:
    """The samples that come with roseedit.

    Returns:
        Their folder, or None when it was not installed.
    """
    return shipped_dir("data")
