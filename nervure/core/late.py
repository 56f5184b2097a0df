"""What a GPU is asked late: to look at a number of its own at once, the processor waits for all that it has ordered.

Numbers are sent from pinned memory, which needs no waiting, and read some steps after they were ordered. A check that
has to look at numbers makes NaN of what it would have refused; whoever reads that checks again, and says what is wrong.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

STEPS_LATE = 2
"""Enough for an accelerator to have work while the processor reads."""

_CHECKS_LATE: ContextVar[bool] = ContextVar("checks_late", default=False)


def steps_late(device: torch.device) -> int:
    """After how many further steps a number on this device is read; 0: at once."""
    return STEPS_LATE if device.type == "cuda" else 0


def send(tensor: Tensor, device: torch.device | None) -> Tensor:
    """The tensor on another device; to a GPU from pinned memory, so that the processor need not wait for the copy."""
    if device is None or device.type != "cuda" or tensor.device.type != "cpu" or tensor.layout != torch.strided:
        # Waits: a copy to the processor that does not would be read before it is there.
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@contextmanager
def checking_late(active: bool) -> Iterator[None]:
    """Within the block, labels are not read: those that are no classes make the loss NaN."""
    token = _CHECKS_LATE.set(active)
    try:
        yield
    finally:
        _CHECKS_LATE.reset(token)


def checks_late() -> bool:
    """Whether labels are not to be read now."""
    return _CHECKS_LATE.get()


def fit_classes(labels: Tensor, classes: int, ignore: int | None = None) -> tuple[Tensor, Tensor]:
    """The labels with 0 for what is no class, and whether there was such a label: a bool on the device."""
    unfit = (labels < 0) | (labels >= classes)
    if ignore is not None:
        unfit &= labels != ignore
    return labels.masked_fill(unfit, 0), unfit.any()


@dataclass(frozen=True, slots=True)
class _Reading:
    """A number on its way to the processor, and who is told it."""

    value: Tensor
    arrived: "torch.cuda.Event | None"
    tell: Callable[[float], None]


@final
@dataclass(slots=True)
class LateReader:
    """Reads numbers of an accelerator in order, each so many steps after it was noted.

    Attributes:
        late: after how many further numbers one is read; 0: at once.
    """

    late: int
    _waiting: deque[_Reading] = field(default_factory=deque)

    def note(self, value: Tensor, tell: Callable[[float], None]) -> None:
        """Take a tensor of one number; ``tell`` is called with it when it is read, and may raise."""
        self._waiting.append(_Reading(value.detach(), None, tell) if not self.late else _start_reading(value, tell))
        while len(self._waiting) > self.late:
            self._read()

    def finish(self) -> None:
        """Read all that was noted."""
        while self._waiting:
            self._read()

    def _read(self) -> None:
        reading = self._waiting.popleft()
        if reading.arrived is not None:
            reading.arrived.synchronize()
        reading.tell(float(reading.value))


def _start_reading(value: Tensor, tell: Callable[[float], None]) -> _Reading:
    if value.device.type != "cuda":
        return _Reading(value.detach().clone(), None, tell)
    with torch.cuda.device(value.device):
        arrived = torch.cuda.Event()
        # Without waiting, a copy to the processor lands in pinned memory.
        copy = value.detach().to("cpu", non_blocking=True)
        arrived.record()
    return _Reading(copy, arrived, tell)
