"""The files of skip profiles: one folder with `profiles.json`, and safetensors for healing and gate parameters.

Loading trusts nothing: the record carries its own hash and those of its blobs, a folder with pickled weights in it is
refused, and every value is checked by the classes themselves.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from roseedit import __version__
from roseedit.edits.files import PICKLES
from roseedit.edits.storage import write_file
from roseedit.errors import ProfileFileError, SkipError, refusal
from roseedit.hadskip.paths import Healing
from roseedit.hadskip.profile import Profile, SkipProfiles
from roseedit.hadskip.shipped import find_gates, gates_for
from roseedit.models.load import LoadedModel

FORMAT = 1
RECORD, HEALING, GATES = "profiles.json", "healing.safetensors", "gates.safetensors"


def save_profiles(profiles: SkipProfiles, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write profiles.

    Args:
        profiles: The profiles.
        folder: A new or empty folder.
        overwrite: Replace profiles that lie there already.

    Returns:
        The folder.

    Raises:
        ProfileFileError: The folder holds something already.
    """
    target = Path(folder)
    check_free(target, overwrite=overwrite)
    target.mkdir(parents=True, exist_ok=True)
    healing = {f"{key}/{name}": t for key, h in profiles.healings.items() for name, t in h.tensors().items()}
    hashes = {name: _write_blob(target / name, t) for name, t in ((HEALING, healing), (GATES, profiles.gates)) if t}
    record: dict[str, Any] = {
        "format": FORMAT,
        "roseedit": __version__,
        "model_name": profiles.model_name,
        "n_layers": profiles.n_layers,
        "protected": list(profiles.protected),
        "fingerprint": profiles.fingerprint,
        "profiles": [{**asdict(p), "layers": list(p.layers), "measured": dict(p.measured)} for p in profiles.profiles],
        "healings": sorted(profiles.healings),
        "gate_settings": dict(profiles.gate_settings),
        "made_by": dict(profiles.made_by),
        "sha256": hashes,
    }
    record["record_sha256"] = record_hash(record)
    write_file(target / RECORD, json.dumps(record, indent=1, ensure_ascii=False).encode())
    return target


def check_free(folder: Path, *, overwrite: bool = False) -> None:
    """Refuse a folder in use.

    Args:
        folder: Where something is to be written.
        overwrite: Take a folder that holds something, too.

    Raises:
        ProfileFileError: It is in use, or no folder.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not overwrite)):
        message = refusal(f"the folder {str(folder)!r}, which is in use", "a new or empty one", "Name another.")
        raise ProfileFileError(message)


def record_hash(record: Mapping[str, Any]) -> str:
    """Hash of everything in a record beside the hash itself.

    Args:
        record: Its contents.

    Returns:
        64 hex digits, the same before and after a trip through JSON.
    """
    rest = {key: v for key, v in record.items() if key != "record_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _write_blob(path: Path, tensors: Mapping[str, Tensor]) -> str:
    from safetensors.torch import save

    blob = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})
    write_file(path, blob)
    return hashlib.sha256(blob).hexdigest()


def load_profiles(folder: str | Path) -> SkipProfiles:
    """Read profiles; whether they belong to a model is for `SkipProfiles.check` to say.

    Args:
        folder: Where they were saved.

    Returns:
        The profiles.

    Raises:
        ProfileFileError: Files missing, damaged, pickled or of another format, or values that do not fit.
    """
    source = Path(folder)
    record = _read_record(source)
    try:
        return _profiles(record, source)
    except ProfileFileError:
        raise
    except (SkipError, KeyError, TypeError, AttributeError, ValueError) as error:
        message = refusal(f"{RECORD} with a missing or wrong part ({error})", "the file as saved", "Copy it anew.")
        raise ProfileFileError(message) from error


def _profiles(record: dict[str, Any], source: Path) -> SkipProfiles:
    hashes = dict(record["sha256"])
    healing, gates = (_read_blob(source / name, hashes.get(name)) for name in (HEALING, GATES))
    by_key: dict[str, dict[str, Tensor]] = {key: {} for key in record["healings"]}
    for name, tensor in healing.items():
        key, _, rest = name.partition("/")
        by_key[key][rest] = tensor
    return SkipProfiles(
        str(record["model_name"]),
        int(record["n_layers"]),
        tuple(record["protected"]),
        record["fingerprint"],
        tuple(Profile(**values) for values in record["profiles"]),
        {key: Healing.of_tensors(tensors) for key, tensors in by_key.items()},
        gates,
        dict(record["gate_settings"]),
        dict(record["made_by"]),
    )


def _read_blob(path: Path, sha256: str | None) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    if sha256 is None:
        return {}
    blob = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(blob).hexdigest() != sha256:
        message = refusal(f"{path.name}, missing or other than its record says", "the file as saved", "Copy it anew.")
        raise ProfileFileError(message)
    try:
        tensors = load(blob)
    except SafetensorError as error:
        message = refusal(f"{path.name} that cannot be parsed", "the file as saved", "Copy it anew.")
        raise ProfileFileError(message) from error
    if not all(bool(torch.isfinite(t).all()) for t in tensors.values()):
        raise ProfileFileError(refusal(f"{path.name} with NaN or infinity", "finite numbers", "Fit anew."))
    return tensors


def _read_record(source: Path) -> dict[str, Any]:
    if not (source / RECORD).is_file():
        message = refusal(f"{str(source)!r}, which holds no {RECORD}", "a folder of profiles", "Check the path.")
        raise ProfileFileError(message)
    pickled = sorted(p.name for p in source.iterdir() if p.suffix in PICKLES)
    if pickled:
        message = refusal(f"a folder with {', '.join(pickled)} in it", "safetensors and json only", "Remove that file.")
        raise ProfileFileError(message)
    try:
        record = json.loads((source / RECORD).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ProfileFileError(refusal(f"{RECORD} that is not JSON", "the file as saved", "Copy it anew.")) from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        got = record.get("format") if isinstance(record, dict) else type(record).__name__
        message = refusal(f"profile format {got!r}", f"{FORMAT}", "Use the version of roseedit that wrote it.")
        raise ProfileFileError(message)
    if record_hash(record) != record.get("record_sha256"):
        message = refusal(f"{RECORD} that differs from its own hash", "the file as it was saved", "Copy it anew.")
        raise ProfileFileError(message)
    return record


def find_profiles(
    loaded: LoadedModel, gates: str | Path | SkipProfiles | None, budget: float | None = None
) -> SkipProfiles:
    """Profiles as a user names them.

    Args:
        loaded: The model.
        gates: A folder, the name of shipped gates, loaded profiles, or None for those that ship for the model.
        budget: Picks among those that ship: the ones fitted for the largest budget within it.

    Returns:
        The profiles.

    Raises:
        SkipError: None ship for the model.
        ProfileFileError: The folder holds none, or damaged ones.
    """
    if isinstance(gates, SkipProfiles):
        return gates
    return load_profiles(gates_for(loaded.name, budget) if gates is None else find_gates(gates))
