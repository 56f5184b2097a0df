"""``prune_folder``: a model in a folder made smaller layer by layer, so that one layer at a time is in memory."""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from nervure.core.annotations import Batches, Device, FilePath
from nervure.core.check import checked, show_value
from nervure.core.collectives import group_used
from nervure.core.files import contents, is_there, remove
from nervure.core.schema import Seed
from nervure.core.version import __version__
from nervure.errors import ArgumentError, DataError, FileError, NervureWarning
from nervure.export.config_fit import ConfigTrial, fit_config
from nervure.export.folder import CONFIG_FILE
from nervure.export.pretrained import changes_of_config, require_config_says, require_new_folder
from nervure.graph.modes import leave_modes
from nervure.graph.types import Graph
from nervure.methods.base import Method
from nervure.plan import Plan
from nervure.refit import Refit
from nervure.stats.loaders import Batch, leaves_of
from nervure.stats.measure import batches_digest
from nervure.streaming.competing_masks import CompetingMasks
from nervure.streaming.first_pass import FirstPass, see_norms, see_shift
from nervure.streaming.hollow_model import HollowModel, read_config
from nervure.streaming.layer_by_layer import LayerByLayer
from nervure.streaming.layer_plans import (
    Part,
    competing,
    layers_as_elements,
    norms_for,
    plan_of_layers,
    plans_for,
    reads_data,
    require_by_layer,
    takes_two_passes,
)
from nervure.streaming.sharded_weights import ShardedWeights
from nervure.streaming.streamed_run import StreamedLayer, StreamedRun
from nervure.surgery import apply
from nervure.tasks.batch_forms import Layout, describe_batch
from nervure.tracing import trace

TOKENS = "input_ids"
EXAMPLE = (2, 32)
"""Windows and tokens that tracing and checks look at."""


@final
@dataclass(frozen=True, slots=True)
class StreamedFolder:
    """A folder that was made layer by layer.

    Attributes:
        path: where it is.
        plan: what was done, as a plan of the whole model.
        layers: what became of each layer, in running order.
        config: what the config says otherwise than that of the dense folder, by name: (before, now).
        difference: largest difference between what was loaded again and what was written, of any layer and of the
            logits behind them, relative.
        files: the names of its files.
    """

    path: Path
    plan: Plan
    layers: tuple[StreamedLayer, ...]
    config: Mapping[str, tuple[Any, Any]]
    difference: float
    files: tuple[str, ...]

    def __str__(self) -> str:
        changed = "".join(f", {name} {before} -> {now}" for name, (before, now) in self.config.items())
        before, after = (sum(getattr(layer, n) for layer in self.layers) for n in ("before", "after"))
        return (
            f"{self.path}: {len(self.layers)} layers of {before:,} parameters, now {after:,}{changed}; loaded again "
            f"layer by layer, largest difference {self.difference:.1e}"
        )


@checked
@leave_modes()
@group_used(None)
def prune_folder(  # noqa: PLR0913 - one choice per argument, all by keyword
    folder: FilePath,
    out: FilePath,
    method: Method | Plan,
    *,
    data: Batches | None = None,
    refit: bool | Refit = False,
    parts: Iterable[Part] = ("ffn",),
    seed: Seed = 0,
    fresh: bool = False,
    device: Device = "cpu",
    progress: bool = True,
    tell: Callable[[StreamedLayer], None] | None = None,
) -> StreamedFolder:
    """Prune a model of transformers in a folder of safetensors, one layer at a time.

    The graph is traced without weights. Then each layer is loaded, looked at on what the dense network gives it, cut or
    masked, verified, fitted to say what the dense one says (on what the smaller network gives it), written as a file of
    weights, loaded again and compared. In memory are one layer and one batch of what flows between layers; the rest of
    that is on the disk, in the folder ``out`` and ``-run``. What is outside of the layers stays as it is.

    Where layers are compared it takes two passes: the first looks at each, the second does the rest. So whole layers
    leave, and so masks are laid with another ``distribution`` than ``"uniform"``: these take a byte for each weight
    while they are decided.

    The same call goes on behind the last layer that was done, however it was stopped, and gives the same bits. It is
    work for one process: in a process group one calls it, and the others wait for the folder.

    Args:
        folder: a folder of ``save_pretrained``: config and safetensors, sharded or not.
        out: the folder to be written; it must not be there, or be empty.
        method: a ranking of units with ``scope="uniform"`` (``Magnitude``, ``Activation``, ...): each layer keeps the
            same number of units, so many that the whole model is within its budget; or ``MagnitudeMasks`` or ``Wanda``;
            or ``Depth`` with ``granularity="whole"``, which drops layers; or a plan of
            cuts, masks and layers to drop for the graph of the whole model.
        data: batches of tokens, [windows, tokens] or ``{"input_ids": ...}``, where methods measure and for the refit.
        refit: fit what stays of each layer, see :func:`nervure.refit`; True, or the choices. No ``steps``.
        parts: of layers that may lose units: ``"ffn"``, ``"heads"``.
        seed: for measuring.
        fresh: begin anew, where a run was before.
        device: where layers run, one at a time; while one is worked on, the next one is read. What is outside of the
            layers runs on the CPU. Another kind of device is another run: it computes other last digits.
        progress: show progress.
        tell: is given each layer as soon as it is done.

    Raises:
        FileError: there is no such folder, no config says the smaller model, or ``out`` or its run is another's.
        ArgumentError: the model is no list of layers, or the method needs more than a layer at a time.
        DataError: data are needed and there are none, or they are no tokens.
        PlanError: the plan edits what is in no layer.
        VerificationError: what was cut or written computes something else.
        MissingExtraError: transformers is not installed.
    """
    source, target = Path(folder), Path(os.path.abspath(out))
    how = Refit(seed=seed) if refit is True else refit or None
    if how is not None and how.steps:
        raise ArgumentError(f"refit with steps={how.steps} trains branches, which is not done layer by layer: steps=0.")
    require_by_layer(method)
    if data is None and (reads_data(method) or how is not None):
        raise DataError(f"{'the refit' if how else repr(method)} looks at data: give data=, batches of tokens.")
    weights = ShardedWeights.of(source)
    kind, config = read_config(source)
    tokens = _read_tokens(data, config)
    asked = {
        "folder": str(source.resolve()),
        "weights": weights.describe(),
        "config": config.to_json_string(use_diff=False),
        "method": _digest(method) if isinstance(method, Plan) else repr(method),
        "parts": sorted({*parts}),
        "refit": repr(how),
        "data": batches_digest(tokens, count=len(tokens)) if tokens else "",
        "seed": seed,
        "device": torch.device(device).type,
        "versions": {"nervure": __version__, "torch": torch.__version__},
    }
    run = StreamedRun(target.with_name(f"{target.name}-run"), asked)
    is_done = not fresh and run.is_same and run.is_finished and is_there(target / CONFIG_FILE)
    if not is_done:
        _require_new(target)
        run.require_place(fresh=fresh)
    model = HollowModel.of(kind, config, weights, _example_of(tokens), device)
    graph = layers_as_elements(trace(model.whole, dict(model.example.raw)), model.layers)
    first = _first_pass(model, graph, method, run, seed)
    outline = partial(_outline, model, graph, method, parts, run, how, seed)
    work = outline(_seen_by(first) if is_done else None)
    if not is_done:
        with run.begun(fresh=fresh), _each_once():
            if first is not None:
                first.go(tokens, progress=progress)
            if takes_two_passes(method):
                work = outline(_seen_by(first))
            work.prepare(tokens if work.plans.reads else [], tokens if how is not None else [])
            work.go(progress, tell)
            work.finish(source, target)
    remove(run.streams)
    return _result(work, target, config)


def _require_new(target: Path) -> None:
    if target.is_dir() and (inside := contents(target)):
        raise FileError(
            f"{str(target)!r} is there and holds {inside[0]!r}: nothing is overwritten. Give the name of a new "
            "folder, or remove it."
        )
    require_new_folder(target)


def _first_pass(
    model: HollowModel, graph: Graph, method: Method | Plan, run: StreamedRun, seed: int
) -> FirstPass | None:
    """What looks at all layers before anything is done to one; None where nothing does."""
    if not (takes_two_passes(method) and reads_data(method)):
        return None
    asked = next(iter(norms_for(method)), None)
    look = see_shift if asked is None else partial(see_norms, graph.products, asked.samples, seed)
    return FirstPass(model, run, look)


def _seen_by(first: FirstPass | None) -> Mapping[str, Tensor]:
    return {} if first is None else first.found


def _outline(
    model: HollowModel,
    graph: Graph,
    method: Method | Plan,
    parts: Iterable[str],
    run: StreamedRun,
    how: Refit | None,
    seed: int,
    seen: Mapping[str, Tensor] | None,
) -> LayerByLayer:
    """What is to be done, as far as sizes say it; raises where it cannot be done."""
    masking = competing(method)
    compete = None if masking is None else CompetingMasks(model, graph, masking, run, seed)
    plans = plans_for(method, model.whole, graph, model.layers, parts, seen, compete)
    return LayerByLayer(model, graph, plans, _fit_config(model.whole, graph, plans.outline), run, how, seed)


def _result(work: LayerByLayer, target: Path, config: Any) -> StreamedFolder:
    layers = work.done()
    edits = [edit for layer in layers for edit in layer.edits]
    return StreamedFolder(
        target,
        plan_of_layers(edits, work.plans.outline, work.graph),
        tuple(layers),
        changes_of_config(config, work.fitted.changed),
        max(layer.difference for layer in layers),
        tuple(contents(target)),
    )


def _fit_config(whole: nn.Module, graph: Graph, outline: Plan) -> ConfigTrial:
    """The config that says the smaller model; raises FileError where none does."""
    with warnings.catch_warnings():
        # What the config does not say by itself is found by trying, and told where it is not.
        warnings.simplefilter("ignore", NervureWarning)
        smaller = apply(whole, graph, outline) if outline else whole
    fitted = fit_config(smaller)
    require_config_says(smaller, fitted)
    return fitted


@contextmanager
def _each_once() -> Iterator[None]:
    """What is warned of in every layer is said once, behind the last."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for told in {str(one.message): one for one in caught}.values():
        warnings.warn(told.message, told.category, stacklevel=5)


def _digest(plan: Plan) -> str:
    return f"a plan, {hashlib.sha256(json.dumps(plan.to_json(), sort_keys=True).encode()).hexdigest()}"


def _read_tokens(data: Batches | None, config: Any) -> list[dict[str, Any]]:
    """The batches, by the names that the model knows; raises DataError where they are no tokens."""
    words = getattr(config.get_text_config(), "vocab_size", None)
    return [] if data is None else [_tokens_in(raw, n, words) for n, raw in enumerate(leaves_of(data))]


def _tokens_in(raw: Any, number: int, words: int | None) -> dict[str, Any]:
    inputs = Layout().inputs_in(raw)
    given = dict(inputs) if isinstance(inputs, Mapping) else {TOKENS: inputs}
    ids = given.get(TOKENS)
    told = f"batch {number} is {describe_batch(raw)}: give tokens, [windows, tokens] of whole numbers, or "
    told += f'{{"{TOKENS}": tokens}}'
    if not isinstance(ids, Tensor) or ids.ndim != 2 or not ids.numel() or ids.dtype not in (torch.int64, torch.int32):
        raise DataError(f"{told}." if not isinstance(ids, Tensor) else f"{told}; these are {show_value(ids)}.")
    least, most = int(ids.min()), int(ids.max())
    if least < 0 or (words is not None and most >= words):
        raise DataError(f"batch {number} has tokens from {least} to {most}; the model knows 0 to {(words or 1) - 1}.")
    return given


def _example_of(tokens: list[dict[str, Any]]) -> Batch:
    """A few tokens on which the graph is traced and what is written is compared."""
    windows, length = EXAMPLE
    ids = tokens[0][TOKENS] if tokens else torch.arange(length)[None]
    few = ids[:windows, :length].clone()
    return Batch({TOKENS: few}, len(few))
