"""Fitting: sweep, spans, gates along the homotopy, profiles, healing, calibration. Each stage is resumable on its own.

The backbone is never written to. What is trained: one score per layer and input (the gates), and what skipped layers
do instead of nothing (healing).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from roseedit.edits.edit import Edit
from roseedit.hadskip.catalogue import calibration_curve, centred, members_of, nested_sets, shares_of
from roseedit.hadskip.costs import speed_limit
from roseedit.hadskip.distil import Distillation, DistilSettings
from roseedit.hadskip.gate import Gates, entry_features, gate_record
from roseedit.hadskip.healing import entering, healing_cost, solve
from roseedit.hadskip.homotopy import Homotopy
from roseedit.hadskip.importance import Importance, initialise, leave_one_out
from roseedit.hadskip.material import Material, material
from roseedit.hadskip.measure import figures, text_scores
from roseedit.hadskip.paths import Healing
from roseedit.hadskip.profile import SLACK, SkipProfiles
from roseedit.hadskip.resume import load_stage, save_stage
from roseedit.hadskip.runner import Runner
from roseedit.hadskip.settings import HadSkipHparams
from roseedit.hadskip.spans import order_of_dropping, span_costs, span_errors
from roseedit.hadskip.texts import WIKITEXT
from roseedit.hadskip.training import GateSettings, GateTraining
from roseedit.hparams import as_mapping
from roseedit.models.load import LoadedModel
from roseedit.progress import bar

SWEEP_KEYS = ("judged", "solve_sequences", "healing", "rank")
LEAST_SHARE = 0.1  # of the healing's training, for profiles that are seldom chosen


class Fit:
    """One fit; call `run`.

    Args:
        loaded: The model, edits applied.
        settings: The settings.
        edits: The live edits.
        work: Folder for what a stopped fit needs to go on; shared by fits that differ only in budget.
        show: Draw progress bars.
        brought_by: Options of the command line that brought the edits live, for the record.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        settings: HadSkipHparams,
        edits: Sequence[Edit] = (),
        *,
        work: Path,
        show: bool = False,
        brought_by: str = "",
    ) -> None:
        self.loaded, self.settings, self.edits = loaded, settings, edits
        self.brought_by = brought_by or "".join(f" --edit {edit.edit_id}" for edit in edits)
        self.material = material(loaded, settings, edits)
        self.runner = Runner(loaded, settings, self.material.digest, work, show)

    def run(self) -> SkipProfiles:
        """Fit.

        Returns:
            Profiles with gates, healing and the figures of the fit; not measured yet.
        """
        features = self._features(self.material.train)
        gates = rounded(self._trained(features))
        with torch.no_grad():
            scores, held = gates(features), gates(self._features(self.material.held_out))
        m, budget = self.material, self.settings.budget
        theta = centred(scores, m.costs, m.fixed, budget)
        sets = nested_sets(scores - theta, m.costs, m.fixed, budget, self.settings.profiles)
        members = members_of(sets, len(m.layers))
        curve = calibration_curve(held, members, m.costs, m.fixed)
        fitting = [t for t, cost in curve if cost <= budget + SLACK]
        shares = shares_of(held, members, m.costs, min(fitting) if fitting else curve[-1][0])
        executed = [self._executed(own) for own in sets]
        trained = [max(share, LEAST_SHARE) for share in shares]
        healing = heal(self.loaded, m, executed, trained, settings=self.settings, runner=self.runner)
        halves = Healing.of_tensors({name: t.half() for name, t in healing.tensors().items()})
        return self._profiles(gates, executed, shares, curve=curve, healing=halves)

    def _executed(self, own: Sequence[int]) -> tuple[int, ...]:
        always = set(range(self.loaded.anatomy.n_layers)) - set(self.material.layers)
        return tuple(sorted(always | {self.material.layers[i] for i in own}))

    def _features(self, ids: Tensor) -> Tensor:
        """Features of beginnings of all lengths, for a prompt may be short."""
        states = entering(self.loaded, self.material.entry, ids)
        lengths = torch.linspace(max(1, ids.shape[1] // 8), ids.shape[1], len(ids)).long()
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        return entry_features(states, mask).cpu()

    def sweep(self) -> Importance:
        """The leave-one-out sweep, from its file if it was done before."""
        path, m = self.runner.stage("sweep", SWEEP_KEYS), self.material
        found = load_stage(path)
        if found:
            tensors, _ = found
            healing = {k.removeprefix("healing."): t for k, t in tensors.items() if k.startswith("healing.")}
            return Importance(m.layers, tensors["kl"], tensors["influence"], Healing.of_tensors(healing))
        ids = m.train[: max(self.settings.judged, min(self.settings.solve_sequences, len(m.train)))]
        with bar(m.layers[-1] + 1 - m.entry, "leave one out", self.runner.show) as tell:
            done = leave_one_out(
                self.runner.teacher(ids),
                m.layers,
                judged=self.settings.judged,
                kind=self.settings.healing,
                rank=self.settings.rank,
                progress=tell,
            )
        tensors = {f"healing.{name}": t for name, t in done.healing.tensors().items()}
        save_stage(path, {**tensors, "kl": done.kl, "influence": done.influence}, {})
        return done

    def order(self, sweep: Importance) -> tuple[int, ...]:
        """The order in which layers are best dropped; its errors of spans from their file if they were found before.

        Args:
            sweep: The leave-one-out sweep.

        Returns:
            One layer more than the budget asks for.
        """
        settings, m = self.settings, self.material
        file = self.runner.stage("spans", (*SWEEP_KEYS, "span_sequences"))
        found = load_stage(file)
        if not found:
            ids = m.train[: settings.span_sequences]
            with bar(m.layers[-1] + 1 - m.entry, "spans", self.runner.show) as tell:
                errors = span_errors(
                    self.loaded, ids, m.layers, kind=settings.healing, rank=settings.rank, progress=tell
                )
            found = {"errors": errors}, {}
            save_stage(file, *found)
        reached = (m.costs.sort().values.cumsum(0) <= 1.0 - settings.budget).sum()
        drop = min(len(m.layers), int(reached) + 1)
        return order_of_dropping(span_costs(found[0]["errors"], sweep.kl.mean(0)), m.layers, drop)

    def _trained(self, features: Tensor) -> Gates:
        settings, m = self.settings, self.material
        importance = self.sweep()
        gates = Gates.for_features(m.layers, features, settings.components)
        judged = features[: settings.judged]
        if settings.init == "spans":
            importance = replace(importance, order=self.order(importance))
        initialise(gates, settings.init, importance, judged, settings.budget, seed=settings.seed)
        if not settings.gate_steps:
            return gates
        homotopy = Homotopy(settings.gate_steps, settings.budget, penalty=settings.penalty, on=settings.homotopy)
        rates = {"lr": settings.gate_lr, "healing_lr": 0.5 * settings.healing_lr}
        how = GateSettings(settings.rows, **rates, positions=settings.positions, seed=settings.seed)
        training = GateTraining(
            self.runner.teacher(m.train, training=True).first(settings.gate_tokens),
            gates,
            features=features,
            healing=importance.healing,
            costs=m.costs,
            fixed=m.fixed,
            homotopy=homotopy,
            settings=how,
        )
        self.runner.advance(training, settings.gate_steps, "gates")
        return gates

    def _profiles(
        self,
        gates: Gates,
        executed: Sequence[tuple[int, ...]],
        shares: Sequence[float],
        *,
        curve: list[tuple[float, float]],
        healing: Healing,
    ) -> SkipProfiles:
        sets = {f"run{len(layers)}": layers for layers in executed}
        m, healed = self.material, bool(healing.layers)
        return SkipProfiles.of(
            self.loaded,
            sets,
            measured=self._measured(sets, shares, healing),
            healings={"shared": healing} if healed else {},
            healing_of=dict.fromkeys(sets, "shared") if healed else {},
            gates={name: t.half() if t.dim() == 2 else t for name, t in gate_record(gates).items()},
            gate_settings={
                "looks_at": m.entry,
                "layers": list(m.layers),
                "costs": m.costs.tolist(),
                "budget": self.settings.budget,
                "curve": [[round(theta, 5), round(cost, 6)] for theta, cost in curve],
            },
            made_by={
                "command": command(self.loaded.name, self.settings, self.brought_by),
                "hparams": as_mapping(self.settings),
                "edits": [edit.edit_id for edit in self.edits],
            },
        )

    def _measured(
        self, sets: Mapping[str, tuple[int, ...]], shares: Sequence[float], healing: Healing
    ) -> dict[str, dict[str, float]]:
        """What each profile costs and is worth on the held-out sequences."""
        teacher, found = self.runner.teacher(self.material.held_out), {}
        for (name, layers), share in zip(sets.items(), shares, strict=True):
            quality = {key: figure["mean"] for key, figure in figures(text_scores(teacher, layers, healing)).items()}
            skipped = [i for i in range(self.loaded.anatomy.n_layers) if i not in layers]
            cost = {"healing_cost": healing_cost(self.loaded, skipped, healing)}
            found[name] = {"share": share, **quality, **cost, "speed_limit": speed_limit(self.loaded, layers)}
        return found


def rounded(gates: Gates) -> Gates:
    """Gates with the precision in which they are stored, so that calibration holds for what is loaded later.

    Args:
        gates: The gates; changed in place.

    Returns:
        The same.
    """
    with torch.no_grad():
        for tensor in gates.state_dict().values():
            if tensor.dim() == 2:
                tensor.copy_(tensor.half())
    return gates


def heal(
    loaded: LoadedModel,
    own: Material,
    executed: Sequence[tuple[int, ...]],
    shares: Sequence[float],
    *,
    settings: HadSkipHparams,
    runner: Runner,
) -> Healing:
    """Heal one or several sets of executed layers together: closed form, then distillation.

    Args:
        loaded: The model.
        own: What to heal on.
        executed: The sets.
        shares: How often each is used.
        settings: Kind, rank, steps.
        runner: Runs the training, resumably.

    Returns:
        The healing, one for all sets: solved for the layers that any of them skips.
    """
    skipped = sorted({i for layers in executed for i in range(loaded.anatomy.n_layers) if i not in layers})
    if settings.healing == "none" or not skipped:
        return Healing()
    with bar(skipped[-1] + 1 - skipped[0], "solving", runner.show) as tell:
        rows = own.train[: settings.solve_sequences]
        start = solve(loaded, rows, skipped, kind=settings.healing, rank=settings.rank, progress=tell)
    if not settings.healing_steps:
        return start
    how = DistilSettings(
        settings.healing_steps,
        settings.rows,
        settings.healing_lr,
        settings.positions,
        settings.seed,
        settings.answer_weight,
    )
    with runner.arithmetic():
        training = Distillation(
            runner.teacher(own.train, training=True), executed, shares, start, how, answers=own.answers
        )
    runner.advance(training, settings.healing_steps, "healing", [[list(e) for e in executed], list(shares)])
    return training.healing


def command(model: str, settings: HadSkipHparams, brought_by: str = "") -> str:
    """The command line that repeats a fit.

    Args:
        model: What the user called the model.
        settings: The settings.
        brought_by: The options that brought the edits live.

    Returns:
        One line; settings that differ from the defaults are named in `made_by` beside it.
    """
    text = settings.text if settings.text == WIKITEXT else Path(settings.text).name
    return (
        f"roseedit skip fit --model {model} --budget {settings.budget} --text {text} --healing {settings.healing}"
        f"{brought_by}"
    )
