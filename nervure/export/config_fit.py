"""Numbers in a config by which a library builds a pruned model: found by trying, whatever their names.

A number that equals a size of the dense model, or a multiple of it, is set to what the size has become; it stays so
where fewer tensors then differ from the model at hand.
"""

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from typing import Any, final

from torch import Tensor, nn

from nervure.export.stock import build_from_config, differences_between

LAYER = re.compile(r"(.*?\.)(\d+)(\..*)")
PER_LAYER_CONFIG = "per_layer_config"
UNTRIED = frozenset({"transformers_version", "vocab_size", "num_labels"})


@final
@dataclass(frozen=True, slots=True)
class Resized:
    """An axis that a config builds with another size than a model has.

    Attributes:
        tensor: its name.
        axis: number of the axis.
        built: the size that the config builds.
        have: the size that the model has.
    """

    tensor: str
    axis: int
    built: int
    have: int


@final
@dataclass(frozen=True)
class ConfigTrial:
    """A config beside the model that it should build.

    Attributes:
        model: the model at hand.
        config: a config of its class; not changed.
    """

    model: nn.Module
    config: Any
    changes: Mapping[tuple[str, ...], Any] = field(default_factory=dict)

    @cached_property
    def changed(self) -> Any:
        """A copy of the config with the changes made."""
        made = copy.deepcopy(self.config)
        for path, value in self.changes.items():
            holder = made
            for key in path[:-1]:
                holder = getattr(holder, key)
            setattr(holder, path[-1], value)
        return made

    @cached_property
    def stock(self) -> nn.Module | None:
        """What the config builds, without weights; None where it builds nothing."""
        try:
            return build_from_config(type(self.model), self.changed)
        except Exception:  # whatever a constructor or a config refuses with
            return None

    @cached_property
    def distance(self) -> float:
        """How many entries differ; infinite where nothing is built."""
        return inf if self.stock is None else sum(1 for _ in differences_between(self.model, self.stock))

    @cached_property
    def resized(self) -> tuple[Resized, ...]:
        """Axes that the config builds with another size than the model has."""
        have = _shapes(self.model)
        built = {} if self.stock is None else _shapes(self.stock)
        return tuple(
            Resized(name, axis, built[name][axis], size)
            for name, shape in have.items()
            if len(built.get(name, ())) == len(shape)
            for axis, size in enumerate(shape)
            if built[name][axis] != size
        )

    def with_change(self, path: tuple[str, ...], value: Any) -> "ConfigTrial":
        """The same with one more number changed."""
        return ConfigTrial(self.model, self.config, {**self.changes, path: value})


def fit_config(model: nn.Module) -> ConfigTrial:
    """The config of ``model`` with numbers changed until its class builds the sizes of the model, as far as that goes.

    Args:
        model: a model with a ``config``, whose class builds it from that; neither is changed.

    Returns:
        The best that was found; its ``distance`` is 0 where the config tells all.
    """
    best = ConfigTrial(model, model.config)
    while best.distance and (better := _improve(best)) is not None:
        best = better
    return _fit_layers(best) if 0 < best.distance < inf else best


def _improve(trial: ConfigTrial) -> ConfigTrial | None:
    """The change of one number after which least differs; None where none makes less differ."""
    for changes in _candidates(trial):
        tried = [trial.with_change(path, value) for path, value in changes]
        better = min(tried, key=lambda one: one.distance, default=trial)
        if better.distance < trial.distance:
            return better
    return None


def _candidates(trial: ConfigTrial) -> Iterator[list[tuple[tuple[str, ...], Any]]]:
    """What numbers may become, the likeliest first: sizes themselves, those that are not said, multiples of sizes."""
    sizes = dict.fromkeys((one.built, one.have) for one in trial.resized)
    entries = [(path, value) for path, value in _entries(trial.changed) if path not in trial.changes]
    numbers = [(path, value) for path, value in entries if type(value) is int and value > 1]
    yield [(path, have) for path, value in numbers for built, have in sizes if value == built]
    yield [(path, have) for path, value in entries if value is None for _, have in sizes]
    yield list(
        dict.fromkeys(
            (path, value * have // built)
            for path, value in numbers
            for built, have in sizes
            if value != built and value * have % built == 0 and value * have >= built
        )
    )


def _entries(config: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Numbers of a config and of the configs in it, by their paths; None where one may stand."""
    for key, value in vars(config).items():
        if key.startswith("_") or key in UNTRIED or key.endswith(("_id", "_ids")):
            continue
        if callable(getattr(value, "to_dict", None)):
            yield from _entries(value, (*above, key))
        elif value is None or type(value) is int:
            yield (*above, key), value


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in model.state_dict().items() if isinstance(t, Tensor)}


# -- numbers by layer ----------------------------------------------------------------------------------------------


def _fit_layers(trial: ConfigTrial) -> ConfigTrial:
    """With numbers that differ by layer, where the library lets a config say them and the model reads them there."""
    if not hasattr(type(trial.config), PER_LAYER_CONFIG):
        return trial
    best, overrides = trial, dict[int, dict[str, Any]]()
    for one in _distinct(trial.resized):
        for key, value in _said(trial, one):
            tried = {**overrides}
            for layer, size in _sizes_by_layer(trial, one).items():
                if size != one.built:
                    tried[layer] = {**tried.get(layer, {}), key: value * size // one.built}
            found = trial.with_change((PER_LAYER_CONFIG,), tried)
            if found.distance < best.distance:
                best, overrides = found, tried
                break
    return best


def _distinct(resized: Iterable[Resized]) -> list[Resized]:
    """One of each kind of axis in layers: those of the same name but for the layer's number are one kind."""
    found: dict[tuple[str, int], Resized] = {}
    for one in resized:
        if match := LAYER.fullmatch(one.tensor):
            found.setdefault((match[3], one.axis), one)
    return list(found.values())


def _said(trial: ConfigTrial, one: Resized) -> list[tuple[str, int]]:
    """Numbers of the config that may say a size."""
    numbers = [(path[0], v) for path, v in _entries(trial.changed) if len(path) == 1 and type(v) is int and v > 1]
    return sorted((entry for entry in numbers if entry[1] * one.have % one.built == 0), key=lambda e: e[1] != one.built)


def _sizes_by_layer(trial: ConfigTrial, one: Resized) -> dict[int, int]:
    """The sizes that an axis has in all layers that lie in the list of ``one``."""
    match = LAYER.fullmatch(one.tensor)
    assert match is not None
    shapes = _shapes(trial.model)
    found = ((int(m[2]), shapes[m[0]]) for m in map(LAYER.fullmatch, shapes) if m)
    tensors = {n: shape for n, shape in found if f"{match[1]}{n}{match[3]}" in shapes}
    return {n: shapes[f"{match[1]}{n}{match[3]}"][one.axis] for n in tensors}
