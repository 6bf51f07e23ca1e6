"""Gates against every static choice: quality and speed over executed cost, each with the same healing and training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from roseedit.edits.edit import Edit
from roseedit.errors import SkipError, refusal
from roseedit.evaluation.generation import generate
from roseedit.evaluation.metrics import bootstrap_interval, exact_match, mean_by_edit, token_agreement
from roseedit.evaluation.scoring import score
from roseedit.hadskip.baselines import baseline_set, shorter_dense
from roseedit.hadskip.choosing import Chooser, PromptBatch, chooser_of
from roseedit.hadskip.costs import cost_of, layer_bytes, speed_limit
from roseedit.hadskip.distil import DistilSettings
from roseedit.hadskip.fit import Fit, heal
from roseedit.hadskip.importance import ranks
from roseedit.hadskip.measure import TextScores, better, figures, step_times, text_scores
from roseedit.hadskip.paths import Healing, executing
from roseedit.hadskip.profile import SLACK, SkipProfiles
from roseedit.hadskip.resume import load_stage, save_stage
from roseedit.hadskip.settings import HadSkipHparams
from roseedit.hadskip.texts import all_real, read_text, token_rows
from roseedit.hparams import from_mapping
from roseedit.models.encoding import encode_prompt, pad_right
from roseedit.models.load import LoadedModel
from roseedit.models.replay import capture_activations

DENSE_LR = 1e-4
GOLDEN = 0.618034  # multiples of it spread evenly over [0, 1)
LEAST = 1e-3  # share of a mixture below which a set is left out
Line = dict[str, Any]


@dataclass(frozen=True)
class Contender:
    """One way to choose layers at a mean cost.

    Attributes:
        name: `gates`, or the name of a baseline.
        sets: Its executed sets with their healing.
        weights: (sequences, sets), how much of each set each test sequence takes.
        student: Another model than the served one to run them on.
    """

    name: str
    sets: tuple[tuple[tuple[int, ...], Healing | None], ...]
    weights: Tensor
    student: LoadedModel | None = None


class Bench:
    """One comparison at the budget of one folder of gates.

    Args:
        loaded: The model, edits applied.
        profiles: Its profiles with gates.
        edits: The live edits.
        sequences: Test sequences.
        text: What to report on: `wikitext2` (its test part) or a file.
        work: Folder for what a stopped run needs to go on.
        show: Draw progress bars.
        settings: How the gates were fitted; left out: what the profiles say themselves.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        profiles: SkipProfiles,
        edits: Sequence[Edit] = (),
        *,
        sequences: int = 64,
        text: str = "wikitext2",
        work: Path,
        show: bool = False,
        settings: HadSkipHparams | None = None,
    ) -> None:
        profiles.check(loaded)
        self.loaded, self.profiles, self.edits = loaded, profiles, edits
        self.settings = settings or settings_of(profiles)
        self.fit = Fit(loaded, self.settings, edits, work=work, show=show)
        ids = token_rows(loaded, read_text(text, "test"), self.settings.tokens, sequences, seed=1)
        self.teacher = self.fit.runner.teacher(ids)
        self.chooser: Chooser = chooser_of(profiles)

    def run(self, baselines: Sequence[str], *, speed: bool = True) -> dict[str, Any]:
        """Measure gates and baselines.

        Args:
            baselines: Names of baselines.
            speed: Time them too.

        Returns:
            Plain JSON: `lines`, one per contender, and what they were measured on.
        """
        gates = self.gates()
        target = float(self._costs(gates) @ gates.weights.mean(0))
        contenders = [gates, *(self.baseline(name, target) for name in baselines)]
        scores = [self.scores(contender) for contender in contenders]
        lines = [self._line(*pair) for pair in zip(contenders, scores, strict=True)]
        for line, theirs in zip(lines[1:], scores[1:], strict=True):
            line["gates_less_this"] = better(scores[0], theirs)
        lines[0]["gate_bytes_share"] = self.gate_share()
        if self.edits:
            self._add_edits(lines, contenders)
            lines[0]["flip_rate"] = self.flip_rate()
        if speed:
            self._add_speed(lines[0], gates)
        return {
            "model": self.loaded.name,
            "budget": self.settings.budget,
            "fingerprint": self.profiles.fingerprint,
            "sequences": len(self.teacher.ids),
            "tokens": self.teacher.ids.shape[1],
            "lines": lines,
        }

    def gates(self) -> Contender:
        """The gates' choice for each test sequence, made on its first half alone."""
        half = self.teacher.ids[:, : self.teacher.ids.shape[1] // 2]
        picked = self._choose(half, all_real(half))
        sets = tuple((p.layers, self.profiles.healing(i)) for i, p in enumerate(self.profiles.profiles))
        return Contender("gates", sets, torch.nn.functional.one_hot(picked, len(sets)).float())

    def _choose(self, ids: Tensor, mask: Tensor) -> Tensor:
        layer, states = self.chooser.looks_at, None
        if layer is not None:
            states = capture_activations(self.loaded.model, self.loaded.anatomy, layer, ids, mask)
        return torch.tensor(list(self.chooser.choose(self.loaded, PromptBatch(ids, mask, states), None)))

    def baseline(self, name: str, cost: float) -> Contender:
        """A static choice of the same mean cost: the two sets around it, mixed so that the means are equal.

        Args:
            name: Of the baseline.
            cost: Mean cost share.

        Returns:
            The contender, healed like the gates.
        """
        n, layers = self.loaded.anatomy.n_layers, self.fit.material.layers
        importance = self._importance(name)
        made = [
            baseline_set(name, n, layers, run, importance=importance, seed=self.settings.seed)
            for run in range(n - len(layers), n + 1)
        ]
        costs = [cost_of(self.loaded, own) for own in made]
        low = max(i for i, c in enumerate(costs) if c <= cost + SLACK)
        last = low + 1 == len(made)
        share = 0.0 if last else (cost - costs[low]) / (costs[low + 1] - costs[low])
        pairs = [(made[low], 1.0 - share)] + ([] if last else [(made[low + 1], share)])
        chosen = [own for own, part in pairs if part > LEAST]
        shares = [part for _, part in pairs if part > LEAST]
        weights = torch.tensor(shares).expand(len(self.teacher.ids), -1)
        if name == "dense":
            return self._dense(chosen, weights)
        own = {p.layers: self.profiles.healing(i) for i, p in enumerate(self.profiles.profiles)}
        if name == "static-spans" and own.keys() >= set(chosen):  # healed and trained already, by the gates' fit
            return Contender(name, tuple((layers, own[layers]) for layers in chosen), weights)
        healing = heal(self.loaded, self.fit.material, chosen, shares, settings=self.settings, runner=self.fit.runner)
        return Contender(name, tuple((own, healing) for own in chosen), weights)

    def _importance(self, name: str) -> Tensor:
        sweep = self.fit.sweep()
        if name in {"static-spans", "dense"}:
            return ranks(replace(sweep, order=self.fit.order(sweep)))
        return sweep.influence if name == "influence" else sweep.kl.mean(0)

    def _dense(self, sets: Sequence[tuple[int, ...]], weights: Tensor) -> Contender:
        """One shorter model, of the cheaper set: two would be trained twice as long as the gates were."""
        how = DistilSettings(
            self.settings.healing_steps, self.settings.rows, DENSE_LR, self.settings.positions, self.settings.seed
        )
        student = shorter_dense(self.fit.runner.teacher(self.fit.material.train), sets[0], how)
        return Contender("dense", ((sets[0], None),), torch.ones(len(weights), 1), student)

    def scores(self, contender: Contender) -> TextScores:
        """Text scores of a contender, sets from their files if they were scored before.

        Args:
            contender: The contender.

        Returns:
            Its scores.
        """
        parts = [self._set_scores(own, healing, contender.student) for own, healing in contender.sets]
        return TextScores.mixed(parts, contender.weights)

    def _set_scores(self, layers: tuple[int, ...], healing: Healing | None, student: LoadedModel | None) -> TextScores:
        extra = [list(layers), _digest(healing.tensors() if healing else {}), _digest({"ids": self.teacher.ids})]
        path = self.fit.runner.stage("scores", None, extra)
        found = None if student else load_stage(path)
        if found:
            return TextScores(**found[0])
        done = text_scores(self.teacher, layers, healing, student=student)
        if not student:
            save_stage(path, done.tensors(), {})
        return done

    def _costs(self, contender: Contender) -> Tensor:
        return torch.tensor([cost_of(self.loaded, own) for own, _ in contender.sets])

    def _line(self, contender: Contender, scores: TextScores) -> Line:
        shares = contender.weights.mean(0)
        return {
            "name": contender.name,
            "cost": float(self._costs(contender) @ shares),
            "sets": [list(own) for own, _ in contender.sets],
            "shares": shares.tolist(),
            **figures(scores),
        }

    def _add_speed(self, line: Line, gates: Contender) -> None:
        """Time full and skipped paths in one run; limit and reached speed-up are averaged over the chosen profiles."""
        named = {str(i): own for i, own in enumerate(gates.sets)}
        full = (tuple(range(self.loaded.anatomy.n_layers)), None)
        for rows in (1, 8):
            times = step_times(self.loaded, {"full": full, **named}, rows=rows)
            line[f"speed_batch_{rows}"] = _speed(self.loaded, gates, times)

    def _add_edits(self, lines: list[Line], contenders: Sequence[Contender]) -> None:
        full = Contender("full", (((*range(self.loaded.anatomy.n_layers),), None),), torch.ones(1, 1))
        reference = self.edit_scores(full)
        for line, contender in zip(lines, contenders, strict=True):
            own = self.edit_scores(contender)
            line["edits"] = {name: {**own[name], "full": reference[name]["mean"]} for name in own}

    def edit_scores(self, contender: Contender) -> dict[str, dict[str, float]]:
        """Reliability and generality (generated exact match) and locality (token agreement with the full model).

        Args:
            contender: Gates choose per prompt; a mixture takes its sets in turn, in its own proportion.

        Returns:
            Mean, low, high and n over edits, by name.
        """
        model = contender.student or self.loaded
        requests = [r for edit in self.edits for r in edit.requests]
        asked = [(i, r.prompt) for i, r in enumerate(requests)]
        again = [(i, text) for i, r in enumerate(requests) for text in r.rephrase]
        local = [(i, p) for i, r in enumerate(requests) for p in r.locality if p.aliases]
        found = {}
        for name, group in (("reliability", asked), ("generality", again)):
            said = self._by_set(contender, [text for _, text in group], lambda texts: generate(model, texts))
            hits = [float(exact_match(s, requests[i].accepted)) for s, (i, _) in zip(said, group, strict=True)]
            found[name] = _summary(hits, [i for i, _ in group])
        pairs = {p.prompt: (p.prompt, p.aliases[0]) for _, p in local}
        ours = self._by_set(contender, list(pairs), lambda texts: score(model, [pairs[t] for t in texts]))
        theirs = score(self.loaded, list(pairs.values()))
        same = {text: token_agreement(b, a) for text, a, b in zip(pairs, ours, theirs, strict=True)}
        found["locality"] = _summary([same[p.prompt] for _, p in local], [i for i, _ in local])
        return {name: figure for name, figure in found.items() if figure["n"]}

    def flip_rate(self) -> dict[str, float]:
        """How often a paraphrase of an edit's prompt gets another profile than the prompt: mean over edits."""
        gates, flips, edits = Contender("gates", (), torch.empty(0)), [], []
        for i, request in enumerate(r for edit in self.edits for r in edit.requests):
            first, *others = self._picked(gates, [request.prompt, *request.rephrase])
            flips += [float(other != first) for other in others]
            edits += [i] * len(others)
        return _summary(flips, edits)

    def gate_share(self) -> float:
        """Bytes of one choice over those of all layers; paid once per sequence, not per token."""
        return self.chooser.n_bytes / sum(layer_bytes(self.loaded)[0])

    def _by_set(self, contender: Contender, texts: list[str], run: Any) -> list[Any]:
        """Run texts, each on the set that its contender takes for it."""
        picked = self._picked(contender, texts)
        out: list[Any] = [None] * len(texts)
        for i, (layers, healing) in enumerate(contender.sets):
            own = [j for j, p in enumerate(picked) if p == i]
            if own:
                with executing(contender.student or self.loaded, layers, healing):
                    done = run([texts[j] for j in own])
                for j, result in zip(own, done, strict=True):
                    out[j] = result
        return out

    def _picked(self, contender: Contender, texts: list[str]) -> list[int]:
        if contender.name != "gates" or not texts:
            first = float(contender.weights[0, 0])
            return [int(j * GOLDEN % 1.0 >= first) for j in range(len(texts))]
        rows = [encode_prompt(self.loaded.tokenizer, text).ids for text in texts]
        ids, mask = pad_right(rows, self.loaded.pad_id, self.loaded.device)
        return self._choose(ids, mask).tolist()


def settings_of(profiles: SkipProfiles) -> HadSkipHparams:
    """How profiles were fitted.

    Args:
        profiles: The profiles.

    Returns:
        Their settings.

    Raises:
        SkipError: They do not say.
    """
    made = profiles.made_by.get("hparams")
    if not isinstance(made, Mapping):
        message = refusal("profiles that do not say how they were fitted", "what `skip fit` wrote", "Pass settings.")
        raise SkipError(message)
    return from_mapping(HadSkipHparams, made, "made_by")


def _digest(tensors: Mapping[str, Tensor]) -> str:
    from safetensors.torch import save

    return hashlib.sha256(
        save({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()})
    ).hexdigest()


def _summary(values: list[float], edits: list[int]) -> dict[str, float]:
    means = mean_by_edit(values, edits)
    low, high = bootstrap_interval(means)
    return {"mean": sum(means) / len(means) if means else 0.0, "low": low, "high": high, "n": len(means)}


def _speed(loaded: LoadedModel, gates: Contender, times: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Total time of all sequences, full over skipped, beside the limit (L + r) / (k + r) of the same mixture."""
    shares = gates.weights.mean(0).tolist()
    out = {}
    for what in ("prefill", "decode"):
        spent = sum(s * times[str(i)][what] for i, s in enumerate(shares))
        out[what] = times["full"][what] / spent
    limits = [speed_limit(loaded, own) for own, _ in gates.sets]
    out["limit"] = 1.0 / sum(s / limit for s, limit in zip(shares, limits, strict=True))
    out["reached"] = out["decode"] / out["limit"]
    return out
