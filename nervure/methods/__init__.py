"""Methods: one paper, one small file. A name in a recipe or on the command line is looked up here."""

from collections.abc import Mapping
from typing import Any

from nervure.core.check import checked
from nervure.core.renamed import old_names
from nervure.core.schema import Density
from nervure.engines import EngineName
from nervure.errors import ArgumentError
from nervure.methods.amounts import HasAmount, HasLimits, amount_of, with_amount
from nervure.methods.base import Cached, CountsOnRefit, HasEvidence, Inquiry, Method, View, gather_evidence
from nervure.methods.blocks.depth import Depth
from nervure.methods.blocks.energy import Energy
from nervure.methods.channels.compensated import Compensated
from nervure.methods.channels.obs import OBS
from nervure.methods.channels.rerouted import Rerouted
from nervure.methods.channels.timed import Target
from nervure.methods.channels.yardsticks import (
    FPGM,
    Activation,
    Fisher,
    Magnitude,
    Random,
    Ranking,
    Slimming,
    Taylor,
)
from nervure.methods.dynamic.gmp import GMP
from nervure.methods.dynamic.rigl import RigL
from nervure.methods.dynamic.set import SET
from nervure.methods.dynamic.synthesis import Synthesis
from nervure.methods.gcnet.companion import Companion, companion
from nervure.methods.gcnet.gcnet import GCNet
from nervure.methods.lookup import Methods, find_method, make_method, options_of
from nervure.methods.masks.erk import ERK
from nervure.methods.masks.grasp import GraSP
from nervure.methods.masks.magnitude_masks import MagnitudeMasks
from nervure.methods.masks.snip import SNIP
from nervure.methods.masks.sparse_gpt import SparseGPT
from nervure.methods.masks.synflow import SynFlow
from nervure.methods.masks.wanda import Wanda
from nervure.methods.n2nskip.n2nskip import N2NSkip
from nervure.methods.snacs.predecessor import MINT
from nervure.methods.snacs.snacs import SNACS

METHODS = Methods(
    [
        Activation,
        Compensated,
        Depth,
        ERK,
        Energy,
        FPGM,
        Fisher,
        GCNet,
        GMP,
        GraSP,
        MINT,
        Magnitude,
        MagnitudeMasks,
        N2NSkip,
        OBS,
        Random,
        Ranking,
        Rerouted,
        RigL,
        SET,
        SNACS,
        SNIP,
        Slimming,
        SparseGPT,
        SynFlow,
        Synthesis,
        Taylor,
        Wanda,
    ]
)


@checked
def method_from(name: str, **options: Any) -> Method:
    """Make the method of that name with these hyper-parameters.

    Args:
        name: of a method of the library, in any case of letters, or ``"package.module:name"`` of one of your own: a
            class, or a function that returns a method. Its module is imported, from the working folder too.
        options: the hyper-parameters.

    Raises:
        ArgumentError: the name or an option is unknown (the nearest is named), a value is out of range, or what the
            name makes is no method.
    """
    return make_method(METHODS, name, options)


@checked
def method_keeping(
    name: str,
    share: Mapping[str, Any],
    *,
    keep: Density | None,
    budget: str,
    density: Density | None = None,
    engine: EngineName | None = None,
    target: Target | None = None,
) -> Method:
    """Make a method that leaves so much, said in its own words; its own options in ``share`` come first.

    Methods that cut units take ``keep`` and ``budget``. Those that mask weights take ``density``; where none is given,
    ``keep`` is the fraction of the weights.

    Args:
        name: of the method, as in :func:`method_from`.
        share: its other hyper-parameters.
        keep: the fraction that stays. None: limits decide, of methods that have some (:class:`HasLimits`).
        budget: what ``keep`` counts.
        density: the fraction of the weights that stays; None: as ``keep`` says.
        engine: what the plan is made for; None: none in particular.
        target: the latency or memory to meet; None: none. Methods that drop blocks call it ``latency``,
            or ``memory``.

    Raises:
        ArgumentError: as :func:`method_from`; or the method masks no weights, and a density is given, or it knows no
            engine, and one is given, or it masks weights, and memory is to be saved, or it has no limits to decide.
    """
    maker = find_method(METHODS, name)
    known, called = options_of(maker), getattr(maker, "__name__", name)
    if density is not None and "density" not in known:
        masking = [other for other in METHODS if "density" in options_of(METHODS[other])]
        raise ArgumentError(
            f"{called} takes no density. Give keep instead, or a method that masks weights: {', '.join(masking)}."
        )
    if "engine" not in known and (engine is not None or target is not None):
        raise ArgumentError(f"{called} plans for no engine. Leave out the engine and the target.")
    if budget == "memory" and "budget" not in known:
        raise ArgumentError(
            f"{called} masks weights, and a masked weight takes as much memory as before. For budget='memory' take a "
            "method that cuts units, like Magnitude."
        )
    if keep is None and target is None and not isinstance(maker, HasLimits):
        limited = ", ".join(other for other in METHODS if isinstance(METHODS[other], HasLimits))
        raise ArgumentError(f"{called} finds no limits that could say how much stays. Give keep, or take {limited}.")
    asked = {"keep": keep, "budget": budget, "density": keep if density is None else density}
    amount = ("memory" if budget == "memory" else "latency") if "latency" in known else "target"
    timed = {"engine": engine, amount: target}
    found = {k: v for k, v in asked.items() if k in known} | {k: v for k, v in timed.items() if v is not None}
    return method_from(name, **(found | dict(share)))


__all__ = [
    "ERK",
    "FPGM",
    "GMP",
    "METHODS",
    "MINT",
    "OBS",
    "SET",
    "SNACS",
    "SNIP",
    "Activation",
    "Cached",
    "Companion",
    "Compensated",
    "CountsOnRefit",
    "Depth",
    "Energy",
    "Fisher",
    "GCNet",
    "GraSP",
    "HasAmount",
    "HasEvidence",
    "HasLimits",
    "Inquiry",
    "Magnitude",
    "MagnitudeMasks",
    "Method",
    "N2NSkip",
    "Random",
    "Ranking",
    "Rerouted",
    "RigL",
    "Slimming",
    "SparseGPT",
    "SynFlow",
    "Synthesis",
    "Taylor",
    "View",
    "Wanda",
    "amount_of",
    "companion",
    "gather_evidence",
    "method_from",
    "method_keeping",
    "with_amount",
]

__getattr__ = old_names(__name__)
