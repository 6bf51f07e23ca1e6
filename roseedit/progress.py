"""Progress bars on a terminal, nothing elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(total: int, what: str, show: bool, done: float = 0) -> Iterator[Callable[[float], None]]:
    """A bar for the length of a block.

    Args:
        total: How much there is to do.
        what: Its label.
        show: False draws nothing.
        done: How much was done before; left out of the time that is still to come.

    Yields:
        A function that is told how much has just been done.
    """
    if not show:
        # Even a disabled tqdm takes a lock that processes share: one that is killed while it holds it hangs the others.
        yield lambda _: None
        return
    from tqdm.auto import tqdm

    layout = "{l_bar}{bar}| {n:.0f}/{total} [{elapsed}<{remaining}]"
    with tqdm(total=total, initial=done, desc=what, disable=None, bar_format=layout, leave=False) as shown:

        def tell(done: float) -> None:
            shown.update(done)

        yield tell
