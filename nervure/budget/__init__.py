"""From scores and a budget to what stays."""

from nervure.budget.allocate import Scope, allocate, top
from nervure.budget.budget import Budget
from nervure.budget.cost_model import CostModel
from nervure.budget.kinds import BUDGETS, BudgetName, CountedName, find_budget

__all__ = ["BUDGETS", "Budget", "BudgetName", "CostModel", "CountedName", "Scope", "allocate", "find_budget", "top"]
