"""Optimal brain surgeon for units, as a yardstick: what readers lose with each alone, if all others take over."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

from torch import Tensor, nn

from nervure.core.schema import Count, NotNegative, Size
from nervure.graph.types import Graph
from nervure.methods.base import Folder, Inquiry, View, data_of, draw_samples, model_to_run
from nervure.methods.channels.compensation import (
    UNREAD,
    add_ridge_to,
    columns_of,
    find_readers,
    places_in,
    read_in_passes,
    second_moments,
)
from nervure.methods.channels.timed import timed_inquiries
from nervure.methods.channels.yardsticks import GlobalRanking
from nervure.methods.evidence_folder import answer_folder, remember
from nervure.refit.consumers import Consumer
from nervure.refit.input_moments import find_consumers
from nervure.refit.moments import InputSums
from nervure.scores import Normalise, Scores
from nervure.scores.brain_surgeon import obs
from nervure.scores.common import normalise_groups
from nervure.scores.completed import completed
from nervure.scores.elimination import ReaderProblem
from nervure.stats.loaders import Batch


@final
@dataclass(frozen=True, slots=True)
class OBS(GlobalRanking):
    """Keep the units without which the layers that read them would lose most, though all others make up for it.

    Hassibi and Stork, "Optimal Brain Surgeon", 1993, for the squared error of each reader. Each unit is priced as if it
    were the only one to go; :class:`Compensated` prices it when those before it have gone. Differs from the paper:
    units instead of weights, layer by layer, and one cut. Needs data; labels are not looked at.

    The other hyper-parameters are those of every ranking: ``keep``, ``scope``, ``budget``, ``minimum``, ``multiple``.

    Attributes:
        samples: how many samples at most are measured.
        positions: at how many places of each sample a convolution is looked at, at most. 0: 8, or more where samples
            are few, so that a layer sees about 8,192.
        ridge: the share of its variance that is added to each input's.
        normalise: ``"none"`` compares raw scores over all layers; ``"mean"`` divides by the mean of the group.
    """

    criterion: ClassVar[str] = "obs"
    wants: ClassVar[frozenset[str]] = frozenset()

    samples: Size = field(default=1024, kw_only=True)
    positions: Count = field(default=0, kw_only=True)
    ridge: NotNegative = field(default=1e-3, kw_only=True)
    normalise: Normalise = field(default="mean", kw_only=True)

    @property
    def asks(self) -> tuple[Inquiry[Any], ...]:
        """The prices, and times where a latency is to be met."""
        return (self._survey, *timed_inquiries(self))

    @property
    def _survey(self) -> "ObsSurvey":
        return ObsSurvey(self.samples, self.positions, self.ridge)

    def scores(self, view: View) -> Scores:
        """What readers lose with each unit; magnitude, as an average group, where nothing can be read."""
        found = view.ask(self._survey)
        missing = {g.name: UNREAD for g in view.graph.prunable if g.name not in found}
        return completed(view.graph, normalise_groups(found, self.normalise), view.weights, missing)


@final
@dataclass(frozen=True, slots=True)
class ObsSurvey:
    """How it is measured, apart from any budget; see :class:`OBS`."""

    samples: int = 1024
    positions: int = 0
    ridge: float = 1e-3

    def of(self, view: View, folder: Folder = None) -> dict[str, Tensor]:
        """For each group that is read what its units cost, [units]; raises DataError."""
        model = model_to_run(view)
        data_of(view)  # Where there are none, that is said before a folder is made.
        place = answer_folder(folder, view, self)

        def make() -> Mapping[str, Tensor]:
            parts = draw_samples(view, self.samples)
            return self._costs(model, view.graph, parts, view.seed, view.shows_progress)

        return remember(place and place / "obs.safetensors", make)

    def _costs(self, model: nn.Module, graph: Graph, parts: list[Batch], seed: int, shown: bool) -> dict[str, Tensor]:
        consumers = find_consumers(model, parts[0])
        readers = {group.name: find_readers(group, consumers) for group in graph.prunable}
        found = dict[str, Tensor]()
        positions = self.positions or places_in(parts)
        passes = read_in_passes(model, parts, consumers, readers, positions=positions, seed=seed, shown=shown)
        for name, entered in passes:
            read = {place: units for place, units in readers[name].items() if place not in entered.reasons}
            problems = [
                problem
                for place, units in read.items()
                for problem in self._problems(
                    model, consumers[place], entered.led[entered.leaders[place]], units, graph[name].size
                )
            ]
            if problems:
                found[name] = obs(problems, graph[name].size).float()
        return found

    def _problems(
        self, model: nn.Module, consumer: Consumer, sums: InputSums, units: Tensor, size: int
    ) -> Iterator[ReaderProblem]:
        matrices = zip(consumer.weight(model).double(), second_moments(consumer, sums)[1], units, strict=True)
        for weight, moments, own in matrices:
            yield ReaderProblem(weight, add_ridge_to(moments, self.ridge), columns_of(own, size))
