"""Spectral norm, ``w / (u' w v)``: a cut leaves the weights that survive as they are."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.utils import parametrizations

from nervure.core.tensors import has_shape_only
from nervure.graph.tape import named_tensors


class SpectralNorm(NamedTuple):
    """A weight that is divided by its largest singular value.

    Attributes:
        module: the module that divides; for a hook, which runs before its own module, the one above.
        weight: name of the weight before it is divided.
        left: name of the left singular vector, ``u``.
        right: name of the right one, ``v``.
        matrix: lays the weight out as a matrix, [of u, of v].
    """

    module: str
    weight: str
    left: str
    right: str
    matrix: Callable[[Tensor], Tensor]


def spectral_norms(model: nn.Module) -> Iterator[SpectralNorm]:
    """The weights of a model that have a spectral norm, as parametrization or by the older hook."""
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, parametrizations._SpectralNorm) and hasattr(module, "_u") and name.endswith(".0"):
            weight = f"{name.rpartition('.')[0]}.original"
            yield SpectralNorm(name, weight, f"{name}._u", f"{name}._v", module._reshape_weight_to_matrix)
        for hook in module._forward_pre_hooks.values():
            if type(hook).__name__ == "SpectralNorm":
                of = f"{prefix}{hook.name}"
                above = name.rpartition(".")[0]
                yield SpectralNorm(above, f"{of}_orig", f"{of}_u", f"{of}_v", hook.reshape_weight_to_matrix)


def keep_divisors(model: nn.Module, replaced: dict[int, Tensor]) -> None:
    """Scale ``u`` where it or the weight lost positions, so that ``u' w v`` is what it was.

    Args:
        model: the original.
        replaced: the smaller tensors by the id of those whose place they take; ``u`` is scaled in it.
    """
    tensors = named_tensors(model)
    for norm in spectral_norms(model):
        old = [tensors[name] for name in (norm.weight, norm.left, norm.right) if name in tensors]
        new = [replaced.get(id(t), t) for t in old]
        # Of several parametrizations of one weight only the first is given the weight itself.
        if len(old) < 3 or new[0] is old[0] or any(map(has_shape_only, new)):
            continue
        before, now = (u @ norm.matrix(w.detach()) @ v for w, u, v in (old, new))
        if now != 0:
            replaced[id(old[1])] = new[1] * (before / now)
