"""Where the files that come with roseedit lie: hyper-parameters and sample data."""

from __future__ import annotations

import sys
from pathlib import Path


def shipped_dir(name: str) -> Path | None:
    """A folder of the repository, in a checkout or as installed.

    Args:
        name: `"hparams"` or `"data"`.

    Returns:
        The folder, or None when it was not installed.
    """
    places = (Path(__file__).resolve().parents[1] / name, Path(sys.prefix) / "share" / "roseedit" / name)
    return next((place for place in places if place.is_dir()), None)


def shipped_hparams(model: str, method: str = "RoseLoRA") -> Path | None:
    """The hyper-parameter file that ships for a model.

    Args:
        model: As given to `load_model`; the last part of a hub id or path is looked up, in lower case.
        method: Name of the method.

    Returns:
        The file, or None when there is none.
    """
    root = shipped_dir("hparams")
    stem = Path(model).name.casefold()
    path = root / method / f"{stem}.yaml" if root else None
    return path if path and path.is_file() else None
