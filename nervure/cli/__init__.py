"""The command line: one sub-command per arrow, and ``run`` for all of them."""

from nervure.cli.commands import main

__all__ = ["main"]
