"""What each operator does to labels: one small function per family, looked up by the operator's name."""

from collections import ChainMap
from collections.abc import Mapping

from nervure.graph.flow import Rule
from nervure.graph.rules.given import KNOWN
from nervure.graph.rules.pointwise import unknown

GIVEN: dict[str, Rule] = {}
"""What users say of operations (see ``nervure.rules``); it goes before what nervure knows itself."""
RULES: Mapping[str, Rule] = ChainMap(GIVEN, dict(KNOWN))

__all__ = ["GIVEN", "RULES", "unknown"]
