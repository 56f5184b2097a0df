"""The experts that stay take over what those that left said: the last matrices of a mixture are fitted together.

What a mixture gives is linear in the matrices that its experts end with: for each token the sum over the chosen of
``weight * W_e h_e``. With ``x`` the ``weight * h_e`` of all experts side by side, zero for those that were not chosen,
this is one product, and fitted as any other (:mod:`nervure.refit.ridge`) to what the dense mixture gives at the same
token. ``x`` is heard through matrices that pass single units on, however experts are computed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from nervure.core.collectives import several
from nervure.graph.mixtures import Mixture, mixture_of, output_with, unheard
from nervure.graph.models import device_of
from nervure.graph.tape import named_tensors
from nervure.graph.types import Graph
from nervure.refit.activations import running
from nervure.refit.calls import Call, heard
from nervure.refit.gather import GramPart
from nervure.refit.merging import merge_moments
from nervure.refit.moments import Moments
from nervure.refit.origins import Origin
from nervure.refit.replay import Replay
from nervure.refit.ridge import Problem
from nervure.stats.loaders import Batch

NDIM = 3
WIDEST = 4096
"""Units of experts that are fitted at once; of more experts some after the others."""
SAME, LINEAR = 1e-5, 1e-3
"""Parts of the largest output below which a difference is rounding."""


@final
@dataclass(frozen=True, slots=True)
class MixtureEnd:
    """The matrices that the experts of a mixture end with.

    Attributes:
        path, theirs: the mixture's module in the smaller network and in the dense one.
        tensor: the matrices, by their name in the smaller network.
        local: by their name in the module.
        axes: which axis of them counts experts, outputs, units.
        rows: for each output that of the dense mixture.
    """

    path: str
    theirs: str
    tensor: str
    local: str
    axes: tuple[int, int, int]
    rows: Tensor

    def matrix(self, values: Tensor) -> Tensor:
        """Values of its shape as [1, outputs, experts x units]."""
        return values.permute(self.axes).transpose(0, 1).flatten(1)[None]

    def stack(self, matrix: Tensor, like: Tensor) -> Tensor:
        """The other way."""
        experts, outputs, units = (like.shape[axis] for axis in self.axes)
        laid = matrix.reshape(outputs, experts, units).transpose(0, 1)
        return laid.permute([self.axes.index(axis) for axis in range(NDIM)])

    def write(self, stack: Tensor, columns: slice, matrix: Tensor) -> None:
        """Put these columns, [1, outputs, columns], into a stack."""
        whole = self.matrix(stack.detach()).clone()
        whole[:, :, columns] = matrix.to(whole)
        with torch.no_grad():
            stack.copy_(self.stack(whole[0], stack))

    def blocks(self, values: Tensor) -> list[slice]:
        """The columns of the matrix that are fitted at once, whole experts each."""
        experts, _, units = (values.shape[axis] for axis in self.axes)
        step = max(WIDEST // units, 1) * units
        return [slice(start, min(start + step, experts * units)) for start in range(0, experts * units, step)]


def mixture_ends(
    model: nn.Module, reference: nn.Module, graph: Graph, came: Mapping[str, Origin], batch: Batch
) -> list[MixtureEnd]:
    """The mixtures of a smaller network whose last matrices are found, by what it does on a batch.

    Args:
        model: the smaller network.
        reference: the dense one.
        graph: that of the dense one.
        came: where the tensors of the smaller network come from.
        batch: any.
    """
    now = {origin.tensor: name for name, origin in came.items()}
    dense, places = named_tensors(reference), dict[str, Mixture]()
    for group in graph.groups:
        found = mixture_of(group, dense) if group.kind == "experts" else ""
        if isinstance(found, Mixture) and (path := _path_now(found, now)) is not None:
            places[path] = found
    calls = heard(Replay(model), places, 0, batch)
    ends = [_end(model, path, mixture, came, calls[path]) for path, mixture in places.items() if calls[path]]
    return [end for end in ends if end is not None]


def _path_now(mixture: Mixture, now: Mapping[str, str]) -> str | None:
    """The module of a mixture in the smaller network; None where it left."""
    local, slot = next(iter(mixture.stacks.items()))
    name = now.get(slot.tensor)
    return None if name is None else name.removesuffix(f".{local}")


def _end(
    model: nn.Module, path: str, mixture: Mixture, came: Mapping[str, Origin], calls: Sequence[Call]
) -> MixtureEnd | None:
    module, (args, kwargs, given) = unheard(model.get_submodule(path)), calls[0]
    held = named_tensors(module)
    for local, slot in mixture.stacks.items():
        stack = held[local]
        if stack.ndim != NDIM or len(slot.units) != mixture.group.size:
            continue
        for outputs in {0, 1, 2} - {slot.axis}:
            if _ends_with(module, local, outputs, args, kwargs, given):
                axes = (slot.axis, outputs, NDIM - slot.axis - outputs)
                rows = torch.from_numpy(came[f"{path}.{local}"].positions[outputs])
                return MixtureEnd(path, mixture.path, f"{path}.{local}", local, axes, rows)
    return None


@torch.no_grad()
def _ends_with(module: nn.Module, local: str, axis: int, args: Any, kwargs: Any, given: Tensor) -> bool:
    """Whether a module's outputs are linear in a stack, and each is a product with one row along this axis."""
    stack = named_tensors(module)[local].detach()
    if not 1 < stack.shape[axis] == given.shape[-1] or not given.is_floating_point():
        return False

    def output(values: Tensor) -> Tensor:
        return output_with(module, {local: values}, args, kwargs).double()

    less = stack.clone()
    less.select(axis, 0).zero_()
    full, none = output(stack), output(torch.zeros_like(stack))
    scale, by_first = float((full - none).abs().max()), (full - output(less)).abs()
    is_first_alone = float(by_first[..., 0].max()) > SAME * scale >= float(by_first[..., 1:].max())
    return is_first_alone and float((output(2 * stack) - 2 * full + none).abs().max()) <= LINEAR * scale


# -- what is heard ---------------------------------------------------------------------------------------------------


def _units_heard(end: MixtureEnd, module: nn.Module, columns: slice, args: Any, kwargs: Any) -> Tensor:
    """What enters some columns of the matrix, [tokens, columns]; as many at a time as the mixture has outputs."""
    stack = named_tensors(module)[end.local].detach()
    outputs, wide = stack.shape[end.axes[1]], end.matrix(stack).shape[2]

    def passing(first: int, count: int) -> Tensor:
        matrix = stack.new_zeros(outputs, wide)
        matrix[torch.arange(count), first + torch.arange(count)] = 1
        return output_with(module, {end.local: end.stack(matrix, stack)}, args, kwargs)

    nothing, found = passing(0, 0), []
    for first in range(columns.start, columns.stop, outputs):
        count = min(outputs, columns.stop - first)
        found.append((passing(first, count) - nothing).flatten(0, -2)[:, :count])
    return torch.cat(found, 1)


# -- what is fitted --------------------------------------------------------------------------------------------------


def mixture_problem(
    networks: tuple[Replay, Replay],
    end: MixtureEnd,
    columns: slice,
    parts: Sequence[GramPart],
    keep: Tensor | None,
    by_surgeon: bool,
) -> Problem | str:
    """The problem of some columns of a mixture's last matrices; or why there is none.

    Args:
        networks: the smaller one and the dense one, perhaps with their beginnings done for these parts.
        end: the mixture.
        columns: of its matrix.
        parts: the samples.
        keep: which weights may be other than zero, shaped as the stack; None: all.
        by_surgeon: see :class:`~nervure.refit.ridge.Problem`.
    """
    model, module = networks[0].model, unheard(networks[0].model.get_submodule(end.path))
    sums: dict[str, Moments] = {}
    for number, part in enumerate(parts):
        mine, theirs = (
            heard(replay, [path], number, part.batch)[path]
            for replay, path in zip(networks, (end.path, end.theirs), strict=True)
        )
        if len(mine) != len(theirs):
            return "the dense network runs it more or less often"
        for (args, kwargs, given), (_, _, said) in zip(mine, theirs, strict=True):
            y, target = given.flatten(0, -2), said.flatten(0, -2)[:, end.rows.to(said.device)].to(given)
            if y.shape != target.shape:
                return "the dense network reads at other positions"
            with running(model), torch.no_grad(), _disable_current_modes():
                x = _units_heard(end, module, columns, args, kwargs)
            name = f"held {part.view}" if part.held else "seen"
            if name not in sums:
                sums[name] = Moments(1, x.shape[1], y.shape[1], x.device)
            sums[name].add(x[None], (target - y)[None], target[None])
    sums = merge_moments(sums, device_of(model)) if several() else sums
    views = sorted({part.view for part in parts})
    if "seen" not in sums or any(f"held {view}" not in sums for view in views):
        return "not every run comes to it"
    stack = named_tensors(model)[end.tensor].detach()
    return Problem(
        end.matrix(stack)[:, :, columns].double(),
        sums["seen"],
        tuple(sums[f"held {view}"] for view in views),
        has_shift=False,
        keep=None if keep is None else end.matrix(keep.to(stack.device))[:, :, columns],
        by_surgeon=by_surgeon,
    )
