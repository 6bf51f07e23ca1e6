"""A folder of custom code for `transformers`: the model, its gates and its healing, run without roseedit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from torch import Tensor

from roseedit.edits.export.common import Exported, new_folder
from roseedit.errors import SkipError, refusal
from roseedit.hadskip.export.card import write_custom_card
from roseedit.hadskip.gate import GateChooser
from roseedit.hadskip.profile import SkipProfiles
from roseedit.models.load import LoadedModel
from roseedit.models.quantized import refuse_packed

MODULE, CLASS = "modeling_hadskip", "HadSkipForCausalLM"
_BASE = "from transformers import PreTrainedModel as Base"


def export_custom(loaded: LoadedModel, profiles: SkipProfiles, out: str | Path) -> Exported:
    """Write the model with its gates as a folder that `transformers` loads with `trust_remote_code=True`.

    Without that argument the same folder loads as the plain, full model.

    Args:
        loaded: The model, edits applied; left as it was.
        profiles: Profiles with gates, fitted on it.
        out: A new or empty folder.

    Returns:
        What was made.

    Raises:
        SkipError: Profiles of other weights or without gates, or a model that has no class of its own in transformers.
        DeltaError: The folder is in use.
        ExportError: The model is in 4 bit.
    """
    refuse_packed(loaded.anatomy)
    profiles.check(loaded)
    chooser = _chooser(profiles)
    base = _base_class(loaded)
    tensors, record = own_tensors(profiles, chooser), own_record(loaded, profiles, chooser)
    record["tensors"] = {name: [list(t.shape), str(t.dtype).removeprefix("torch.")] for name, t in tensors.items()}
    with new_folder(out) as folder:
        state = {**loaded.model.state_dict(), **{f"hadskip.{name}": t for name, t in tensors.items()}}
        loaded.model.save_pretrained(folder, state_dict=state)
        loaded.tokenizer.save_pretrained(folder)
        code = resources.files("roseedit.hadskip.export").joinpath(f"remote/{MODULE}.py").read_text(encoding="utf-8")
        (folder / f"{MODULE}.py").write_text(code.replace(_BASE, f"from transformers import {base} as Base"), "utf-8")
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config |= {"auto_map": {"AutoModelForCausalLM": f"{MODULE}.{CLASS}"}, "hadskip": record}
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
        write_custom_card(folder, loaded, profiles)
    figures = {"profiles": len(profiles.profiles), "bytes": sum(t.numel() * t.element_size() for t in tensors.values())}
    return Exported("custom", Path(out), loaded.name, figures)


def _chooser(profiles: SkipProfiles) -> GateChooser:
    if not profiles.gates:
        raise SkipError(refusal("profiles without gates", "those that `skip fit` wrote", "Export one profile instead."))
    return GateChooser(profiles)


def _base_class(loaded: LoadedModel) -> str:
    import transformers

    name = type(loaded.model).__name__
    if getattr(transformers, name, None) is not type(loaded.model):
        got = f"a model of class {name}, which transformers does not have"
        raise SkipError(refusal(got, "a model of a class in transformers", "Export one profile as a checkpoint."))
    return name


def own_tensors(profiles: SkipProfiles, chooser: GateChooser) -> dict[str, Tensor]:
    """What the code needs beside the model's weights.

    Args:
        profiles: The profiles.
        chooser: Their chooser.

    Returns:
        Name to tensor: the gates, float32, and the healing as it is stored.
    """
    gates = {name: t.detach().float() for name, t in chooser.gates.state_dict().items()}
    out = {**gates, "members": chooser.members, "costs": chooser.costs}
    for key, healing in profiles.healings.items():
        out |= {f"{key}_{name.replace('.', '_')}": t for name, t in healing.tensors().items()}
    return {name: t.contiguous().clone() for name, t in out.items()}


def own_record(loaded: LoadedModel, profiles: SkipProfiles, chooser: GateChooser) -> dict[str, Any]:
    """The same as plain JSON, for the configuration.

    Args:
        loaded: The model.
        profiles: The profiles.
        chooser: Their chooser.

    Returns:
        Where the layers are, which layers each profile runs, what the gates look at, and the calibration curve.
    """
    listed: list[Mapping[str, Any]] = [
        {"name": p.name, "layers": list(p.layers), "cost": p.cost, "healing": p.healing} for p in profiles.profiles
    ]
    return {
        "layers_name": loaded.anatomy.layers_name,
        "layer_returns_tuple": loaded.anatomy.layer_returns_tuple,
        "looks_at": chooser.looks_at,
        "budget": profiles.gate_settings["budget"],
        "curve": [list(point) for point in chooser.curve],
        "profiles": listed,
        "fingerprint": profiles.fingerprint,
    }
