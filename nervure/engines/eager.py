"""The module as it is, and as ``torch.compile`` makes it: both run on the device that it is on."""

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from nervure.core.inputs import Inputs
from nervure.engines.engine import BF16, Engine, Program, Runner, threads_of_torch
from nervure.engines.quiet import quiet
from nervure.errors import EngineError

Call = Callable[..., Any]


def _prepare_eager(model: nn.Module, example: Any, precision: str) -> Program:
    return Program(lambda threads: _runner(model, _device_type(model), precision, threads))


def _prepare_compiled(model: nn.Module, example: Any, precision: str) -> Program:
    def start(threads: int) -> Runner:
        try:
            with quiet():
                runner = _runner(_compile_model(model), _device_type(model), precision, threads)
                runner(example)
        except Exception as error:
            raise EngineError(
                f"torch.compile cannot run {type(model).__name__}: {type(error).__name__}: {_first_line(error)}"
            ) from error
        return runner

    return Program(start)


def _runner(call: Call, device: str, precision: str, threads: int) -> Runner:
    def run(inputs: Any) -> Any:
        given = Inputs.of(inputs)
        lower = torch.autocast(device, torch.bfloat16) if precision == BF16 else nullcontext()
        with threads_of_torch(threads), torch.no_grad(), lower:
            return given.run(call)

    return run


_NUMBERS = itertools.count()


def _compile_model(model: nn.Module) -> Call:
    def call(*args: Any, **kwargs: Any) -> Any:
        return model(*args, **kwargs)

    # What is compiled is kept with the code object, eight versions at most: after that torch silently runs the code as
    # it is. Two networks of one class would share theirs.
    call.__code__ = call.__code__.replace(co_name=f"compiled_{next(_NUMBERS)}")
    compiled: Call = torch.compile(call, dynamic=False)
    return compiled


def _device_type(model: nn.Module) -> str:
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    return "cpu" if first is None else first.device.type


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no reason given").splitlines()[0]


EAGER = Engine("eager", _prepare_eager, follows=True)
COMPILED = Engine("compile", _prepare_compiled, follows=True)
