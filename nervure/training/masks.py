"""Masks as data held by the loop: zeroed weights, a boolean mask beside each, and two hooks on the optimizer.

The model stays an ordinary module with an ordinary ``state_dict``; a copy, an export or a later cut sees plain weights.
The masks live in the :class:`Held` handle and act while the optimizer steps.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType, TracebackType
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nervure.check import nearest
from nervure.errors import ArgumentError

Masks: TypeAlias = Mapping[str, Tensor]


@final
class Held:
    """Masks that hold; made by :func:`hold`. As a context manager, it lets go at the end of the block."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, masks: Masks) -> None:
        self._optimizer = optimizer
        self._parameters = dict(model.named_parameters(remove_duplicate=False))
        self._masks: dict[str, Tensor] = {}
        self.update(masks)
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    @property
    def masks(self) -> Masks:
        """The masks as they are now, by parameter name; True stays."""
        return MappingProxyType(self._masks)

    def update(self, masks: Masks) -> None:
        """Replace all masks. What leaves is zero at once; what returns starts at zero, without momentum.

        Raises:
            ArgumentError: as :func:`hold`; the masks of before then keep holding.
        """
        require_masks(masks, self._parameters)
        self._masks = {name: mask.detach().to(self._parameters[name].device, copy=True) for name, mask in masks.items()}
        self._zero_weights_and_moments()

    def mask_gradients(self) -> None:
        """Zero the gradients of what is masked now, instead of when the optimizer steps.

        For what looks at gradients before: a norm that is clipped should be that of the weights that are there.
        """
        self._before_step()

    def remove(self) -> None:
        """Let go: later steps move every weight again. Calling it twice does no harm."""
        for hook in self._hooks:
            hook.remove()

    def __enter__(self) -> "Held":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    @torch.no_grad()
    def _before_step(self, *_: Any) -> None:
        # Gradients stay whole until here: whoever decides what to regrow looks at the gradients of what is masked.
        for name, mask in self._masks.items():
            gradient = self._parameters[name].grad
            if gradient is not None and not gradient.is_sparse:
                _zero(gradient, mask)

    def _after_step(self, *_: Any) -> None:
        self._zero_weights_and_moments()

    @torch.no_grad()
    def _zero_weights_and_moments(self) -> None:
        for name, mask in self._masks.items():
            parameter = self._parameters[name]
            _zero(parameter, mask)
            for moment in self._optimizer.state.get(parameter, {}).values():
                if isinstance(moment, Tensor) and moment.shape == parameter.shape:
                    _zero(moment, mask)


def hold(model: nn.Module, optimizer: Optimizer, masks: Masks) -> Held:
    """Hold entries of a model's parameters at exactly zero through every step of an optimizer.

    At once, and after every ``optimizer.step()``, the masked entries of the weights and of everything of their shape
    in the optimizer's state (momentum, moments) are zero; their gradients do not enter the step.

    Args:
        model: the model; its parameters are zeroed in place.
        optimizer: the optimizer that steps the model's parameters.
        masks: parameter name -> bool tensor of the parameter's shape, True where the entry stays. Copied.

    Returns:
        A handle: ``.masks``, ``.update(masks)`` for rewiring, ``.remove()``; also a context manager.

    Raises:
        ArgumentError: if a name is unknown, a mask has another shape or dtype, or the optimizer steps no parameter of
            this model.
    """
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in stepped for p in model.parameters()):
        raise ArgumentError(
            "the optimizer steps no parameter of this model. Make it after the last cut, from model.parameters()."
        )
    return Held(model, optimizer, masks)


def same_everywhere(masks: Masks, *, source: int = 0) -> dict[str, Tensor]:
    """The masks of process ``source`` in every process of a training in several; without one, copies.

    Each process may have chosen other masks, from other data. All call this, with masks of the same names and shapes,
    before :func:`hold`: gradients are averaged over processes, masks are not.

    Args:
        masks: parameter name -> bool tensor, on a device that the process group can send from.
        source: the process whose masks count.
    """
    copies = {name: mask.clone() for name, mask in masks.items()}
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for name in sorted(copies):
            # As bytes: not every backend sends booleans.
            sent = copies[name].to(torch.uint8)
            torch.distributed.broadcast(sent, src=source)
            copies[name] = sent.bool()
    return copies


def masks_of(model: nn.Module, *, only: Iterable[str] | None = None) -> dict[str, Tensor]:
    """The masks of a model that is sparse already: True where an entry is not zero.

    By default the parameters of two or more axes that hold a zero. Vectors are left alone, since a bias or the shift
    of a norm starts at zero without being pruned; so does a whole matrix now and then (zero-initialised branches):
    name the parameters in ``only`` where that matters.

    Args:
        model: the model; not changed.
        only: names of the parameters to look at, vectors included.

    Raises:
        ArgumentError: if ``only`` names an unknown parameter.
    """
    parameters = dict(model.named_parameters())
    if only is None:
        chosen = [name for name, parameter in parameters.items() if parameter.ndim >= 2]
    else:
        chosen = list(only)
        for name in chosen:
            _require_known(name, parameters)
    masks = {name: parameters[name].detach() != 0 for name in chosen}
    return {name: mask for name, mask in masks.items() if not bool(mask.all())}


def require_masks(masks: Masks, parameters: Mapping[str, Tensor]) -> None:
    """Raise :class:`ArgumentError` unless every mask is a bool tensor of the shape of a known parameter."""
    for name, mask in masks.items():
        _require_known(name, parameters)
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise ArgumentError(f"mask {name!r} is {kind}; give a bool tensor, True where the entry stays.")
        if mask.shape != parameters[name].shape:
            raise ArgumentError(
                f"mask {name!r} has shape {tuple(mask.shape)}, its parameter {tuple(parameters[name].shape)}. "
                "Masks made before a cut do not fit after it: make them anew."
            )


def _require_known(name: str, parameters: Mapping[str, Tensor]) -> None:
    if name in parameters:
        return
    hint = nearest(name, parameters) if parameters else " The model has none."
    raise ArgumentError(f"no parameter is called {name!r}.{hint}")


def _zero(tensor: Tensor, mask: Tensor) -> None:
    # Filling, not multiplying: NaN times zero is NaN, and a negative weight times zero is -0.
    tensor.masked_fill_(~mask.to(tensor.device), 0)
