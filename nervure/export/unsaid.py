"""What no config of a library says, found by trying before anything is pruned: groups and blocks that have to stay.

Every family of groups is cut in half in all layers, in a copy without weights; where the library's class builds that
from no config, the family is pinned. Half layers are pinned too: stock loaders draw random weights for them.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from nervure.errors import NervureError
from nervure.export.config_fit import fit_config
from nervure.export.stock import build_from_config, describe_differences, differences_between
from nervure.graph.repeats import repeated_groups
from nervure.graph.types import Graph, Group
from nervure.plan import Cut, Keep, Plan
from nervure.surgery import apply

PARTS = ("ffn", "heads", "width", "layers")
"""What a language model can lose: units inside a layer, heads with their queries, the stream between, whole layers."""


def pin_unsaid(model: nn.Module, graph: Graph, parts: Collection[str] = PARTS) -> Graph:
    """The graph with what no config says pinned, and with what is none of ``parts``.

    Args:
        model: a model whose library builds it from its config; not changed.
        graph: its graph.
        parts: some of :data:`PARTS`.
    """
    reasons = {g.name: f"{part_of(g)} is not among what is cut" for g in graph.prunable if part_of(g) not in parts}
    graph = _pin(graph, reasons)
    return _pin(graph, what_no_config_says(model, graph), "" if "layers" in parts else "layers are not among them")


def part_of(group: Group) -> str:
    """Which of :data:`PARTS` a group is; otherwise its kind (``"head widths"``)."""
    if group.kind != "channels":
        return group.kind
    layers = {_layer_of(slot.tensor) for slot in group.slots}
    return "ffn" if len(layers) == 1 and "" not in layers else "width"


def what_no_config_says(model: nn.Module, graph: Graph) -> dict[str, str]:
    """Groups that cannot become smaller in a way that the config of ``model`` says, by name, with the reasons."""
    stock = _without_weights(model)
    found: dict[str, str] = {}
    for names in repeated_groups(graph, graph.prunable):
        plan = Plan(tuple(Cut(name, _half(graph[name])) for name in names), graph.fingerprint)
        if reason := _why_unsaid(stock, graph, plan):
            found |= dict.fromkeys(names, f"no config says it: {reason}")
    return found


def _why_unsaid(stock: nn.Module, graph: Graph, plan: Plan) -> str:
    try:
        smaller = apply(stock, graph, plan)
    except NervureError as error:
        return str(error)
    fitted = fit_config(smaller)
    if not fitted.distance:
        return ""
    return "nothing is built" if fitted.stock is None else describe_differences(smaller, fitted.stock)


def _without_weights(model: Any) -> nn.Module:
    """A model like it that takes no memory."""
    stock = build_from_config(type(model), model.config)
    if not any(differences_between(model, stock)):
        return stock
    with torch.device("meta"):
        return build_from_config(type(model), fit_config(model).changed)


def _half(group: Group) -> Keep:
    kept = min(group.size, max(group.multiple, group.size // 2 // group.multiple * group.multiple))
    return Keep.of(torch.arange(group.size) < kept)


def _layer_of(tensor: str) -> str:
    """The first element of a list that a tensor lies in, ``model.layers.3``; empty where it lies in none."""
    parts = tensor.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), -1)
    return ".".join(parts[: number + 1])


def _pin(graph: Graph, reasons: Mapping[str, str], layers: str = "") -> Graph:
    groups = tuple(replace(g, pinned=reasons[g.name]) if g.name in reasons else g for g in graph.groups)
    blocks = tuple(b if b.pinned else replace(b, pinned=layers or _half_layer(b.element)) for b in graph.blocks)
    return replace(graph, groups=groups, blocks=blocks)


def _half_layer(element: str) -> str:
    return "" if element else "no config says that a part of a layer is gone"
