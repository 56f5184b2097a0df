"""All commands with their options, written down: help and completion need nothing else.

The list is ``surface.jsonl``: a line for each command, one for each of its parameters below it, and the names that
complete them. ``python -m nervure.cli.write_surface`` writes it anew; a test compares it with the commands.
"""

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import click
from click.shell_completion import CompletionItem

FILE = Path(__file__).with_name("surface.jsonl")
Facts: TypeAlias = dict[str, Any]


@cache
def listed_commands() -> Mapping[str, click.Command]:
    """What stands for the commands, in their order: enough for help and completion."""
    lines = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
    names = {line["names"]: line["are"] for line in lines if "are" in line}
    commands: dict[str, click.Command] = {}
    for facts in lines:
        if "command" in facts:
            command = click.Command(facts["command"], help=facts["help"], epilog=facts["epilog"], params=[])
            commands[facts["command"]] = command
        elif "parameter" in facts:
            command.params.append(_stand_in(facts, names))
    return commands


def _stand_in(facts: Facts, names: Mapping[str, list[str]]) -> click.Parameter:
    """What stands for a parameter; keys that say nothing are left out of the list."""
    kind = {"file": click.Path(dir_okay=False), "folder": click.Path(file_okay=False), "any": click.Path()}
    known = names[facts["names"]] if "names" in facts else facts.get("choices")
    common: Facts = {"type": kind.get(facts.get("path", ""), click.STRING), "shell_complete": _completer(known)}
    if "record" not in facts:
        return click.Argument([facts["parameter"]], metavar=facts["metavar"], required=False, **common)
    if facts.get("flag"):
        return _ListedOption(facts, is_flag=True)
    return _ListedOption(facts, multiple=bool(facts.get("multiple")), **common)


class _ListedOption(click.Option):
    """An option whose line of help is written down."""

    def __init__(self, facts: Facts, **more: Any) -> None:
        on, off = facts["opts"], facts.get("off", [])
        names = ["/".join(pair) for pair in zip(on, off, strict=True)] if off else on
        super().__init__([facts["parameter"], *names], **more)
        self._record = facts["record"]

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The line of the option that this one stands for."""
        left, right = self._record
        return left, right


def _completer(names: list[str] | None) -> Callable[..., list[CompletionItem]] | None:
    if names is None:
        return None

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in names if name.lower().startswith(incomplete.lower())]

    return complete
