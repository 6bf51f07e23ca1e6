"""`python -m roseedit.cli` is `roseedit`."""

from roseedit.cli.app import main

main()
