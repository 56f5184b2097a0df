"""One pass over data: what the units say, and how much the loss listens."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn

from nervure.core.annotations import Batches
from nervure.core.check import checked, nearest, require_choice
from nervure.core.collectives import (
    add_up,
    add_up_numbers,
    in_step,
    is_sharded,
    merge_rows,
    merge_words,
    require_portion,
    require_same_weights,
)
from nervure.core.progress import length, track
from nervure.core.schema import Count, Seed, Size
from nervure.errors import ArgumentError
from nervure.graph.models import device_of, unwrap
from nervure.graph.modes import disable_compile, leave_modes, whole_convolutions
from nervure.graph.preserve import restore_after
from nervure.graph.types import Graph
from nervure.stats.block_outputs import REDUCTIONS, BlockRecorder, join_batches
from nervure.stats.connections import Listener, ears
from nervure.stats.evidence import Stats
from nervure.stats.expert_routing import RoutingRecorder
from nervure.stats.footprint import require_memory
from nervure.stats.loaders import (
    SAMPLES,
    UNTOLD,
    Batch,
    batches,
    count_batches,
    draw_first,
    first_of,
    fixed_seed,
    leaves_of,
)
from nervure.stats.readers import ReaderRecorder, reader_probes
from nervure.stats.record import EvidenceRecorder
from nervure.stats.unit_probe import probes
from nervure.tasks.batch_forms import leaves_in, naming
from nervure.tasks.guessing import TaskLike, as_task, find_task
from nervure.tasks.task import Task

SIGNALS = ("activations", "blocks", "connections", "effects", "gradients", "labels", "outputs", "readings", "routing")
WRITTEN = frozenset({"activations", "gradients"})
READ = frozenset({"effects", "readings"})
LAYERS = frozenset({"connections"})
SLOPES = frozenset({"gradients", "effects"})
WHOLE = frozenset({"blocks", "outputs"})
ROUTED = frozenset({"routing"})


@checked
@leave_modes()
@whole_convolutions()
def measure(
    model: nn.Module,
    graph: Graph,
    data: Batches,
    *,
    want: Iterable[str] = frozenset({"activations"}),
    samples: Size = SAMPLES,
    per_class: Count = 0,
    task: TaskLike | None = None,
    seed: Seed = 0,
    progress: bool = True,
) -> Stats:
    """Feed the first ``samples`` samples to the model and listen to its units and connections.

    The model runs in evaluation mode, on the device where it is; afterwards it is as it was. A group is heard at the
    output of the first module that writes all its units, connections at the inputs of convolutions and linear layers;
    what cannot be heard is named in ``Stats.skipped`` with the reason.

    In a process group all processes call it, each with its share of the data (:mod:`nervure.distributed`), and all get
    what they saw together: ``samples`` and ``per_class`` are those of all processes.

    Args:
        model: the traced model.
        graph: its graph.
        data: a re-iterable of batches of any form, such as (inputs, labels) or dicts; labels can be left out where
            none of ``"labels"``, ``"gradients"`` and ``"effects"`` is wanted and ``per_class`` is 0.
        want: any of ``"activations"`` and ``"gradients"`` (at the writer of each unit), ``"readings"`` and
            ``"effects"`` (at everything that reads it), ``"routing"`` (where gates send tokens; a mixture runs
            once more for each of its experts), ``"connections"`` (at the input of each layer), ``"blocks"``
            (what each removable block adds), ``"outputs"`` (the model's answer) and ``"labels"``. Blocks are averaged
            over 4 x 4 parts, or as said after a colon: ``"blocks:flatten"``, ``"blocks:gap"``, ``"blocks:random"``;
            ``"outputs:NAME"`` is one of several outputs, by its key or place. Gradients and effects are those of the
            task's loss, summed over all that counts. The result holds 4 bytes per
            sample and unit for activations, gradients and effects, per sample, input and kernel position for
            connections, and per sample and feature for blocks; readings and effects also hold what all layers
            are given for one batch.
        samples: how many samples at most.
        per_class: where above 0, at most so many samples of each class are taken, the first that come, none twice.
        task: how batches go into the model and what the loss is, see :mod:`nervure.tasks`, or an objective: from model
            and batch to the mean loss. None: as the first batch says, where a loss is needed.
        seed: seeds torch while the data are drawn, so a shuffling loader gives the same samples again; the caller's
            random state, and a loader that counts its epochs, stay where they are.
        progress: whether to show a bar when it takes long.

    Raises:
        ArgumentError: ``want``, ``samples``, ``per_class`` or ``seed`` is out of range.
            The task cannot be told from the first batch.
        DataError: the data are empty, malformed, not finite, or lack labels that are needed; activations are not
            finite; or the connections of so many samples do not fit into memory.
    """
    model, wanted = unwrap(model), _parse_want(want)
    require_same_weights(model.parameters(), "measure")
    samples = require_portion(samples, "samples")
    per_class = require_portion(per_class, "per_class") if per_class else 0
    chosen = _parse_signals(wanted)
    told = as_task(task)
    if told is None and wanted & SLOPES:
        told, data = _find_task(model, data, seed)
    others = READ | LAYERS | WHOLE | ROUTED
    found, skipped = probes(model, graph) if wanted & WRITTEN or not others & chosen.keys() else ({}, {})
    read, unread = reader_probes(model, graph, inside="effects" in wanted) if wanted & READ else ({}, {})
    layers, deaf = ears(model, graph) if wanted & LAYERS else ([], {})
    with_gradients = "gradients" in wanted
    recorder = EvidenceRecorder(found if wanted & WRITTEN else {}, with_gradients=with_gradients)
    reader = ReaderRecorder(read, with_effects="effects" in wanted)
    listener = Listener(layers)
    whole = BlockRecorder(graph, reduce=chosen.get("blocks"), output=chosen.get("outputs"))
    routing = RoutingRecorder(model, graph if wanted & ROUTED else None)
    device = device_of(model)
    labels: list[Tensor] = []
    passes = seen = 0
    with (
        restore_after(model),
        fixed_seed(seed, device),
        _evaluating(model),
        disable_compile(),
        recorder.listening(model),
        reader.listening(model),
        listener.listening(),
        whole.listening(model),
        routing.listening(model),
        torch.set_grad_enabled(bool(wanted & SLOPES)),
    ):
        drawn = batches(data, samples, labelled=bool(per_class or "labels" in wanted), per_class=per_class, task=told)
        stream, total = count_batches(drawn, samples, length(data))
        if any(map(is_sharded, model.parameters())):
            stream = in_step(stream)
        for batch in track(stream, "measuring", total, enabled=progress):
            with naming(f"batch {passes}"):
                _listen(model, batch.to(device), (reader, recorder, listener, whole), bool(wanted & SLOPES))
            labels += [batch.labels.detach().cpu()] if "labels" in wanted else []
            passes, seen = passes + 1, seen + batch.size
            if passes == 1:
                require_memory(listener.bytes_per_sample, min(samples, batch.size * (total or samples)))
    skipped |= _unheard(found, recorder, passes, with_gradients) if wanted & WRITTEN else {}
    connections = listener.connections()
    skipped = routing.failed | unread | reader.failed | skipped | listener.failed | deaf | whole.unheard(passes)
    seen = int(*add_up_numbers(seen))
    heard = recorder.activations if "activations" in wanted else {}
    activations = merge_rows(_concat(heard, passes, recorder.failed))
    return Stats(
        activations=activations,
        gradients=merge_rows(_concat(recorder.gradients, passes, recorder.failed)),
        moments=_moments(activations, recorder, seen),
        effects=merge_rows(_concat(reader.effects, passes, reader.failed)),
        readings=reader.readings() if "readings" in wanted else {},
        connections=merge_rows(connections),
        routing=routing.routing(),
        blocks=merge_rows(_concat(whole.features, passes, whole.failed, join_batches)),
        shifts=merge_rows(_concat(whole.shifts, passes, whole.failed)),
        outputs=_merge(whole.outputs()),
        labels=_merge(torch.cat(labels) if labels else None),
        samples=seen,
        seed=seed,
        want=wanted,
        fingerprint=graph.fingerprint,
        skipped=merge_words(skipped),
    )


def _merge(rows: Tensor | None) -> Tensor | None:
    """The rows of all processes; None where there are none."""
    return None if rows is None else merge_rows({"rows": rows})["rows"]


@checked
def first_batches(data: Batches, *, samples: Size = SAMPLES, task: TaskLike | None = None, seed: Seed = 0) -> list[Any]:
    """The batches that hold the samples which :func:`measure` would take, drawn in the same way, to keep."""
    with fixed_seed(seed):
        return first_of(data, samples, as_task(task))


@checked
def data_digest(
    data: Batches, *, samples: Size, per_class: Count, labelled: bool, seed: Seed, task: Task | None = None
) -> str:
    """A digest of the samples that :func:`measure` would take, drawn in the same way; no model runs."""
    drawn = batches(data, samples, labelled=labelled or per_class > 0, per_class=per_class, task=task)
    return _digest((batch.raw for batch in drawn), seed)


@checked
def batches_digest(data: Batches, *, count: Size, seed: Seed = 0) -> str:
    """A digest of the first ``count`` batches as they come, whatever their labels are; no model runs."""
    return _digest(islice(leaves_of(data), count), seed)


def _digest(values: Iterable[Any], seed: int) -> str:
    digest = hashlib.sha256()
    with fixed_seed(seed):
        for value in chain.from_iterable(map(leaves_in, values)):
            if isinstance(value, Tensor):
                digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            else:
                digest.update(repr(value).encode())
    return digest.hexdigest()


def _find_task(model: nn.Module, data: Batches, seed: int) -> tuple[Task, Batches]:
    """The task that the first batch says, and the data; what can be drawn once keeps its first batch."""
    first, data = draw_first(data, seed=seed)
    with naming("batch 0"):
        return UNTOLD if first is None else find_task(model, first), data


def _parse_want(want: Iterable[str]) -> frozenset[str]:
    if isinstance(want, str):
        raise ArgumentError(f"want={want!r} must be a set of names, e.g. {{{want!r}}}.")
    wanted = frozenset(want)
    for name in sorted(wanted):
        signal, colon, option = name.partition(":")
        if signal not in SIGNALS or (colon and signal not in WHOLE):
            raise ArgumentError(f"want={name!r} cannot be measured.{nearest(name, SIGNALS, listed=True)}")
        if colon and signal == "blocks":
            require_choice(option, REDUCTIONS, f"want={name!r}: the part after the colon")
    if len(_parse_signals(wanted)) < len(wanted):
        raise ArgumentError(f"want={sorted(wanted)!r} names a signal twice; measure one after the other.")
    return wanted


def _parse_signals(wanted: Iterable[str]) -> dict[str, str]:
    """Each signal with what is said after its colon, or by default."""
    defaults = {"blocks": "pool4"}
    parts = [name.partition(":") for name in wanted]
    return {signal: option or defaults.get(signal, "") for signal, _, option in parts}


def _listen(
    model: nn.Module,
    batch: Batch,
    recorders: Iterable[EvidenceRecorder | ReaderRecorder | Listener | BlockRecorder],
    with_slopes: bool,
) -> None:
    for recorder in recorders:
        recorder.start(batch.size)
    # A sum, not a mean: the gradient of a sample must not depend on how many others are in its batch.
    loss = batch.task.total(model, batch.raw).loss if with_slopes else None
    if loss is None:
        batch.feed(model)
    for recorder in recorders:
        recorder.finish(loss)


def _concat(
    parts: Mapping[str, list[Any]],
    passes: int,
    failed: Mapping[str, str],
    join: Callable[[list[Any]], Tensor] = torch.cat,
) -> dict[str, Tensor]:
    return {name: join(values) for name, values in parts.items() if len(values) == passes and name not in failed}


def _moments(activations: Mapping[str, Tensor], recorder: EvidenceRecorder, seen: int) -> dict[str, Tensor]:
    squares = add_up({name: recorder.squares[name] for name in activations})
    return {
        name: torch.stack([values.double().mean(0), squares[name] / seen], 1).float()
        for name, values in activations.items()
    }


def _unheard(found: Iterable[str], recorder: EvidenceRecorder, passes: int, with_gradients: bool) -> dict[str, str]:
    reasons = {}
    for name in found:
        if name in recorder.failed:
            reasons[name] = recorder.failed[name]
        elif len(recorder.activations[name]) < passes:
            reasons[name] = "its module did not run for every batch"
        elif with_gradients and len(recorder.gradients[name]) < passes:
            reasons[name] = "the loss does not depend on it, so it has no gradient"
    return reasons


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    # Parts can be in another mode than the whole, e.g. frozen norms.
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
