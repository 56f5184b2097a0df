"""What each operator does to labels: one small function per family, looked up by the operator's name."""

from collections.abc import Mapping

from nervure.graph.flow import Rule
from nervure.graph.rules.contractions import CONTRACTIONS
from nervure.graph.rules.movers import MOVERS
from nervure.graph.rules.pointwise import OTHERS, unknown

RULES: Mapping[str, Rule] = {**OTHERS, **MOVERS, **CONTRACTIONS}

__all__ = ["RULES", "unknown"]
