"""Whatever runs a model of the user's puts back what the run wrote.

A forward pass may write anywhere: attributes, also of configs and in lists, buffers and counters, caches, parameters
that it prepares on its first run, its input, random states, flags of PyTorch. ``preserved`` looks at all that can be
reached from a model and an example, and afterwards puts the same objects with the same contents back in their places.
"""

import random
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from operator import is_
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils._python_dispatch import _disable_current_modes

from nervure.core.collectives import release_whole
from nervure.graph.modes import LOCK, at_home
from nervure.graph.snapshots import Snapshots

Restore: TypeAlias = Callable[[], object]
Saved: TypeAlias = tuple[Restore, Iterable[Any]]
"""How to put a value back as it is now, and the values in it."""


@contextmanager
def restore_after(model: nn.Module, *others: Any) -> Iterator[None]:
    """Put back whatever is written while this lasts in ``model`` and in ``others``; other threads wait meanwhile.

    Put back are attributes and containers that can be reached, contents, versions and gradients of tensors, random
    states and flags. Random numbers inside are those that the caller would draw next. Of parameters and of large
    tensors a copy is made when they are first written, see :class:`nervure.graph.snapshots.Snapshots`.

    Args:
        model: a module; objects and containers in its attributes are seen too.
        others: an example, further modules.
    """
    with LOCK:
        # What is found and put back below are shards: fully_shard exchanges them for whole weights while it runs.
        release_whole(model.modules())
        memory = Snapshots()
        flags, restores = list(_flags()), _find_restores((model, *others), memory)
        try:
            with at_home(model), memory.watch():
                yield
        finally:
            release_whole(model.modules())
            with torch.no_grad():
                memory.put_back()
                _run(reversed(restores))
            _run(flags)


def remember(model: nn.Module) -> Callable[[], None]:
    """A function that puts back attributes and containers of a model as they are now; not what its tensors hold."""
    release_whole(model.modules())
    restores = _find_restores((model,), Snapshots())

    def put_back() -> None:
        release_whole(model.modules())
        _run(reversed(restores))

    return put_back


def _run(restores: Iterable[Restore]) -> None:
    for restore in restores:
        restore()


@_disable_current_modes()
def _find_restores(roots: Iterable[Any], memory: Snapshots) -> list[Restore]:
    """How to put back everything that can be reached from ``roots``, but for contents, which ``memory`` knows.

    Modes do not see it: one that watches what is written would copy all that is looked at here.
    """
    seen: dict[int, Any] = {}
    saves: dict[type, list[Callable[[Any], Saved]]] = {}
    empty: list[Any] = []
    plain: set[type] = set()
    restores: list[Restore] = [lambda: [value.clear() for value in empty if value]]
    found = list(roots)
    while found:
        value = found.pop()
        kind = type(value)
        if kind in _DICTS and not value:
            # Most of what a model is made of: the places for hooks of every module.
            empty.append(value)
            continue
        if kind not in saves:
            saves[kind] = _saves_of(kind)
            found += [_ClassState(kind)] if issubclass(kind, nn.Module) else []
            if not saves[kind]:
                plain.add(kind)
        if kind in plain or id(value) in seen:
            continue
        seen[id(value)] = value
        for save in saves[kind]:
            restore, inside = save(value)
            if restore is not _nothing:
                restores.append(restore)
            found += [one for one in inside if type(one) not in plain]
        if isinstance(value, Tensor) and _has_memory(value):
            memory.add(value)
    return restores


def _saves_of(kind: type) -> list[Callable[[Any], Saved]]:
    """All that has to be saved of values of a type."""
    if issubclass(kind, _PLAIN):
        return []
    if issubclass(kind, Tensor):
        return [_tensor]
    found = [save for one, save in _KINDS.items() if issubclass(kind, one)]
    # The attributes of objects of Python's and PyTorch's own (locks, loggers, ...) are tools, not state.
    if issubclass(kind, SimpleNamespace) or _is_users(kind):
        found.append(partial(_object, tuple(_slots(kind))))
    return found


# -- containers and objects ------------------------------------------------------------------------------------------


def _same(now: Any, before: Any) -> bool:
    return len(now) == len(before) and all(map(is_, now, before))


def _dict(value: dict[Any, Any]) -> Saved:
    before = dict(value)

    def restore() -> None:
        if not (_same(value, before) and all(map(is_, value.values(), before.values()))):
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


def _save_value(value: Iterable[Any]) -> Saved:
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
    return _nothing, [vars(value)]


class _ClassState:
    """The attributes of a class of the user's, and of those it derives from: its modules read and write them."""

    def __init__(self, kind: type) -> None:
        self.kind = kind


def _classes(value: _ClassState) -> Saved:
    before = {kind: dict(vars(kind)) for kind in value.kind.__mro__ if _is_users(kind)}

    def restore() -> None:
        for kind, attributes in before.items():
            _put_back_class(kind, attributes)

    return restore, [held for attributes in before.values() for held in attributes.values()]


def _put_back_class(kind: type, before: dict[str, Any]) -> None:
    now = dict(vars(kind))
    for name in now.keys() - before.keys():
        delattr(kind, name)
    for name, held in before.items():
        if now.get(name) is not held:
            setattr(kind, name, held)


def _object(slots: tuple[str, ...], value: Any) -> Saved:
    """The attributes of an object."""
    before = {name: getattr(value, name) for name in slots if hasattr(value, name)}

    def restore() -> None:
        for name, held in before.items():
            if getattr(value, name, None) is not held:
                object.__setattr__(value, name, held)

    return restore if before else _nothing, [getattr(value, "__dict__", None), *before.values()]


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


def _tensor(value: Tensor) -> Saved:
    """A tensor's version, the memory it looks at and its gradient."""
    if not _has_memory(value):
        return _nothing, ()
    version = None if value.is_inference() else value._version
    before = value.detach()
    gradient, learns = (value.grad, value.requires_grad) if value.is_leaf else (None, None)

    def restore() -> None:
        if learns is not None and value.grad is not gradient:
            value.grad = gradient
        if learns is not None and value.is_leaf and value.requires_grad != learns:
            value.requires_grad_(learns)
        if _view(value) != _view(before):
            value.data = before
        if version is not None and value._version != version:
            _set_version(value, version)

    return restore, ()


def _set_version(value: Tensor, version: int) -> None:
    set_versions: Any = torch._C._autograd._unsafe_set_version_counter
    try:
        set_versions((value,), (version,))
    except TypeError:  # torch 2.6 takes one
        set_versions(value, version)


def _view(value: Tensor) -> tuple[Any, ...]:
    return value.data_ptr(), value.shape, value.stride(), value.dtype


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


_DICTS = (dict, OrderedDict)
_PLAIN = (str, bytes, int, float, complex, type, type(None), type(sys), type(_nothing), torch.dtype, torch.device)
_KINDS: dict[Any, Callable[[Any], Saved]] = {
    nn.Module: _module,
    dict: _dict,
    (list, deque): _sequence,
    set: _set,
    (tuple, frozenset): _save_value,
    np.ndarray: _array,
    torch.Generator: _generator,
    np.random.RandomState: _generator,
    np.random.Generator: _numpy_generator,
    random.Random: _random,
    _ClassState: _classes,
}
"""What to do with a value of some kind."""
