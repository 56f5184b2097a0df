"""Sizes that a model keeps and does not read while it runs: what they say should stay true after a cut.

Integers that arrive in a call are followed exactly (see ``sizes``). Those that only the constructor reads, or a method
that builds a new head, cannot be: they are known by their names, the words that code uses for widths and heads, and
only where the graph bears the name out: every group of that size (or of heads, or of widths in heads) in the module's
part of the model must shrink alike. Where a cut makes layers differ, no single number is true, and the integer stays as
it is. Integers of other names that are as large as a width are named, and left.
"""

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from math import lcm

import numpy as np
from torch import nn

from nervure.errors import PlanError
from nervure.graph.configs import complaint, refusal, step_of, units_in_step
from nervure.graph.sizes import Attribute, holders, numbers_of, read_attribute
from nervure.graph.types import ConfigSize, Graph, Group

_CHANNELS = """
c ch channels d_ff d_inner d_model decoder_ffn_dim dim dims embed_dim embed_dims embedding_dim encoder_ffn_dim
feature_dim feed_forward_size ffn_dim filters head_hidden_size hidden hidden_channels hidden_dim hidden_features
hidden_size hidden_sizes in_channels in_chs in_dim in_features in_planes inner_dim inplanes intermediate_size latent_dim
mlp_dim model_dim n_channels n_embd n_embed n_filters n_inner nf num_channels num_chs num_features num_filters
out_channels out_chs out_dim out_features out_planes planes width widths
"""
CHANNELS = frozenset(_CHANNELS.split())
_HIDDEN = """
c d_ff d_inner decoder_ffn_dim encoder_ffn_dim feed_forward_size ffn_dim hidden hidden_channels hidden_dim
hidden_features inner_dim intermediate_size mlp_dim n_inner
"""
HIDDEN = frozenset(_HIDDEN.split())
"""Names of channels inside a module; where it splits an axis into parts, these say how wide a part is."""
HEADS = frozenset(
    [
        "num_attention_heads",
        "num_key_value_heads",
        "num_heads",
        "n_head",
        "n_heads",
        "n_kv_heads",
        "num_kv_heads",
        "encoder_attention_heads",
        "decoder_attention_heads",
    ]
)
EXPERTS = frozenset(
    ["moe_num_experts", "n_experts", "n_routed_experts", "num_experts", "num_local_experts", "num_routed_experts"]
)
CHOSEN = frozenset(["moe_k", "moe_top_k", "moe_topk", "num_experts_per_tok", "num_selected_experts"])
"""Names of how many experts a gate chooses: no more than there are."""
HEAD_WIDTHS = frozenset(["head_dim", "head_size", "attention_head_size", "d_kv", "head_width"])


def find_declared(model: nn.Module, graph: Graph, read: Set[Attribute]) -> tuple[ConfigSize, ...]:
    """The integers of modules and configs that name sizes of the graph and that a cut may change.

    Args:
        model: the traced model.
        graph: its graph.
        read: attributes that the forward pass read; these mean what the code does with them, whatever their name.
    """
    found = []
    for module, path, name, value in _unread(model, graph, read):
        groups = _meant(graph, module, name, value)
        if not all(g.is_pinned for g in groups):
            found.append(ConfigSize(module, path, value, tuple(g.name for g in groups), name in CHOSEN))
    return tuple(found)


def find_unexplained(model: nn.Module, graph: Graph, read: Set[Attribute]) -> tuple[str, ...]:
    """The integers of modules that are as large as units that can go, though their names do not say what they are."""
    known, free = {(d.module, d.attribute) for d in graph.declared}, _free_sizes(graph)
    return tuple(
        full_name(module, path)
        for module, path, name, value in _unread(model, graph, read)
        if path.startswith(name) and (module, path) not in known
        if any(_is_below(tensor, module) for tensor in free.get(value, ()))
    )


def in_multiples(model: nn.Module, graph: Graph) -> dict[str, int]:
    """For groups of channels of which a config takes some numbers only: of how many a multiple has to stay."""
    numbers = [(d.module, d.attribute, d.size, d.groups) for d in graph.declared]
    for r in graph.resizes:
        names = tuple(name for name, _ in graph.axes[r.axis].parts)
        numbers.append((r.module, r.attribute, r.size, names))
    multiples: dict[str, int] = {}
    for module, attribute, size, names in numbers:
        key, _, path = attribute.partition(".")
        groups = [graph[name] for name in names if graph[name].kind == "channels"]
        if path and groups and (step := step_of(getattr(model.get_submodule(module), key), path, size)) > 1:
            for group in groups:
                few = units_in_step(step, size, group.size)
                multiples[group.name] = lcm(multiples.get(group.name, 1), few)
    return multiples


def accepted_values(model: nn.Module, graph: Graph, keeps: Mapping[str, np.ndarray]) -> dict[Attribute, int]:
    """What declared integers become when groups keep these units, where that is one number and a config takes it.

    Where a config takes some of its new numbers, but not all at once, those that come first go first; numbers of the
    same groups go together.

    Args:
        model: a model whose sizes that are followed exactly are those after the cut already.
        graph: the graph of the model before the cut.
        keeps: for each group that is cut booleans [units], True survives.
    """
    found: dict[Attribute, int] = {}
    configs: dict[tuple[str, str], dict[tuple[str, ...], dict[str, int]]] = {}
    for said in graph.declared:
        attribute, now = Attribute(said.module, said.attribute), said.after(graph, keeps)
        if now in (None, 0, said.size) or read_attribute(model, attribute) != said.size:
            continue
        key, _, path = said.attribute.partition(".")
        if path:
            configs.setdefault((said.module, key), {}).setdefault(said.groups, {})[path] = int(now or 0)
        else:
            found[attribute] = int(now or 0)
    for (module, key), by_groups in configs.items():
        taken = _accept_values(getattr(model.get_submodule(module), key), list(by_groups.values()))
        found |= {Attribute(module, f"{key}.{path}"): value for path, value in taken.items()}
    return found


def _accept_values(config: object, parts: Sequence[dict[str, int]]) -> dict[str, int]:
    """All numbers where a config takes them at once, else those of one part after the other that it takes."""
    taken = {path: value for part in parts for path, value in part.items()}
    if not refusal(config, taken):
        return taken
    taken = {}
    for part in parts:
        taken |= {} if refusal(config, taken | part) else part
    return taken


def untrue(model: nn.Module, smaller: nn.Module, graph: Graph, keeps: Mapping[str, np.ndarray]) -> list[str]:
    """What configs of ``smaller``, cut from ``model``, say that is not so since they take no such number. Sentences."""
    found = []
    for said in graph.declared:
        now = said.after(graph, keeps)
        if "." in said.attribute and now not in (None, 0, said.size) and _number(smaller, said) == said.size:
            name = full_name(said.module, said.attribute)
            found.append(f"{name} stays {said.size} though {now} are left, since the config takes no such number")
    before = dict(_configs(model))
    for name, config in _configs(smaller):
        if name in before and (why := complaint(config)) and not complaint(before[name]):
            found.append(f"{name} is no longer one that it takes itself ({why})")
    return found


def _configs(model: nn.Module) -> Iterator[tuple[str, object]]:
    for module, prefix, _ in holders(model):
        if prefix:
            key = prefix.removesuffix(".")
            yield full_name(module, key), getattr(model.get_submodule(module), key)


def _number(model: nn.Module, said: ConfigSize) -> int | None:
    """The value of a declared integer; None where what held it was dropped."""
    try:
        return read_attribute(model, Attribute(said.module, said.attribute))
    except PlanError:
        return None


def families(names: Sequence[str]) -> str:
    """Names for a message, those that differ in numbers only told once."""
    return ", ".join(dict.fromkeys(re.sub(r"\b\d+\b", "*", name) for name in names))


def full_name(module: str, path: str) -> str:
    """The name of an attribute from the model on."""
    return ".".join(filter(None, (module, path)))


def _unread(model: nn.Module, graph: Graph, read: Set[Attribute]) -> Iterator[tuple[str, str, str, int]]:
    """Module, path, name and value of the whole numbers in modules and configs that the forward pass did not read."""
    followed = {Attribute(r.module, r.attribute) for r in graph.resizes} | read
    for module, prefix, holder in holders(model):
        described = not prefix and _describes_itself(model.get_submodule(module))
        for key, value in () if described else tuple(holder.items()):
            for path, number in numbers_of(prefix + key, value):
                if Attribute(module, path) not in followed and not key.startswith("_"):
                    yield module, path, key, number


def _describes_itself(module: nn.Module) -> bool:
    """Whether it is a layer of PyTorch: what those say of themselves is read off their tensors."""
    kinds = (c.__module__ for c in type(module).__mro__)
    return any(kind.startswith("torch.nn.modules.") and kind not in _NO_LAYERS for kind in kinds)


_NO_LAYERS = ("torch.nn.modules.module", "torch.nn.modules.container")


def _is_below(tensor: str, module: str) -> bool:
    return not module or tensor.startswith(f"{module}.")


def _free_sizes(graph: Graph) -> Mapping[int, list[str]]:
    """For each size of an axis that a cut changes the tensors that have it."""
    free, found = {g.name for g in graph.prunable}, dict[int, list[str]]()
    for tensor, axes in graph.tensors.items():
        for axis in {graph.axes[number] for number in axes}:
            if any(name in free for name, _ in axis.parts):
                found.setdefault(axis.size, []).append(tensor)
    return found


def _meant(graph: Graph, module: str, name: str, value: int) -> Sequence[Group]:
    """The groups whose size an integer of that name and value states, in the module's part of the model."""
    if name in EXPERTS or name in CHOSEN:
        experts = [g for g in graph.groups if g.kind == "experts"]
        fits = [g for g in experts if g.size == value or (name in CHOSEN and g.size > value)]
        return [g for g in fits if any(_is_below(s.tensor, module) for s in g.slots)]
    wanted = "channels" if name in CHANNELS else "heads" if name in HEADS else "head widths"
    if wanted == "head widths" and name not in HEAD_WIDTHS:
        return []
    kinds = (wanted, "widths") if name in HIDDEN else (wanted,)
    fits = [g for g in graph.groups if g.kind in kinds and (g.size == value or wanted != "channels")]
    alike = [g for g in fits if any(_is_below(s.tensor, module) for s in g.slots)]
    # What comes from outside, or stays inside a part of the module, may be as wide by chance only.
    own = [g for g in alike if g.kind == "widths" and _is_own(g, module)]
    # A unit may stand for several heads (queries that share keys) or for several places in a head (rotary pairs).
    return own or (alike if all(value % g.size == 0 for g in alike) else [])


def _is_own(group: Group, module: str) -> bool:
    """Whether the module is the smallest that holds all tensors of the group."""
    names = [slot.tensor for slot in group.slots]
    parts = {name.removeprefix(f"{module}.").partition(".")[0] for name in names}
    return len(parts) > 1 and all(_is_below(name, module) for name in names)
