"""What the readers of each unit lose when it goes and the units that stay take over: curves that sizes are read off.

A reader is whatever multiplies with a parameter: linear layers, convolutions of all kinds, projections. Its inputs are
those of the dense network, position by position. Of each group the units leave one after the other, and what all its
readers lose is added up, as :mod:`nervure.scores.elimination` has it.
"""

import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, final

import numpy as np
import torch
from torch import Tensor, nn

from nervure.core.container import Kind
from nervure.core.progress import progress, step_by_step
from nervure.errors import DataError, NervureWarning
from nervure.graph.types import Graph, Group
from nervure.methods.base import Folder, View, data_of, model_to_run
from nervure.methods.channels.answer_costs import AnswerMeter, GroupReader, set_apart
from nervure.methods.channels.data_views import DataViews, draw_views
from nervure.methods.channels.value_weights import value_weights
from nervure.methods.evidence_folder import answer_folder, remember
from nervure.refit.consumers import Consumer
from nervure.refit.input_moments import InputMoments, find_consumers, read_inputs, read_joins
from nervure.refit.moments import InputSums
from nervure.refit.replay import Replay
from nervure.refit.split import places_per_sample
from nervure.scores.elimination import ReaderProblem, eliminate
from nervure.stats.loaders import Batch

Currency: TypeAlias = Literal["answers", "outputs", "alone", "layers"]
MEMORY = 2 << 30
"""Bytes of sums over inputs that one pass over the data may hold, where no single group needs more."""
WIDEST = 1 << 14
"""Inputs of a reader from which on it is not looked at."""
UNREAD = f"nothing reads it that can be fitted: no product with a parameter of {WIDEST:,} inputs or fewer"
PLACES = 8
"""At how many places of each sample a convolution is looked at, at least."""
JOINED = 256
"""Samples on which it is measured what layers make of the streams that they are added to."""
TINY = 1e-9
"""The share of a layer's largest variance below which an output counts as constant."""
ROUNDING = 1e-7
"""The ridge that there always is, since sums are of single precision; more where they are rougher."""
FEW = 0.01
"""The ridge that is added where there are as many inputs as positions. Where they outnumber these, it is much more.

Fitted to fewer positions than it has inputs, a reader seems to lose nothing with any of them.
"""
INCOMPARABLE = (
    "what the model returns has another shape or number of parts each time, so answers cannot be compared: "
    "groups compete by what their readers lose. Where this is meant, say currency='outputs'."
)
CURVE_SLACK = 0.1
"""What a unit may cost where limits decide, as a share of the average one of its group."""
CURVES = Kind("nervure-compensation", "curves of compensation saved by nervure", version=1)


@final
@dataclass(frozen=True, slots=True, eq=False)
class CompensationCurves:
    """What the dense network told.

    Attributes:
        order: for each group its units, in the order in which they leave. Shape [units].
        costs: what each of these adds to what all readers of the group have lost. Shape [units].
        skipped: groups without curves, and why.
        samples: number of samples behind it.
    """

    order: Mapping[str, Tensor]
    costs: Mapping[str, Tensor]
    skipped: Mapping[str, str] = field(default_factory=dict)
    samples: int = 0

    def removable(self, name: str, slack: float) -> int:
        """How many units of a group its limit lets go; none of a group without a curve."""
        return removable(self.costs[name], slack) if name in self.costs else 0

    def to_json(self) -> dict[str, Any]:
        """Plain data for a report."""
        return {
            "samples": self.samples,
            "lost": {name: costs.cumsum(0).tolist() for name, costs in self.costs.items()},
            "order": {name: order.tolist() for name, order in self.order.items()},
            "skipped": dict(self.skipped),
        }


@final
@dataclass(frozen=True, slots=True)
class CompensationSurvey:
    """How it is measured, apart from any budget.

    Attributes:
        samples: how many samples at most.
        positions: at how many places of each sample a convolution is looked at, at most. 0: 8, or more where samples
            are few, so that a layer sees about 8,192.
        ridge: the share of its variance that is added to each input's, so that the scale of a unit does not matter.
            It is more where a reader has more inputs than positions were looked at.
        currency: what counts alike: ``"outputs"`` (each output of each reader; where that is added to a stream, as much
            as it makes of its variance, and what leads to it less as well; gates as much as the value that is made of
            them), ``"answers"`` (the same within a group, and groups by what the network's answers lose),
            ``"alone"`` (each output the same wherever it goes) or ``"layers"`` (each reader).
        views: another view of the data, for which the order has to hold too. It takes as much time and memory again.
    """

    samples: int = 1024
    positions: int = 0
    ridge: float = 1e-3
    currency: Currency = "outputs"
    views: DataViews | None = None

    def of(self, view: View, folder: Folder = None) -> CompensationCurves:
        """Run the model of a view, or read what was found out before about the same model on the same data.

        Raises:
            DataError: there are no data, or what enters a layer is not finite.
        """
        model = model_to_run(view)
        data_of(view)  # Where there are none, that is said before a folder is made.
        place = answer_folder(folder, view, self)
        skipped: dict[str, str] = {}

        def make() -> dict[str, Tensor]:
            parts = draw_views(view, self.views, self.samples)
            found = self._curves(model, view.graph, parts, view.seed, view.shows_progress)
            skipped.update(found.skipped)
            return {
                "samples": torch.tensor([sum(part.size for part in parts[0])]),
                **{f"order/{name}": value for name, value in found.order.items()},
                **{f"costs/{name}": value for name, value in found.costs.items()},
            }

        kept = remember(None if place is None else place / "compensation.safetensors", make, CURVES)
        order, costs = (
            {name.removeprefix(head): value for name, value in kept.items() if name.startswith(head)}
            for head in ("order/", "costs/")
        )
        missing = {g.name: UNREAD for g in view.graph.prunable if g.name not in order}
        return CompensationCurves(order, costs, missing | skipped, int(kept["samples"]))

    def _curves(
        self, model: nn.Module, graph: Graph, views: Sequence[Sequence[Batch]], seed: int, shown: bool
    ) -> CompensationCurves:
        meter: AnswerMeter | None = None
        if self.currency == "answers":
            fitted_on, apart = set_apart(views[0], len(graph.prunable))
            meter, views = AnswerMeter(model, apart), [fitted_on, *views[1:]]
        consumers = find_consumers(model, views[0][0])
        readers = {group.name: find_readers(group, consumers) for group in graph.prunable}
        weights = self._weights(model, graph, views[0], consumers, seed)
        order, costs, skipped = dict[str, Tensor](), dict[str, Tensor](), dict[str, str]()
        asked = dict[str, Tensor]()
        places = [self.positions or places_in(v) for v in views]
        seen = [
            read_in_passes(model, v, consumers, readers, positions=positions, seed=seed, shown=shown)
            for v, positions in zip(views, places, strict=True)
        ]
        for found in zip(*seen, strict=True):
            name, size = found[0][0], graph[found[0][0]].size
            views_of_readers = [self._readers(model, readers[name], consumers, entered) for _, entered in found]
            problems = [
                replace(problem, view=number)
                for number, mine in enumerate(views_of_readers)
                for place, reader in mine.items()
                for problem in self._problems(reader, weights.get(place), size)
            ]
            if problems:
                order[name], costs[name] = eliminate(problems, size)
                if meter is not None:
                    asked[name] = meter.costs([*views_of_readers[0].values()], order[name], costs[name])
            else:
                entered = found[0][1]
                reasons = [entered.reasons[place] for place in readers[name] if place in entered.reasons]
                skipped[name] = next(iter(reasons), UNREAD)
        if meter is not None and not meter.is_comparable:
            warnings.warn(INCOMPARABLE, NervureWarning, stacklevel=2)
        return CompensationCurves(order, asked if meter is not None and meter.is_comparable else costs, skipped)

    def _readers(
        self, model: nn.Module, units: Mapping[int, Tensor], consumers: Sequence[Consumer], entered: InputMoments
    ) -> dict[int, GroupReader]:
        """What reads a group, by its place."""
        found = {}
        for place in units:
            if place in entered.reasons:
                continue
            consumer, sums = consumers[place], entered.led[entered.leaders[place]]
            variance, moments = second_moments(consumer, sums)
            weight = consumer.weight(model).double()
            found[place] = GroupReader(
                consumer,
                units[place],
                weight,
                ((weight @ variance) * weight).sum(2, keepdim=True),
                [add_ridge_to(matrix, self.ridge + FEW * (len(matrix) / sums.count) ** 2) for matrix in moments],
                sums.x0 + sums.x / sums.count if has_shift(consumer) else None,
            )
        return found

    def _problems(self, reader: GroupReader, counts: Tensor | None, size: int) -> Iterator[ReaderProblem]:
        weight = reader.weight * self._scale(reader.power, counts)
        for part, matrix in enumerate(reader.moments):
            yield ReaderProblem(weight[part], matrix, columns_of(reader.units[part], size))

    def _weights(
        self, model: nn.Module, graph: Graph, parts: Sequence[Batch], consumers: Sequence[Consumer], seed: int
    ) -> dict[int, Tensor]:
        """How much each output of each consumer counts, by its place."""
        if self.currency == "layers":
            return {}
        seen = itertools.accumulate(part.size for part in parts)
        some = parts[: 1 + sum(count < JOINED for count in seen)]
        wanted = {} if self.currency == "alone" else dict(enumerate(consumers))
        joined = read_joins(model, some, wanted, positions=self.positions or PLACES, seed=seed)
        return value_weights(graph, consumers, joined)

    def _scale(self, power: Tensor, counts: Tensor | None) -> Tensor:
        """What makes the losses of a reader comparable with those of others, [stack, outputs, 1]."""
        if self.currency == "layers":
            return (1 / power.sum().clamp(min=torch.finfo(power.dtype).tiny)).sqrt().expand_as(power)
        alone = torch.where(power > TINY * power.max(), power, torch.inf).rsqrt()
        return alone if counts is None else alone * counts.to(alone).sqrt()[:, :, None]


def places_in(parts: Sequence[Batch]) -> int:
    """At how many places of each of these samples a convolution is looked at, where nothing else is said."""
    return places_per_sample(sum(part.size for part in parts), PLACES)


def add_ridge_to(moments: Tensor, ridge: float) -> Tensor:
    """Positive definite second moments; what never varies costs nothing, and stands in for nothing."""
    power, ridge = moments.diagonal(), ridge + ROUNDING
    least = torch.where(power > 0, 0, torch.finfo(torch.float32).tiny)
    while True:
        found = moments + torch.diag(ridge * power + least)
        if not int(torch.linalg.cholesky_ex(found).info):
            return found
        ridge *= 10


def removable(costs: Tensor, slack: float) -> int:
    """How many units of a group its limit lets go: as long as the next one costs little beside the average one.

    >>> removable(torch.tensor([0.0, 0.5, 3.0, 4.5]), slack=0.25)
    2

    Args:
        costs: what each unit adds to what is lost, in the order in which they leave. Shape [units].
        slack: what one may cost, as a share of the mean of all, in [0, 1]. 1 is the knee of the curve of what is lost:
            where it is steeper than the line from its beginning to its end.
    """
    rising = costs.double().clamp(min=0).cummax(0).values
    return int((rising <= slack * rising.mean()).sum())


def find_readers(group: Group, consumers: Sequence[Consumer]) -> dict[int, Tensor]:
    """For each consumer that reads units of a group, by its place, the unit of each of its inputs, -1: none.

    Shape [stack, inputs]. Consumers that cannot be read position by position are left out.
    """
    found = {}
    for place, consumer in enumerate(consumers):
        slots = [slot for slot in group.slots if slot.tensor == consumer.tensor]
        if not slots or any(reading.reason for reading in consumer.readings) or not consumer.is_matched:
            continue
        for slot in slots:
            units = _units_entering(consumer, slot.axis, torch.tensor(slot.units.array))
            if units is not None and bool((units >= 0).any()) and units.shape[1] <= WIDEST:
                found[place] = units
    return found


def _units_entering(consumer: Consumer, axis: int, units: Tensor) -> Tensor | None:
    """The unit of each input, [stack, inputs]; None where those along this axis are not what enters."""
    rows = consumer.places[:, [0, -1]].numpy()
    at = torch.from_numpy(np.stack(np.unravel_index(rows, consumer.origin.shape))[axis])
    enters = torch.equal(at[:, 0], at[:, 1]) and not bool((at == at[:, :, :1]).all())
    return units[at[:, 0]] if enters else None


def columns_of(units: Tensor, size: int) -> Tensor:
    """The inputs of each unit, from the unit of each input; -1 where a unit has fewer. Shape [units, most inputs]."""
    (inputs,) = (units >= 0).nonzero(as_tuple=True)
    order = inputs[torch.argsort(units[inputs], stable=True)]
    counts = torch.bincount(units[inputs], minlength=size)
    firsts = torch.cumsum(counts, 0) - counts
    found = torch.full((size, max(int(counts.max()), 1)), -1)
    found[units[order], torch.arange(len(order)) - firsts[units[order]]] = order
    return found


def second_moments(consumer: Consumer, sums: InputSums) -> tuple[Tensor, Tensor]:
    """Of what enters, about the mean; and about what a refit can correct, 0 where it has no bias to do it with.

    Both [stack, inputs, inputs].
    """
    first = sums.x / sums.count
    variance = sums.xx / sums.count - first[:, :, None] * first[:, None]
    if not bool(torch.isfinite(variance).all()):
        raise DataError(f"what enters {consumer.tensor!r} is NaN or infinite. The model or the data are broken.")
    mean = sums.x0 + first
    return variance, variance if has_shift(consumer) else variance + mean[:, :, None] * mean[:, None]


def has_shift(consumer: Consumer) -> bool:
    """Whether what it says can be moved as a whole: a bias goes with it, or a batch norm behind it takes means off."""
    return consumer.bias is not None or consumer.is_before_norm


def read_in_passes(
    model: nn.Module,
    parts: Sequence[Batch],
    consumers: Sequence[Consumer],
    readers: Mapping[str, Mapping[int, Tensor]],
    *,
    positions: int,
    seed: int,
    shown: bool = False,
) -> Iterator[tuple[str, InputMoments]]:
    """What enters the readers of each name, of as many in one pass over the samples as memory holds.

    Args:
        model: it runs in evaluation mode.
        parts: the samples.
        consumers: all of the model.
        readers: for each name the places of its consumers, each with the unit of each input, [stack, inputs].
        positions: how many places of a convolution are looked at in each sample, at most.
        seed: for choosing these.
        shown: show one bar over all batches of all passes, and over all names.
    """
    packs = list(_packed(readers))
    with progress("asking what may leave", len(packs) * len(parts) + len(readers), enabled=shown) as advance:
        for names in packs:
            wanted = {place: consumers[place] for name in names for place in readers[name]}
            entered = read_inputs(Replay(model), step_by_step(parts, advance), wanted, positions=positions, seed=seed)
            for name in names:
                yield name, entered
                advance()


def _packed(readers: Mapping[str, Mapping[int, Tensor]]) -> Iterator[list[str]]:
    """Groups whose readers are looked at in one pass."""
    names, held = list[str](), dict[int, int]()
    for name, found in readers.items():
        mine = {place: 8 * units.shape[0] * units.shape[1] ** 2 for place, units in found.items()}
        if names and sum((held | mine).values()) > MEMORY:
            yield names
            names, held = [], {}
        names.append(name)
        held |= mine
    if names:
        yield names
