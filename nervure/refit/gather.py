"""One pass over the data: what enters the consumers of a level, and what they say wrong."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias, final

import torch
from torch import Tensor

from nervure.core.collectives import merge_words, several
from nervure.graph.models import device_of
from nervure.graph.ops.table import family
from nervure.graph.products import Operand
from nervure.graph.tape import Entry, WriteBack
from nervure.refit.activations import Enough, Watcher, watchable
from nervure.refit.batch_norms import Entered
from nervure.refit.consumers import Consumer
from nervure.refit.merging import merge_entered, merge_moments
from nervure.refit.moments import InputSums, Moments
from nervure.refit.operators import choose_positions, entering, leaving
from nervure.refit.origins import Origin
from nervure.refit.replay import Replay
from nervure.refit.streams import RUNNING_MEAN, Follower, Join, Key
from nervure.stats.loaders import Batch


@final
@dataclass(frozen=True, slots=True, eq=False)
class GramPart:
    """Samples that are run together.

    Attributes:
        batch: the samples.
        held: whether they are left out of fits.
        view: 0 for the data, 1 for data of another kind.
        ahead: reads what streams that end in these networks are to be; None: what the dense one makes of them.
    """

    batch: Batch
    held: bool
    view: int = 0
    ahead: Callable[[], Tensor] | None = None


@final
@dataclass(slots=True, eq=False)
class Gathered:
    """What one pass gave.

    Attributes:
        seen: for each consumer (by its place) the moments over the samples to fit on.
        held: for each consumer those over the samples left out, view by view.
        was, now: for each norm (by its running mean) what enters it in the dense network and in the smaller one.
        reasons: consumers that could not be read after all, and why.
    """

    seen: dict[int, Moments] = field(default_factory=dict)
    held: dict[int, dict[int, Moments]] = field(default_factory=dict)
    was: dict[str, Entered] = field(default_factory=dict)
    now: dict[str, Entered] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)


def gather(
    networks: tuple[Replay, Replay],
    moments: tuple[int, int],
    parts: Sequence[GramPart],
    wanted: Sequence[Consumer],
    norms: Iterable[str],
    came: Mapping[str, Origin],
    between: Mapping[int, Tensor],
    streams: Mapping[int, Key | None],
    *,
    positions: int,
    seed: int,
) -> Gathered:
    """Run both networks on all samples, each as far as it takes.

    Args:
        networks: the smaller one and the dense one, each with what of it is done.
        moments: from where on both run, see :meth:`Replay.advance`.
        parts: the samples.
        wanted: consumers of one level.
        norms: running means of norms of this level.
        came: where the tensors of the smaller network come from.
        between: for consumers whose bias is added behind them, by how much the dense network's is larger.
        streams: consumers that are fitted to the stream they are added to, each with the use that the dense network
            adds to it next.
        positions: how many places of a convolution are looked at in each sample, at most.
        seed: for choosing these.
    """
    found, norms = Gathered(), list(norms)
    model, reference = networks
    with watchable(model.model) as watch, watchable(reference.model) as watch_dense:
        for replay, moment, watching in zip(networks, moments, (watch, watch_dense), strict=True):
            replay.advance(watching, moment, [part.batch for part in parts])
        for number, part in enumerate(parts):
            dice = _Dice(seed, number, positions)
            dense = _Pass(_dense_wants(wanted, streams), {came[name].tensor: name for name in norms}, dice)
            reference.watch(watch_dense, number, part.batch, dense.see)
            if part.ahead is not None:
                dense.replace_ends(part.ahead)
            mine = _Pass(_wants(wanted, streams), {name: name for name in norms}, dice, reads=True)
            model.watch(watch, number, part.batch, mine.see)
            _add(found, part, wanted, dense, mine, between)
            if not part.held and not part.view:
                _add_norms(found, dense, mine, came)
    return _of_all(found, device_of(model.model)) if several() else found


def _of_all(found: Gathered, device: torch.device) -> Gathered:
    """What all processes gathered, each on its share of the samples."""
    mine = {f"fit {place}": moments for place, moments in found.seen.items()}
    mine |= {f"{view} {place}": moments for place, views in found.held.items() for view, moments in views.items()}
    reasons = merge_words({str(place): reason for place, reason in found.reasons.items()})
    whole = Gathered(reasons={int(place): reason for place, reason in reasons.items()})
    for name, moments in merge_moments(mine, device).items():
        kind, place = name.split()
        if kind == "fit":
            whole.seen[int(place)] = moments
        else:
            whole.held.setdefault(int(place), {})[int(kind)] = moments
    whole.was, whole.now = merge_entered(found.was), merge_entered(found.now)
    return whole


At: TypeAlias = tuple[int, int]
"""The place of a consumer among those that are wanted, and of one of its uses."""


@final
@dataclass(frozen=True, slots=True)
class _Wants:
    """What is to be kept: what products give, streams once they were added to, streams before something is added."""

    products: Mapping[Key, At]
    given: frozenset[At]
    after: Mapping[Key, At]
    before: Mapping[Key, At]


def _wants(wanted: Sequence[Consumer], streams: Mapping[int, Key | None]) -> _Wants:
    products = {r.key: (place, n) for place, c in enumerate(wanted) for n, r in enumerate(c.readings)}
    after = {wanted[place].readings[0].key: (place, 0) for place in streams}
    return _Wants(products, frozenset(products.values()) - {*after.values()}, after, {})


def _dense_wants(wanted: Sequence[Consumer], streams: Mapping[int, Key | None]) -> _Wants:
    """A stream of the dense network counts where the next use that the smaller one has is added, or at its end."""
    products = {r.key: (place, n) for place, c in enumerate(wanted) for n, r in enumerate(c.partners)}
    partners = {place: wanted[place].partners[0] for place, key in streams.items() if key is None}
    after = {partner.last or partner.key: (place, 0) for place, partner in partners.items()}
    before = {key: (place, 0) for place, key in streams.items() if key is not None}
    return _Wants(products, frozenset(products.values()) - {*after.values(), *before.values()}, after, before)


@final
@dataclass(frozen=True, slots=True)
class _Dice:
    """Chooses places of convolutions, the same in both networks."""

    seed: int
    part: int
    positions: int

    def choose(self, at: tuple[int, int], entry: Entry, out: Tensor) -> Tensor | None:
        generator = torch.Generator().manual_seed(hash((self.seed, self.part, *at)) % 2**63)
        return choose_positions(entry, out, self.positions, generator)


@final
class _Pass:
    """Keeps what enters (where ``reads``) and leaves the wanted uses of parameters in one run."""

    def __init__(self, wants: _Wants, norms: Mapping[str, str], dice: _Dice, reads: bool = False) -> None:
        self.x: dict[At, Tensor] = {}
        self.y: dict[At, Tensor] = {}
        self.norms: dict[str, Tensor] = {}
        self._wants, self._named, self._dice, self._reads = wants, norms, dice, reads
        self._laid: dict[At, Callable[[Tensor], Tensor]] = {}
        self._follower: Follower | None = None

    def see(
        self, watcher: Watcher, entry: Entry | WriteBack, uses: Sequence[Operand], args: tuple[Any, ...], out: Any
    ) -> None:
        """One operator."""
        if isinstance(entry, WriteBack):
            return
        self._follower = self._follower or Follower(watcher.tape.shape)
        for key, use in self._follower.products(entry, uses):
            if (at := self._wants.products.get(key)) is not None:
                self._keep(at, use, entry, args, out)
        self._join(self._follower.step(entry), args, out)
        if family(entry.name) == "batch norm":
            name = watcher.tape.named.get(getattr(entry.args[RUNNING_MEAN], "id", -1), "")
            if name in self._named:
                self.norms[self._named[name]] = args[0].detach().clone()
        if len(self.y) == len(self._wants.products) and len(self.norms) == len(self._named):
            raise Enough

    def replace_ends(self, ahead: Callable[[], Tensor]) -> None:
        """Streams that nothing is added to count as they are farther ahead."""
        for at in self._wants.after.values():
            if at in self._laid:
                self.y[at] = self._laid[at](ahead())

    def _keep(self, at: At, use: Operand, entry: Entry, args: tuple[Any, ...], out: Tensor) -> None:
        index, shape = self._dice.choose(at, entry, out), out.shape
        self._laid[at] = lambda value: leaving(use, entry, value.reshape(shape), index).clone()
        if at in self._wants.given:
            self.y[at] = self._laid[at](out)
        if self._reads:
            self.x[at] = entering(use, entry, args, index).clone()

    def _join(self, joins: Iterable[Join], args: tuple[Any, ...], out: Tensor) -> None:
        for join in joins:
            if (at := self._wants.after.get(join.key)) is not None:
                self.y[at] = self._laid[at](out)
            if (at := self._wants.before.get(join.key)) is not None:
                self.y[at] = self._laid[at](join.value_before(args, out))


def _add(
    found: Gathered,
    part: GramPart,
    wanted: Sequence[Consumer],
    dense: _Pass,
    mine: _Pass,
    between: Mapping[int, Tensor],
) -> None:
    rows = list(_read(found, part, wanted, dense, mine, between))
    stores = [found.held.setdefault(row.place, {}) if part.held else found.seen for row in rows]
    keys = [part.view if part.held else row.place for row in rows]
    given = [(store[key], row.x) for store, key, row in zip(stores, keys, rows, strict=True) if key in store]
    _leave_out(found, [moments for moments, _ in given])
    _part_company(given)
    fresh: list[tuple[Tensor, InputSums]] = []
    for store, key, row in zip(stores, keys, rows, strict=True):
        if key not in store:
            shared = next((sums for x, sums in fresh if row.is_once and _begins_with(sums, x, row.x)), None)
            store[key] = Moments(len(row.x), row.x.shape[2], row.wrong.shape[2], row.x.device, shared)
        inputs = store[key].inputs
        is_new = not row.is_once or all(sums is not inputs for _, sums in fresh)
        store[key].add(row.x, row.wrong, row.said, with_inputs=is_new)
        if is_new and row.is_once:
            fresh.append((row.x, inputs))


class _Row(NamedTuple):
    """What one use of a consumer was given, said wrong, and should say; ``is_once``: it is the only use."""

    place: int
    x: Tensor
    wrong: Tensor
    said: Tensor
    is_once: bool


def _read(
    found: Gathered,
    part: GramPart,
    wanted: Sequence[Consumer],
    dense: _Pass,
    mine: _Pass,
    between: Mapping[int, Tensor],
) -> Iterator[_Row]:
    for at, given in mine.y.items():
        consumer = wanted[at[0]]
        x, y, said = mine.x[at], given, _match(consumer, dense.y.get(at), given)
        if said is None:
            found.reasons[at[0]] = "the dense network reads at other positions"
            continue
        if consumer.shape[0] < len(x):
            x, y, said = (t.reshape(1, -1, t.shape[-1]) for t in (x, y, said))
        wrong = said - y + between.get(at[0], y.new_zeros(())).to(y)
        yield _Row(at[0], x, wrong, said, len(consumer.readings) == 1)


def _begins_with(sums: InputSums, theirs: Tensor, mine: Tensor) -> bool:
    """Whether sums hold these positions and no others."""
    return sums.count == mine.shape[1] and theirs.shape == mine.shape and torch.equal(theirs, mine)


def _leave_out(found: Gathered, given: Sequence[Moments]) -> None:
    """Consumers that do not run this time keep the sums that they had, where others go on with the same."""
    running, going_on = set(map(id, given)), {id(moments.inputs) for moments in given}
    every = [*found.seen.values(), *(moments for views in found.held.values() for moments in views.values())]
    for moments in every:
        if id(moments) not in running and id(moments.inputs) in going_on:
            moments.part_company()


def _part_company(given: Iterable[tuple[Moments, Tensor]]) -> None:
    """Consumers that read the same input so far, and now do not, go on with sums of their own."""
    first: dict[int, Tensor] = {}
    for moments, x in given:
        other = first.setdefault(id(moments.inputs), x)
        if other is not x and not (other.shape == x.shape and torch.equal(other, x)):
            moments.part_company()


def _match(consumer: Consumer, said: Tensor | None, y: Tensor) -> Tensor | None:
    """What the dense network says at the outputs that are left, shaped as what the smaller one says."""
    if said is None:
        return None
    rows = consumer.rows.to(said.device)
    is_repeated = consumer.shape[0] < len(y)
    found = said[:, :, rows[0]] if is_repeated else said.transpose(0, 1).flatten(1)[:, rows].transpose(0, 1)
    return found.to(y) if found.shape == y.shape else None


def _add_norms(found: Gathered, dense: _Pass, mine: _Pass, came: Mapping[str, Origin]) -> None:
    for name, x in dense.norms.items():
        left = torch.from_numpy(came[name].positions[0]).to(x.device)
        found.was.setdefault(name, Entered()).add(x[:, left])
    for name, x in mine.norms.items():
        found.now.setdefault(name, Entered()).add(x)
