"""From finished pieces to the final files: rows per shard, `summary.json`, `table.md`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from roseedit.evaluation.report.text import run_table
from roseedit.evaluation.summary import summarise_run
from roseedit.runs.cost import write_total
from roseedit.runs.files import Layout, as_json, read_json, write_atomic

if TYPE_CHECKING:
    import pandas
    import pyarrow


def pieces(layout: Layout, units: Sequence[int]) -> list[Path]:
    """Files of rows, in a fixed order: steps, checkpoints, units."""
    before = [*sorted(layout.steps.glob("step-*.parquet")), *sorted(layout.checkpoints.glob("live-*.parquet"))]
    return [*before, *(layout.unit(n) for n in units)]


def joined(paths: Sequence[Path]) -> pyarrow.Table:
    """Several files of rows as one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pa.concat_tables([pq.read_table(path) for path in paths])


def write_shard(layout: Layout, units: Sequence[int], index: int, count: int) -> None:
    """Write the rows of a shard whose units are all finished.

    Args:
        layout: The run's directory.
        units: The shard's units.
        index: Which shard.
        count: How many there are.
    """
    import io

    import pyarrow.parquet as pq

    paths = pieces(layout, units) if index == 0 else [layout.unit(n) for n in units]
    if not paths:
        return
    buffer = io.BytesIO()
    pq.write_table(joined(paths), buffer, compression="zstd")
    write_atomic(layout.shard(index, count), buffer.getvalue())


def settle_shards(layout: Layout, n_units: int, count: int) -> None:
    """Leave each row in exactly one file, also where a run was begun with another number of shards.

    Args:
        layout: The directory of a run whose units are all there.
        n_units: Its units.
        count: Shards of the process that finishes it.
    """
    wanted = {layout.shard(index, count) for index in range(min(count, n_units))}
    if not all(path.exists() for path in wanted):
        write_shard(layout, range(n_units), 0, 1)
        wanted = {layout.shard(0, 1)}
    for path in set(layout.rows.glob("*.parquet")) - wanted:
        path.unlink(missing_ok=True)


def missing_units(layout: Layout, count: int) -> list[int]:
    """Units that are not finished."""
    return [n for n in range(count) if not layout.unit(n).exists()]


def write_final(layout: Layout, identity: Mapping[str, Any], keys: Sequence[str], n_units: int) -> None:
    """Write summary, table and cost of a run whose units are all there.

    Args:
        layout: The run's directory.
        identity: Content of `run.json`.
        keys: Names of the edits, in the data's order.
        n_units: Units of the run.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums must not depend on who happens to finish the run
    try:
        rows = ordered(joined(pieces(layout, range(n_units))).to_pandas(), keys)
        own = read_json(layout.requests)
        ability = read_json(layout.ability)["changes"] if layout.ability.exists() else None
        summary = summarise_run(rows, keys, rejected=own["rejected"], notes=own["notes"], ability=ability)
        write_atomic(layout.summary, as_json(summary))
        write_atomic(layout.table, run_table(identity, summary).encode())
    finally:
        torch.set_num_threads(threads)
    write_total(layout)
    for folder in (layout.units, layout.steps, layout.checkpoints, layout.costs, layout.root):
        for left in folder.glob(".*.tmp"):
            left.unlink(missing_ok=True)


def ordered(rows: pandas.DataFrame, keys: Sequence[str]) -> pandas.DataFrame:
    """Rows in the data's order, whatever unit or shard they came from."""
    place = {key: n for n, key in enumerate(keys)}
    at = rows["edit"].map(place).fillna(-1)
    return rows.assign(_at=at).sort_values(["live", "_at", "probe"], kind="stable").drop(columns="_at")
