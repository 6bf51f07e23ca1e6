"""A finished run in memory: all that a table, a comparison or a page is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class RunRecord:
    """One run.

    Attributes:
        name: What to call it; the name of its directory.
        identity: What it is (`run.json`).
        summary: Its figures (`summary.json`).
        cost: Seconds and memory (`cost.json`).
        rows: The long form, edits in the data's order.
        requests: Its edits, as plain JSON values with their `key`.
    """

    name: str
    identity: Mapping[str, Any]
    summary: Mapping[str, Any]
    cost: Mapping[str, Any]
    rows: pandas.DataFrame
    requests: tuple[Mapping[str, Any], ...]

    @property
    def method(self) -> str:
        """Name of the editing method."""
        return str(self.identity["hparams"]["method"])
