"""The house, measured from its syntax trees.

``python docs/house.py`` prints what breaks its rules, and fails where something does. What no rule can judge, the
longest functions, is only shown.
"""

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeAlias

PACKAGE = Path(__file__).parent.parent / "nervure"

# The first part of a module's name below the package -> its floor. The package itself ("") is the roof.
FLOORS: Mapping[str, int] = {
    "dependence": 0,
    "errors": 0,
    "core": 0,
    "plan": 1,
    "graph": 1,
    "rules": 2,
    "stats": 2,
    "tasks": 2,
    "scores": 2,
    "budget": 2,
    "surgery": 3,
    "analysis": 3,
    "tracing": 4,
    "refit": 4,
    "training": 4,
    "engines": 4,
    "evaluation": 4,
    "methods": 5,
    "sparse": 5,
    "integrations": 5,
    "distributed": 5,
    "prune": 6,
    "streaming": 6,
    "smallest": 6,
    "export": 6,
    "recipe": 6,
    "report": 6,
    "cli": 6,
    "__main__": 6,
    "": 6,
}
ROOF = 6
# Reference models and data stand beside the house: they lean on the ground floor, and only the roof looks at them.
ZOO_MAY_IMPORT = {"zoo", "errors", "core"}

CLASSES_TWICE: Mapping[str, str] = {
    "HoldMasks": "one for Lightning, one for transformers: each is the one name that a user of that library needs",
    "BasicBlock": "the block of both families of residual networks in the zoo, named as their papers name it",
}
"""Class names that may stand twice, and why."""
FILES_TWICE: Mapping[str, str] = {
    "survey.py": "what SNACS and refit each ask of a network before they act",
}
"""File names that may stand twice, and why."""

_PARTICIPLES = (
    "[a-z]+ed|begun|bent|bound|broken|brought|built|caught|chosen|done|drawn|driven|fallen|felt|found|frozen|given|gone|"
    "grown|held|hidden|kept|known|laid|led|left|lost|made|meant|met|paid|rewritten|said|seen|sent|shown|shrunk|sold|"
    "spent|spoken|stood|struck|sunk|taken|taught|thought|thrown|told|torn|undone|unseen|won|worn|woven|written"
)
_SMALL_WORDS = (
    "after|again|alike|alone|apart|as|at|away|back|beside|between|by|for|from|in|like|of|off|on|once|out|over|to|twice|"
    "up|with|within|without"
)
PAST = re.compile(f"({_PARTICIPLES})(_({_SMALL_WORDS}))*")
NOT_PAST = frozenset({"bed", "embed", "exceed", "feed", "need", "proceed", "red", "seed", "shed", "speed", "succeed"})
"""Verbs and nouns that are spelled like participles."""
MOST_PAST = 0.05
"""The share of functions that may be named so: a property such as ``pinned`` is a state, and well named."""

Module: TypeAlias = tuple[str, ...]
Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


class Import(NamedTuple):
    """One import of one module of the package by another."""

    place: str
    source: Module
    target: Module
    runs: bool
    """Not so where it is for type checkers only."""

    def __str__(self) -> str:
        return f"{self.place}: {'.'.join(self.source)} imports {'.'.join(self.target)}"


@dataclass(frozen=True)
class House:
    """A package, read file by file, each once."""

    package: Path = PACKAGE

    @cached_property
    def trees(self) -> Mapping[Path, ast.Module]:
        """The syntax tree of every file."""
        return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(self.package.rglob("*.py"))}

    @cached_property
    def nodes(self) -> tuple[tuple[Path, ast.AST], ...]:
        """Every import, class and function with its file."""
        kinds = (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        pairs = ((path, node) for path, tree in self.trees.items() for node in walk_statements(tree.body))
        return tuple((path, node) for path, node in pairs if isinstance(node, kinds))

    @cached_property
    def functions(self) -> tuple[tuple[Path, Function], ...]:
        """Every function with its file, inner ones and methods too."""
        return tuple((path, node) for path, node in self.nodes if isinstance(node, Function))

    @cached_property
    def imports(self) -> tuple[Import, ...]:
        """Every import of the package by itself, those inside functions and those for types only too."""
        return tuple(self._imports())

    def _imports(self) -> Iterator[Import]:
        idle = {id(inner) for tree in self.trees.values() for inner in _for_types_only(tree)}
        for path, node in self.nodes:
            if isinstance(node, ast.Import | ast.ImportFrom):
                source = self.module(path)
                package = source if path.name == "__init__.py" else source[:-1]
                for target in self.targets(node, package):
                    if target[:1] == (self.package.name,):
                        yield Import(self.place(path, node.lineno), source, target, id(node) not in idle)

    def place(self, path: Path, line: int) -> str:
        """A place in a file, as editors take it."""
        return f"{path.relative_to(self.package.parent)}:{line}"

    def module(self, path: Path) -> Module:
        """Module name of a file, as its parts: nervure/graph/__init__.py is (nervure, graph)."""
        parts = path.relative_to(self.package.parent).with_suffix("").parts
        return parts[:-1] if parts[-1] == "__init__" else parts

    def is_module(self, module: Module) -> bool:
        """Whether the package has a module of that name."""
        path = self.package.parent.joinpath(*module)
        return path.is_dir() or path.with_suffix(".py").is_file()

    def targets(self, node: ast.Import | ast.ImportFrom, package: Module) -> Iterator[Module]:
        """Names of the modules that an import statement in ``package`` reaches."""
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
            return
        above = package[: len(package) - node.level + 1] if node.level else ()
        base = above + tuple(node.module.split(".") if node.module else ())
        for alias in node.names:
            yield (*base, alias.name) if self.is_module((*base, alias.name)) else base

    @cached_property
    def arrows(self) -> Mapping[str, frozenset[str]]:
        """For every room (the first part of a module's name) the other rooms that it imports."""
        found: dict[str, set[str]] = {room(self.module(path)): set() for path in self.trees}
        for each in self.imports:
            found[room(each.source)].add(room(each.target))
        return {source: frozenset(targets - {source}) for source, targets in found.items()}


def walk_statements(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """The statements and those inside them; expressions, which hold none, are passed by."""
    for node in nodes:
        yield node
        for name in ("body", "handlers", "orelse", "finalbody", "cases"):
            inner = getattr(node, name, None)
            if isinstance(inner, list):
                yield from walk_statements(inner)


def _for_types_only(tree: ast.Module) -> Iterator[ast.stmt]:
    """The statements below ``if TYPE_CHECKING:``."""
    for node in tree.body:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            yield from node.body


HOUSE = House()


def room(module: Module) -> str:
    """The part of the house that a module belongs to: its name's first component below the package."""
    return module[1] if len(module) > 1 else ""


def is_allowed(source: str, target: str) -> bool:
    """Whether room ``source`` may import room ``target``."""
    if source == target:
        return True
    if source == "zoo":
        return target in ZOO_MAY_IMPORT
    if target == "zoo":
        return FLOORS[source] == ROOF
    return FLOORS[target] <= FLOORS[source]


def circles(arrows: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """The sets of nodes that reach one another, each sorted (Tarjan, "Depth-first search", 1972)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        number[node] = lowest[node] = len(number)
        path.append(node)
        for target in arrows.get(node, ()):
            if target not in number:
                visit(target)
            if target in path:
                lowest[node] = min(lowest[node], lowest[target])
        if lowest[node] == number[node]:
            at = path.index(node)
            if len(path) - at > 1:
                found.append(sorted(path[at:]))
            del path[at:]

    for node in arrows:
        if node not in number:
            visit(node)
    return found


def find_homeless_rooms(house: House) -> list[str]:
    """Rooms without a floor."""
    return sorted(f"{name}: give it a floor in docs/house.py" for name in house.arrows.keys() - FLOORS.keys() - {"zoo"})


def find_imports_upwards(house: House) -> list[str]:
    """Imports that go up the stairs; what has no floor is told elsewhere."""
    known = FLOORS.keys() | {"zoo"}
    pairs = [(each, room(each.source), room(each.target)) for each in house.imports]
    return [str(e) for e, source, target in pairs if {source, target} <= known and not is_allowed(source, target)]


def find_room_circles(house: House) -> list[str]:
    """Rooms that import each other in a circle."""
    return [" <-> ".join(found) for found in circles(house.arrows)]


def find_file_circles(house: House) -> list[str]:
    """Files that import each other in a circle; imports that are for type checkers only do not count."""
    arrows: dict[str, list[str]] = defaultdict(list)
    for each in house.imports:
        if each.runs and each.source != each.target:
            arrows[".".join(each.source)].append(".".join(each.target))
    return [" <-> ".join(found) for found in circles(arrows)]


def find_class_names_twice(house: House) -> list[str]:
    """Names of classes that stand in two files."""
    places = [
        (node.name, house.place(path, node.lineno)) for path, node in house.nodes if isinstance(node, ast.ClassDef)
    ]
    return _find_twice(places, CLASSES_TWICE)


def find_file_names_twice(house: House) -> list[str]:
    """Names of files that stand in two folders."""
    places = [(path.name, str(path.relative_to(house.package.parent).parent)) for path in house.trees]
    return _find_twice([(name, place) for name, place in places if name != "__init__.py"], FILES_TWICE)


def _find_twice(places: Iterable[tuple[str, str]], reasons: Mapping[str, str]) -> list[str]:
    found: dict[str, list[str]] = defaultdict(list)
    for name, place in places:
        found[name].append(place)
    # Three in place of two is not what the reason was given for.
    return [f"{name}: {', '.join(at)}" for name, at in found.items() if len(at) > 1 + (name in reasons)]


def find_needless_reasons(house: House) -> list[str]:
    """Reasons that are given for names that no longer stand twice."""
    classes = [node.name for _, node in house.nodes if isinstance(node, ast.ClassDef)]
    files = [path.name for path in house.trees]
    pairs = [(name, classes) for name in CLASSES_TWICE] + [(name, files) for name in FILES_TWICE]
    return [
        f"{name} stands once: strike it from the list in docs/house.py" for name, all_ in pairs if all_.count(name) == 1
    ]


def is_past(name: str) -> bool:
    """Whether a function's name is a past participle, alone or with a small word (``left_alone``)."""
    bare = name.strip("_")
    return bare.split("_")[0] not in NOT_PAST and PAST.fullmatch(bare) is not None


def find_past_participles(house: House) -> list[str]:
    """Functions named by a past participle, where they are too many."""
    past = [f"{house.place(path, node.lineno)}: {node.name}" for path, node in house.functions if is_past(node.name)]
    return past if len(past) > MOST_PAST * len(house.functions) else []


RULES: Mapping[str, Callable[[House], list[str]]] = {
    "rooms without a floor": find_homeless_rooms,
    "imports that go up": find_imports_upwards,
    "circles of rooms": find_room_circles,
    "circles of files": find_file_circles,
    "class names that stand twice": find_class_names_twice,
    "file names that stand twice": find_file_names_twice,
    "reasons that no name needs": find_needless_reasons,
    f"functions named by a past participle, above {MOST_PAST:.0%}": find_past_participles,
}


def longest_functions(house: House, count: int = 5) -> list[str]:
    """The longest functions, to be judged by eye."""
    lengths = [
        ((n.end_lineno or n.lineno) - n.lineno + 1, house.place(path, n.lineno), n.name) for path, n in house.functions
    ]
    return [f"{length:4d} lines  {place} {name}" for length, place, name in sorted(lengths, reverse=True)[:count]]


def main() -> int:
    """Print the house's measures and what breaks its rules; the number of rules that are broken."""
    house, broken = HOUSE, 0
    past = sum(is_past(node.name) for _, node in house.functions)
    arrows = sum(map(len, house.arrows.values()))
    print(f"{len(house.trees)} files, {len(house.arrows)} rooms, {arrows} arrows between them")
    print(
        f"{len(house.functions)} functions, {past / len(house.functions):.1%} named by a past participle; the longest:"
    )
    print("".join(f"  {line}\n" for line in longest_functions(house)), end="")
    for name, find in RULES.items():
        found = find(house)
        broken += bool(found)
        print("".join(f"{line}\n" for line in [f"{name}:", *(f"  {line}" for line in found)]) if found else "", end="")
    return broken


if __name__ == "__main__":
    sys.exit(main())
