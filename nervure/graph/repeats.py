"""Groups that say the same of each layer: their names differ by the layer's number, or one number of a config says all.

Where the groups of a family keep the same number of units, a config can say it, and libraries build the layers alike.
"""

from collections.abc import Iterable

from nervure.graph.types import Graph, Group


def repeated_groups(graph: Graph, groups: Iterable[Group]) -> list[list[str]]:
    """The names of groups by family, in running order; a group alone is a family of one.

    ``layers.0.up`` and ``layers.1.up`` are one family where both have as many units; so are groups of one size that the
    same number of a config stands for, as of encoder and decoder.
    """
    own = {group.name: group for group in groups}
    family: dict[str, list[str]] = {}
    by_place: dict[tuple[str, str, int], list[str]] = {}
    for name, group in own.items():
        family[name] = by_place.setdefault((_without_numbers(name), group.kind, group.size), [])
        family[name].append(name)
    for said in graph.declared:
        _unite(family, [name for name in said.groups if name in own], own)
    return list({id(names): names for names in family.values()}.values())


def _unite(family: dict[str, list[str]], names: list[str], own: dict[str, Group]) -> None:
    """Make one family of those of the same size."""
    first: dict[tuple[str, int], str] = {}
    for name in names:
        mate = first.setdefault((own[name].kind, own[name].size), name)
        if family[mate] is not family[name]:
            family[mate] += family[name]
            for moved in family[name]:
                family[moved] = family[mate]


def _without_numbers(name: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in name.split("."))
