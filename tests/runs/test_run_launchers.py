"""However the work is shared out, the rows are the same to the last bit."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from toys import SlowWorker, Toy, data_of, environment, requests_of

from roseedit.errors import RunError
from roseedit.methods import read_hparams
from roseedit.runs import RunOptions, evaluate, rayed
from roseedit.runs.files import Layout
from roseedit.runs.units import items_of, own_units, plan_units

Final = Callable[[Path], dict[str, bytes]]


@pytest.mark.parametrize("count", [2, 3])
def test_shards_in_any_order(toy: Toy, whole: Path, final: Final, tmp_path: Path, count: int) -> None:
    done = [toy.run(tmp_path / "run", shard=(index, count)) for index in reversed(range(count))]
    assert done == [False] * (count - 1) + [True]
    assert final(tmp_path / "run") == final(whole)
    assert len(list((tmp_path / "run" / "rows").iterdir())) == count


def test_shards_finished_by_a_run_without_shards(toy: Toy, whole: Path, final: Final, tmp_path: Path) -> None:
    assert not toy.run(tmp_path / "run", shard=(1, 3))
    assert toy.run(tmp_path / "run")
    assert final(tmp_path / "run") == final(whole)


@pytest.mark.timeout(180)
def test_two_local_processes(toy: Toy, whole: Path, final: Final, tmp_path: Path) -> None:
    subprocess.run(
        toy.command(tmp_path / "run", 8, "local", "independent", "2"), env=environment(), check=True, timeout=150
    )
    assert final(tmp_path / "run") == final(whole)


@pytest.mark.timeout(180)
def test_a_local_helper_that_fails_is_an_error_and_nothing_is_lost(
    toy: Toy, whole: Path, final: Final, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **kw: real([*command[:3], "/nowhere", *command[4:]], **kw))
    with pytest.raises(RunError, match="ended with code 2"):
        toy.run(tmp_path / "run", workers=2)
    monkeypatch.undo()
    assert Layout(tmp_path / "run").unit(0).exists()
    assert toy.run(tmp_path / "run")
    assert final(tmp_path / "run") == final(whole)


@pytest.mark.timeout(240)
def test_torchrun_with_two_processes(toy: Toy, whole: Path, final: Final, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", _free_port()]
    toy_command = toy.command(tmp_path / "run", 8, "torchrun")[1:]
    subprocess.run([*command, *toy_command], env=environment(), check=True, timeout=120)
    assert final(tmp_path / "run") == final(whole)
    assert sorted(p.name for p in (tmp_path / "run" / "rows").iterdir()) == [
        "shard-0-of-2.parquet",
        "shard-1-of-2.parquet",
    ]


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_torchrun_without_torchrun(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="a process started by torchrun"):
        toy.run(tmp_path / "run", launcher="torchrun")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Two nodes with room for one worker each, beside a head without room."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    monkeypatch.setenv("ROSEEDIT_TEST_BUSY", str(tmp_path / "busy"))
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    made.nodes_to_lose = [made.add_node(num_cpus=1), made.add_node(num_cpus=1)]
    try:
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


@pytest.mark.timeout(300)
def test_ray_with_two_nodes_of_which_one_is_killed(
    toy: Toy,
    final: Final,
    tmp_path: Path,
    cluster: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    n = 48
    assert toy.run(tmp_path / "whole", n)
    out, busy = tmp_path / "run", tmp_path / "busy"
    busy.mkdir()
    monkeypatch.setattr(rayed, "RemoteWorker", SlowWorker)

    def kill() -> None:
        while len(list(busy.iterdir())) < 2:  # both workers are in the middle of a unit
            time.sleep(0.02)
        cluster.remove_node(cluster.nodes_to_lose[1], allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    assert toy.run(out, n, launcher="ray", workers=2, address=cluster.address)
    killer.join(timeout=30)
    assert not killer.is_alive()
    assert "a worker was lost" in caplog.text
    assert final(out) == final(tmp_path / "whole")


@pytest.mark.timeout(240)
def test_ray_on_this_machine_alone(toy: Toy, whole: Path, final: Final, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    environment_now = environment()
    subprocess.run(
        toy.command(tmp_path / "run", 8, "ray", "independent", "2"), env=environment_now, check=True, timeout=200
    )
    assert final(tmp_path / "run") == final(whole)


TOGETHER = {
    "sequential shards": ({"mode": "sequential", "shard": (0, 2)}, "mode sequential in several processes"),
    "joint on ray": ({"mode": "joint", "launcher": "ray"}, "mode joint in several processes"),
    "shards of workers": ({"workers": 2, "shard": (0, 2)}, "--shard with a launcher"),
    "ability of nothing live": ({"ability": ("wikitext2",)}, "--ability with independent edits"),
    "shard beyond the last": ({"shard": (2, 2)}, "shard 2 of 2"),
    "no worker": ({"workers": 0}, "workers 0"),
    "unknown mode": ({"mode": "parallel"}, "mode 'parallel'"),
}


@pytest.mark.parametrize("name", sorted(TOGETHER))
def test_what_cannot_go_together_is_refused_before_any_work(tmp_path: Path, name: str) -> None:
    options, said = TOGETHER[name]
    with pytest.raises(RunError, match="allowed: ") as caught:
        evaluate(read_hparams({"model": "no/such.gguf"}), data_of(2), tmp_path / "run", RunOptions(**options))
    assert said in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_units_depend_on_the_edits_alone() -> None:
    items = items_of(requests_of(50))
    units = plan_units(items, 8)
    assert sorted(i for unit in units for i in unit) == list(range(50))
    assert [len(unit) for unit in units] == [8] * 6 + [2]
    turned = list(reversed(items))
    keys = [[turned[i].key for i in unit] for unit in plan_units(turned, 8)]
    assert keys == [[items[i].key for i in unit] for unit in units]
    shares = [own_units(len(units), index, 3) for index in range(3)]
    assert sorted(n for share in shares for n in share) == list(range(len(units)))


def test_a_request_that_stands_twice_gets_two_names() -> None:
    one = requests_of(1)[0]
    keys = [item.key for item in items_of([one, one, one])]
    assert keys == [one.request_id, f"{one.request_id}-2", f"{one.request_id}-3"]


def test_helpers_leave_when_their_starter_is_gone(toy: Toy, whole: Path, tmp_path: Path) -> None:
    """A helper whose standard input closes ends by itself."""
    code = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-m', 'roseedit.runs.worker', *sys.argv[1:]],"
        "stdin=subprocess.PIPE); print(p.pid, flush=True); import os; os._exit(0)"
    )
    command = [sys.executable, "-c", code, str(whole), "--cache", str(toy.cache)]
    done = subprocess.run(command, env=environment(), check=True, capture_output=True, text=True, timeout=60)
    pid = int(done.stdout)
    for _ in range(300):
        if not _alive(pid):
            return
        time.sleep(0.1)
    raise AssertionError("the helper is still there")


def _alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
