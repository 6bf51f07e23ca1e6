"""What a stopped fit needs to go on: tensors and a little JSON in one safetensors file per stage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from roseedit.edits.storage import write_file

_OPTIMISER = "optimiser"


def save_stage(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write a stage so that a reader sees all of it or nothing.

    Args:
        path: The file.
        tensors: Its tensors.
        record: Plain JSON values.
    """
    from safetensors.torch import save

    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    write_file(path, save(whole, metadata={"record": json.dumps(record)}))


def load_stage(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read a stage.

    Args:
        path: The file.

    Returns:
        Tensors and record; None when the file is missing or damaged, for a stage can be computed anew.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {})["record"])
            return {name: file.get_tensor(name) for name in file.keys()}, record  # noqa: SIM118 - not a dict
    except (SafetensorError, KeyError, json.JSONDecodeError):
        return None


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state by name.

    Args:
        optimiser: The optimiser.

    Returns:
        `optimiser.<parameter>.<name>`.
    """
    state = optimiser.state_dict()["state"]
    return {f"{_OPTIMISER}.{i}.{name}": torch.as_tensor(t) for i, own in state.items() for name, t in own.items()}


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimiser_tensors`.

    Args:
        optimiser: A fresh optimiser over the same parameters.
        tensors: Tensors of a stage; those of the optimiser are picked out.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith(f"{_OPTIMISER}."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = tensor
    whole = optimiser.state_dict()
    optimiser.load_state_dict({"state": state, "param_groups": whole["param_groups"]})
