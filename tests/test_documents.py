"""Documents: what is damaged is told, what is hostile is refused before it takes memory, what is whole comes back."""

import json
import math
import random
import tomllib
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import torch
from torch import nn

from nervure import Cut, Drop, Graph, Keep, Link, Mask, Plan, Recipe, Report, Study, apply, trace
from nervure.budget.latency_table import LatencyTable, Rates, Sample
from nervure.core.documents import DEEPEST, VERSION, open_document, seal_document
from nervure.core.files import read_json, write_json
from nervure.errors import FileError, NervureError, PlanError, RecipeError
from nervure.evaluation.drift import ConnectivityShift
from nervure.evaluation.metrics import Metrics
from nervure.evaluation.shift import Shifted
from nervure.graph import Cost
from nervure.graph.invariants import RULES, check_graph
from nervure.graph.types import MOST_POSITIONS, Axis, ConfigSize, SizeAttribute, Units, ZeroStub
from nervure.plan import Route
from nervure.recipe.results import append_line, read_outcomes
from nervure.report import Point, Row, Width, to_html, to_markdown
from nervure.report.comparison import Outcome, TimedSetting
from nervure.report.comparison_report import MethodComparison, comparison_page
from nervure.report.run_report import check_report
from nervure.report.sweep_report import Sweep, sweep_page
from tests.networks import NETWORKS, traced

MEGABYTE = 1 << 20


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(6, 8, 3, padding=1)
        self.outer = nn.Conv2d(8, 6, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.outer(self.inner(x).relu())


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), Block(), nn.Flatten(), nn.Linear(6 * 16, 4))


@cache
def graph() -> Graph:
    return trace(network(), torch.randn(2, 3, 4, 4))


def plan() -> Plan:
    kernel = Keep.of(torch.ones(8, 6, 3, 3, dtype=torch.bool))
    return Plan(
        (
            Cut("1.inner", Keep.of(torch.arange(8) < 5)),
            Mask("0.weight", Keep.of(torch.arange(6 * 27).reshape(6, 3, 3, 3) % 2 == 0), gain=1.5, shuffled=3),
            Drop("1"),
            Link("0", "1.inner", kernel, Route(stride=(1, 1), norm=True, std=0.1, gate=0.5)),
        ),
        graph().fingerprint,
        {"budget": "macs", "keep": 0.5},
        {"keep": 0.49},
    )


def table() -> LatencyTable:
    rates = {"conv 18 2": Rates(0.1, 0.2, 0.0, 0.3), "linear 1 2": Rates(call=0.01)}
    samples = (Sample({"0": 3}, ("1",), 0.4),)
    return LatencyTable({"engine": "eager", "threads": "1"}, 0.01, 4, rates, 0.1, samples, (), 0.02, 0.05, 8)


def outcome(**changes: Any) -> Outcome:
    base = Outcome("k", "net", "Random", 1, 0.5, "macs", "Random()", 0.75, 1.25, 0.125, 0.5, 10, 100, 90, 1000)
    known: dict[str, Any] = {"params_kept": 0.9, "macs_kept": 0.5, "loss_curve": (1.0, 0.5), "shift": {"fog": 0.25}}
    return replace(base, **(known | {"provenance": {"torch": "2"}} | changes))


def report() -> Report:
    shift = {
        "clean": 0.9,
        "mean": 0.5,
        "interval": [0.4, 0.6],
        "mce": 1.0,
        "relative_mce": None,
        "accuracy": {"fog": 1},
    }
    facts = {"severities": [3], "samples": 9, "original": ["data:"], "pictures": {"fog": ["data:"]}}
    event = {"kind": "rewire", "step": 3, "density": 0.1, "dropped": 2, "grown": 2, "weights": 50}
    return Report(
        title="a title",
        method="Random()",
        recipe={"prune": {"keep": 0.5}},
        plan=plan(),
        rows={"dense": Row(0.9, 0.3, 0.02, 100, 700, 700, 9000, 5000, {"1": 2.0}), "pruned": Row(macs=4000)},
        widths=(Width("1.inner", 8, 5, notes=("a note",)),),
        curves={"pruned": (Point(1, 0.5, 0.9), Point(2, None))},
        verification={"cut against silenced original": 1e-7},
        provenance={"seed": 0},
        notes=("a note",),
        evidence={
            "layers": {"a.weight": [[0.1, 0.2], [0.3, 0.0]]},
            "limits": {"a.weight": {"shares": [0.0, 0.5], "quality": [0.9, 0.1], "upper": 0.5}},
            "protected": {"0": [1, 2]},
            "events": [event, {**event, "kind": "start"}],
        },
        shift={**facts, "networks": {"dense": shift, "pruned": shift}},
    )


def outcomes() -> list[Outcome]:
    labels = [(method, seed) for method in ("dense", "Random", "A") for seed in (0, 1)]
    return [outcome(key=f"{method}{seed}", method=method, seed=seed) for method, seed in labels]


def comparison() -> MethodComparison:
    return MethodComparison("a title", "Random", (*outcomes(), outcome(error="failed")))


def sweep() -> Sweep:
    timed = {"A0": TimedSetting({"1": 2.0}, {"1": 1.5})}
    return Sweep.of(
        outcomes(), timed, title="a title", recipe={"prune": {"keep": 0.5}}, folder="f", failures={"a": "b"}
    )


RECIPE = '[model]\nname = "resnet8"\n[data]\nname = "digits"\n[evaluate]\nlatency = [1, 8]\nshift = ["fog"]\n'
STUDY = (
    RECIPE.replace("[model]", "[study]\nseeds = [0, 1]\n[[network]]") + '[[method]]\nname = "Random"\nkeeps = [0.5]\n'
)


class Kind(NamedTuple):
    """A kind of document: what it is written as, and what reads it and looks at all of it."""

    data: Callable[[], Mapping[str, Any]]
    read: Callable[[Any], Any]


def looked_at(found: Graph) -> Graph:
    assert found.describe()
    assert found.fingerprint
    return found


def shown(found: Report) -> Report:
    assert to_markdown(found)
    assert to_html(found)
    return found


KINDS: Mapping[str, Kind] = {
    "graph": Kind(lambda: graph().to_json(), lambda data: looked_at(Graph.from_json(data))),
    "plan": Kind(lambda: plan().to_json(), Plan.from_json),
    "table": Kind(lambda: table().to_json(), LatencyTable.from_json),
    "outcome": Kind(lambda: asdict(outcome()), Outcome.from_json),
    "report": Kind(lambda: report().to_json(), lambda data: shown(Report.from_json(data))),
    "comparison": Kind(lambda: comparison().to_json(), lambda data: comparison_page(MethodComparison.from_json(data))),
    "sweep": Kind(lambda: sweep().to_json(), lambda data: sweep_page(Sweep.from_json(data))),
}
OPEN: Mapping[str, Kind] = {
    "recipe": Kind(lambda: Recipe.from_toml(RECIPE).to_dict(), Recipe.from_dict),
    "cost": Kind(lambda: Cost(3, 2, 9, {}).to_json(), Cost.from_json),
    "shift": Kind(lambda: Shifted(METRICS, {("fog", 3): METRICS}, (0.1, 0.9)).to_json(), Shifted.from_json),
    "drift": Kind(lambda: ConnectivityShift({"a": {("fog", 3): {"w": 0.1}}}).to_json(), ConnectivityShift.from_json),
}
"""What is read too, but carries no checksum of its own."""
METRICS = Metrics(0.5, None, 0.1, 0.2, 0.3, (0.5, None), 9, (0.2, 0.8))
WHOLE = {**KINDS, **OPEN}


def written(name: str) -> bytes:
    return seal_document(WHOLE[name].data(), name)


@pytest.mark.parametrize("name", KINDS)
def test_a_whole_document_comes_back(name: str) -> None:
    again = KINDS[name].read(open_document(written(name), name))
    assert again == KINDS[name].read(KINDS[name].data())


@pytest.mark.parametrize("name", KINDS)
def test_a_bit_that_flips_in_a_document_is_told(name: str) -> None:
    text, draw = written(name), random.Random(0)
    for place in [*range(300), *(draw.randrange(8 * len(text)) for _ in range(900)), *range(8 * len(text) - 700, 0)]:
        damaged = bytearray(text)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(FileError):
            open_document(bytes(damaged), name)


@pytest.mark.parametrize("name", KINDS)
def test_a_document_that_ends_early_is_told(name: str) -> None:
    text, draw = written(name), random.Random(0)
    for end in [*range(0, 40), *range(len(text) - 90, len(text)), *draw.sample(range(len(text)), 100)]:
        with pytest.raises(FileError):
            open_document(text[:end], name)


def test_a_document_that_lost_its_checksum_is_told() -> None:
    text = written("table")
    for key in (b'"sha256"', b'"format"'):
        with pytest.raises(FileError, match="checksum"):
            open_document(text.replace(key, b'"shed"'), "a table")
    with pytest.raises(FileError, match=f"up to {VERSION}. Upgrade"):
        open_document(text.replace(b'"format": 3', b'"format": 4'), "a table")


def test_what_a_reader_of_json_made_of_a_file_is_checked_too() -> None:
    data = json.loads(written("graph"))
    assert Graph.from_json(data) == graph()
    data["axes"][0][0] += 1
    with pytest.raises(PlanError, match="does not match its checksum"):
        Graph.from_json(data)


def test_white_space_is_no_matter_and_order_is() -> None:
    text = written("table")
    assert open_document(msgspec.json.format(text, indent=4), "a table") == open_document(text, "a table")
    with pytest.raises(FileError, match="checksum"):
        open_document(seal_document({"a": 1, "b": 2}, "x").replace(b'"a": 1,\n "b": 2', b'"b": 2,\n "a": 1'), "x")


@pytest.mark.parametrize("name", WHOLE)
def test_what_earlier_versions_wrote_and_people_write_is_read_without_a_checksum(name: str) -> None:
    kind = WHOLE[name]
    assert kind.read(open_document(json.dumps(kind.data()), name)) == kind.read(kind.data())


def test_words_for_nan_of_earlier_versions_are_read() -> None:
    line = json.dumps(asdict(outcome(loss=math.nan)))
    assert "NaN" in line
    assert math.isnan(Outcome.from_json(open_document(line, "a line")).loss)
    with pytest.raises(FileError, match="cannot be read"):
        open_document('{"format": 3, "a": NaN}', "a document")


HOSTILE = (
    *(None, True, -1, 0, 2**31, 2**62, 2**63, 2**64, 10**23, -(10**30), 0.5, -0.5, 1e308, 5e-324, "", "nan", "\0"),
    *("../../etc/passwd", "os:system", "x" * 5000, [], {}, [[]], [0] * 200, {"a": 1}, {"format": 99}, "<b>|`"),
    *(["a", "b"], [1, 2], [[0, 1, 10**11]], [[-1, 0, 2**40]], [[2**62, 1, 2**61]], {"shape": [10**12], "bits": ""}),
)
DEEP = "[" * 100_000 + "]" * 100_000


def places(value: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inner:
        yield (*where, key)
        yield from places(child, (*where, key))


def changed(data: Any, draw: random.Random) -> str:
    """Plain data with one place made hostile, as JSON."""
    value = json.loads(msgspec.json.encode(data))
    *path, last = draw.choice(list(places(value)))
    holder = value
    for key in path:
        holder = holder[key]
    match draw.randrange(5):
        case 0:
            del holder[last]
        case 1 if isinstance(holder, list):
            holder.extend(holder * draw.choice((1, 50)))
        case 1:
            holder[f"{last}x"] = holder.pop(last)
        case 2:
            holder[last] = "deep"
            return json.dumps(value).replace('"deep"', DEEP if draw.random() < 0.3 else DEEP[99_880:100_120])
        case _:
            holder[last] = draw.choice(HOSTILE)
    return json.dumps(value)


@pytest.mark.parametrize("name", WHOLE)
def test_a_hostile_document_is_refused_or_is_another_value(name: str) -> None:
    kind, draw = WHOLE[name], random.Random(name)
    for _ in range(250):
        try:
            data = open_document(changed(kind.data(), draw), name)
            kind.read(open_document(seal_document(data, name), name))
        except NervureError:
            continue


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "null", "nul", '"a"', "\ufeff{}", "\ud800", '{"a": "\\ud800"}', "{}{}"]
)
def test_what_is_no_table_of_keys_is_no_document(text: str) -> None:
    with pytest.raises(FileError, match=r"^a file cannot be read"):
        open_document(text, "a file")


def test_nesting_is_bounded() -> None:
    text = "[" * (DEEPEST - 1) + "]" * (DEEPEST - 1)
    assert open_document(f'{{"a": {text}}}', "a document")
    for deeper in (f"[{text}]", DEEP):
        with pytest.raises(FileError, match="nested too deeply"):
            open_document(f'{{"a": {deeper}}}', "a document")
        with pytest.raises(RecipeError, match=r"nested too deeply|not TOML"):
            Recipe.from_toml(f"{RECIPE}\n[prune]\noptions = {{ a = {deeper} }}")


def test_what_is_no_plain_data_is_not_written(tmp_path: Path) -> None:
    for value in (object(), {(1, 2): 3}):
        with pytest.raises(FileError, match="was not written: it is not plain data"):
            write_json(tmp_path / "a.json", {"a": value})
    assert not list(tmp_path.iterdir())
    write_json(tmp_path / "a.json", {"torch": torch.__version__, "none": math.nan})
    assert read_json(tmp_path / "a.json") == {"torch": str(torch.__version__), "none": None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": {"dense": Row()}}, "no rows 'dense' and 'pruned'"),
        ({"evidence": {"events": 3}}, r"the evidence of this report .* \(at \$.events: 3\)"),
        ({"evidence": {"layers": {"a": [[]]}}}, "the evidence of this report"),
        ({"evidence": {"limits": {"a": {"shares": [0.5], "quality": [], "upper": 0.5}}}}, "one quality for each share"),
        ({"shift": {"networks": {}}}, "the accuracy under shift of this report"),
    ],
)
def test_a_report_that_lacks_what_its_pages_show_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FileError, match=message):
        check_report(replace(report(), **change))


def test_a_report_of_a_group_without_units_is_refused() -> None:
    data = report().to_json()
    data["widths"][0]["before"] = 0
    with pytest.raises(FileError, match=r"widths\[0\].before"):
        Report.from_json(data)


# -- memory ----------------------------------------------------------------------------------------------------------


def peak(made: Callable[[], Any]) -> int:
    """Bytes that were taken at once."""
    tracemalloc.start()
    try:
        made()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def with_axis(units: list[list[int]], size: int) -> dict[str, Any]:
    data = json.loads(msgspec.json.encode(graph().to_json()))
    name = data["groups"][0]["name"]
    data["axes"].append([size, [[name, units]]])
    return data


@pytest.mark.parametrize("length", [10**11, 10**18, MOST_POSITIONS + 1])
def test_long_runs_are_refused_before_they_take_memory(length: int) -> None:
    def read() -> None:
        with pytest.raises(PlanError, match=r"at most \d+ positions in all \(at \$.axes"):
            Graph.from_json(with_axis([[0, 0, length]], length))

    assert peak(read) < 4 * MEGABYTE


def test_runs_take_memory_when_they_are_looked_at() -> None:
    length = MOST_POSITIONS // 4
    data = with_axis([[0, 0, length]], length)
    assert peak(lambda: Graph.from_json(data)) < 4 * MEGABYTE
    assert len(Graph.from_json(data).axes[-1].parts[0][1]) == length


def test_many_groups_along_one_long_axis_share_its_memory() -> None:
    data, length = with_axis([[0, 0, 10]], 10), 100_000
    part = [data["groups"][0]["name"], [[0, 0, length]]]
    data["axes"].append([length, [part] * 500])
    axis = Graph.from_json(data).axes[-1]
    assert peak(lambda: [units.array for _, units in axis.parts]) < 4 * MEGABYTE
    data["axes"].append([length, [part] * 50_000])
    with pytest.raises(PlanError, match="its slots and axes"):
        Graph.from_json(data)


@pytest.mark.parametrize("shape", [[10**12], [10**6, 10**6, 10**6], [2**63], [-1], [1] * 65, [8, -1]])
def test_a_shape_has_the_bits_that_came_with_it(shape: list[int]) -> None:
    data = {"edits": [{"edit": "cut", "group": "0", "keep": {"shape": shape, "bits": "qA=="}}]}

    def read() -> None:
        with pytest.raises(PlanError, match=r"\$.edits\[0\].keep"):
            Plan.from_json(data)

    assert peak(read) < MEGABYTE


def test_bits_beyond_the_end_of_a_shape_are_refused() -> None:
    assert Keep((3,), b"\xa0") == Keep.of([True, False, True])
    with pytest.raises(PlanError, match="beyond its end"):
        Keep((3,), b"\xa8")


# -- graphs ----------------------------------------------------------------------------------------------------------


@pytest.mark.sampled
@pytest.mark.parametrize("name", NETWORKS)
def test_graphs_keep_their_rules_and_come_back(name: str) -> None:
    found = check_graph(traced(name)[2])
    assert Graph.from_json(open_document(seal_document(found.to_json(), name), name)) == found


def group(**changes: Any) -> dict[str, Any]:
    first, *rest = graph().groups
    return {"groups": (replace(first, **changes), *rest)}


def of_block(**changes: Any) -> dict[str, Any]:
    return {"blocks": (replace(graph().blocks[0], **changes),)}


def silence(**changes: Any) -> dict[str, Any]:
    base = ZeroStub("1", (2, 6, 4, 4), (2, 6, 4, 4), own=(1,), axes=(0,))
    return of_block(modules=("1",), silences=(replace(base, **changes),))


def product(**changes: Any) -> dict[str, Any]:
    return {"products": (replace(graph().products[0], **changes),)}


def broken() -> dict[str, dict[str, Any]]:
    """For each rule changes that break it, and no rule before it."""
    g, far = graph(), len(graph().axes)
    slot, axis = g.groups[0].slots[0], next(a for a in g.axes if a.parts)
    return {
        "_group_names": {"groups": (g.groups[0], g.groups[0])},
        "_block_names": {"blocks": (g.blocks[0], g.blocks[0])},
        "_group_sizes": group(size=5),
        "_axes_of_tensors": {"tensors": {**g.tensors, "0.bias": (far,)}},
        "_axes_of_work": {"work": (replace(g.work[0], axes=(far,)),)},
        "_axes_of_memory": {"memory": (replace(g.memory[0], axes=(far,)), *g.memory[1:])},
        "_axes_of_resizes": {"resizes": (SizeAttribute("", "width", 6, far),)},
        "_axes_of_silences": silence(own=(7,)),
        "_silent_modules": silence(module="elsewhere"),
        "_parts_of_axes": {"axes": (*g.axes, Axis(3, ((axis.parts[0][0], Units([0, 1])),)))},
        "_places_of_slots": group(slots=(*g.groups[0].slots, replace(slot, axis=4))),
        "_parameters": {"parameters": (*g.parameters, "ghost")},
        "_ends_of_edges": {"edges": (replace(g.edges[0], target="ghost"),)},
        "_groups_of_blocks": of_block(group="ghost"),
        "_groups_of_declared": {"declared": (ConfigSize("", "width", 6, ()),)},
        "_axes_of_products": product(columns=(0,)),
        "_shapes_of_products": product(shape=(6, 3, 3, 4)),
        "_counts": {"work": (replace(g.work[0], fixed=1 << 61),)},
        "_settings": {"settings": {"hook": True}},
    }


@pytest.mark.parametrize("rule", [rule.__name__ for rule in RULES if rule.__name__ != "_positions"])
def test_a_graph_that_breaks_a_rule_is_refused_by_that_rule(rule: str) -> None:
    wrong = replace(graph(), **broken()[rule])
    said = next(str(r.__doc__) for r in RULES if r.__name__ == rule)
    with pytest.raises(PlanError) as caught:
        Graph.from_json(wrong.to_json())
    assert str(caught.value).startswith("this graph contradicts itself at ")
    assert str(caught.value).endswith(said)


# -- plans -----------------------------------------------------------------------------------------------------------


def test_a_plan_that_somebody_typed_is_read_and_a_key_that_is_not_known_is_refused() -> None:
    keep = {"shape": [8], "bits": "+A=="}
    typed = {"edits": [{"edit": "cut", "group": "1.inner", "keep": keep}]}
    assert Plan.from_json(json.dumps(typed)) == Plan((Cut("1.inner", Keep.of(torch.arange(8) < 5)),))
    for wrong, message in (
        ({"edits": [{**typed["edits"][0], "keeps": 3}]}, r"unknown field `keeps` \(at \$.edits\[0\]\)"),
        ({**typed, "asks": {}}, "unknown field `asks`"),
        ({"edits": [{"edit": "cat", "group": "a", "keep": keep}]}, r"'cat' \(at \$.edits\[0\].edit"),
        ({"edits": [{"edit": "link", "source": "a", "target": "b", "keep": keep, "route": {"srtide": []}}]}, "srtide"),
        ({}, "it has no 'edits'"),
    ):
        with pytest.raises(PlanError, match=message):
            Plan.from_json(wrong)


@pytest.mark.parametrize(
    "made",
    [
        lambda: Mask("a", Keep.of([True]), gain=math.nan),
        lambda: Mask("a", Keep.of([True]), gain=math.inf),
        lambda: Mask("a", Keep.of([True]), shuffled=-1),
        lambda: Mask("a", Keep.of([True]), shuffled=10**23),
        lambda: Route(stride=(0,)),
        lambda: Route(stride=2),  # type: ignore[arg-type]
        lambda: Route(stride=(2**40,)),
        lambda: Route(std=math.nan),
        lambda: Route(seed=10**23),
    ],
)
def test_an_edit_out_of_bounds_is_refused_where_it_is_made(made: Callable[[], Any]) -> None:
    with pytest.raises(PlanError):
        made()


@pytest.mark.parametrize(
    ("shape", "route", "message"),
    [
        ((8, 6, 3, 3), Route(stride=(2,)), "one step for each side"),
        ((8, 6, 3, 3, 3, 3), Route(), "no convolution with a kernel"),
        ((8, 6, 0, 3), Route(), "no convolution with a kernel"),
        ((8, 5, 3, 3), Route(), "the ends"),
        ((8,), Route(), "the ends"),
        ((8, 6, 3, 3), Route(activation="exec"), "activation 'exec' is not one of"),
        ((8, 6, 3, 3), Route(reads="ghost"), "no module 'ghost'"),
    ],
)
def test_a_link_that_cannot_be_made_is_refused(shape: tuple[int, ...], route: Route, message: str) -> None:
    link = Link("0", "1.inner", Keep.of(torch.ones(shape, dtype=torch.bool)), route)
    with pytest.raises(PlanError, match=message):
        apply(network(), graph(), Plan((link,)))


def test_a_gain_of_whole_numbers_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    found = trace(model, torch.randn(1, 3, 5, 5))
    mask = Mask("1.num_batches_tracked", Keep.of(torch.tensor(True)), gain=0.5)
    with pytest.raises(PlanError, match="holds torch.int64"):
        apply(model, found, Plan((mask,)))


# -- lines of results, recipes -----------------------------------------------------------------------------------------


def test_a_damaged_line_of_results_is_named_and_one_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    rows = [outcome(key=str(n), loss=math.nan) if n == 1 else outcome(key=str(n)) for n in range(3)]
    for row in rows:
        append_line(path, asdict(row))
    whole = path.read_bytes()
    assert [asdict(o) | {"loss": 0} for o in read_outcomes(path)] == [asdict(o) | {"loss": 0} for o in rows]
    assert [math.isnan(o.loss) for o in read_outcomes(path)] == [False, True, False]
    ends = [0, *(n + 1 for n, byte in enumerate(whole) if byte == 10)]
    for end in [ends[2] + 1, ends[2] + 50, len(whole) - 70, len(whole) - 3]:
        path.write_bytes(whole[:end])
        assert [o.key for o in read_outcomes(path)] == ["0", "1"]
    draw = random.Random(0)
    for _ in range(200):
        place = draw.randrange(8 * (len(whole) - 1))
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(FileError, match=r"'.*results.jsonl', line [123]: it "):
            list(read_outcomes(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RECIPE + "[prune]\nkeap = 1", r"recipe.toml: \[prune\] has no key 'keap'. Did you mean 'keep'.*Known: method"),
        (RECIPE + "[prune]\nkeep = 7", r"recipe.toml: \[prune\] keep = 7 .* Expected `float` <= 1.0"),
        (RECIPE + "[prune]\nbudget = []", r"\[prune\] budget = \[\] cannot be read: Expected `str`"),
        (RECIPE + f"[run]\nseed = {10**23}", r"\[run\] seed = 1000.* Expected `int` <= 9223372036854775807"),
        (RECIPE + f"[run]\nthreads = {10**6}", r"\[run\] threads = 1000000 .* <= 4096"),
        (RECIPE + "[train]\nlr = inf", r"\[train\] lr = inf"),
        (RECIPE + "[train]\nlr = 1" + "0" * 5000, "not TOML"),
        (RECIPE.replace("[1, 8]", "[1, 0]"), r"latency = \[1, 0\] .* `int` >= 1 \(at \$\[1\]: 0\)"),
    ],
)
def test_what_is_wrong_with_a_recipe_names_the_file_the_key_the_value_and_what_may_be(
    text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(RecipeError, match=message):
        Recipe.from_toml(tmp_path / "recipe.toml")


def test_a_hostile_study_is_refused_or_is_another_study() -> None:
    draw, data = random.Random(0), tomllib.loads(STUDY)
    assert Study.from_dict(data) == Study.from_toml(STUDY)
    for _ in range(200):
        try:
            Study.from_dict(json.loads(changed(data, draw)))
        except (RecipeError, RecursionError) as error:
            assert isinstance(error, RecipeError) or "JSON" in str(error)


def test_half_a_character_is_written_as_the_escape_that_shows_it(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", {"name": "layer\ud800", "rows": [{"\udc80": 1}]})
    assert read_json(path) == {"name": r"layer\ud800", "rows": [{r"\udc80": 1}]}
