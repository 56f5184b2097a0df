"""Which edits of a plan cannot be made: families of alike edits are tried as one, halves of what fails after it."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from nervure.graph.types import Graph
from nervure.plan import Cut, Drop

Edit: TypeAlias = Cut | Drop
Try: TypeAlias = Callable[[Sequence[Edit]], str]
"""Makes some edits together; why they do not compute the right thing, empty where they do."""


def name_of(edit: Edit) -> str:
    """The group that is cut, or the block that is dropped."""
    return edit.group if isinstance(edit, Cut) else edit.block


def families_of(graph: Graph, edits: Iterable[Edit]) -> list[list[Edit]]:
    """Edits of alike groups (or blocks), which differ by numbers in their names, together."""
    families: dict[tuple[str, int], list[Edit]] = {}
    for edit in edits:
        size = graph[edit.group].size if isinstance(edit, Cut) else 0
        families.setdefault((re.sub(r"\d+", "*", name_of(edit)), size), []).append(edit)
    return list(families.values())


def wrong_edits(attempt: Try, families: Sequence[Sequence[Edit]]) -> dict[Edit, str]:
    """The edits that have to go so that the rest computes the right thing, each with the reason."""
    edits = [edit for family in families for edit in family]
    reason = attempt(edits) if edits else ""
    if not reason:
        return {}
    if len(edits) == 1:
        return {edits[0]: reason}
    if len(families) == 1:
        return _wrong_of_family(attempt, edits)
    half = len(families) // 2
    wrong = wrong_edits(attempt, families[:half]) | wrong_edits(attempt, families[half:])
    rest = [edit for edit in edits if edit not in wrong]
    together = attempt(rest) if rest else ""
    # Each half may be right alone and wrong with the other: then what came second has to stay.
    second = {edit for family in families[half:] for edit in family}
    return wrong | {edit: together for edit in rest if together and edit in second}


def _wrong_of_family(attempt: Try, edits: Sequence[Edit]) -> dict[Edit, str]:
    reason = attempt(edits[:1])
    if reason:
        # The members of a family are alike: where the first fails, so do the rest.
        return dict.fromkeys(edits, reason)
    return wrong_edits(attempt, [[edit] for edit in edits])
