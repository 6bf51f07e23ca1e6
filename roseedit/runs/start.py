"""The start of a run: which edits it has, what it is, and whether its directory is its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from roseedit.editor import Editor
from roseedit.errors import RequestError, RunError, refusal
from roseedit.hparams import Hparams, as_mapping
from roseedit.methods import read_hparams
from roseedit.requests import EditRequest, check_request, check_tokens
from roseedit.runs.files import Layout, read_json
from roseedit.runs.identity import (
    FORMAT,
    base_of,
    check_same,
    decode_settings,
    open_run,
    pack_requests,
    read_requests,
    settled,
    versions,
)
from roseedit.runs.options import Data, RunOptions, without_clashes
from roseedit.runs.units import Item, items_of, plan_units


@dataclass(frozen=True)
class Facts:
    """What only a process that holds the model can tell.

    Attributes:
        base: Fingerprint, precision, device.
        versions: Of the packages that matter.
        refused: Per position of a request that the model cannot take, why.
    """

    base: Mapping[str, str]
    versions: Mapping[str, str]
    refused: Mapping[int, str]


@dataclass(frozen=True)
class Run:
    """A run whose directory is open.

    Attributes:
        layout: Its directory.
        identity: Content of `run.json`.
        hparams: Settings of the method.
        items: The edits.
        units: Positions per unit.
    """

    layout: Layout
    identity: Mapping[str, Any]
    hparams: Hparams
    items: tuple[Item, ...]
    units: tuple[tuple[int, ...], ...]

    @property
    def keys(self) -> list[str]:
        """Names of the edits."""
        return [item.key for item in self.items]


def facts_of(editor: Editor, requests: Sequence[EditRequest]) -> Facts:
    """Look at the model that a run is about.

    Args:
        editor: With nothing live on it.
        requests: All requests.

    Returns:
        The facts.
    """
    refused = {}
    for i, request in enumerate(requests):
        try:
            check_request(request)
            check_tokens([request], editor.loaded.tokenizer, editor.loaded.anatomy.window)
        except RequestError as error:
            refused[i] = f"{request.source or f'request {i}'}: {str(error).partition(': ')[2]}"
    return Facts(base_of(editor.loaded), versions(), refused)


def start(hparams: Hparams, data: Data, layout: Layout, options: RunOptions, facts: Facts) -> Run:
    """Fix what the run is, and open its directory.

    Args:
        hparams: Settings of the method, `settled`.
        data: The edits.
        layout: The directory.
        options: With `unit` and `threads` set.
        facts: From `facts_of`.

    Returns:
        The open run.

    Raises:
        RunError: No edit is left, or the directory belongs to another configuration.
    """
    refused = dict(facts.refused)
    if options.mode != "independent":
        left = [i for i in range(len(data.requests)) if i not in refused]
        clashes = without_clashes([data.requests[i] for i in left])
        refused |= {left[i]: reason for i, reason in clashes.items()}
    requests = tuple(r for i, r in enumerate(data.requests) if i not in refused)
    if not requests:
        reason = next(iter(refused.values()), "the set is empty")
        raise RunError(refusal(f"no edit that can be made ({reason})", "one or more", "Check the data."))
    rejected = [*data.rejected, *(refused[i] for i in sorted(refused))]
    packed = pack_requests(requests, rejected, data.notes)
    identity = {
        "format": FORMAT,
        "hparams": as_mapping(hparams),
        "base": dict(facts.base),
        "data": {
            "name": data.name,
            "sha256": data.sha256,
            "edits": len(requests),
            "rejected": len(rejected),
            "requests_sha256": hashlib.sha256(packed).hexdigest(),
        },
        "mode": options.mode,
        "limit": data.limit,
        "seed": hparams.seed,
        "decode": decode_settings(),
        "plan": {"unit": options.unit, "threads": options.threads},
        "checkpoints": options.checkpoints if options.mode == "sequential" else 0,
        "ability": {"tasks": list(options.ability), "limit": options.ability_limit if options.ability else None},
        "versions": dict(facts.versions),
    }
    open_run(layout, identity, packed)
    return reopened(layout)


def reopened(layout: Layout) -> Run:
    """Open a directory by what it says itself.

    Args:
        layout: The directory of a run that was started.

    Returns:
        The run.

    Raises:
        RunError: It is no such directory, or was changed.
    """
    identity = read_json(layout.identity)
    if identity.get("format") != FORMAT:
        message = refusal(f"a run of format {identity.get('format')!r}", f"{FORMAT}", "Use the version that wrote it.")
        raise RunError(message)
    items = tuple(items_of(read_requests(layout, identity)))
    units = tuple(tuple(unit) for unit in plan_units(items, int(identity["plan"]["unit"])))
    return Run(layout, identity, read_hparams(identity["hparams"], str(layout.identity)), items, units)


def check_base(run: Run, editor: Editor) -> None:
    """Refuse a process whose model or packages are not the run's.

    Args:
        run: The run.
        editor: Of this process.

    Raises:
        RunError: With what differs.
    """
    check_same(run.layout, {**run.identity, "base": base_of(editor.loaded), "versions": versions()})


def prepared(hparams: Hparams, seed: int | None, unit: int) -> Hparams:
    """Settings as a run takes them: with its seed, and with fixed batch sizes.

    Args:
        hparams: As read from the file.
        seed: Another seed, if one was asked for.
        unit: Edits in a unit.

    Returns:
        The settings.
    """
    own = hparams if seed is None else hparams.replaced(seed=seed)
    return settled(own, unit)
