"""The model card of an export: what was edited, how well, under which licence, and how to undo it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from roseedit import __version__
from roseedit.edits.edit import Edit
from roseedit.edits.record import edit_figures
from roseedit.models.embedded import EMBEDDED

CARD = "README.md"
_MOST = 200  # edits that are listed; all of them stand in the sidecar
_PEFT = """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained({base!r})
model = PeftModel.from_pretrained(model, "THIS_FOLDER")
```

`AutoModelForCausalLM.from_pretrained("THIS_FOLDER")` does both. roseedit is not needed. Keep the adapter in float32:
its numbers are exact there."""
PATCH_CODE = '''import torch
from safetensors.torch import load_file


def patch(weights, path, undo=False):
    """Put the patch on a state dict, or take it off; nothing is written unless every old value is found."""
    changes = load_file(path)
    before, after = ("new", "old") if undo else ("old", "new")
    names = [key.removesuffix(":index") for key in changes if key.endswith(":index")]
    for name in names:
        if not torch.equal(weights[name].view(-1)[changes[name + ":index"]], changes[f"{name}:{before}"]):
            raise ValueError(f"{name} is not what this patch was made for")
    for name in names:
        weights[name].view(-1)[changes[name + ":index"]] = changes[f"{name}:{after}"]'''
_USE = {
    "peft": _PEFT,
    "vllm": "```sh\n{command}\n```\n\nRequests name the edited model by `--lora-modules`; the base keeps its own name.",
    "merged": '`AutoModelForCausalLM.from_pretrained("THIS_FOLDER")`.',
    "gguf": "Any program that reads GGUF.",
    "patch": "```python\n" + PATCH_CODE + "\n```\n\n"
    '`patch(model.state_dict(), "THIS_FOLDER/patch.safetensors")` edits a loaded model in place; on the file of a\n'
    "checkpoint, load it with `load_file`, patch and save it again. The weights must have the patch's precision.",
}
_UNDO = {
    "peft": "Unload the adapter (`model.unload()`): the base's weights are not touched as long as you do not merge it.",
    "vllm": "Do not name the adapter in requests, or start the server without `--lora-modules`.",
    "merged": "The base's bytes are not in this folder: go back to the base. For an edit that can be taken off in\n"
    "place, use the patch or the adapter.",
    "gguf": "The base's bytes are not in this file: go back to the base.",
    "patch": "Call `patch(..., undo=True)`: every old byte comes back.",
}


def write_card(
    folder: Path, edits: Sequence[Edit], base: str, form: str, figures: Mapping[str, Any], *, command: str | None = None
) -> None:
    """Write `README.md`.

    Args:
        folder: The export.
        edits: Its edits.
        base: Name or path of the base model.
        form: `peft`, `vllm`, `merged`, `gguf` or `patch`.
        figures: Of the export.
        command: The command line that uses it, for `vllm`.
    """
    use = _USE[form].replace("{base!r}", repr(base)).replace("{command}", command or "")
    blocks = [
        _front_matter(base, form),
        f"# {len(edits)} {'edit' if len(edits) == 1 else 'edits'} of {edits[0].model_name}",
        f"Made with roseedit {__version__}. Base model: `{base}`. Form: {form}.",
        "## What was edited",
        _table(edits),
        _scores(edits),
        "## This export",
        _figures(figures),
        "## Use",
        use,
        "## Undo",
        _UNDO[form],
        "## Licence",
        _licence(edits[0]),
    ]
    (folder / CARD).write_text("\n\n".join(block for block in blocks if block) + "\n", encoding="utf-8")


def _front_matter(base: str, form: str) -> str:
    from huggingface_hub import ModelCardData

    library = "peft" if form in ("peft", "vllm") else None if form in ("patch", "gguf") else "transformers"
    on_hub = base.count("/") == 1 and not base.startswith(("/", "."))
    tags = ["knowledge-editing", "roseedit"]
    data = ModelCardData(base_model=base if on_hub else None, library_name=library, tags=tags)
    return f"---\n{data.to_yaml()}\n---"


def _table(edits: Sequence[Edit]) -> str:
    lines = ["| edit | prompt | new answer | old answer | touched | norm |", "| --- | --- | --- | --- | ---: | ---: |"]
    for edit in edits[:_MOST]:
        figures = edit_figures(edit)
        size = f"{figures['density']:.2%} | {figures['norm']:.3g}"
        for i, r in enumerate(edit.requests):
            cells = (_cell(r.prompt), _cell(r.target_new), _cell(r.target_true or ""))
            lines.append(f"| {edit.edit_id if i == 0 else ''} | {' | '.join(cells)} | {size if i == 0 else ' | '} |")
    if len(edits) > _MOST:
        lines.append(f"\nand {len(edits) - _MOST} more, in `roseedit.json`.")
    return (
        "\n".join(lines) + "\n\n*touched*: share of the edited matrices' entries; *norm*: Frobenius norm of the change."
    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _scores(edits: Sequence[Edit]) -> str:
    lines = []
    for edit in edits[:_MOST]:
        known = {k: v for k, v in edit.report.items() if k in ("steps", "probability", "converged")} | dict(edit.scores)
        if known:
            lines.append(f"* {edit.edit_id}: " + ", ".join(f"{k} {_number(v)}" for k, v in known.items()))
    return "Measured when they were made:\n\n" + "\n".join(lines) if lines else ""


def _figures(figures: Mapping[str, Any]) -> str:
    lines = []
    for name, value in figures.items():
        if isinstance(value, Mapping):
            value = f"{value['mean']:.3f} ({value['low']:.3f} - {value['high']:.3f}, n = {value['n']})"  # noqa: PLW2901
        elif isinstance(value, list):
            value = "; ".join(f"`{_cell(str(v))}`" for v in value) or "none"  # noqa: PLW2901
        lines.append(f"* {name}: {_number(value)}")
    return "\n".join(lines)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _licence(edit: Edit) -> str:
    known = f" ({EMBEDDED[edit.model_name].note})" if edit.model_name in EMBEDDED else ""
    return (
        "An edit changes a few weights of its base, so the base's licence and terms of use hold for this export"
        f"{known}.\nWhether the new answers are true is the responsibility of whoever asked for them."
    )
