"""A run on a Ray cluster: workers hold one model each and are handed one unit at a time.

Only the driver touches the run's directory: a worker gets the edits over the wire and sends the finished rows back, so
the machines need no shared disk. A worker that is lost costs its unfinished unit, which goes to another.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from roseedit.errors import RoseEditError, RunError, refusal
from roseedit.hparams import Hparams
from roseedit.progress import bar
from roseedit.runs.chain import keep
from roseedit.runs.files import Layout
from roseedit.runs.finish import missing_units
from roseedit.runs.local import finish
from roseedit.runs.options import Data, RunOptions
from roseedit.runs.start import Facts, Run, start
from roseedit.runs.units import items_of
from roseedit.runs.work import Done, Progress

POLL = 1.0
LIVES = 3  # workers that may be lost per worker asked for, before the run gives up
logger = logging.getLogger(__name__)


class RemoteWorker:
    """What lives in a worker process: one model and, once the run is known, a `UnitWorker`.

    Args:
        hparams: Settings, prepared.
        threads: Processor threads.
        cache: Folder of base scores on the worker's own disk; None: the package's cache there.
    """

    def __init__(self, hparams: Hparams, threads: int, cache: Path | None) -> None:
        import torch

        from roseedit.editor import Editor

        torch.set_num_threads(threads)
        self.editor = Editor.from_hparams(hparams, show_progress=False)
        self.cache = RunOptions(cache=cache).cache_folder
        self.worker: Any = None

    def facts(self, data: Data) -> Facts:
        """What this worker's model is; see `start.facts_of`."""
        from roseedit.runs.start import facts_of

        return facts_of(self.editor, data.requests)

    def ready(self, payload: tuple[dict[str, Any], tuple[Any, ...]]) -> Facts:
        """Take the run in; returns what this worker's model is, to be compared with the run's."""
        from roseedit.runs.identity import base_of, versions
        from roseedit.runs.work import UnitWorker

        identity, requests = payload
        loaded = self.editor.loaded
        self.worker = UnitWorker(loaded, self.editor.hparams, items_of(requests), identity, self.cache)
        return Facts(base_of(loaded), versions(), {})

    def do(self, unit: tuple[int, ...]) -> Done:
        """Make and measure one unit."""
        return self.worker.do(unit)


def evaluate(hparams: Hparams, data: Data, layout: Layout, options: RunOptions) -> bool:
    """As `run.evaluate`, with the work done by Ray actors.

    Args:
        hparams: Settings, prepared.
        data: The edits.
        layout: The run's directory, on the driver's disk.
        options: With `unit` and `threads` set.

    Returns:
        True: the run is complete.

    Raises:
        RunError: Ray is missing, too many workers were lost, or a worker's model or packages differ.
    """
    with _cluster(options) as ray:
        pool = _Pool(ray, hparams, options)
        first = pool.add()
        facts = _facts(ray, first, data)
        run = start(hparams, data, layout, options, facts)
        todo = deque(missing_units(layout, len(run.units)))
        with bar(len(run.items), "evaluating", options.show_progress, _edits_done(run)) as progress:
            pool.run(run, todo, progress)
    return finish(run, 0, 1)


def _facts(ray: Any, worker: Any, data: Data) -> Facts:
    try:
        found: Facts = _result(ray, worker.facts.remote(data))
    except _LostError as lost:
        message = refusal(f"a first worker that was lost ({lost})", "one that stays", "Check the nodes; run it again.")
        raise RunError(message) from lost
    return found


def _edits_done(run: Run) -> int:
    return sum(len(unit) for n, unit in enumerate(run.units) if run.layout.unit(n).exists())


def _gone(ray: Any) -> tuple[type[Exception], ...]:
    errors = ray.exceptions
    return errors.RayActorError, errors.ObjectLostError, errors.NodeDiedError, errors.WorkerCrashedError


@contextmanager
def _cluster(options: RunOptions) -> Iterator[Any]:
    """Connect to the cluster that was named, to the one in use, or start one for the length of the run."""
    try:
        import ray
    except ImportError as error:
        message = refusal("--launcher ray without the package ray", "ray installed", "pip install 'roseedit[ray]'")
        raise RunError(message) from error
    own = not ray.is_initialized()
    if own:
        local: dict[str, Any] = {} if options.address else {"num_cpus": options.workers, "include_dashboard": False}
        ray.init(address=options.address, log_to_driver=False, logging_level=logging.WARNING, **local)
    try:
        yield ray
    finally:
        if own:
            ray.shutdown()


@dataclass
class _Pool:
    """The workers of a run, and what each is busy with.

    Attributes:
        ray: The package.
        hparams: Settings, prepared.
        options: How to run.
        actors: The workers.
        pending: Per reference of a running call, the worker and the unit (None: it is getting ready).
        losses: Workers lost so far.
        payload: Reference of what every worker needs to know of the run.
    """

    ray: Any
    hparams: Hparams
    options: RunOptions
    actors: list[Any] = field(default_factory=list)
    pending: dict[Any, tuple[Any, int | None]] = field(default_factory=dict)
    losses: int = 0
    payload: Any = None

    def add(self) -> Any:
        """Start a worker; it waits in Ray's queue until a node has room."""
        gpus = 1 if self.hparams.device in ("auto", "cuda") and self.ray.cluster_resources().get("GPU") else 0
        kind = self.ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0)(RemoteWorker)
        actor = kind.remote(self.hparams, self.options.threads, self.options.cache)
        self.actors.append(actor)
        return actor

    def run(self, run: Run, todo: deque[int], progress: Progress) -> None:
        """Hand units out until none is left.

        Args:
            run: The open run.
            todo: Units to do; a lost worker's unit comes back to its front.
            progress: Called with the number of edits just done.
        """
        self.payload = self.ray.put((dict(run.identity), tuple(item.request for item in run.items)))
        while len(self.actors) < min(self.options.workers, len(todo)):
            self.add()
        for actor in self.actors:
            self._prepare(actor)
        idle: list[Any] = []
        left = set(todo)
        while left:
            done, _ = self.ray.wait(list(self.pending), num_returns=1, timeout=POLL)
            for reference in done:
                actor, unit = self.pending.pop(reference)
                try:
                    self._take(run, _result(self.ray, reference), unit)
                except _LostError as lost:
                    todo.extendleft([] if unit is None else [unit])
                    self._replace(actor, str(lost))
                    continue
                idle.append(actor)
                if unit is not None:
                    left.discard(unit)
                    progress(len(run.units[unit]))
            while todo and idle:
                actor, number = idle.pop(), todo.popleft()
                self.pending[actor.do.remote(run.units[number])] = (actor, number)

    def _prepare(self, actor: Any) -> None:
        self.pending[actor.ready.remote(self.payload)] = (actor, None)

    def _take(self, run: Run, result: Any, unit: int | None) -> None:
        if unit is not None:
            keep(run.layout, run.layout.unit(unit), result)
            return
        for name, theirs in (("base", result.base), ("versions", result.versions)):
            if dict(theirs) != dict(run.identity[name]):
                allowed = f"{dict(run.identity[name])}"
                raise RunError(refusal(f"a worker whose {name} is {dict(theirs)}", allowed, "Make the nodes equal."))

    def _replace(self, actor: Any, why: str) -> None:
        """A lost worker gets a successor, which waits until a node has room; the others go on meanwhile."""
        self.losses += 1
        self.actors.remove(actor)
        logger.warning("a worker was lost (%s); its unit goes to another", why)
        if self.losses > LIVES * self.options.workers:
            message = refusal(f"{self.losses} lost workers", "workers that stay", "Check the nodes; then run it again.")
            raise RunError(message)
        self._prepare(self.add())


class _LostError(Exception):
    """A worker process or its node is gone."""


def _result(ray: Any, reference: Any) -> Any:
    """What a worker returned; its refusals in its own words, and its loss as `_LostError`."""
    try:
        return ray.get(reference)
    except _gone(ray) as error:
        raise _LostError(" ".join(str(error).split())[:200]) from error
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, RoseEditError):
            raise error.cause from error
        raise
