"""From a request's rows to its neurons: one per token of the answer, each with the direction that opens it.

Neuron t is to open where token t of the answer comes next, in every wording, and nowhere else: not on the anchors, not
on the rest of the fact's own rows, not on other facts of the same run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from roseedit.models.encoding import encode_pair
from roseedit.models.load import LoadedModel
from roseedit.requests import EditRequest
from roseedit.roselora.config import RoseLoRAHparams
from roseedit.roselora.neurons.gates import Far, ridge_fit, separators
from roseedit.roselora.neurons.mlp import Neurons, Rows, said
from roseedit.roselora.objective import Row

ANCHOR_ENDS, ANCHOR_REST, OWN_REST = 0.5, 0.25, 0.25  # mass of the kinds of silence; all facts have 1
OTHER = 0.005  # mass of each place elsewhere that comes within the margin
ECHO = 0.05  # of one at which the model is about to say what it says at the request
FIRST = 0.5  # of the facts' mass on the request's own prompt
FIRM = 0.3  # quantile of the facts that opens fully
LEAST = 0.1  # a separator may fail; its answer is then not blown up any further


@dataclass(frozen=True)
class Opened:
    """The inward side of one request's neurons.

    Attributes:
        opens: Their opening rows.
        carries: Their carrying rows, in a gated MLP.
        gain: (R,), what a neuron says is multiplied with it, so that it is 1 on the fact on average.
    """

    opens: Rows
    carries: Rows | None
    gain: Tensor


@dataclass
class Points:
    """The places of one request at which its neurons are asked.

    Attributes:
        x: (n, d_in), its own and its anchors'.
        token: (n,) which token of the answer comes next, -1 where none does.
        mass: (n,) as silent places.
        fact_mass: (n,) as places of their token.
        far: Places elsewhere.
    """

    x: Tensor
    token: Tensor
    mass: Tensor
    fact_mass: Tensor
    far: Far


def neurons_for(loaded: LoadedModel, request: EditRequest, hparams: RoseLoRAHparams) -> int:
    """How many neurons a request takes where its answer is asked, before any row of it is built."""
    encoded = encode_pair(loaded.tokenizer, request.prompt, request.target_new, end_mark=hparams.end_mark)
    return min(len(encoded.target), hparams.most_neurons)


def answer_length(rows: Sequence[Row], most: int) -> int:
    """How many neurons a request takes: one per token of its answer, the rest of a long one on the last."""
    return min(most, max(len(row.labels) for row in rows))


def elsewhere(x: Tensor, left_out: Tensor | None = None, echoes: Tensor | None = None) -> Far:
    """Places that are not a request's own, each with its weight.

    Args:
        x: (m, d_in), in ordinary text and of other facts.
        left_out: (m,) bool, those that do not count.
        echoes: (e, d_in), places at which the same is about to be said.

    Returns:
        Them.
    """
    mass = x.new_full((len(x),), OTHER)
    if left_out is not None:
        mass[left_out] = 0.0
    if echoes is None:
        return Far((x,), mass)
    return Far((x, echoes), torch.cat([mass, x.new_full((len(echoes),), ECHO)]))


def points_of(rows: Sequence[Row], inputs: Sequence[Tensor], count: int, far: Far) -> Points:
    """Gather a request's places.

    Args:
        rows: Its rows, its own prompt first.
        inputs: Per row what enters the MLP.
        count: Neurons of the request.
        far: Places elsewhere.

    Returns:
        The places.
    """
    facts = [(row, x) for row, x in zip(rows, inputs, strict=True) if row.labels]
    silent_rows = [(row, x) for row, x in zip(rows, inputs, strict=True) if not row.labels]
    anchors, n_own = [x for _, x in silent_rows], sum(len(x) for _, x in facts)
    ends, rest = [x[-1:] for x in anchors], [x[:-1] for x in anchors]
    sizes = n_own, len(ends), sum(map(len, rest))
    each = OWN_REST / n_own, ANCHOR_ENDS / max(1, sizes[1]), ANCHOR_REST / max(1, sizes[2])
    silent, device = sum(sizes[1:]), far.mass.device
    seen = [*(_seen(row, len(x)) for row, x in facts), *(_seen(row, len(x))[-1:] for row, x in silent_rows)]
    seen += [_seen(row, len(x))[:-1] for row, x in silent_rows]
    token = torch.cat([*(_token_at(row, len(x), count) for row, x in facts), torch.full((silent,), -1)])
    points = Points(
        x=torch.cat([*(x for _, x in facts), *ends, *rest]),
        token=token.to(device),
        mass=torch.cat([torch.full((n,), m) for n, m in zip(sizes, each, strict=True)]).to(device),
        fact_mass=_fact_mass(token, len(facts[0][1]), count).to(device),
        far=far,
    )
    return _each_once(points, list(chain(*seen)))


def _seen(row: Row, count: int) -> list[tuple[int, ...]]:
    """What each of a row's last tokens has before it, itself included."""
    return [row.ids[:end] for end in range(len(row.ids) - count + 1, len(row.ids) + 1)]


def _each_once(points: Points, seen: Sequence[tuple[int, ...]]) -> Points:
    """Places with the same tokens before them, as rows that begin alike have, are one. Their masses add up."""
    first: dict[tuple[tuple[int, ...], int], int] = {}
    place = [first.setdefault(key, len(first)) for key in zip(seen, points.token.tolist(), strict=True)]
    at = torch.tensor(place, device=points.mass.device)
    some = torch.tensor([place.index(n) for n in range(len(first))], device=at.device)

    def total(mass: Tensor) -> Tensor:
        return mass.new_zeros(len(first)).index_add_(0, at, mass)

    return Points(points.x[some], points.token[some], total(points.mass), total(points.fact_mass), points.far)


def _fact_mass(token: Tensor, own: int, count: int) -> Tensor:
    """(n,) mass of each place of a token; the other wordings that have it share what the `own` first places leave."""
    out = torch.zeros(len(token))
    for t in range(count):
        here, there = (token[:own] == t).nonzero()[:, 0], own + (token[own:] == t).nonzero()[:, 0]
        out[here] = FIRST if len(there) else 1.0
        out[there] = (1 - FIRST) * len(here) / max(1, len(there))
    return out


def _token_at(row: Row, length: int, count: int) -> Tensor:
    out = torch.full((length,), -1)
    for t, column in enumerate(row.columns):
        out[column] = min(t, count - 1)
    return out


@torch.no_grad()
def opened(  # noqa: PLR0917 - one call site
    points: Points,
    count: int,
    neurons: Neurons,
    biases: tuple[Tensor, Tensor],
    hparams: RoseLoRAHparams,
    threshold: float,
) -> Opened:
    """Fit the inward rows of one request's neurons.

    Args:
        points: Its places.
        count: R.
        neurons: The layer's neurons.
        biases: (R,) twice, what the chosen neurons add before their activation and to what they carry.
        hparams: The settings.
        threshold: Where the neurons open; the fact is at 1.

    Returns:
        The rows.
    """
    x, ridge, rounds = points.x, hparams.gate_ridge, hparams.gate_rounds
    here = points.token[None] == torch.arange(count, device=x.device)[:, None]
    mass, wanted = torch.where(here, points.fact_mass, points.mass), torch.where(here, 1.0, -1.0)
    w = separators(x, wanted, mass, points.far, hparams.gate_margin, ridge=ridge, rounds=rounds)
    one = ridge_fit(x, torch.ones_like(mass[0]), mass[0], ridge)
    z = w @ x.mT
    firm = torch.stack([row[on].quantile(FIRM) for row, on in zip(z, here, strict=True)]).clamp(min=LEAST)
    rows = hparams.gate_slope * (w / firm[:, None] - threshold * one)
    opens = Rows(rows - biases[0][:, None] * one, biases[0])
    carries = Rows((1 - biases[1])[:, None] * one, biases[1]) if neurons.carries else None
    out = said(neurons, x, opens, carries).mT
    mean = torch.stack([row[on].mean() for row, on in zip(out, here, strict=True)])
    gain = 1 / torch.where(mean.abs() > 1e-3, mean, 1.0)
    if carries is None:
        return Opened(opens, None, gain)
    scaled = Rows(gain[:, None] * (carries.weight + biases[1][:, None] * one) - biases[1][:, None] * one, biases[1])
    return Opened(opens, scaled, torch.ones_like(gain))
