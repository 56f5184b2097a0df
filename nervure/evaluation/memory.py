"""How much memory a forward pass takes at its peak."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from nervure.core.check import checked
from nervure.core.inputs import Inputs
from nervure.core.schema import Length
from nervure.graph.composites import SimpleOperators
from nervure.graph.models import device_of, evaluating
from nervure.graph.preserve import restore_after
from nervure.graph.tape import named_tensors


@final
@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes in use when a forward pass needs most.

    Attributes:
        weights: parameters, buffers and tensors in plain attributes, each memory once.
        inputs: what the model was given.
        activations: most bytes of other tensors that were alive at once, in eager mode without gradients. What a kernel
            takes for itself while it runs is not counted on the CPU, where nobody tells; on CUDA it is.
    """

    weights: int
    inputs: int
    activations: int

    @property
    def total(self) -> int:
        """All together."""
        return self.weights + self.inputs + self.activations


@checked
def peak_memory(model: nn.Module, example: Any, *, batch: Length | None = 1) -> Memory:
    """Memory of one forward pass of ``batch`` samples, run in evaluation mode where the model is.

    Args:
        model: any module; modes come back.
        example: see :class:`nervure.Inputs`; samples are repeated or left out.
        batch: samples of the forward pass; None: the example as it is.

    Raises:
        ArgumentError: ``batch`` is below 1, or the example has no tensor with samples.
    """
    device = device_of(model)
    given = Inputs.of(example)
    inputs = (given if batch is None else given.resize(batch)).to(device)
    weights = _bytes(named_tensors(model).values())
    with restore_after(model, inputs), evaluating(model):
        peak = _on_cuda(model, inputs, device) if device.type == "cuda" else _count_bytes(model, inputs)
    return Memory(weights, _bytes(tree_leaves(inputs)), peak)


def _count_bytes(model: nn.Module, inputs: Inputs) -> int:
    known = [*named_tensors(model).values(), *(t for t in tree_leaves(inputs) if isinstance(t, Tensor))]
    with _Alive(known) as alive:
        inputs.run(model)
    return int(alive.peak)


def _on_cuda(model: nn.Module, inputs: Inputs, device: torch.device) -> int:
    # Once before, for what libraries set up at their first call.
    inputs.run(model)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    inputs.run(model)
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device) - before)


class _Alive(SimpleOperators):
    """Follows the memories behind the tensors that operators return, for as long as they are alive."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run it, and look at what is alive afterwards."""
        result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self.known:
                    reference = StorageWeakRef(storage)
                    self.alive[storage._cdata] = (reference, storage.nbytes())
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result


def _bytes(values: Iterable[Any]) -> int:
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in values if isinstance(t, Tensor)}
    return sum(storages.values())
