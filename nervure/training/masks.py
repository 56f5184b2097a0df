"""Masks as data held by the loop: zeroed weights, a boolean mask beside each, and two hooks on the optimizer.

The model stays an ordinary module with an ordinary ``state_dict``; a copy, an export or a later cut sees plain weights.
The masks live in the :class:`Held` handle and act while the optimizer steps.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from nervure.check import checked, nearest
from nervure.errors import ArgumentError, NervureWarning
from nervure.schema import Count, Part

Masks: TypeAlias = Mapping[str, Tensor]

ELEMENTWISE = frozenset(
    {torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam, torch.optim.RMSprop}
)
"""Optimizers in which an entry's step depends on its own gradient and moments only."""

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@final
class Held:
    """Masks that hold; made by :func:`hold`. As a context manager, it lets go at the end of the block."""

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer], masks: Masks, *, early: bool = False) -> None:
        self._optimizers = optimizers
        self._parameters = dict(model.named_parameters(remove_duplicate=False))
        self._early = early
        self._masks: dict[str, Tensor] = {}
        self._veils: dict[str, _Veil] = {}
        self._gradient_hooks: list[RemovableHandle] = []
        self.update(masks)
        self._hooks = [
            hook
            for optimizer in optimizers
            for hook in (
                optimizer.register_step_pre_hook(self._before_step),
                optimizer.register_step_post_hook(self._after_step),
            )
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
        self._veils = {name: _Veil(mask) for name, mask in self._masks.items()}
        self._zero_weights_and_moments()
        if self._early:
            self._watch_gradients()

    def mask_gradients(self) -> None:
        """Zero the gradients of what is masked now, instead of when the optimizer steps.

        For what looks at gradients before: a norm that is clipped should be that of the weights that are there.
        """
        for name, veil in self._veils.items():
            gradient = self._parameters[name].grad
            if gradient is not None and not gradient.is_sparse:
                veil.lay_on(gradient)

    def remove(self) -> None:
        """Let go: later steps move every weight again. Calling it twice does no harm."""
        for hook in (*self._hooks, *self._gradient_hooks):
            hook.remove()

    def __enter__(self) -> "Held":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def _watch_gradients(self) -> None:
        for hook in self._gradient_hooks:
            hook.remove()
        watched = {
            id(p): (p, veil) for name, veil in self._veils.items() if (p := self._parameters[name]).requires_grad
        }
        self._gradient_hooks = [p.register_post_accumulate_grad_hook(veil.on_gradient) for p, veil in watched.values()]

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        # Gradients stay whole until here: whoever decides what to regrow looks at the gradients of what is masked.
        # Where entries do not see each other they may stay so: what they move is put back to zero after the step. That
        # is faster, since square roots of second moments that are exactly zero are slow in some mathematical libraries.
        if type(optimizer) not in ELEMENTWISE:
            self.mask_gradients()

    def _after_step(self, *_: Any) -> None:
        self._zero_weights_and_moments()

    def _zero_weights_and_moments(self) -> None:
        for name, veil in self._veils.items():
            parameter = self._parameters[name]
            veil.lay_on(parameter)
            for state in (optimizer.state.get(parameter, {}) for optimizer in self._optimizers):
                for moment in state.values():
                    if isinstance(moment, Tensor) and moment.shape == parameter.shape:
                        veil.lay_on(moment)


@final
class _Veil:
    """A mask as bits that a tensor is ANDed with.

    Exact, unlike a product (NaN times zero is NaN, a negative number times zero is -0), and on a CPU several times as
    fast as filling.
    """

    def __init__(self, mask: Tensor) -> None:
        self._mask = mask
        self._bits: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    @torch.no_grad()
    def lay_on(self, tensor: Tensor) -> None:
        """Zero, in place, what the mask leaves out."""
        kind = INTEGERS.get(tensor.element_size())
        if kind is None or type(tensor) not in (Tensor, nn.Parameter):
            tensor.masked_fill_(~self._mask.to(tensor.device), 0)
            return
        whole = tensor.view(kind)
        bits = self._bits.get((kind, tensor.device))
        if bits is None:
            # All ones for True; laid out in memory as the tensor is.
            bits = self._bits[kind, tensor.device] = torch.empty_like(whole).copy_(self._mask).neg_()
        whole.bitwise_and_(bits)

    def on_gradient(self, parameter: Tensor) -> None:
        """As a hook of a parameter: zero what the mask leaves out of its gradient."""
        if parameter.grad is not None and not parameter.grad.is_sparse:
            self.lay_on(parameter.grad)


@checked
def hold(
    model: nn.Module, optimizer: Optimizer | Sequence[Optimizer], masks: Masks | None = None, *, early: bool = False
) -> Held:
    """Hold entries of a model's parameters at exactly zero through every step of an optimizer.

    At once, and after every ``optimizer.step()``, the masked entries of the weights and of everything of their shape
    in the optimizer's state (momentum, moments) are zero; their gradients do not enter the step.

    Training a model that is sparse already takes one line, ``hold(model, optimizer)``: what is zero stays zero, see
    :func:`nervure.training.masks_of`.

    Args:
        model: the model; its parameters are zeroed in place.
        optimizer: the optimizer that steps the model's parameters, or several.
        masks: parameter name -> bool tensor of the parameter's shape, True where the entry stays. Copied. None: the
            zeros that the model has now stay.
        early: zero gradients as soon as a backward pass has made them, not when the optimizer steps. For loops that
            look at gradients in between (a norm that is clipped) where you cannot call ``held.mask_gradients()``.
            Methods that decide by the gradients of what is masked then see zeros.

    Returns:
        A handle: ``.masks``, ``.update(masks)`` for rewiring, ``.remove()``; also a context manager.

    Raises:
        ArgumentError: if a name is unknown, a mask has another shape or dtype, the optimizer steps no parameter of
            this model, or no masks are given and the model has no zeros.
    """
    optimizers = (optimizer,) if isinstance(optimizer, Optimizer) else tuple(optimizer)
    stepped = {id(p) for one in optimizers for group in one.param_groups for p in group["params"]}
    if not any(id(p) in stepped for p in model.parameters()):
        raise ArgumentError(
            "the optimizer steps no parameter of this model. Make it after the last cut, from model.parameters()."
        )
    return Held(model, optimizers, _zeros_of(model) if masks is None else masks, early=early)


def _zeros_of(model: nn.Module) -> Masks:
    masks = masks_of(model)
    if not masks:
        raise ArgumentError(
            "no masks are given, and no weight of this model holds a zero to keep. Give masks, such as those of "
            "prune(...).masks, or load the sparse weights first."
        )
    return masks


@checked
def same_everywhere(masks: Masks, *, source: Count = 0) -> dict[str, Tensor]:
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


@checked
def masks_of(model: nn.Module, *, only: Iterable[str] | None = None, least: Part = 0.0) -> dict[str, Tensor]:
    """The masks of a model that is sparse already: True where an entry is not zero.

    By default the parameters of two or more axes that hold a zero. Vectors are left alone, since a bias or the shift
    of a norm starts at zero without being pruned; so are whole matrices of zeros (branches that begin at nothing), with
    a warning that names them, since masks of those would keep them from ever learning.

    A dense matrix with a few zeros by accident gets a mask of these few: nothing tells them from pruned ones, and
    without them it learns as well. Where that matters, ``least`` or ``only`` leave it alone.

    Args:
        model: the model; not changed.
        only: names of the parameters to look at, vectors and matrices of zeros included.
        least: the share of zeros, in [0, 1), from which a parameter counts as sparse. 0: any zero.

    Raises:
        ArgumentError: if ``only`` names an unknown parameter, or ``least`` is out of range.
    """
    parameters = dict(model.named_parameters())
    chosen = [n for n, p in parameters.items() if p.ndim >= 2] if only is None else list(only)
    for name in chosen:
        _require_known(name, parameters)
    masks = {name: parameters[name].detach() != 0 for name in chosen}
    if only is None:
        _warn_of_nothing([name for name, mask in masks.items() if not bool(mask.any())])
        masks = {name: mask for name, mask in masks.items() if bool(mask.any())}
    zeros = {name: int((~mask).sum()) for name, mask in masks.items()}
    return {name: mask for name, mask in masks.items() if zeros[name] >= max(least * mask.numel(), 1)}


def _warn_of_nothing(names: list[str]) -> None:
    if names:
        warnings.warn(
            f"{', '.join(map(repr, names))}: zero throughout. Taken as not trained yet, so left free; name what is "
            "pruned in masks_of(model, only=[...]), and give the masks.",
            NervureWarning,
            stacklevel=4,
        )


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
