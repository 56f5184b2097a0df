"""``refit``: what stays of a network takes over what left.

In running order, on what the smaller network itself says, each layer that reads is fitted to say what the dense one
says at the same place: by ridge regression towards the weights it has, see :mod:`nervure.refit.ridge`. No labels.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nervure.core.annotations import Batches, FilePath
from nervure.core.check import checked
from nervure.core.progress import track
from nervure.core.tensors import tensors_in
from nervure.errors import ArgumentError, DataError, NervureWarning
from nervure.graph.copies import copy_model
from nervure.graph.models import is_weightless, unwrap
from nervure.graph.tape import named_tensors
from nervure.graph.types import Graph
from nervure.plan import Plan
from nervure.refit.batch_norms import Pair, drift, remeasure
from nervure.refit.consumers import Consumer, consumers
from nervure.refit.gather import Gathered, GramPart, gather
from nervure.refit.moments import Moments
from nervure.refit.origins import Origin, origins
from nervure.refit.prefix import Prefix, prefix_of
from nervure.refit.reconstruct import Reconstructor
from nervure.refit.ridge import RIDGES, Fit, Problem, solve
from nervure.refit.settings import BranchFit, LayerFit, Refit, Refitted, summary
from nervure.refit.streams import Key
from nervure.refit.survey import LayerReading, survey
from nervure.stats.loaders import batches
from nervure.surgery.apply import check_fits
from nervure.surgery.attention import ResizedAttention
from nervure.tasks.guessing import TaskLike, as_task
from nervure.tasks.task import Task

HELD = 4
"""One sample in so many is left out of fits, and chooses among them."""
ALIKE = 0.1
"""The least correlation between weights of a model and of its dense twin."""
FAR = 2.0
"""Standard deviations from the means that batch norms know from which on data are of another kind."""


M = TypeVar("M")

TRAINED = "its branch was trained"
STRANGE = "its outputs are not those of one layer of the dense network"


@checked
def refit(
    pruned: M,
    data: Batches,
    *,
    reference: nn.Module,
    validation: Batches | None = None,
    task: TaskLike | None = None,
    how: Refit | None = None,
    masks: Mapping[str, Tensor] | None = None,
    checkpoint: FilePath | None = None,
    progress: bool = True,
) -> Refitted[M]:
    """Fit what is left of a network to say what the dense one says, layer by layer, without labels and training.

    Masked connections stay exactly zero. Biases are changed where there are any; none are added. What is frozen, tied
    to a table of embeddings, or not in the dense network stays as it is; ``Refitted.layers`` says why.

    Args:
        pruned: a pruned model, as :func:`nervure.prune` returns it (trained since, perhaps); or a module of the shape
            of ``reference``, masked perhaps. It is not changed.
        data: batches of any form; labels are not looked at.
        reference: the dense network that it was pruned from, with its weights.
        validation: batches by which is chosen how much is fitted, and how freely: under the shift, or of the domain,
            that the model will meet. None: by a quarter of ``data``.
        task: how batches go into the model (:mod:`nervure.tasks`), where their form does not say it.
        how: the choices, see :class:`Refit`.
        masks: of a module: which entries of its parameters may be other than zero, by name.
        checkpoint: a folder where branches of local reconstruction (``Refit(steps=)``) are kept as they are done: a run
            that was stopped goes on behind them.
        progress: show progress of what takes longer than two seconds.

    Raises:
        ArgumentError: ``reference`` is not the network that it was pruned from, or nothing in it can be fitted.
        PlanError: ``reference`` has other layers than the network that it was pruned from.
        DataError: the data are empty, all the same, or not finite, or a layer makes them so.
    """
    how = Refit() if how is None else how
    model, steps, found = _taken_apart(pruned, masks)
    reference = unwrap(reference)
    for one, what in ((model, "the model"), (reference, "the reference")):
        if is_weightless(one):
            raise ArgumentError(f"{what} has no weights: some of its tensors have a shape only. Load them first.")
    if steps:
        check_fits(reference, *steps[0])
    parts = split(data, how.samples, as_task(task), validation)
    result = copy_model(model)
    twin, came = _twin(reference, result), origins(reference, steps)
    refitter = _Refitter(result, twin, came, found, parts, how)
    layers = refitter.run(progress)
    branches: tuple[BranchFit, ...] = ()
    if how.steps:
        folder = None if checkpoint is None else Path(checkpoint)
        branches = Reconstructor(result, twin, came, found, parts, how, folder).run(progress)
        # What reads the branches was fitted to what they gave before; they themselves have units of their own by now.
        trained = tuple(branch.branch for branch in branches if branch.steps)
        again = _Refitter(result, twin, came, found, parts, how, trained).run(progress) if trained else layers
        layers = tuple(map(_followed_by, layers, again))
    counts = (sum(p.batch.size for p in parts if not p.held), sum(p.batch.size for p in parts if p.held))
    return Refitted(_put_together(pruned, result, layers, counts), layers, counts, refitter.shift, branches)


def _followed_by(first: LayerFit, second: LayerFit) -> LayerFit:
    """Two fits of a layer as one."""
    return first if second.reason else replace(first, after=second.after, held_after=second.held_after)


def _taken_apart(
    pruned: Any, masks: Mapping[str, Tensor] | None
) -> tuple[nn.Module, list[tuple[Graph, Plan]], Mapping[str, Tensor]]:
    """The model, the plans that led to it, and its masks."""
    if isinstance(pruned, nn.Module):
        return unwrap(pruned), [], masks or {}
    if not all(hasattr(pruned, name) for name in ("model", "plan", "graph", "masks", "earlier")):
        raise ArgumentError(f"{type(pruned).__name__} is no pruned model. Give what prune returns, or a module.")
    steps = [*((step.graph, step.plan) for step in pruned.earlier), (pruned.graph, pruned.plan)]
    return unwrap(pruned.model), steps, {**pruned.masks, **(masks or {})}


def _put_together(pruned: Any, model: nn.Module, layers: tuple[LayerFit, ...], counts: tuple[int, int]) -> Any:
    if isinstance(pruned, nn.Module):
        return model
    reached = {**pruned.plan.reached, "refit": summary(layers, counts)}
    return replace(pruned, model=model, plan=replace(pruned.plan, reached=reached))


def _twin(reference: nn.Module, model: nn.Module) -> nn.Module:
    """The dense network, sharing its tensors, with attention that runs as that of the smaller one does."""
    held = [*reference.parameters(), *reference.buffers()]
    twin = copy_model(reference, {id(tensor): tensor for tensor in held})
    resized = {name for name, module in model.named_modules() if isinstance(module, ResizedAttention)}
    if resized:
        for module in twin.modules():
            if isinstance(module, nn.MultiheadAttention):
                ResizedAttention.adopt(module)
    return twin


def split(data: Batches, samples: int, task: Task | None = None, validation: Batches | None = None) -> list[GramPart]:
    """The first so many samples, every fourth of them apart; or those of ``validation``, a third as many.

    Raises:
        DataError: there are fewer than four, or they are all the same.
    """
    parts, seen = list[GramPart](), 0
    for batch in batches(data, samples, labelled=False, task=task):
        held = (torch.arange(batch.size) + seen) % HELD == HELD - 1
        held = held if validation is None else torch.zeros_like(held)
        seen += batch.size
        for rows, apart in ((~held, False), (held, True)):
            if bool(rows.any()):
                parts.append(GramPart(batch.rows(rows.nonzero()[:, 0]), apart))
    if validation is not None:
        others = batches(validation, -(-samples // (HELD - 1)), labelled=False, task=task)
        parts += [GramPart(batch, True) for batch in others]
    if seen < HELD:
        raise DataError(f"{seen} samples are too few to refit on: give {HELD} or more, hundreds where there are any.")
    if _are_same(parts):
        raise DataError(f"all {seen} samples are the same: nothing can be learnt from them. Give real data.")
    return parts


def _are_same(parts: Sequence[GramPart]) -> bool:
    """Whether every sample is the first one again."""
    first = [tensor[:1] for tensor in _inputs(parts[0])]
    return bool(first) and all(
        a.shape[1:] == b.shape[1:] and bool((a == b).all())
        for part in parts
        for a, b in zip(_inputs(part), first, strict=False)
    )


def _inputs(part: GramPart) -> list[Tensor]:
    return [tensor for tensor in tensors_in(part.batch.inputs) if tensor.ndim]


class _Refitter:
    """Goes through the levels of a model, and changes it in place."""

    def __init__(
        self,
        model: nn.Module,
        reference: nn.Module,
        came: Mapping[str, Origin],
        masks: Mapping[str, Tensor],
        parts: Sequence[GramPart],
        how: Refit,
        trained: Sequence[str] = (),
    ) -> None:
        self.shift: float | None = None
        self._trained = tuple(f"{name}." if name else "" for name in trained)
        self._model, self._reference, self._came, self._masks, self._parts, self._how = (
            model, reference, came, masks, parts, how,
        )  # fmt: skip
        self._ridges = RIDGES if how.ridge == "auto" else (float(how.ridge),)
        self._few: list[str] = []

    def run(self, progress: bool) -> tuple[LayerFit, ...]:
        """Fit all consumers; what became of each."""
        found, norms = self._found()
        found = [replace(c, reason=c.reason or TRAINED) if c.tensor.startswith(self._trained) else c for c in found]
        norms = {name: level for name, level in norms.items() if not name.startswith(self._trained)}
        done: dict[int, LayerFit] = {
            place: LayerFit(c.tensor, reason=c.reason) for place, c in enumerate(found) if c.reason
        }
        levels = sorted({c.level for c in found if not c.reason} | {*norms.values()})
        for level in track(levels, "refitting", len(levels), enabled=progress):
            chosen = [place for place, c in enumerate(found) if c.level == level and not c.reason]
            pending = [c for c in found if c.level >= level and not c.reason]
            self._advance(pending, [name for name, at in norms.items() if at >= level])
            # What is looked up of a consumer is as large as its parameter: copies let it go after their level.
            readers = {place: replace(found[place]) for place in chosen}
            strange = {place: LayerFit(c.tensor, reason=STRANGE) for place, c in readers.items() if not c.is_matched}
            clear = {place: c for place, c in readers.items() if place not in strange}
            done |= strange | self._level(clear, [name for name, at in norms.items() if at == level])
        self._warn()
        return tuple(done[place] for place in range(len(found)))

    def _advance(self, pending: Sequence[Consumer], norms: Sequence[str]) -> None:
        """Layers below all that is still to be fitted need not run again."""
        sides = (
            ([c.readings[0] for c in pending], norms),
            ([c.partners[0] for c in pending], [self._came[name].tensor for name in norms]),
        )
        for prefix, (readings, names) in zip(self._done, sides, strict=True):
            depths = [_depth(prefix, reading) for reading in readings] + [prefix.index(name) or 0 for name in names]
            prefix.advance(min(depths, default=0), [part.batch for part in self._parts])

    def _found(self) -> tuple[list[Consumer], dict[str, int]]:
        first = self._parts[0].batch
        mine, theirs = survey(self._model, first), survey(self._reference, first)
        self._done = (prefix_of(self._model, first), prefix_of(self._reference, first))
        for prefix, seen in zip(self._done, (mine, theirs), strict=True):
            prefix.last = max((r.order for r in seen.readings if prefix.index(r.key[0]) is not None), default=-1)
        trained = {name: p.requires_grad for name, p in self._model.named_parameters()}
        found = consumers(self._model, mine, theirs, self._came, trained)
        if all(c.reason for c in found):
            why = "; ".join(f"{c.tensor!r}: {c.reason}" for c in found[:3]) or "no parameter multiplies what flows"
            raise ArgumentError(f"nothing in this model can be refitted ({why}).")
        self._require_twin([c for c in found if not c.reason])
        self._variances = mine.variances
        norms = {n: level for n, level in mine.norms.items() if n in self._came} if self._how.norms else {}
        return found, norms

    def _require_twin(self, found: Sequence[Consumer]) -> None:
        """Raise where the weights have nothing to do with those of the reference."""
        both = same = theirs = 0.0
        tensors = named_tensors(self._model)
        for name in {c.tensor for c in found}:
            a, b = tensors[name].detach().double(), self._dense(name).double()
            if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
                raise DataError(f"weights in {name!r} are NaN or infinite. The model or the reference is broken.")
            both, same, theirs = both + float((a * b).sum()), same + float((a * a).sum()), theirs + float((b * b).sum())
        alike = both / max((same * theirs) ** 0.5, torch.finfo(torch.float64).tiny)
        if not alike >= ALIKE:
            raise ArgumentError(
                f"the reference is not the network that this model was pruned from: their weights correlate by "
                f"{alike:.2f}. Give the dense network with the weights it had."
            )

    def _level(self, chosen: Mapping[int, Consumer], norms: list[str]) -> dict[int, LayerFit]:
        found = list(chosen.values())
        streams = {place: self._next(c) for place, c in enumerate(found) if self._how.streams and c.joins}
        between = {place: offset for place, c in enumerate(found) if (offset := self._between(c)) is not None}
        between = {place: offset for place, offset in between.items() if place not in streams}
        gathered = gather(
            *self._done, self._parts, found, norms, self._came, between, streams,
            positions=self._how.positions, seed=self._how.seed,
        )  # fmt: skip
        done = {number: self._fit(place, consumer, gathered) for place, (number, consumer) in enumerate(chosen.items())}
        for name in norms:
            if name in gathered.was and name in gathered.now:
                was, now = gathered.was[name], gathered.now[name]
                self._remeasure(name, (was.mean, was.var), (now.mean, now.var))
        return done

    def _next(self, consumer: Consumer) -> Key | None:
        """The use that the dense network adds to a consumer's stream where the smaller one adds the next."""
        key = consumer.readings[0].follower
        return None if key is None or key[0] not in self._came else (self._came[key[0]].tensor, key[1])

    def _between(self, consumer: Consumer) -> Tensor | None:
        """By how much the dense network's bias is larger, where it is added behind; None where it is not."""
        bias = consumer.bias
        if bias is None or bias.inside or bias.tensor not in self._came:
            return None
        return (self._dense(bias.tensor) - named_tensors(self._model)[bias.tensor].detach())[bias.piece]

    def _dense(self, name: str) -> Tensor:
        """What is left of the dense network's tensor in the place of this one."""
        origin = self._came[name]
        return origin.of(named_tensors(self._reference)[origin.tensor].detach())

    def _fit(self, place: int, consumer: Consumer, gathered: Gathered) -> LayerFit:
        if place in gathered.reasons or place not in gathered.seen or place not in gathered.held:
            return LayerFit(consumer.tensor, reason=gathered.reasons.get(place, "not every run comes to it"))
        seen, held = gathered.seen[place], gathered.held[place]
        _require_finite(seen, consumer.tensor)
        problem = self._problem(consumer, seen, held)
        still = _still(problem)
        fit = still if _is_exact(problem, still) else self._round(problem, solve(problem, self._ridges), consumer)
        if not problem.enough and not _is_exact(problem, still):
            self._few.append(f"{consumer.tensor} ({seen.count} positions, {problem.weight.shape[2]} inputs)")
        if fit.freedom != "none":
            self._write(consumer, problem, fit)
        if self._how.norms and consumer.norm in self._came:
            self._after(consumer, problem, fit, _is_exact(problem, still))
        stack, outputs, inputs = problem.weight.shape
        (before, after), (held_before, held_after) = (
            [moments.error(one.change, one.shift) for one in (still, fit)] for moments in (seen, held)
        )
        return LayerFit(
            consumer.tensor, inputs, stack * outputs, seen.count, fit.freedom, fit.ridge,
            before, after, held_before, held_after,
        )  # fmt: skip

    def _problem(self, consumer: Consumer, seen: Moments, held: Moments) -> Problem:
        keep = self._masks.get(consumer.tensor)
        places = consumer.places
        weight = consumer.weight(self._model).double()
        return Problem(
            weight,
            seen,
            held,
            self._bias(consumer) is not None or (consumer.is_before_norm and self._how.norms),
            None if keep is None else keep.reshape(-1).to(weight.device)[places.to(weight.device)],
            self._how.masks == "surgeon",
        )

    def _bias(self, consumer: Consumer) -> Tensor | None:
        """The bias that can be changed with a consumer."""
        bias = consumer.bias
        found = None if bias is None else named_tensors(self._model)[bias.tensor]
        return found if found is not None and found.requires_grad else None

    def _round(self, problem: Problem, fit: Fit, consumer: Consumer) -> Fit:
        """The answer as the model's precision holds it, or none where rounding undoes it."""
        dtype = named_tensors(self._model)[consumer.tensor].dtype
        if dtype == torch.float64 or fit.freedom in ("none", "bias"):
            return fit
        new = (problem.weight + fit.change.transpose(1, 2)).to(dtype).double()
        rounded = problem.fit(fit.freedom, fit.ridge, (new - problem.weight).transpose(1, 2))
        still = _still(problem)
        better = problem.seen.error(rounded.change, rounded.shift) <= problem.seen.error(still.change, still.shift)
        return rounded if better else still

    def _write(self, consumer: Consumer, problem: Problem, fit: Fit) -> None:
        tensors = named_tensors(self._model)
        parameter = tensors[consumer.tensor]
        with torch.no_grad():
            flat = parameter.detach().reshape(-1).clone()
            flat[consumer.places.to(flat.device)] = (problem.weight + fit.change.transpose(1, 2)).to(flat)
            parameter.copy_(flat.reshape(parameter.shape))
            if (bias := self._bias(consumer)) is not None and consumer.bias is not None:
                bias[consumer.bias.piece] += fit.shift.reshape(-1).to(bias)

    def _after(self, consumer: Consumer, problem: Problem, fit: Fit, is_exact: bool) -> None:
        """The norm behind a consumer: what enters it follows from the moments."""
        seen = problem.seen
        was = (seen.y.reshape(-1), (seen.yy / seen.count).reshape(-1))
        if is_exact:
            self._note_drift(consumer.norm, was)
            return
        written = fit.shift if self._bias(consumer) is not None else torch.zeros_like(fit.shift)
        weight = problem.weight + fit.change.transpose(1, 2)
        mean = seen.y - seen.r + (fit.change * seen.mean[:, :, None]).sum(1) + written
        var = ((weight @ seen.xx) * weight).sum(2) / seen.count
        self._remeasure(consumer.norm, was, (mean.reshape(-1), var.reshape(-1)))

    def _remeasure(self, name: str, was: Pair, now: Pair) -> None:
        known = self._note_drift(name, was)
        remeasure(self._model, (name, self._variances[name]), known, was, now)

    def _note_drift(self, name: str, was: Pair) -> Pair:
        """What the dense network's norm knows; how far the data are from it is noted."""
        known = (self._dense(name), self._dense(self._variances[name]))
        self.shift = max(self.shift or 0.0, drift(was[0], known))
        return known

    def _warn(self) -> None:
        if self._few:
            warnings.warn(
                f"too few samples to fit the weights of {len(self._few)} layers, of which only scales and biases were "
                f"fitted: {', '.join(self._few[:3])}. Give more samples.",
                NervureWarning,
                stacklevel=4,
            )
        if self.shift is not None and self.shift > FAR:
            warnings.warn(
                f"the data are of another kind than those that the dense network was trained on: its means are "
                f"{self.shift:.1f} standard deviations from those that its batch norms know. What is fitted on such "
                "data holds for such data.",
                NervureWarning,
                stacklevel=4,
            )


def _depth(prefix: Prefix, reading: LayerReading) -> int:
    """How many layers a use of a parameter leaves to be skipped: those before it."""
    inside = prefix.index(reading.key[0])
    if inside is not None:
        return inside
    return len(prefix.names) if reading.order > prefix.last else 0


def _still(problem: Problem) -> Fit:
    return problem.fit("none", 0.0, torch.zeros_like(problem.seen.xr))


def _is_exact(problem: Problem, still: Fit) -> bool:
    """Whether what is said is right already, to rounding in single precision."""
    return problem.seen.error(still.change, still.shift) <= (16 * torch.finfo(torch.float32).eps) ** 2


def _require_finite(seen: Moments, name: str) -> None:
    if not all(bool(torch.isfinite(t).all()) for t in (seen.xx, seen.xr, seen.yy)):
        raise DataError(f"what enters or leaves {name!r} is NaN or infinite. The model or the data are broken.")
