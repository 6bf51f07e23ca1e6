"""Where in a model a method works: settings that all methods share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from roseedit.models.anatomy import Anatomy

Layers = str | tuple[int, ...]


def place_faults(layers: Layers, depth: Sequence[float], modules: Sequence[str]) -> Iterator[str]:
    """What is wrong with a place.

    Args:
        layers: Layer indices, `"all"`, or `"auto"` (by depth).
        depth: First and last layer of `"auto"`, as shares of depth.
        modules: Roles or exact module names.

    Yields:
        One message per fault.
    """
    if isinstance(layers, str) and layers not in ("auto", "all"):
        yield f"got layers {layers!r}; allowed: 'auto', 'all' or a list of indices. Change it"
    if len(depth) != 2 or depth[0] > depth[1]:
        yield f"got depth {list(depth)}; allowed: two shares in rising order. Change it"
    if not layers or not modules:
        yield "got no layers or no modules; allowed: at least one of each. Name them"


def indices_of(layers: Layers, depth: Sequence[float], anatomy: Anatomy) -> tuple[int, ...]:
    """The layers that a place means in a model.

    Args:
        layers: As in `place_faults`.
        depth: Likewise.
        anatomy: The model's parts.

    Returns:
        Indices in rising order.
    """
    if not isinstance(layers, str):
        return tuple(sorted(set(layers)))
    if layers == "all":
        return tuple(range(anatomy.n_layers))
    first, last = (round(share * (anatomy.n_layers - 1)) for share in depth)
    return tuple(range(first, last + 1))
