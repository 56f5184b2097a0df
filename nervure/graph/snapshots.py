"""The contents of tensors as they were before something ran, copied where they may change.

Small tensors are copied at once, and parameters and large tensors when an operator is about to write them: a model of
gigabytes needs no second copy of its weights to be run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SMALL = 1 << 20
"""Bytes of a tensor, other than a parameter, that are copied at once: kernels may write buffers and not say so."""


class Snapshots:
    """What tensors hold; see the module's docstring.

    What is written without an operator that this thread calls is seen in small tensors only: by NumPy into the memory
    of ``parameter.data``, or by another thread.
    """

    def __init__(self) -> None:
        self._small: dict[int, torch.UntypedStorage] = {}
        self._large: dict[int, torch.UntypedStorage] = {}
        self._written: list[tuple[torch.UntypedStorage, Tensor]] = []

    def add(self, tensor: Tensor) -> None:
        """Remember what the memory of ``tensor`` holds, from when it is :meth:`watch` on."""
        storage = tensor.untyped_storage()
        is_small = storage.nbytes() <= SMALL and not isinstance(tensor, nn.Parameter)
        (self._small if is_small else self._large).setdefault(storage._cdata, storage)

    def about_to_write(self, tensor: Tensor) -> None:
        """Copy the memory of ``tensor``, the first time."""
        storage = self._large.pop(tensor.untyped_storage()._cdata, None) if self._large else None
        if storage is not None:
            self._written.append((storage, _copy(storage)))

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Watch what is written while this lasts."""
        self._written += [(s, _copy(s)) for key, s in self._small.items() if key not in self._large]
        with _Writes(self):
            yield

    def put_back(self) -> None:
        """Write what the memory held before where it is something else now."""
        for storage, before in self._written:
            if storage.nbytes() != before.nbytes:
                storage.resize_(before.nbytes)
        for storage, before in self._written:
            now = _bytes(storage)
            # What did not change is not written: its memory may be a file's, or shared.
            if not torch.equal(now, before):
                now.copy_(before)


def _copy(storage: torch.UntypedStorage) -> Tensor:
    return _bytes(storage).clone()


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    dtype = torch.int64 if storage.nbytes() % torch.int64.itemsize == 0 else torch.uint8
    return torch.empty(0, dtype=dtype, device=storage.device).set_(storage)


class _Writes(TorchDispatchMode):
    """Tells a memory what operators are about to write."""

    supports_higher_order_operators = True

    def __init__(self, memory: Snapshots) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._memory = memory

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Being skipped by the compiler takes importing it, which costs seconds; it never meets this mode.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _written_places(func) != []:
            for tensor in written_tensors(func, args, kwargs):
                self._memory.about_to_write(tensor)
        return func(*args, **kwargs)


def written_tensors(func: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    """The tensors that an operator may write."""
    places = _written_places(func)
    if places is None:
        yield from (t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor))
        return
    for index, name in places:
        given = args[index] if index < len(args) else kwargs.get(name)
        several = given if isinstance(given, list | tuple) else [given]
        yield from (t for t in several if isinstance(t, Tensor))


@cache
def _written_places(func: Any) -> list[tuple[int, str]] | None:
    """Number and name of the arguments that an operator may write; None: any of them."""
    if isinstance(func, HigherOrderOperator) or func.namespace != "aten":
        # What others write is theirs to say, and many say nothing.
        return None
    # What is detached may be written where no operator is called.
    is_let_go = func is torch.ops.aten.detach.default
    return [
        (i, argument.name)
        for i, argument in enumerate(func._schema.arguments)
        if is_let_go or (argument.alias_info is not None and argument.alias_info.is_write)
    ]
