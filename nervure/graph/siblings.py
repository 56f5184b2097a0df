"""Elements of a list that no example reached follow those that were reached: experts that got no tokens, say.

What all reached elements have in common with the rest of the network (the stream that they read and write) is taken
from the others as well; units of their own stay, since nothing is known of them.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from torch import nn

from nervure.graph.types import Graph, TensorAxis

Axis = tuple[str, int]


def follow_siblings(model: nn.Module, graph: Graph, idle: Collection[str]) -> Graph:
    """The graph in which parameters of list elements lose what the same parameters of all reached elements lose.

    Args:
        model: the model.
        graph: its graph.
        idle: the names of the parameters that no run used.
    """
    like: dict[Axis, Axis] = {}
    for name, (element, namesakes) in _siblings(model, graph, frozenset(idle)).items():
        for axis in range(len(graph.tensors[name])):
            if _is_shared(graph, axis, [name, *namesakes], element):
                like[name, axis] = namesakes[0], axis
    if not like:
        return graph
    followers: dict[Axis, list[str]] = {}
    for (name, _), sibling in like.items():
        followers.setdefault(sibling, []).append(name)
    slots = ((*group.slots, *_followers_of(group.slots, followers)) for group in graph.groups)
    groups = tuple(replace(group, slots=own) for group, own in zip(graph.groups, slots, strict=True))
    return replace(graph, groups=groups, tensors={**graph.tensors, **_axes(graph, like)})


def _siblings(model: nn.Module, graph: Graph, idle: frozenset[str]) -> dict[str, tuple[str, list[str]]]:
    """For each idle parameter of a list's element a reached element, and the same parameter in all reached ones.

    For ``experts.3.up.weight``: ``experts.0.``, and ``experts.0.up.weight`` and ``experts.1.up.weight``.
    """
    lists = {
        name: [key for key, _ in module.named_children()]
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.ModuleDict)
    }
    reached, found = graph.tensors.keys() - idle, {}
    for name in sorted(idle & graph.tensors.keys()):
        parts = name.split(".")
        # The innermost list that has a reached element decides.
        for depth in range(len(parts) - 1):
            prefix = "".join(f"{part}." for part in parts[:depth])
            rest = ".".join(parts[depth + 1 :])
            elements = [f"{prefix}{key}." for key in lists.get(prefix[:-1], ())]
            others = [element for element in elements if element + rest in reached]
            if others:
                found[name] = others[0], [element + rest for element in others]
    return found


def _is_shared(graph: Graph, axis: int, names: list[str], element: str) -> bool:
    """Whether the same units lie along this axis of all but the first tensor, which has as many, and elsewhere too."""
    mine, *others = [graph.tensors[name][axis] if axis < len(graph.tensors[name]) else None for name in names]
    (theirs,) = set(others) if len(set(others)) == 1 else (None,)
    if mine is None or theirs is None or graph.axes[mine].size != graph.axes[theirs].size:
        return False
    groups = [graph[name] for name, _ in graph.axes[theirs].parts if name in graph]
    # Of a single reached element: units that only it has are not those of another one.
    are_elsewhere = (any(not s.tensor.startswith(element) for s in group.slots) for group in groups)
    return bool(graph.axes[theirs].parts) and all(are_elsewhere)


def _followers_of(slots: tuple[TensorAxis, ...], followers: Mapping[Axis, list[str]]) -> Iterator[TensorAxis]:
    for slot in slots:
        yield from (replace(slot, tensor=name) for name in followers.get((slot.tensor, slot.axis), ()))


def _axes(graph: Graph, like: Mapping[Axis, Axis]) -> dict[str, tuple[int, ...]]:
    """The axes of the tensors that follow."""
    axes = {name: list(graph.tensors[name]) for name, _ in like}
    for (name, axis), (sibling, same) in like.items():
        axes[name][axis] = graph.tensors[sibling][same]
    return {name: tuple(own) for name, own in axes.items()}
