"""From scores and a budget to what stays."""

from nervure.budget.allocate import Budget, Scope, TimedBudget, allocate, require_budget, top

__all__ = ["Budget", "Scope", "TimedBudget", "allocate", "require_budget", "top"]
