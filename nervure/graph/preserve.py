"""Whatever runs a model of the user's puts back what the run wrote.

A forward pass may write anywhere: attributes, also of configs and in lists, buffers and counters, caches, parameters
that it prepares on its first run, its input, random states, flags of PyTorch. ``preserved`` looks at all that can be
reached from a model and an example, and afterwards puts the same objects with the same contents back in their places.
"""

import operator
import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from nervure.graph.modes import LOCK, at_home

Restore: TypeAlias = Callable[[], object]
Saved: TypeAlias = tuple[Restore, Iterable[Any]]
"""How to put a value back as it is now, and the values in it."""


@contextmanager
def preserved(model: nn.Module, *others: Any) -> Iterator[None]:
    """Put back whatever is written while this lasts in ``model`` and in ``others``; other threads wait meanwhile.

    Put back are attributes and containers that can be reached, contents, versions and gradients of tensors, random
    states and flags. Random numbers inside are those that the caller would draw next. Costs the memory of the
    model's tensors once more.

    Args:
        model: a module; objects and containers in its attributes are seen too.
        others: an example, further modules.
    """
    with LOCK:
        flags, restores = list(_flags()), _reached((model, *others))
        try:
            with at_home(model):
                yield
        finally:
            with torch.no_grad():
                _run(reversed(restores))
            _run(flags)


def _run(restores: Iterable[Restore]) -> None:
    for restore in restores:
        restore()


def _reached(roots: Iterable[Any]) -> list[Restore]:
    """How to put back everything that can be reached from ``roots``."""
    seen: dict[int, Any] = {}
    restores: list[Restore] = []
    contents: dict[int, Restore] = {}
    found = list(roots)
    while found:
        value = found.pop()
        if id(value) in seen or isinstance(value, _PLAIN):
            continue
        seen[id(value)] = value
        if isinstance(value, Tensor):
            restores += _tensor(value, contents)
            continue
        for save in (save for kind, save in _KINDS.items() if isinstance(value, kind)):
            restore, inside = save(value)
            restores.append(restore)
            found += inside
    # Tensors find their memory again before its contents are put back, and versions come last.
    return [*restores, *contents.values()]


# -- containers and objects ------------------------------------------------------------------------------------------


def _same(now: Iterable[Any], before: Iterable[Any]) -> bool:
    one, other = list(now), list(before)
    return len(one) == len(other) and all(map(operator.is_, one, other))


def _dict(value: dict[Any, Any]) -> Saved:
    before = dict(value)

    def restore() -> None:
        if not (_same(value, before) and _same(value.values(), before.values())):
            value.clear()
            value.update(before)

    return restore, before.values()


def _sequence(value: Any) -> Saved:
    before = list(value)

    def restore() -> None:
        if not _same(value, before):
            value.clear()
            value.extend(before)

    return restore, before


def _set(value: set[Any]) -> Saved:
    before = set(value)

    def restore() -> None:
        if not _same(value, before):
            value.clear()
            value.update(before)

    return restore, before


def _fixed(value: Iterable[Any]) -> Saved:
    return _nothing, list(value)


def _nothing() -> None:
    return None


def _array(value: np.ndarray[Any, Any]) -> Saved:
    before = value.copy()

    def restore() -> None:
        if value.flags.writeable:
            value[...] = before

    return restore, ()


def _module(value: nn.Module) -> Saved:
    return _nothing, [vars(value), *(_ClassState(kind) for kind in type(value).__mro__ if _is_users(kind))]


class _ClassState:
    """The attributes of a class of the user's, which are read and written through its modules."""

    def __init__(self, kind: type) -> None:
        self.kind = kind


def _class(value: _ClassState) -> Saved:
    kind, before = value.kind, dict(vars(value.kind))

    def restore() -> None:
        now = dict(vars(kind))
        for name in now.keys() - before.keys():
            delattr(kind, name)
        for name, held in before.items():
            if now.get(name) is not held:
                setattr(kind, name, held)

    return restore, [held for held in before.values() if isinstance(held, (*_KINDS, Tensor))]


def _object(value: Any) -> Saved:
    """The attributes of an object; those of Python's and PyTorch's own (locks, loggers, ...) are tools, not state."""
    if not isinstance(value, SimpleNamespace) and not _is_users(type(value)):
        return _nothing, ()
    slots = {n: getattr(value, n) for n in _slots(type(value)) if hasattr(value, n)}

    def restore() -> None:
        for name, held in slots.items():
            if getattr(value, name, None) is not held:
                object.__setattr__(value, name, held)

    return restore, [getattr(value, "__dict__", None), *slots.values()]


def _slots(kind: type) -> Iterator[str]:
    for one in kind.__mro__:
        names = one.__dict__.get("__slots__", ())
        yield from (n for n in ([names] if isinstance(names, str) else names) if not n.startswith("__"))


def _is_users(kind: type) -> bool:
    package = kind.__module__.partition(".")[0]
    return package == "__main__" or (package != "torch" and package not in sys.stdlib_module_names)


# -- random states and flags -----------------------------------------------------------------------------------------


def _generator(value: Any) -> Saved:
    state = value.get_state()
    return (lambda: value.set_state(state)), ()


def _random(value: random.Random) -> Saved:
    state = value.getstate()
    return (lambda: value.setstate(state)), ()


def _numpy_generator(value: np.random.Generator) -> Saved:
    state = value.bit_generator.state
    return (lambda: setattr(value.bit_generator, "state", state)), ()


def _flags() -> Iterator[Restore]:
    for get, put in _FLAGS:
        yield _put_back(put, get())
    if torch.cuda.is_initialized():
        yield _put_back(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    yield lambda: torch._C._set_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])


def _put_back(put: Callable[[Any], Any], value: Any) -> Restore:
    return lambda: put(value)


_FLAGS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.get_rng_state, torch.set_rng_state),
    (random.getstate, random.setstate),
    (np.random.get_state, np.random.set_state),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.is_grad_enabled, torch._C._set_grad_enabled),
    (torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled),
    (torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled),
    (torch._C._get_cudnn_enabled, torch._C._set_cudnn_enabled),
    (torch._C._get_cudnn_benchmark, torch._C._set_cudnn_benchmark),
)


# -- tensors ---------------------------------------------------------------------------------------------------------


def _tensor(value: Tensor, contents: dict[int, Restore]) -> Iterator[Restore]:
    """How to put back a tensor's version, the memory it looks at and its gradient; ``contents``: the memory itself."""
    if not _has_memory(value):
        return
    if not value.is_inference():
        yield _put_back_version(value)
    storage = value.untyped_storage()
    contents.setdefault(storage._cdata, _memory(storage))
    yield _view(value)
    if value.is_leaf:
        gradient, learns = value.grad, value.requires_grad
        yield lambda: setattr(value, "grad", gradient) if value.grad is not gradient else None
        yield lambda: value.requires_grad_(learns) if value.is_leaf and value.requires_grad != learns else None


def _has_memory(value: Tensor) -> bool:
    strange = (
        value.is_meta or value.is_nested or isinstance(value, FakeTensor | UninitializedParameter | UninitializedBuffer)
    )
    if strange or value.layout is not torch.strided:
        return False
    try:
        return value.untyped_storage().data_ptr() != 0
    except (RuntimeError, NotImplementedError):
        # Some subclasses are made of other tensors.
        return False


def _put_back_version(value: Tensor) -> Restore:
    version = value._version
    return lambda: torch._C._autograd._unsafe_set_version_counter((value,), (version,))


def _view(value: Tensor) -> Restore:
    before = value.detach()

    def restore() -> None:
        now = (value.data_ptr(), value.shape, value.stride(), value.dtype)
        if now != (before.data_ptr(), before.shape, before.stride(), before.dtype):
            value.data = before

    return restore


def _memory(storage: torch.UntypedStorage) -> Restore:
    before = _bytes(storage).clone()

    def restore() -> None:
        if storage.nbytes() != before.nbytes:
            storage.resize_(before.nbytes)
        now = _bytes(storage)
        # What did not change is not written: its memory may be a file's, or shared.
        if not torch.equal(now, before):
            now.copy_(before)

    return restore


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    dtype = torch.int64 if storage.nbytes() % torch.int64.itemsize == 0 else torch.uint8
    return torch.empty(0, dtype=dtype, device=storage.device).set_(storage)


_PLAIN = (str, bytes, int, float, complex, type, type(None), type(sys), type(_nothing), torch.dtype, torch.device)
_KINDS: dict[Any, Callable[[Any], Saved]] = {
    nn.Module: _module,
    dict: _dict,
    (list, deque): _sequence,
    set: _set,
    (tuple, frozenset): _fixed,
    np.ndarray: _array,
    torch.Generator: _generator,
    np.random.RandomState: _generator,
    np.random.Generator: _numpy_generator,
    random.Random: _random,
    _ClassState: _class,
    object: _object,
}
"""What to do with a value of some kind, from the first to the last that fits."""
