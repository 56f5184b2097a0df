"""Operators of a library that nervure has never seen, each with something of its own."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks import Head, cbr, conv, seeded

CALLS = {"count": 0}


def operator(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Register under its name as ``strange::name``; what is returned can be kept by a module that is copied."""
    registered = torch.library.custom_op(f"strange::{function.__name__}", function, mutates_args=())
    return lambda *args: registered(*args)


@operator
def swish_gate(x: Tensor, gate: Tensor) -> Tensor:
    return x * torch.sigmoid(gate)


@operator
def backwards(x: Tensor) -> Tensor:
    return x.flip(1)


@operator
def channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).clone()


@operator
def twice(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 1)


@operator
def flat(x: Tensor) -> Tensor:
    return x.flatten(1).clone()


@operator
def squeeze(x: Tensor) -> Tensor:
    return x.amax((2, 3))


@operator
def project(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight)


@operator
def channel_norm(x: Tensor) -> Tensor:
    return x / (1 + x.abs().mean(1, keepdim=True))


@operator
def shuffled(x: Tensor) -> Tensor:
    return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2).contiguous()


@operator
def by_energy(x: Tensor) -> Tensor:
    return x[:, x.abs().mean((0, 2, 3)).argsort()].contiguous()


@operator
def gated_by_sum(x: Tensor) -> Tensor:
    return x * float(x.sum() > 0)


@operator
def noisy(x: Tensor) -> Tensor:
    return x + 0.01 * torch.randn_like(x)


@operator
def counting(x: Tensor) -> Tensor:
    CALLS["count"] += 1
    return x * CALLS["count"]


@operator
def six_only(x: Tensor) -> Tensor:
    return x * torch.linspace(1, 2, 6).reshape(1, 6, 1, 1)


@operator
def picked(x: Tensor, index: Tensor) -> Tensor:
    return x[:, index].contiguous()


@operator
def huge(x: Tensor) -> Tensor:
    return x + 1


class Through(nn.Module):
    """Convolution, the operator, convolution: ``reads`` channels are read after it."""

    def __init__(self, call: Callable[[Tensor], Tensor], reads: int = 6) -> None:
        super().__init__()
        self.first, self.second, self.head, self.call = cbr(3, 6), conv(reads, 5), Head(5), call

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(self.call(self.first(x)))))


def through(call: Callable[[Tensor], Tensor], reads: int = 6) -> nn.Module:
    """A seeded network with ``call`` in its middle."""
    return seeded(lambda: Through(call, reads))
