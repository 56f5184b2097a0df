"""What every method gets and gives: evidence is gathered first, and a plan follows from it."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, final, runtime_checkable

from torch import Tensor, nn

from nervure.core import collectives
from nervure.core.annotations import Batches
from nervure.errors import ArgumentError, DataError, ScoreError
from nervure.graph.models import is_weightless
from nervure.graph.types import Graph
from nervure.plan import Plan
from nervure.stats import Stats, measure
from nervure.stats.loaders import Batch, batches, first_of, fixed_seed
from nervure.tasks.guessing import find_task
from nervure.tasks.task import Task

A_co = TypeVar("A_co", covariant=True)
Folder = str | os.PathLike[str] | None


@final
@dataclass(frozen=True, slots=True, eq=False)
class View:
    """All that a method sees of a model.

    Attributes:
        graph: its traced graph.
        weights: its tensors by name, detached, as in ``state_dict``. Not to be written to.
        stats: evidence gathered on data; None where the method wants none.
        seed: where the randomness of the run starts.
        model: the model itself, for inquiries. It must be left as it was: what changes anything works on a copy.
        example: the input it was traced with.
        data: batches of any form, re-iterable; None where none were given.
        ignored: names of parameters that must not change, whatever groups they belong to.
        answers: inquiries with what they have found out, see :func:`gather_evidence`.
        task: what the model is for; None: what the first batch says, where that is asked.
        shows_progress: whether inquiries show progress of what takes longer than two seconds.
    """

    graph: Graph
    weights: Mapping[str, Tensor]
    stats: Stats | None = None
    seed: int = 0
    model: nn.Module | None = None
    example: Any = None
    data: Iterable[Any] | None = None
    ignored: frozenset[str] = frozenset()
    answers: tuple[tuple["Inquiry[Any]", Any], ...] = ()
    task: Task | None = None
    shows_progress: bool = False

    def ask(self, inquiry: "Inquiry[A_co]", folder: Folder = None) -> A_co:
        """The answer that was gathered; where none was, the view's own model is asked now, if it has one."""
        found = self.answer_to(inquiry)
        return inquiry.of(self, folder) if found is None else found

    def answer_to(self, inquiry: "Inquiry[A_co]") -> A_co | None:
        """The answer that was gathered, if any."""
        return next((found for asked, found in self.answers if asked == inquiry), None)

    def with_answer(self, inquiry: "Inquiry[A_co]", found: A_co) -> "View":  # type: ignore[misc]  # a view changes nothing
        """The view with this answer, whatever was there before."""
        return replace(self, answers=((inquiry, found), *self.answers))

    def listen(self, want: frozenset[str], **options: Any) -> "View":
        """The view with these signals in ``stats``: as they are there, or measured with ``options`` now."""
        if not want or (self.stats is not None and want <= self.stats.want):
            return self
        model, data = model_of(self), data_of(self)
        how = {"task": self.task, "seed": self.seed, "progress": self.shows_progress, **options}
        found = measure(model, self.graph, data, want=want, **how)
        return replace(self, stats=found)


class Inquiry(Protocol[A_co]):
    """What takes more than a pass over data to find out: a frozen value, so that equal ones are asked once."""

    def of(self, view: View, folder: Folder = None) -> A_co:
        """Ask the model of a view; in a folder, keep what was found, and go on from what was found before."""
        ...


@runtime_checkable
class Inquiring(Protocol):
    """A method that wants more than signals.

    Attributes:
        asks: its inquiries; ``plan`` gets the answers by ``view.ask``.
    """

    @property
    def asks(self) -> tuple[Inquiry[Any], ...]:
        """What was said above."""
        ...


class Evidence(Protocol):
    """What a decision rests on, for people to look at."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for a report."""
        ...


@runtime_checkable
class HasEvidence(Protocol):
    """A method that can show what its plan rests on."""

    def evidence(self, view: View) -> Any:
        """Get an :class:`Evidence`."""
        ...

    def decide(self, view: View, found: Any) -> Plan:
        """The plan that follows from what was found."""
        ...


@runtime_checkable
class Cached(Protocol):
    """A method, a frozen dataclass, that keeps what it found out in a folder, if it is given one.

    Attributes:
        cache: the folder; None: nothing is kept.
    """

    @property
    def cache(self) -> str | None:
        """What was said above."""
        ...


@runtime_checkable
class CountsOnRefit(Protocol):
    """A method whose plans count on a refit: ``prune`` refits afterwards, unless it is told not to.

    Attributes:
        refits: whether it does, with the hyper-parameters that it has.
    """

    @property
    def refits(self) -> bool:
        """What was said above."""
        ...


@runtime_checkable
class Method(Protocol):
    """A way to prune: a frozen dataclass of hyper-parameters.

    Attributes:
        wants: the evidence that ``plan`` needs in ``view.stats``, as in ``measure(want=...)``.
    """

    @property
    def wants(self) -> frozenset[str]:
        """What was said above."""
        ...

    def plan(self, view: View) -> Plan:
        """Decide what to edit, from evidence."""
        ...


def gather_evidence(method: Method, view: View, *, folder: Folder = None, progress: bool = False) -> View:
    """The view with all that a method wants, so that its plan asks the network nothing.

    In a process group signals are those of all processes; inquiries are the first one's, on its share of the data.

    Args:
        method: what wants it.
        view: with a model, and data where the method measures on data.
        folder: where answers are kept, unless the method names a ``cache``; None: in memory only.
        progress: show progress of what takes longer than two seconds.

    Raises:
        DataError: there are no model or no data, or they are of no use.
    """
    view = replace(view, shows_progress=progress).listen(method.wants)
    if collectives.rank():
        # What is decided by more than signals is decided by the first process.
        return view
    kept = method.cache if isinstance(method, Cached) and method.cache is not None else folder
    with collectives.group_used(None):
        for inquiry in inquiries_of(method):
            view = view.with_answer(inquiry, view.ask(inquiry, kept))
    return view


def require_method(method: Any, data: Batches | None) -> None:
    """Raise ArgumentError where it is no method, and DataError where it measures and there are no data."""
    if isinstance(method, type) or not isinstance(method, Method):
        raise ArgumentError(
            f"method={method!r} is not a method. Give one like Magnitude(keep=0.5), called, not the class, or a Plan."
        )
    if method.wants and data is None:
        raise DataError(
            f"{method!r} measures {', '.join(sorted(method.wants))}: give data=, batches of (inputs, labels)."
        )


def inquiries_of(method: Method) -> tuple[Inquiry[Any], ...]:
    """What a method wants beyond signals."""
    return method.asks if isinstance(method, Inquiring) else ()


def stats_of(method: Method, view: View) -> Stats:
    """The signals that a method wants, as given or measured now; raises ScoreError where there is no way to them."""
    # Statistics that were put together by hand do not say what was wanted.
    if view.stats is not None and (not view.stats.want or method.wants <= view.stats.want):
        return view.stats
    if view.model is None or view.data is None:
        raise ScoreError(f"{method!r} needs evidence. Measure want={set(method.wants)!r} and give it as stats.")
    found = view.listen(method.wants).stats
    assert found is not None
    return found


def model_of(view: View) -> nn.Module:
    """The model; raises DataError where the view has none."""
    if view.model is None:
        raise DataError("this asks the model itself, but the view has none. Give model= (nervure.prune does).")
    return view.model


def model_to_run(view: View) -> nn.Module:
    """The model, to be run on data; raises DataError where the view has none, or one of shapes alone."""
    model = model_of(view)
    if is_weightless(model):
        raise DataError(
            "what the model says on data is asked for, and it has shapes without numbers (it is on the meta device). "
            "Give it its weights first."
        )
    return model


def task_of(view: View) -> Task:
    """What the model of a view is for: as given, or as the first batch of its data says.

    Raises:
        DataError: there are no model or no data, these are empty, or have no labels and need some.
        ArgumentError: several tasks fit.
    """
    if view.task is not None:
        return view.task
    with fixed_seed(view.seed):
        first = first_of(data_of(view), 1)
    if not first:
        raise DataError("the data gave no batch to tell the task by. Give a re-iterable of batches.")
    return find_task(model_of(view), first[0])


def draw_samples(view: View, samples: int) -> list[Batch]:
    """The batches that hold the first so many samples of a view's data; labels are not looked at.

    A loader that shuffles gives the same for the same seed.

    Raises:
        DataError: the view has no data, or they are empty.
    """
    with fixed_seed(view.seed):
        drawn = list(batches(data_of(view), samples, labelled=False, task=view.task))
    if not drawn:
        raise DataError("the data gave no batch. Give a re-iterable of batches.")
    return drawn


def data_of(view: View) -> Iterable[Any]:
    """The data; raises DataError where the view has none."""
    if view.data is None:
        raise DataError(
            "this measures, and no data were given. Give data=, batches of (inputs, labels), or of inputs alone where "
            "the method looks at no labels."
        )
    return view.data
