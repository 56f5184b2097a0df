"""The same random numbers in two runs of two models: what is drawn in ``forward`` is drawn alike in both.

Each random operator of a run starts from a seed that is its number in the run, so that a smaller draw does not move
those after it. A draw over units of which some are gone takes what the survivors got in the other run.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nervure.graph.composites import SimpleOperators


def is_random(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call of an operator draws random numbers: attention with dropout does, and without it does not."""
    is_tagged, dropout = _chance_of(func)
    if not is_tagged or dropout is None:
        return is_tagged
    return bool(args[dropout] if dropout < len(args) else kwargs.get("dropout_p", 0.0))


@cache
def _chance_of(func: Any) -> tuple[bool, int | None]:
    """Whether an operator may draw random numbers, and the number of its argument that is the share to drop."""
    if torch.Tag.nondeterministic_seeded not in getattr(func, "tags", ()):
        return False, None
    names = [argument.name for argument in func._schema.arguments]
    return True, names.index("dropout_p") if "dropout_p" in names else None


def seed(number: int) -> None:
    """Start PyTorch's random numbers from ``number``, on every device that is there."""
    if torch.accelerator.is_available():
        torch.manual_seed(number)
    else:
        # The same without looking for devices, which costs more than most operators do.
        torch.default_generator.manual_seed(number)


@contextmanager
def fixed_seed(model: nn.Module) -> Iterator[None]:
    """Every random state (of PyTorch, NumPy and Python) at its start while this lasts, then as it was."""
    devices = {t.device.index for t in model.parameters() if t.device.type == "cuda"}
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=sorted(d for d in devices if d is not None)):
        seed(0)
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


class SameNoise(SimpleOperators):
    """Seeds each random operator by its number; ``noise`` holds what the operators of these numbers must give."""

    def __init__(self, noise: Mapping[int, Tensor]) -> None:
        super().__init__()
        self._noise, self._drawn = noise, 0

    def compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run it; where it draws, from its number."""
        if not is_random(func, args, kwargs):
            return func(*args, **kwargs)
        seed(self._drawn)
        kept = self._noise.get(self._drawn)
        self._drawn += 1
        out = func(*args, **kwargs)
        fits = kept is not None and isinstance(out, Tensor) and kept.shape == out.shape
        return out.copy_(kept) if fits else out
