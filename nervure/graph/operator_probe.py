"""What an operator without a rule does to positions, learnt by calling it on random inputs.

A position p of an input's axis is *passed* to position q of an output's axis when q changes with p and with no other
position of that axis. That is decided for all pairs at once: inputs are replaced along the axis in the positions whose
number has bit b set, then in those that have not, for every bit b. Any two positions differ in some bit, so some of
these 2 log2(n) sets holds one of them and not the other; an output position that hears exactly one input position
moves for exactly the sets that hold it, and one that hears several moves for some set *and* its complement.

What makes the answer sure enough to cut by, though the operator is a black box:

* it gives the same results, bit for bit, under other random seeds and when called again after everything else;
* every set is replaced by fresh values of several kinds (of both signs, positive, large), and an output position that
  moved in any of them has moved: routing by value (sorting, gating by a mean) then hears several positions;
* it *commutes with a cut*: with positions left out of its inputs it returns the very same values without the positions
  they are passed to. Sizes that it remembers, shuffles and statistics over the axis fail here.

Not probed at all, and pinned by the caller: operators that draw random numbers or write into their arguments, integer
and boolean inputs (they may be indices), and calls too big to be repeated. What depends on rare values only can escape
a probe; groups that pass through a probed operator are therefore tried on the example too, like all doubtful ones.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from nervure.graph.labels import NONE, shape_along
from nervure.graph.tape import results_of

ELEMENTS = 300_000_000
"""Calls times elements that a probe may take: about a second for an operator that does one thing per element."""
KINDS = ("normal", "positive", "large")
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True, slots=True)
class Spec:
    """A tensor in the place of an argument."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: str = "cpu"


class Passage(NamedTuple):
    """Position ``source[q]`` along ``axis`` of tensor argument ``argument`` reaches q of an output (-1: none does)."""

    argument: int
    axis: int
    output: int
    to: int
    source: tuple[int, ...]


class _Draw(NamedTuple):
    """Inputs of one kind, and the outputs they give."""

    kind: str
    inputs: list[Tensor]
    outputs: list[Tensor]


class _UnsureError(Exception):
    """The probe cannot say; the message is the reason."""


Arguments: TypeAlias = tuple[Any, ...]
Keywords: TypeAlias = tuple[tuple[str, Any], ...]


def passages(op: Any, args: Arguments, kwargs: Mapping[str, Any]) -> tuple[Passage, ...] | str:
    """All that ``op`` passes from its inputs to its outputs, position by position, or why that is not sure.

    Args:
        op: the operator.
        args: its arguments, with a :class:`Spec` in the place of every tensor.
        kwargs: the same by keyword.
    """
    try:
        return _passages(op, args, tuple(sorted(kwargs.items())))
    except TypeError:
        return "its arguments cannot be repeated"


@lru_cache(maxsize=512)
def _passages(op: Any, args: Arguments, kwargs: Keywords) -> tuple[Passage, ...] | str:
    try:
        with torch.no_grad(), _disable_current_modes():
            return _Probe(op, args, kwargs).passages()
    except _UnsureError as error:
        return str(error)


@dataclass(slots=True)
class _Probe:
    op: Any
    args: Arguments
    kwargs: Keywords

    def passages(self) -> tuple[Passage, ...]:
        specs = list(_specs((self.args, tuple(v for _, v in self.kwargs))))
        _require_plain(self.op, specs)
        generator = torch.Generator().manual_seed(0)
        _require_affordable(specs)
        with torch.random.fork_rng(devices=[]):
            draws = [self._draw_until_stable(kind, _draw_inputs(specs, kind, generator)) for kind in KINDS]
            places = [(k, axis) for k, spec in enumerate(specs) for axis in range(len(spec.shape))]
            found = [p for k, axis in places for p in self._from(k, axis, draws, generator)]
            sure = tuple(p for family in _families(found) for p in self._commuting(family, draws[0], generator))
            self._require_same(draws[0], "it does not return the same twice")
        return sure

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        # Clones: what is given is asked again and must not share memory with a result.
        left = iter([t.clone() for t in tensors])
        filled, named = _fill(self.args, left), {name: _fill(value, left) for name, value in self.kwargs}
        try:
            out = self.op(*filled, **named)
        except Exception as error:
            raise _UnsureError(f"it raised {type(error).__name__} when probed") from error
        return results_of(out)

    def _draw_until_stable(self, kind: str, inputs: list[Tensor]) -> _Draw:
        torch.manual_seed(1)
        draw = _Draw(kind, inputs, self(inputs))
        torch.manual_seed(2)
        self._require_same(draw, "it draws random numbers or remembers its calls")
        return draw

    def _require_same(self, draw: _Draw, reason: str) -> None:
        again = self(draw.inputs)
        if [t.shape for t in again] != [t.shape for t in draw.outputs]:
            raise _UnsureError(reason)
        if any(bool(_differs(a, b).any()) for a, b in zip(draw.outputs, again, strict=True)):
            raise _UnsureError(reason)

    def _from(self, k: int, axis: int, draws: list[_Draw], generator: torch.Generator) -> list[Passage]:
        """Where the positions along one axis of one argument go."""
        n = draws[0].inputs[k].shape[axis]
        if n < 2:
            return []
        number = torch.arange(n)
        moved: list[list[tuple[Tensor, ...]]] = []
        for bit in range((n - 1).bit_length()):
            inside = (number >> bit) & 1 == 1
            moved.append([self._changed_entries(k, axis, part, draws, generator) for part in (~inside, inside)])
        found = []
        for output, changed in enumerate(moved[0][0]):
            for to in range(changed.dim()):
                pairs = [[_along(part[output], to) for part in parts] for parts in moved]
                source = _decode_positions(np.array([[p.numpy() for p in pair] for pair in pairs]))
                if source is not None:
                    found.append(Passage(k, axis, output, to, source))
        return found

    def _changed_entries(
        self, k: int, axis: int, part: Tensor, draws: list[_Draw], generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        """Which entries of each output change, for any kind of values, with this part of an axis replaced."""
        union: list[Tensor] = []
        for draw in draws:
            values = draw.inputs[k]
            where = part.to(values.device).reshape(shape_along(axis, values.dim()))
            other = list(draw.inputs)
            other[k] = torch.where(where, _values(values, draw.kind, generator), values)
            after = self(other)
            if [t.shape for t in draw.outputs] != [t.shape for t in after]:
                raise _UnsureError("the shape of its result depends on values")
            now = [_differs(a, b) for a, b in zip(draw.outputs, after, strict=True)]
            union = [u | m for u, m in zip(union, now, strict=True)] if union else now
        return tuple(union)

    def _commuting(self, family: list[Passage], draw: _Draw, generator: torch.Generator) -> list[Passage]:
        """The passages of a family whose positions can be left out, together or else each input axis by itself."""
        inputs = list(dict.fromkeys((p.argument, p.axis) for p in family))
        by_output: dict[tuple[int, int], set[tuple[int, ...]]] = {}
        for p in family:
            by_output.setdefault((p.output, p.to), set()).add(p.source)
        alike = all(len(sources) == 1 for sources in by_output.values())
        if alike and len({draw.inputs[k].shape[axis] for k, axis in inputs}) == 1:
            return family if self._commutes(family, draw, generator) else []
        if len({k for k, _ in inputs}) > 1:
            return []
        apart = [[p for p in family if (p.argument, p.axis) == place] for place in inputs]
        return [p for own in apart if self._commutes(own, draw, generator) for p in own]

    def _commutes(self, family: list[Passage], draw: _Draw, generator: torch.Generator) -> bool:
        n = draw.inputs[family[0].argument].shape[family[0].axis]
        for kept in {1, n // 2, n - 1}:
            keep = torch.zeros(n, dtype=torch.bool)
            keep[torch.randperm(n, generator=generator)[:kept]] = True
            narrow = list(draw.inputs)
            for k, axis in {(p.argument, p.axis) for p in family}:
                narrow[k] = _select_positions(narrow[k], axis, keep)
            expected = list(draw.outputs)
            for output, to, source in {(p.output, p.to, p.source) for p in family}:
                stays = torch.tensor([s < 0 or bool(keep[s]) for s in source])
                expected[output] = _select_positions(expected[output], to, stays)
            try:
                found = self(narrow)
            except _UnsureError:
                return False
            if not all(_close(a, b) for a, b in zip(expected, found, strict=True)):
                return False
        return True


def _specs(value: Any) -> Iterator[Spec]:
    if isinstance(value, Spec):
        yield value
    elif isinstance(value, tuple):
        for inner in value:
            yield from _specs(inner)


def _fill(value: Any, tensors: Iterator[Tensor]) -> Any:
    if isinstance(value, Spec):
        return next(tensors)
    return [_fill(v, tensors) for v in value] if isinstance(value, tuple) else value


def _require_plain(op: Any, specs: list[Spec]) -> None:
    if torch.Tag.nondeterministic_seeded in getattr(op, "tags", ()):
        raise _UnsureError("it draws random numbers")
    if op._schema.is_mutable:
        raise _UnsureError("it writes into its arguments")
    if not all(s.dtype.is_floating_point for s in specs):
        raise _UnsureError("its inputs are not all floating-point numbers, some may be indices")


def _require_affordable(specs: list[Spec]) -> None:
    elements = 2 * sum(math.prod(s.shape) for s in specs)
    bits = sum((max(n, 1) - 1).bit_length() for s in specs for n in s.shape)
    calls = 2 * len(KINDS) * bits
    if elements * calls > ELEMENTS:
        raise _UnsureError("it is too big to be probed")


def _values(like: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    values = torch.randn(like.shape, generator=generator)
    if kind == "positive":
        values = 0.1 + values.abs()
    return (10 * values if kind == "large" else values).to(like.device, like.dtype)


def _draw_inputs(specs: list[Spec], kind: str, generator: torch.Generator) -> list[Tensor]:
    empty = (torch.empty(s.shape, dtype=s.dtype, device=s.device) for s in specs)
    return [_values(tensor, kind, generator) for tensor in empty]


def _differs(a: Tensor, b: Tensor) -> Tensor:
    return ~((a == b) | ((a != a) & (b != b))).cpu()  # noqa: PLR0124 (only NaN differs from itself)


def _along(changed: Tensor, axis: int) -> Tensor:
    return changed.movedim(axis, 0).flatten(1).any(1) if changed.dim() > 1 else changed


def _decode_positions(moved: np.ndarray) -> tuple[int, ...] | None:
    """The input position that each output position hears; ``moved`` is [bits, without or with the bit, positions]."""
    hears = moved.any(axis=(0, 1))
    differs = moved[:, 0] ^ moved[:, 1]
    if not hears.any() or not differs[:, hears].all():
        return None
    numbers = (moved[:, 1] * (1 << np.arange(len(moved)))[:, None]).sum(0)
    return tuple(np.where(hears, numbers, NONE).tolist())


def _families(found: list[Passage]) -> list[list[Passage]]:
    """Passages that share an input axis or an output axis, directly or through others."""
    families: list[list[Passage]] = []
    for passage in found:
        near = [f for f in families if any(_touch(passage, p) for p in f)]
        families = [f for f in families if not any(f is n for n in near)]
        families.append([*(p for f in near for p in f), passage])
    return families


def _touch(a: Passage, b: Passage) -> bool:
    is_from_same = (a.argument, a.axis) == (b.argument, b.axis)
    is_to_same = (a.output, a.to) == (b.output, b.to)
    return is_from_same or is_to_same


def _select_positions(tensor: Tensor, axis: int, keep: Tensor) -> Tensor:
    return tensor.index_select(axis, keep.nonzero().reshape(-1).to(tensor.device))


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    tolerance = TOLERANCES.get(a.dtype, 1e-1)
    return torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance, equal_nan=True)
