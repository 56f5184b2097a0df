"""From scores and a budget to what stays."""

from nervure.budget.allocate import Scope, allocate, top
from nervure.budget.kinds import BUDGETS, Budget, BudgetName, CountedName

__all__ = ["BUDGETS", "Budget", "BudgetName", "CountedName", "Scope", "allocate", "top"]
