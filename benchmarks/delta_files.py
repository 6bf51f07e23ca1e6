"""Size and speed of edit files, and the long form of the damage test.

    python benchmarks/delta_files.py --limit 100 --flips 20000 --out runs/delta_files.json

Makes independent edits, saves them, and reports bytes on disk, milliseconds to save, to load and to check the base, and
how many random flips of a byte were refused by a named error.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from common import machine, write

from roseedit import Editor, load_editset
from roseedit.edits.files import BLOB, RECORD, check_base, load_edit, save_edit
from roseedit.errors import DeltaError


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hparams", default="hparams/RoseLoRA/smollm2-135m.yaml")
    parser.add_argument("--data", default="wikidata-counterfact")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--flips", type=int, default=20000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    editor = Editor.from_hparams(args.hparams)
    requests = list(load_editset(args.data, limit=args.limit).requests)
    edits = editor.edit(requests, mode="independent", evaluate=False).edits
    times: dict[str, list[float]] = {"save": [], "load": [], "check base": []}
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / edit.edit_id for edit in edits]
        for edit, folder in zip(edits, folders, strict=True):
            timed(times["save"], lambda edit=edit, folder=folder: save_edit(edit, folder))
            read = timed(times["load"], lambda folder=folder: load_edit(folder))
            timed(times["check base"], lambda read=read: check_base(read, editor.loaded))
        sizes = [sum(p.stat().st_size for p in folder.iterdir()) for folder in folders]
        refusals = flips(folders[0], args.flips)
    figures = {f"ms to {what}": median(values) * 1e3 for what, values in times.items()}
    figures |= {"median KiB": median(sizes) / 1024, "largest KiB": max(sizes) / 1024, "n": len(sizes)}
    print(f"\n{machine()}\n\n| figure | |\n| --- | ---: |")
    for what, value in figures.items():
        print(f"| {what} | {value:.1f} |")
    print(f"\n{sum(refusals.values())} of {args.flips} flips refused by name: {dict(refusals)}")
    write(args.out, {"figures": figures, "refusals": refusals, "args": vars(args)})


def timed(into: list[float], make: Callable[[], Any]) -> Any:
    """Run something and keep how long it took."""
    started = time.perf_counter()
    result = make()
    into.append(time.perf_counter() - started)
    return result


def flips(folder: Path, n: int) -> Counter[str]:
    """Change one random byte, n times; counts the errors by name. Ends with what loaded, should anything load."""
    rng, found = random.Random(0), Counter[str]()
    whole = {name: (folder / name).read_bytes() for name in (BLOB, RECORD)}
    for i in range(n):
        name = (BLOB, RECORD)[i % 2]
        broken = bytearray(whole[name])
        at = rng.randrange(len(broken))
        broken[at] ^= rng.randrange(1, 256)
        (folder / name).write_bytes(broken)
        try:
            load_edit(folder)
        except DeltaError as error:
            found[type(error).__name__] += 1
        else:
            raise SystemExit(f"byte {at} of {name} was changed and the edit loaded")
        (folder / name).write_bytes(whole[name])
    return found


if __name__ == "__main__":
    main()
