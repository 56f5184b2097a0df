"""What a cut model must compute, worked out on the original alone: survivors as if the rest had never been there.

The original runs in double precision while every tensor has a *fate* of its own shape beside it: for each element
whether it left, stays, or is a constant that belongs to nobody (and leaves with what it meets). Elements that left
count nothing in sums and contractions and are no part of a statistic (norms, softmax, means, maxima). Nothing of
nervure is used but the names of the tensors and the positions along their axes that a plan removes.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrize import cached
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

GONE, STAYS, NOBODYS = 0, 1, 2
Removed = Mapping[str, Iterable[tuple[int, Tensor]]]
NARROW = (torch.float32, torch.float16, torch.bfloat16)
WIDE = {torch.complex64: torch.complex128, torch.complex32: torch.complex128} | dict.fromkeys(NARROW, torch.float64)
NOISE = {"randn", "rand", "randn_like", "rand_like", "normal", "normal_", "uniform_", "exponential_", "bernoulli",
         "bernoulli_", "native_dropout", "cauchy_", "log_normal_", "gamma"}  # fmt: skip


class UnknownFateError(Exception):
    """An operator over units of which nobody can say what it should compute without some of them."""


# -- running a model so that two runs can be compared --------------------------------------------------------------


class Repeatable(TorchDispatchMode):
    """Everything in double precision; noise is one number a call, the same whatever shape is drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.draws = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.computed(func, args, kwargs or {})

    def computed(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """The result of an operator, in double precision and without chance."""
        kwargs = {k: WIDE.get(v, v) if isinstance(v, torch.dtype) else v for k, v in kwargs.items()}
        args = [WIDE.get(v, v) if isinstance(v, torch.dtype) else v for v in args]
        result = func(*args, **kwargs)
        if _name(func) not in NOISE:
            return result
        self.draws += 1
        level = math.sin(12.9898 * self.draws) * 0.5 + 0.5
        first = result[0] if isinstance(result, tuple) else result
        is_coin = _name(func).startswith(("bernoulli", "native_dropout"))
        if _name(func) == "native_dropout":
            return args[0].clone(), torch.ones_like(first, dtype=torch.bool)
        return first.fill_(round(level) if is_coin else level)


@contextmanager
def repeatable(mode: TorchDispatchMode) -> Iterator[None]:
    """Composite kernels taken apart, doubles by default, no gradients, the same seed."""
    before, fast = torch.get_default_dtype(), torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.no_grad())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float64)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with mode:
                yield
        finally:
            torch.set_default_dtype(before)
            torch.backends.mha.set_fastpath_enabled(fast)


def called(model: nn.Module, example: Any) -> Any:
    """Run ``model`` on an example: a tensor, a tuple of arguments or a dict of keyword arguments."""
    if isinstance(example, dict):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


def exact_outputs(model: nn.Module, example: Any) -> list[Tensor]:
    """The tensors that ``model`` (in double precision) returns."""
    with repeatable(Repeatable()):
        output = called(model, example)
    return list(tensors(output))


def expected_outputs(model: nn.Module, removed: Removed, example: Any) -> list[Tensor]:
    """What ``model`` (in double precision) returns without what was removed.

    Args:
        model: the original.
        removed: for each tensor that loses positions the axes and, along each, a boolean per position: True leaves.
        example: its inputs.

    Raises:
        UnknownFateError: the units that leave lie along an axis where nobody can say what should come out.
    """
    survivors = Survivors()
    # What is cut of a weight with parametrizations is what they came to, on all of it.
    with torch.no_grad(), cached():
        for name, axes in _without_parametrizations(removed):
            fate = survivors.fate(_tensor_of(model, name), STAYS)
            for axis, gone in axes:
                fate.index_fill_(axis, gone.nonzero().flatten(), GONE)
        for tensor in (*model.parameters(), *model.buffers(), *tensors(example)):
            survivors.fate(tensor, STAYS)
        with repeatable(survivors):
            output = called(model, example)
    return [survivors.surviving(t) for t in tensors(output)]


def _without_parametrizations(removed: Removed) -> Iterator[tuple[str, Iterable[tuple[int, Tensor]]]]:
    for name, axes in removed.items():
        owner, _, rest = name.partition("parametrizations.")
        weight, _, part = rest.partition(".")
        if not rest or part in ("original", "original1"):
            yield owner + weight, axes


def _tensor_of(model: nn.Module, name: str) -> Tensor:
    found: Any = model
    for part in name.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    return found


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists, dicts and objects, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from tensors(item)
    elif hasattr(value, "__dict__") and not isinstance(value, nn.Module):
        yield from tensors(vars(value))


# -- fates ---------------------------------------------------------------------------------------------------------

Rule = Callable[["Survivors", Any, list[Any], dict[str, Any]], Any]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


class Survivors(Repeatable):
    """Runs every operator on what survives, and tells the fate of each element of its result."""

    def __init__(self) -> None:
        super().__init__()
        self.fates: dict[int, tuple[Tensor, Tensor]] = {}

    def fate(self, tensor: Tensor, default: int = NOBODYS) -> Tensor:
        """The fate of each element, which shares memory with other fates as the tensor does with other tensors."""
        if id(tensor) not in self.fates:
            self.set(tensor, torch.full(tensor.shape, default, dtype=torch.int8))
        return self.fates[id(tensor)][1]

    def set(self, tensor: Tensor, fate: Tensor) -> None:
        """Note the fate of a new tensor (which is kept, so that its id stays its own)."""
        assert fate.shape == tensor.shape, (fate.shape, tensor.shape)
        if fate.stride() != tensor.stride() and not _overlaps(tensor):
            fate = torch.empty_strided(tensor.shape, tensor.stride(), dtype=torch.int8).copy_(fate)
        self.fates[id(tensor)] = (tensor, fate)

    def settled(self, tensor: Tensor) -> Tensor:
        """Fates in which constants leave where everything else at a position of some axis does."""
        fate = self.fate(tensor)
        if not (fate == GONE).any() or not (fate == NOBODYS).any():
            return fate
        settled = fate.clone()
        for axis in range(fate.dim()):
            others = [a for a in range(fate.dim()) if a != axis]
            lost = _any(fate == GONE, others) & ~_any(fate == STAYS, others)
            settled[lost.expand_as(fate)] = GONE
        return settled

    def gone(self, tensor: Tensor) -> Tensor:
        """A boolean per element: True where it left."""
        return self.settled(tensor) == GONE

    def filled(self, tensor: Tensor, value: float = 0.0) -> Tensor:
        """The tensor with ``value`` in the place of what left."""
        gone = self.gone(tensor)
        return torch.where(gone, torch.full_like(tensor, value), tensor) if gone.any() else tensor

    def surviving(self, tensor: Tensor) -> Tensor:
        """What is left of a result; raises where it is no rectangle."""
        gone = self.gone(tensor)
        for axis in range(tensor.dim()):
            stays = ~gone.all(dim=tuple(a for a in range(gone.dim()) if a != axis)) if gone.dim() > 1 else ~gone
            index = stays.nonzero().flatten()
            tensor, gone = tensor.index_select(axis, index), gone.index_select(axis, index)
        if gone.any():
            raise UnknownFateError("what is left of an output is no rectangle")
        return tensor

    def computed(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """The result of an operator over what survives, its fate noted."""
        name, args, kwargs = _name(func), list(args), dict(kwargs)
        given = [t for t in tensors([args, kwargs]) if not _is_whole(self, t)]
        kwargs = {k: WIDE.get(v, v) if isinstance(v, torch.dtype) else v for k, v in kwargs.items()}
        if name in RULES:
            return RULES[name](self, func, args, kwargs)
        if name in NOISE or torch.Tag.pointwise in func.tags or name.rstrip("_") in POINTWISE:
            return _pointwise(self, func, args, kwargs)
        if name.rstrip("_") in MOVERS:
            return _moved(self, func, args, kwargs)
        if given:
            raise UnknownFateError(f"{func} has no rule")
        return super().computed(func, args, kwargs)


def _name(func: Any) -> str:
    return str(func._schema.name.removeprefix("aten::"))


def _is_whole(survivors: Survivors, tensor: Tensor) -> bool:
    return id(tensor) not in survivors.fates or not (survivors.fates[id(tensor)][1] == GONE).any()


def _overlaps(tensor: Tensor) -> bool:
    return any(step == 0 and size > 1 for size, step in zip(tensor.shape, tensor.stride(), strict=True))


def _any(flags: Tensor, axes: list[int]) -> Tensor:
    return flags.amax(axes, keepdim=True) if axes else flags


def _reduced(fate: Tensor, axes: Iterable[int] | None, keepdim: bool) -> Tensor:
    """The fate of a statistic: it stays where something stays, leaves where everything left."""
    axes = sorted({a % max(fate.dim(), 1) for a in axes}) if axes else list(range(fate.dim()))
    if not fate.dim():
        return fate
    stays, open_ = (fate == STAYS).amax(axes, keepdim=keepdim), (fate == NOBODYS).amax(axes, keepdim=keepdim)
    return torch.where(stays, STAYS, torch.where(open_, NOBODYS, GONE)).to(torch.int8)


def _bound(func: Any, args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name, defaults filled in."""
    schema = func._schema.arguments
    values = {a.name: a.default_value for a in schema if a.has_default_value()}
    return values | {a.name: v for a, v in zip(schema, args, strict=False)} | kwargs


def _again(func: Any, values: dict[str, Any]) -> Any:
    positional = [values[a.name] for a in func._schema.arguments if not a.kwarg_only]
    named = {a.name: values[a.name] for a in func._schema.arguments if a.kwarg_only and a.name in values}
    return func(*positional, **named)


POINTWISE = set(
    [
        "masked_fill",
        "native_dropout",
        "_to_copy",
        "logical_not",
        "isnan",
        "polar",
        "real",
        "imag",
        "complex",
        "tril",
        "triu",
        "lerp",
        "_prelu_kernel",
        "log_sigmoid_forward",
        "rrelu_with_noise",
        "fill",
        "zero",
        "zeros_like",
        "ones_like",
        "full_like",
        "empty_like",
        "celu",
        "nan_to_num",
        "clamp",
        "threshold",
        "elu",
        "gelu",
        "silu",
        "mish",
        "softplus",
        "hardtanh",
        "leaky_relu",
        "hardswish",
        "hardsigmoid",
        "isin",
        "floor_divide",
    ]
)
MOVERS = set(
    [
        "view",
        "_unsafe_view",
        "permute",
        "transpose",
        "t",
        "expand",
        "slice",
        "select",
        "split",
        "split_with_sizes",
        "unsafe_split",
        "unsafe_chunk",
        "unbind",
        "cat",
        "stack",
        "squeeze",
        "unsqueeze",
        "repeat",
        "roll",
        "flip",
        "clone",
        "detach",
        "alias",
        "as_strided",
        "pixel_shuffle",
        "pixel_unshuffle",
        "channel_shuffle",
        "unfold",
        "diagonal",
        "index",
        "index_select",
        "gather",
        "embedding",
        "lift_fresh",
        "repeat_interleave",
        "diag_embed",
        "copy",
        "scatter",
        "index_put",
        "_index_put_impl",
        "index_copy",
        "slice_scatter",
        "select_scatter",
        "_reshape_alias",
        "take",
        "masked_select",
        "masked_scatter",
        "index_fill",
    ]
)
INDICES = {"index", "indices", "mask"}


def _pointwise(s: Survivors, func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    name, given = _name(func), list(tensors([args, kwargs]))
    # A constant that meets what stays, stays: those that leave are told before.
    fates = [s.settled(t) for t in given]
    result = Repeatable.computed(s, func, args, kwargs)
    outputs = result if isinstance(result, tuple | list) else [result]
    for out in outputs:
        if not isinstance(out, Tensor):
            continue
        fate = torch.full(out.shape, NOBODYS, dtype=torch.int8)
        for f in fates:
            if f.dim() <= fate.dim():
                fate = torch.minimum(fate, f.expand(fate.shape))
        if name.endswith("_") and out is given[0]:
            if name not in ("zero_", "fill_", *NOISE):
                s.fate(out).copy_(fate)
        else:
            s.set(out, fate)
    return result


def _moved(s: Survivors, func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    names = [a.name for a in func._schema.arguments]

    def mirrored(name: str, value: Any) -> Any:
        if name in INDICES or (name == "indices"):
            return value
        if name == "self" and _name(func) == "embedding":
            return s.fate(value)
        if name == "value" and not isinstance(value, Tensor):
            return NOBODYS
        return tree_map(lambda t: s.fate(t) if isinstance(t, Tensor) else t, value)

    shadow_args = [mirrored(n, a) for n, a in zip(names, args, strict=False)]
    shadow_kwargs = {k: mirrored(k, v) for k, v in kwargs.items() if k != "dtype"}
    result = Repeatable.computed(s, func, args, kwargs)
    fates = func(*shadow_args, **shadow_kwargs)
    if _name(func).endswith("_") and isinstance(result, Tensor) and result is args[0]:
        return result
    for out, fate in zip(*[r if isinstance(r, tuple | list) else [r] for r in (result, fates)], strict=True):
        s.set(out, fate)
    return result


@rule("new_zeros", "new_empty", "new_full", "new_ones", "new_empty_strided")
def _new(s: Survivors, func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    return Repeatable.computed(s, func, args, kwargs)


@rule("view_as_complex", "view_as_real")
def _complex(s: Survivors, func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    result, fate = func(*args, **kwargs), s.fate(args[0])
    s.set(result, fate.amin(-1) if result.is_complex() else fate.unsqueeze(-1).expand(result.shape).contiguous())
    return result


@rule("glu")
def _glu(s: Survivors, func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    result = func(*args, **kwargs)
    s.set(result, torch.minimum(*s.fate(args[0]).chunk(2, args[1] if len(args) > 1 else -1)))
    return result


@rule("block_diag")
def _block_diagonal(s: Survivors, func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    result = func(*args, **kwargs)
    s.set(result, func([s.fate(t) - NOBODYS for t in args[0]]) + NOBODYS)
    return result


@rule("copy_")
def _copied(s: Survivors, func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    s.fate(args[0]).copy_(s.fate(args[1]).expand(args[0].shape))
    return func(*args, **kwargs)


@rule("index_add", "index_add_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_", "index_reduce",
      "scatter_reduce_two")  # fmt: skip
def _scattered(s: Survivors, func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    base, axis, index, source = args[:4]
    old, new = s.fate(base), s.fate(source)
    if index.dim() < new.dim():
        shape = [-1 if i == axis % new.dim() else 1 for i in range(new.dim())]
        index = index.reshape(shape).expand(new.shape)
    new = new[tuple(slice(0, n) for n in index.shape)]
    fate = old.int().scatter_reduce(axis, index, new.int(), "amin").to(torch.int8)
    result = func(*args, **kwargs)
    if result is base:
        old.copy_(fate)
    else:
        s.set(result, fate)
    return result


# -- contractions ----------------------------------------------------------------------------------------------------


def _product(s: Survivors, a: Tensor, b: Tensor) -> Tensor:
    """The fate of ``a @ b``, whose rows are those of ``a`` and columns those of ``b``."""
    rows = _reduced(s.settled(a), [-1], keepdim=b.dim() > 1)
    columns = _reduced(s.settled(b), [-2 if b.dim() > 1 else -1], keepdim=b.dim() > 1)
    return torch.minimum(rows, columns)


@rule("mm", "bmm", "mv", "dot", "vdot", "addmm", "addmm_", "baddbmm", "baddbmm_", "addmv", "addbmm")
def _multiplied(s: Survivors, func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    if kwargs.get("out_dtype") is not None:
        raise UnknownFateError("a product in another type")
    pair = args[-2:] if len(args) <= 3 else args[1:3]
    fate = _product(s, *pair)
    clean = [s.filled(t) if any(t is p for p in pair) else t for t in args]
    result = func(*clean, **kwargs)
    if len(args) > len(pair):
        fate = torch.minimum(fate, s.fate(args[0]).expand(fate.shape))
    s.set(result, fate.expand(result.shape).contiguous())
    return result


@rule("convolution")
def _convolved(s: Survivors, func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    x, weight, bias = args[:3]
    transposed, groups = args[6], args[8]
    is_pointwise = set(weight.shape[2:]) | set(args[3]) == {1} and set(args[4]) == {0}
    if not is_pointwise:
        _uniform(s, x, range(2, x.dim()), func)
        _uniform(s, weight, range(2, weight.dim()), func)
    result = func(s.filled(x), s.filled(weight), *args[2:], **kwargs)
    kernel = s.settled(weight)
    if transposed:
        by_group = kernel.reshape(groups, -1, *kernel.shape[1:])
        channels = _reduced(by_group, [1, *range(3, by_group.dim())], keepdim=False).reshape(-1)
    else:
        channels = _reduced(kernel, range(1, kernel.dim()), keepdim=False)
    if bias is not None:
        channels = torch.minimum(channels, s.settled(bias))
    fate = channels.reshape(1, -1, *[1] * (result.dim() - 2)).expand(result.shape)
    if is_pointwise:
        fate = torch.minimum(fate, _reduced(s.settled(x), [1], keepdim=True).expand(fate.shape))
    s.set(result, fate.contiguous())
    return result


@rule("_trilinear")
def _trilinear(s: Survivors, func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    result = func(*[s.filled(t) for t in args[:3]], *args[3:], **kwargs)
    counted = func(*[(~s.gone(t)).double() for t in args[:3]], *args[3:], **kwargs)
    s.set(result, (counted > 0).to(torch.int8))
    return result


@rule("_cdist_forward", "_euclidean_dist")
def _distances(s: Survivors, func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    a, b = args[:2]
    result = func(s.filled(a), s.filled(b), *args[2:], **kwargs)
    s.set(result, _product(s, a, _moved(s, torch.ops.aten.transpose.int, [b, -1, -2], {})).expand(result.shape).clone())
    return result


@rule("_fft_r2c", "_fft_c2r", "_fft_c2c")
def _transformed(s: Survivors, func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    _uniform(s, args[0], args[1], func)
    result = func(*args, **kwargs)
    s.set(result, s.settled(args[0]).amin(list(args[1]), keepdim=True).expand(result.shape).contiguous())
    return result


# -- along space -----------------------------------------------------------------------------------------------------


def _uniform(s: Survivors, x: Tensor, axes: Iterable[int], func: Any) -> None:
    fate = s.gone(x)
    for axis in axes:
        if fate.shape[axis] and not torch.equal(fate, fate.narrow(axis, 0, 1).expand_as(fate)):
            raise UnknownFateError(f"{func} along an axis of units")


SPACE = {"max_pool1d": 1, "max_pool2d_with_indices": 2, "max_pool3d_with_indices": 3, "avg_pool1d": 1, "avg_pool2d": 2,
         "avg_pool3d": 3, "_adaptive_avg_pool2d": 2, "_adaptive_avg_pool3d": 3, "adaptive_avg_pool1d": 1,
         "adaptive_max_pool2d": 2, "upsample_nearest1d": 1, "upsample_nearest2d": 2, "upsample_bilinear2d": 2,
         "upsample_bicubic2d": 2, "upsample_linear1d": 1, "_upsample_nearest_exact2d": 2, "_upsample_bilinear2d_aa": 2,
         "reflection_pad1d": 1, "reflection_pad2d": 2, "replication_pad1d": 1, "replication_pad2d": 2,
         "grid_sampler_2d": 2, "_adaptive_avg_pool1d": 1, "upsample_nearest3d": 3, "max_unpool2d": 2}  # fmt: skip


@rule(*SPACE)
def _spatial(s: Survivors, func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    x, axes = args[0], range(-SPACE[_name(func)], 0)
    _uniform(s, x, axes, func)
    result = func(*args, **kwargs)
    fate = s.settled(x)
    if _name(func) == "max_unpool2d":
        # A value whose place comes from a unit that left has no place.
        fate = torch.minimum(fate, s.settled(args[1]))
    for out in result if isinstance(result, tuple) else [result]:
        s.set(out, fate.amin(list(axes), keepdim=True).expand(out.shape).contiguous())
    return result


@rule("constant_pad_nd")
def _padded(s: Survivors, func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    result = func(*args, **kwargs)
    s.set(result, func(s.fate(args[0]), args[1], NOBODYS))
    return result


@rule("im2col", "col2im")
def _columns(s: Survivors, func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    result = func(*args, **kwargs)
    # A column holds whole patches of a channel: with it the border, which belongs to nobody, leaves.
    whole = func(torch.ones_like(args[0]), *args[1:], **kwargs)
    lost = func(s.gone(args[0]).double(), *args[1:], **kwargs) > 0
    s.set(result, torch.where(lost, GONE, torch.where(whole > 0, STAYS, NOBODYS)).to(torch.int8))
    return result


# -- statistics ------------------------------------------------------------------------------------------------------

FILL = {"sum": 0.0, "mean": 0.0, "cumsum": 0.0, "prod": 1.0, "cumprod": 1.0, "amax": -math.inf, "amin": math.inf,
        "max": -math.inf, "min": math.inf, "argmax": -math.inf, "argmin": math.inf, "logsumexp": -math.inf,
        "linalg_vector_norm": 0.0, "norm": 0.0, "any": 0.0, "all": 1.0, "nansum": 0.0}  # fmt: skip


def _axes(values: dict[str, Any]) -> list[int] | None:
    dim = values.get("dim")
    return [dim] if isinstance(dim, int) else dim or None


@rule(*(set(FILL) - {"mean", "cumsum", "cumprod", "max", "min"}))
def _reduction(s: Survivors, func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    values, x = _bound(func, args, kwargs), args[0]
    fill = FILL[_name(func)]
    clean = x
    if s.gone(x).any():
        fill = fill if x.is_floating_point() or x.is_complex() else _bounded(fill, x.dtype)
        clean = s.filled(x, fill)
    result = _again(func, values | {func._schema.arguments[0].name: clean})
    s.set(result, _reduced(s.settled(x), _axes(values), bool(values.get("keepdim"))).reshape(result.shape))
    return result


def _bounded(fill: float, dtype: torch.dtype) -> float:
    if dtype == torch.bool or math.isfinite(fill):
        return fill if math.isfinite(fill) else float(fill > 0)
    limits = torch.iinfo(dtype)
    return limits.max if fill > 0 else limits.min


@rule("max", "min", "median", "mode", "kthvalue", "topk", "sort")
def _ordered(s: Survivors, func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    name, x, values = _name(func), args[0], _bound(func, args, kwargs)
    if len(args) > 1 and isinstance(args[1], Tensor):
        return _pointwise(s, func, args, kwargs)
    if "dim" not in values:
        return _reduction(s, func, args, kwargs)
    axis, gone = values["dim"], s.gone(x)
    if gone.any() and name in ("median", "mode"):
        return _among(s, func, values)
    rising = name in ("min", "kthvalue") or (name == "topk" and not values["largest"]) or (
        name == "sort" and not values["descending"]
    )  # fmt: skip
    fill = math.inf if rising else -math.inf
    clean = s.filled(x, fill if x.is_floating_point() else _bounded(fill, x.dtype)) if gone.any() else x
    if name == "topk" and gone.any() and int((~gone).sum(axis).clamp(min=values["k"]).min()) > int(
        (~gone).sum(axis).amax()
    ):  # fmt: skip
        raise UnknownFateError("topk of more than is left")
    result = _again(func, values | {"self": clean})
    indices = result[1]
    if name in ("topk", "sort"):
        fate = s.settled(x).gather(axis, indices)
    else:
        fate = _reduced(s.settled(x), [axis], bool(values.get("keepdim")))
    for out in result:
        s.set(out, fate.clone())
    return result


def _among(s: Survivors, func: Any, values: dict[str, Any]) -> Any:
    """A statistic of the positions that stay, the same ones everywhere, with indices as they were."""
    x, axis = values["self"], values["dim"]
    _uniform(s, x, [a for a in range(x.dim()) if a != axis % x.dim()], func)
    stay = (~s.gone(x)).transpose(axis, 0).flatten(1)[:, 0].nonzero().flatten()
    value, index = _again(func, values | {"self": x.index_select(axis, stay)})
    return value, stay[index]


@rule("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin")
def _running(s: Survivors, func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    x = args[0]
    if _name(func) not in FILL:
        _uniform(s, x, [args[1]], func)
    result = func(s.filled(x, FILL.get(_name(func), 0.0)), *args[1:], **kwargs)
    for out in result if isinstance(result, tuple) else [result]:
        s.set(out, s.settled(x).clone())
    return result


def _moments(s: Survivors, x: Tensor, axes: list[int] | None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, sum of squared deviations and number of what stays; axes are kept."""
    axes = [a % x.dim() for a in axes] if axes else list(range(x.dim()))
    stays = (~s.gone(x)).double()
    number = stays.sum(axes, keepdim=True)
    mean = s.filled(x).sum(axes, keepdim=True) / number.clamp(min=1)
    deviation = torch.where(stays > 0, x - mean, torch.zeros_like(x))
    return mean, deviation.abs().square().sum(axes, keepdim=True), number


def _fit(statistic: Tensor, axes: list[int] | None, keepdim: bool) -> Tensor:
    if keepdim:
        return statistic
    return statistic.reshape(()) if not axes else statistic.squeeze(tuple(axes))


@rule("mean")
def _mean(s: Survivors, func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    values, x = _bound(func, args, kwargs), args[0]
    mean, _, _ = _moments(s, x, _axes(values))
    result = _fit(mean, _axes(values), bool(values.get("keepdim")))
    s.set(result, _reduced(s.settled(x), _axes(values), bool(values.get("keepdim"))).reshape(result.shape))
    return result


@rule("var", "std", "var_mean", "std_mean")
def _variance(s: Survivors, func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    values, x, name = _bound(func, args, kwargs), args[0], _name(func)
    correction = values.get("correction")
    if correction is None:
        correction = float(values.get("unbiased", True))
    mean, squares, number = _moments(s, x, _axes(values))
    variance = squares / (number - correction).clamp(min=0)
    spread = variance.sqrt() if name.startswith("std") else variance
    results = [_fit(t, _axes(values), bool(values.get("keepdim"))) for t in (spread, mean)]
    for out in results:
        s.set(out, _reduced(s.settled(x), _axes(values), bool(values.get("keepdim"))).reshape(out.shape))
    return tuple(results) if name.endswith("_mean") else results[0]


@rule("_softmax", "_log_softmax", "_safe_softmax")
def _softmax(s: Survivors, func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    x = args[0]
    result = func(s.filled(x, -math.inf), *args[1:], **kwargs)
    s.set(result, s.settled(x).clone())
    return result


@rule("native_layer_norm", "_fused_rms_norm", "rms_norm")
def _layer_norm(s: Survivors, func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    values, x = _bound(func, args, kwargs), args[0]
    axes = list(range(-len(args[1]), 0))
    eps = values["eps"] if values["eps"] is not None else torch.finfo(torch.float64).eps
    mean, squares, number = _moments(s, x, axes)
    if "layer" in _name(func):
        centred, power = x - mean, squares / number.clamp(min=1)
    else:
        centred, power = x, s.filled(x).square().sum(axes, keepdim=True) / number.clamp(min=1)
    scale = (power + eps).rsqrt()
    out, fate = centred * scale, s.settled(x)
    weight, bias = values.get("weight"), values.get("bias")
    for t in (weight, bias):
        if t is not None:
            fate = torch.minimum(fate, s.fate(t).expand(fate.shape))
    out = out * weight if weight is not None else out
    out = out + bias if bias is not None else out
    s.set(out, fate.clone())
    if _name(func) == "rms_norm":
        return out
    return (out, mean, scale) if "layer" in _name(func) else (out, scale)


@rule("native_group_norm")
def _group_norm(s: Survivors, func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    x, weight, bias, samples, channels, _, groups, eps = args
    fate = s.settled(x)
    parts = x.reshape(samples, groups, -1)
    s.set(parts, fate.reshape(samples, groups, -1))
    mean, squares, number = _moments(s, parts, [2])
    scale = (squares / number.clamp(min=1) + eps).rsqrt()
    out = ((parts - mean) * scale).reshape(x.shape)
    shape = [1, channels, *[1] * (x.dim() - 2)]
    for t in (weight, bias):
        if t is not None:
            fate = torch.minimum(fate, s.fate(t).reshape(shape).expand(fate.shape))
    out = out * weight.reshape(shape) if weight is not None else out
    out = out + bias.reshape(shape) if bias is not None else out
    s.set(out, fate.clone())
    return out, mean.reshape(samples, groups), scale.reshape(samples, groups)


@rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training")
def _batch_norm(s: Survivors, func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    values = _bound(func, args, kwargs)
    x, fate = args[0], s.settled(args[0])
    shape = [1, -1, *[1] * (x.dim() - 2)]
    result = func(*args, **kwargs)
    if values.get("training", True) and "no_training" not in _name(func):
        mean, squares, number = _moments(s, x, [0, *range(2, x.dim())])
        out = (x - mean) * (squares / number.clamp(min=1) + values["eps"]).rsqrt()
        out = out * values["weight"].reshape(shape) if values["weight"] is not None else out
        out = out + values["bias"].reshape(shape) if values["bias"] is not None else out
        result = (out, *result[1:])
    for t in args[1:5]:
        if isinstance(t, Tensor):
            fate = torch.minimum(fate, s.fate(t).reshape(shape).expand(fate.shape))
    s.set(result[0], fate.clone())
    return result


@rule("_weight_norm_interface", "_weight_norm")
def _weight_norm(s: Survivors, func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    v, g = args[:2]
    result = func(s.filled(v), *args[1:], **kwargs)
    out = result[0] if isinstance(result, tuple) else result
    s.set(out, torch.minimum(s.settled(v), s.settled(g).expand(v.shape)).clone())
    return result


@rule("nonzero", "_local_scalar_dense", "equal", "is_nonzero", "bincount", "unique_consecutive", "_unique2")
def _read(s: Survivors, func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    if s.gone(args[0]).any():
        raise UnknownFateError(f"{func} of units")
    return func(*args, **kwargs)


# -- comparing -------------------------------------------------------------------------------------------------------


def verdict(expected: list[Tensor], found: list[Tensor], dense: list[Tensor] | None = None) -> tuple[float, float]:
    """How far the outputs are from what is expected, and how far the cut moved them.

    Each position of every axis but the first is judged by its own scale.

    Returns:
        The largest difference, relative to the largest value; and how much, by the same measure, the cut itself moved
        the output that it moved most (NaN where shapes do not tell). Infinity: another shape, another number.
    """
    if [t.shape for t in expected] != [t.shape for t in found]:
        return math.inf, math.nan
    worst, moved = 0.0, 0.0
    for i, (a, b) in enumerate(zip(expected, found, strict=True)):
        worst = max(worst, _apart(a, b))
        if dense is not None and dense[i].shape == a.shape:
            moved = max(moved, _apart(a, dense[i]))
    return worst, moved


def _apart(a: Tensor, b: Tensor) -> float:
    if not a.numel():
        return 0.0
    if not (a.is_floating_point() or a.is_complex()):
        # Rounding decides between equals: a few whole numbers may differ.
        return 0.0 if float((a != b).double().mean()) <= 0.1 else math.inf
    a, b = (torch.view_as_real(t.to(torch.complex128)) if t.is_complex() else t.double() for t in (a, b))
    if not torch.equal(torch.isfinite(a), torch.isfinite(b)):
        return math.inf
    a, b = (torch.nan_to_num(t, posinf=0.0, neginf=0.0) for t in (a, b))
    scale = _scale(a)
    return float((a / scale - b / scale).abs().max())


def _scale(a: Tensor) -> Tensor:
    """For each element the smallest of the largest values along its axes (not the first, where there are several)."""
    scale = a.abs().max().expand(a.shape)
    for axis in range(1 if a.dim() > 1 else 0, a.dim()):
        others = [i for i in range(a.dim()) if i != axis]
        scale = torch.minimum(scale, a.abs().amax(others, keepdim=True) if others else a.abs())
    # What is smaller than that may be nothing but rounding.
    return scale.clamp(min=1e-9 * max(float(scale.median()), 1.0))
