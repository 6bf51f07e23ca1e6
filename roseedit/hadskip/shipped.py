"""Gates that come with the package, by model and budget."""

from __future__ import annotations

from pathlib import Path

from roseedit.errors import ProfileFileError, SkipError, near_names, refusal

DEFAULT_BUDGET = 0.75  # of the gates that are taken when none is asked for
ROOT = Path(__file__).resolve().parent / "gates"


def shipped_gates(model: str) -> dict[float, Path]:
    """The gates that ship for a model.

    Args:
        model: As given to `load_model`; the last part of a hub id or path counts, in lower case.

    Returns:
        Folder by budget, the largest budget first; empty when there are none.
    """
    stem = Path(model).name.casefold()
    named = [(*p.parent.name.rpartition("-"), p.parent) for p in ROOT.glob("*/profiles.json")]
    found = {float(budget): folder for name, _, budget, folder in named if name == stem}
    return {budget: found[budget] for budget in sorted(found, reverse=True)}


def gates_for(model: str, budget: float | None = None) -> Path:
    """The shipped gates that serve a model within a budget.

    Args:
        model: As given to `load_model`.
        budget: Most cost share; None for the usual one.

    Returns:
        Folder of those that were fitted for the largest budget within it, or for the smallest one that ships.

    Raises:
        SkipError: None ship for the model.
    """
    shipped = shipped_gates(model)
    if not shipped:
        known = ", ".join(sorted(p.name for p in ROOT.glob("*") if p.is_dir()))
        message = refusal(
            f"no gates for {model!r}, for which none ship",
            f"a folder of fitted gates{f'; {known} ship' if known else ''}",
            f"Fit some: roseedit skip fit --model {model} --budget {budget or DEFAULT_BUDGET} --out DIR.",
        )
        raise SkipError(message)
    wanted = DEFAULT_BUDGET if budget is None else budget
    return shipped[max((b for b in shipped if b <= wanted), default=min(shipped))]


def find_gates(name: str | Path) -> Path:
    """A folder of gates by its path, or by its name among those that ship.

    Args:
        name: A folder, or e.g. `smollm2-135m-0.75`.

    Returns:
        The folder.

    Raises:
        ProfileFileError: Neither.
    """
    if Path(name).is_dir():
        return Path(name)
    if (ROOT / str(name) / "profiles.json").is_file():
        return ROOT / str(name)
    known = [p.name for p in ROOT.glob("*") if p.is_dir()]
    hint = near_names(str(name), known) if known else "Fit some: roseedit skip fit."
    raise ProfileFileError(
        refusal(f"gates {str(name)!r}, which do not exist", "a folder, or the name of shipped gates", hint)
    )
