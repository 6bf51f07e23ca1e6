"""What a run is: everything that its rows depend on, written down once and compared at every later start."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from roseedit import __version__
from roseedit.edits.edit import request_as_mapping, request_from_mapping
from roseedit.edits.fingerprint import base_fingerprint
from roseedit.errors import RunError, refusal
from roseedit.evaluation.generation import MAX_NEW_TOKENS
from roseedit.evaluation.prompts import STOP_STRINGS
from roseedit.evaluation.scoring import BATCH_TOKENS
from roseedit.hparams import Hparams, as_mapping
from roseedit.models.load import LoadedModel
from roseedit.requests import EditRequest
from roseedit.runs.files import Layout, as_json, read_json, write_atomic, write_once

FORMAT = 1
TRAIN_TOKENS = 2048
SHOWN = 5  # differences named in a refusal


def versions() -> dict[str, str]:
    """Packages whose version can change a row."""
    from importlib import metadata

    found = {name: metadata.version(name) for name in ("torch", "transformers", "tokenizers")}
    return {"roseedit": __version__, **found}


def base_of(loaded: LoadedModel) -> dict[str, str]:
    """Which model it is: every byte of it, and where and in what precision it runs.

    Args:
        loaded: The model.

    Returns:
        `fingerprint`, `dtype` and `device` (its name on a GPU: another card rounds differently).
    """
    names = [name for name, _ in loaded.model.named_parameters()]
    device = loaded.device
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    dtype = str(loaded.model.dtype).removeprefix("torch.")
    return {"fingerprint": base_fingerprint(loaded, names), "dtype": dtype, "device": place}


def settled(hparams: Hparams, unit: int) -> Hparams:
    """Settings without anything that would be read off the free memory: batches must be the same at every start.

    Args:
        hparams: The method's settings.
        unit: Edits in a unit.

    Returns:
        The settings, with sizes of 0 ("what fits") replaced by fixed ones.
    """
    own = as_mapping(hparams)
    sizes = {"edits_per_bank": unit, "batch_tokens": TRAIN_TOKENS}
    return hparams.replaced(**{name: size for name, size in sizes.items() if own.get(name) == 0})


def decode_settings() -> dict[str, Any]:
    """How answers are generated and scored."""
    return {
        "greedy": True,
        "max_new_tokens": MAX_NEW_TOKENS,
        "stop_strings": list(STOP_STRINGS),
        "batch_tokens": BATCH_TOKENS,
    }


def pack_requests(requests: Sequence[EditRequest], rejected: Sequence[str], notes: Sequence[str]) -> bytes:
    """The run's own copy of its data, so that a worker or a report needs the directory alone.

    Args:
        requests: The edits.
        rejected: Why further records were left out.
        notes: What was left out of records that are among them.

    Returns:
        The bytes of `requests.json`.
    """
    listed = {"rejected": [{"reason": r} for r in rejected], "notes": [{"reason": r} for r in notes]}
    return as_json({"requests": [request_as_mapping(r) for r in requests], **listed})


def read_requests(layout: Layout, identity: Mapping[str, Any]) -> list[EditRequest]:
    """Read the run's own copy of its data.

    Args:
        layout: The run's directory.
        identity: Content of `run.json`.

    Returns:
        The requests.

    Raises:
        RunError: The file is missing or was changed.
    """
    values = read_json(layout.requests)
    digest = hashlib.sha256(layout.requests.read_bytes()).hexdigest()
    if digest != identity["data"]["requests_sha256"]:
        message = refusal(f"{layout.requests}, which was changed", "the file as the run wrote it", "Restore it.")
        raise RunError(message)
    return [request_from_mapping(request) for request in values["requests"]]


def open_run(layout: Layout, identity: Mapping[str, Any], requests: bytes) -> None:
    """Make the directory this run's, or make sure that it is.

    Args:
        layout: The directory; made when needed.
        identity: What the run is.
        requests: Content of `requests.json`.

    Raises:
        RunError: The directory belongs to another configuration (the message says what differs) or holds other things.
    """
    if not layout.identity.exists():
        _check_free(layout)
        # the data first: whoever finds run.json finds everything
        if not layout.requests.exists():
            write_atomic(layout.requests, requests)
        write_once(layout.identity, as_json(identity))
    check_same(layout, identity)
    if layout.requests.read_bytes() != requests:
        write_atomic(layout.requests, requests)


def _check_free(layout: Layout) -> None:
    if layout.root.exists() and not layout.root.is_dir():
        raise RunError(refusal(f"--out {str(layout.root)!r}, which is a file", "a directory", "Name another."))
    others = [p for p in layout.root.iterdir() if not p.name.startswith(".")] if layout.root.exists() else []
    if any(p not in (layout.requests, layout.identity) for p in others):
        message = refusal(
            f"the directory {str(layout.root)!r}, which holds other things",
            "a new or empty one, or that of the same run",
            "Name another.",
        )
        raise RunError(message)


def check_same(layout: Layout, identity: Mapping[str, Any]) -> None:
    """Refuse a directory of another configuration.

    Args:
        layout: The directory.
        identity: What this run is.

    Raises:
        RunError: With what differs.
    """
    there = read_json(layout.identity)
    differing = list(_differences(there, identity))
    if differing:
        more = f" and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
        message = refusal(
            f"the directory of another run: {'; '.join(differing[:SHOWN])}{more}",
            "the directory of the same configuration",
            f"Name a new --out, or give the settings that {layout.identity} has.",
        )
        raise RunError(message)


def _differences(there: Any, here: Any, path: str = "") -> Iterator[str]:
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in sorted({*there, *here}):
            yield from _differences(there.get(key), here.get(key), f"{path}.{key}" if path else str(key))
    elif there != here:
        yield f"{path} is {there!r} there and {here!r} here"
