"""A mask as bits, laid on tensors that may be of any type, layout and place, or sharded over processes."""

from collections.abc import Iterable
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from nervure.core.collectives import is_sharded

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
ORDINARY = (Tensor, nn.Parameter)
"""What has memory of its own, laid out as it says."""


class _Seen(NamedTuple):
    """The memory of a tensor that a mask was laid on: how it is laid out, as integers, and the bits for it."""

    strides: tuple[int, ...]
    values: Tensor
    bits: Tensor


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
        # By where the memory is.
        self._seen: dict[int, _Seen] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_mask": self._mask, "_bits": {}, "_shards": {}, "_seen": {}}

    @torch.no_grad()
    def lay_on(self, tensor: Tensor) -> None:
        """Zero, in place, what the mask leaves out."""
        if is_sharded(tensor):
            self._on_shard(tensor).lay_on(tensor.to_local())  # type: ignore[attr-defined]
            return
        values = self._as_integers(tensor)
        if values is None:
            tensor.masked_fill_(~self._mask.to(tensor.device), 0)
        else:
            values.bitwise_and_(self._bits_like(values))

    def lay_on_again(self, tensors: Iterable[Tensor]) -> None:
        """As :meth:`lay_on`, for tensors that come at every step, where gradients are off already.

        In small layers it is calls that cost time: a tensor that lies where it lay takes one. Those of a layer come
        together, since bits that were just read are near.
        """
        places, new = list[int](), False
        for tensor in tensors:
            if type(tensor) not in ORDINARY:
                self.lay_on(tensor)
                continue
            place = tensor.data_ptr()
            seen = self._seen.get(place)
            # The memory of what was seen is held by its values: nothing else can have come to lie there.
            if seen is None or seen.strides != tensor.stride():
                new = True
                self.lay_on(tensor)
                self._note(tensor, place)
            else:
                seen.values.bitwise_and_(seen.bits)
            places.append(place)
        if new:
            self._seen = {place: self._seen[place] for place in places if place in self._seen}

    def _note(self, tensor: Tensor, place: int) -> None:
        values = self._as_integers(tensor)
        if values is not None:
            self._seen[place] = _Seen(tensor.stride(), values, self._bits_like(values))

    def _as_integers(self, tensor: Tensor) -> Tensor | None:
        """The same memory as integers; None where it has none of their sizes, or is no ordinary tensor."""
        kind = INTEGERS.get(tensor.element_size())
        return tensor.detach().view(kind) if kind is not None and type(tensor) in ORDINARY else None

    def _bits_like(self, values: Tensor) -> Tensor:
        """All ones for True; laid out in memory as the values are."""
        bits = self._bits.get((values.dtype, values.device))
        if bits is None:
            bits = self._bits[values.dtype, values.device] = torch.empty_like(values).copy_(self._mask).neg_()
        return bits

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
