"""The list of all commands and options, from the commands themselves: ``python -m nervure.cli.write_surface``."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import click

from nervure import zoo
from nervure.budget import BUDGETS
from nervure.cli.command_group import main
from nervure.cli.commands import REWIRING
from nervure.cli.surface import FILE, Facts
from nervure.core.files import write_text
from nervure.engines import ENGINES
from nervure.evaluation.corruptions import CORRUPTIONS, GROUPS
from nervure.export import FORMATS
from nervure.methods import METHODS
from nervure.recipe.task_making import MAKERS
from nervure.scores import CRITERIA
from nervure.stats import SIGNALS

COMPLETED: Mapping[str, str] = {
    "budget": "budgets",
    "criterion": "criteria",
    "data_name": "data",
    "engine": "engines",
    "engines": "engines",
    "form": "formats",
    "method": "methods",
    "methods": "methods",
    "model": "models",
    "rewire": "rewiring",
    "shift": "corruptions",
    "task_name": "tasks",
    "want": "signals",
}
"""Parameter -> which names complete it."""
LISTS: Mapping[str, Any] = {
    "budgets": BUDGETS,
    "corruptions": ["all", *GROUPS, *CORRUPTIONS],
    "criteria": CRITERIA,
    "data": zoo.DATASETS,
    "engines": ENGINES,
    "formats": FORMATS,
    "methods": METHODS,
    "models": zoo.MODELS,
    "rewiring": REWIRING,
    "signals": SIGNALS,
    "tasks": MAKERS,
}


def describe_surface() -> str:
    """The list, a line for each command, parameter and kind of names."""
    return "".join(f"{json.dumps(facts, ensure_ascii=False)}\n" for facts in _lines())


def _lines() -> Iterator[Facts]:
    top = click.Context(main, info_name="nervure")
    for name, command in main.commands.items():
        yield {"command": name, "help": command.help, "epilog": command.epilog}
        context = click.Context(command, parent=top, info_name=name)
        for param in command.params:
            yield {key: value for key, value in _facts_of(param, context).items() if value}
    for kind, names in LISTS.items():
        yield {"names": kind, "are": sorted(names) if isinstance(names, frozenset | set) else list(names)}


def _facts_of(param: click.Parameter, context: click.Context) -> Facts:
    is_option = isinstance(param, click.Option)
    takes_method = not is_option and context.info_name == "plan"
    return {
        "parameter": param.name,
        "metavar": "" if is_option else param.make_metavar(context),
        "opts": param.opts if is_option else (),
        "off": param.secondary_opts,
        "flag": isinstance(param, click.Option) and param.is_flag,
        "multiple": param.multiple,
        "record": param.get_help_record(context) if is_option else (),
        "choices": list(param.type.choices) if isinstance(param.type, click.Choice) else (),
        "path": _kind_of_path(param.type),
        "names": "methods" if takes_method else COMPLETED.get(param.name or "", ""),
    }


def _kind_of_path(kind: Any) -> str:
    if not isinstance(kind, click.Path):
        return ""
    return "any" if kind.dir_okay and kind.file_okay else "file" if kind.file_okay else "folder"


if __name__ == "__main__":
    write_text(FILE, describe_surface())
