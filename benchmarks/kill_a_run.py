"""SIGKILL a real run at random moments, again and again, and compare what is left at the end, byte for byte.

    python benchmarks/kill_a_run.py --kills 20 --edits 60 --steps 8 --out runs/kills

First an uninterrupted run, then one that is killed `--kills` times: each start gets a random time, drawn evenly from
what the remaining work needs, so that kills fall into loading, training, measuring and writing. Both use a cache of
base scores of their own.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml
from common import write

FILES = ("table.md", "summary.json", "run.json", "requests.json", "rows/shard-0-of-1.parquet")


def main() -> None:
    """Run it; exit code 1 when a byte differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hparams", type=Path, default=Path("hparams/RoseLoRA/smollm2-135m.yaml"))
    parser.add_argument("--data", default="counterfact")
    parser.add_argument("--edits", type=int, default=60)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--mode", default="independent")
    parser.add_argument("--unit", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8, help="of training; a test of resuming needs no good edits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    settings = yaml.safe_load(args.hparams.read_text(encoding="utf-8"))
    settings |= {"steps": args.steps, "prune_start": 1, "prune_end": args.steps - 1}
    (args.out / "settings.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    started = time.time()
    subprocess.run(command(args, "whole"), check=True, stdout=subprocess.DEVNULL)
    seconds = time.time() - started
    print(f"uninterrupted: {seconds:.0f} s")
    kills = killed(args, seconds)
    subprocess.run(command(args, "killed"), check=True, stdout=subprocess.DEVNULL)
    same = {name: equal(args.out, name) for name in FILES}
    print(f"{len(kills)} kills, with so many units finished: {kills}\nequal: {same}")
    write(args.out / "kills.json", {"kills": kills, "equal": same, "uninterrupted_s": seconds, "args": vars(args)})
    sys.exit(0 if all(same.values()) and len(kills) == args.kills else 1)


def command(args: argparse.Namespace, name: str) -> list[str]:
    """One start of a run."""
    words = [sys.executable, "-m", "roseedit.cli", "evaluate", "--hparams", str(args.out / "settings.yaml")]
    words += ["--data", args.data, "--limit", str(args.edits), "--mode", args.mode, "--unit", str(args.unit)]
    return [*words, "--threads", "1", "--out", str(args.out / name), "--base-cache", str(args.out / f"{name}-base")]


def killed(args: argparse.Namespace, seconds: float) -> list[int]:
    """Start and kill; returns how many pieces of work were finished at each kill."""
    dice = random.Random(args.seed)
    out = []
    while len(out) < args.kills:
        share = 1.6 * seconds / (args.kills + 1)
        process = subprocess.Popen(command(args, "killed"), stdout=subprocess.DEVNULL)
        opened = time.time()
        # loading the model costs every start the same and proves little: most of the drawn time begins behind it
        while dice.random() < 0.98 and process.poll() is None and not loaded(args.out / "killed", opened):
            time.sleep(0.1)
        time.sleep(dice.uniform(0, share))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        out.append(len(list((args.out / "killed").glob("[us]*/*.parquet"))))
    return out


def loaded(folder: Path, opened: float) -> bool:
    """Something was written since the start, or enough time has passed for loading."""
    files = [p for p in folder.rglob("*") if p.is_file()] if folder.exists() else []
    return any(p.stat().st_mtime > opened for p in files) or time.time() - opened > 30


def equal(out: Path, name: str) -> bool:
    """The file is the same in both runs."""
    return (out / "whole" / name).read_bytes() == (out / "killed" / name).read_bytes()


if __name__ == "__main__":
    main()
