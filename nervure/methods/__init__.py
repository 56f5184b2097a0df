"""Methods: one paper, one small file. A name in a recipe or on the command line is looked up here."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from nervure.core.check import checked
from nervure.core.renamed import old_names
from nervure.core.schema import Density
from nervure.engines import EngineName
from nervure.errors import ArgumentError
from nervure.methods.activation import Activation
from nervure.methods.base import Cached, HasEvidence, Method, View
from nervure.methods.blocks.depth import Depth
from nervure.methods.blocks.energy import Energy
from nervure.methods.channels.timed import Target
from nervure.methods.dynamic.gmp import GMP
from nervure.methods.dynamic.rigl import RigL
from nervure.methods.dynamic.set import SET
from nervure.methods.dynamic.synthesis import Synthesis
from nervure.methods.fisher import Fisher
from nervure.methods.fpgm import FPGM
from nervure.methods.gcnet.companion import Companion, companion
from nervure.methods.gcnet.gcnet import GCNet
from nervure.methods.lookup import Methods, make_method
from nervure.methods.magnitude import Magnitude
from nervure.methods.masks.erk import ERK
from nervure.methods.masks.grasp import GraSP
from nervure.methods.masks.magnitude_masks import MagnitudeMasks
from nervure.methods.masks.snip import SNIP
from nervure.methods.masks.synflow import SynFlow
from nervure.methods.masks.wanda import Wanda
from nervure.methods.mint import MINT
from nervure.methods.n2nskip.n2nskip import N2NSkip
from nervure.methods.random import Random
from nervure.methods.slimming import Slimming
from nervure.methods.snacs.snacs import SNACS
from nervure.methods.taylor import Taylor

METHODS = Methods(
    [
        Activation,
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
        Random,
        RigL,
        SET,
        SNACS,
        SNIP,
        Slimming,
        SynFlow,
        Synthesis,
        Taylor,
        Wanda,
    ]
)


@checked
def method_from(name: str, **options: Any) -> Method:
    """Make the method of that name (in any case of letters) with these hyper-parameters.

    Raises:
        ArgumentError: the name or an option is unknown (the nearest is named), or a value is out of range.
    """
    return make_method(METHODS, name, options)


@checked
def method_keeping(
    name: str,
    share: Mapping[str, Any],
    *,
    keep: Density,
    budget: str,
    density: Density | None = None,
    engine: EngineName | None = None,
    target: Target | None = None,
) -> Method:
    """Make a method that leaves so much, said in its own words; its own options in ``share`` come first.

    Methods that cut units take ``keep`` and ``budget``. Those that mask weights take ``density``; where none is given,
    ``keep`` is the fraction of the weights.

    Args:
        name: of the method, in any case of letters.
        share: its other hyper-parameters.
        keep: the fraction that stays.
        budget: what ``keep`` counts.
        density: the fraction of the weights that stays; None: as ``keep`` says.
        engine: what the plan is made for; None: none in particular.
        target: the latency to meet; None: none. Methods that drop blocks call it ``latency``.

    Raises:
        ArgumentError: as :func:`method_from`; or the method masks no weights, and a density is given, or it knows no
            engine, and one is given.
    """
    known = [field.name for field in fields(METHODS[name])] if name in METHODS else []
    if known and density is not None and "density" not in known:
        masking = [other for other in METHODS if any(field.name == "density" for field in fields(METHODS[other]))]
        raise ArgumentError(
            f"{METHODS[name].__name__} takes no density. Give keep instead, or a method that masks weights: "
            f"{', '.join(masking)}."
        )
    if known and "engine" not in known and (engine is not None or target is not None):
        raise ArgumentError(f"{METHODS[name].__name__} plans for no engine. Leave out the engine and the target.")
    asked = {"keep": keep, "budget": budget, "density": keep if density is None else density}
    timed = {"engine": engine, "latency" if "latency" in known else "target": target}
    found = {k: v for k, v in asked.items() if k in known} | {k: v for k, v in timed.items() if v is not None}
    return method_from(name, **(found | dict(share)))


__all__ = [
    "ERK",
    "FPGM",
    "GMP",
    "METHODS",
    "MINT",
    "SET",
    "SNACS",
    "SNIP",
    "Activation",
    "Cached",
    "Companion",
    "Depth",
    "Energy",
    "Fisher",
    "GCNet",
    "GraSP",
    "HasEvidence",
    "Magnitude",
    "MagnitudeMasks",
    "Method",
    "N2NSkip",
    "Random",
    "RigL",
    "Slimming",
    "SynFlow",
    "Synthesis",
    "Taylor",
    "View",
    "Wanda",
    "companion",
    "method_from",
    "method_keeping",
]

__getattr__ = old_names(__name__)
