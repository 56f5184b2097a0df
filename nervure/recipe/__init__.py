"""Recipes: what to train, cut, recover and compare, and ``run``, which does it."""

from nervure.recipe.runner import run
from nervure.recipe.values import Recipe

__all__ = ["Recipe", "run"]
