"""Measuring ability on the model as it stands, edits included.

lm-evaluation-harness can store answers under keys that do not name the weights, so a cache shared by base and edited
model would give both the same score. Here no cache of any kind is used, and no global seed is set.
"""

from __future__ import annotations

import difflib
import logging
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from roseedit.editsets.places import data_file, data_folder
from roseedit.errors import DataError, near_names, refusal
from roseedit.evaluation.ability.documents import TASK_FILES
from roseedit.evaluation.ability.rows import AbilityRow, make_row
from roseedit.evaluation.perplexity import perplexity, wikitext
from roseedit.models.load import LoadedModel

WIKITEXT2 = "wikitext2"
TEXT_TOKENS = 65_536
_OURS = "roseedit_"  # our task names must not collide with the harness's own
_THEIRS = "lm_eval/"
_METRICS = ("acc", "acc_norm")
_TASKS = Path(__file__).with_name("tasks")
Progress = Callable[[str, int, int], None]


def known_tasks() -> tuple[str, ...]:
    """List the tasks that local files serve.

    Returns:
        Names for `measure_ability`; beside them `"lm_eval/NAME"` takes any task of the harness, from the Hub.
    """
    return (*TASK_FILES, WIKITEXT2)


def check_tasks(tasks: Sequence[str], folder: Path | None = None) -> None:
    """Refuse tasks that cannot be run, before any model work.

    Args:
        tasks: Task names.
        folder: The data folder; left out, the one that ROSEEDIT_DATA names.

    Raises:
        DataError: No task, an unknown one, one whose file is missing, or lm-evaluation-harness not installed.
    """
    if not tasks:
        raise DataError(refusal("no ability task", f"some of {', '.join(known_tasks())}", "Name one."))
    for task in tasks:
        if task in TASK_FILES:
            data_file(TASK_FILES[task], folder)
        elif task == WIKITEXT2:
            wikitext(folder=folder)
        elif not task.startswith(_THEIRS):
            allowed = f"a local task, or {_THEIRS}NAME for one of lm-evaluation-harness"
            raise DataError(refusal(f"the ability task {task!r}", allowed, near_names(task, known_tasks())))
    if any(task != WIKITEXT2 for task in tasks):
        _require_harness()


def _require_harness() -> None:
    from importlib.util import find_spec

    if find_spec("lm_eval") is None:
        remedy = "Install it with: pip install 'roseedit[lm-eval]'"
        raise DataError(refusal("no lm-evaluation-harness", "the package lm_eval", remedy))


def measure_ability(
    loaded: LoadedModel,
    tasks: Sequence[str],
    limit: int | None = None,
    *,
    folder: Path | None = None,
    text_tokens: int | None = TEXT_TOKENS,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> list[AbilityRow]:
    """Measure tasks on a model, whatever edits are live on it.

    Args:
        loaded: The model.
        tasks: Some of `known_tasks()`, or `"lm_eval/NAME"`.
        limit: Items per multiple-choice task, from the front; None takes all.
        folder: The data folder; left out, the one that ROSEEDIT_DATA names.
        text_tokens: Tokens of WikiText-2 for the perplexity, from the front; None takes all.
        batch_size: Sequences in one forward pass of the harness.
        progress: Called with task, done and total, in likelihoods or tokens.

    Returns:
        Two rows per multiple-choice task that has both accuracies, one per task otherwise; in the order of `tasks`.

    Raises:
        DataError: As `check_tasks`, or a limit below 1.
    """
    if limit is not None and limit < 1:
        raise DataError(refusal(f"limit {limit}", "1 or more, or None for all items", "Raise it."))
    check_tasks(tasks, folder)
    out = []
    for task in tasks:
        if task == WIKITEXT2:
            out.append(_text_row(loaded, wikitext(folder=folder), text_tokens, progress))
        else:
            out += _choice_rows(loaded, task, limit=limit, folder=folder, batch_size=batch_size, progress=progress)
    return out


def _text_row(loaded: LoadedModel, text: str, tokens: int | None, progress: Progress | None) -> AbilityRow:
    done = 0

    def tell(n: int) -> None:
        nonlocal done
        done += n
        if progress:
            progress(WIKITEXT2, done, max(done, tokens or 0))

    found = perplexity(loaded, text, max_tokens=tokens, progress=tell)
    items = [nll / n for nll, n in found.by_window]
    weights = [float(n) for _, n in found.by_window]
    return make_row((WIKITEXT2, "perplexity"), items, weights, n=found.n_tokens, chance=math.nan)


def _choice_rows(loaded: LoadedModel, task: str, **options: Any) -> list[AbilityRow]:
    name = task.removeprefix(_THEIRS) if task.startswith(_THEIRS) else _OURS + task
    with _undisturbed():
        found = _evaluate(loaded, name, **options)
    rows: list[AbilityRow] = []
    for found_name, samples in found["samples"].items():
        ordered = sorted(samples, key=lambda sample: sample["doc_id"])
        shown = task if len(found["samples"]) == 1 else f"{task}/{found_name}"
        chance = _chance(ordered)
        for metric in _METRICS:
            values = [float(sample[metric]) for sample in ordered if metric in sample]
            if values:
                ones = [1.0] * len(values)
                rows.append(make_row((shown, metric), values, ones, n=len(values), chance=chance))
    if not rows:
        message = refusal(
            f"{task}, which gives none of {', '.join(_METRICS)}", "a task with accuracies", "Leave it out."
        )
        raise DataError(message)
    return rows


def _chance(samples: Sequence[dict[str, Any]]) -> float:
    """Guessing: one over the number of choices, which is the number of likelihoods that were asked for."""
    counts = [len(sample["arguments"]) for sample in samples]
    return sum(1 / count for count in counts) / len(counts) if counts and min(counts) > 1 else math.nan


def _evaluate(
    loaded: LoadedModel,
    name: str,
    *,
    limit: int | None,
    folder: Path | None,
    batch_size: int,
    progress: Progress | None,
) -> Any:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    ours = name.startswith(_OURS)
    place = folder or data_folder()
    manager = TaskManager(
        include_path=str(_TASKS), include_defaults=not ours, metadata={"folder": str(place)} if ours else None
    )
    if name not in manager.all_tasks:
        near = near_names(name, manager.all_tasks) if difflib.get_close_matches(name, manager.all_tasks) else ""
        raise DataError(refusal(f"the task {name!r}", "one that lm-evaluation-harness has", near or "See lm-eval ls."))
    return simple_evaluate(
        model=_harness_model(loaded, batch_size, name.removeprefix(_OURS), progress),
        tasks=[name],
        task_manager=manager,
        limit=limit,
        use_cache=None,
        cache_requests=False,
        bootstrap_iters=0,
        log_samples=True,
        random_seed=None,
        numpy_random_seed=None,
        torch_random_seed=None,
    )


def _harness_model(loaded: LoadedModel, batch_size: int, name: str, progress: Progress | None) -> Any:
    from lm_eval.models.huggingface import HFLM

    class LiveModel(HFLM):
        """The live model; says how far it is through our progress instead of a bar of its own."""

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            out, step = [], max(1, 16 * batch_size)
            for start in range(0, len(requests), step):
                out += super().loglikelihood(requests[start : start + step], disable_tqdm=True)
                if progress:
                    progress(name, min(start + step, len(requests)), len(requests))
            return out

    return LiveModel(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=batch_size)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """The harness warns of what is meant to be so here, draws a bar, asks git, and draws from the global generators."""
    logger = logging.getLogger("lm_eval")
    level, state = logger.level, random.getstate()
    numpy_state = np.random.get_state()
    logger.setLevel(logging.ERROR)
    try:
        with (
            mock.patch("lm_eval.api.task.tqdm", lambda items, **_: items),
            mock.patch("lm_eval.evaluator.get_git_commit_hash", lambda: None),
            torch.random.fork_rng(devices=[]),
        ):
            yield
    finally:
        logger.setLevel(level)
        random.setstate(state)
        np.random.set_state(numpy_state)
