"""Methods: one paper, one small file. A name in a recipe or on the command line is looked up here."""

from typing import Any

from nervure.methods.activation import Activation
from nervure.methods.base import Explained, Method, View
from nervure.methods.depth import Depth
from nervure.methods.energy import Energy
from nervure.methods.erk import ERK
from nervure.methods.fisher import Fisher
from nervure.methods.fpgm import FPGM
from nervure.methods.gmp import GMP
from nervure.methods.grasp import GraSP
from nervure.methods.lookup import Methods, named
from nervure.methods.magnitude import Magnitude
from nervure.methods.mint import MINT
from nervure.methods.n2nskip import N2NSkip
from nervure.methods.random import Random
from nervure.methods.rigl import RigL
from nervure.methods.set import SET
from nervure.methods.slimming import Slimming
from nervure.methods.snacs import SNACS
from nervure.methods.snip import SNIP
from nervure.methods.synflow import SynFlow
from nervure.methods.synthesis import Synthesis
from nervure.methods.taylor import Taylor
from nervure.methods.wanda import Wanda

METHODS = Methods(
    [
        Activation,
        Depth,
        ERK,
        Energy,
        FPGM,
        Fisher,
        GMP,
        GraSP,
        MINT,
        Magnitude,
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


def method_from(name: str, **options: Any) -> Method:
    """Make the method of that name (in any case of letters) with these hyper-parameters.

    Raises:
        ArgumentError: the name or an option is unknown (the nearest is named), or a value is out of range.
    """
    return named(METHODS, name, options)


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
    "Depth",
    "Energy",
    "Explained",
    "Fisher",
    "GraSP",
    "Magnitude",
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
    "method_from",
]
