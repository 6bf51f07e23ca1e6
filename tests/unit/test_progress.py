"""A bar is drawn on a terminal alone, and one that is not wanted takes nothing that processes share."""

from __future__ import annotations

import io
import threading

import pytest
from tqdm.auto import tqdm

from roseedit.progress import bar


class Terminal(io.StringIO):
    """Where bars may be drawn."""

    def isatty(self) -> bool:
        return True


def drawn(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, *, show: bool) -> str:
    """What a bar that comes to its end writes."""
    monkeypatch.setattr("sys.stderr", stream)
    with bar(2, "editing", show) as tell:
        tell(1)
        tell(1)
    return stream.getvalue()


def test_a_bar_is_drawn_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "editing" in drawn(monkeypatch, Terminal(), show=True)
    assert not drawn(monkeypatch, io.StringIO(), show=True)
    assert not drawn(monkeypatch, Terminal(), show=False)


def test_a_bar_that_is_not_wanted_waits_for_no_lock() -> None:
    """A process that is killed while it holds tqdm's lock keeps it for ever, from every process of its family."""

    def work() -> None:
        with bar(1, "editing", False) as tell:
            tell(1)

    worker = threading.Thread(target=work, daemon=True)
    with tqdm.get_lock():
        worker.start()
        worker.join(30)
        waited = worker.is_alive()
    assert not waited
