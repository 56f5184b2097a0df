"""What a model is for, as a value: how it is called, what its loss is, what is measured of it.

A task is an objective: ``task(model, batch)`` is the loss of a batch, wherever a function of a model and a batch goes.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from inspect import isfunction, ismethod
from typing import Any, TypeAlias, final

from torch import Tensor, nn

from nervure.core.check import Checked, checked, show_value
from nervure.errors import ArgumentError
from nervure.tasks.batch_forms import Layout, take_samples
from nervure.tasks.outputs import logits_in

Forward: TypeAlias = Callable[[nn.Module, Any], Any]
Lossy: TypeAlias = Callable[[nn.Module, Any], Tensor]
Read: TypeAlias = Callable[[Any, Any], tuple[Any, ...]]


@final
@dataclass(frozen=True, slots=True)
class Total:
    """A loss summed over all that counts (samples, tokens, pixels), and how many that are.

    A sum, not a mean: what a sample adds must not depend on how many others are in its batch.
    """

    loss: Tensor
    count: int

    @property
    def mean(self) -> Tensor:
        """The loss of one; 0 where nothing counts."""
        return self.loss / max(self.count, 1)


@final
@dataclass(frozen=True, slots=True)
class Measure(Checked):
    """A metric of a task.

    Attributes:
        make: from what the metric is given first to a new metric of torchmetrics, or to None where it does not apply.
        read: from an output and its batch to the arguments of the metric's ``update``.
        higher_is_better: in which direction it is good.
        key: which of its results, where the metric computes several by name.
        relative: whether differences of it are told as parts of its size, as of a perplexity, and not as they are, as
            of a share; None: where lower is better.
    """

    make: Callable[[Any], Any]
    read: Read
    higher_is_better: bool
    key: str = ""
    relative: bool | None = None

    @property
    def is_relative(self) -> bool:
        """Whether differences of it are told as parts of its size."""
        return not self.higher_is_better if self.relative is None else self.relative


@final
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Task(Checked):
    """What a model is for.

    Attributes:
        objective: from a model and a batch to the mean loss, one number. None: it follows from ``loss``.
        loss: from an output and its batch to the loss, as a :class:`Total` or as a mean over samples.
        forward: from a model and a batch to the output.
        metrics: by name, what else is measured: a :class:`Measure`, or a metric of torchmetrics that is given
            the output and the labels.
        classes: from an output and its batch to logits [n, classes] and class numbers [n] of all that counts; None
            where the labels are no classes. Accuracy and likelihood follow from them without metrics.
        inputs: from a batch to what goes into the model.
        labels: from a batch to its labels; None where it has none.
        samples: from a batch to the number of its samples.
        take: some of the samples of a batch, as :func:`take_samples` does.
        name: what it is called in reports.
        reason: how it was found out, where it was guessed.
    """

    objective: Lossy | None = None
    loss: Callable[[Any, Any], Any] | None = None
    forward: Forward = field(default=Layout().feed)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    classes: Callable[[Any, Any], tuple[Tensor, Tensor]] | None = None
    inputs: Callable[[Any], Any] = field(default=Layout().inputs_in)
    labels: Callable[[Any], Any] = field(default=Layout().labels_in)
    samples: Callable[[Any], int] = field(default=Layout().count)
    take: Callable[[Any, slice | Tensor, int], Any] = field(default=take_samples)
    name: str = "your own"
    reason: str = ""

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        if self.objective is not None and self.loss is not None:
            raise ArgumentError("Task(objective=, loss=): both say what the loss is. Give one of them.")
        if "loss" in self.metrics:
            raise ArgumentError("Task(metrics=): 'loss' is measured already. Give this metric another name.")
        object.__setattr__(self, "metrics", {name: self._measure(name, kind) for name, kind in self.metrics.items()})

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """The mean loss of a batch; raises as :meth:`total`."""
        return self.total(model, batch).mean

    def __repr__(self) -> str:
        """The name, and letters that follow from all the rest: the reprs of methods hold it, and go into reports."""
        every = "".join(_describe(getattr(self, each.name)) for each in fields(self) if each.name != "reason")
        return f"Task({self.name!r}, {hashlib.sha256(every.encode()).hexdigest()[:8]})"

    def total(self, model: nn.Module, batch: Any) -> Total:
        """The loss of a batch, summed.

        Raises:
            DataError: the labels are missing, or do not fit what the model gives.
            ArgumentError: the task has no loss, or its loss is not one number.
        """
        if self.objective is not None:
            return self._total(self.objective(model, batch), batch)
        return self.total_of(self.forward(model, batch), batch)

    def total_of(self, output: Any, batch: Any) -> Total:
        """The loss of an output that is there already, summed; raises as :meth:`total`."""
        if self.loss is None:
            raise ArgumentError(
                f"the task {self.name!r} has no loss of an output: give Task(objective=) or Task(loss=)."
            )
        return self._total(self.loss(output, batch), batch)

    @property
    def has_loss(self) -> bool:
        """Whether there is a loss at all; there may be metrics alone."""
        return self.objective is not None or self.loss is not None

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        """For everything that is measured, in which direction it is good."""
        return {"loss": False} | {name: measure.higher_is_better for name, measure in self.metrics.items()}

    def _total(self, loss: Any, batch: Any) -> Total:
        if isinstance(loss, Total):
            return loss
        count = self.samples(batch)
        return Total(require_scalar(loss) * count, count)

    def _measure(self, name: str, kind: Any) -> Measure:
        if isinstance(kind, Measure):
            return kind
        if not (callable(getattr(kind, "update", None)) and callable(getattr(kind, "clone", None))):
            raise ArgumentError(
                f"Task(metrics=): {name!r} is {show_value(kind)}; give a metric of torchmetrics, or a Measure."
            )
        if not isinstance(kind.higher_is_better, bool):
            raise ArgumentError(
                f"Task(metrics=): {name!r} does not say in which direction it is good. "
                "Give Measure(make, read, higher_is_better=)."
            )
        return Measure(_Clone(kind), _Pair(self.labels), kind.higher_is_better)


@final
@dataclass(frozen=True, slots=True)
class _Clone:
    """Makes copies of a metric that was given, which stays as it is; a value, since tasks go to other processes."""

    metric: Any

    def __call__(self, scores: Any) -> Any:
        return self.metric.clone()


@final
@dataclass(frozen=True, slots=True)
class _Pair:
    """Reads the logits and the labels."""

    labels: Callable[[Any], Any]

    def __call__(self, output: Any, batch: Any) -> tuple[Any, Any]:
        return logits_in(output), self.labels(batch)


@checked
def require_scalar(loss: Any) -> Tensor:
    """Return ``loss`` if it is one number that an objective may give, else raise :class:`ArgumentError`."""
    if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.is_complex():
        raise ArgumentError(
            f"the objective gave {show_value(loss)} as its loss; it must be a tensor of one real number."
        )
    return loss.reshape(())


def _describe(value: Any) -> str:
    """What a value is, in words that are the same in every process; of functions of the user's own their address."""
    if isinstance(value, partial):
        return f"{_describe(value.func)}{_describe(value.args)}{_describe(value.keywords)}"
    if ismethod(value):
        return f"{_describe(value.__self__)}.{value.__name__}"
    if isfunction(value) and value.__module__.startswith("nervure.") and "<" not in value.__qualname__:
        return f"{value.__module__}.{value.__qualname__}"
    if is_dataclass(value) and not isinstance(value, type | Task):
        return f"{type(value).__qualname__}{[_describe(getattr(value, each.name)) for each in fields(value)]}"
    if isinstance(value, Mapping):
        return f"{ {name: _describe(part) for name, part in value.items()} }"
    return f"{list(map(_describe, value))}" if isinstance(value, tuple | list) else repr(value)
