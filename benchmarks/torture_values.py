"""Bad values: every field of every method, every key of a recipe, every argument of the public functions."""

import contextlib
import dataclasses
import inspect
import math
import numbers
import shutil
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, final

import torch

from benchmarks.torture_calls import BAD, Call, calls, cases
from benchmarks.torture_runner import Found, bound, place_of, said
from benchmarks.torture_seeds import in_this_process
from nervure.errors import NervureError
from nervure.recipe import steps as steps_module

# -- whether a value is of a type ------------------------------------------------------------------------------------


def fits(value: Any, hint: Any) -> bool:
    """Whether a value may be given where ``hint`` is declared; what cannot be decided may."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or isinstance(hint, str | typing.TypeVar | typing.ForwardRef):
        return True
    if origin is typing.Annotated:
        return fits(value, inner[0])
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is typing.Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if hint in (int, float):
        # A tensor of one number becomes a plain one, as one of NumPy does.
        value = value.item() if isinstance(value, torch.Tensor) and value.ndim == 0 else value
        kind = numbers.Integral if hint is int else numbers.Real
        return isinstance(value, kind) and not isinstance(value, bool) and not (hint is float and math.isnan(value))
    if hint is None or hint is type(None):
        return value is None
    if Callable in (origin, hint):
        return callable(value)
    return _holds(value, origin or hint, inner)


def calls_back(hint: Any) -> bool:
    """Whether a function is what is declared, perhaps beside other types."""
    return Callable in (hint, typing.get_origin(hint)) or any(map(calls_back, typing.get_args(hint)))


def _holds(value: Any, kind: Any, inner: tuple[Any, ...]) -> bool:
    if kind in (tuple, list) or (inspect.isclass(kind) and issubclass(kind, Sequence) and kind is not str):
        return isinstance(value, Sequence) and not isinstance(value, str | bytes) and _all_fit(value, inner)
    try:
        if not isinstance(value, kind):
            return False
    except TypeError:
        return True
    if isinstance(value, Mapping) and len(inner) == 2:
        return all(fits(key, inner[0]) and fits(item, inner[1]) for key, item in value.items())
    sized = isinstance(value, list | tuple | set | frozenset)
    return _all_fit(value, inner[:1]) if sized and inner else True


def _all_fit(value: Iterable[Any], inner: Sequence[Any]) -> bool:
    kinds = [one for one in inner if one is not ...]
    return not kinds or all(any(fits(item, kind) for kind in kinds) for item in value if item is not value)


LASTING = {("train", "epochs", "10**6")}
"""Values that are good, and take as long as they say: not tried."""


# -- the part --------------------------------------------------------------------------------------------------------


@final
class Values:
    """The part of the campaign that gives bad values."""

    # Data without an end are told after 65,536 batches, which a network may take a quarter of a minute for.
    name, number, size, seconds = "values", 10_000, 100, 40.0
    meanings: Mapping[str, str] = {
        "told": "an error of nervure's own",
        "accepted": "the value is of the type that is declared, and the call went through",
        "its own error": "a function was given, of other arguments or results than are needed, and called",
    }

    def __init__(self) -> None:
        self.bounded = False

    def prepare(self, folder: Path) -> None:
        """Call everything once as it should be: what is shared is then made, and what is needed imported."""
        steps_module._in_fresh_process = in_this_process
        with warnings.catch_warnings(action="ignore"), contextlib.chdir(folder):
            for call in calls():
                _call(call, call.given())
            cases()

    def case(self, seed: int, number: int) -> tuple[Call, str, str]:
        """The call, the argument and the bad value of an attempt: a row of all cases, shuffled by seed."""
        order = _order(seed)
        at, argument, bad = cases()[order[number % len(order)]]
        return calls()[at], argument, bad

    def kind(self, seed: int, number: int) -> str:
        """What is called."""
        return self.case(seed, number)[0].name

    def attempt(self, seed: int, number: int, folder: Path) -> Found:
        """Give one bad value."""
        if not self.bounded:
            self.bounded = True
            bound()
        _empty(folder)
        call, argument, bad = self.case(seed, number)
        if (call.name, argument, bad) in LASTING:
            return Found(call.name, "accepted")
        given = call.given()
        value = given[bad[1:]] if bad.startswith("=") else BAD[bad]()
        fault = self._called(call, given | {argument: value}, argument, value)
        return fault if not fault.is_fault else dataclasses.replace(fault, why=f"{argument}={bad}: {fault.why}")

    def _called(self, call: Call, given: dict[str, Any], argument: str, value: Any) -> Found:
        try:
            with warnings.catch_warnings(action="ignore"), torch.random.fork_rng(devices=[]):
                _call(call, given)
        except NervureError:
            return Found(call.name, "told")
        except MemoryError as error:
            return Found(call.name, "memory", place_of(error), said(error))
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            if callable(value) and calls_back(call.hints[argument]):
                return Found(call.name, "its own error")
            return Found(call.name, "foreign exception", place_of(error), said(error))
        if fits(value, call.hints[argument]):
            return Found(call.name, "accepted")
        return Found(call.name, "silent acceptance", "", f"is declared {call.hints[argument]!s:.100}")

    def show(self, seed: int, number: int) -> str:
        """The call in words."""
        call, argument, bad = self.case(seed, number)
        return f"{call.name}({argument}={bad})"


def _call(call: Call, given: dict[str, Any]) -> Any:
    return call.function(*([given.pop("self")] if "self" in given else []), **given)


@cache
def _order(seed: int) -> list[int]:
    places = list(range(len(cases())))
    Random(f"values {seed}").shuffle(places)
    return places


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
