"""Recipes and studies: what to train, cut, recover and compare; ``run``, ``sweep`` and ``compare``, which do it."""

from nervure.recipe.grid import compare, sweep
from nervure.recipe.recipe import Recipe
from nervure.recipe.runner import run
from nervure.recipe.study import Study

__all__ = ["Recipe", "Study", "compare", "run", "sweep"]
