"""A profile as a plain checkpoint: the executed layers, renumbered, in the model's own class.

Loads wherever the model itself loads, as a faster model of lesser quality or as the draft of speculative decoding.
Healing has no place in a stock layer and is left out, so quality is below the profile's own figures; what is left is
measured.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from roseedit.edits.export.common import Exported, new_folder
from roseedit.errors import SkipError, refusal
from roseedit.hadskip.export.card import write_dropped_card
from roseedit.hadskip.measure import figures, text_scores
from roseedit.hadskip.paths import executing
from roseedit.hadskip.profile import SkipProfiles
from roseedit.hadskip.teacher import Teacher
from roseedit.hadskip.texts import all_real, token_rows
from roseedit.models.load import LoadedModel, load_model
from roseedit.models.quantized import refuse_packed
from roseedit.models.replay import run_body

CLOSE = 1e-4  # of the largest logit: what is written must say what the profile says without healing
TOKENS = 64  # per sequence of the calibration text


def export_dropped(loaded: LoadedModel, profiles: SkipProfiles, name: str, out: str | Path) -> Exported:
    """Write the layers that a profile executes as a checkpoint of its own, live edits included.

    Args:
        loaded: The model, edits applied; left as it was.
        profiles: Profiles fitted on it.
        name: Of the profile.
        out: A new or empty folder.

    Returns:
        What was made; `figures` holds perplexity (relative), KL and agreement with the full model on the calibration
        text, with 95 % intervals over its sequences.

    Raises:
        SkipError: No such profile, profiles of other weights, or a model whose layers depend on their number in a way
            that a configuration cannot express.
        DeltaError: The folder is in use.
        ExportError: The model is in 4 bit.
    """
    refuse_packed(loaded.anatomy)
    profiles.check(loaded)
    layers = layers_of(profiles, name)
    with new_folder(out) as folder:
        config = shortened(loaded.model.config, layers)
        weights = renumbered(loaded.model.state_dict(), loaded.anatomy.layers_name, layers)
        loaded.model.save_pretrained(folder, state_dict=weights)
        config.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        rows = calibration_rows(loaded)
        _check_same(loaded, layers, load_model(str(folder), device=str(loaded.device)), rows)
        scores = figures(text_scores(Teacher.of(loaded, rows), layers, None))
        found: dict[str, Any] = {"layers": len(layers), **scores}
        write_dropped_card(folder, loaded, profiles, name, found)
    return Exported("dropped", Path(out), loaded.name, found)


def layers_of(profiles: SkipProfiles, name: str) -> tuple[int, ...]:
    """The executed layers of a profile.

    Args:
        profiles: The profiles.
        name: Of one of them.

    Returns:
        Indices, sorted.

    Raises:
        SkipError: No such profile.
    """
    found = [p.layers for p in profiles.profiles if p.name == name]
    if not found:
        known = ", ".join(p.name for p in profiles.profiles)
        raise SkipError(refusal(f"profile {name!r}", known, "Choose one of them."))
    return found[0]


def shortened(config: Any, layers: Sequence[int]) -> Any:
    """A configuration of the same model with these layers only.

    Args:
        config: Of the whole model; left as it is.
        layers: The layers that stay.

    Returns:
        A copy; every list with one entry per layer keeps the entries of the layers that stay.
    """
    out = copy.deepcopy(config)
    text = out.get_text_config()
    n = text.num_hidden_layers
    for key, value in list(vars(text).items()):
        if isinstance(value, (list, tuple)) and len(value) == n and key != "architectures":
            setattr(text, key, [value[i] for i in layers])
    text.num_hidden_layers = len(layers)
    return out


def renumbered(state: dict[str, Tensor], layers_name: str, layers: Sequence[int]) -> dict[str, Tensor]:
    """A state dictionary without the layers that go, the others renumbered.

    Args:
        state: Of the whole model.
        layers_name: Path of the list of decoder layers.
        layers: The layers that stay.

    Returns:
        Name to tensor; the tensors are the model's own.
    """
    place = {f"{layers_name}.{layer}.": f"{layers_name}.{i}." for i, layer in enumerate(layers)}
    out = {}
    for name, tensor in state.items():
        if not name.startswith(f"{layers_name}."):
            out[name] = tensor
            continue
        number = name.removeprefix(f"{layers_name}.").partition(".")[0]
        prefix = f"{layers_name}.{number}."
        if prefix in place:
            out[place[prefix] + name.removeprefix(prefix)] = tensor
    return out


def calibration_rows(loaded: LoadedModel) -> Tensor:
    """The package's own calibration text, cut into sequences.

    Args:
        loaded: The model, for its tokenizer.

    Returns:
        (sequences, tokens).
    """
    text = resources.files("roseedit.edits").joinpath("calibration.txt").read_text(encoding="utf-8")
    return token_rows(loaded, text, min(TOKENS, loaded.anatomy.window))


@torch.no_grad()
def _check_same(loaded: LoadedModel, layers: Sequence[int], again: LoadedModel, rows: Tensor) -> None:
    ids = rows[:2].to(loaded.device)
    with executing(loaded, layers):
        wanted = run_body(loaded.model, ids, all_real(ids)).float()
    off = float((run_body(again.model, ids, all_real(ids)).float() - wanted).abs().max())
    if not off <= CLOSE * float(wanted.abs().max()):
        got = f"a shortened checkpoint that differs from the profile by {off:.2g}"
        allowed = "models whose layers do not depend on their number, or through a list in the configuration"
        raise SkipError(refusal(got, allowed, "Serve the profile through roseedit, or export the custom code."))
