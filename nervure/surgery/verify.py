"""The law that makes a cut trustworthy: the cut model computes what the original computes without the removed units.

The reference is the *original* model, run on full tensors under a mode that knows every label: where an operator sums
over an axis of units, the removed ones are set to zero there (their outgoing weights count nothing); where it takes a
statistic over such an axis (a norm, a softmax, a mean), the statistic is taken over the survivors.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from nervure.errors import ForwardError, VerificationError
from nervure.graph.copies import copied
from nervure.graph.example import as_inputs, evaluating, outputs_in, run_example, unwrapped
from nervure.graph.flow import Read
from nervure.graph.modes import isolated
from nervure.graph.preserve import preserved
from nervure.graph.tape import Entry, describe_example, plain_kernels, record
from nervure.graph.trace import Drawing, draw
from nervure.graph.types import Graph
from nervure.plan import Plan
from nervure.surgery.apply import apply, keeps_of
from nervure.surgery.link import silenced, wire_names

TOLERANCES: Mapping[torch.dtype, float] = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}


class HasPlan(Protocol):
    """What :func:`verify` needs of a pruning result."""

    @property
    def model(self) -> nn.Module:
        """The edited model."""

    @property
    def graph(self) -> Graph:
        """The graph of the original."""

    @property
    def plan(self) -> Plan:
        """What was done."""


@final
@dataclass(frozen=True, slots=True)
class Verification:
    """Outcome of a verification: the largest difference of any output, relative to the outputs' largest magnitude."""

    error: float
    tolerance: float
    outputs: int

    @property
    def ok(self) -> bool:
        """Whether the error is within tolerance."""
        return self.error <= self.tolerance

    def __bool__(self) -> bool:
        return self.ok


def verify(model: nn.Module, pruned: HasPlan, example: Any) -> Verification:
    """Check that ``pruned.model`` computes what ``model`` computes without what ``pruned.plan`` removed.

    Both run in evaluation mode on ``example``. Call it on the freshly cut model: training moves the weights apart.

    Args:
        model: the original model.
        pruned: anything with ``model``, ``graph`` and ``plan``, such as what :func:`nervure.prune` returns.
        example: inputs for both, see :func:`nervure.trace`.

    Returns:
        The verification: the error and the tolerance it passed.

    Raises:
        VerificationError: an output has another shape, is not finite where the reference is, or differs by more than
            floating-point accuracy; the original cannot be run without the removed units; or on this example the model
            has other groups than those that were cut.
    """
    model = unwrapped(model)
    with isolated(), evaluating(model):
        drawing = draw(model, example, **pruned.graph.settings)
    _require_same_groups(drawing.graph, pruned, example)
    return verified(model, drawing, pruned, example)


def _require_same_groups(drawn: Graph, pruned: HasPlan, example: Any) -> None:
    """Another form of example may take another way through the model, with other groups: nothing can be compared."""
    if drawn.fingerprint == pruned.graph.fingerprint:
        return
    for name in (cut.group for cut in pruned.plan.cuts):
        found = drawn[name].size if name in drawn else None
        if found != pruned.graph[name].size:
            has = "there is no such group" if found is None else f"it has {found} units"
            raise VerificationError(
                f"on this example ({describe_example(example)}) the model has other groups than those that were cut: "
                f"{name!r} had {pruned.graph[name].size} units, here {has} (fingerprint {pruned.graph.fingerprint}, "
                f"here {drawn.fingerprint}). Verify on an example like the one that was traced, of its shape and dtype."
            )


@isolated()
def verified(model: nn.Module, drawing: Drawing, pruned: HasPlan, example: Any) -> Verification:
    """As :func:`verify`, where the model was drawn already."""
    model = unwrapped(model)
    # A link adds what the original has not: what is compared is the rest.
    added = silenced(pruned.model, wire_names(pruned.graph, pruned.plan))
    with evaluating(model), evaluating(pruned.model), added:
        outcome = compare(
            reference(model, drawing, pruned.graph, pruned.plan, example), outputs_of(pruned.model, example)
        )
        if not outcome and _can_double(model):
            # Deep networks amplify rounding: before calling it wrong, look again in double precision.
            outcome = _in_double(model, drawing, pruned, example)
    if not outcome:
        raise VerificationError(
            f"the pruned model differs from the original without the removed units: relative error "
            f"{outcome.error:.2e}, allowed {outcome.tolerance:.0e}. Nothing that fails this check should be used; "
            "pin the groups in question with ignore=, and please report the model."
        )
    return outcome


class _MisalignedError(Exception):
    """The model does not run the same operators as when it was drawn."""


def reference(
    model: nn.Module, drawing: Drawing, graph: Graph, plan: Plan, example: Any, *, again: bool = False
) -> list[Tensor]:
    """Outputs of ``model`` with the removed units left out of every sum and statistic, dropped blocks silent."""
    keeps = keeps_of(graph, plan)
    rest = Plan(tuple(e for e in plan if e in plan.masks))
    source = apply(model, graph, rest) if rest else model
    reads: dict[int, list[Read]] = {}
    for read in drawing.flow.reads:
        alive = _alive(drawing, read, keeps)
        if not alive.all():
            reads.setdefault(read.entry, []).append(read)

    entries = drawing.flow.tape.entries

    def interpret(index: int, func: Any, args: Any, kwargs: Any) -> Any:
        entry = entries[index] if index < len(entries) else None
        if not isinstance(entry, Entry) or entry.op is not func:
            raise _MisalignedError
        return _restricted(func, args, kwargs, [(r, _alive(drawing, r, keeps)) for r in reads.get(index, ())])

    try:
        with _silent(source, graph, plan):
            _, outputs = record(source, example, interpret=interpret, tag=False, warm=drawing.flow.tape.warm)
    except ForwardError as error:
        misaligned = isinstance(error.__cause__, _MisalignedError)
        if not misaligned or again:
            why = (
                "it does not run the same operators each time"
                if misaligned
                else f"its forward raised {error.__cause__}"
            )
            raise VerificationError(
                f"the original cannot be run without the removed units, so there is nothing to compare with: {why}."
            ) from error
        # A model that keeps something from one run for the next computes less the second time: draw that.
        return reference(
            model, draw(model, example, **graph.settings, auxiliary=False), graph, plan, example, again=True
        )
    return [
        _surviving(t, drawing, number, keeps) for t, number in zip(outputs, drawing.flow.tape.outputs, strict=False)
    ]


def _alive(drawing: Drawing, read: Read, keeps: Mapping[str, np.ndarray]) -> np.ndarray:
    alive = np.ones(len(read.vectors[0]), dtype=bool)
    for labels in read.vectors:
        alive &= drawing.survives(labels, keeps)
    return alive


def _surviving(output: Tensor, drawing: Drawing, number: int, keeps: Mapping[str, np.ndarray]) -> Tensor:
    space = drawing.flow.spaces.get(number)
    for layer in space.layers if space is not None else ():
        for axis in layer.support:
            alive = drawing.survives(layer.labels.reshape(-1), keeps)
            if not alive.all() and len(alive) == output.shape[axis]:
                output = output.index_select(axis, torch.from_numpy(np.flatnonzero(alive)).to(output.device))
    return output


def _restricted(func: Any, args: Any, kwargs: Any, reads: list[tuple[Read, np.ndarray]]) -> Any:
    if not reads:
        return func(*args, **kwargs)
    args = list(args)
    for read, alive in reads:
        if read.kind == "sum":
            x = args[read.argument]
            shape = [-1 if i == read.axis % x.dim() else 1 for i in range(x.dim())]
            mask = torch.from_numpy(alive).to(x.device).reshape(shape)
            args[read.argument] = torch.where(mask, x, torch.zeros_like(x))
    statistics = [(r, alive) for r, alive in reads if r.kind != "sum"]
    if not statistics:
        return func(*args, **kwargs)
    return _over_survivors(func, args, kwargs, statistics)


def _over_survivors(func: Any, args: list[Any], kwargs: Any, reads: list[tuple[Read, np.ndarray]]) -> Any:
    x = args[0]
    places = {r.axis % x.dim(): torch.from_numpy(np.flatnonzero(alive)).to(x.device) for r, alive in reads}
    name = func._schema.name.removeprefix("aten::")
    narrow = list(args)
    narrow[0] = _narrowed(x, places)
    if name in ("native_layer_norm", "layer_norm", "_fused_rms_norm", "rms_norm"):
        first = x.dim() - len(args[1])
        narrow[1] = list(narrow[0].shape[first:])
        inner = {axis - first: index for axis, index in places.items()}
        narrow[2:4] = [_narrowed(t, inner) if isinstance(t, Tensor) else t for t in args[2:4]]
    elif name == "native_group_norm":
        blocks = int(reads[0][0].kind.partition(":")[2])
        alive = reads[0][1].reshape(blocks, -1).any(1)
        narrow[1:3] = [_narrowed(t, {0: places[1]}) if isinstance(t, Tensor) else t for t in args[1:3]]
        narrow[4], narrow[6] = narrow[0].shape[1], int(alive.sum())
    result = func(*narrow, **kwargs)
    if all(r.kind == "reduction" for r, _ in reads):
        return result
    if isinstance(result, Tensor):
        return _widened(result, x, places)
    return type(result)([_widened(result[0], x, places), *result[1:]])


def _narrowed(x: Tensor, places: Mapping[int, Tensor]) -> Tensor:
    for axis, index in places.items():
        x = x.index_select(axis, index)
    return x


def _widened(result: Tensor, x: Tensor, places: Mapping[int, Tensor]) -> Tensor:
    """The survivors put back to their places, zeros elsewhere."""
    full = result.new_zeros(x.shape)
    where = torch.meshgrid(
        *[places.get(axis, torch.arange(n, device=x.device)) for axis, n in enumerate(x.shape)], indexing="ij"
    )
    full[where] = result
    return full


@contextmanager
def _silent(model: nn.Module, graph: Graph, plan: Plan) -> Iterator[None]:
    """Blocks that ``plan`` drops put out zeros (or, where they are whole modules, their input) while this lasts."""

    def zero(module: nn.Module, args: Any, output: Any) -> Any:
        # Off the record: the entries of the tape must keep their numbers.
        with _disable_current_modes():
            if isinstance(output, Tensor):
                return torch.zeros_like(output)
            return type(output)([torch.zeros_like(output[0]), *output[1:]])

    def same(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        # As the output lies in memory: operators are chosen by that.
        with _disable_current_modes():
            return torch.empty_like(output).copy_(args[0] if args else next(iter(kwargs.values())))

    with ExitStack() as stack:
        for edit in plan.drops:
            block = graph.block(edit.block)
            if block.kind == "module":
                hook = model.get_submodule(block.modules[-1]).register_forward_hook(
                    same, with_kwargs=True, prepend=True
                )
                stack.callback(hook.remove)
            elif block.kind == "residual":
                stack.callback(model.get_submodule(block.modules[-1]).register_forward_hook(zero, prepend=True).remove)
        yield


def compare(expected: list[Tensor], found: list[Tensor]) -> Verification:
    """Largest difference of any output, relative to that output's largest magnitude (at least 1)."""
    if len(expected) != len(found):
        raise VerificationError(f"the pruned model returns {len(found)} tensors, the original {len(expected)}.")
    worst, allowed = 0.0, 1e-12
    for i, (a, b) in enumerate(zip(expected, found, strict=True)):
        if a.shape != b.shape:
            raise VerificationError(f"output {i} has shape {tuple(b.shape)}, the original's is {tuple(a.shape)}.")
        if not a.is_floating_point():
            worst = max(worst, float(not torch.equal(a, b)))
            continue
        allowed = max(allowed, TOLERANCES.get(a.dtype, 1e-4))
        if a.numel() == 0:
            continue
        if not torch.equal(torch.isfinite(a), torch.isfinite(b)):
            raise VerificationError(f"output {i} is not finite where the original's is.")
        difference = torch.nan_to_num(a.double() - b.double(), nan=0.0)
        scale = max(1.0, float(torch.nan_to_num(a.double(), posinf=0.0, neginf=0.0).abs().max()))
        worst = max(worst, float(difference.abs().max()) / scale)
    return Verification(worst, allowed, len(expected))


def outputs_of(model: nn.Module, example: Any) -> list[Tensor]:
    """All tensors that ``model`` returns on ``example``; raises VerificationError where it does not run."""
    try:
        with preserved(model, example), plain_kernels(model):
            # Copies: an output may be a buffer, which is put back.
            return [t.clone() for t in outputs_in(run_example(model, example))]
    except Exception as error:
        raise VerificationError(
            f"the pruned model does not run on the example: {type(error).__name__}: {error}."
        ) from error


def _can_double(model: nn.Module) -> bool:
    return all(p.dtype == torch.float32 for p in model.parameters())


def _in_double(model: nn.Module, drawing: Drawing, pruned: HasPlan, example: Any) -> Verification:
    args, kwargs = as_inputs(example)

    def double(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.dtype == torch.float32 else value

    exact = {k: double(v) for k, v in kwargs.items()} if kwargs else tuple(double(v) for v in args)
    wide, narrow = copied(model).double(), copied(pruned.model).double()
    try:
        again = draw(wide, exact, **pruned.graph.settings)
        return compare(reference(wide, again, pruned.graph, pruned.plan, exact), outputs_of(narrow, exact))
    except VerificationError:
        raise
    except Exception:  # a model with casts of its own may not run in double precision; the first verdict stands
        return compare(reference(model, drawing, pruned.graph, pruned.plan, example), outputs_of(pruned.model, example))
