"""Where the command line prints: one console for results, one for complaints."""

from __future__ import annotations

from rich.console import Console

out = Console(emoji=False)
err = Console(stderr=True, emoji=False)
