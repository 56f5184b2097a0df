"""Reference networks by name: plain modules, no checkpoint, nothing fetched.

All take ``in_channels`` and ``num_classes``; networks with convolutions end in an average over whatever image is left,
so 28 x 28 grey images fit those made for 32 x 32.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from nervure.core.check import checked
from nervure.core.schema import Seed
from nervure.zoo.models.cifar_resnet import resnet8, resnet20, resnet32, resnet56, resnet110
from nervure.zoo.models.densenet import densenet40, densenet100
from nervure.zoo.models.lenet import lenet5, lenet300
from nervure.zoo.models.mobilenet import mobilenetv2
from nervure.zoo.models.resnet import resnet18, resnet50
from nervure.zoo.models.vgg import vgg11, vgg16, vgg19
from nervure.zoo.models.vit import vit_small, vit_tiny
from nervure.zoo.naming import unknown_name

MODELS: Mapping[str, Callable[..., nn.Module]] = {
    builder.__name__: builder
    for builder in (
        lenet300, lenet5, vgg11, vgg16, vgg19, resnet8, resnet20, resnet32, resnet56, resnet110, resnet18, resnet50,
        mobilenetv2, densenet40, densenet100, vit_tiny, vit_small,
    )
}  # fmt: skip
"""Name of a network -> the function that builds it, whose keyword arguments are its options."""


@checked
def build(name: str, *, seed: Seed | None = None, **options: Any) -> nn.Module:
    """A reference network with fresh weights.

    Args:
        name: a key of ``MODELS``.
        seed: fixes the weights, leaving torch's global generator as it was; None draws from that generator.
        options: keyword arguments of the builder, such as in_channels, num_classes, width.

    Raises:
        ArgumentError: unknown name or option (the message names the nearest), or an option out of its range.
    """
    if name not in MODELS:
        raise unknown_name("network", name, MODELS)
    known = inspect.signature(MODELS[name]).parameters
    for option in options:
        if option not in known:
            raise unknown_name(f"option of {name}", option, known)
    if seed is None:
        return MODELS[name](**options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name](**options)


__all__ = [
    "MODELS", "build", "densenet40", "densenet100", "lenet5", "lenet300", "mobilenetv2", "resnet8", "resnet18",
    "resnet20", "resnet32", "resnet50", "resnet56", "resnet110", "vgg11", "vgg16", "vgg19", "vit_small", "vit_tiny",
]  # fmt: skip
