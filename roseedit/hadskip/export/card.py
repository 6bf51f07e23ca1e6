"""The model cards of exported profiles: what was dropped, what is left of it, and the command lines that use it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roseedit import __version__
from roseedit.hadskip.profile import SkipProfiles
from roseedit.models.embedded import EMBEDDED, embedded_folder
from roseedit.models.load import LoadedModel

CARD = "README.md"
DRAFTED = 4  # tokens that an engine drafts at a time in the commands below


def draft_commands(full: str, draft: str) -> dict[str, str]:
    """Command lines in which a dropped checkpoint drafts for the full model.

    Args:
        full: Name or path of the full model.
        draft: Path of the checkpoint.

    Returns:
        By engine: `transformers` (Python), `vllm`, `sglang`, `llama.cpp`. The last takes GGUF files, made of both with
        its own converter.
    """
    spec = json.dumps({"method": "draft_model", "model": draft, "num_speculative_tokens": DRAFTED})
    at = shlex.quote
    return {
        "transformers": (
            f"draft = AutoModelForCausalLM.from_pretrained({draft!r})\nmodel.generate(**inputs, assistant_model=draft)"
        ),
        "vllm": f"vllm serve {at(full)} --speculative-config {at(spec)}",
        "sglang": (
            f"python -m sglang.launch_server --model-path {at(full)} --speculative-algorithm STANDALONE "
            f"--speculative-draft-model-path {at(draft)} --speculative-num-steps {DRAFTED} "
            f"--speculative-eagle-topk 1 --speculative-num-draft-tokens {DRAFTED + 1}"
        ),
        "llama.cpp": (
            f"python convert_hf_to_gguf.py {at(draft)} --outfile draft.gguf\n"
            "llama-server -m full.gguf -md draft.gguf --draft-max " + str(DRAFTED)
        ),
    }


def write_dropped_card(
    folder: Path, loaded: LoadedModel, profiles: SkipProfiles, name: str, figures: Mapping[str, Any]
) -> None:
    """The card of a checkpoint with layers dropped.

    Args:
        folder: The export.
        loaded: The full model.
        profiles: The profiles.
        name: Which of them.
        figures: Measured without healing.
    """
    profile = next(p for p in profiles.profiles if p.name == name)
    full = str(embedded_folder(loaded.name).resolve()) if loaded.name in EMBEDDED else loaded.name
    commands = draft_commands(full, "THIS_FOLDER")
    blocks = [
        _front_matter(),
        f"# {loaded.name} with {len(profile.layers)} of {profiles.n_layers} layers",
        f"Made with roseedit {__version__} from the profile `{name}`, which skips layers "
        f"{', '.join(map(str, profile.skipped(profiles.n_layers)))}. {_edits(profiles)}",
        "A stock checkpoint has no place for the profile's healing, so this one is worse than the profile that "
        "roseedit serves. Against the full model on roseedit's calibration text, without healing:",
        _table(figures),
        "## Use",
        '`AutoModelForCausalLM.from_pretrained("THIS_FOLDER")`, as a model of its own or as a draft:',
        *(f"{engine}\n\n```\n{command}\n```" for engine, command in commands.items()),
        "Whether drafting pays depends on how often the full model agrees; measure before you serve. What the full "
        "model says does not change.",
        _licence(loaded),
    ]
    _write(folder, blocks)


def write_custom_card(folder: Path, loaded: LoadedModel, profiles: SkipProfiles) -> None:
    """The card of a folder of custom code.

    Args:
        folder: The export.
        loaded: The model.
        profiles: Its profiles.
    """
    rows = [
        f"| {p.name} | {p.cost:.3f} | {', '.join(map(str, p.skipped(profiles.n_layers)))} |" for p in profiles.profiles
    ]
    code = (
        "```python\nfrom transformers import AutoModelForCausalLM\n\n"
        'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER", trust_remote_code=True)\n'
        "model.set_budget(0.8)      # mean share of layer cost that may run\n"
        'model.set_profile("full")  # all layers; None lets the gates choose\n```'
    )
    blocks = [
        _front_matter(),
        f"# {loaded.name} with gates that skip layers",
        f"Made with roseedit {__version__}. Gates look at a prompt once and pick which layers run for it, within a "
        f"mean budget of {profiles.gate_settings['budget']}. {_edits(profiles)}",
        "| profile | cost | skipped layers |\n| --- | ---: | --- |\n" + "\n".join(rows),
        "## Use",
        code,
        "`modeling_hadskip.py` in this folder is the code that runs; read it before you trust it. Without "
        "`trust_remote_code` the folder loads as the plain model, all layers, and the gates are ignored. Rows of one "
        "batch get the costliest profile that any of them chooses; roseedit itself serves each its own.",
        _licence(loaded),
    ]
    _write(folder, blocks)


def _front_matter() -> str:
    from huggingface_hub import ModelCardData

    data = ModelCardData(library_name="transformers", tags=["layer-skipping", "roseedit"])
    return f"---\n{data.to_yaml()}\n---"


def _edits(profiles: SkipProfiles) -> str:
    edits = profiles.made_by.get("edits") or []
    return f"Edits in the weights: {', '.join(map(str, edits))}." if edits else "No edit is in the weights."


def _table(figures: Mapping[str, Any]) -> str:
    lines = ["| figure | value | n |", "| --- | ---: | ---: |"]
    for name, value in figures.items():
        if isinstance(value, Mapping):
            lines.append(f"| {name} | {value['mean']:.3f} ({value['low']:.3f} - {value['high']:.3f}) | {value['n']} |")
    return "\n".join(lines)


def _licence(loaded: LoadedModel) -> str:
    known = f" ({EMBEDDED[loaded.name].note})" if loaded.name in EMBEDDED else ""
    return f"## Licence\n\nThe licence and terms of use of the full model hold{known}."


def _write(folder: Path, blocks: list[str]) -> None:
    (folder / CARD).write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
