"""What a stock loader makes of a pruned model: libraries build a model from its config and fill in weights by name."""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

SHOWN = 4


def stock_differences(model: nn.Module) -> str:
    """In what a model that ``from_pretrained`` builds from the config of ``model`` differs from it.

    It is built without weights. Tensors are compared by name and shape, and plain numbers that are fractions by value:
    scales are often made of sizes where a model is built. Empty where there are no differences, or where nothing
    builds such models from configs.
    """
    config = getattr(model, "config", None)
    if not callable(getattr(type(model), "from_pretrained", None)) or not callable(getattr(config, "to_dict", None)):
        return ""
    try:
        stock = build_from_config(type(model), config)
    except Exception as error:  # whatever a constructor refuses with
        return f"it cannot be built from its config ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    return describe_differences(model, stock)


def describe_differences(model: nn.Module, stock: nn.Module) -> str:
    """The first differences of what was built from the config of ``model``; empty where there are none."""
    found = [*differences_between(model, stock)]
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return f"built from its config, {', '.join(found[:SHOWN])}{more}" if found else ""


def differences_between(model: nn.Module, other: nn.Module) -> Iterator[str]:
    """In what ``other`` differs from ``model``: names and shapes of tensors, and fractions by value."""
    yield from _tensors(model, other)
    yield from _fractions(model, other)


def build_from_config(kind: Any, config: Any) -> nn.Module:
    """What ``kind`` builds from what ``config`` says when it is written and read again, without weights."""
    read = config.to_dict()
    again = type(config).from_dict(read) if callable(getattr(type(config), "from_dict", None)) else type(config)(**read)
    with torch.device("meta"), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stock: nn.Module = kind(again)
    return stock


def _tensors(model: nn.Module, stock: nn.Module) -> Iterator[str]:
    have, built = (
        {name: tuple(t.shape) for name, t in m.state_dict().items() if isinstance(t, torch.Tensor)}
        for m in (model, stock)
    )
    for name in dict.fromkeys((*have, *built)):
        if have.get(name) != built.get(name):
            yield f"{name} is {built.get(name, 'missing')} where this has {have.get(name, 'nothing')}"


def _fractions(model: nn.Module, stock: nn.Module) -> Iterator[str]:
    parts = dict(stock.named_modules())
    for name, module in model.named_modules():
        other: Mapping[str, Any] = vars(parts[name]) if name in parts else {}
        # Rates of dropout follow the number of layers, and say nothing of what is computed.
        own = {} if "drop" in type(module).__name__.lower() else vars(module)
        for key, value in own.items():
            if type(value) is float and type(other.get(key)) is float and other[key] != value:
                yield f"{name}.{key} is {other[key]:.4g} where this has {value:.4g}"
