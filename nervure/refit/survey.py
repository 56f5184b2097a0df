"""Who reads what, in running order: the consumers of a model, and after how many others each can be fitted."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from torch import Tensor, nn

from nervure.graph.ops.table import family
from nervure.graph.products import Operand
from nervure.graph.tape import Entry, Ref, WriteBack, named_tensors, refs_in
from nervure.refit.activations import Watcher, watchable
from nervure.refit.batch_norms import NormTensors
from nervure.refit.operators import BIAS, is_read
from nervure.refit.streams import RUNNING_VAR, Follower, Join, Key
from nervure.stats.loaders import Batch

ZEROS = frozenset(("new_zeros", "zeros", "zeros_like"))


@final
@dataclass(frozen=True, slots=True)
class Bias:
    """A piece of a parameter with one axis that is added to what a product says; ``inside``: by its own operator."""

    tensor: str
    start: int
    size: int
    inside: bool

    @property
    def piece(self) -> slice:
        """Where in the parameter it lies."""
        return slice(self.start, self.start + self.size)


@final
@dataclass(slots=True)
class LayerReading:
    """One use of a parameter.

    Attributes:
        key: which.
        order: how many uses of parameters were before it.
        use: how it came to the operator.
        level: how many consumers are before it.
        bias: what is added to what it gives.
        norm: the running mean of the batch norm that reads what it gives.
        is_alone: whether nothing else reads that.
        joins: whether what it gives is added to a stream that only consumers before it have written to, through the
            batch norm that reads it where there is one.
        follower: the use that is added to this stream next; None: there is none.
        last: the use that is added to this stream last, itself perhaps.
        reason: why it cannot be fitted; empty where it can.
    """

    key: Key
    order: int
    use: Operand
    level: int
    bias: Bias | None = None
    norm: str = ""
    is_alone: bool = False
    joins: bool = False
    follower: Key | None = None
    last: Key | None = None
    reason: str = ""


@final
@dataclass(slots=True)
class Survey:
    """What was seen in one run.

    Attributes:
        readings: the uses of parameters, in running order.
        norms: running means of the batch norms that no product feeds directly, and their levels.
        statistics: the tensors that go with each running mean.
        looked_up: parameters that are tables as well.
    """

    readings: list[LayerReading] = field(default_factory=list)
    norms: dict[str, int] = field(default_factory=dict)
    statistics: dict[str, NormTensors] = field(default_factory=dict)
    looked_up: set[str] = field(default_factory=set)

    @property
    def uses(self) -> Counter[str]:
        """How often each parameter is used."""
        return Counter(reading.key[0] for reading in self.readings)


def survey(model: nn.Module, batch: Batch) -> Survey:
    """Run a model once, and write down who reads what."""
    surveyor = _Surveyor(model)
    with watchable(model) as watch:
        watch(batch, surveyor.see)
    return surveyor.finish()


@final
class _Surveyor:
    """Follows levels: what a consumer gives is one above what it is given; everything else, as high as what it is of.

    A parameter that is used again stays where it was first used.
    """

    def __init__(self, model: nn.Module) -> None:
        self.found = Survey()
        self._memory = _TensorNames(model)
        self._levels: dict[int, int] = {}
        self._first: dict[str, int] = {}
        self._made: dict[int, LayerReading] = {}
        """Products by what they gave, behind views as well."""
        self._direct: dict[int, LayerReading] = {}
        self._said: dict[Key, Sequence[int]] = {}
        self._readers: Counter[int] = Counter()
        self._runs: Counter[str] = Counter()
        self._follower: Follower | None = None
        self._streams: dict[int, LayerReading] = {}
        """Who wrote last to a stream, by the value that it has then."""
        self._normed: dict[Key, bool] = {}
        self._computed: set[str] = set()
        self._zeros: set[int] = set()

    def see(
        self, watcher: Watcher, entry: Entry | WriteBack, uses: Sequence[Operand], args: tuple[Any, ...], out: Any
    ) -> None:
        """One operator."""
        if isinstance(entry, WriteBack):
            self._levels[entry.out.id] = max(self._level(entry.base), self._level(entry.value))
            return
        given = list(refs_in((entry.args, tuple(entry.kwargs.values()))))
        level = max((self._level(ref) for ref in given), default=0)
        self._readers.update(ref.id for ref in given)
        live = [use for use in uses if use.is_live]
        for use in live:
            level = max(level, self._read(entry, use, args, out.shape) + 1)
            self._follow(watcher).product(entry, self.found.readings[-1].key)
        if family(entry.name) == "batch norm":
            level = self._norm(watcher, entry, level)
        if family(entry.name) == "look-up" and isinstance(entry.args[0], Ref):
            self.found.looked_up |= {t.parameter for t in watcher.provenance.trails.get(entry.args[0].id, ())}
        self._bias_after(entry, args)
        for join in self._follow(watcher).step(entry):
            self._join(join)
        self._pass_dropped(entry)
        for ref in entry.outs:
            self._levels[ref.id] = level

    def finish(self) -> Survey:
        """What was seen. A norm that runs more than once has no single statistics, and is left out."""
        for source, reading in self._direct.items():
            reading.is_alone = self._readers[source] == 1
            reading.norm = "" if self._runs[reading.norm] > 1 else reading.norm
            is_affine = bool(reading.norm) and reading.is_alone and reading.norm not in self._computed
            if reading.joins:
                reading.joins = is_affine if self._normed[reading.key] else not reading.norm
        self.found.norms = {name: level for name, level in self.found.norms.items() if self._runs[name] == 1}
        lasts = dict[Key, Key]()
        for reading in reversed(self.found.readings):
            follower = reading.follower
            reading.last = lasts[reading.key] = reading.key if follower is None else lasts.get(follower, follower)
        return self.found

    def _follow(self, watcher: Watcher) -> Follower:
        if self._follower is None:
            self._follower = Follower(watcher.tape.shape)
        return self._follower

    def _join(self, join: Join) -> None:
        reading = next(r for r in reversed(self.found.readings) if r.key == join.key)
        reading.joins = self._level(join.before) <= reading.level
        self._normed[join.key] = join.is_normed
        if join.before.id in self._streams:
            self._streams[join.before.id].follower = join.key
        self._streams[join.entry.outs[0].id] = reading

    def _pass_dropped(self, entry: Entry) -> None:
        """What was dropped gives zeros: a stream that these are added to stays what it was."""
        if entry.name in ZEROS:
            self._zeros |= {ref.id for ref in entry.outs}
        elif family(entry.name) == "add" and all(isinstance(ref, Ref) for ref in entry.args):
            ids = {ref.id for ref in entry.args}
            if len(ids & self._zeros) == 1 and (written := ids & self._streams.keys()):
                self._streams[entry.outs[0].id] = self._streams[written.pop()]

    def _level(self, ref: Ref) -> int:
        return self._levels.get(ref.id, 0)

    def _read(self, entry: Entry, use: Operand, args: tuple[Any, ...], shape: Sequence[int]) -> int:
        name = use.trail.parameter
        level = self._first.setdefault(name, self._level(entry.args[use.other]))
        reading = LayerReading((name, self.found.uses[name]), len(self.found.readings), use, level)
        if use.trail.is_computed:
            reading.reason = "what multiplies is computed from it"
        elif not is_read(use, entry, args):
            reading.reason = f"what {entry.name} makes of it is not read position by position"
        place = BIAS.get(entry.name)
        if place is not None and place < len(args) and isinstance(args[place], Tensor):
            reading.bias = self._memory.locate(args[place], inside=True)
        self.found.readings.append(reading)
        self._said[reading.key] = shape
        self._made[entry.outs[0].id] = self._direct[entry.outs[0].id] = reading
        return level

    def _bias_after(self, entry: Entry, args: tuple[Any, ...]) -> None:
        """A bias may be added by an operator of its own, behind a product."""
        first = entry.args[0] if entry.args else None
        reading = self._made.get(first.id) if isinstance(first, Ref) else None
        if reading is None or BIAS.get(entry.name) is not None:
            return
        if family(entry.name) == "view" and len(entry.outs) == 1:
            self._made[entry.outs[0].id] = reading
        elif family(entry.name) == "add" and reading.bias is None and _is_bias(args, self._said[reading.key]):
            reading.bias = self._memory.locate(args[1], inside=False)

    def _norm(self, watcher: Watcher, entry: Entry, level: int) -> int:
        names = [watcher.tape.named.get(getattr(arg, "id", -1), "") for arg in entry.args[1 : RUNNING_VAR + 1]]
        weight, bias, mean, var = names
        if not mean or not var:
            return level
        eps = next(arg for arg in reversed(entry.args) if isinstance(arg, float))
        self.found.statistics[mean] = NormTensors(mean, var, weight, bias, eps)
        # What is computed (and so has no name) may be anything.
        if any(isinstance(arg, Ref) and not name for arg, name in zip(entry.args[1:3], names, strict=False)):
            self._computed.add(mean)
        self._runs[mean] += 1
        maker = self._direct.get(entry.args[0].id)
        if maker is not None and not maker.norm:
            maker.norm = mean
            return level
        self.found.norms[mean] = level
        return level + 1


def _is_bias(args: tuple[Any, ...], said: Sequence[int]) -> bool:
    """Whether a vector is added along the last axis, with an entry for each output.

    Args:
        args: what is added.
        said: the shape of what the product gave, before any view of it.
    """
    if not (isinstance(args[1], Tensor) and args[1].ndim == 1 and args[1].shape[0] == args[0].shape[-1]):
        return False
    return len(args[1]) in said[1:] or len(args[1]) % max(said[-1], 1) == 0


@final
class _TensorNames:
    """Finds the parameter with one axis that a vector lies in."""

    def __init__(self, model: nn.Module) -> None:
        self._vectors: Mapping[int, list[tuple[str, Tensor]]] = {}
        found: dict[int, list[tuple[str, Tensor]]] = {}
        for name, tensor in named_tensors(model).items():
            if isinstance(tensor, nn.Parameter) and tensor.ndim == 1 and tensor.is_contiguous():
                found.setdefault(tensor.untyped_storage()._cdata, []).append((name, tensor))
        self._vectors = found

    def locate(self, vector: Tensor, *, inside: bool) -> Bias | None:
        """Which piece of which parameter a vector is; None where it is none."""
        if vector.ndim != 1 or (len(vector) > 1 and vector.stride(0) != 1):
            return None
        for name, tensor in self._vectors.get(vector.untyped_storage()._cdata, ()):
            start = vector.storage_offset() - tensor.storage_offset()
            if start >= 0 and start + len(vector) <= len(tensor) and vector.dtype == tensor.dtype:
                return Bias(name, int(start), len(vector), inside)
        return None
