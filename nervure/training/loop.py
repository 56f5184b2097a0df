"""The training loop: short, with everything that varies passed in as a function.

An *objective* gives the loss, a *schedule* the learning rate, and *hooks* look at each step between the backward pass
and the optimizer; a hook may answer with new masks, which is how a network is rewired while it trains.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nervure.core import collectives
from nervure.core.annotations import Batches, Device, FilePath
from nervure.core.check import checked
from nervure.core.container import DamageError, reading
from nervure.core.files import is_there
from nervure.core.late import LateReader, checking_late, steps_late
from nervure.core.locks import exclusive_file
from nervure.core.progress import length
from nervure.core.progress import progress as progress_bar
from nervure.core.schema import Decay, Epochs, Rate, Seed
from nervure.core.schema import Part as Portion
from nervure.core.tensors import digest_of, tensors_in
from nervure.errors import ArgumentError, DataError, ForwardError
from nervure.graph.models import device_of, evaluating, is_weightless
from nervure.tasks.batch_forms import iterate_batches, map_tensors, move_batch, naming
from nervure.tasks.guessing import TaskLike, as_task, find_task
from nervure.tasks.task import Task, require_scalar
from nervure.training.checkpoint import KIND, Part, Progress, SavedRun, read_run, save_run, under
from nervure.training.dynamic.hook import RewiringHook
from nervure.training.dynamic.protocol import Event, SparseTrainer
from nervure.training.masks import Held, Masks, hold
from nervure.training.objectives import Objective, task_in
from nervure.training.schedules import SCHEDULES, Schedule
from nervure.training.sharpness import SAM, climbed
from nervure.training.step import Callback, Hook, Setting, Stateful, TrainingPoint, TrainingStep
from nervure.training.together import (
    average_buffers,
    average_gradients,
    averages_itself,
    begin_epoch,
    send_model,
)

MakeOptimizer: TypeAlias = Callable[[list[nn.Parameter]], Optimizer]
CURVES = ("loss", "validation")
"""What is noted of each epoch."""


@final
@dataclass(frozen=True, slots=True)
class History:
    """What happened in training.

    Attributes:
        loss: mean training loss of each epoch.
        validation: after each epoch the accuracy on the validation data, in [0, 1], or the mean loss where their labels
            are not classes; empty without validation data.
        steps: optimizer steps in all.
        seconds: wall time in all, of interrupted parts too.
        interrupted: whether this run was stopped once and went on from its checkpoint.
        masks: the masks at the end, by parameter name; not compared, not part of the JSON.
        events: what hooks that rewire did, first what was there at the start; empty without such hooks.
    """

    loss: tuple[float, ...]
    validation: tuple[float, ...]
    steps: int
    seconds: float
    interrupted: bool = False
    masks: Masks = field(default_factory=dict, compare=False, repr=False)
    events: tuple[Event, ...] = field(default=(), repr=False)

    def to_json(self) -> dict[str, Any]:
        """Plain data: everything but the masks."""
        return {
            "loss": list(self.loss),
            "validation": list(self.validation),
            "steps": self.steps,
            "seconds": self.seconds,
            "interrupted": self.interrupted,
            "events": [event.to_json() for event in self.events],
        }


@dataclass(slots=True)
class _Log:
    """The history while it is being written."""

    loss: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    steps: int = 0
    earlier: float = 0.0
    interrupted: bool = False
    start: float = field(default_factory=time.perf_counter)
    part: Part = field(default_factory=Part)
    # Of torch, where the epoch under way is gone on with from its middle.
    random: dict[str, Tensor] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return self.earlier + time.perf_counter() - self.start

    def history(self, masks: Masks, hooks: Sequence[Hook]) -> History:
        copies = {name: mask.clone() for name, mask in masks.items()}
        events = tuple(event for hook in hooks if isinstance(hook, Stateful) for event in hook.events)
        past = (tuple(self.loss), tuple(self.validation), self.steps, self.seconds, self.interrupted)
        return History(*past, masks=copies, events=events)


@final
@dataclass(frozen=True, slots=True)
class _Run:
    """Everything a step needs, so that the functions below have short signatures."""

    model: nn.Module
    optimizer: Optimizer
    held: Held
    objective: Objective
    task: Task
    hooks: tuple[Hook, ...]
    callbacks: tuple[Callback, ...]
    schedule: Schedule
    peaks: tuple[float, ...]
    place: torch.device
    halved: bool
    epochs: int
    per_epoch: int
    sharpness: SAM | None
    averages: bool
    """Whether the loop itself averages gradients over processes."""

    @property
    def late(self) -> int:
        """After how many further steps a loss is read: at once where somebody is told it, or steps twice on it."""
        return 0 if self.hooks or self.callbacks or self.sharpness else steps_late(self.place)


@checked
def train(  # noqa: PLR0913 - one keyword per choice that a recipe makes
    model: nn.Module,
    data: Batches,
    *,
    task: TaskLike | None = None,
    epochs: Epochs = 1,
    lr: Rate = 0.1,
    optimizer: Literal["sgd", "adamw"] | MakeOptimizer = "sgd",
    momentum: Portion = 0.9,
    weight_decay: Decay = 5e-4,
    schedule: Literal["onecycle", "cosine", "constant"] | Schedule = "onecycle",
    objective: Objective | None = None,
    hooks: Sequence[Hook | SparseTrainer] = (),
    callbacks: Sequence[Callback] = (),
    masks: Masks | None = None,
    validation: Batches | None = None,
    seed: Seed = 0,
    precision: Literal["float32", "bf16"] = "float32",
    sharpness: SAM | None = None,
    device: Device | None = None,
    progress: bool = True,
    checkpoint: FilePath | None = None,
) -> History:
    """Train a model in place; it is left in evaluation mode, also when training fails.

    With ``checkpoint``, the state is saved before the first epoch and after each one, and a run whose file exists goes
    on from there, to the same weights as if it had never stopped (given data and hooks that depend on torch's random
    numbers and the epoch only). After Ctrl-C the file holds the last whole epoch, or the last event of a method that
    rewires: a step cut in half is no state to go on from. A finished file gives its result at once; delete it to train
    anew.

    In a process group all processes call it, each with its share of the data (:mod:`nervure.distributed`): they begin
    with the weights of the first one, and step by the gradients of all batches as one. The first one writes the
    checkpoint, where all can read it.

    Args:
        model: trained in place. ``DistributedDataParallel`` and ``fully_shard`` average gradients by themselves.
        data: batches of any form, such as (inputs, labels) or dicts, that can be iterated once per epoch. Where they
            count epochs themselves (an attribute ``epoch``, as ``split.batches(...)`` has), the count is set to that of
            the training.
        task: what the model is for (:mod:`nervure.tasks`), or a function (model, batch) -> scalar loss. None: the
            objective, where that is a task; else what the first batch says.
        epochs: passes over the data.
        lr: the peak learning rate. The default suits SGD; about 1e-3 suits AdamW.
        optimizer: ``"sgd"`` (Nesterov, where there is momentum), ``"adamw"``, or a function from the list of trainable
            parameters to an optimizer, whose own rates and decays then count.
        momentum: of SGD, in [0, 1).
        weight_decay: 0 or more, on parameters of two or more axes: biases and norms have no reason to shrink.
        schedule: ``"onecycle"``, ``"cosine"``, ``"constant"``, or a function from the share of training done to a
            factor on the peak rate.
        objective: a function (model, batch) -> scalar loss, or a task; None: the loss of the task.
        hooks: functions of a :class:`TrainingStep`, called in order between backward pass and optimizer; masks that one
            returns replace all masks. A method that rewires (``SET``, ``RigL``, ``GMP``, ``Synthesis``) is a hook
            too: it begins with its own first masks, or with ``masks`` where they are given.
        callbacks: functions of a :class:`TrainingPoint`, called in order after each step and after each epoch, when its
            checkpoint is saved: for numbers that go elsewhere (:mod:`nervure.integrations.trackers`).
        masks: parameter name -> bool tensor, True stays; the rest is held at zero, moments included.
        validation: batches whose accuracy is measured after each epoch; where their labels are not classes, the mean
            loss instead.
        seed: of torch's random numbers in here; those outside go on as if nothing had happened.
        precision: ``"float32"``, or ``"bf16"``: autocast to bfloat16, weights stay as they are.
        sharpness: :class:`nervure.training.SAM`: step by the gradient where the loss is worst nearby. It costs a second
            pass, which draws the same chance as the first. Hooks see that gradient, and the loss of the first pass.
        device: move the model there, and leave it there; None: where it is.
        progress: show a bar on a terminal.
        checkpoint: path of the file to save to and go on from.

    Raises:
        DataError: if data are empty or can be iterated once only, a label is no class of the model (before any step,
            where data are a list; otherwise before its step), or a loss is NaN or infinite (naming the step). On a GPU
            both are found up to two steps after, unless hooks, callbacks or ``sharpness`` have losses read at once: it
            would stand still while each is read.
        ArgumentError: if an argument is out of range, masks do not fit, nothing can be trained (a model on the meta
            device has no numbers), or it cannot be told what the model is for; if processes that work together have
            other numbers of batches or other masks; or if a model is sharded where a checkpoint or a method that
            rewires needs it whole.
        FileError: if the checkpoint cannot be written, is damaged, belongs to another run, or another process trains
            with it.
    """
    if is_weightless(model):
        raise ArgumentError("the model has tensors without numbers; give it its weights before training.")
    log = _Log()
    place = device_of(model) if device is None else torch.device(device)
    model.to(place)
    with _alone(checkpoint), _own_random_numbers(seed, place), _left_in_evaluation(model):
        collectives.meet("train")
        averages = collectives.several() and not averages_itself(model)
        if averages:
            send_model(model)
        objective, task, per_epoch = _look_over(model, data, validation, objective, as_task(task), place)
        _require_same_length(epochs, per_epoch)
        stepper = _optimizer(model, optimizer, lr, momentum, weight_decay)
        given = digest_of({name: masks[name].cpu() for name in sorted(masks)}) if masks else ""
        _require_same_masks(given)
        taken = tuple(RewiringHook(hook) if isinstance(hook, SparseTrainer) else hook for hook in hooks)
        beginning = [hook for hook in taken if isinstance(hook, Stateful)]
        if beginning:
            first, steps = _first(data, seed), epochs * per_epoch
            seen = (move_batch(task.inputs(first), place), masks or {}, seed, steps, per_epoch, validation, place)
            masks = _begun(beginning, Setting(model, *seen, collectives.first_text(digest_of(first))))
        with hold(model, stepper, masks or {}) as held:
            run = _Run(
                model,
                stepper,
                held,
                objective,
                task,
                taken,
                tuple(callbacks),
                _schedule(schedule),
                tuple(group["lr"] for group in stepper.param_groups),
                place,
                precision == "bf16",
                epochs,
                per_epoch,
                sharpness,
                averages,
            )
            settings = {
                "epochs": epochs,
                "lr": lr,
                "optimizer": _word(optimizer),
                "optimizer class": type(stepper).__qualname__,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "schedule": _word(schedule),
                "seed": seed,
                "precision": precision,
                "masks": given,
            } | _rewirings(taken)
            settings |= {} if sharpness is None else {"sharpness": repr(sharpness)}
            save = _checkpointer(checkpoint, run, log, settings)
            _train_epochs(run, data, validation, log, save, seed, progress)
            return log.history(held.masks, taken)


def _train_epochs(
    run: _Run, data: Batches, validation: Batches | None, log: _Log, save: Callable[[], None], seed: int, progress: bool
) -> None:
    """All epochs that the log does not have yet."""
    left = (run.epochs - len(log.loss)) * run.per_epoch
    with progress_bar("training", left, enabled=progress) as advance:
        for epoch in range(len(log.loss), run.epochs):
            # Anew for each epoch, so that a run that goes on draws what it would have drawn.
            torch.manual_seed(_epoch_seed(seed, epoch))
            log.loss.append(_train_epoch(run, data, epoch, log, advance, save))
            average_buffers(run.model)
            if validation is not None:
                log.validation.append(_validate(run, validation))
            save()
            _tell(run, TrainingPoint("epoch", log.steps, epoch + 1, _latest(log)))


def _first(data: Batches, seed: int) -> Any:
    """The first batch of the first epoch."""
    torch.manual_seed(_epoch_seed(seed, 0))
    begin_epoch(data, 0)
    return next(iterate_batches(data))


def _begun(hooks: Sequence[Stateful], setting: Setting) -> Masks:
    """The masks to begin with, once every hook has said its own."""
    for hook in hooks:
        setting = replace(setting, masks=hook.begin(setting))
    return setting.masks


def _rewirings(hooks: Sequence[Hook]) -> dict[str, Any]:
    named = [repr(hook) for hook in hooks if isinstance(hook, Stateful)]
    return {"rewiring": named} if named else {}


@dataclass(slots=True)
class _Losses:
    """Adds the losses of steps to those of the epoch, in their order, as they are read."""

    part: Part
    reader: LateReader
    last: float = math.nan

    def note(self, loss: Tensor, check: Callable[[float], None], samples: int) -> None:
        """Take the loss of a batch of so many samples; ``check`` raises where it is not finite."""

        def tell(value: float) -> None:
            check(value)
            self.last = value
            self.part.loss += value * samples

        self.reader.note(loss, tell)


def _train_epoch(
    run: _Run, data: Batches, epoch: int, log: _Log, advance: Callable[[], None], save: Callable[[], None]
) -> float:
    run.model.train()
    begin_epoch(data, epoch)
    before, part = log.part.batches, log.part
    batches = iterate_batches(data)
    for _ in itertools.islice(batches, before):
        advance()
    _draw_on(log, run.place)
    losses = _Losses(part, LateReader(run.late))
    for number, batch in enumerate(batches, start=before):
        done = (epoch + min(number / run.per_epoch, 1.0)) / run.epochs
        events = _events(run.hooks)
        with naming(f"batch {number}"):
            samples = run.task.samples(batch)
        _train_step(run, move_batch(batch, run.place), log.steps, epoch, done, losses, samples)
        part.samples += samples
        part.batches = number + 1
        log.steps += 1
        advance()
        rate = run.optimizer.param_groups[0]["lr"]
        _tell(run, TrainingPoint("step", log.steps, epoch, {"loss": losses.last, "learning_rate": rate}))
        if _events(run.hooks) != events:
            save()
    losses.reader.finish()
    _require_finite_weights(run.model, epoch)
    log.part = Part()
    whole = collectives.add_up_numbers(part.loss, part.samples)
    return whole[0] / whole[1]


def _tell(run: _Run, point: TrainingPoint) -> None:
    for callback in run.callbacks:
        callback(point)


def _latest(log: _Log) -> dict[str, float]:
    """What is known of the epoch that ended last."""
    curves = {name: getattr(log, name) for name in CURVES}
    return {name: curve[-1] for name, curve in curves.items() if curve} | {"seconds": log.seconds}


def _events(hooks: Sequence[Hook]) -> int:
    return sum(len(hook.events) for hook in hooks if isinstance(hook, Stateful))


def _random_state(place: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state(place)} if place.type == "cuda" else {})


def _draw_on(log: _Log, place: torch.device) -> None:
    """Where the epoch was stopped in its middle, draw the random numbers that it would have drawn next."""
    _set_random_state(log.random, place)
    log.random = {}


def _set_random_state(state: Mapping[str, Tensor], place: torch.device) -> None:
    if "cpu" in state:
        torch.set_rng_state(state["cpu"])
    if "cuda" in state and place.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], place)


def _validate(run: _Run, validation: Batches) -> float:
    """Accuracy, in [0, 1]; the mean loss where labels are not classes."""
    found, count = 0.0, 0.0
    with evaluating(run.model):
        for number, given in enumerate(iterate_batches(validation, "validation")):
            with naming(f"batch {number} of validation"):
                one, counted = _quality_of(run, move_batch(given, run.place))
            found, count = found + one, count + counted
    found, count = collectives.add_up_numbers(found, count)
    return found / max(count, 1)


def _quality_of(run: _Run, batch: Any) -> tuple[float, int]:
    """Right answers, or the loss, summed over all that counts."""
    labels = run.task.labels(batch)
    if run.task.classes is None or (isinstance(labels, Tensor) and labels.is_floating_point()):
        count = run.task.samples(batch)
        if run.task.has_loss:
            total = run.task.total(run.model, batch)
            return float(total.loss), total.count
        return float(_loss_of(run, batch)) * count, count
    logits, wanted = run.task.classes(run.task.forward(run.model, batch), batch)
    if not bool(torch.isfinite(logits).all()):
        raise DataError("outputs of the model are NaN or infinite. Check the inputs and the weights for NaN.")
    return float((logits.argmax(1) == wanted).sum()), len(wanted)


def _train_step(run: _Run, batch: Any, number: int, epoch: int, done: float, losses: _Losses, samples: int) -> None:
    for group, peak in zip(run.optimizer.param_groups, run.peaks, strict=True):
        group["lr"] = peak * run.schedule(done)
    chance = _random_state(run.place) if run.sharpness else {}
    _descend(run, batch, number, epoch, partial(losses.note, samples=samples))
    if run.sharpness is not None:
        _set_random_state(chance, run.place)
        with climbed(run.model, run.sharpness, run.held.masks):
            _descend(run, batch, number, epoch, _read_at_once)
    for hook in run.hooks:
        seen = (batch, run.model, run.optimizer, run.held.masks, run.task)
        masks = hook(TrainingStep(number, epoch, done, losses.last, *seen))
        if masks is not None:
            run.held.update(masks)
    run.optimizer.step()


def _read_at_once(loss: Tensor, check: Callable[[float], None]) -> None:
    check(float(loss.detach()))


def _descend(run: _Run, batch: Any, number: int, epoch: int, note: Callable[..., None]) -> None:
    """Make the gradients of a batch; ``note`` takes its loss, and the check of it for when it is read."""
    late = run.late > 0
    check = partial(_require_finite, run, batch, number, epoch)
    with torch.autocast(run.place.type, dtype=torch.bfloat16, enabled=run.halved), checking_late(late):
        loss, weight = _weighed_loss(run, batch) if run.averages else (require_scalar(_loss_of(run, batch)), 0)
    if not run.averages:
        note(loss, check=check)
    run.optimizer.zero_grad()
    loss.backward()
    if run.averages:
        # Only now, as that of all: what is not finite is found by all processes, and none waits for another.
        note(average_gradients(run.model.parameters(), loss, weight), check=check)


def _weighed_loss(run: _Run, batch: Any) -> tuple[Tensor, int]:
    """The mean loss, and over how many: of tasks what counts, such as tokens that are not padding; else samples."""
    if run.objective is not run.task:
        return require_scalar(_loss_of(run, batch)), run.task.samples(batch)
    with _saying_what_norms_need(run, batch):
        total = run.task.total(run.model, batch)
    return require_scalar(total.mean), total.count


def _loss_of(run: _Run, batch: Any) -> Tensor:
    with _saying_what_norms_need(run, batch):
        return run.objective(run.model, batch)


@contextmanager
def _saying_what_norms_need(run: _Run, batch: Any) -> Iterator[None]:
    try:
        yield
    except (ValueError, ForwardError) as error:
        # torch's words when batch norm is left without a second value to take a variance of.
        if "more than 1 value per channel" not in str(error):
            raise
        raise DataError(
            f"a batch of {run.task.samples(batch)} cannot train batch norm, which needs two values per channel. "
            "Leave out the last short batch (drop_last=True) or choose another batch size."
        ) from error


def _require_finite(run: _Run, batch: Any, number: int, epoch: int, value: float) -> None:
    if math.isfinite(value):
        return
    if run.late:
        # Steps were taken since, and labels were not looked at: now the objective raises what is wrong with them.
        with torch.no_grad(), evaluating(run.model):
            _loss_of(run, batch)
    why = _suspect(run.model, batch, late=run.late > 0)
    raise DataError(f"the loss is {value} at step {number} (epoch {epoch}): {why}")


def _suspect(model: nn.Module, batch: Any, *, late: bool) -> str:
    """Name the likeliest cause of a loss that is not finite; ``late``: it was read when steps had been taken since."""
    for tensor in tensors_in(batch):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return "the inputs of this batch hold NaN or infinite values. Clean the data."
    bad = _first_infinite(model)
    if late and bad:
        return f"inputs are finite; parameter {bad!r} is not, by now. Lower lr, or check the model given."
    if bad:
        return f"parameter {bad!r} holds NaN or infinite values already. Lower lr, or check the model given."
    return "inputs and weights are finite, so the outputs overflow or the objective divides by zero. Lower lr."


def _require_finite_weights(model: nn.Module, epoch: int) -> None:
    bad = _first_infinite(model)
    if bad:
        raise DataError(f"parameter {bad!r} is NaN or infinite after epoch {epoch}. Lower lr.")


def _first_infinite(model: nn.Module) -> str:
    """The first parameter that holds NaN or infinite values; empty where none does."""
    return next((name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())), "")


def _look_over(
    model: nn.Module,
    data: Batches,
    validation: Batches | None,
    objective: Objective | None,
    task: Task | None,
    place: torch.device,
) -> tuple[Objective, Task, int]:
    """Find what is wrong with data before the first step changes a weight.

    Returns:
        what is made small, what the model is for, and the batches of an epoch.
    """
    per_epoch = length(data) or 0
    for what, batches in (("data", data), ("validation", validation)):
        if batches is None:
            continue
        if isinstance(batches, Iterator):
            raise DataError(f"{what} can be iterated once only; give a list of batches or a loader.")
        first = move_batch(next(iterate_batches(batches, what)), place)
        if length(batches) is None:
            # What does not say how many it has may have no end: better known now than after an epoch.
            count = sum(1 for _ in iterate_batches(batches, what))
            per_epoch = count if what == "data" else per_epoch
        with naming(f"batch 0 of {what}"):
            task = task or _task_of(model, first, objective)
            output = _require_fit(model, task, objective, first)
        if task.classes is not None and isinstance(batches, list | tuple):
            output = _output_of(model, task, first) if output is None else output
            _require_classes(task, output, batches, what, place)
    assert task is not None
    return objective or task, task, per_epoch or sum(1 for _ in iterate_batches(data))


def _require_same_length(epochs: int, per_epoch: int) -> None:
    """Raise where processes would take other numbers of steps, and one would wait for another for ever."""
    collectives.require_same_text(
        f"{epochs} epochs of {per_epoch} batches",
        "Give all as many: DistributedSampler pads what cannot be dealt evenly, and nervure.distributed.share deals "
        "each batch.",
    )


def _require_same_masks(digest: str) -> None:
    collectives.require_same_text(
        f"masks {digest[:8] or 'none'}", "Give all the same: masks = nervure.distributed.same_everywhere(masks)."
    )


def _task_of(model: nn.Module, first: Any, objective: Objective | None) -> Task:
    """The task of an objective; of a function nothing is known but the form of its batches."""
    if objective is None:
        return find_task(model, first)
    return task_in(objective) or Task()


def _require_fit(model: nn.Module, task: Task, objective: Objective | None, first: Any) -> Any:
    """Raise DataError where the first batch does not fit the task; an objective of the user's is not run for this.

    Returns:
        the model's output, where the loss follows from it; None elsewhere.
    """
    task.samples(first)
    if not task.has_loss or (objective is not None and task_in(objective) is None):
        return None
    if task.objective is not None:
        with evaluating(model):
            task.total(model, first)
        return None
    output = _output_of(model, task, first)
    task.total_of(output, first)
    return output


def _output_of(model: nn.Module, task: Task, batch: Any) -> Any:
    with evaluating(model):
        return task.forward(model, batch)


def _require_classes(task: Task, output: Any, batches: Sequence[Any], what: str, place: torch.device) -> None:
    """Raise DataError where a label is no class. A list is at hand whole; a loader is checked batch by batch."""
    assert task.classes is not None
    shape = _shape_of(task.labels(batches[0]))
    for number, batch in enumerate(batches):
        labels = task.labels(batch)
        # The outputs of others have the same form, as far as labels are concerned: one run tells it for all.
        if _shape_of(labels) == shape is not None and not labels.is_floating_point():
            alike = map_tensors(partial(_with_rows, rows=len(labels)), output)
            with naming(f"batch {number} of {what}"):
                task.classes(alike, move_batch(batch, place))


def _shape_of(labels: Any) -> tuple[int, ...] | None:
    """The shape of the label of a sample; None where there is none."""
    return tuple(labels.shape[1:]) if isinstance(labels, Tensor) and labels.ndim else None


def _with_rows(output: Tensor, rows: int) -> Tensor:
    return output[:1].expand(rows, *output.shape[1:]) if output.ndim else output


def _optimizer(
    model: nn.Module, kind: str | MakeOptimizer, lr: float, momentum: float, weight_decay: float
) -> Optimizer:
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise ArgumentError("the model has no parameter that can be trained; set requires_grad on some.")
    if callable(kind):
        return kind(trainable)
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=lr)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)


def _schedule(kind: str | Schedule) -> Schedule:
    return SCHEDULES[kind] if isinstance(kind, str) else kind


def _word(kind: object) -> str:
    """Name a choice in a checkpoint; functions have no name that is the same in every process."""
    return kind if isinstance(kind, str) else "a function"


def _alone(checkpoint: FilePath | None) -> AbstractContextManager[None]:
    """Hold the file, so that no other training goes on from it; the processes of one training share it."""
    if checkpoint is None or collectives.rank():
        return nullcontext()
    return exclusive_file(checkpoint)


def _checkpointer(checkpoint: FilePath | None, run: _Run, log: _Log, settings: dict[str, Any]) -> Callable[[], None]:
    """Go on from the file if it exists; return the function that saves."""
    if checkpoint is None:
        return lambda: None
    if any(map(collectives.is_sharded, run.model.parameters())):
        raise ArgumentError(
            f"checkpoint={str(checkpoint)!r} takes whole tensors, and this model is sharded over processes. Train an "
            "epoch at a time and save with torch.distributed.checkpoint, or nervure.export.save_state, in between."
        )
    path = Path(checkpoint)

    hooks = [hook for hook in run.hooks if isinstance(hook, Stateful)]

    def save() -> None:
        if collectives.rank():
            return
        states = [hook.state() for hook in hooks]
        extra = {f"hook.{i}.{name}": t for i, (tensors, _) in enumerate(states) for name, t in tensors.items()}
        extra |= {f"log.{name}": torch.tensor(getattr(log, name), dtype=torch.float64) for name in CURVES}
        if log.part.batches:
            extra |= {f"random.{name}": state for name, state in _random_state(run.place).items()}
        notes = tuple(dict(told) for _, told in states)
        progress = Progress(settings, len(log.loss), log.steps, log.seconds, log.interrupted, log.part, notes)
        save_run(path, run.model, run.optimizer, run.held, progress, extra)

    # The first process may write the file before another one looks for it.
    if collectives.first_text(str(is_there(path))) == str(True):
        saved = read_run(path, run.model, run.optimizer, settings)
        with reading(path, KIND):
            _require_whole(saved, hooks, run)
        for i, (hook, told) in enumerate(zip(hooks, saved.progress.hooks, strict=True)):
            hook.restore(under(f"hook.{i}", saved.extra), told)
        saved.put_into(run.model, run.optimizer, run.held)
        _go_on(log, saved, run.epochs)
    else:
        save()
    return save


def _require_whole(saved: SavedRun, hooks: Sequence[Stateful], run: _Run) -> None:
    """Raise where the log, the notes of the hooks or the state of chance is not what such a run leaves."""
    curves = under("log", saved.extra)
    lengths = {name: curve.numel() for name, curve in curves.items() if (curve.dtype, curve.ndim) == (torch.float64, 1)}
    if lengths.keys() != set(CURVES) or lengths["loss"] != saved.progress.epochs:
        raise DamageError("its log is not whole.")
    if len(hooks) != len(saved.progress.hooks):
        raise DamageError(f"it has the notes of {len(saved.progress.hooks)} hooks; there are {len(hooks)}.")
    part = saved.progress.part
    if part.batches > run.per_epoch or (part.batches and not part.samples):
        raise DamageError(f"{part.batches} batches of {part.samples} samples are no part of an epoch.")
    for name, state in under("random", saved.extra).items():
        if name == run.place.type:
            _require_random_state(state, run.place)


def _require_random_state(state: Tensor, place: torch.device) -> None:
    try:
        torch.Generator(place).set_state(state)
    except (RuntimeError, TypeError) as error:
        raise DamageError(f"its state of chance is none: {error}.") from error


def _go_on(log: _Log, saved: SavedRun, epochs: int) -> None:
    curves, progress = under("log", saved.extra), saved.progress
    log.loss, log.validation = (curves[name].tolist() for name in CURVES)
    log.steps, log.earlier, log.part = progress.steps, progress.seconds, progress.part
    log.interrupted = progress.interrupted or progress.epochs < epochs
    log.random = under("random", saved.extra)


def _epoch_seed(seed: int, epoch: int) -> int:
    # A prime stride, so that epoch 1 of seed 0 is not epoch 0 of seed 1.
    return (seed * 1_000_003 + epoch) % (1 << 63)


@contextmanager
def _own_random_numbers(seed: int, place: torch.device) -> Iterator[None]:
    devices = [place.index or 0] if place.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(_epoch_seed(seed, 0))
        yield


@contextmanager
def _left_in_evaluation(model: nn.Module) -> Iterator[None]:
    try:
        yield
    finally:
        model.eval()
