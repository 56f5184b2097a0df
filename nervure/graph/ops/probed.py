"""Operators without a rule: what a probe finds sure is passed on, everything else is pinned."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from nervure.graph.labels import NONE, LabelArray, TensorLabels
from nervure.graph.operator_probe import Passage, Spec, passages
from nervure.graph.propagate import LabelPropagation, move
from nervure.graph.tape import Entry, Ref


def probe_operator(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """The labels that a probe of the operator passes on (:mod:`nervure.graph.operator_probe`); others are pinned."""
    refs = entry.given
    kwargs = {name: _specs(flow, value) for name, value in entry.kwargs.items()}
    found = passages(entry.op, _specs(flow, entry.args), kwargs)
    if isinstance(found, str):
        labels = [z.labels for r in refs for z in flow.space(r).layers]
        flow.store.pin(labels, f"operation {entry.name!r} has no rule ({flow.at()})")
        _tell(flow, entry, found)
        return []
    _tell(flow, entry, "; ".join(["probed", *_pinned_or_passed(flow, entry, refs, found)]))
    by_output = [[p for p in found if p.output == number] for number in range(len(entry.outs))]
    return [_pass_labels(flow, entry, refs, own) for own in by_output]


def _tell(flow: LabelPropagation, entry: Entry, text: str) -> None:
    place = repr(entry.module) if entry.module else "the model"
    flow.told.setdefault(entry.name, f"operation {entry.name!r} in {place} has no rule: {text}")


def _specs(flow: LabelPropagation, value: Any) -> Any:
    if isinstance(value, Ref):
        known = flow.tape.values[value.id]
        return Spec(known.shape, known.dtype, known.device)
    return tuple(_specs(flow, v) for v in value) if isinstance(value, tuple) else value


def _pinned_or_passed(
    flow: LabelPropagation, entry: Entry, refs: Sequence[Ref], found: Sequence[Passage]
) -> Iterator[str]:
    """Pin what is mixed and suspect what is passed; what was done with each axis that has units, in words."""
    for k, ref in enumerate(refs):
        for axis in range(flow.rank(ref)):
            labels = [z.labels for z in flow.layers(ref, axis)]
            ways = [str(p.to) for p in found if (p.argument, p.axis) == (k, axis)]
            if labels and ways:
                flow.store.suspect(labels, f"operation {entry.name!r} was probed")
                yield f"axis {axis} of argument {k} passes to axis {', '.join(ways)}"
            elif labels:
                flow.store.pin(labels, f"mixed by operation {entry.name!r}, which has no rule ({flow.at()})")
                yield f"axis {axis} of argument {k} is mixed"


def _pass_labels(flow: LabelPropagation, entry: Entry, refs: Sequence[Ref], found: Sequence[Passage]) -> TensorLabels:
    """The labels of one output: what several arguments pass to the same places is united."""
    if not found:
        return TensorLabels()
    shape = flow.shape(entry.outs[found[0].output])
    operands = []
    for k in dict.fromkeys(p.argument for p in found):
        own = [p for p in found if p.argument == k]
        reached = {p.to for p in own}
        layers = tuple(layer for p in own for layer in _carry_layers(flow, refs[k], p, len(shape)))
        sizes = tuple(n if axis in reached else 1 for axis, n in enumerate(shape))
        operands.append((TensorLabels(layers, free=flow.space(refs[k]).free), sizes))
    times = Counter(p.to for p in found)
    for passage in found:
        if times[passage.to] == 1:
            flow.role(flow.layers(refs[passage.argument], passage.axis), "writer")
    return flow.join(operands, shape)


def _carry_layers(flow: LabelPropagation, ref: Ref, passage: Passage, rank: int) -> list[LabelArray]:
    source = np.array(passage.source)
    carried = []
    for layer in flow.layers(ref, passage.axis):
        labels = np.where(source >= 0, layer.labels[np.maximum(source, 0)], NONE)
        carried.append(move(layer.to(labels), passage.to, rank))
    return carried
