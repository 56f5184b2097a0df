"""What each operator does to labels: one small function per family, looked up by the operator's name."""

from collections import ChainMap
from collections.abc import Mapping

from nervure.graph.ops.pointwise import unknown
from nervure.graph.ops.user import KNOWN
from nervure.graph.propagate import Rule

GIVEN: dict[str, Rule] = {}
"""What users say of operations (see ``nervure.rules``); it goes before what nervure knows itself."""
RULES: Mapping[str, Rule] = ChainMap(GIVEN, dict(KNOWN))

__all__ = ["GIVEN", "RULES", "unknown"]
