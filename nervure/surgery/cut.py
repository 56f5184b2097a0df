"""Cutting: every tensor loses the positions whose units leave, every size kept as an integer follows."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from nervure.core.tensors import has_shape_only
from nervure.errors import PlanError
from nervure.graph.copies import copy_model
from nervure.graph.declared import accepted_values
from nervure.graph.sizes import Attribute, read_attribute, write_attribute
from nervure.graph.tape import named_tensors
from nervure.graph.types import Graph, SizeAttribute
from nervure.surgery.attention import ResizedAttention
from nervure.surgery.spectral import keep_divisors, spectral_norms


def copied_without(
    model: nn.Module,
    graph: Graph,
    keeps: Mapping[str, np.ndarray],
    shared: Iterable[nn.Parameter] = (),
    *,
    is_last: bool = False,
) -> nn.Module:
    """A copy of ``model`` without the units that leave. ``keeps`` maps group names to booleans, True survives.

    The parameters in ``shared`` are those of ``model`` where they lose nothing. Where ``is_last``, ``model`` is of no
    use afterwards: memory of what is cut is given back on the way.
    """
    replaced = _cut_tensors(model, graph, keeps, is_last=is_last)
    # A copy that finds the smaller tensors in its memo never makes the larger ones.
    memo: dict[int, Any] = {id(p): p for p in shared} | dict(replaced)
    result = copy_model(model, memo)
    _resize(result, graph, keeps)
    changed = {id(t) for t in replaced.values()}
    for module in result.modules():
        _describe_itself(module, changed)
    return result


def kept_positions(graph: Graph, keeps: Mapping[str, np.ndarray], tensor: str) -> list[np.ndarray | None]:
    """For each axis of ``tensor`` the surviving positions, or None where all survive."""
    positions: list[np.ndarray | None] = []
    for number in graph.tensors[tensor]:
        axis = graph.axes[number]
        alive = axis.kept(keeps)
        positions.append(None if alive.all() else np.flatnonzero(alive))
    return positions


def cut_positions(graph: Graph, keeps: Mapping[str, np.ndarray], name: str, held: Tensor) -> list[np.ndarray | None]:
    """As :func:`kept_positions`, of the tensor that a model holds; a cache of another size is made anew by forward."""
    return kept_positions(graph, keeps, name) if _has_shape(held, graph, name) else [None] * held.ndim


def slice_tensor(tensor: Tensor, positions: list[np.ndarray | None]) -> Tensor:
    """The surviving positions of a tensor along each axis."""
    if has_shape_only(tensor):
        return tensor.new_empty([n if p is None else len(p) for n, p in zip(tensor.shape, positions, strict=True)])
    for axis, index in enumerate(positions):
        if index is not None:
            tensor = tensor.index_select(axis, torch.from_numpy(index).to(tensor.device))
    return tensor


def _has_shape(tensor: Tensor, graph: Graph, name: str) -> bool:
    return tuple(tensor.shape) == tuple(graph.axes[a].size for a in graph.tensors[name])


def _laid_like(old: Tensor, new: Tensor) -> Tensor:
    """``new`` with its axes in the order in memory that ``old`` has them in, as in ``channels_last``."""
    if old.is_contiguous() or has_shape_only(old):
        return new.contiguous()
    order = sorted(range(old.ndim), key=old.stride, reverse=True)
    back = [order.index(axis) for axis in range(old.ndim)]
    return new.permute(order).contiguous().permute(back)


def _cut_tensors(
    model: nn.Module, graph: Graph, keeps: Mapping[str, np.ndarray], *, is_last: bool
) -> dict[int, Tensor]:
    """The smaller tensors, by the id of those whose place they take."""
    replaced: dict[int, Tensor] = {}
    # Norms of weights are corrected by what these were.
    is_last = is_last and not weight_norms(model) and not any(spectral_norms(model))
    held = named_tensors(model) if keeps else {}
    for name in graph.tensors if keeps else ():
        old = held.get(name)
        # A cache may not be there yet.
        positions = [] if old is None else cut_positions(graph, keeps, name, old)
        if old is not None and any(p is not None for p in positions):
            new = _laid_like(old, slice_tensor(old.detach(), positions))
            replaced[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
            if is_last and type(old) is nn.Parameter:
                old.data = old.data.new_empty(0)
    _rescale(model, graph, keeps, replaced)
    keep_divisors(model, replaced)
    return replaced


# -- weight norm: w = g v / |v| ------------------------------------------------------------------------------------


class _WeightNorm(NamedTuple):
    """A weight-normed weight: names of magnitude and direction, and the axis that the norm leaves."""

    magnitude: str
    direction: str
    axis: int
    tensor: Tensor


def weight_norms(model: nn.Module) -> list[_WeightNorm]:
    """The weights of a model that have a weight norm, as parametrization or by the older hook."""
    found = []
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, torch.nn.utils.parametrizations._WeightNorm):
            holder = name.rpartition(".")[0]
            v = tensor_of(model, f"{holder}.original1")
            found.append(_WeightNorm(f"{holder}.original0", f"{holder}.original1", int(module.dim), v))
        for hook in module._forward_pre_hooks.values():
            if type(hook).__name__ == "WeightNorm":
                direction = f"{prefix}{hook.name}_v"
                found.append(
                    _WeightNorm(f"{prefix}{hook.name}_g", direction, int(hook.dim), tensor_of(model, direction))
                )
    return found


def _norms(pair: _WeightNorm) -> Tensor:
    axes = [a for a in range(pair.tensor.ndim) if a != pair.axis % pair.tensor.ndim]
    norms: Tensor = torch.linalg.vector_norm(pair.tensor.detach(), dim=axes, keepdim=True)
    return norms


def _rescale(model: nn.Module, graph: Graph, keeps: Mapping[str, np.ndarray], replaced: dict[int, Tensor]) -> None:
    """A direction that lost inputs has a smaller norm: its magnitude shrinks with it, so that the weights stay."""
    for pair in weight_norms(model) if replaced else ():
        g, v = tensor_of(model, pair.magnitude), replaced.get(id(pair.tensor))
        if v is None:
            continue
        before = _norms(pair)
        alive = kept_positions(graph, keeps, pair.direction)[pair.axis]
        old = slice_tensor(before, [alive if a == pair.axis else None for a in range(before.ndim)])
        now = _norms(pair._replace(tensor=v))
        new = replaced.get(id(g), g).detach() * now / old.clamp_min(torch.finfo(old.dtype).tiny)
        replaced[id(g)] = nn.Parameter(new, g.requires_grad)


def tensor_of(model: nn.Module, name: str) -> Tensor:
    """The parameter, buffer or tensor attribute of that qualified name."""
    prefix, _, key = name.rpartition(".")
    tensor = getattr(model.get_submodule(prefix), key)
    assert isinstance(tensor, Tensor)
    return tensor


def _resize(model: nn.Module, graph: Graph, keeps: Mapping[str, np.ndarray]) -> None:
    wanted: dict[Attribute, tuple[int, SizeAttribute]] = {}
    for resize in graph.resizes:
        size = resize.after(int(graph.axes[resize.axis].kept(keeps).sum()))
        attribute = Attribute(resize.module, resize.attribute)
        if wanted.setdefault(attribute, (size, resize))[0] != size:
            raise PlanError(
                f"{resize.module or 'the model'} keeps one number, {resize.attribute}={resize.size}, for two sizes "
                f"that this plan makes different ({wanted[attribute][0]} and {size}). Cut the groups that use it alike."
            )
    for attribute, (size, resize) in wanted.items():
        if size != resize.size and read_attribute(model, attribute) == resize.size:
            write_attribute(model, attribute, size)
    for attribute, size in accepted_values(model, graph, keeps).items():
        write_attribute(model, attribute, size)


# -- what standard modules say of themselves -----------------------------------------------------------------------


def _describe_itself(module: nn.Module, changed: set[int]) -> None:
    """Bring the widths that standard modules print and check in line with their tensors."""
    own = [*module._parameters.values(), *module._buffers.values()]
    if isinstance(module, nn.MultiheadAttention):
        own.append(module.out_proj.weight)
    if not any(id(t) in changed for t in own):
        return
    for kind, describe in _DESCRIPTIONS.items():
        if isinstance(module, kind):
            describe(module)
            return


def _linear(m: Any) -> None:
    m.out_features, m.in_features = _shape(m)


def _conv(m: Any) -> None:
    shape, groups = _shape(m), int(m.groups)
    if m._parameters.get("weight") is not None and shape[0] == 1 and shape[1] == 1:
        groups = 1
    if m.transposed:
        m.in_channels, m.out_channels = shape[0], shape[1] * groups
    else:
        m.out_channels, m.in_channels = shape[0], shape[1] * groups
    m.kernel_size = shape[2:]


def _norm(m: Any) -> None:
    held = next(t for t in (*m._parameters.values(), *m._buffers.values()) if t is not None and t.ndim)
    m.num_features = held.shape[0]


def _layer_norm(m: Any) -> None:
    m.normalized_shape = _shape(m)


def _group_norm(m: Any) -> None:
    m.num_channels = _shape(m)[0]


def _embedding(m: Any) -> None:
    m.num_embeddings, m.embedding_dim = _shape(m)


def _recurrent(m: Any) -> None:
    m.input_size = m.weight_ih_l0.shape[1]
    m.hidden_size = m.weight_hh_l0.shape[0] // {"LSTM": 4, "GRU": 3}.get(m.mode, 1)
    if m.proj_size:
        m.proj_size = m.weight_hh_l0.shape[1]


def _prelu(m: Any) -> None:
    m.num_parameters = _shape(m)[0]


def _shape(m: Any) -> tuple[int, ...]:
    # Parametrised weights are computed by the attribute.
    return tuple(m.weight.shape)


_DESCRIPTIONS = {
    nn.MultiheadAttention: ResizedAttention.adopt,
    nn.Linear: _linear,
    nn.modules.conv._ConvNd: _conv,
    nn.modules.batchnorm._NormBase: _norm,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.Embedding: _embedding,
    nn.RNNBase: _recurrent,
    nn.PReLU: _prelu,
}
