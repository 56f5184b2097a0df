"""When the memory behind tensors is taken and let go while a model runs."""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

NOWHERE = -1
"""In the place of the number of a storage: a value without one, such as a sparse tensor."""


class StorageLog:
    """The storages that the values on a tape lie in: how large, made at which entry, gone after which.

    A view lies in the storage of what it is a view of, and so does what an in-place operator returns. A storage is gone
    once nothing holds it any more: neither the code, nor the operator that runs.

    Attributes:
        of_value: for each value the number of its storage, or :data:`NOWHERE`.
        first_value: for each storage the first value that lay in it.
        nbytes: its size.
        born: the number of the entry that made it; of what was there before, the number of the first entry.
        last: the number of the last entry during which it was there; None while it still is.
    """

    def __init__(self) -> None:
        self.of_value: list[int] = []
        self.first_value: list[int] = []
        self.nbytes: list[int] = []
        self.born: list[int] = []
        self.last: list[int | None] = []
        self._given: dict[int, tuple[StorageWeakRef, int]] | None = None
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self._tensors: dict[int, list[weakref.ref[Tensor]]] = {}
        """For storages that the tape itself holds, the tensors of the code on them."""

    def add(self, tensor: Tensor, entry: int, *, is_held: bool) -> None:
        """Note where the next value lies, which ``tensor`` holds; ``is_held``: the tape holds its memory too."""
        storage = _storage_of(tensor)
        if storage is None:
            self.of_value.append(NOWHERE)
            return
        known = self._alive.get(storage._cdata) or (self._given or {}).get(storage._cdata)
        if known is None:
            known = self._alive[storage._cdata] = StorageWeakRef(storage), len(self.nbytes)
            self.first_value.append(len(self.of_value))
            self.nbytes.append(storage.nbytes())
            self.born.append(entry)
            self.last.append(None)
        self.of_value.append(known[1])
        if is_held or known[1] in self._tensors:
            self._tensors.setdefault(known[1], []).append(weakref.ref(tensor))

    def bury(self, entry: int) -> None:
        """Note what is gone before an entry begins, of what was made in the run."""
        if self._given is None:
            # What a model holds is much, and stays.
            self._given, self._alive = self._alive, {}
        gone = [key for key, (reference, number) in self._alive.items() if self._is_gone(reference, number)]
        for key in gone:
            self.last[self._alive.pop(key)[1]] = entry - 1

    def _is_gone(self, reference: StorageWeakRef, number: int) -> bool:
        if number in self._tensors:
            return all(tensor() is None for tensor in self._tensors[number])
        return bool(reference.expired())


class NoStorageLog(StorageLog):
    """Notes nothing: for runs after which nobody asks."""

    def add(self, tensor: Tensor, entry: int, *, is_held: bool) -> None:
        """Nothing."""

    def bury(self, entry: int) -> None:
        """Nothing."""


def alias_of(tensor: Tensor) -> Tensor:
    """Another tensor on the same memory, made unseen: whether anybody holds the first one can then be told."""
    if type(tensor) is not Tensor:
        return tensor
    with torch._C._DisableTorchDispatch():
        return tensor.detach()


def _storage_of(tensor: Tensor) -> Any:
    try:
        return tensor.untyped_storage()
    except (RuntimeError, NotImplementedError):
        # Sparse and other tensors of another make.
        return None
