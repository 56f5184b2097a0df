"""The modes a caller may be in, and how to leave them: what is asked of a model must not depend on where it is asked.

PyTorch changes what runs by modes of the thread (inference, autocast, dispatch and function modes) and by flags of the
process. ``leave_modes`` leaves the former and lets one thread at a time touch the latter.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch._C import _len_torch_function_stack
from torch.overrides import _pop_mode, _push_mode
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _disable_current_modes

LOCK = threading.RLock()
"""Held while a model of the user's is run or changed, and flags of the process with it."""
_AUTOCAST = ("cpu", "cuda", "xpu", "mps", "hpu")


class _Left(threading.local):
    """The default device that the caller had set, if any."""

    device: torch.device | None = None


_LEFT = _Left()


@contextmanager
def leave_modes() -> Iterator[None]:
    """Leave every mode the caller is in, and keep other threads out, while this lasts.

    Inference mode, ``no_grad``, autocast, dispatch and function modes, the default device and the random state
    (which making a layer moves on) come back afterwards. It can also stand above a function: ``@leave_modes()``.
    """
    with LOCK, ExitStack() as stack:
        stack.enter_context(_without_function_modes())
        stack.enter_context(_disable_current_modes())
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.callback(torch.set_rng_state, torch.get_rng_state())
        for device in _AUTOCAST:
            if torch.is_autocast_enabled(device):
                stack.callback(torch.set_autocast_enabled, device, True)
                torch.set_autocast_enabled(device, False)
        yield


@contextmanager
def whole_convolutions() -> Iterator[None]:
    """On a GPU, without TF32: it rounds what enters a convolution to 10 bits, for some widths and not for others."""
    if not torch.cuda.is_initialized() or not _rounds_convolutions():
        yield
        return
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = True


def _rounds_convolutions() -> bool:
    try:
        return bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:
        # Set by operator, which this flag cannot say: whoever does that has chosen.
        return False


@contextmanager
def _without_function_modes() -> Iterator[None]:
    modes: list[Any] = [_pop_mode() for _ in range(_len_torch_function_stack())]
    before = _LEFT.device
    for mode in modes:
        if isinstance(mode, DeviceContext):
            _LEFT.device = mode.device
    try:
        yield
    finally:
        _LEFT.device = before
        for mode in reversed(modes):
            _push_mode(mode)


@contextmanager
def at_home(model: nn.Module) -> Iterator[None]:
    """The default device that the caller had set, where ``model`` lives there: its forward may count on it."""
    first, device = next(model.parameters(), None), _LEFT.device
    is_home = first is not None and device is not None and first.device.type == device.type
    with device if is_home and device is not None else nullcontext():
        yield


@contextmanager
def disable_compile() -> Iterator[None]:
    """What is given to ``torch.compile`` runs as it was written, and the compiler's caches stay as they are."""
    # The compiler takes seconds to load. Where it is not, nothing is compiled yet, and what asks for it does without.
    loaded = "torch._dynamo" in sys.modules
    with torch.compiler.set_stance("force_eager") if loaded else _without_compiler():
        yield


@contextmanager
def _without_compiler() -> Iterator[None]:
    compile_, mine = torch.compile, threading.get_ident()

    def as_written(model: Any = None, **options: Any) -> Any:
        if threading.get_ident() != mine:
            return compile_(model, **options)
        return model if model is not None else (lambda function: function)

    torch.compile = as_written
    try:
        yield
    finally:
        torch.compile = compile_
