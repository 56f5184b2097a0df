"""``apply``: the only line that edits anything, and it edits a copy."""

import warnings
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from typing import assert_never

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from nervure.core.check import checked
from nervure.core.collectives import require_unsharded
from nervure.core.lazy_tensors import LazyTensors
from nervure.core.tensors import has_shape_only
from nervure.errors import NervureWarning, PlanError
from nervure.graph.declared import untrue
from nervure.graph.models import is_weightless, unwrap
from nervure.graph.modes import leave_modes
from nervure.graph.sizes import submodule
from nervure.graph.tape import named_tensors, names_of_tensors
from nervure.graph.types import Graph
from nervure.plan import Cut, Drop, Link, Mask, Plan
from nervure.surgery.attention import ResizedAttention, keep_padding
from nervure.surgery.cut import copied_without, kept_positions, slice_tensor, tensor_of
from nervure.surgery.drop import drop, name_after, take_out
from nervure.surgery.link import link, wire_masks, wires_of


@checked
@leave_modes()
def apply(model: nn.Module, graph: Graph, plan: Plan, *, renumber: bool = True) -> nn.Module:
    """Return a copy of ``model`` with the edits of ``plan`` made; ``model`` itself is left as it is.

    All edits are in the numbering of ``graph``. Units are cut, then masks laid on, links inserted, blocks dropped.
    Blocks that are whole layers of a list are taken out of it (see ``Block.element``): those behind it move up.

    Args:
        model: the model that ``graph`` was traced from, or one with the same tensors.
        graph: see :func:`nervure.trace`.
        plan: edits that name groups, tensors and blocks of ``graph``.
        renumber: False: an identity takes the place of a dropped layer, and all others keep their names.

    A number that a config would not take is left as it is, with a :class:`NervureWarning` that names it.

    Raises:
        PlanError: the plan was made for another graph, the graph for another model, or an edit does not fit; or
            ``model`` is sharded over processes.
    """
    model = unwrap(model)
    smaller = edit_model(model, graph, plan, renumber=renumber)
    with _real_plans(model):
        told = untrue(model, smaller, graph, keeps_of(graph, plan))
    if told:
        warnings.warn(f"{'; '.join(told)}. What is saved with this config may not load.", NervureWarning, stacklevel=4)
    return smaller


def apply_sharing(model: nn.Module, graph: Graph, plan: Plan) -> nn.Module:
    """As :func:`edit_model`, but parameters that ``plan`` leaves alone are those of ``model``: for looking only."""
    masked = {mask.tensor for mask in plan.masks}
    return edit_model(model, graph, plan, shared=[p for name, p in model.named_parameters() if name not in masked])


def apply_at_last(model: nn.Module, graph: Graph, plan: Plan) -> nn.Module:
    """As :func:`edit_model`, of a model that is of no use afterwards: it takes hardly more memory than was there.

    The masks of ``plan`` were laid on it before (:func:`lay_masks`).
    """
    others = Plan(tuple(edit for edit in plan if not isinstance(edit, Mask)), plan.fingerprint)
    return edit_model(model, graph, others, shared=model.parameters(), is_last=True)


def lay_masks(model: nn.Module, graph: Graph, plan: Plan) -> None:
    """Lay the masks of a plan on the parameters of ``model`` itself."""
    _lay_all_on(model, plan, cut_masks(graph, plan, {}))


@leave_modes()
def edit_model(
    model: nn.Module,
    graph: Graph,
    plan: Plan,
    *,
    renumber: bool = True,
    shared: Iterable[nn.Parameter] = (),
    is_last: bool = False,
) -> nn.Module:
    """As :func:`apply`, without a word on configs: for trials.

    ``shared`` are parameters that are not copied; where ``is_last``, ``model`` is of no use afterwards.
    """
    require_unsharded(model.parameters(), "apply", PlanError, "Or cut it as it is: nervure.distributed.cut_shards.")
    check_fits(model, graph, plan)
    with _real_plans(model):
        return _edit_model(model, graph, plan, renumber, shared, is_last)


def _real_plans(model: nn.Module) -> AbstractContextManager[None]:
    """Plans are real, also where the model is made of fake tensors."""
    return _disable_current_modes() if is_weightless(model) else nullcontext()


def _edit_model(
    model: nn.Module, graph: Graph, plan: Plan, renumber: bool, shared: Iterable[nn.Parameter], is_last: bool
) -> nn.Module:
    keeps = keeps_of(graph, plan)
    masks, wires = cut_masks(graph, plan, keeps), iter(wires_of(graph, plan, keeps).items())
    result = copied_without(model, graph, keeps, shared, is_last=is_last)
    _lay_all_on(result, plan, masks)
    for edit in sorted(plan, key=lambda e: isinstance(e, Drop)):
        match edit:
            case Link():
                link(result, graph, edit, *next(wires))
            case Drop(block):
                drop(result, graph, graph.block(block), keeps)
            case Cut() | Mask():
                pass
            case _:
                assert_never(edit)
    if plan.drops or any(isinstance(module, ResizedAttention) for module in result.modules()):
        keep_padding(result)
    if renumber:
        take_out(result, graph, plan)
    return result


def check_fits(model: nn.Module, graph: Graph, plan: Plan) -> None:
    """Raise :class:`PlanError` unless ``plan`` was made for ``graph`` and ``graph`` for a model like ``model``."""
    if plan.fingerprint and plan.fingerprint != graph.fingerprint:
        raise PlanError(
            f"this plan was made for a graph with fingerprint {plan.fingerprint}, this one has {graph.fingerprint}. "
            "The model has changed since, it is another one, or it was traced on an example of another shape or dtype: "
            "trace it on the example at hand and plan again."
        )
    found = named_tensors(model)
    caches = {name for name in {**graph.tensors, **found} if is_plain_attribute(model, graph, name)}
    shapes = {name: tuple(t.shape) for name, t in found.items() if name not in caches}
    expected = {n: tuple(graph.axes[a].size for a in axes) for n, axes in graph.tensors.items() if n not in caches}
    differing = [n for n in (*expected, *shapes) if expected.get(n) != shapes.get(n)]
    if differing:
        name = differing[0]
        raise PlanError(
            f"the graph is of another model: {name!r} is {expected.get(name, 'missing')} there and "
            f"{shapes.get(name, 'missing')} here ({len(set(differing))} tensors differ). "
            "Trace this model and plan again."
        )
    strange = [mask.tensor for mask in plan.masks if mask.tensor not in found]
    if strange:
        firsts = [first for first, names in names_of_tensors(model).items() if strange[0] in names]
        hint = f"the model calls this tensor {firsts[0]!r}." if firsts else "the model has no such tensor."
        raise PlanError(f"mask of {strange[0]!r}: {hint}")
    _require_modules(model, graph)


def _require_modules(model: nn.Module, graph: Graph) -> None:
    """Raise :class:`PlanError` unless every module that a block of ``graph`` names is a part of ``model``."""
    modules = dict(model.named_modules(remove_duplicate=False))
    lists = {
        f"{name}.{n}"
        for name, m in modules.items()
        if isinstance(m, nn.ModuleList | nn.Sequential)
        for n in range(len(m))
    }
    for block in graph.blocks:
        named = {*block.modules, *block.aliases, *(silence.module for silence in block.silences)}
        strange = sorted((named - modules.keys()) | (named & {""}) | ({block.element} - lists - {""}))
        if strange:
            raise PlanError(
                f"the graph is of another model: block {block.name!r} names the module {strange[0]!r}, which is not "
                "there in this one. Trace this model and plan again."
            )


def is_plain_attribute(model: nn.Module, graph: Graph, name: str) -> bool:
    """Whether a tensor is a plain attribute, which ``forward`` may make anew, rather than a parameter or a buffer."""
    path, _, key = name.rpartition(".")
    module = submodule(model, path)
    if module is None:
        return False
    return name not in graph.parameters and key not in module._buffers and key not in module._parameters


def keeps_of(graph: Graph, plan: Plan) -> dict[str, np.ndarray]:
    """For each group that ``plan`` cuts the surviving units; several cuts of a group leave what all of them keep."""
    keeps: dict[str, np.ndarray] = {}
    for edit in plan.cuts:
        group, keep = graph[edit.group], edit.keep.tensor().numpy()
        if keep.shape != (group.size,):
            raise PlanError(f"cut of {group.name!r}: keep has shape {keep.shape}, the group has {group.size} units.")
        if group.is_pinned:
            raise PlanError(f"group {group.name!r} is pinned ({group.pinned}) and cannot be cut.")
        keeps[group.name] = keeps.get(group.name, np.ones(group.size, dtype=bool)) & keep
        if not keeps[group.name].any():
            raise PlanError(
                f"cut of {group.name!r} leaves none of its {group.size} units; the network would fall apart."
            )
    for name, keep in keeps.items():
        group, left = graph[name], int(keep.sum())
        if left != group.round_up(left):
            raise PlanError(
                f"cut of {name!r} leaves {left} of {group.size} units, but they can be cut to multiples of "
                f"{group.multiple} only: keep {group.round_up(left)} (or all), as every method does by itself."
            )
    for dropped in plan.drops:
        block = graph.block(dropped.block)
        if block.pinned:
            raise PlanError(f"block {block.name!r} cannot be dropped: {block.pinned}.")
        if block.group:
            keeps[block.group] = np.zeros(graph[block.group].size, dtype=bool)
    return keeps


def _lay_all_on(model: nn.Module, plan: Plan, masks: Mapping[str, Tensor]) -> None:
    """Draw parameters anew as ``plan`` says, and lay ``masks`` on, of the shapes that parameters have in ``model``."""
    for name, edits in masks_by_tensor(plan).items():
        lay_on(tensor_of(model, name), edits, masks[name])


def lay_on(parameter: Tensor, edits: Iterable[Mask], keep: Tensor) -> None:
    """Draw a parameter anew where one of its masks says so, and set to zero what ``keep`` does not keep."""
    for mask in edits:
        _start_over(parameter, mask)
    if has_shape_only(parameter):
        return
    with torch.no_grad():
        # No product: a masked infinity must become zero too.
        parameter.masked_fill_(~keep.to(parameter.device), 0)


def _start_over(parameter: Tensor, mask: Mask) -> None:
    """Draw a parameter anew, and make it larger or smaller, as its mask says."""
    if has_shape_only(parameter) or (mask.shuffled is None and mask.gain == 1):
        return
    if mask.shuffled is not None and mask.keep.shape != tuple(parameter.shape):
        raise PlanError(f"mask of {mask.tensor!r} draws anew what this plan also cuts: cut first, then mask.")
    if not parameter.is_floating_point() and not parameter.is_complex():
        raise PlanError(f"mask of {mask.tensor!r} has a gain, or draws it anew, but it holds {parameter.dtype}.")
    with torch.no_grad():
        if mask.shuffled is not None:
            order = torch.randperm(parameter.numel(), generator=torch.Generator().manual_seed(mask.shuffled))
            parameter.copy_(parameter.reshape(-1)[order.to(parameter.device)].reshape(parameter.shape))
        parameter.mul_(mask.gain)


def dropped_prefixes(graph: Graph, plan: Plan) -> tuple[str, ...]:
    """What names of parameters begin with that leave with the blocks of ``plan``."""
    return tuple(f"{module}." for drop in plan.drops for module in graph.block(drop.block).modules)


def masks_after(graph: Graph, plan: Plan) -> dict[str, Tensor]:
    """The masks of ``plan``, those of links included, by the names and in the shapes that parameters have after it."""
    keeps, renamed = keeps_of(graph, plan), name_after(graph, plan)
    gone = dropped_prefixes(graph, plan)
    masks = {**cut_masks(graph, plan, keeps), **wire_masks(graph, plan, keeps)}
    stay = {renamed(old): mask for old, mask in masks.items() if not old.startswith(gone)}
    return {name: mask for name, mask in stay.items() if name is not None}


def cut_masks(graph: Graph, plan: Plan, keeps: Mapping[str, np.ndarray]) -> LazyTensors:
    """The masks of a plan, as their tensors are after its cuts; each is unpacked where it is asked for."""
    edits = masks_by_tensor(plan)
    for edit in plan.masks:
        if edit.tensor not in graph.tensors:
            raise PlanError(f"mask of {edit.tensor!r}: the model has no such tensor.")
        shape = tuple(graph.axes[a].size for a in graph.tensors[edit.tensor])
        if edit.keep.shape != shape:
            raise PlanError(f"mask of {edit.tensor!r}: keep has shape {edit.keep.shape}, the tensor {shape}.")

    def make(name: str) -> Tensor:
        each = (slice_tensor(edit.keep.tensor(), kept_positions(graph, keeps, name)) for edit in edits[name])
        return reduce(torch.logical_and, each)

    return LazyTensors(edits, make)


def masks_by_tensor(plan: Plan) -> dict[str, list[Mask]]:
    """The masks of a plan by what they mask."""
    found: dict[str, list[Mask]] = {}
    for mask in plan.masks:
        found.setdefault(mask.tensor, []).append(mask)
    return found
