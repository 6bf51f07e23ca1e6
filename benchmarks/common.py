"""What the benchmarks share: the machine, the figures with their intervals, and where results go."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

import roseedit
from roseedit.evaluation.metrics import bootstrap_interval


def machine() -> dict[str, Any]:
    """Processor, threads and versions."""
    cpu = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine())
    versions = {"roseedit": roseedit.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    return {"cpu": cpu, "threads": torch.get_num_threads(), "python": platform.python_version(), **versions}


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def figure(values: Sequence[float]) -> dict[str, float]:
    """Mean over edits with its 95 % bootstrap interval and n."""
    low, high = bootstrap_interval(values)
    mean = sum(values) / len(values) if values else float("nan")
    return {"mean": round(mean, 4), "low": round(low, 4), "high": round(high, 4), "n": len(values)}


def show(title: str, figures: dict[str, dict[str, float]]) -> None:
    """Print a Markdown table of figures."""
    print(f"\n### {title}\n\n| figure | mean | 95 % interval | n |\n| --- | ---: | :---: | ---: |")
    for name, f in figures.items():
        print(f"| {name} | {f['mean']:.3f} | {f['low']:.3f} - {f['high']:.3f} | {f['n']:.0f} |")


def write(path: Path | None, result: dict[str, Any]) -> None:
    """Write the result where the caller asked, if it did."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **result}, indent=1, ensure_ascii=False, default=str))
    print(f"\nwritten: {path}")
