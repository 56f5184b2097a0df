"""The hook that rewires: at the steps of a timetable it asks a method what goes and what comes, and makes it so."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nervure.analysis.live_paths import LivePaths
from nervure.core import collectives
from nervure.core.annotations import Batches
from nervure.core.files import write_text
from nervure.core.schema import Count, convert
from nervure.errors import ArgumentError, FileError
from nervure.evaluation.auc import Quality, accuracy_and_auc
from nervure.plan import Keep
from nervure.training.checkpoint import layout, load_optimizer, optimizer_state, under
from nervure.training.dynamic.listening import SignalSource, activations, incoming, sources
from nervure.training.dynamic.protocol import Event, SparseTrainer, TopologyUpdate, Turnover, UpdateContext
from nervure.training.dynamic.sites import Site
from nervure.training.masks import Masks, same_everywhere
from nervure.training.step import Setting, TrainingStep

FOREVER = 1 << 30
"""Events since a connection grew that was there from the start."""


@final
@dataclass(frozen=True, slots=True)
class _Notes:
    """What a checkpoint says of a rewiring, in plain data."""

    events: tuple[Event, ...]
    next: Count | None
    done: Count
    stopped: bool
    before: Quality | None
    best: float
    waited: Count
    plain: dict[str, Any]
    data: str
    topology: str
    table: list[int]


@final
class RewiringHook:
    """A hook for :func:`nervure.train` that lets a method rewire the network.

    ``train(..., hooks=[RigL(density=0.1)])`` makes one by itself; make it yourself to keep a log on disk.

    Args:
        method: ``SET``, ``RigL``, ``GMP``, ``Synthesis``, or anything else that :class:`SparseTrainer`.
        log: a file of JSON lines, one for each event, written as they happen (by the first process of several).
    """

    def __init__(self, method: SparseTrainer, *, log: str | os.PathLike[str] | None = None) -> None:
        if isinstance(method, type) or not isinstance(method, SparseTrainer):
            raise ArgumentError(f"method={method!r} does not rewire. Give one like RigL(density=0.1), called.")
        self.method = method
        self._log = None if log is None else Path(log)
        self._events: list[Event] = []
        self._began = False
        self._table: tuple[int, ...] = ()
        self._masks: dict[str, Tensor] = {}

    def __repr__(self) -> str:
        return f"Rewiring({self.method!r})"

    @property
    def events(self) -> tuple[Event, ...]:
        """What happened so far; first what was there at the start."""
        return tuple(self._events)

    @property
    def table(self) -> tuple[int, ...]:
        """The steps before which something may be rewired; empty before the training began."""
        return self._table

    @property
    def masks(self) -> Masks:
        """The masks of what it rewires, as they are now; empty before the training began."""
        return dict(self._masks)

    def begin(self, setting: Setting) -> Masks:
        """Find the ground and the first masks; see :class:`nervure.training.step.Stateful`.

        Raises:
            ArgumentError: the events do not fit into the training, masks that were given hold more or fewer weights
                than the method begins with, it judges by validation data and there are none, or the model is sharded
                over processes.
            BudgetError: there is nothing to rewire, or the density is too low.
        """
        if any(map(collectives.is_sharded, setting.model.parameters())):
            raise ArgumentError(
                f"{self.method!r} rewires whole weights, and this model is sharded over processes. Train it in "
                "DistributedDataParallel, or with masks that stay: train(masks=...)."
            )
        self._began, self._done, self._stopped = True, 0, False
        self._next_step: int | None = None
        self._table = self.method.timetable(setting.steps, setting.per_epoch)
        self._validation = self._judged_by(setting)
        self._seed = int(collectives.first_text(str(setting.seed)))
        inner, prefix = _inner(setting.model)
        given = {name.removeprefix(prefix): mask for name, mask in setting.masks.items()}
        ground = self.method.ground(inner, _few(setting.inputs), given, self._seed)
        self._sheets = {prefix + sheet.tensor: sheet for sheet in ground.sheets}
        self._sources = sources(ground.graph, ground.sheets)
        follows = "paths" in self.method.hears
        self._paths = LivePaths.of(inner, _few(setting.inputs), prefix=prefix) if follows else None
        self._inner, self._prefix = inner, prefix
        self._masks = same_everywhere({prefix + n: m.to(setting.place) for n, m in ground.start.items()})
        self._places = ground.places
        self._start = {name: int(mask.sum()) for name, mask in self._masks.items()}
        parameters = dict(setting.model.named_parameters())
        with torch.no_grad():
            for name, weight in ground.weights.items():
                parameters[prefix + name].copy_(weight)
        self._ages = {n: torch.full(m.shape, FOREVER, dtype=torch.int32) for n, m in self._masks.items()}
        wanted = "firsts" in self.method.hears
        self._firsts = {n: parameters[n].detach().cpu().clone() for n in self._masks} if wanted else {}
        self._snapshot: dict[str, Tensor] = {}
        self._plain: dict[str, Any] = {}
        self._before: Quality | None = None
        self._best, self._waited = -1.0, 0
        self._identity = {"data": setting.data, "topology": _digest(self._masks), "table": list(self._table)}
        self._events = []
        self._note("start", -1, 0, 0, {n: (0, 0) for n in self._masks})
        return {**setting.masks, **self._masks}

    def __call__(self, step: TrainingStep) -> Masks | None:
        """Do what is due before this step; None where nothing is.

        Raises:
            ArgumentError: called before :meth:`begin`, or with a step that does not follow the one before.
        """
        self._require_order(step)
        if self._stopped or step.number not in self._due():
            return None
        seen = None if self._validation is None else _mean_quality(accuracy_and_auc(step.model, self._validation))
        if seen is not None and self._undone(step, seen):
            return self._all(step)
        if self._stopped or self._done == len(self._table):
            return None
        self._rewire(step, seen)
        return self._all(step)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain data to go on from."""
        tensors = {f"{kind}.{n}": t for kind, of in self._stores().items() for n, t in of.items()}
        notes = {
            "events": [event.to_json() for event in self._events],
            "next": self._next_step,
            "done": self._done,
            "stopped": self._stopped,
            "before": self._before,
            "best": self._best,
            "waited": self._waited,
            "plain": self._plain,
            **self._identity,
        }
        return tensors, notes

    def restore(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave.

        Raises:
            FileError: the checkpoint is of a training on other data, from another topology, or of other length.
        """
        told = convert(notes, _Notes, "what the checkpoint says of its rewiring")
        for key, mine in self._identity.items():
            if notes[key] != mine:
                raise FileError(
                    f"the checkpoint is of a training that rewired with another {WORDS[key]}. "
                    "Give the same, delete it to begin anew, or give another path."
                )
        found = {kind: under(kind, tensors) for kind in self._stores()}
        self._require_alike(found)
        for kind, of in self._stores().items():
            of.clear()
            of.update(found[kind])
        self._masks = {n: m.to(torch.bool).to(next(self._inner.parameters()).device) for n, m in self._masks.items()}
        self._events = list(told.events)
        self._next_step, self._done, self._stopped = told.next, told.done, told.stopped
        self._before, self._best, self._waited, self._plain = told.before, told.best, told.waited, told.plain
        self._write()

    def _stores(self) -> dict[str, dict[str, Tensor]]:
        return {"mask": self._masks, "age": self._ages, "first": self._firsts, "before": self._snapshot}

    def _require_alike(self, found: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Raise FileError where what was saved does not have the names, dtypes and shapes of what is here."""
        here = {kind: layout(of) for kind, of in self._stores().items()}
        snapshot = {f"mask.{n}": kind for n, kind in here["mask"].items()}
        snapshot |= {f"age.{n}": kind for n, kind in here["age"].items()}
        snapshot |= {f"model.{self._prefix}{n}": kind for n, kind in layout(self._inner.state_dict()).items()}
        there = {kind: layout(of) for kind, of in found.items()}
        before = {n: kind for n, kind in there.pop("before").items() if not n.startswith("optimizer.")}
        here.pop("before")
        if there != here or (before and before != snapshot):
            raise FileError("the checkpoint is damaged: its rewiring is of other tensors. Delete it to begin anew.")

    def _all(self, step: TrainingStep) -> Masks:
        return {**step.masks, **self._masks}

    def _require_order(self, step: TrainingStep) -> None:
        if not self._began:
            raise ArgumentError(
                "this hook was called before its training began. Give it to train(hooks=[...]), or call begin() first."
            )
        if self._next_step is not None and step.number != self._next_step:
            raise ArgumentError(
                f"this hook was called for step {step.number} after step {self._next_step - 1}. "
                "Steps must follow one another; a hook belongs to one training only."
            )
        self._next_step = step.number + 1

    def _judged_by(self, setting: Setting) -> Batches | None:
        if self.method.judge is None:
            return None
        if setting.validation is None:
            raise ArgumentError(f"{self.method!r} judges its events by validation data: give train(validation=...).")
        return setting.validation

    def _due(self) -> tuple[int, ...]:
        """The steps at which something is done: the events, and where they are judged a last look after the last."""
        if self._validation is None:
            return self._table
        gap = self._table[-1] - self._table[-2] if len(self._table) > 1 else self._table[-1]
        return (*self._table, self._table[-1] + max(gap, 1))

    def _undone(self, step: TrainingStep, seen: Quality) -> bool:
        """Judge the event before; whether it was undone. Patience may end here, and a last look is noted."""
        judge, before = self.method.judge, self._before
        assert judge is not None
        self._waited = 0 if seen.accuracy > self._best else self._waited + 1
        self._best = max(self._best, seen.accuracy)
        self._before = seen
        fell = before is not None and all(b - s > judge.tolerance for b, s in zip(before, seen, strict=True))
        undo = judge.undo and fell and bool(self._snapshot)
        if undo:
            changed = self._go_back(step)
            self._before = before
            self._note("undo", self._done - 1, step.number, step.epoch, changed, step.loss, seen)
        if judge.patience and self._waited >= judge.patience:
            self._stopped = True
        if not undo and (self._stopped or self._done == len(self._table)):
            kind = "stop" if self._stopped else "judge"
            self._note(
                kind, self._done - 1, step.number, step.epoch, dict.fromkeys(self._masks, (0, 0)), step.loss, seen
            )
        self._snapshot.clear()
        if undo and step.number in self._table:
            # The gradients of this step are those of what is no more: an event needs others, so this one passes.
            self._done += 1
        return undo

    def _rewire(self, step: TrainingStep, seen: Quality | None) -> None:
        judge = self.method.judge
        if judge is not None and judge.undo:
            self._remember(step)
        change = self.method.rewire(self._moment(step))
        changed = {}
        parameters = dict(step.model.named_parameters())
        for name, age in self._ages.items():
            age.add_(1).clamp_(max=FOREVER)
            changed[name] = self._change(parameters[name], step.optimizer, name, change)
        self._note("rewire", self._done, step.number, step.epoch, changed, step.loss, seen)
        self._done += 1

    def _moment(self, step: TrainingStep) -> UpdateContext:
        parameters = dict(step.model.named_parameters())
        heard = {}
        if "activations" in self.method.hears:
            run = partial(step.task.forward, step.model, step.batch)
            samples = step.task.samples(step.batch)
            share = samples / collectives.add_up_numbers(samples)[0]
            heard = collectives.add_up({n: h * share for n, h in activations(step.model, run, self._sheets).items()})
        sites = [self._site(parameters[name], name, heard.get(name)) for name in self._sheets]
        strengths = {site.name.removeprefix(self._prefix): site.strength().sum(1) for site in sites}
        return UpdateContext(
            number=self._done,
            events=len(self._table),
            step=step.number,
            seed=self._seed,
            sites=tuple(
                _with_incoming(site, self._sources[site.name.removeprefix(self._prefix)], strengths) for site in sites
            ),
            start=self._start,
            places=self._places,
            firsts={name: self._sheets[name].to_matrix(first) for name, first in self._firsts.items()},
            kernels={name: tuple(s.shape[axis] for axis in s.kernel) for name, s in self._sheets.items()},
            paths=self._paths,
        )

    def _site(self, parameter: Tensor, name: str, heard: Tensor | None) -> Site:
        sheet = self._sheets[name]
        gradient = None
        if "gradients" in self.method.hears and parameter.grad is not None:
            gradient = _average({name: parameter.grad.detach().float().cpu()})[name]
        return Site(
            name,
            sheet.to_matrix(parameter.detach().float().cpu()),
            sheet.to_matrix(self._masks[name].cpu()),
            sheet.to_matrix(self._ages[name]),
            None if gradient is None else sheet.to_matrix(gradient),
            heard,
            is_divided=sheet.is_divided,
        )

    @torch.no_grad()
    def _change(self, parameter: Tensor, optimizer: Any, name: str, change: TopologyUpdate) -> tuple[int, int]:
        """Make it so for one tensor: what goes and what comes is zero without moments. How many went and came."""
        sheet, was = self._sheets[name], self._masks[name].cpu()
        kept, now = (sheet.back(of[name], was.shape).contiguous() for of in (change.kept, change.masks))
        gone, come = was & ~kept, now & ~kept
        touched = (gone | come).to(parameter.device)
        for tensor in (parameter, *_moments(optimizer, parameter)):
            tensor.masked_fill_(touched, 0)
        if name in change.values:
            values = sheet.back(change.values[name], was.shape).to(parameter.device, parameter.dtype)
            places = come.to(parameter.device)
            parameter[places] = values[places]
        self._ages[name].masked_fill_(come, 0)
        self._masks[name] = now.to(parameter.device)
        return int(gone.sum()), int(come.sum())

    def _remember(self, step: TrainingStep) -> None:
        tensors, self._plain = optimizer_state(step.optimizer)
        self._snapshot.clear()
        self._snapshot |= {f"model.{n}": t.detach().clone() for n, t in step.model.state_dict().items()}
        self._snapshot |= {f"optimizer.{n}": t.detach().clone() for n, t in tensors.items()}
        self._snapshot |= {f"mask.{n}": m.clone() for n, m in self._masks.items()}
        self._snapshot |= {f"age.{n}": a.clone() for n, a in self._ages.items()}

    def _go_back(self, step: TrainingStep) -> dict[str, tuple[int, int]]:
        kept = {
            kind: {n.removeprefix(f"{kind}."): t for n, t in self._snapshot.items() if n.startswith(f"{kind}.")}
            for kind in ("model", "optimizer", "mask", "age")
        }
        step.model.load_state_dict(kept["model"])
        load_optimizer(step.optimizer, kept["optimizer"], self._plain)
        changed = {}
        for name, mask in kept["mask"].items():
            was = self._masks[name]
            before = mask.to(was.device)
            changed[name] = (int((was & ~before).sum()), int((before & ~was).sum()))
            self._masks[name], self._ages[name] = before, kept["age"][name]
        for parameter in step.model.parameters():
            # What the gradients say is of weights that are no more.
            parameter.grad = None
        return changed

    def _note(
        self,
        kind: str,
        number: int,
        step: int,
        epoch: int,
        changed: Mapping[str, tuple[int, int]],
        loss: float | None = None,
        seen: Quality | None = None,
    ) -> None:
        layers = {n: Turnover(*changed[n], int(mask.sum())) for n, mask in self._masks.items()}
        dropped, grown, nonzero = (sum(column) for column in zip(*layers.values(), strict=True))
        accuracy, auc = (None, None) if seen is None else seen
        self._events.append(
            Event(kind, number, step, epoch, dropped, grown, nonzero, self._places, loss, accuracy, auc, layers)
        )
        self._write()

    def _write(self) -> None:
        if self._log is None or collectives.rank():
            return
        # Whole, so that a run that goes on from an earlier checkpoint leaves no event twice.
        write_text(self._log, "".join(json.dumps(event.to_json()) + "\n" for event in self._events))


WORDS: Mapping[str, str] = {
    "data": "first batch of data",
    "topology": "topology to begin with (layers, their shapes or their first masks)",
    "table": "timetable (steps of the training, or its events)",
}


def _with_incoming(site: Site, behind: tuple[SignalSource, ...], strengths: Mapping[str, Tensor]) -> Site:
    return replace(site, incoming=incoming(site, behind, strengths))


def _moments(optimizer: Any, parameter: Tensor) -> list[Tensor]:
    state = optimizer.state.get(parameter, {}).values()
    return [value for value in state if isinstance(value, Tensor) and value.shape == parameter.shape]


def _inner(model: nn.Module) -> tuple[nn.Module, str]:
    """The model inside a wrapper of training in several processes, and what its names begin with there."""
    return (model.module, "module.") if isinstance(model, DistributedDataParallel) else (model, "")


def _few(inputs: Any) -> Any:
    """Two samples are enough to trace with."""
    if isinstance(inputs, Tensor):
        return inputs[:2]
    if isinstance(inputs, Mapping):
        return {key: _few(value) for key, value in inputs.items()}
    return tuple(_few(value) for value in inputs) if isinstance(inputs, tuple | list) else inputs


def _mean_quality(seen: Quality) -> Quality:
    """The mean over processes, each of which may judge by its share, so that all decide alike."""
    return Quality(*(total / collectives.count() for total in collectives.add_up_numbers(*seen)))


def _average(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean over processes, so that all decide alike."""
    return collectives.add_up(tensors, "mean")


def _digest(masks: Masks) -> str:
    digest = hashlib.sha256()
    for name, mask in sorted(masks.items()):
        keep = Keep.of(mask)
        digest.update(f"{name}{keep.shape}".encode() + keep.bits)
    return digest.hexdigest()[:16]
