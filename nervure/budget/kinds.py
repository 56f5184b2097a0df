"""The kinds of budgets by name; methods, recipes, studies and the command line look them up here.

A new kind is one value in a file of its own, and its line in ``BUDGETS``; one of your own needs no line: it is given
itself, or as ``"package.module:name"``.
"""

from collections.abc import Mapping
from typing import Annotated, TypeAlias

from nervure.budget.budget import Budget
from nervure.budget.memory_budget import MEMORY
from nervure.core.annotations import Among, Meets
from nervure.core.check import nearest, show_value
from nervure.core.importing import import_named, is_import_path
from nervure.errors import ArgumentError

TIME: Mapping[str, float] = {"ms": 1e-3, "s": 1.0, "us": 1e-6}
BUDGETS: Mapping[str, Budget] = {
    budget.name: budget
    for budget in (
        Budget("channels", "channels of prunable groups"),
        Budget("params", "parameters", lambda costs: costs.params),
        Budget("macs", "multiply-accumulates", lambda costs: costs.macs),
        Budget("latency", "seconds on an engine", is_timed=True, units=TIME, noun="time"),
        MEMORY,
    )
}
COUNTED = tuple(name for name, budget in BUDGETS.items() if not budget.is_timed)
"""Names of the budgets that are known without an engine."""
ALWAYS = ("channels", "params", "macs")
"""What a plan says of itself, whatever it was made for."""
OwnBudget: TypeAlias = Annotated[str, Meets(is_import_path, '"package.module:name"')] | Budget
BudgetName: TypeAlias = Annotated[str, Among(BUDGETS)] | OwnBudget
CountedName: TypeAlias = Annotated[str, Among(COUNTED)] | OwnBudget


def find_budget(budget: str | Budget) -> Budget:
    """The kind of that name in ``BUDGETS``, or at ``"package.module:name"``; a budget itself is what it is.

    Raises:
        ArgumentError: there is none.
    """
    if isinstance(budget, Budget):
        return budget
    if not is_import_path(budget):
        if budget not in BUDGETS:
            raise ArgumentError(f"budget {show_value(budget)} is unknown.{nearest(budget, BUDGETS, listed=True)}")
        return BUDGETS[budget]
    found: Budget = import_named(budget, "budget", expected="Budget", fits=lambda thing: isinstance(thing, Budget))
    return found


def read_budget(text: str | Budget) -> tuple[str | Budget, str | None]:
    """A budget, and how much of it where ``text`` says an amount of one in its unit: ``"200 MB"``.

    >>> read_budget("1.5 GiB"), read_budget("macs")
    (('memory', '1.5 GiB'), ('macs', None))
    """
    if not isinstance(text, Budget) and not is_known(text):
        unit = text.strip().lstrip("0123456789. ").lower()
        for kind in BUDGETS.values():
            if unit != text.lower() and unit in map(str.lower, kind.units):
                return kind.name, text
    return text, None


def is_known(budget: str | Budget) -> bool:
    """Whether that is a kind that :func:`find_budget` can find, not a name of another family of methods."""
    return isinstance(budget, Budget) or budget in BUDGETS or is_import_path(budget)


def is_timed(budget: str | Budget) -> bool:
    """Whether that budget is timed on an engine; names of other families of methods are not."""
    return is_known(budget) and find_budget(budget).is_timed
