"""Everything nervure raises on purpose, in one tree.

::

    NervureError
    |-- TraceError            the model could not be run or read while tracing
    |   `-- ForwardError      the model's own forward raised (its error is the cause)
    |-- PlanError             a plan is malformed, stale or made for another model
    |-- BudgetError           no plan can meet what was asked
    |-- ScoreError            scores are missing, of the wrong size, NaN or infinite
    |-- CopyError             a model holds something that cannot be copied
    |-- VerificationError     a cut model, or an exported file, does not compute what it should
    |-- EngineError           an engine or a file format cannot take a model
    |-- DataError             data are empty, non-finite, mislabelled or missing
    |-- FileError             a saved file is truncated, corrupted, foreign or newer; a folder cannot be written
    |-- RecipeError           a recipe has an unknown key, a wrong type or a missing file
    `-- MissingExtraError     an optional dependency is not installed (the message names the extra)

Arguments outside their range raise :class:`ArgumentError`, which is also a ``ValueError``; those that a function does
not have raise :class:`CallError`, which is also a ``TypeError``. What is computed but should
not be trusted is told by :class:`NervureWarning`.
"""

from typing import Any


class NervureError(Exception):
    """Base of every error nervure raises on purpose."""


class ArgumentError(NervureError, ValueError):
    """An argument is outside its range or of the wrong kind."""


class CallError(ArgumentError, TypeError):
    """A function was called with an argument that it does not have, or without one that it needs."""


class TraceError(NervureError):
    """A model could not be read while tracing."""


class ForwardError(TraceError):
    """The model's own forward raised; the original error is the ``__cause__``."""


class PlanError(NervureError):
    """A plan is malformed, stale, or made for another model."""


class BudgetError(NervureError):
    """No plan can meet the budget that was asked.

    Attributes:
        layer: the layer that needs most of it, where one is to blame.
        least: what it takes, in the unit of the budget (weights, ...), where that is known.
        keep: the smallest fraction that can be met, where that is known.
    """

    def __init__(self, message: str, *, layer: str = "", least: int | None = None, keep: float | None = None) -> None:
        super().__init__(message)
        self.layer, self.least, self.keep = layer, least, keep


class ScoreError(NervureError):
    """Scores are missing, of the wrong size, or not finite."""


class CopyError(NervureError):
    """A model holds something that cannot be copied, such as a lock or an open file; the message names it."""


class VerificationError(NervureError):
    """A pruned model, or an exported file, does not compute what it should.

    Attributes:
        right: the part of the plan that computes the right thing (a ``Plan``), where one was looked for; else None.
    """

    def __init__(self, message: str, *, right: Any = None) -> None:
        super().__init__(message)
        self.right = right


class EngineError(NervureError):
    """An engine or a file format cannot take a model, or cannot run it."""


class DataError(NervureError):
    """Data are empty, not finite, mislabelled or missing."""


class FileError(NervureError):
    """A file cannot be read as a nervure artefact, or a place cannot be written."""


class RecipeError(NervureError):
    """A recipe cannot be understood."""


class MissingExtraError(NervureError, ImportError):
    """An optional dependency is not installed."""


class NervureWarning(UserWarning):
    """An answer was computed but should be taken with care; the message says why and what to do."""
