"""Asking a model how it does without some of its blocks."""

import itertools
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from nervure.core.container import read_container, write_container
from nervure.core.inputs import Inputs
from nervure.errors import DataError, FileError
from nervure.evaluation import Latency, latency
from nervure.evaluation.labelled import require_finite_outputs, require_labels
from nervure.graph.models import device_of, evaluating
from nervure.graph.types import Block, Graph
from nervure.methods.base import View, data_of, model_of
from nervure.methods.evidence_folder import ANSWER
from nervure.plan import Drop, Plan
from nervure.stats import SAMPLES, Stats, first_batches, measure
from nervure.stats.block_outputs import answer_of, join_batches, summarise_answer
from nervure.stats.loaders import Batch, fixed_seed, keep_position
from nervure.stats.loaders import batches as checked
from nervure.surgery.apply import apply
from nervure.training.norms import recalibrate

HELD_EVERY = 10
HELD_BATCHES = 20
LATENCY_ROUNDS = 30


def plan_of(graph: Graph, names: Iterable[str]) -> Plan:
    """Drop these blocks, in this order."""
    return Plan(tuple(Drop(name) for name in names), graph.fingerprint)


@final
class BlockRecord:
    """What was asked about blocks, and the answers, which are plain data; in a file, where one is given."""

    def __init__(self, path: Path | None = None) -> None:
        self._path, self._answers = path, dict[str, Any]()
        if path is not None:
            with suppress(FileError):  # it is not there yet, or damaged
                self._answers = read_container(path, dict[str, Any], ANSWER)[0]["answers"]

    def get(self, asked: str, names: Iterable[str], make: Callable[[], Any]) -> Any:
        """What was asked of the model without the blocks of these names; found out now where it was not."""
        key = json.dumps([asked, *names])
        if key not in self._answers:
            self._answers[key] = make()
            if self._path is not None:
                write_container(self._path, {}, {"answers": self._answers}, ANSWER)
        return self._answers[key]


@final
class BlockEvaluator:
    """Runs the model without some of its blocks; each answer is worked out once.

    Args:
        view: model, graph, data and example.
        batches: how many batches norms are recalibrated on.
        output: which of several outputs counts; empty: ``"logits"``, or the first.
        engine: what latencies are timed on.
        record: what was found out before.
    """

    def __init__(
        self, view: View, batches: int, output: str = "", engine: str = "eager", record: BlockRecord | None = None
    ) -> None:
        self._view, self._batches, self._output, self._engine = view, batches, output, engine
        self.record = record or BlockRecord()
        self._parts: tuple[list[Any], list[Any]] | None = None
        self._compared: list[Any] | None = None
        self._whole: list[_Answer] | None = None

    def measured_without(self, names: tuple[str, ...], wants: Iterable[str]) -> Stats:
        """Evidence of the smaller model, on as many samples as the view's, always the same; blocks keep their names."""
        samples = SAMPLES if self._view.stats is None else self._view.stats.samples
        if self._compared is None:
            # Kept: answers are compared sample by sample, and a loader that shuffles gives others in each pass.
            task, seed = self._view.task, self._view.seed
            self._compared = first_batches(data_of(self._view), samples=samples, task=task, seed=seed)
        return measure(
            self._smaller(names),
            self._view.graph,
            self._compared,
            want=wants,
            samples=samples,
            task=self._view.task,
            seed=self._view.seed,
            progress=False,
        )

    def answers_without(self, names: tuple[str, ...]) -> Tensor:
        """The outputs without these blocks [samples, outputs], batch norms recalibrated, as many as the view has."""
        wanted = f"outputs:{self._output}" if self._output else "outputs"
        outputs = self.measured_without(names, {wanted}).outputs
        if outputs is None:
            raise DataError("the model gave no outputs to compare. Name one of them by output=.")
        return outputs

    def quality(self, names: tuple[str, ...]) -> float:
        """How well the model does without these blocks, on the part held out; 1 is best.

        Accuracy, where labels are class numbers and the model has an output for each class. Otherwise (regression,
        embeddings, no labels) the share of the spread of the whole model's outputs that stays explained: 1 minus the
        mean squared difference over their variance.

        Raises:
            DataError: there are too few batches, labels do not fit, or outputs are not finite or all the same.
        """
        return float(self.record.get("quality", names, lambda: self._quality(names)))

    def _quality(self, names: tuple[str, ...]) -> float:
        answers = self._answers(self._smaller(names) if names else model_of(self._view))
        if all(a.right is not None for a in answers):
            return float(torch.cat([a.right for a in answers if a.right is not None]).double().mean())
        if self._whole is None:
            self._whole = answers if not names else self._answers(model_of(self._view))
        return _agreement(self._whole, answers)

    def savings_of(self, blocks: Sequence[Block]) -> dict[str, float]:
        """How much time each block alone takes in a forward pass on the example; in one unit, whichever."""
        if self._engine == "eager":
            found: dict[str, float] = self.record.get("savings", (), lambda: self._seconds_of(blocks))
            return found
        # Other engines fuse and compile: what a block takes there is only seen without it.
        return {b.name: max(0.0, 1 - self.latency((b.name,))) for b in blocks}

    def seconds(self) -> float:
        """Median time of a forward pass of the whole model on the example."""
        return float(self.record.get("seconds", (), self._whole_seconds))

    def _whole_seconds(self) -> float:
        return self._time_models({"whole": model_of(self._view)}).median("whole")

    def _seconds_of(self, blocks: Sequence[Block]) -> dict[str, float]:
        """Median time that each block takes in a forward pass on the example, one operation after the other."""
        model, inputs = model_of(self._view), _inputs_of(self._view)
        clock = _Clock(device_of(model))
        with evaluating(model), ExitStack() as hooks:
            for block in blocks:
                first, last = model.get_submodule(block.modules[0]), model.get_submodule(block.modules[-1])
                hooks.callback(first.register_forward_pre_hook(clock.starting(block.name)).remove)
                hooks.callback(last.register_forward_hook(clock.stopping(block.name)).remove)
            for _ in range(LATENCY_ROUNDS):
                inputs.run(model)
        return {b.name: statistics.median(clock.times[b.name]) for b in blocks}

    def latency(self, names: tuple[str, ...]) -> float:
        """Time of a forward pass on the example, relative to the whole model's in the same rounds."""
        return float(self.record.get("latency", names, lambda: self._latency(names)))

    def _latency(self, names: tuple[str, ...]) -> float:
        model = model_of(self._view)
        part = apply(model, self._view.graph, plan_of(self._view.graph, names)).eval()
        return self._time_models({"whole": model, "part": part}).row("part").ratio

    def _time_models(self, models: Mapping[str, nn.Module]) -> Latency:
        inputs = _inputs_of(self._view)
        return latency(
            models,
            inputs,
            engine=self._engine,
            batch_sizes=[inputs.samples],
            rounds=LATENCY_ROUNDS,
            threads=[torch.get_num_threads()],
        )

    def _smaller(self, names: tuple[str, ...]) -> nn.Module:
        plan = plan_of(self._view.graph, names)
        smaller = apply(model_of(self._view), self._view.graph, plan, renumber=False).eval()
        if self._view.data is not None:
            recalibrate(smaller, self._split()[0], self._batches, task=self._view.task)
        return smaller

    def _split(self) -> tuple[list[Any], list[Any]]:
        """Batches to recalibrate on, and batches held out (none of one); kept, since a shuffling loader would mix."""
        if self._parts is None:
            with fixed_seed(self._view.seed):
                self._parts = _split_batches(keep_position(data_of(self._view)), self._batches)
        return self._parts

    def _answers(self, model: nn.Module) -> list["_Answer"]:
        held, device, found = self._split()[1], device_of(model), []
        if not held:
            raise DataError("one batch of data cannot be parted into some to measure and some to judge on. Give two.")
        with evaluating(model):
            for given in checked(held, sys.maxsize, labelled=False, task=self._view.task):
                batch = given.to(device)
                output = batch.feed(model)
                answer = answer_of(output, self._output).float().cpu()
                require_finite_outputs(answer, "the part held out")
                found.append(_Answer(answer, self._right(batch, output, answer)))
        return found

    def _right(self, batch: Batch, output: Any, answer: Tensor) -> Tensor | None:
        """Which answers are right, where labels are class numbers and the model has an output for each class."""
        task = self._view.task
        if task is not None:
            return None if task.classes is None else _are_right(*task.classes(output, batch.raw))
        labels = batch.labels
        if not isinstance(labels, Tensor) or labels.is_floating_point() or answer.ndim < 2:
            return None
        if answer.shape[1] < 2 or labels.ndim != answer.ndim - 1:
            return None
        return _are_right(answer, require_labels(labels.cpu(), answer))


class _Answer(NamedTuple):
    outputs: Tensor
    right: Tensor | None


def _are_right(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(1) == labels).flatten().cpu()


def _agreement(whole: Sequence[_Answer], part: Sequence[_Answer]) -> float:
    """R^2 of the outputs ``part`` as an estimate of the outputs ``whole``."""
    target, found = (_join([a.outputs.double() for a in side]) for side in (whole, part))
    spread = (target - target.mean(0)).square().sum()
    if not bool(spread > 0):
        raise DataError(
            f"the model's outputs are the same for all {len(target)} samples held out, so nothing can be lost. "
            "Give other data, or say how many blocks leave by drop= or keep=."
        )
    return float(1 - (target - found).square().sum() / spread)


def _join(outputs: Sequence[Tensor]) -> Tensor:
    """Of all batches, which may be of other lengths."""
    are_alike = len({answer.shape[1:] for answer in outputs}) == 1
    return torch.cat([*outputs]) if are_alike else join_batches([summarise_answer(answer) for answer in outputs])


class _Clock:
    """Times between hooks; on an accelerator both ends wait until it is done."""

    def __init__(self, device: torch.device) -> None:
        self.times: defaultdict[str, list[float]] = defaultdict(list)
        self._started: dict[str, float] = {}
        self._device = device

    def starting(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            self._started[name] = self._now()

        return hook

    def stopping(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self.times[name].append(self._now() - self._started[name])

        return hook

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def _inputs_of(view: View) -> Inputs:
    if view.example is None:
        raise DataError('budget="latency" times the model: give the example it was traced with.')
    return Inputs.of(view.example)


def _split_batches(data: Iterable[Any], batches: int) -> tuple[list[Any], list[Any]]:
    seen: list[Any] = []
    held: list[Any] = []
    for number, batch in enumerate(itertools.islice(data, HELD_EVERY * HELD_BATCHES)):
        if number % HELD_EVERY == HELD_EVERY - 1:
            held.append(batch)
        elif len(seen) < batches:
            seen.append(batch)
    if not held and len(seen) > 1:
        held = [seen.pop()]
    return seen, held
