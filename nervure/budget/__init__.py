"""From scores and a budget to what stays."""

from nervure.budget.allocate import Budget, Scope, TimedBudget, allocate, top

__all__ = ["Budget", "Scope", "TimedBudget", "allocate", "top"]
