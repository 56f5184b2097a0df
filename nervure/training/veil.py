"""A mask as bits, laid on tensors that may be of any type, layout and place, or sharded over processes."""

from typing import Any, final

import torch
from torch import Tensor, nn

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def whole(tensor: Tensor) -> Tensor:
    """A tensor that is sharded over processes, put together; any other as it is. All processes have to call this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def is_sharded(tensor: Tensor) -> bool:
    """Whether each process holds a part of the tensor only (a ``DTensor``)."""
    return type(tensor).__name__ == "DTensor"


@final
class Veil:
    """A mask as bits that a tensor is ANDed with.

    Exact, unlike a product (NaN times zero is NaN, a negative number times zero is -0), and on a CPU several times as
    fast as filling.
    """

    def __init__(self, mask: Tensor) -> None:
        self._mask = mask
        self._bits: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self._shards: dict[Any, Veil] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_mask": self._mask, "_bits": {}, "_shards": {}}

    @torch.no_grad()
    def lay_on(self, tensor: Tensor) -> None:
        """Zero, in place, what the mask leaves out."""
        if is_sharded(tensor):
            self._on_shard(tensor).lay_on(tensor.to_local())  # type: ignore[attr-defined]
            return
        kind = INTEGERS.get(tensor.element_size())
        if kind is None or type(tensor) not in (Tensor, nn.Parameter):
            tensor.masked_fill_(~self._mask.to(tensor.device), 0)
            return
        bits = self._bits.get((kind, tensor.device))
        values = tensor.view(kind)
        if bits is None:
            # All ones for True; laid out in memory as the tensor is.
            bits = self._bits[kind, tensor.device] = torch.empty_like(values).copy_(self._mask).neg_()
        values.bitwise_and_(bits)

    @torch.no_grad()
    def misses(self, tensor: Tensor) -> bool:
        """Whether the tensor is not zero somewhere where the mask leaves it out."""
        if is_sharded(tensor):
            return self._on_shard(tensor).misses(tensor.to_local())  # type: ignore[attr-defined]
        return bool(((tensor != 0) & ~self._mask.to(tensor.device)).any())

    def on_gradient(self, parameter: Tensor) -> None:
        """As a hook of a parameter: zero what the mask leaves out of its gradient."""
        if parameter.grad is not None and not parameter.grad.is_sparse:
            self.lay_on(parameter.grad)

    def _on_shard(self, tensor: Any) -> "Veil":
        """The mask of the part of a sharded tensor that is here."""
        mesh, placements = tensor.device_mesh, tensor.placements
        if (mesh, placements) not in self._shards:
            everywhere = [torch.distributed.tensor.Replicate()] * mesh.ndim
            mask = type(tensor).from_local(self._mask.to(tensor.device), mesh, everywhere, run_check=False)
            self._shards[mesh, placements] = Veil(mask.redistribute(mesh, placements).to_local())
        return self._shards[mesh, placements]
