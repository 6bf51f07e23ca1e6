"""roseedit: change what an open-weights language model believes, and change it back bit for bit.

The public names are imported on first use, so that `import roseedit` loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from roseedit.editor import Editor, EditResult
    from roseedit.edits.delta import Delta
    from roseedit.edits.edit import Edit
    from roseedit.editsets import load_editset
    from roseedit.errors import RoseEditError
    from roseedit.models.load import LoadedModel, load_model
    from roseedit.requests import EditRequest, Probe

__version__ = "0.1.0"
__all__ = [
    "Delta",
    "Edit",
    "EditRequest",
    "EditResult",
    "Editor",
    "LoadedModel",
    "Probe",
    "RoseEditError",
    "__version__",
    "load_editset",
    "load_model",
]

_WHERE = {
    "Delta": "roseedit.edits.delta",
    "Edit": "roseedit.edits.edit",
    "EditRequest": "roseedit.requests",
    "EditResult": "roseedit.editor",
    "Editor": "roseedit.editor",
    "LoadedModel": "roseedit.models.load",
    "Probe": "roseedit.requests",
    "RoseEditError": "roseedit.errors",
    "load_editset": "roseedit.editsets",
    "load_model": "roseedit.models.load",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'roseedit' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return __all__
