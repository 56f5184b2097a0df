"""The command line: one sub-command per arrow, and ``run`` for all of them."""

from nervure.cli.command_group import main

__all__ = ["main"]
