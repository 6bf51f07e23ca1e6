"""Speed of the ledger on a real model: apply and revert per edit, and opening a ledger of many edits.

    python benchmarks/ledger_speed.py --edits 1000 --out runs/ledger.json

The edits are synthetic: random deltas of the shape that the shipped settings give (rank, share kept, matrices), so that
nothing has to be trained. Times include the files, their flushes and the transaction; `apply` of an edit that is new to
the ledger writes its files, `redo` of a known one reads and checks them. One warm-up edit is left out.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from common import machine, write

from roseedit import Editor, EditRequest, load_model
from roseedit.edits.delta import Delta
from roseedit.edits.edit import Edit
from roseedit.edits.fingerprint import base_fingerprint
from roseedit.edits.ledger import Ledger
from roseedit.edits.ledger.plans import plan_new
from roseedit.edits.live import live_edits
from roseedit.hparams import as_mapping, read_yaml
from roseedit.models.load import LoadedModel
from roseedit.roselora.config import RoseLoRAHparams, read_roselora
from roseedit.roselora.engine import adapted

Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]
NEURONS = 5  # tokens of a usual answer, end mark included


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hparams", default="hparams/RoseLoRA/smollm2-135m.yaml")
    parser.add_argument("--edits", type=int, default=1000, help="in the ledger that is opened")
    parser.add_argument("--timed", type=int, default=50, help="edits that are applied and reverted one by one")
    parser.add_argument("--folder", type=Path, help="where the ledgers lie; left out: a temporary folder")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    hparams = read_roselora(read_yaml(args.hparams), args.hparams)
    loaded = load_model(hparams.model)
    maker = Maker(loaded, hparams)
    with tempfile.TemporaryDirectory(dir=args.folder) as root:
        single = one_by_one(loaded, hparams, maker, Path(root) / "one", args.timed)
        many = opening(loaded, hparams, maker, Path(root) / "many", args.edits)
    print(f"\n{machine()}\n\n| what | median | 95 % below | n |\n| --- | ---: | ---: | ---: |")
    for name, values in single.items():
        print(f"| {name}, ms | {median(values):.1f} | {quantiles(values, n=20)[-1]:.1f} | {len(values)} |")
    for name, value in many.items():
        print(f"| {name} | {value:.4g} | | {args.edits} |")
    write(args.out, {"ms": single, "opening": many, "args": vars(args), "model": hparams.model})


class Maker:
    """Synthetic edits of the shape that settings give."""

    def __init__(self, loaded: LoadedModel, hparams: RoseLoRAHparams) -> None:
        layers = {p.layer for p in adapted(loaded, hparams)}
        if hparams.support == "neurons":  # an edit's neurons are those of one layer
            layers = {max(layers)}
        self.projections = {p.module_name: p for p in adapted(loaded, hparams) if p.layer in layers}
        self.fingerprint = base_fingerprint(loaded, [p.weight_name for p in self.projections.values()])
        self.name, self.hparams = loaded.name, hparams

    def __call__(self, i: int) -> Edit:
        """Edit number i."""
        generator = torch.Generator().manual_seed(i)
        shape = self._neurons if self.hparams.support == "neurons" else self._entries
        factors = shape(generator)
        request = EditRequest(f"The colour of stone number {i} is", f"shade {i}", subject=f"stone number {i}")
        delta = Delta.from_factors(self.projections, factors)
        report = {"density": delta.density, "steps": 0}
        return Edit(delta, (request,), as_mapping(self.hparams), self.fingerprint, self.name, report)

    def _entries(self, generator: torch.Generator) -> Factors:
        """Rows of A and columns of B with the share of entries that is kept."""
        return {
            path: (
                self._sparse(p.d_in, generator, 1e-3),
                self._sparse(p.d_out, generator, 1e-3).T.contiguous(),
            )
            for path, p in self.projections.items()
        }

    def _neurons(self, generator: torch.Generator) -> Factors:
        """Whole neurons: one side of every outer product is a single entry."""
        width = next(p.d_in for p in self.projections.values() if p.role == "mlp.down")
        which = torch.randperm(width, generator=generator)[:NEURONS]
        single = torch.nn.functional.one_hot(which, width).float()
        out: Factors = {}
        for path, p in self.projections.items():
            if p.role == "mlp.down":
                out[path] = single, 1e-3 * torch.randn(p.d_out, NEURONS, generator=generator)
            else:
                out[path] = 1e-3 * torch.randn(NEURONS, p.d_in, generator=generator), single.T.contiguous()
        return out

    def _sparse(self, n: int, generator: torch.Generator, size: float) -> torch.Tensor:
        out, kept = torch.zeros(self.hparams.rank, n), max(1, round(self.hparams.keep * n))
        for row in out:
            row[torch.randperm(n, generator=generator)[:kept]] = size * torch.randn(kept, generator=generator)
        return out


def clocked(call: Callable[[], Any]) -> float:
    """Milliseconds of a call."""
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)


def one_by_one(
    loaded: LoadedModel, hparams: RoseLoRAHparams, maker: Maker, folder: Path, n: int
) -> dict[str, list[float]]:
    """Apply new edits, revert them in order of age, put them back; all others stay live meanwhile."""
    edits = [maker(i) for i in range(n + 1)]
    with Editor(loaded, hparams, show_progress=False, ledger=folder) as editor:
        out = {"apply (new)": [clocked(lambda e=edit: editor.apply(e)) for edit in edits]}
        out["revert"] = [clocked(lambda e=edit: editor.revert(e.edit_id)) for edit in edits]
        out["apply (again)"] = [clocked(lambda e=edit: editor.apply(e)) for edit in edits]
        take_off(loaded)
    live = live_edits(loaded.model)
    out["on the model alone: apply"] = [clocked(lambda e=edit: live.apply(e.delta)) for edit in edits]
    out["on the model alone: revert"] = [clocked(lambda e=edit: live.revert(e.delta)) for edit in edits]
    return {name: values[1:] for name, values in out.items()}


def opening(loaded: LoadedModel, hparams: RoseLoRAHparams, maker: Maker, folder: Path, n: int) -> dict[str, float]:
    """Fill a ledger, close it, and open it on the unedited model."""
    with Ledger(folder, write=True) as ledger:
        started = time.perf_counter()
        for i in range(n):
            ledger.commit(plan_new(ledger.states, [maker(i)]))
        filling = time.perf_counter() - started
        sizes = [sum(f.stat().st_size for f in ledger.blobs.path(str(s.record.blob)).iterdir()) for s in ledger.live]
        deltas = [(ledger.blobs.path(str(s.record.blob)) / "delta.safetensors").stat().st_size for s in ledger.live]
    reading = clocked(lambda: Ledger(folder).close()) / 1000
    started = time.perf_counter()
    editor = Editor(loaded, hparams, show_progress=False, ledger=folder)
    opened = time.perf_counter() - started
    last = editor.edits[-1].edit_id
    one = {"revert one of all, ms": clocked(lambda: editor.revert(last)), "redo it, ms": clocked(editor.redo)}
    verifying = clocked(editor.ledger.verify) / 1000 if editor.ledger else 0.0
    editor.close()
    take_off(loaded)
    return {
        "opened and applied, s": opened,
        "chain read and checked, s": reading,
        "verify with all files, s": verifying,
        "entered (synthetic edits made on the way), s": filling,
        **one,
        "median delta file, KiB": median(deltas) / 1024,
        "median edit with its record, KiB": median(sizes) / 1024,
    }


def take_off(loaded: LoadedModel) -> None:
    """Give the model back."""
    live = live_edits(loaded.model)
    for delta in live.deltas:
        live.revert(delta)


if __name__ == "__main__":
    main()
