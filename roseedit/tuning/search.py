"""The search: Optuna's TPE over a method's space, begun at known settings, kept in a journal, resumed where it stopped.

The sampler is seeded anew for every trial by its number, so a search that was killed goes on with the trials that an
uninterrupted one would have made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roseedit.editor import Editor
from roseedit.errors import HparamsError, RoseEditError, RunError, refusal
from roseedit.hparams import Hparams, as_mapping
from roseedit.methods import find_method
from roseedit.methods.space import Knob, Value, values_of, with_values
from roseedit.progress import bar
from roseedit.runs.files import Layout, as_json, read_json, write_once
from roseedit.runs.local import threads
from roseedit.runs.options import Data
from roseedit.runs.run import alone
from roseedit.runs.start import facts_of
from roseedit.tuning.report import write_report
from roseedit.tuning.trial import Score, Slice

STARTUP = 5  # trials before the median of the others counts


@dataclass(frozen=True)
class TuneOptions:
    """How to search.

    Attributes:
        trials: How many settings are tried in all, those of earlier starts included.
        first: Edits that a trial is judged by before it goes on.
        seed: Of the search.
        threads: Processor threads.
        cache: Folder of base scores; None: inside the search's own folder.
        show_progress: Draw a progress bar on a terminal.
    """

    trials: int = 30
    first: int = 4
    seed: int = 0
    threads: int = 1
    cache: Path | None = None
    show_progress: bool = True

    def check(self) -> None:
        """Refuse numbers out of range.

        Raises:
            RunError: One is.
        """
        for name, number in (("trials", self.trials), ("first", self.first), ("threads", self.threads)):
            if number < 1:
                raise RunError(refusal(f"{name} {number}", "1 or more", "Raise it."))


@dataclass(frozen=True)
class Tuned:
    """What a search found.

    Attributes:
        hparams: The best settings.
        value: Their harmonic mean.
        trial: Number of the trial.
        trials: Trials in all.
    """

    hparams: Hparams
    value: float
    trial: int
    trials: int


def tune(
    start: Hparams, data: Data, out: str | Path, options: TuneOptions | None = None, *, also: Sequence[Hparams] = ()
) -> Tuned:
    """Search a method's space for the largest harmonic mean of reliability, generality, locality and portability gain.

    Args:
        start: Settings to begin at; what is not in the space stays as it is here.
        data: The tuning slice; keep it apart from what is reported later.
        out: Folder of the search: new, empty, or that of this very search.
        options: How to search.
        also: Further settings of the same method to begin at.

    Returns:
        The best settings, also written as `best.yaml` beside `trials.csv`, `trials.md` and `search.png`.

    Raises:
        RunError: Optuna is missing, no edit is left, or the folder is that of another search.
        HparamsError: The method has nothing to search.
    """
    options = options or TuneOptions()
    options.check()
    optuna = _optuna()
    folder, knobs = Path(out), find_method(start.method).space
    if not knobs:
        raise HparamsError(refusal(f"method {start.method}", "one that declares a search space", "Choose another."))
    with threads(options.threads):
        editor = Editor.from_hparams(start, show_progress=False)
        refused = facts_of(editor, data.requests).refused
        requests = [r for i, r in enumerate(data.requests) if i not in refused]
        if not requests:
            raise RunError(refusal("no edit that can be made", "one or more", "Check the data."))
        cache = options.cache or folder / "base-scores"
        edits = Slice(editor.loaded, requests, options.first, options.threads, cache)
        _open(folder, _identity(start, data, options, edits, knobs))
        with alone(Layout(folder)):
            study = _study(optuna, folder)
            _recover(optuna, study, [values_of(h, knobs, editor.loaded.anatomy) for h in (start, *also)])
            _go_on(optuna, study, edits, start, folder, options)
    return _best(study, folder, start)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        message = refusal("tune without Optuna", "Optuna installed", "pip install 'roseedit[tune]'")
        raise RunError(message) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _identity(start: Hparams, data: Data, options: TuneOptions, edits: Slice, knobs: Sequence[Knob]) -> dict[str, Any]:
    """What all trials of one search have in common."""
    return {
        "start": as_mapping(start),
        "data": {"name": data.name, "sha256": data.sha256, "edits": [item.key for item in edits.items]},
        "space": [vars(knob) | {"choices": list(knob.choices)} for knob in knobs],
        "first": options.first,
        "seed": options.seed,
        **{name: edits.identity[name] for name in ("base", "decode", "versions", "plan")},
    }


def _open(folder: Path, identity: dict[str, Any]) -> None:
    path = folder / "tune.json"
    if not path.exists() and folder.exists() and any(not p.name.startswith(".") for p in folder.iterdir()):
        message = refusal(f"the folder {str(folder)!r}, which holds other things", "a new one", "Name another.")
        raise RunError(message)
    write_once(path, as_json(identity))
    there = read_json(path)
    differing = sorted(name for name in identity if there.get(name) != identity[name])
    if differing:
        message = refusal(
            f"the folder of another search: {', '.join(differing)} differ",
            "the folder of the same search",
            f"Name a new --out, or give what {path} has.",
        )
        raise RunError(message)


def _study(optuna: Any, folder: Path) -> Any:
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "journal.log"))
    return optuna.create_study(
        storage=optuna.storages.JournalStorage(backend),
        study_name="tune",
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP),
        load_if_exists=True,
    )


def _recover(optuna: Any, study: Any, starts: Sequence[dict[str, Value]]) -> None:
    """Enqueue where to begin; trials that a killed process left open are closed and begun again."""
    if not study.trials:
        for values in starts:
            study.enqueue_trial(values, skip_if_exists=True)
    for left in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        study.tell(left.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(left.params or left.system_attrs.get("fixed_params", {}))


def _finished(study: Any) -> int:
    """Trials that came to an end, a refusal being one."""
    ended = [t for t in study.trials if t.state.name in ("COMPLETE", "PRUNED")]
    return len(ended) + sum("refused" in t.user_attrs for t in study.trials)


def _go_on(  # noqa: PLR0917 - one call site
    optuna: Any, study: Any, edits: Slice, start: Hparams, folder: Path, options: TuneOptions
) -> None:
    """Trial after trial, until there are as many as asked for."""
    before = min(options.trials, _finished(study))
    with bar(options.trials, "tuning", options.show_progress, before) as progress:
        while (finished := _finished(study)) < options.trials:
            study.sampler = optuna.samplers.TPESampler(seed=options.seed * 100_003 + finished)
            _one(optuna, study, edits, start)
            write_report(folder, study, lambda params: with_values(start, params))
            progress(1)


def _one(optuna: Any, study: Any, edits: Slice, start: Hparams) -> None:
    trial = study.ask()
    chosen = {knob.name: _suggested(trial, knob) for knob in find_method(start.method).space}

    def go_on(score: Score) -> bool:
        trial.report(score.value, step=score.edits)
        return score.parts.get("reliability", 0.0) > 0 and not trial.should_prune()

    try:
        score = edits.run(with_values(start, chosen), go_on)
    except RoseEditError as error:  # settings that do not go together, or gradients that ran away
        trial.set_user_attr("refused", str(error))
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return
    for name, value in {**score.parts, "edits": score.edits, "low": score.low, "high": score.high}.items():
        trial.set_user_attr(name, value)
    if score.edits < len(edits.items):
        trial.set_user_attr("value_at_pruning", score.value)
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    else:
        study.tell(trial, score.value)


def _suggested(trial: Any, knob: Knob) -> Value:
    if knob.choices:
        return trial.suggest_categorical(knob.name, list(knob.choices))
    if knob.whole:
        return trial.suggest_int(knob.name, int(knob.low), int(knob.high), log=knob.log)
    return trial.suggest_float(knob.name, knob.low, knob.high, log=knob.log)


def _best(study: Any, folder: Path, start: Hparams) -> Tuned:
    done = [t for t in study.trials if t.state.name == "COMPLETE"]
    if not done:
        message = refusal(
            f"a search in {str(folder)!r} without a single whole trial",
            "one or more",
            "Raise --trials, or begin elsewhere.",
        )
        raise RunError(message)
    best = max(done, key=lambda t: t.value)
    return Tuned(with_values(start, best.params), float(best.value), best.number, len(study.trials))
