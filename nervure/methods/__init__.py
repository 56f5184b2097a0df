"""Methods: one paper, one small file. A name in a recipe or on the command line is looked up here."""

from typing import Any

from nervure.methods.base import Method, View
from nervure.methods.lookup import Methods, named
from nervure.methods.magnitude import Magnitude
from nervure.methods.random import Random

METHODS = Methods([Magnitude, Random])


def method_from(name: str, **options: Any) -> Method:
    """Make the method of that name (in any case of letters) with these hyper-parameters.

    Raises:
        ArgumentError: the name or an option is unknown (the nearest is named), or a value is out of range.
    """
    return named(METHODS, name, options)


__all__ = ["METHODS", "Magnitude", "Method", "Random", "View", "method_from"]
