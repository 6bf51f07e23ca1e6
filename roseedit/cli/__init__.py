"""The command line: one file per command. The only place of the package that prints."""

from roseedit.cli.app import app, main
from roseedit.cli.edit import show_result

__all__ = ["app", "main", "show_result"]
