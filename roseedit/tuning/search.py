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
from roseedit.errors import RoseEditError, RunError, refusal
from roseedit.hparams import Hparams, as_mapping
from roseedit.making import loaded_for
from roseedit.methods import find_method
from roseedit.methods.space import Knob, Value, fitted, values_of, with_values
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
        RunError: Optuna is missing, no edit is left, or the folder is that of another search or in use.
        ModelError: The model cannot be loaded.
    """
    options = options or TuneOptions()
    options.check()
    optuna, folder, space = _optuna(), Path(out), find_method(start.method).space
    with threads(options.threads):
        loaded = loaded_for(start)
        knobs, start = fitted(space, start, loaded.anatomy)
        editor = Editor(loaded, start, show_progress=False)
        refused = facts_of(editor, data.requests).refused
        requests = [r for i, r in enumerate(data.requests) if i not in refused]
        if not requests:
            raise RunError(refusal("no edit that can be made", "one or more", "Check the data."))
        edits = Slice(loaded, requests, options.first, options.threads, options.cache or folder / "base-scores")
        _open(folder, _identity(start, data, options, edits, knobs))
        with alone(Layout(folder)):
            search = _Search(optuna, folder, edits, start, knobs)
            search.recover([values_of(h, knobs, loaded.anatomy) for h in (start, *also)])
            search.run(options)
            return search.best()


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


class _Search:
    """A study in a folder and how its trials are made."""

    def __init__(self, optuna: Any, folder: Path, edits: Slice, start: Hparams, knobs: Sequence[Knob]) -> None:
        self.optuna, self.folder, self.edits, self.start, self.knobs = optuna, folder, edits, start, knobs
        backend = optuna.storages.journal.JournalFileBackend(str(folder / "journal.log"))
        self.study = optuna.create_study(
            storage=optuna.storages.JournalStorage(backend),
            study_name="tune",
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP),
            load_if_exists=True,
        )

    def recover(self, starts: Sequence[dict[str, Value]]) -> None:
        """Enqueue where to begin; trials that a killed process left open are closed and begun again."""
        if not self.study.trials:
            for values in starts:
                self.study.enqueue_trial(values, skip_if_exists=True)
        for left in self.study.get_trials(states=[self.optuna.trial.TrialState.RUNNING]):
            self.study.tell(left.number, state=self.optuna.trial.TrialState.FAIL)
            self.study.enqueue_trial(left.params or left.system_attrs.get("fixed_params", {}))

    def finished(self) -> int:
        """Trials that came to an end, a refusal being one."""
        trials = self.study.trials
        return sum(t.state.name in ("COMPLETE", "PRUNED") or "refused" in t.user_attrs for t in trials)

    def run(self, options: TuneOptions) -> None:
        """Trial after trial, until there are as many as asked for."""
        before = min(options.trials, self.finished())
        with bar(options.trials, "tuning", options.show_progress, before) as progress:
            while (finished := self.finished()) < options.trials:
                self.study.sampler = self.optuna.samplers.TPESampler(seed=options.seed * 100_003 + finished)
                self._one()
                write_report(self.folder, self.study, lambda params: with_values(self.start, params))
                progress(1)

    def _one(self) -> None:
        failed, pruned = self.optuna.trial.TrialState.FAIL, self.optuna.trial.TrialState.PRUNED
        trial = self.study.ask()
        chosen = {knob.name: _suggested(trial, knob) for knob in self.knobs}

        def go_on(score: Score) -> bool:
            trial.report(score.value, step=score.edits)
            return score.parts.get("reliability", 0.0) > 0 and not trial.should_prune()

        try:
            score = self.edits.run(with_values(self.start, chosen), go_on)
        except RoseEditError as error:  # settings that do not go together, or gradients that ran away
            trial.set_user_attr("refused", str(error))
            self.study.tell(trial, state=failed)
            return
        for name, value in {**score.parts, "edits": score.edits, "low": score.low, "high": score.high}.items():
            trial.set_user_attr(name, value)
        if score.edits < len(self.edits.items):
            trial.set_user_attr("value_at_pruning", score.value)
            self.study.tell(trial, state=pruned)
        else:
            self.study.tell(trial, score.value)

    def best(self) -> Tuned:
        """The trial with the largest value among those that saw all edits."""
        done = [t for t in self.study.trials if t.state.name == "COMPLETE"]
        if not done:
            got = f"a search in {str(self.folder)!r} without a single whole trial"
            do = f"See {self.folder / 'trials.md'}; then raise --trials or --first, or begin at other --hparams."
            raise RunError(refusal(got, "one or more", do))
        best = max(done, key=lambda t: t.value)
        return Tuned(with_values(self.start, best.params), float(best.value), best.number, self.finished())


def _suggested(trial: Any, knob: Knob) -> Value:
    if knob.choices:
        return trial.suggest_categorical(knob.name, list(knob.choices))
    if knob.whole:
        return trial.suggest_int(knob.name, int(knob.low), int(knob.high), log=knob.log)
    return trial.suggest_float(knob.name, knob.low, knob.high, log=knob.log)
