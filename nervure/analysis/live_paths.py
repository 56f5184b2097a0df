"""Which weights of a network lie on a path from an input to an output, asked again and again while its masks change."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from nervure.analysis.build import draw_circuit
from nervure.analysis.neuron_graph import EdgeSet, Flags, Floats, NeuronGraph, WeightUse


@final
@dataclass(frozen=True, slots=True, eq=False)
class LivePaths:
    """The units of a network and what can join them; which places are taken is said by masks.

    Masks are by tensor, boolean, [outputs, inputs of one output, kernel positions or 1]; a tensor without one counts as
    it was when the network was drawn.

    Attributes:
        circuit: the units.
    """

    circuit: NeuronGraph

    @staticmethod
    def of(model: nn.Module, example: Any, *, prefix: str = "") -> "LivePaths":
        """Run the model once and find its units; names of tensors begin with ``prefix``. Raises as ``connectivity``."""
        circuit = draw_circuit(model, example, strength="binary")
        uses = tuple(replace(use, tensor=use.tensor and prefix + use.tensor) for use in circuit.uses)
        return LivePaths(replace(circuit, uses=uses))

    def live(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those weights of the masks that lie on a path; all of a tensor of which nothing is known."""
        places = self.live_places(masks)
        return {name: mask & places[name] if name in places else mask for name, mask in masks.items()}

    def live_places(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Where a weight lies on a path or would, were it there: from a unit that hears to a unit that is read.

        Returns:
            Booleans, [outputs, inputs, 1], of those masks that the units of the network are known of.
        """
        return self._places(masks, self._heard(masks), self._read(masks))

    def bridges(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of :meth:`live_places` those where a weight would bring others to life.

        From a unit that hears to one that is read, where the one is not read yet or the other does not hear.
        """
        is_heard, is_read = self._heard(masks), self._read(masks)
        joins = is_heard & is_read
        # An input that nobody reads keeps no weight from its path.
        joins[self.circuit.inputs] = True
        joined = self._places(masks, joins, joins)
        return {name: places & ~joined[name] for name, places in self._places(masks, is_heard, is_read).items()}

    def _places(self, masks: Mapping[str, Tensor], below: Flags, above: Flags) -> dict[str, Tensor]:
        """Places between a unit of one kind and one of another, in any use of a weight."""
        found: dict[str, Tensor] = {}
        for use in self.circuit.uses:
            if _fits(use, masks):
                starts, ends = _at_inputs(use, below), above[use.outputs].reshape(use.groups, -1)
                places = torch.from_numpy((ends[:, :, None] & starts[:, None]).reshape(len(use.outputs), -1, 1))
                found[use.tensor] = found[use.tensor] | places if use.tensor in found else places
        return found

    def lifelines(self, sizes: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """For each output of the network one path: from the outputs back the largest weight of each unit on the way.

        Args:
            sizes: how large each weight is, 0 or more, by tensor, of the shape of its mask.
            masks: which are there.

        Returns:
            Booleans of the shape of the masks.
        """
        is_heard = self._heard(masks)
        needed = np.zeros(self.circuit.size, dtype=bool)
        needed[self.circuit.outputs] = True
        lines = {name: torch.zeros(mask.shape, dtype=torch.bool) for name, mask in masks.items()}
        # What has just grown is there too, and may be zero.
        there = {name: (sizes[name].double() + 1e-300) * mask for name, mask in masks.items()}
        for bundle, use in reversed(list(self._steps(masks))):
            if use is None:
                _follow_first(bundle, needed, is_heard)
            else:
                _follow_largest(use, needed, is_heard, there[use.tensor], lines[use.tensor])
        return lines

    def _heard(self, masks: Mapping[str, Tensor]) -> Flags:
        """For each unit whether a path leads to it from an input. Shape [units]."""
        found = np.zeros(self.circuit.size, dtype=bool)
        found[self.circuit.inputs] = True
        for bundle, use in self._steps(masks):
            if use is None:
                found[bundle.targets] |= _reach(bundle.matrix, found[bundle.sources])
            else:
                heard = (_taken(use, masks) & _at_inputs(use, found)[:, None]).any(2)
                found[use.outputs] |= heard.reshape(-1)
        return found

    def _read(self, masks: Mapping[str, Tensor]) -> Flags:
        """For each unit whether a path leads from it to an output. Shape [units]."""
        found = np.zeros(self.circuit.size, dtype=bool)
        found[self.circuit.outputs] = True
        for bundle, use in reversed(list(self._steps(masks))):
            if use is None:
                found[bundle.sources] |= _reach(bundle.matrix.T, found[bundle.targets])
            else:
                above = found[use.outputs].reshape(use.groups, -1, 1)
                read = (_taken(use, masks) & above).any(1).reshape(-1)
                found[use.inputs[read & (use.inputs >= 0)]] = True
        return found

    def _steps(self, masks: Mapping[str, Tensor]) -> Iterator[tuple[EdgeSet, WeightUse | None]]:
        """All edges in running order, with the weight that they are of where a mask says which are there."""
        uses = {int(use.outputs[0]): use for use in self.circuit.uses if _fits(use, masks)}
        for bundle in self.circuit.bundles:
            use = uses.get(int(bundle.targets[0])) if bundle.kind == "weight" else None
            yield bundle, use if use is not None and np.array_equal(use.outputs, bundle.targets) else None


def _fits(use: WeightUse, masks: Mapping[str, Tensor]) -> bool:
    mask = masks.get(use.tensor)
    return mask is not None and mask.shape[:2] == use.weight.shape[:2] and bool((use.outputs >= 0).all())


def _taken(use: WeightUse, masks: Mapping[str, Tensor]) -> Flags:
    """Which places are taken, [groups, outputs of one, inputs of one]."""
    there = masks[use.tensor].any(2)
    found: Flags = there.reshape(use.groups, -1, there.shape[1]).numpy()
    return found


def _at_inputs(use: WeightUse, flags: Flags) -> Flags:
    """Flags of units at the inputs of a weight, False where a constant stands. Shape [groups, inputs of one]."""
    return np.where(use.inputs >= 0, flags[use.inputs], False).reshape(use.groups, -1)


def _reach(matrix: Any, flags: Flags) -> Flags:
    numbers: Floats = matrix @ flags.astype(np.float64)
    return numbers > 0


def _follow_first(bundle: EdgeSet, needed: Flags, is_heard: Flags) -> None:
    """Of what joins without weights the first that hears an input is enough."""
    for row in np.flatnonzero(needed[bundle.targets]):
        sources = bundle.sources[bundle.matrix[[row]].nonzero()[1]]
        needed[sources[is_heard[sources]][:1]] = True


def _follow_largest(use: WeightUse, needed: Flags, is_heard: Flags, sizes: Tensor, lines: Tensor) -> None:
    """Of each needed unit the largest weight that hears an input, marked in ``lines``."""
    below = torch.from_numpy(_at_inputs(use, is_heard))
    rows = torch.from_numpy(np.flatnonzero(needed[use.outputs]))
    per_group = len(use.outputs) // use.groups
    heard = sizes[rows] * below[rows // per_group][:, :, None]
    largest, place = heard.flatten(1).max(1)
    rows, place = rows[largest > 0], place[largest > 0]
    lines.flatten(1)[rows, place] = True
    inputs = use.inputs.reshape(use.groups, -1)[rows // per_group, place // sizes.shape[2]]
    needed[inputs] = True
