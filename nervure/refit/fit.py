"""``refit``: what stays of a network takes over what left.

In running order, on what the smaller network itself says, each layer that reads is fitted to say what the dense one
says at the same place: by ridge regression towards the weights it has, see :mod:`nervure.refit.ridge`. No labels.
"""

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nervure.core import collectives
from nervure.core.annotations import Batches, FilePath
from nervure.core.check import checked
from nervure.core.collectives import require_unsharded
from nervure.core.progress import track
from nervure.errors import ArgumentError, DataError, NervureWarning
from nervure.graph.copies import copy_model
from nervure.graph.models import unwrap
from nervure.graph.tape import named_tensors
from nervure.graph.types import Graph
from nervure.plan import Plan
from nervure.refit.batch_norms import NormTensors, Pair, drift, remeasure
from nervure.refit.consumers import Consumer, consumers
from nervure.refit.expert_ends import MixtureEnd, mixture_ends, mixture_problem
from nervure.refit.gather import Gathered, GramPart, gather
from nervure.refit.moments import Moments
from nervure.refit.origins import origins, require_twin, require_weights, take_apart
from nervure.refit.replay import replay_of
from nervure.refit.ridge import RIDGES, Fit, Problem, solve
from nervure.refit.settings import BranchFit, LayerFit, Refit, Refitted, summary
from nervure.refit.split import count_samples, places_per_sample, require_different, split
from nervure.refit.streams import Key
from nervure.refit.survey import survey
from nervure.refit.train_branches import Reconstruct, reconstruct
from nervure.surgery.attention import ResizedAttention
from nervure.tasks.guessing import TaskLike, as_task

FAR = 2.0
"""Standard deviations from the means that batch norms know from which on data are of another kind."""


M = TypeVar("M")

TRAINED = "its branch was trained"
MIXED = "it is fitted with the other experts"
STRANGE = "its outputs are not those of one layer of the dense network"


@checked
def refit(
    pruned: M,
    data: Batches,
    *,
    reference: nn.Module,
    views: Batches | None = None,
    task: TaskLike | None = None,
    how: Refit | None = None,
    masks: Mapping[str, Tensor] | None = None,
    checkpoint: FilePath | None = None,
    progress: bool = True,
) -> Refitted[M]:
    """Fit what is left of a network to say what the dense one says, layer by layer, without labels and training.

    In a process group all processes call it, each with its share of the data (:mod:`nervure.distributed`), and all get
    what fits all of the data.

    Masked connections stay exactly zero. Biases are changed where there are any; none are added. What is frozen, tied
    to a table of embeddings, or not in the dense network stays as it is; ``Refitted.layers`` says why.

    Args:
        pruned: a pruned model, as :func:`nervure.prune` returns it (trained since, perhaps); or a module of the shape
            of ``reference``, masked perhaps. It is not changed.
        data: batches of any form; labels are not looked at.
        reference: the dense network that it was pruned from, with its weights.
        views: batches of another kind that the refit has to hold for as well: corrupted or augmented ones (as
            :func:`nervure.evaluation.shift.shift_batches` makes them), another domain. No layer is worse on them than
            it was.
        task: how batches go into the model (:mod:`nervure.tasks`), where their form does not say it.
        how: the choices, see :class:`Refit`.
        masks: of a module: which entries of its parameters may be other than zero, by name.
        checkpoint: a folder for branches that are done, where ``how.steps`` asks for any: what was stopped goes on
            there.
        progress: show progress of what takes longer than two seconds.

    Raises:
        ArgumentError: ``reference`` is not the network that it was pruned from, or nothing in it can be fitted; or
            several processes ask for ``how.steps``.
        PlanError: ``reference`` has other layers than the network that it was pruned from.
        DataError: the data are empty, all the same, or not finite, or a layer makes them so.
    """
    how = Refit() if how is None else how
    require_unsharded(take_apart(pruned, masks)[0].parameters(), "refit")
    collectives.require_same_weights([*take_apart(pruned, masks)[0].parameters(), *reference.parameters()], "refit")
    if how.steps and collectives.several():
        raise ArgumentError(
            f"steps={how.steps} trains branches in one process, and {collectives.count()} work together. Refit with "
            "steps=0, and train after it."
        )
    if how.steps and isinstance(data, Iterator):
        raise DataError(
            f"steps={how.steps} draws the data twice, and a {type(data).__name__} gives its batches once. "
            "Give a list of batches or a loader."
        )
    model, steps, found = take_apart(pruned, masks)
    reference = unwrap(reference)
    require_weights(model, reference, steps)
    parts = split(data, how.samples, as_task(task), seed=how.seed)
    require_different(parts)
    if views is not None:
        parts += split(views, how.samples, as_task(task), view=1, seed=how.seed)
    result = copy_model(model)
    refitter = _Refitter(result, reference, steps, found, parts, how)
    layers, branches = refitter.run(progress), tuple[BranchFit, ...]()
    if how.steps:
        closed = _put_together(pruned, result, layers, (0, 0))
        local = Reconstruct(samples=how.samples, steps=how.steps, seed=how.seed)
        rebuilt = reconstruct(
            closed,
            data,
            reference=reference,
            task=task,
            how=local,
            masks=masks,
            checkpoint=checkpoint,
            progress=progress,
        )
        result, branches = take_apart(rebuilt.result, None)[0], rebuilt.branches
        # What reads branches was fitted to what they gave before; inside, units have ways of their own by now.
        trained = [branch.branch for branch in branches if branch.held_after < branch.held_before]
        if trained:
            again = _Refitter(result, reference, steps, found, parts, how, trained).run(progress)
            layers = tuple(map(_followed_by, layers, again))
    counts = count_samples(parts)
    # Solvers may round in other ways on other machines.
    collectives.send_first([*result.parameters(), *result.buffers()])
    return Refitted(_put_together(pruned, result, layers, counts), layers, counts, refitter.shift, branches)


def refit_on_parts(pruned: M, reference: nn.Module, parts: Sequence[GramPart], how: Refit) -> Refitted[M]:
    """As :func:`refit`, on samples that were split already; no steps of training, and the model itself changes.

    Args:
        pruned: see :func:`refit`.
        reference: the dense network.
        parts: the samples, those that are left out apart.
        how: the choices.
    """
    model, steps, masks = take_apart(pruned, None)
    require_weights(model, reference, steps)
    refitter = _Refitter(model, reference, steps, masks, parts, how)
    layers = refitter.run(progress=False)
    counts = count_samples(parts)
    return Refitted(_put_together(pruned, model, layers, counts), layers, counts, refitter.shift)


def _followed_by(first: LayerFit, second: LayerFit) -> LayerFit:
    """Two fits of a layer as one."""
    return first if second.reason else replace(first, after=second.after, held_after=second.held_after)


def _beside(first: LayerFit, second: LayerFit) -> LayerFit:
    """The fits of two parts of a layer, one after the other."""
    kept = first if second.freedom == "none" else second
    return replace(
        _followed_by(first, second), inputs=first.inputs + second.inputs, freedom=kept.freedom, ridge=kept.ridge,
        shifted_after=second.shifted_after,
    )  # fmt: skip


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


class _Refitter:
    """Goes through the levels of a model, and changes it in place."""

    def __init__(
        self,
        model: nn.Module,
        reference: nn.Module,
        steps: Sequence[tuple[Graph, Plan]],
        masks: Mapping[str, Tensor],
        parts: Sequence[GramPart],
        how: Refit,
        trained: Sequence[str] = (),
    ) -> None:
        self.shift: float | None = None
        self._dense_graph = steps[0][0] if steps else None
        self._trained = tuple(f"{name}." for name in trained)
        self._model, self._reference, self._came = model, _twin(reference, model), origins(reference, steps)
        self._masks, self._parts, self._how = masks, parts, how
        self._ridges = RIDGES if how.ridge == "auto" else (float(how.ridge),)
        self._near: float | None = None
        self._few: list[str] = []

    def run(self, progress: bool) -> tuple[LayerFit, ...]:
        """Fit all consumers; what became of each."""
        found, norms = self._found()
        ends = self._mixtures(found)
        found = [replace(c, reason=MIXED if place in ends else c.reason) for place, c in enumerate(found)]
        found = [replace(c, reason=c.reason or TRAINED) if c.tensor.startswith(self._trained) else c for c in found]
        norms = {name: level for name, level in norms.items() if not name.startswith(self._trained)}
        done: dict[float, LayerFit] = {
            place: LayerFit(c.tensor, reason=c.reason) for place, c in enumerate(found) if c.reason
        }
        levels = sorted(
            {c.level for c in found if not c.reason} | {*norms.values()} | {level for level, _ in ends.values()}
        )
        for level in track(levels, "refitting", len(levels), enabled=progress):
            chosen = [place for place, c in enumerate(found) if c.level == level and not c.reason]
            pending = [c for c in found if c.level >= level and not c.reason]
            mixed = [end for at, end in ends.values() if at >= level]
            moments = self._moments(pending, [name for name, at in norms.items() if at >= level], mixed)
            done |= {p: LayerFit(found[p].tensor, reason=STRANGE) for p in chosen if not found[p].is_matched}
            clear = {place: found[place] for place in chosen if place not in done}
            here = [name for name, at in norms.items() if at == level]
            done |= self._level(clear, here, moments) if clear or here else {}
            done |= {place: self._fit_mixture(end) for place, (at, end) in ends.items() if at == level}
        self._warn()
        return tuple(done[place] for place in sorted(done))

    def _moments(
        self, pending: Sequence[Consumer], norms: Sequence[str], mixed: Sequence[MixtureEnd]
    ) -> tuple[int, int]:
        """What is before all that may still change need not run again, in either network.

        Uses of a parameter are told apart by counting them, so none is skipped of one that has several.
        """
        mine = [*norms, *(name for c in pending for name in self._changed(c))]
        theirs = [*(self._came[name].tensor for name in norms), *(c.partners[0].key[0] for c in pending)]
        # What enters a mixture is copied where it is called.
        mixtures = [[end.path for end in mixed], [end.theirs for end in mixed]]
        first, second = (
            min([*map(replay.moment, (*names, *several)), *map(replay.start, modules)], default=0)
            for replay, names, several, modules in zip(self._done, (mine, theirs), self._several, mixtures, strict=True)
        )
        return first, second

    def _changed(self, consumer: Consumer) -> Iterator[str]:
        """The tensors that the fit of a consumer may change."""
        yield consumer.tensor
        if consumer.bias is not None:
            yield consumer.bias.tensor
        if consumer.norm in self._statistics:
            norm = self._statistics[consumer.norm]
            yield from (name for name in (norm.mean, norm.var, norm.weight, norm.bias) if name)

    def _found(self) -> tuple[list[Consumer], dict[str, int]]:
        first = self._parts[0].batch
        mine, theirs = survey(self._model, first), survey(self._reference, first)
        self._done = (replay_of(self._model, first), replay_of(self._reference, first))
        self._several = tuple([name for name, uses in seen.uses.items() if uses > 1] for seen in (mine, theirs))
        trained = {name: p.requires_grad for name, p in self._model.named_parameters()}
        found = consumers(self._model, mine, theirs, self._came, trained)
        collectives.require_same_text(
            f"layers {hashlib.sha256(repr([(c.tensor, c.level) for c in found]).encode()).hexdigest()[:8]}",
            "The first batches run through different layers, as those of routed experts do, and sums of one would be "
            "added to those of another. Give each process a first batch that runs through all, or refit in one "
            "process, within nervure.distributed.reduce_over(None), and send_model the result.",
        )
        if all(c.reason for c in found):
            why = "; ".join(f"{c.tensor!r}: {c.reason}" for c in found[:3]) or "no parameter multiplies what flows"
            raise ArgumentError(
                f"nothing in this model can be refitted ({why}). Weights that are frozen may change again after "
                "model.requires_grad_(True); refit=False of prune leaves the refit out."
            )
        require_twin(self._model, self._reference, self._came, {c.tensor for c in found if not c.reason})
        self._statistics = mine.statistics
        norms = {n: level for n, level in mine.norms.items() if n in self._came} if self._how.norms else {}
        return found, norms

    def _mixtures(self, found: Sequence[Consumer]) -> dict[float, tuple[int, MixtureEnd]]:
        """What experts end with and when it is fitted, by its place among the consumers.

        That is where it is a consumer itself, or behind the last consumer within the mixture.
        """
        if self._dense_graph is None:
            return {}
        first, tensors = self._parts[0].batch, named_tensors(self._model)
        ends = {}
        for end in mixture_ends(self._model, self._reference, self._dense_graph, self._came, first):
            is_open = tensors[end.tensor].requires_grad and not end.tensor.startswith(self._trained)
            is_once = end.tensor not in self._several[0] and self._came[end.tensor].tensor not in self._several[1]
            inside = {place: c for place, c in enumerate(found) if c.tensor.startswith(f"{end.path}.")}
            if is_open and is_once and inside:
                own = [place for place, c in inside.items() if c.tensor == end.tensor]
                last = max(c.level for c in inside.values())
                ends[own[0] if own else max(inside) + 0.5] = (found[own[0]].level if own else last, end)
        collectives.require_same_text(
            f"mixtures {', '.join(end.tensor for _, end in ends.values())}",
            "Some experts are not reached by the first batch of some process. Give each a larger first batch.",
        )
        return ends

    def _level(
        self, chosen: Mapping[int, Consumer], norms: list[str], moments: tuple[int, int]
    ) -> dict[float, LayerFit]:
        found = list(chosen.values())
        streams = {place: self._next(c) for place, c in enumerate(found) if self._is_stream(c)}
        between = {place: offset for place, c in enumerate(found) if (offset := self._between(c)) is not None}
        between = {place: offset for place, offset in between.items() if place not in streams}
        (samples,) = map(int, collectives.add_up_numbers(sum(part.batch.size for part in self._parts)))
        gathered = gather(
            self._done, moments, self._parts, found, norms, self._came, between, streams,
            positions=self._how.positions or places_per_sample(samples), seed=self._how.seed,
        )  # fmt: skip
        done: dict[float, LayerFit] = {
            number: self._fit(place, consumer, gathered) for place, (number, consumer) in enumerate(chosen.items())
        }
        for name in norms:
            if name in gathered.was and name in gathered.now:
                was, now = gathered.was[name], gathered.now[name]
                self._remeasure(name, (was.mean, was.var), (now.mean, now.var))
        return done

    def _is_stream(self, consumer: Consumer) -> bool:
        """Whether a consumer is fitted to the stream that it is added to."""
        return self._how.streams and consumer.joins

    def _between_stream(self, consumer: Consumer) -> NormTensors | None:
        """The batch norm between a consumer and the stream that it is fitted to."""
        return self._statistics[consumer.norm] if self._is_stream(consumer) and consumer.norm else None

    def _slope(self, consumer: Consumer) -> Tensor | None:
        """What its outputs are multiplied by on their way to the stream, [stack, outputs, 1]; None: nothing."""
        norm = self._between_stream(consumer)
        return None if norm is None else norm.slope(self._model).reshape(*consumer.shape[:2], 1)

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
        views = {part.view for part in self._parts}
        if place in gathered.reasons or place not in gathered.seen or gathered.held.get(place, {}).keys() != views:
            return LayerFit(consumer.tensor, reason=gathered.reasons.get(place, "not every run comes to it"))
        seen, held = gathered.seen[place], tuple(gathered.held[place][view] for view in sorted(views))
        _require_finite(seen, consumer.tensor)
        problem = self._problem(consumer, seen, held)
        still = _still(problem)
        fit = still
        if not _is_exact(problem, still):
            fit = self._round(problem, solve(problem, self._ridges, self._near), consumer)
        self._near = fit.ridge if fit.freedom == "ridge" else self._near
        self._note_few(consumer.tensor, problem, still)
        if fit.freedom != "none":
            self._write(consumer, fit)
        if (norm := self._between_stream(consumer)) is not None:
            self._restate(norm, consumer, seen, is_still=_is_exact(problem, still))
        elif self._how.norms and consumer.norm in self._came:
            self._after(consumer, problem, fit, _is_exact(problem, still))
        return _layer_fit(consumer.tensor, problem, still, fit)

    def _note_few(self, tensor: str, problem: Problem, still: Fit) -> None:
        """Remember a layer that has too few samples."""
        if not problem.enough and not _is_exact(problem, still):
            self._few.append(f"{tensor} ({problem.seen.count} positions, {problem.weight.shape[2]} inputs)")

    def _fit_mixture(self, end: MixtureEnd) -> LayerFit:
        """The last matrices of all experts, block after block."""
        stack, fits = named_tensors(self._model)[end.tensor], list[LayerFit]()
        for columns in end.blocks(stack):
            keep = self._masks.get(end.tensor)
            by_surgeon = self._how.masks == "surgeon"
            problem = mixture_problem(self._done, end, columns, self._parts, keep, by_surgeon)
            if isinstance(problem, str):
                return LayerFit(end.tensor, reason=problem)
            _require_finite(problem.seen, end.tensor)
            still = _still(problem)
            self._note_few(end.tensor, problem, still)
            fit = still if _is_exact(problem, still) else solve(problem, self._ridges)
            if fit.freedom != "none":
                after = (problem.weight.double() + fit.change.transpose(1, 2)).to(stack.dtype)
                change = after.double() - problem.weight
                fit = _rounded(problem, replace(fit, change=change.transpose(1, 2)))
                end.write(stack, columns, problem.weight + fit.change.transpose(1, 2))
            fits.append(_layer_fit(end.tensor, problem, still, fit))
        return reduce(_beside, fits)

    def _problem(self, consumer: Consumer, seen: Moments, held: tuple[Moments, ...]) -> Problem:
        keep = self._masks.get(consumer.tensor)
        weight, slope = consumer.weight(self._model), self._slope(consumer)
        return Problem(
            weight if slope is None else slope * weight.double(),
            seen,
            held,
            self._has_shift(consumer),
            None if keep is None else consumer.matrix_of(keep).to(weight.device),
            self._how.masks == "surgeon",
        )

    def _has_shift(self, consumer: Consumer) -> bool:
        if (norm := self._between_stream(consumer)) is not None:
            return self._how.norms or norm.is_trained(self._model)
        return self._bias(consumer) is not None or (consumer.is_before_norm and self._how.norms)

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
        change, slope = self._weights_after(consumer, fit), self._slope(consumer)
        # As the parameter holds them, in place.
        change.copy_(change.to(dtype)).sub_(consumer.weight(self._model))
        # Nothing else holds the answer that is rounded: its memory is free here.
        fit = replace(fit, change=(change if slope is None else slope * change).transpose(1, 2))
        return _rounded(problem, fit)

    def _weights_after(self, consumer: Consumer, fit: Fit) -> Tensor:
        """Its matrix with the change, as the parameter holds it: without the norm behind it."""
        found = consumer.weight(self._model).to(torch.float64, copy=True)
        slope, change = self._slope(consumer), fit.change.transpose(1, 2)
        found += change if slope is None else torch.where(slope == 0, 0, change / slope)
        return found

    def _write(self, consumer: Consumer, fit: Fit) -> None:
        with torch.no_grad():
            consumer.put(named_tensors(self._model)[consumer.tensor].detach(), self._weights_after(consumer, fit))
            if (norm := self._between_stream(consumer)) is not None:
                norm.shift(self._model, fit.shift.reshape(-1))
            elif (bias := self._bias(consumer)) is not None and consumer.bias is not None:
                bias[consumer.bias.piece] += fit.shift.reshape(-1).to(bias)

    def _after(self, consumer: Consumer, problem: Problem, fit: Fit, is_exact: bool) -> None:
        """The norm behind a consumer: what enters it follows from the moments."""
        seen = problem.seen
        was = (seen.y.reshape(-1), (seen.yy / seen.count).reshape(-1))
        if is_exact:
            self._note_drift(consumer.norm, was)
            return
        written = fit.shift if self._bias(consumer) is not None else torch.zeros_like(fit.shift)
        weight = consumer.weight(self._model).double()
        mean = seen.y - seen.r + (fit.change * seen.mean[:, :, None]).sum(1) + written
        var = ((weight @ seen.xx) * weight).sum(2) / seen.count
        self._remeasure(consumer.norm, was, (mean.reshape(-1), var.reshape(-1)))

    def _restate(self, norm: NormTensors, consumer: Consumer, seen: Moments, *, is_still: bool) -> None:
        """The norm between a consumer and its stream knows what enters it, and gives what it gave."""
        if is_still or not self._how.norms or not norm.is_trained(self._model):
            return
        weight = consumer.weight(self._model).double()
        mean = (weight @ seen.mean[:, :, None]).reshape(-1)
        if (bias := consumer.bias) is not None:
            mean = mean + named_tensors(self._model)[bias.tensor].detach()[bias.piece].to(mean)
        norm.restate(self._model, (mean, (((weight @ seen.xx) * weight).sum(2) / seen.count).reshape(-1)))

    def _remeasure(self, name: str, was: Pair, now: Pair) -> None:
        known = self._note_drift(name, was)
        remeasure(self._model, (name, self._statistics[name].var), known, was, now)

    def _note_drift(self, name: str, was: Pair) -> Pair:
        """What the dense network's norm knows; how far the data are from it is noted."""
        known = (self._dense(name), self._dense(self._statistics[name].var))
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
        if self.shift is not None and self.shift > FAR and not any(part.view for part in self._parts):
            warnings.warn(
                f"the data are of another kind than those that the dense network was trained on: its means are "
                f"{self.shift:.1f} standard deviations from those that its batch norms know. What is fitted on such "
                "data holds for such data.",
                NervureWarning,
                stacklevel=4,
            )


def _rounded(problem: Problem, fit: Fit) -> Fit:
    """An answer whose change was rounded, with the means that go with that; none where it is no better than nothing."""
    rounded, still = problem.fit(fit.freedom, fit.ridge, fit.change), _still(problem)
    error, error_before = (problem.seen.error(one.change, one.shift) for one in (rounded, still))
    return replace(rounded, error=error) if error <= error_before else replace(still, error=error_before)


def _layer_fit(tensor: str, problem: Problem, still: Fit, fit: Fit) -> LayerFit:
    """What became of a layer."""
    stack, outputs, inputs = problem.weight.shape
    before = problem.seen.error(still.change, still.shift)
    after = problem.seen.error(fit.change, fit.shift) if fit.error is None else fit.error
    (held_before, *abroad_before), (held_after, *abroad_after) = map(problem.held_errors, (still, fit))
    return LayerFit(
        tensor, inputs, stack * outputs, problem.seen.count, fit.freedom, fit.ridge,
        before, after, held_before, held_after, "",
        max(abroad_before, default=0.0), max(abroad_after, default=0.0),
    )  # fmt: skip


def _still(problem: Problem) -> Fit:
    return problem.fit("none", 0.0, problem.nothing)


def _is_exact(problem: Problem, still: Fit) -> bool:
    """Whether what is said is right already, to rounding in single precision."""
    return problem.seen.error(still.change, still.shift) <= (16 * torch.finfo(torch.float32).eps) ** 2


def _require_finite(seen: Moments, name: str) -> None:
    if not seen.is_finite:
        raise DataError(f"what enters or leaves {name!r} is NaN or infinite. The model or the data are broken.")
