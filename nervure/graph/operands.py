"""What parameters meet while a model runs: the operands of every product with one of them."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn

from nervure.graph.modes import disable_compile, leave_modes
from nervure.graph.ops.table import family
from nervure.graph.preserve import restore_after
from nervure.graph.products import COLUMN, ROW, STACK, Operand, Provenance
from nervure.graph.tape import Entry, Recorder, Tape, named_tensors, plain_kernels
from nervure.graph.types import Product

Hear: TypeAlias = Callable[[Operand, Entry, tuple[Any, ...]], None]
"""A parameter at an operator, the operator, and what it was given."""


@final
class _Listener(Recorder):
    """Tells ``hear`` of each product with a parameter as it happens."""

    def __init__(self, model: nn.Module, hear: Hear) -> None:
        super().__init__(Tape())
        for name, tensor in named_tensors(model).items():
            self.tape.named[self.new(tensor).id] = name
        self._provenance = Provenance(self.tape, frozenset(name for name, _ in model.named_parameters()))
        self._hear, self._read = hear, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        # A composite operator has been heard already, part by part.
        new, self._read = self.tape.entries[self._read :], len(self.tape.entries)
        for entry in new:
            for use in self._provenance.step(entry):
                assert isinstance(entry, Entry)
                self._hear(use, entry, args)
        return out


def listen(model: nn.Module, run: Callable[[], Any], hear: Hear) -> None:
    """Call ``run``, which runs ``model``, and ``hear`` with each product of one of its parameters."""
    with (
        leave_modes(),
        restore_after(model),
        torch.no_grad(),
        disable_compile(),
        plain_kernels(model),
        _Listener(model, hear),
    ):
        run()


def computed_weights(model: nn.Module, run: Callable[[], Any], products: Iterable[Product]) -> dict[str, Tensor]:
    """What multiplies in the place of the parameters that it is computed from (a norm of them, a mask of their own).

    Returns:
        For each of these a tensor of the parameter's shape, on the CPU.
    """
    wanted = {p.tensor for p in products if p.is_computed}
    found: dict[str, Tensor] = {}

    def hear(use: Operand, entry: Entry, args: tuple[Any, ...]) -> None:
        name = use.trail.parameter
        if name in wanted and use.is_live:
            whole = found.setdefault(name, args[use.operand].new_zeros(use.trail.shape, device="cpu"))
            places = use.trail.places().reshape(-1)
            there = places >= 0
            given = args[use.operand].detach().cpu().reshape(-1)
            whole.view(-1)[places[there]] = given[there]

    if wanted:
        listen(model, run, hear)
    return found


@final
class Entering:
    """Sums of a function of what each parameter multiplies, over samples and positions.

    Call :meth:`hear` while the model runs (:func:`listen`).
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self._function = function
        self._sums: dict[Any, Tensor] = {}
        self._counts: dict[Any, Tensor] = {}
        self._uses: dict[Any, Operand] = {}

    def hear(self, use: Operand, entry: Entry, args: tuple[Any, ...]) -> None:
        """Add what enters one product."""
        if not use.is_live:
            return
        # The parameter itself is not looked at, and one that is detached is taken for one that is written.
        is_given = [isinstance(arg, Tensor) and number != use.operand for number, arg in enumerate(args)]
        given = [arg.detach() if is_one else arg for arg, is_one in zip(args, is_given, strict=True)]
        sums, counts = _sum_inputs(use, entry, given, self._function)
        key = (use.trail.key(), use.kinds, use.operand)
        self._uses.setdefault(key, use)
        for totals, part in ((self._sums, sums), (self._counts, counts)):
            totals[key] = totals.get(key, torch.zeros(())) + part.double().cpu()

    def totals(self, products: Mapping[str, Product]) -> Iterator[tuple[str, Tensor, Tensor]]:
        """For each of these parameters that was heard the sums and how many were added, both [outputs, inputs]."""
        uses: dict[str, list[Any]] = {}
        for key, use in self._uses.items():
            uses.setdefault(use.trail.parameter, []).append(key)
        for name, keys in uses.items():
            if name in products:
                product = products[name]
                yield name, self._total(keys, product, self._sums), self._total(keys, product, self._counts)

    def _total(self, keys: Iterable[Any], product: Product, parts: Mapping[Any, Tensor]) -> Tensor:
        total = torch.zeros(product.size, dtype=torch.float64)
        for key in keys:
            use = self._uses[key]
            whole = use.divide(use.trail.moved(total.view(use.trail.shape)))
            if _is_view(whole, total):
                whole += parts[key]
                continue
            places = use.divide(use.trail.places())
            there = places >= 0
            total.index_add_(0, places[there], parts[key].expand(places.shape)[there])
        return product.to_matrix(total)[:, :, 0]


def _is_view(whole: Tensor, total: Tensor) -> bool:
    """Whether every entry of ``total`` is one of ``whole`` and shares its memory."""
    is_shared = whole.untyped_storage().data_ptr() == total.untyped_storage().data_ptr()
    return is_shared and whole.numel() == total.numel() and all(whole.stride())


def _sum_inputs(
    use: Operand, entry: Entry, args: list[Any], function: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Sums and counts of what enters, of as many axes as the operand (divided), of size 1 where all hear the same."""
    x = args[use.other]
    if family(entry.name) == "bilinear":
        return _bilinear(function(x.float()), function(args[2].float()))
    if family(entry.name) == "experts":
        return _by_expert(function(x.float()), args[2] if len(args) > 2 else entry.kwargs["offs"])
    kinds = _kinds_of_other(entry, use, x)
    if STACK in kinds and family(entry.name) == "convolution":
        x = x.unflatten(1, (use.parts, -1))
    values = function(x.float())
    summed = values.sum([axis for axis, kind in enumerate(kinds) if kind == ROW])
    rest = [kind for kind in kinds if kind != ROW]
    ordered = summed.permute([rest.index(kind) for kind in use.kinds if kind in rest])
    sizes = iter(ordered.shape)
    aligned = ordered.reshape([next(sizes) if kind in rest else 1 for kind in use.kinds])
    return aligned, torch.full_like(aligned, values.numel() / max(aligned.numel(), 1))


def _kinds_of_other(entry: Entry, use: Operand, x: Tensor) -> str:
    if family(entry.name) == "convolution":
        return ROW + (STACK if use.parts > 1 else "") + COLUMN + ROW * (x.ndim - 2)
    return use.mirrored if len(use.mirrored) == x.ndim else ROW * (x.ndim - 1) + COLUMN


def _bilinear(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    first, second = (x.reshape(-1, x.shape[-1]) for x in (first, second))
    pairs = (first.T @ second)[None]
    return pairs, torch.full_like(pairs, len(first))


def _by_expert(values: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Rows up to each of ``ends`` belong to one expert."""
    spans = [values[a:b] for a, b in itertools.pairwise([0, *ends.tolist()])]
    sums = torch.stack([span.sum(0) for span in spans])
    lengths = torch.tensor([len(span) for span in spans], dtype=sums.dtype, device=sums.device)
    return sums[:, :, None], lengths[:, None, None].expand(*sums.shape, 1)
