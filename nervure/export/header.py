"""What a file says of a pruned model beside its tensors, and how the model is made again from what it says."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias, final

from torch import Tensor, nn

from nervure.core.container import DamageError, Kind, reading
from nervure.core.schema import convert
from nervure.errors import FileError, NervureError
from nervure.export.packing import unpacked_mask
from nervure.export.state import Shapes, Stored, fill, give_memory, require_same_shapes, shapes_of
from nervure.graph import Cost
from nervure.graph.copies import copy_model
from nervure.graph.models import is_weightless, unwrap
from nervure.graph.tape import named_tensors
from nervure.graph.types import Graph
from nervure.plan import Keep, Plan
from nervure.prune import Pruned, Step
from nervure.surgery import apply
from nervure.surgery.apply import is_plain_attribute

Source: TypeAlias = nn.Module | Callable[[], nn.Module]


@final
@dataclass(frozen=True, slots=True)
class _Costs:
    before: Cost
    after: Cost


@final
@dataclass(frozen=True, slots=True)
class _SavedStep:
    graph: dict[str, Any]
    plan: dict[str, Any]
    method: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ModelHeader(Stored):
    """The header of a pruned model: the fields of a ``Pruned``.

    The plan lacks the masks whose places the packed tensors tell; ``masks`` holds those of tensors that are not packed.
    """

    plan: dict[str, Any]
    graph: dict[str, Any]
    costs: _Costs
    method: str
    masks: dict[str, dict[str, Any]]
    training: bool
    verification: float | None
    unverified: str = ""
    earlier: tuple[_SavedStep, ...] = ()
    fingerprint: str = ""
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


def header_of(pruned: Pruned, stored: Stored, shapes: Shapes) -> ModelHeader:
    """The header of ``pruned``, whose tensors are written as ``stored`` says; ``shapes`` are those of its state."""
    keeps = {name: Keep.of(mask).to_json() for name, mask in pruned.masks.items()}
    return ModelHeader(
        **{f.name: getattr(stored, f.name) for f in fields(stored)},
        plan=_without_packed(pruned.plan.to_json(), {name: keeps[name] for name in stored.packed}),
        graph=pruned.graph.to_json(),
        costs=_Costs(pruned.cost_before, pruned.cost_after),
        method=pruned.method,
        masks={name: keep for name, keep in keeps.items() if name not in stored.packed},
        training=pruned.model.training,
        verification=pruned.verification,
        unverified=pruned.unverified,
        earlier=tuple(_SavedStep(s.graph.to_json(), s.plan.to_json(), s.method) for s in pruned.earlier),
        fingerprint=pruned.graph.fingerprint,
        shapes=dict(shapes),
    )


def rebuild(
    path: str | os.PathLike[str],
    header: ModelHeader,
    stored: Mapping[str, Tensor],
    source: Source,
    kind: Kind,
    *,
    edited: bool = False,
) -> Pruned:
    """The pruned model: the model before pruning with the plans made to it and the tensors of a file in it.

    Args:
        path: the file, for messages.
        header: what it says.
        stored: its tensors.
        source: the model before pruning (it is copied), or what builds it.
        kind: the kind of file.
        edited: whether ``source`` is the pruned model already.

    Raises:
        FileError: the file is damaged, or ``source`` is not the model it was made from.
    """
    with reading(path, kind):
        graph = Graph.from_json(header.graph)
        earlier = tuple(Step(Graph.from_json(s.graph), Plan.from_json(s.plan), s.method) for s in header.earlier)
    smaller = copy_model(unwrap(source)) if isinstance(source, nn.Module) else _built(source, path)
    for step in () if edited else earlier:
        smaller = _replay(path, smaller, step.graph, step.plan)
    with reading(path, kind):
        plan = Plan.from_json(_with_packed(header, stored, shapes_of(named_tensors(smaller))))
    if not edited:
        smaller = _replay(path, smaller, graph, plan)
    if is_weightless(smaller):
        give_memory(smaller)
    keeps = fill(path, smaller, stored, header, kind)
    with reading(path, kind):
        masks = _masks(header, smaller) | {name: keep.tensor() for name, keep in keeps.items()}
    return Pruned(
        smaller.train(header.training),
        plan,
        graph,
        header.costs.before,
        header.costs.after,
        header.method,
        masks,
        header.verification,
        earlier,
        header.unverified,
    )


def _replay(path: str | os.PathLike[str], model: nn.Module, graph: Graph, plan: Plan) -> nn.Module:
    _require_same_model(path, graph, model)
    try:
        return apply(model, graph, plan)
    except NervureError as error:
        raise FileError(f"the plan in {str(path)!r} does not fit this model: {error}") from error


def _masks(header: ModelHeader, model: nn.Module) -> dict[str, Tensor]:
    """The masks of tensors that are not packed."""
    keeps, shapes = {n: Keep.from_json(keep) for n, keep in header.masks.items()}, shapes_of(named_tensors(model))
    for name, keep in keeps.items():
        if shapes.get(name) != keep.shape:
            raise DamageError(f"the mask of {name!r} has shape {keep.shape}, the tensor {shapes.get(name)}.")
    return {name: keep.tensor() for name, keep in keeps.items()}


def _without_packed(plan: dict[str, Any], keeps: Mapping[str, Any]) -> dict[str, Any]:
    """The plan with the masks that the tensors hold already left out."""
    edits = [
        edit | {"keep": None} if edit["edit"] == "mask" and edit["keep"] == keeps.get(edit["tensor"]) else edit
        for edit in plan["edits"]
    ]
    return plan | {"edits": edits}


def _with_packed(header: ModelHeader, stored: Mapping[str, Tensor], shapes: Shapes) -> dict[str, Any]:
    """The plan with the masks that packed tensors tell, where ``shapes`` are those of the model it is for."""
    edits = convert(header.plan.get("edits"), list[dict[str, Any]], "its plan", DamageError)
    for edit in edits:
        if edit.get("keep", ...) is None:
            name = str(edit.get("tensor"))
            packing = header.packed.get(name)
            if packing is None or packing.shape != shapes.get(name):
                raise DamageError(f"the mask of {name!r} is not in the file.")
            edit["keep"] = Keep.of(unpacked_mask(stored, name, packing)).to_json()
    return header.plan | {"edits": edits}


def _built(factory: Callable[[], nn.Module], path: str | os.PathLike[str]) -> nn.Module:
    model = factory()
    if not isinstance(model, nn.Module):
        raise FileError(f"loading {str(path)!r} needs a model; {factory!r} returned a {type(model).__name__}.")
    return model


def _require_same_model(path: str | os.PathLike[str], graph: Graph, model: nn.Module) -> None:
    expected = {
        name: tuple(graph.axes[a].size for a in axes)
        for name, axes in graph.tensors.items()
        if not is_plain_attribute(model, graph, name)
    }
    require_same_shapes(path, expected, shapes_of(named_tensors(model)), ignore_extra=True)
