"""Masks as data held by the loop: zeroed weights, a boolean mask beside each, and two hooks on the optimizer.

The model stays an ordinary module with an ordinary ``state_dict``; a copy, an export or a later cut sees plain weights.
The masks live in the :class:`Held` handle and act while the optimizer steps.
"""

import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType, TracebackType
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from nervure.core import collectives
from nervure.core.check import checked, nearest
from nervure.core.collectives import is_sharded, whole
from nervure.core.schema import Count, Part
from nervure.core.tensors import has_shape_only
from nervure.errors import ArgumentError, NervureWarning
from nervure.graph.models import unwrap
from nervure.training.veil import Veil

Masks: TypeAlias = Mapping[str, Tensor]

ELEMENTWISE = frozenset(
    {torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam, torch.optim.RMSprop}
)
"""Optimizers in which an entry's step depends on its own gradient and moments only."""

WRAPPED = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts of names that wrappers of torch add within a model."""


@final
class Held:
    """Masks that hold; made by :func:`hold`. As a context manager, it lets go at the end of the block.

    Copies hold copies: ``deepcopy((model, optimizer))``, a pickle or ``torch.save`` of both, and what another process
    is sent, are held as the originals are. A handle that is copied with them is that of the copies.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer], masks: Masks, *, early: bool = False) -> None:
        self._optimizers = list(optimizers)
        self._parameters = parameters_of(model)
        self._others = _stepped_beside(self._parameters, optimizers)
        self._early = early
        self._masks: dict[str, Tensor] = {}
        self._veils: dict[str, Veil] = {}
        self._gradient_hooks: list[RemovableHandle] = []
        self._steps = 0
        self._moved: frozenset[str] = frozenset()
        self._stepped: set[int] = set()
        self.update(masks)
        for optimizer in optimizers:
            optimizer.register_step_pre_hook(self._before_step)
            optimizer.register_step_post_hook(self._after_step)
            # Optimizers leave their hooks out of copies; looked up on the object, this replaces what they say of them.
            vars(optimizer)["__getstate__"] = partial(_state_with_holds, optimizer)

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
        self._masks = {
            name: whole(mask.detach()).to(self._parameters[name].device, copy=True) for name, mask in masks.items()
        }
        self._veils = {name: Veil(mask) for name, mask in self._masks.items()}
        self._stepped = stepped = _stepped_ids(self._optimizers)
        self._moved = frozenset(name for name in self._masks if id(self._parameters[name]) in stepped)
        _warn_of_unmoved([n for n in self._masks if n not in self._moved and self._parameters[n].requires_grad])
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
        for optimizer in self._optimizers:
            for hooks in _step_hooks(optimizer).values():
                for key in [key for key, hook in hooks.items() if _holder(hook) is self]:
                    del hooks[key]
        self._unwatch_gradients()

    def __enter__(self) -> "Held":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_gradient_hooks": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self._early:
            self._watch_gradients()

    def _watch_gradients(self) -> None:
        self._unwatch_gradients()
        watched = {
            id(p): (p, veil) for name, veil in self._veils.items() if (p := self._parameters[name]).requires_grad
        }
        self._gradient_hooks = [p.register_post_accumulate_grad_hook(veil.on_gradient) for p, veil in watched.values()]

    def _unwatch_gradients(self) -> None:
        for hook in self._gradient_hooks:
            hook.remove()
        self._gradient_hooks = []

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._require_same_parameters()
        self._look_for_growth()
        # Gradients stay whole until here: whoever decides what to regrow looks at the gradients of what is masked.
        # Where entries do not see each other they may stay so: what they move is put back to zero after the step. That
        # is faster, since square roots of second moments that are exactly zero are slow in some mathematical libraries.
        if type(optimizer) not in ELEMENTWISE:
            self.mask_gradients()
            # A closure makes gradients anew within the step.
            if any(callable(argument) for argument in (*args[1:], *kwargs.values())):
                self._watch_gradients()

    def _after_step(self, *_: Any) -> None:
        if not self._early:
            self._unwatch_gradients()
        self._zero_weights_and_moments()

    def _require_same_parameters(self) -> None:
        """Raise :class:`ArgumentError` where the weights that are stepped are no longer those that are held."""
        for name, mask in self._masks.items():
            if self._parameters[name].shape != mask.shape:
                raise ArgumentError(
                    f"parameter {name!r} has shape {tuple(self._parameters[name].shape)} now, its mask "
                    f"{tuple(mask.shape)}: it was cut or sharded since hold was called. Call hold again, after that."
                )
        stepped = _stepped_ids(self._optimizers)
        if stepped == self._stepped:
            return
        moved = {name for name in self._masks if id(self._parameters[name]) in stepped}
        gone, self._moved = sorted(self._moved - moved), self._moved | moved
        if gone and not stepped <= {id(p) for p in (*self._parameters.values(), *self._others)}:
            raise ArgumentError(
                f"the optimizer steps other parameters than when hold was called, and no longer {gone[0]!r} "
                f"({len(gone)} masked ones are gone): they were replaced, so their zeros would grow. Call hold again, "
                "after what replaces them (accelerator.prepare, fully_shard, a conversion)."
            )
        self._stepped = stepped

    def _look_for_growth(self) -> None:
        """Warn where zeros have grown between steps; looked for ever more rarely, as the device has to wait for it."""
        self._steps += 1
        if self._steps == 1 or self._steps & (self._steps - 1):
            return
        grown = [name for name, veil in self._veils.items() if veil.misses(self._parameters[name])]
        if grown:
            warnings.warn(
                f"{', '.join(map(repr, grown[:5]))}: not zero where masks hold, before a step. Something else than the "
                "optimizer that was given to hold moves or loads them; give hold every optimizer of the model. They "
                "are zero again after this step.",
                NervureWarning,
                stacklevel=2,
            )

    @torch.no_grad()
    def _zero_weights_and_moments(self) -> None:
        for name, veil in self._veils.items():
            veil.lay_on_again(self._weight_and_moments(self._parameters[name]))

    def _weight_and_moments(self, parameter: nn.Parameter) -> Iterator[Tensor]:
        """The parameter, and all of its shape in the state of its optimizers."""
        yield parameter
        shape = parameter.shape
        for optimizer in self._optimizers:
            for moment in optimizer.state.get(parameter, {}).values():
                if isinstance(moment, Tensor) and moment.shape == shape:
                    yield moment


STEP_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


def _step_hooks(optimizer: Optimizer) -> dict[str, OrderedDict[Any, Any]]:
    """What runs before and after the steps of an optimizer; there is no public way to read it."""
    return {name: vars(optimizer)[name] for name in STEP_HOOKS}


def _holder(hook: Any) -> Held | None:
    owner = getattr(hook, "__self__", None)
    return owner if isinstance(owner, Held) else None


def _state_with_holds(optimizer: Optimizer) -> dict[str, Any]:
    """What a copy of an optimizer is made from: as always, and with the hooks of masks, which are copied with it."""
    state = dict(type(optimizer).__getstate__(optimizer))
    for name, hooks in _step_hooks(optimizer).items():
        ours = [hook for hook in hooks.values() if _holder(hook) is not None]
        if ours:
            # Torch counts its own keys up from 0 in each process; words never meet them.
            state[name] = OrderedDict((f"held {number}", hook) for number, hook in enumerate(ours))
            state["__getstate__"] = partial(_state_with_holds, optimizer)
    return state


def _stepped_ids(optimizers: Iterable[Optimizer]) -> set[int]:
    return {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}


def _stepped_beside(parameters: Mapping[str, Tensor], optimizers: Iterable[Optimizer]) -> tuple[Tensor, ...]:
    """What the optimizers step that is not of the model."""
    own = {id(p) for p in parameters.values()}
    stepped = (p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"])
    return tuple(p for p in stepped if id(p) not in own)


def _warn_of_unmoved(names: list[str]) -> None:
    if names:
        warnings.warn(
            f"{', '.join(map(repr, names[:5]))}: masked, but not among the parameters of the optimizer that was given "
            "to hold. If another optimizer steps them, their zeros will grow: give hold all of them, as a list.",
            NervureWarning,
            stacklevel=5,
        )


def parameters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by name: as the model calls them, and as the module inside wrappers (compiled, spread) does."""
    named = dict(model.named_parameters(remove_duplicate=False))
    inner = dict(unwrap(model).named_parameters(remove_duplicate=False))
    plain = {".".join(part for part in name.split(".") if part not in WRAPPED): p for name, p in inner.items()}
    return plain | inner | named


@checked
def hold(model: nn.Module, optimizer: Any | Sequence[Any], masks: Masks | None = None, *, early: bool = False) -> Held:
    """Hold entries of a model's parameters at exactly zero through every step of an optimizer.

    At once, and after every ``optimizer.step()``, the masked entries of the weights and of everything of their shape
    in the optimizer's state (momentum, moments) are zero; their gradients do not enter the step.

    Training a model that is sparse already takes one line, ``hold(model, optimizer)``: what is zero stays zero, see
    :func:`nervure.training.masks_of`.

    Args:
        model: the model; its parameters are zeroed in place. It may be compiled, spread over devices
            (``DistributedDataParallel``) or sharded (``fully_shard``); names are those of the model inside, or its own.
        optimizer: the optimizer that steps the model's parameters, or several. Of Accelerate, before or after
            ``prepare``; where that replaces parameters (sharding), after it.
        masks: parameter name -> bool tensor of the parameter's (whole) shape, True where the entry stays. Copied. None:
            the zeros that the model has now stay.
        early: zero gradients as soon as a backward pass has made them, not when the optimizer steps. For loops that
            look at gradients in between (a norm that is clipped) where you cannot call ``held.mask_gradients()``.
            Methods that decide by the gradients of what is masked then see zeros.

    Returns:
        A handle: ``.masks``, ``.update(masks)`` for rewiring, ``.remove()``; also a context manager.

    Raises:
        ArgumentError: if a name is unknown, a mask has another shape or dtype, the optimizer steps no parameter of
            this model or is none of torch's, weights are flattened (``FullyShardedDataParallel``), or no masks are
            given and the model has no zeros. Also by a later step, if parameters were cut or replaced since.

    Warns:
        NervureWarning: masked parameters are not among those of the optimizer; or, by a later step, zeros have grown
            between steps, so that something else moves them.
    """
    given = tuple(optimizer) if isinstance(optimizer, Sequence) else (optimizer,)
    optimizers = [stepping for one in given for stepping in _stepping(one)]
    _require_whole_parameters(model, early=early)
    if not _stepped_ids(optimizers) & {id(p) for p in model.parameters()}:
        raise ArgumentError(
            "the optimizer steps no parameter of this model. Make it after the last cut, from model.parameters()."
        )
    return Held(model, optimizers, _zeros_of(unwrap(model)) if masks is None else masks, early=early)


def _stepping(optimizer: Any) -> list[Optimizer]:
    """The optimizers whose steps can be followed: this one, and one that it wraps, as Accelerate's do."""
    inner = getattr(optimizer, "optimizer", None)
    found = _stepping(inner) if isinstance(inner, Optimizer) else []
    # What was not made by the initialiser of torch's optimizers runs no hooks.
    if isinstance(optimizer, Optimizer) and STEP_HOOKS[0] in vars(optimizer):
        found = [optimizer, *found]
    if not found:
        raise ArgumentError(
            f"the steps of {type(optimizer).__module__}.{type(optimizer).__qualname__} cannot be followed: it is no "
            "torch.optim.Optimizer (or does not call its __init__), so masks would not hold. Give hold the "
            "torch.optim.Optimizer that it wraps, or derive it from that class."
        )
    return found


def _require_whole_parameters(model: nn.Module, *, early: bool) -> None:
    """Raise :class:`ArgumentError` for weights that are flattened over processes; warn of what shards do not allow."""
    flat = [name for name, module in model.named_modules() if type(module).__name__ == "FullyShardedDataParallel"]
    if flat:
        raise ArgumentError(
            f"{flat[0] or 'the model'} is a FullyShardedDataParallel, whose flattened weights no mask fits. Shard with "
            "torch.distributed.fsdp.fully_shard instead, then call hold."
        )
    if early and any(map(is_sharded, model.parameters())):
        warnings.warn(
            "early=True does nothing for weights that fully_shard has sharded. Masks hold, but call "
            "held.mask_gradients() before you clip gradients.",
            NervureWarning,
            stacklevel=3,
        )


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
        masks: parameter name -> bool tensor.
        source: the process whose masks count.
    """
    copies = {name: mask.clone() for name, mask in masks.items()}
    collectives.send_first((copies[name] for name in sorted(copies)), source)
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
        if has_shape_only(parameters[name]):
            raise ArgumentError(f"{name} has a shape only (it is on the meta device): give the model weights first.")
    masks = {name: whole(parameters[name].detach()) != 0 for name in chosen}
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
