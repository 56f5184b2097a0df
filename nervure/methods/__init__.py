"""Methods: one paper, one small file. A name in a recipe or on the command line is looked up here."""

from typing import Any

from nervure.methods.activation import Activation
from nervure.methods.base import Explained, Method, View
from nervure.methods.depth import Depth
from nervure.methods.energy import Energy
from nervure.methods.fisher import Fisher
from nervure.methods.fpgm import FPGM
from nervure.methods.lookup import Methods, named
from nervure.methods.magnitude import Magnitude
from nervure.methods.mint import MINT
from nervure.methods.random import Random
from nervure.methods.slimming import Slimming
from nervure.methods.snacs import SNACS
from nervure.methods.taylor import Taylor

METHODS = Methods([Activation, Depth, Energy, FPGM, MINT, Fisher, Magnitude, Random, SNACS, Slimming, Taylor])


def method_from(name: str, **options: Any) -> Method:
    """Make the method of that name (in any case of letters) with these hyper-parameters.

    Raises:
        ArgumentError: the name or an option is unknown (the nearest is named), or a value is out of range.
    """
    return named(METHODS, name, options)


__all__ = [
    "FPGM",
    "METHODS",
    "MINT",
    "SNACS",
    "Activation",
    "Depth",
    "Energy",
    "Explained",
    "Fisher",
    "Magnitude",
    "Method",
    "Random",
    "Slimming",
    "Taylor",
    "View",
    "method_from",
]
