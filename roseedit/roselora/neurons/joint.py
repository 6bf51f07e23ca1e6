"""Joint runs with neurons: facts in batches, layer by layer, each fitted on what those before made of the model."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from roseedit.errors import CapacityError, refusal
from roseedit.models.load import LoadedModel
from roseedit.requests import EditRequest
from roseedit.roselora.config import RoseLoRAHparams
from roseedit.roselora.neurons.facts import neurons_for
from roseedit.roselora.neurons.kept import NOTHING, Kept
from roseedit.roselora.neurons.layer import JointLayer
from roseedit.roselora.neurons.parts import merged, wearing
from roseedit.roselora.trainer import Progress, Trained, share_of

FEW = 8  # facts of a joint run that need no more ordinary text than one does
FACTS = 100  # of a joint run at a time; each further batch is fitted on what the ones before have made of the model


def train_joint(
    loaded: LoadedModel,
    requests: Sequence[EditRequest],
    hparams: RoseLoRAHparams,
    progress: Progress | None = None,
    kept: Kept = NOTHING,
) -> Trained:
    """All requests in one delta.

    Of many facts those with a subject may come first, in lower layers and where their subjects end (`many_at`).

    Args:
        loaded: The model; left as it was.
        requests: The requests.
        hparams: The settings.
        progress: Called with the number of requests just done, in fractions.
        kept: Facts at subjects that an earlier run has fitted; they stay as they are, and are part of the result.

    Returns:
        One result; its `probability` is that of the worst request.

    Raises:
        CapacityError: The layers have too few neurons to spare.
    """
    many = len(requests) + len(kept.requests) > FEW
    named = [many and hparams.many_at == "subject" and bool(request.subject) for request in requests]
    parts: list[Trained] = []
    for at_subject in (True, False):
        group = [request for request, own in zip(requests, named, strict=True) if own == at_subject]
        _fill(
            loaded, group, hparams, parts, progress, kept if at_subject else NOTHING, wide=many, at_subject=at_subject
        )
    return merged(parts)


def _fill(  # noqa: PLR0917 - one call site
    loaded: LoadedModel,
    group: Sequence[EditRequest],
    hparams: RoseLoRAHparams,
    parts: list[Trained],
    progress: Progress | None,
    kept: Kept,
    *,
    wide: bool,
    at_subject: bool,
) -> None:
    """Add the parts of some requests, each trained on what the parts before it have made of the model."""
    wanted = [1 if at_subject else neurons_for(loaded, request, hparams) for request in group]
    layers = _layers(loaded, hparams, wanted, kept, wide=wide, at_subject=at_subject) if group or kept.requests else []
    shares = _shares([layer.left for layer in layers], wanted, whole=at_subject)
    ends = itertools.accumulate(shares)
    spans = [(layer, end - n, end) for layer, n, end in zip(layers, shares, ends, strict=True)]
    for layer, start, end in spans:
        layer.expect(sum(wanted[start:end]))
    for layer, start, end in spans:
        before = list(parts)
        parts += layer.kept
        for first in range(start, end, FACTS):
            some = group[first : min(first + FACTS, end)]
            with wearing(loaded, parts):
                parts.append(layer.train(some, [*kept.requests, *group[:first]], share_of(len(some), progress)))
        with wearing(loaded, before):  # the layer's neurons as they were
            parts += layer.completed()


def _layers(
    loaded: LoadedModel,
    hparams: RoseLoRAHparams,
    wanted: Sequence[int],
    kept: Kept,
    *,
    wide: bool,
    at_subject: bool,
) -> list[JointLayer]:
    """As many layers as it takes, rising: what is fitted later must not move what earlier neurons see.

    At subjects the lowest come first, which facts that are kept may have begun to fill; elsewhere the highest do.
    """
    indices = hparams.subject_indices(loaded.anatomy) if at_subject else hparams.layer_indices(loaded.anatomy)
    layers: list[JointLayer] = []
    for index in sorted(indices, reverse=not at_subject):
        layer = JointLayer(loaded, index, hparams, kept, wide=wide, at_subject=at_subject)
        layers = sorted([*layers, layer], key=lambda one: one.neurons.layer)
        enough = sum(_shares([one.left for one in layers], wanted)) == len(wanted)
        if enough and kept.layers <= {one.neurons.layer for one in layers}:
            return layers
    got = f"facts for {sum(wanted)} neurons, with {sum(layer.left for layer in layers)} free in all"
    more = "subject_layers" if at_subject else "layers"
    raise CapacityError(refusal(got, "facts that fit", f"Raise `pool`, name more `{more}`, or ask for fewer."))


def _shares(left: Sequence[int], wanted: Sequence[int], *, whole: bool = False) -> list[int]:
    """How many facts go to each layer when they come in order and a layer is left once the next does not fit.

    `whole`: batches are not split between layers where there is room to spare, so that facts which come batch by batch,
    each kept when the next is made, are batched as they are when all come at once.
    """

    def shared(step: int) -> list[int]:
        shares: list[int] = []
        for free in left:
            rest = wanted[sum(shares) :]
            fit = sum(total <= free for total in itertools.accumulate(rest))
            shares.append(fit if fit == len(rest) else fit // step * step)
        return shares

    in_batches = shared(FACTS if whole else 1)
    return in_batches if sum(in_batches) == len(wanted) else shared(1)
