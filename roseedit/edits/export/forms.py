"""Every form an edit can be exported to, behind one function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from roseedit.edits.edit import Edit
from roseedit.edits.export.common import Exported
from roseedit.errors import ExportError, near_names, refusal
from roseedit.models.load import LoadedModel, load_model
from roseedit.models.place import indices_of

FORMS = ("peft", "merged", "patch", "gguf", "vllm")
NEEDS_MODEL = ("merged", "patch", "gguf")
_OPTIONS = {
    "peft": ("base",),
    "vllm": ("base", "name"),
    "patch": ("base",),
    "merged": ("base", "dtype", "measure"),
    "gguf": ("base", "dtype", "measure"),
}


def check_options(form: str, **options: Any) -> None:
    """Refuse a form that does not exist, or an option that it does not have.

    Args:
        form: One of `FORMS`.
        **options: Those that were given; None counts as not given.

    Raises:
        ExportError: Either.
    """
    if form not in FORMS:
        raise ExportError(refusal(f"the form {form!r}", ", ".join(FORMS), near_names(form, FORMS)))
    for name, value in options.items():
        if value is not None and name not in _OPTIONS[form]:
            allowed = ", ".join(_OPTIONS[form])
            raise ExportError(refusal(f"{name} with the form {form!r}", allowed, "Leave it out."))


def export_edits(
    edits: Sequence[Edit], form: str, out: str | Path, loaded: LoadedModel | None = None, **options: Any
) -> Exported:
    """Export edits, together, as one thing.

    Args:
        edits: Edits of one base.
        form: `peft`, `vllm`: an adapter. `merged`: a checkpoint. `patch`: touched entries. `gguf`: a GGUF file.
        out: A new or empty folder.
        loaded: The base; left out: loaded as it was when the edits were made, where the form needs it.
        **options: `base`, and by form `dtype`, `measure` or `name`; see the form's own function.

    Returns:
        What was made.

    Raises:
        ExportError: An unknown form or option, or edits that cannot take that form.
        DeltaError: The folder is in use, or the model is not the edits' base.
    """
    check_options(form, **options)
    given = {name: value for name, value in options.items() if value is not None}
    if form not in NEEDS_MODEL:
        return _adapter_form(form)(edits, out, **given)
    from roseedit.edits.export.common import check_together

    check_together(edits)
    return _model_form(form)(edits, out, loaded or load_base(edits[0]), **given)


def _adapter_form(form: str) -> Callable[..., Exported]:
    from roseedit.edits.export.adapter import export_peft
    from roseedit.edits.export.vllm import export_vllm

    return export_peft if form == "peft" else export_vllm


def _model_form(form: str) -> Callable[..., Exported]:
    from roseedit.edits.export.gguf import export_gguf
    from roseedit.edits.export.merged import export_merged
    from roseedit.edits.export.patch import export_patch

    return {"merged": export_merged, "patch": export_patch, "gguf": export_gguf}[form]


def load_base(edit: Edit, name: str | None = None) -> LoadedModel:
    """The base of an edit, loaded with the precision and anatomy that its settings name.

    Args:
        edit: The edit.
        name: Where it lies now; left out: what it was called.

    Returns:
        The model.

    Raises:
        ModelError: It cannot be loaded.
    """
    settings = edit.hparams
    dtype, device = settings.get("dtype"), settings.get("device")
    return load_model(
        name or edit.model_name,
        dtype=None if dtype in (None, "default") else str(dtype),
        device=None if device in (None, "auto") else str(device),
        revision=settings.get("revision"),
        anatomy=settings.get("anatomy") or None,
        **_packing(settings),
    )


def _packing(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A base that was in 4 bit is loaded with the same layers whole: others would make it another base."""
    if not settings.get("quantize"):
        return {}
    layers = settings["layers"]
    place = layers if isinstance(layers, str) else tuple(layers), settings["depth"]
    return {"quantize": settings["quantize"], "whole": partial(indices_of, *place)}
