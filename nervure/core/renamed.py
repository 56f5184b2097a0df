"""Names of version 0.1 are found until version 0.3, with a warning that says the new one."""

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

GONE_IN = "0.3.0"
"""The version in which the names of before are gone."""

NAMES: Mapping[str, Mapping[str, str]] = {
    "nervure.evaluation": {"Choice": "RobustChoice", "reordered": "reorder_units"},
    "nervure.evaluation.corruptions": {"chosen": "expand_names"},
    "nervure.graph": {"Resize": "SizeAttribute", "Silence": "ZeroStub", "Slot": "TensorAxis", "Work": "OpCost"},
    "nervure.stats": {"unmoved": "keep_position"},
    "nervure.training": {
        "Change": "TopologyUpdate",
        "Ground": "InitialTopology",
        "Judge": "RollbackPolicy",
        "Moment": "UpdateContext",
        "Remembers": "Stateful",
        "Rewires": "SparseTrainer",
        "Rewiring": "RewiringHook",
        "Step": "TrainingStep",
        "distilled": "with_distillation",
    },
    "nervure.export": {"Difference": "FileDifference"},
    "nervure.methods": {"Explained": "HasEvidence", "Remembering": "Cached"},
    "nervure.report": {"Candidate": "MeanOutcome"},
    "nervure.rules": {"Given": "UserRule", "given": "current_rules"},
}
"""For each package the names that it had, and what they are called now."""
MODULES: Mapping[str, str] = {
    "_extras": "core.extras",
    "budget.connections": "budget.connection_masks",
    "budget.latency": "budget.latency_table",
    "budget.ledger": "budget.cost_model",
    "budget.rewiring": "training.dynamic.counts",
    "budget.sheets": "budget.weights",
    "budget.sparse": "budget.weight_masks",
    "check": "core.check",
    "cli.inputs": "cli.options",
    "dependence.connectivity": "dependence.conditional",
    "dependence.energy": "dependence.energy_distance",
    "dependence.options": "dependence.estimator_options",
    "engines.types": "engines.engine",
    "evaluation.alignment": "analysis.unit_matching",
    "evaluation.batches": "evaluation.labelled",
    "evaluation.connectivity": "analysis.connectivity",
    "evaluation.similarity": "analysis.similarity",
    "files": "core.files",
    "graph.depth": "graph.layer_counts",
    "graph.example": "core.inputs",
    "graph.flow": "graph.propagate",
    "graph.inputs": "core.inputs",
    "graph.memory": "graph.snapshots",
    "graph.places": "graph.skip_sites",
    "graph.probe": "graph.operator_probe",
    "graph.rules": "graph.ops",
    "graph.rules.contractions": "graph.ops.contractions",
    "graph.rules.given": "graph.ops.user",
    "graph.rules.movers": "graph.ops.movers",
    "graph.rules.names": "graph.ops.table",
    "graph.rules.pointwise": "graph.ops.pointwise",
    "graph.rules.probed": "graph.ops.probed",
    "methods.activation": "methods.channels.yardsticks",
    "methods.fisher": "methods.channels.yardsticks",
    "methods.fpgm": "methods.channels.yardsticks",
    "methods.magnitude": "methods.channels.yardsticks",
    "methods.mint": "methods.channels.yardsticks",
    "methods.random": "methods.channels.yardsticks",
    "methods.slimming": "methods.channels.yardsticks",
    "methods.taylor": "methods.channels.yardsticks",
    "methods.alone": "methods.snacs.layerwise",
    "methods.companion": "methods.gcnet.companion",
    "methods.connectivity": "methods.snacs.survey",
    "methods.depth": "methods.blocks.depth",
    "methods.dropping": "methods.blocks.dropping",
    "methods.energy": "methods.blocks.energy",
    "methods.erk": "methods.masks.erk",
    "methods.gmp": "methods.dynamic.gmp",
    "methods.grasp": "methods.masks.grasp",
    "methods.judge": "methods.blocks.evaluator",
    "methods.lots": "methods.masks.random_baseline",
    "methods.loudness": "methods.masks.activation_norm",
    "methods.magnitude_masks": "methods.masks.magnitude_masks",
    "methods.ranking": "methods.channels.yardsticks",
    "methods.rewiring": "methods.dynamic.dynamic_sparse",
    "methods.rigl": "methods.dynamic.rigl",
    "methods.set": "methods.dynamic.set",
    "methods.skips": "methods.n2nskip.skips",
    "methods.slopes": "methods.masks.gradients",
    "methods.snip": "methods.masks.snip",
    "methods.sparse": "methods.masks.base_masks",
    "methods.synflow": "methods.masks.synflow",
    "methods.synthesis": "methods.dynamic.synthesis",
    "methods.timed": "methods.channels.timed",
    "methods.wanda": "methods.masks.wanda",
    "packed": "export.packing",
    "progress": "core.progress",
    "recipe.compare": "recipe.grid",
    "recipe.parts": "recipe.making",
    "recipe.sweep": "recipe.grid",
    "recipe.values": "recipe.recipe",
    "report.circuit": "report.neuron_charts",
    "report.connectivity": "report.connectivity_charts",
    "report.rewiring": "report.rewiring_charts",
    "report.shift": "report.shift_section",
    "report.sweep": "report.sweep_report",
    "report.values": "report.run_report",
    "scores.connectivity": "scores.parent_dependence",
    "scores.dropping": "training.dynamic.drop_rules",
    "scores.growth": "training.dynamic.growth",
    "scores.guidance": "methods.gcnet.guidance",
    "scores.layers": "scores.bundles",
    "scores.limits": "methods.snacs.limits",
    "scores.lookup": "scores.criteria",
    "scores.published": "methods.snacs.published",
    "scores.sensitivity": "methods.snacs.sensitivity",
    "scores.sites": "training.dynamic.sites",
    "stats.batches": "stats.loaders",
    "stats.blocks": "stats.block_outputs",
    "stats.memory": "stats.footprint",
    "stats.probe": "stats.unit_probe",
    "stats.types": "stats.evidence",
    "surgery.chance": "surgery.randomness",
    "training.listening": "training.dynamic.listening",
    "training.rewires": "training.dynamic.protocol",
    "training.rewiring": "training.dynamic.hook",
    "units": "analysis",
    "units.build": "analysis.build",
    "units.carry": "analysis.propagator",
    "units.circuit": "analysis.neuron_graph",
    "units.heat": "analysis.heat",
    "units.nodes": "analysis.node_numbers",
    "units.paths": "analysis.paths",
    "units.rules": "analysis.neuron_ops",
    "units.statics": "analysis.constant_folding",
    "units.strength": "analysis.edge_strength",
    "zoo.models.parts": "zoo.models.widths",
}
"""Where modules were, and where they are, below ``nervure``."""


def old_names(package: str) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package some of whose names have changed."""

    def find(name: str) -> Any:
        new = NAMES[package].get(name)
        if new is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        _warn(f"{package}.{name}", f"{package}.{new}")
        return getattr(sys.modules[package], new)

    return find


def old_method(name: str, new: str) -> Any:
    """A method of before, by its name and the one that it has now."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        _warn(f"{type(self).__name__}.{name}", new)
        return getattr(self, new)(*args, **kwargs)

    call.__doc__ = f"Deprecated: it is called ``{new}`` now."
    return call


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is called {new} now: the old name is gone in version {GONE_IN}.", DeprecationWarning, 3)


class OldModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules under the names that they had."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """A spec for a module that was moved; None for any other."""
        new = MODULES.get(fullname.removeprefix("nervure."))
        if new is None or not fullname.startswith("nervure."):
            return None
        _warn(fullname, f"nervure.{new}")
        return importlib.machinery.ModuleSpec(fullname, self, loader_state=f"nervure.{new}")

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """The module itself, where it is now."""
        module = importlib.import_module(spec.loader_state)
        # What imports it under the old name writes its own spec there.
        spec.loader_state = module, module.__spec__
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Leave the module as it is, and what its package has under the old name."""
        assert module.__spec__ is not None
        package, _, name = module.__spec__.name.rpartition(".")
        _, module.__spec__ = module.__spec__.loader_state
        if callable(getattr(sys.modules[package], name, None)):
            # What imports a module puts it into its package, where a function of that name may be by now.
            sys.modules[package].__class__ = FunctionsFirst


@final
class FunctionsFirst(types.ModuleType):
    """A package in which no module takes the place of a function."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, types.ModuleType) and callable(vars(self).get(name))):
            super().__setattr__(name, value)


def find_old_modules() -> None:
    """Let ``import`` find modules under the names that they had; once a process."""
    if not any(isinstance(finder, OldModules) for finder in sys.meta_path):
        # First: a package that was moved would be searched for its parts, and a part be found twice.
        sys.meta_path.insert(0, OldModules())
