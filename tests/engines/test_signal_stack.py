"""Ctrl-C and SIGTERM are handled after an engine has run: none leaves a stack that is too small for them."""

import os
import signal

import pytest
import torch
from torch import nn

from nervure.engines import ENGINES, runner


def handled_in_a_child() -> int:
    """What became of a process that handles a signal: 0, or the number of the signal that ended it."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        except KeyboardInterrupt:
            os._exit(0)
        os._exit(1)
    return os.waitpid(child, 0)[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "compile"])
def test_a_signal_is_handled_after_an_engine_ran(engine: str) -> None:
    if ENGINES[engine].extra:
        pytest.importorskip(engine)
    runner(engine, nn.Sequential(nn.Linear(4, 3)).eval(), torch.randn(2, 4))(torch.randn(2, 4))
    assert handled_in_a_child() == 0
