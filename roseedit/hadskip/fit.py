"""Fitting: sweep, gates along the homotopy, profiles, healing, calibration. Each stage is resumable on its own.

The backbone is never written to. What is trained: one score per layer and input (the gates), and what skipped layers
do instead of nothing (healing).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from roseedit.edits.edit import Edit
from roseedit.edits.fingerprint import served_fingerprint
from roseedit.errors import BudgetError, refusal
from roseedit.hadskip.catalogue import calibration_curve, centred, members_of, nested_sets, shares_of
from roseedit.hadskip.costs import layer_costs
from roseedit.hadskip.distil import Distillation, DistilSettings
from roseedit.hadskip.gate import Gates, entry_features, gate_record
from roseedit.hadskip.healing import entering, healing_cost, solve
from roseedit.hadskip.homotopy import Homotopy
from roseedit.hadskip.importance import Importance, initialise, leave_one_out, one_round
from roseedit.hadskip.paths import Healing, protected_layers
from roseedit.hadskip.profile import SkipProfiles
from roseedit.hadskip.resume import load_stage, save_stage
from roseedit.hadskip.settings import HadSkipHparams
from roseedit.hadskip.teacher import Teacher
from roseedit.hadskip.texts import WIKITEXT, all_real, read_text, token_rows
from roseedit.hadskip.training import GateSettings, GateTraining
from roseedit.hparams import as_mapping
from roseedit.models.load import LoadedModel
from roseedit.progress import bar
from roseedit.roselora.trainer import frozen as backbone_frozen

SAVE_EVERY = 5  # steps
SWEEP_KEYS = ("text", "protect", "tokens", "sequences", "held_out", "judged", "edit_share", "healing", "rank", "seed")


@dataclass(frozen=True)
class Material:
    """What a fit works on.

    Attributes:
        train: (sequences, tokens).
        held_out: (sequences, tokens), for calibration.
        layers: The layers that may be skipped.
        entry: The layer whose input the gates see, the first of these.
        costs: (layers,), their cost shares.
        fixed: Cost share of all other layers.
    """

    train: Tensor
    held_out: Tensor
    layers: tuple[int, ...]
    entry: int
    costs: Tensor
    fixed: float


def material(loaded: LoadedModel, settings: HadSkipHparams, edits: Sequence[Edit] = ()) -> Material:
    """Collect sequences and layers.

    Args:
        loaded: The model, edits applied.
        settings: The settings.
        edits: The live edits, for their prompts and answers.

    Returns:
        The material.

    Raises:
        BudgetError: The protected layers alone cost more than the budget.
        DataError: The text is missing or too short.
    """
    layers = skippable(loaded, settings.protect)
    shares = layer_costs(loaded)
    fixed = sum(share for i, share in enumerate(shares) if i not in layers)
    if not layers or fixed > settings.budget:
        got = f"budget {settings.budget} with {loaded.anatomy.n_layers - len(layers)} protected layers"
        message = refusal(got, f"a budget above {fixed:.3f}", f"{len(layers)} layers may be skipped. Confine edits.")
        raise BudgetError(message)
    n_edits = round(settings.edit_share * settings.sequences) if edits else 0
    n_text = settings.sequences - n_edits + settings.held_out
    text = token_rows(loaded, read_text(settings.text), settings.tokens, n_text, seed=settings.seed)
    train, held_out = text[: -settings.held_out], text[-settings.held_out :]
    if n_edits:
        train = torch.cat((edit_rows(loaded, edits, settings.tokens, n_edits, settings.seed), train))
        train = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(settings.seed))]
    return Material(train, held_out, layers, layers[0], torch.tensor([shares[i] for i in layers]), fixed)


def skippable(loaded: LoadedModel, protect: Sequence[int] = ()) -> tuple[int, ...]:
    """The layers that gates may skip.

    Args:
        loaded: The model, edits applied.
        protect: Layers to protect beside the usual ones.

    Returns:
        Their indices.
    """
    kept = {*protected_layers(loaded), *protect}
    return tuple(i for i in range(loaded.anatomy.n_layers) if i not in kept)


def edit_rows(loaded: LoadedModel, edits: Sequence[Edit], tokens: int, rows: int, seed: int) -> Tensor:
    """Sequences made of the edits' prompts and answers, each edit at the start of a sequence in turn.

    Args:
        loaded: The model.
        edits: The edits.
        tokens: Tokens per sequence.
        rows: How many sequences.
        seed: Of the order in which a sequence is filled up.

    Returns:
        (rows, tokens).
    """
    tokenizer, end = loaded.tokenizer, loaded.tokenizer.eos_token_id
    facts = [f"{r.prompt} {r.target_new}" for edit in edits for r in edit.requests]
    encoded = [[*tokenizer(fact, add_special_tokens=False)["input_ids"], end] for fact in facts]
    generator = torch.Generator().manual_seed(seed)
    out = []
    for i in range(rows):
        row = list(encoded[i % len(encoded)])
        while len(row) < tokens:
            row += encoded[int(torch.randint(len(encoded), (1,), generator=generator))]
        out.append(row[:tokens])
    return torch.tensor(out)


class Runner:
    """Runs the stages of a fit, each from its file if it was done, or half done, before.

    Args:
        loaded: The model, edits applied.
        settings: The settings.
        work: Folder of the stages' files.
        show: Draw progress bars.
    """

    def __init__(self, loaded: LoadedModel, settings: HadSkipHparams, work: Path, show: bool) -> None:
        self.loaded, self.settings, self.work, self.show = loaded, settings, work, show

    def stage(self, name: str, keys: Sequence[str] | None = None, extra: Any = None) -> Path:
        """A file name that holds exactly for the weights and the settings that a stage depends on.

        Args:
            name: Of the stage.
            keys: The settings it depends on; None for all.
            extra: Whatever else it depends on, as plain JSON.

        Returns:
            The file.
        """
        whole = as_mapping(self.settings)
        chosen = {key: whole[key] for key in keys} if keys else whole
        text = json.dumps([served_fingerprint(self.loaded), chosen, extra], sort_keys=True, default=str)
        return self.work / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.safetensors"

    def teacher(self, ids: Tensor) -> Teacher:
        """The full model on sequences, from its file if it ran over them before.

        Args:
            ids: (sequences, tokens).

        Returns:
            The teacher.
        """
        path = self.stage("teacher", ("seed",), hashlib.sha256(ids.contiguous().numpy().tobytes()).hexdigest())
        found = load_stage(path)
        if found:
            return Teacher(self.loaded, ids, found[0]["states"].to(self.loaded.device))
        teacher = Teacher.of(self.loaded, ids)
        save_stage(path, {"states": teacher.states}, {})
        return teacher

    def advance(self, training: GateTraining | Distillation, steps: int, name: str, extra: Any = None) -> None:
        """Bring a training to its end.

        Args:
            training: It is trained in place.
            steps: Steps in all.
            name: Of the stage.
            extra: Whatever it depends on beside the settings.
        """
        path = self.stage(name, None, extra)
        found = load_stage(path)
        if found:
            tensors, record = found
            training.restore(int(record["step"]), tensors)
            training.history = record["history"]
        with bar(steps, name, self.show) as tell, backbone_frozen(self.loaded.model):
            tell(training.step)
            while training.step < steps:
                training.advance()
                tell(1)
                if training.step % SAVE_EVERY == 0 or training.step == steps:
                    save_stage(path, training.state(), {"step": training.step, "history": training.history})


class Fit:
    """One fit; call `run`.

    Args:
        loaded: The model, edits applied.
        settings: The settings.
        edits: The live edits.
        work: Folder for what a stopped fit needs to go on; shared by fits that differ only in budget.
        show: Draw progress bars.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        settings: HadSkipHparams,
        edits: Sequence[Edit] = (),
        *,
        work: Path,
        show: bool = False,
    ) -> None:
        self.loaded, self.settings, self.edits = loaded, settings, edits
        self.runner = Runner(loaded, settings, work, show)
        self.material = material(loaded, settings, edits)

    def run(self) -> SkipProfiles:
        """Fit.

        Returns:
            Profiles with gates, healing and the figures of the fit; not measured yet.
        """
        features = self._features(self.material.train)
        gates = self._trained(features)
        with torch.no_grad():
            scores, held = gates(features), gates(self._features(self.material.held_out))
        m, budget = self.material, self.settings.budget
        theta = centred(scores, m.costs, m.fixed, budget)
        sets = nested_sets(scores - theta, m.costs, m.fixed, budget, self.settings.profiles)
        members = members_of(sets, len(m.layers))
        curve = calibration_curve(held, members, m.costs, m.fixed)
        fitting = [t for t, cost in curve if cost <= budget + 1e-6]
        shares = shares_of(held, members, m.costs, min(fitting) if fitting else curve[-1][0])
        healing = self._healed([self._executed(s) for s in sets], shares)
        return self._profiles(gates, sets, shares, curve, healing)

    def _executed(self, own: Sequence[int]) -> tuple[int, ...]:
        always = set(range(self.loaded.anatomy.n_layers)) - set(self.material.layers)
        return tuple(sorted(always | {self.material.layers[i] for i in own}))

    def _features(self, ids: Tensor) -> Tensor:
        return entry_features(entering(self.loaded, self.material.entry, ids), all_real(ids)).cpu()

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

    def path(self, first: Importance) -> tuple[int, ...]:
        """The order in which layers are dropped, from its file as far as it was found before.

        Args:
            first: The sweep with all layers in place.

        Returns:
            Somewhat more layers than the budget asks for.
        """
        settings, m = self.settings, self.material
        reached = (m.costs.sort().values.cumsum(0) <= 1.0 - settings.budget).sum()
        drop = min(len(m.layers), int(reached) + 1)
        file = self.runner.stage("path", (*SWEEP_KEYS, "path_step", "path_judged"))
        found = load_stage(file)
        order: tuple[int, ...] = tuple(found[1]["order"]) if found else ()
        ids = m.train[: max(settings.path_judged, settings.solve_sequences // 2)]
        with bar(drop, "path", self.runner.show) as tell:
            tell(len(order))
            while len(order) < drop:
                longer = one_round(
                    self.runner.teacher(ids),
                    first,
                    order,
                    at_once=settings.path_step,
                    judged=settings.path_judged,
                    kind=settings.healing,
                    rank=settings.rank,
                )
                tell(len(longer) - len(order))
                order = longer
                save_stage(file, {"kl": first.kl}, {"order": order})
        return order

    def _trained(self, features: Tensor) -> Gates:
        settings, m = self.settings, self.material
        importance = self.sweep()
        gates = Gates.for_features(m.layers, features, settings.components)
        judged = features[: settings.judged]
        if settings.init == "path":
            importance = replace(importance, order=self.path(importance))
        initialise(gates, settings.init, importance, judged, settings.budget, seed=settings.seed)
        if not settings.gate_steps:
            return gates
        homotopy = Homotopy(settings.gate_steps, settings.budget, penalty=settings.penalty, on=settings.homotopy)
        rates = {"lr": settings.gate_lr, "healing_lr": 0.5 * settings.healing_lr}
        how = GateSettings(settings.rows, **rates, positions=settings.positions, seed=settings.seed)
        training = GateTraining(
            self.runner.teacher(m.train).first(settings.gate_tokens),
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

    def _healed(self, executed: Sequence[tuple[int, ...]], shares: Sequence[float]) -> Healing:
        """One healing for all profiles: solved for the cheapest set, which skips whatever any other skips."""
        return heal(self.loaded, self.material.train, executed, shares, settings=self.settings, runner=self.runner)

    def _profiles(
        self,
        gates: Gates,
        sets: Sequence[Sequence[int]],
        shares: Sequence[float],
        curve: list[tuple[float, float]],
        healing: Healing,
    ) -> SkipProfiles:
        executed = {f"run{len(layers)}": layers for layers in map(self._executed, sets)}
        all_costs = layer_costs(self.loaded)
        skipped = {n: [i for i in range(len(all_costs)) if i not in layers] for n, layers in executed.items()}
        measured = {
            name: {"share": share, "healing_cost": healing_cost(self.loaded, skipped[name], healing)}
            for name, share in zip(executed, shares, strict=True)
        }
        m, halves = self.material, {name: t.half() for name, t in healing.tensors().items()}
        return SkipProfiles.of(
            self.loaded,
            executed,
            measured=measured,
            healings={"shared": Healing.of_tensors(halves)} if halves else {},
            healing_of=dict.fromkeys(executed, "shared") if halves else {},
            gates={name: t.half() if t.dim() == 2 else t for name, t in gate_record(gates).items()},
            gate_settings={
                "looks_at": m.entry,
                "layers": list(m.layers),
                "costs": m.costs.tolist(),
                "budget": self.settings.budget,
                "curve": [[round(theta, 5), round(cost, 6)] for theta, cost in curve],
            },
            made_by={
                "command": command(self.loaded.name, self.settings, self.edits),
                "hparams": as_mapping(self.settings),
                "edits": [edit.edit_id for edit in self.edits],
            },
        )


def heal(
    loaded: LoadedModel,
    train: Tensor,
    executed: Sequence[tuple[int, ...]],
    shares: Sequence[float],
    *,
    settings: HadSkipHparams,
    runner: Runner,
) -> Healing:
    """Heal one or several sets of executed layers together: closed form, then distillation.

    Args:
        loaded: The model.
        train: (sequences, tokens).
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
        rows = train[: settings.solve_sequences]
        start = solve(loaded, rows, skipped, kind=settings.healing, rank=settings.rank, progress=tell)
    if not settings.healing_steps:
        return start
    how = DistilSettings(settings.healing_steps, settings.rows, settings.healing_lr, settings.positions, settings.seed)
    training = Distillation(runner.teacher(train), executed, shares, start, how)
    runner.advance(training, settings.healing_steps, "healing", [list(e) for e in executed])
    return training.healing


def command(model: str, settings: HadSkipHparams, edits: Sequence[Edit]) -> str:
    """The command line that repeats a fit.

    Args:
        model: What the user called the model.
        settings: The settings.
        edits: The live edits.

    Returns:
        One line; settings that differ from the defaults are named in `made_by` beside it.
    """
    on = "".join(f" --edit {edit.edit_id}" for edit in edits)
    text = settings.text if settings.text == WIKITEXT else Path(settings.text).name
    options = f"--budget {settings.budget} --text {text} --healing {settings.healing}{on}"
    return f"roseedit skip fit --model {model} {options}"
