"""The branches of a network that are trained one at a time, each with its partner in the dense one.

A branch is a module that holds at least one non-linear step between its weights: a residual block, a layer of a
transformer, a run of convolutions. What is smaller does no better than the closed form.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from nervure.core.tensors import outputs_in
from nervure.refit.activations import Enough
from nervure.refit.gather import GramPart
from nervure.refit.origins import Origin

Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
"""The arguments of one call of a module, by position and by name."""
CONTAINERS = (nn.Sequential, nn.ModuleList)


@final
@dataclass(frozen=True, slots=True)
class Branch:
    """A module of the smaller network, and the one of the dense network whose output it is to give.

    Attributes:
        name: of the module.
        partner: of the dense one; where blocks were dropped behind the branch, of the last of these.
        reason: why it cannot be trained so; empty where it can.
    """

    name: str
    partner: str = ""
    reason: str = ""


def find_branches(
    model: nn.Module, reference: nn.Module, came: Mapping[str, Origin], parts: Sequence[GramPart]
) -> list[Branch]:
    """All branches in running order; what runs more than once, or not at all, has the reason."""
    names = list(_branch_names(model))
    calls = _count_calls(model, names, parts[0])
    partners = {name: _partner_of(model, name, came) for name in names}
    dense_calls = _count_calls(reference, [*_siblings(reference, partners.values())], parts[0])
    ordered = sorted(names, key=list(calls).index) if len(calls) == len(names) else names
    found = []
    for place, name in enumerate(ordered):
        mine, follower = partners[name], partners[ordered[place + 1]] if place + 1 < len(ordered) else None
        partner = _last_before(dense_calls, mine, follower) if mine is not None else None
        found.append(Branch(name, partner or "", _reason(name, partner, calls, dense_calls)))
    return found


def _reason(name: str, partner: str | None, calls: Mapping[str, int], dense_calls: Mapping[str, int]) -> str:
    if partner is None:
        return "the dense network has no such module"
    if calls.get(name) != 1 or dense_calls.get(partner) != 1:
        return "it runs more than once, or not at all"
    return ""


def _branch_names(module: nn.Module, name: str = "") -> Iterator[str]:
    """Items of lists that hold several weights; a list whose items do not, as a whole."""
    children = [(under(name, key), child) for key, child in module.named_children()]
    if not isinstance(module, CONTAINERS):
        for key, child in children:
            yield from _branch_names(child, key)
        return
    whole = [(key, child) for key, child in children if _weights(child) > 1]
    if not whole and isinstance(module, nn.Sequential) and _weights(module) > 1:
        yield name
    for key, child in whole:
        inner = list(_branch_names(child, key)) if isinstance(child, CONTAINERS) else []
        yield from inner or [key]


def _weights(module: nn.Module) -> int:
    """How many modules in it multiply."""
    return sum(any(p.ndim > 1 for p in one.parameters(recurse=False)) for one in module.modules())


def under(name: str, inner: str) -> str:
    """The name of what is inside a module of that name; the model's own is empty."""
    return f"{name}.{inner}" if name else inner


def _partner_of(model: nn.Module, name: str, came: Mapping[str, Origin]) -> str | None:
    """The dense module that a branch was cut from, by the first of its tensors that says it."""
    for inner, _ in model.get_submodule(name).named_parameters():
        origin = came.get(under(name, inner))
        if origin is not None and (origin.tensor == inner or origin.tensor.endswith(f".{inner}")):
            return origin.tensor.removesuffix(inner).removesuffix(".")
    return None


def _siblings(reference: nn.Module, partners: Any) -> set[str]:
    """All items of the lists that partners stand in."""
    found = set[str]()
    for partner in partners:
        if partner is None:
            continue
        parent, _, item = partner.rpartition(".")
        listed = reference.get_submodule(parent).named_children() if item.isdigit() else ()
        found |= {partner, *(under(parent, key) for key, _ in listed)}
    return found


def _last_before(dense_calls: Mapping[str, int], partner: str, follower: str | None) -> str:
    """The last item of a dense list before that of the next branch: what is between was dropped."""
    parent, _, item = partner.rpartition(".")
    after, _, next_item = (follower or "").rpartition(".")
    if not (item.isdigit() and next_item.isdigit() and parent == after):
        return partner
    between = [under(parent, str(number)) for number in range(int(item), int(next_item))]
    return next((name for name in reversed(between) if name in dense_calls), partner)


def _count_calls(model: nn.Module, names: Sequence[str], part: GramPart) -> dict[str, int]:
    """How often each of these modules runs, in the order of their first runs."""
    counts: dict[str, int] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda *_: counts.update({name: counts.get(name, 0) + 1})

    hooks = [model.get_submodule(name).register_forward_pre_hook(note(name)) for name in names]
    try:
        with torch.no_grad():
            part.batch.feed(model)
    finally:
        for hook in hooks:
            hook.remove()
    return counts


@contextmanager
def stopping(hook: Any) -> Iterator[None]:
    """Runs inside end where the hook says so."""
    try:
        with suppress(Enough):
            yield
    finally:
        hook.remove()


def call_of(model: nn.Module, name: str, part: GramPart) -> Call:
    """What a module is given when a network runs on samples, which it does only so far."""
    seen: list[Call] = []

    def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((_copy_of(args), _copy_of(kwargs)))
        raise Enough

    with stopping(model.get_submodule(name).register_forward_pre_hook(keep, with_kwargs=True)), torch.no_grad():
        part.batch.feed(model)
    return seen[0]


def output_of(model: nn.Module, name: str, part: GramPart) -> Tensor:
    """What a module gives when a network runs on samples, which it does only so far."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        seen.append(first_output(output).detach().clone())
        raise Enough

    with stopping(model.get_submodule(name).register_forward_hook(keep)), torch.no_grad():
        part.batch.feed(model)
    return seen[0]


def first_output(output: Any) -> Tensor:
    """The first tensor of a module's output: the others are by-products (attention weights, caches)."""
    return outputs_in(output)[0]


def _copy_of(value: Any) -> Any:
    return tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, value)


def choose_outputs(
    names: Sequence[str], came: Mapping[str, Origin], mine: Tensor, dense: Tensor
) -> tuple[int, Tensor | None] | None:
    """Which outputs of the dense branch the smaller one still gives: an axis, and the places along it; None: all.

    They are those that stayed of one of the branch's own tensors: of several that would do, those nearest to what the
    smaller branch gives already. None: no tensor says it.
    """
    axes = [axis for axis in range(mine.ndim) if mine.shape[axis] != dense.shape[axis]]
    if mine.ndim != dense.ndim or len(axes) > 1:
        return None
    if not axes:
        return 0, None
    axis = axes[0]
    kept = [came[name].positions[0] for name in names if name in came and came[name].positions]
    fitting = {
        rows.tobytes(): torch.from_numpy(np.ascontiguousarray(rows))
        for rows in kept
        if len(rows) == mine.shape[axis] and int(rows.max()) < dense.shape[axis]
    }
    errors = {key: float((dense.index_select(axis, rows) - mine).square().sum()) for key, rows in fitting.items()}
    return (axis, fitting[min(errors, key=lambda key: errors[key])]) if errors else None
