"""How a model of transformers is built again from its config alone, as it was before it was pruned or as it is now.

What is found is built without weights, edited, and compared with the model at hand before it is believed.
"""

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from nervure.core.extras import require_extra
from nervure.errors import FileError, PlanError
from nervure.export.stock import build_from_config, differences_between, stock_differences
from nervure.graph.layer_counts import COUNTS, PER_LAYER
from nervure.graph.sizes import put, submodule
from nervure.graph.types import Graph
from nervure.prune import Pruned
from nervure.surgery import apply

LIBRARY = "transformers"
CONFIG = "config."


@final
@dataclass(frozen=True, slots=True)
class Blueprint:
    """A class of transformers and a config that build a model.

    Attributes:
        name: of the class.
        config: its config, as plain data.
        edited: whether what they build is the pruned model already; else the model before pruning.
    """

    name: str
    config: dict[str, Any]
    edited: bool = False

    def build(self) -> nn.Module:
        """The model without weights; raises FileError where transformers knows no such model."""
        kind = self._find_class()
        try:
            return build_from_config(kind, kind.config_class.from_dict(_without_code(self.config)))
        except Exception as error:  # whatever a constructor refuses with
            raise FileError(f"{self.name} cannot be built from its config: {type(error).__name__}: {error}") from error

    def _find_class(self) -> Any:
        library = require_extra(LIBRARY, f"a {self.name} that is built from its config", LIBRARY)
        kind: Any = getattr(library, self.name, None)
        known: bool = isinstance(kind, type) and issubclass(kind, library.PreTrainedModel)
        if known:
            return kind
        raise FileError(f"{LIBRARY} {library.__version__} has no model {self.name!r}: give the model before pruning.")


def find_blueprint(pruned: Pruned) -> Blueprint | None:
    """What builds the model of ``pruned`` again, or the model it was made from; None where nothing is certain."""
    model: Any = pruned.model
    name = type(model).__name__
    if type(model).__module__.partition(".")[0] != LIBRARY or not hasattr(type(model), "config_class"):
        return None
    if not stock_differences(model):
        return Blueprint(name, _to_plain(model.config), edited=True)
    found = Blueprint(name, _to_plain(_config_before(pruned)))
    steps = [*((step.graph, step.plan) for step in pruned.earlier), (pruned.graph, pruned.plan)]
    try:
        again = found.build()
        for graph, plan in steps:
            again = apply(again, graph, plan)
    except Exception:  # whatever a constructor or a plan refuses with: then it is not certain
        return None
    return None if any(differences_between(model, again)) or _holds_loose_tensors(again) else found


def _holds_loose_tensors(model: nn.Module) -> bool:
    """Whether a module holds a tensor that no file holds: neither a parameter nor a buffer."""
    return any(isinstance(value, Tensor) for module in model.modules() for value in vars(module).values())


def _without_code(config: Any) -> Any:
    """A config without what names code to be fetched: of its authors, or kernels."""
    if not isinstance(config, dict):
        return config
    return {k: _without_code(v) for k, v in config.items() if k != "auto_map" and "implementation" not in k}


def _to_plain(config: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return found


def _config_before(pruned: Pruned) -> Any:
    """A copy of the config with the sizes and the numbers of layers that the model had before any plan."""
    model: Any = pruned.model
    first = pruned.earlier[0].graph if pruned.earlier else pruned.graph
    memo: dict[int, Any] = {}
    config = copy.deepcopy(model.config, memo)
    said = [(s.module, s.attribute, s.size) for s in first.declared]
    said += [(s.module, s.attribute, s.size) for s in first.resizes]
    for name, path, size in said:
        held = memo.get(id(getattr(submodule(model, name), "config", None)))
        if held is not None and path.startswith(CONFIG):
            _put_where_there(held, path.removeprefix(CONFIG), size)
    for name, before in _lengths(first).items():
        part = submodule(model, name)
        now = 0 if part is None else sum(1 for _ in part.children())
        for one in _configs_in(config):
            _lengthen(vars(one), now, before)
    return config


def _put_where_there(config: Any, path: str, size: int) -> None:
    try:
        put(config, path, size)
    except PlanError:
        return


def _lengths(graph: Graph) -> dict[str, int]:
    """How many elements the lists had that can lose some, by their names."""
    lists = {block.element.rpartition(".")[0] for block in graph.blocks if block.element}
    numbers = {name: {t.removeprefix(f"{name}.").partition(".")[0] for t in graph.tensors} for name in lists}
    return {name: 1 + max((int(n) for n in found if n.isdigit()), default=-1) for name, found in numbers.items()}


def _configs_in(config: Any) -> Iterator[Any]:
    yield config
    for value in vars(config).values():
        if callable(getattr(value, "to_dict", None)):
            yield value


def _lengthen(config: dict[str, Any], now: int, before: int) -> None:
    """Numbers of layers, and lists with the same entry for each layer, become as they were."""
    for key, value in config.items() if now < before else ():
        if type(value) is int and value == now and COUNTS.fullmatch(key):
            config[key] = before
        elif type(value) is list and len(value) == now and PER_LAYER.fullmatch(key) and len({*map(str, value)}) == 1:
            config[key] = value[:1] * before
