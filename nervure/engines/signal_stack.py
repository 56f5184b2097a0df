"""Where a thread's signals are handled: libraries that move that elsewhere are undone."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """``stack_t`` of ``signal.h``, as Linux has it."""

    _fields_ = (("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def keep_signal_stack() -> Iterator[None]:
    """Whatever runs inside, this thread's signals are handled on the stack that they were handled on before.

    On processors with wide registers OpenVINO gives the thread a stack for signals that is too small for them: the next
    signal that Python handles, Ctrl-C for one, ends the process.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    library, before = ctypes.CDLL(None), _Stack()
    library.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        library.sigaltstack(ctypes.byref(before), None)
