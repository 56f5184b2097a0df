"""The work on one layer after another: load, plan, cut or mask, refit, write, load again, compare, run on, let go."""

import copy
import gc
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import takewhile
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from nervure.core.files import contents, file_errors, is_there, remove, write_json
from nervure.core.inputs import Inputs
from nervure.core.lazy_tensors import LazyTensors
from nervure.core.progress import track
from nervure.errors import VerificationError
from nervure.export.checking import difference
from nervure.export.config_fit import ConfigTrial
from nervure.export.pretrained import LOADED, cache_said_by, copy_beside, first_output, settle_folder
from nervure.graph.models import evaluating
from nervure.graph.modes import disable_compile
from nervure.graph.types import Graph
from nervure.plan import Drop, Keep, Plan
from nervure.prune import Pruned, trace_to_prune
from nervure.refit import LayerFit, Refit
from nervure.refit.activations import watchable
from nervure.refit.fit import refit_on_parts
from nervure.refit.gather import GramPart
from nervure.refit.replay import Replay
from nervure.refit.split import require_different, split
from nervure.stats.loaders import Batch, batches
from nervure.streaming.hollow_model import HollowModel, Interned, build_shell, names_in_files
from nervure.streaming.layer_plans import LayerPlans, plan_of_layers
from nervure.streaming.layers_ahead import LayersAhead
from nervure.streaming.sharded_weights import LARGE, ShardedWeights, write_index, write_shard
from nervure.streaming.stored_streams import (
    DENSE,
    SMALL,
    STREAM_TASK,
    LayerAlone,
    Streams,
    begin_streams,
    read_stream,
    write_stream,
)
from nervure.streaming.streamed_run import PLAN, StreamedLayer, StreamedRun
from nervure.surgery.drop import Pass, name_after

Sides = Mapping[str, LayerAlone]


@final
@dataclass(frozen=True, eq=False)
class LayerByLayer:
    """A model, what becomes of its layers, and where it is written.

    Attributes:
        model: the dense model.
        graph: of all of it.
        plans: what becomes of each layer.
        fitted: the config of the smaller model, and what it builds.
        run: the folder of the run.
        how: the refit; None: there is none.
        seed: for measuring.
    """

    model: HollowModel
    graph: Graph
    plans: LayerPlans
    fitted: ConfigTrial
    run: StreamedRun
    how: Refit | None
    seed: int
    streams: dict[str, Streams] = field(default_factory=dict)
    held: list[bool] = field(default_factory=list)

    def done(self) -> list[StreamedLayer]:
        """The layers that are done."""
        return self.run.done(len(self.model.layers))

    def prepare(self, scored: Sequence[Any], fitted: Sequence[Any]) -> None:
        """Find what enters the first layer, and how layers are called, on all data.

        Args:
            scored: batches that the method looks at; none: it looks at none.
            fitted: batches that the refit looks at; none: there is no refit.
        """
        interned = Interned()
        kinds: dict[str, tuple[list[Batch], tuple[str, ...]]] = {"example": ([self.model.example], (DENSE, SMALL))}
        if scored:
            whole = sum(len(raw["input_ids"]) for raw in scored)
            kinds["scored"] = ([*batches(scored, whole, labelled=False)], (DENSE,))
        if fitted and self.how is not None:
            parts = split(fitted, self.how.samples, seed=self.how.seed)
            require_different(parts)
            self.held[:] = [part.held for part in parts]
            kinds["fitted"] = ([part.batch for part in parts], (DENSE, SMALL))
        with self.model.filled():
            for kind, (each, sides) in kinds.items():
                sizes = [batch.size for batch in each]
                found = Streams(self.run.streams / kind, sides, [], sizes, self.model.device)
                begin_streams(self.model, found, each, interned, is_new=not self.done())
                self.streams[kind] = found

    def go(self, progress: bool, tell: Callable[[StreamedLayer], None] | None) -> None:
        """Do all layers that are not done."""
        self._write_outside()
        count, first = len(self.model.layers), len(self.done())
        with LayersAhead(self.model) as layers:
            for number in track(range(first, count), "pruning layers", count - first, enabled=progress):
                done = self._layer(number, layers)
                self.run.record(number, done)
                for streams in self.streams.values():
                    remove(streams.path(number, DENSE, 0).parent)
                gc.collect()
                if tell is not None:
                    tell(done)

    def finish(self, source: Path, target: Path) -> None:
        """Write what else belongs to the folder, compare it with the model, and move it to its place.

        Raises:
            VerificationError: it lacks tensors, has some of another size, or computes something else.
        """
        self._require_whole()
        draft, shards = self.run.draft, [self._shard(number) for number in range(self._shards)]
        for name in {*contents(draft)}.difference(shards):
            # It may have been written in part.
            remove(draft / name)
        written = copy.deepcopy(self.fitted.changed)
        for key, value in cache_said_by(source).items():
            setattr(written, key, value)
        written.save_pretrained(draft)
        copy_beside(source, draft)
        self._compare_ends(write_index(draft, shards))
        edits = [edit for layer in self.done() for edit in layer.edits]
        write_json(self.run.folder / PLAN, plan_of_layers(edits, self.plans.outline, self.graph).to_json())
        settle_folder(draft, target, self.run.folder / "before")

    def _require_whole(self) -> None:
        """Raise VerificationError where a shard is no longer what was written when its layer was done."""
        for layer in self.done():
            if layer.name in self._dropped:
                continue
            path = self.run.draft / self._shard_of(layer.name)
            if not is_there(path) or digest_of(path) != layer.digest:
                raise VerificationError(
                    f"{str(path)!r} was damaged or removed since layer {layer.name!r} was done. Begin anew: fresh=True "
                    "(--fresh)."
                )

    # -- a layer ---------------------------------------------------------------------------------------------------

    def _layer(self, number: int, layers: LayersAhead) -> StreamedLayer:
        began, name = time.perf_counter(), self.model.layers[number]
        dense = LayerAlone(name, layers.layer(number))
        if name in self._dropped:
            self._advance(number, {DENSE: dense, SMALL: LayerAlone(name, Pass(), SMALL)})
            before, gone = sum(p.numel() for p in dense.parameters()), Plan((self._dropped[name],)).to_json()
            return StreamedLayer(name, before, 0, None, 0.0, (), gone, time.perf_counter() - began)
        small, plan, verification, fits = self._make(number, dense)
        shard = self._shard_of(name)
        state = small.layer.state_dict().items()
        files = self._again.aliases
        write_shard(self.run.draft / shard, {files[f"{self._renamed[name]}.{key}"]: tensor for key, tensor in state})
        apart = self._compare(number, small, shard)
        self._advance(number, {DENSE: dense, SMALL: small})
        before, after = (sum(p.numel() for p in one.parameters()) for one in (dense, small))
        digest, seconds = digest_of(self.run.draft / shard), time.perf_counter() - began
        return StreamedLayer(name, before, after, verification, apart, fits, plan.to_json(), seconds, digest)

    def _make(self, number: int, dense: LayerAlone) -> tuple[LayerAlone, Plan, float | None, tuple[LayerFit, ...]]:
        """A layer that stays as it is to be; what was done, how it was verified and fitted."""
        if self._is_left_alone(number):
            return LayerAlone(dense.place, dense.layer, SMALL), Plan(), None, ()
        ahead = self._run_ahead(number, dense)
        pruned, fits = self._refit(number, dense, self._prune(number, dense), ahead)
        return _layer_in(pruned), pruned.plan, pruned.verification, fits

    def _is_left_alone(self, number: int) -> bool:
        """Whether a layer stays as it is: none before it is edited, and none leaves behind it."""
        names = self.model.layers
        behind = names[number + 1 : number + 2]
        return not any(map(self.plans.edits, names[: number + 1])) and self._dropped.keys().isdisjoint(behind)

    def _prune(self, number: int, dense: LayerAlone) -> Pruned:
        (example,) = self.streams["example"].batches(number)
        scored = self.streams["scored"].batches(number) if "scored" in self.streams else []
        traced = trace_to_prune(
            dense,
            Inputs((), example.raw.load(DENSE)),
            data=[batch.raw for batch in scored] or None,
            task=STREAM_TASK,
            chosen={"ignore": (), "only": None},
            seed=self.seed,
        )
        pruned = self.plans.prune(traced, self.model.layers[number])
        _layer_in(pruned).side = SMALL
        packed = {name: Keep.of(mask) for name, mask in pruned.masks.items()}
        return replace(pruned, masks=LazyTensors(packed, lambda name: packed[name].tensor()))

    def _run_ahead(self, number: int, dense: LayerAlone) -> int:
        """Run the dense network through the layers behind that leave: this one takes over what they did.

        Returns:
            The number of the layer whose stream it is fitted to give.
        """
        names = self.model.layers[number + 1 :]
        leaving = [*takewhile(self._dropped.__contains__, names)]
        if leaving and self.how is not None:
            _run_watched(dense, self.streams["fitted"], number, DENSE)
            for place, name in enumerate(leaving, number + 1):
                _run_watched(LayerAlone(name, self.model.layer(place)), self.streams["fitted"], place, DENSE)
        return number + 1 + len(leaving)

    def _refit(self, number: int, dense: LayerAlone, pruned: Pruned, ahead: int) -> tuple[Pruned, tuple[LayerFit, ...]]:
        if self.how is None:
            return pruned, ()
        streams = self.streams["fitted"]
        parts = [
            GramPart(batch, held, ahead=partial(read_stream, streams.path(ahead, DENSE, place), streams.device))
            if ahead > number + 1
            else GramPart(batch, held)
            for place, (batch, held) in enumerate(zip(streams.batches(number), self.held, strict=True))
        ]
        found = refit_on_parts(pruned, dense, parts, self.how)
        return found.result, found.layers

    def _advance(self, number: int, models: Sides) -> None:
        """Run a layer of both networks on what enters it, and keep what the next one is given."""
        is_last = number + 1 == len(self.model.layers)
        for kind, streams in self.streams.items():
            # Kernels are those that a refit in memory runs, or a measurement.
            run = _run_watched if kind == "fitted" else _run_plain
            for side in streams.sides if kind == "example" or not is_last else ():
                run(models[side], streams, number, side)

    # -- what is written -------------------------------------------------------------------------------------------

    @cached_property
    def _outside(self) -> list[list[str]]:
        """Tensors outside of layers, those of each file: large ones have a file of their own."""
        dtype = torch.empty((), dtype=self.model.dtype).element_size()
        found: list[list[str]] = [[]]
        for name in self.model.outside():
            shape = self.model.weights.shapes[name]
            if torch.Size(shape).numel() * dtype >= LARGE:
                found.append([name])
            else:
                found[0].append(name)
        return [names for names in found if names]

    @property
    def _shards(self) -> int:
        return len(self._outside) + len(self._renamed)

    def _shard(self, number: int) -> str:
        return f"model-{number + 1:05}-of-{self._shards:05}.safetensors"

    def _shard_of(self, layer: str) -> str:
        return self._shard(len(self._outside) + self._number_after(layer))

    def _number_after(self, layer: str) -> int:
        """The place of a layer among those that stay."""
        return [*self._renamed].index(layer)

    @cached_property
    def _dropped(self) -> dict[str, Drop]:
        """The layers that leave, by name."""
        return {drop.block: drop for drop in self.plans.outline.drops}

    @cached_property
    def _renamed(self) -> dict[str, str]:
        """What the layers that stay are called in the smaller model."""
        renamed = name_after(self.graph, self.plans.outline)
        return {name: new for name in self.model.layers if (new := renamed(name)) is not None}

    def _write_outside(self) -> None:
        for number, names in enumerate(self._outside):
            path = self.run.draft / self._shard(number)
            if not path.exists():
                write_shard(path, self.model.weights.tensors(names, self.model.dtype))

    @cached_property
    def _again(self) -> HollowModel:
        """What transformers builds from the new config."""
        stock, dense = self.fitted.stock, self.model
        assert stock is not None
        shell, none = build_shell(type(stock), self.fitted.changed), ShardedWeights(self.run.draft, {}, {})
        renamed = name_after(self.graph, self.plans.outline)
        aliases = {new: renamed(file) or file for name, file in dense.aliases.items() if (new := renamed(name))}
        layers = (*self._renamed.values(),)
        return HollowModel(stock, shell, layers, none, aliases, dense.dtype, dense.example, dense.device)

    def _compare(self, number: int, small: LayerAlone, shard: str) -> float:
        """Load a layer again as transformers builds it, and say how far it is from the one that was written."""
        weights = ShardedWeights.of_file(self.run.draft / shard)
        try:
            loaded = self._again.with_weights(weights).layer(self._number_after(small.place))
        except (RuntimeError, KeyError) as error:
            raise VerificationError(
                f"{shard}, loaded again, does not fit {small.place!r} as the new config builds it: {error}."
            ) from error
        again = LayerAlone(small.place, loaded, SMALL)
        (example,) = self.streams["example"].batches(number)
        with evaluating(small), evaluating(again):
            return _require_alike(
                example.feed(small), example.feed(again), f"{small.place!r}, loaded again from {shard}"
            )

    def _compare_calls(self, again: HollowModel) -> None:
        """The layers that stay are called as they were before others left; raises VerificationError."""
        calls, (before, *_) = again.calls(self.model.example)[1], self.streams["example"].calls
        kept = [call for name, call in zip(self.model.layers, before, strict=True) if name in self._renamed]
        for name, old, new in zip(again.layers, kept, calls, strict=True):
            other = [key for key in old.keys() | new.keys() if not _is_alike(old.get(key), new.get(key))]
            if other:
                raise VerificationError(
                    f"transformers gives {name!r} another {sorted(other)[0]!r} once layers before it have left: the "
                    "config says by number what layers do. Drop others, or prune the model in memory."
                )

    def _compare_ends(self, weights: ShardedWeights) -> None:
        """All tensors are there, and no others; behind the layers, the logits are those of the dense head."""
        again = self._again
        aliases = names_in_files(again.whole, weights)
        if extra := sorted(weights.files.keys() - {*aliases.values()}):
            raise VerificationError(f"the folder holds {len(extra)} tensors that its model lacks, first {extra[0]!r}.")
        if self._dropped:
            self._compare_calls(again.with_weights(weights))
        stream = read_stream(self.streams["example"].path(len(self.model.layers), SMALL, 0))
        expected = first_output(self.model.answer(self.model.example, stream))
        found = first_output(again.with_weights(weights).answer(self.model.example, stream))
        _require_alike(expected, found, "what is behind the layers, loaded again,")


def _is_alike(one: Any, other: Any) -> bool:
    """Whether layers are given the same."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(_is_alike, one, other))
    return type(one) is type(other) and (isinstance(one, Tensor) or one == other)


def _layer_in(pruned: Pruned) -> LayerAlone:
    assert isinstance(pruned.model, LayerAlone)
    return pruned.model


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with file_errors(path, "read"), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _run_plain(model: LayerAlone, streams: Streams, number: int, side: str) -> None:
    with evaluating(model), disable_compile():
        for place, batch in _to_run(streams, number, side):
            write_stream(streams.path(number + 1, side, place), batch.feed(model))


def _run_watched(model: LayerAlone, streams: Streams, number: int, side: str) -> None:
    replay = Replay(model)
    with watchable(model) as watch:
        for place, batch in _to_run(streams, number, side):
            write_stream(streams.path(number + 1, side, place), replay.run(place, batch))
            watch.put_back()


def _to_run(streams: Streams, number: int, side: str) -> list[tuple[int, Batch]]:
    """The batches that a layer has to run on: the dense network may have been there already."""
    each = enumerate(streams.batches(number))
    return [(place, b) for place, b in each if side == SMALL or not streams.path(number + 1, side, place).exists()]


def _require_alike(expected: Any, found: Any, what: str) -> float:
    apart = difference(expected, found)
    if not apart <= LOADED:
        raise VerificationError(
            f"{what} computes something else: largest difference {apart:.1e} of its largest output."
        )
    return apart
