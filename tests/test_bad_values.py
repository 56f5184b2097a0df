"""Whatever stands in a field or an argument is what its annotation says, or is refused in one line that says so."""

import itertools
import math
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nervure.methods
from nervure import Cut, Drop, Graph, Keep, Link, Magnitude, Mask, Plan, Recipe, dependence, hold, prune, train, zoo
from nervure.core import annotations
from nervure.core.check import take_value
from nervure.errors import ArgumentError, CallError, DataError, NervureError, PlanError, RecipeError
from nervure.evaluation import file_size, peak_memory
from nervure.export import save_state
from nervure.methods import METHODS
from nervure.recipe.study import Study
from nervure.training import masks_of, recalibrate
from nervure.zoo.data import fake


class Hostile:
    """An object whose words are an error."""

    def __repr__(self) -> str:
        raise KeyError("no repr")


BAD: Mapping[str, Any] = {
    "None": None,
    "an object": Hostile(),
    "a text": "x",
    "no text": "",
    "a long text": "x" * 100_000,
    "NUL": "\0",
    "a time": "0 ms",
    "a pattern": "1000000000000:2000000000000",
    "bytes": b"x",
    "-1": -1,
    "0": 0,
    "1.5": 1.5,
    "nan": math.nan,
    "inf": math.inf,
    "1e300": 1e300,
    "1e-300": 1e-300,
    "10**18": 10**18,
    "10**23": 10**23,
    "10**5000": 10**5000,
    "True": True,
    "a list": [],
    "a tuple": (1, 2),
    "a dict": {},
    "a set": {1},
    "a tensor": torch.ones(2),
    "a meta tensor": torch.ones((), device="meta"),
    "an array": np.ones(2),
    "a function": lambda *_: 0,
    "a class": nn.Linear,
    "a module": nn.ReLU(),
}
SECONDS = 10.0
IMAGE = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(0))
DATA = [(IMAGE, torch.tensor([0, 1, 2, 0])), (IMAGE + 1, torch.tensor([2, 1, 0, 1]))]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.norm(self.conv(x)))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that is a name of a file may be accepted, and written to."""
    monkeypatch.chdir(tmp_path)


def network() -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(2, 3, 3, padding=1), Residual(), Residual(), nn.Conv2d(3, 4, 3), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


FIELDS = [(name, f.name) for name, cls in METHODS.items() for f in fields(cls) if f.init]


def accepted(method: str) -> list[Any]:
    """Every method that a bad value in one of the fields makes, where it makes one."""
    found = []
    for field in (field for name, field in FIELDS if name == method):
        for told, value in BAD.items():
            try:
                found.append(METHODS[method](**{field: value}))
            except NervureError as error:
                assert str(error).strip() and len(str(error)) < 1000, (method, field, told)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_a_field_is_what_its_annotation_says_or_is_refused(method: str) -> None:
    for found in accepted(method):
        for field in fields(found):
            value, plain = getattr(found, field.name), (bool, int, float, str, tuple, type(None))
            assert isinstance(value, plain) or field.name in ("objective", "first", "views"), (
                method,
                field.name,
                value,
            )
        if not callable(getattr(found, "objective", None)) and isinstance(getattr(found, "views", None), str | None):
            assert eval(repr(found), vars(nervure.methods)) == found
            assert hash(found) == hash(eval(repr(found), vars(nervure.methods)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS)
def test_what_is_accepted_plans_or_says_why_not(method: str) -> None:
    taken = [found for found in accepted(method) if not callable(getattr(found, "objective", None))]
    for found in random.Random(0).sample(taken, min(len(taken), 2)):
        start = time.monotonic()
        try:
            prune(network(), IMAGE, found, data=DATA, verify=False, progress=False)
        except NervureError as error:
            assert str(error).strip()
        assert time.monotonic() - start < SECONDS, found


@pytest.mark.parametrize(
    ("method", "field"), [(name, f.name) for name, cls in METHODS.items() for f in fields(cls) if f.type is bool]
)
def test_nothing_but_true_and_false_is_a_truth_value(method: str, field: str) -> None:
    for value in (1, 0, "True", None, [], torch.ones(())):
        with pytest.raises(ArgumentError, match=f"{field} is True or False; got"):
            METHODS[method](**{field: value})
    given = getattr(METHODS[method](), field)
    assert getattr(METHODS[method](**{field: np.bool_(given)}), field) is given


def test_numbers_of_numpy_and_torch_become_plain_ones() -> None:
    found = Magnitude(keep=np.float32(0.5), minimum=torch.tensor(2), norm=np.int64(2))  # type: ignore[arg-type]
    assert found == Magnitude(keep=0.5, minimum=2, norm=2)
    assert [type(value) for value in (found.keep, found.minimum, found.norm)] == [float, int, int]
    assert repr(Magnitude(keep=1)) == repr(Magnitude(keep=1.0))


def test_the_error_repeats_what_was_given_and_says_what_to_give() -> None:
    with pytest.raises(ArgumentError) as caught:
        Magnitude(keep="half")  # type: ignore[arg-type]
    assert str(caught.value) == (
        "Magnitude(keep='half'): keep is a finite number in (0, 1], the fraction that stays; got 'half'."
    )
    with pytest.raises(ArgumentError, match="Did you mean 'params'"):
        Magnitude(budget="parms")  # type: ignore[arg-type]


def test_a_field_that_is_none_is_told_with_the_nearest() -> None:
    with pytest.raises(CallError, match="Magnitude has no option 'kep'. Did you mean 'keep'"):
        Magnitude(kep=0.5)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Magnitude(kep=0.5)  # type: ignore[call-arg]


def in_itself() -> list[Any]:
    found: list[Any] = []
    found.extend([found, found])
    return found


class Endless:
    """Batches without an end and without a length."""

    def __iter__(self) -> Iterator[Any]:
        return itertools.cycle(DATA)


@pytest.mark.parametrize("value", [torch.tensor(0.5), np.float32(0.5), np.array(0.5)])
def test_a_number_of_torch_or_numpy_becomes_a_plain_one(value: Any) -> None:
    for found in (Magnitude(keep=value).keep, nervure.methods.N2NSkip(density=value).density):
        assert type(found) is float
        assert found == 0.5
    assert type(nervure.methods.RigL(density=0.5, end=value).end) is float


SAMPLES = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
BARE: Mapping[str, Tensor] = {
    "meta": SAMPLES.to("meta"),
    "sparse": SAMPLES.to_sparse(),
    "complex": SAMPLES.to(torch.complex64),
}
MEASURES = [
    dependence.cka,
    dependence.correlation,
    dependence.distance_correlation,
    dependence.distance_covariance,
    dependence.energy_coefficient,
    dependence.energy_distance,
    dependence.hsic,
    dependence.mutual_information,
    dependence.conditional_connectivity,
]


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("name", BARE)
def test_samples_are_dense_real_numbers_or_refused(measure: Any, name: str) -> None:
    with pytest.raises(DataError, match="must be a tensor of real numbers with samples first"):
        measure(SAMPLES, BARE[name])


@pytest.mark.parametrize("name", [*BARE])
def test_labels_are_dense_whole_numbers_or_refused(name: str) -> None:
    labels = BARE[name][:, 0] if name != "sparse" else torch.ones(24, dtype=torch.long).to_sparse()
    for call in (dependence.energy_r2, dependence.class_distances, dependence.correlation):
        with pytest.raises(NervureError):
            call(SAMPLES, labels) if call is not dependence.correlation else call(SAMPLES, SAMPLES, labels)


@pytest.mark.parametrize(
    ("measure", "options"),
    [
        (dependence.hsic, {"unbiased": Hostile()}),
        (dependence.cka, {"bandwidth": "1"}),
        (dependence.distance_correlation, {"unbiased": "x"}),
        (dependence.energy_distance, {"unbiased": 1}),
        (dependence.mutual_information, {"smooth": "x"}),
        (dependence.mutual_information, {"ridge": ()}),
        (dependence.mutual_information, {"interval": SAMPLES}),
        (dependence.mutual_information, {"seed": 10**23}),
        (dependence.conditional_connectivity, {"faithful": 1}),
    ],
)
def test_options_of_a_measure_are_what_they_say(measure: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=f"{next(iter(options))} is "):
        measure(SAMPLES, SAMPLES.flip(0), **options)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Plan(edits=itertools.count()),  # type: ignore[arg-type]
        lambda: Plan(edits=itertools.repeat(Drop("a"))),  # type: ignore[arg-type]
        lambda: Plan(edits=3),  # type: ignore[arg-type]
        lambda: Plan(edits={}),  # type: ignore[arg-type]
        lambda: Plan(reached=3),  # type: ignore[arg-type]
        lambda: Plan(asked=in_itself()),  # type: ignore[arg-type]
        lambda: Plan(fingerprint=nn.ReLU()),  # type: ignore[arg-type]
        lambda: Drop(1e-320),  # type: ignore[arg-type]
        lambda: Cut([-1], [True]),  # type: ignore[arg-type]
        lambda: Mask("a", {1: None}),  # type: ignore[arg-type]
        lambda: Link("a", 3, [True]),  # type: ignore[arg-type]
        lambda: Keep.of(itertools.count()),  # type: ignore[arg-type]
        lambda: Keep.of(itertools.repeat(True)),
        lambda: Keep.of(3),  # type: ignore[arg-type]
        lambda: Keep.of(""),  # type: ignore[arg-type]
        lambda: Keep.of([0.5]),  # type: ignore[list-item]
        lambda: Keep.of(np.ones(3)),  # type: ignore[arg-type]
        lambda: Keep.of(torch.ones(3, dtype=torch.bool, device="meta")),
        lambda: Keep.of(torch.ones(3, dtype=torch.bool).to_sparse()),
        lambda: Plan.from_json(range(3)),  # type: ignore[arg-type]
        lambda: Graph.from_json(torch.zeros(0)),  # type: ignore[arg-type]
    ],
)
def test_a_part_of_a_plan_is_what_it_says_or_a_plan_error(make: Any) -> None:
    with pytest.raises(PlanError):
        make()


def test_a_keep_mask_is_taken_from_whatever_holds_booleans() -> None:
    wanted = Keep.of(torch.tensor([True, False]))
    for given in ([True, False], (True, False), iter([True, False]), np.array([True, False]), torch.tensor([1, 0]) > 0):
        assert Keep.of(given) == wanted  # type: ignore[arg-type]


@pytest.mark.parametrize("most", [8, 9])
def test_what_is_listed_is_taken_up_to_a_bound(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(annotations, "MOST", 8)
    listed = annotations.acceptor(Iterable[int])
    if most == 8:
        assert listed.take(iter(range(most))) == [*range(most)]
        assert annotations.acceptor(Sequence[int]).take(range(most)) == range(most)
        return
    for kind, given in ((listed, iter(range(most))), (annotations.acceptor(Sequence[int]), range(most))):
        with pytest.raises(ArgumentError, match="more than 8 items, and perhaps no end"):
            take_value(kind, given, "numbers", "f")


def test_what_has_no_end_is_refused_wherever_it_is_listed() -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for call in (
        lambda: prune(net, IMAGE, Magnitude(), ignore=itertools.repeat("0")),
        lambda: prune(net, IMAGE, Magnitude(), only=itertools.count()),  # type: ignore[arg-type]
        lambda: masks_of(net, only=itertools.repeat("0.weight")),
        lambda: hold(net, itertools.repeat(optimizer)),
        lambda: nervure.evaluate(net, DATA, shift=itertools.repeat("fog"), progress=False),
    ):
        with pytest.raises(ArgumentError):
            call()


def test_batches_that_never_end_are_told_before_training() -> None:
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    start = time.monotonic()
    with pytest.raises(DataError, match="validation gave 65536 batches and did not end"):
        train(net, DATA, validation=Endless(), progress=False)
    assert time.monotonic() - start < SECONDS
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_list_in_itself_is_told() -> None:
    net, given = network(), in_itself()
    for call in (
        lambda: nervure.trace(net, given),
        lambda: nervure.count(net, given),
        lambda: prune(net, given, Magnitude()),
        lambda: peak_memory(net, given),
        lambda: recalibrate(net, given),
        lambda: nervure.measure(net, nervure.trace(net, IMAGE), given),
        lambda: nervure.evaluate(net, given, progress=False),
        lambda: train(net, given, progress=False),
        lambda: nervure.latency(net, given, rounds=1),
        lambda: nervure.Inputs.of(given),
    ):
        with pytest.raises(NervureError):
            call()
    recipe = {"model": {"name": "resnet8"}, "data": {"name": "digits"}}
    for section, key in (("prune", "method"), ("prune", "options"), ("sweep", "method"), ("evaluate", "engines")):
        with pytest.raises(RecipeError, match="nested too deeply"):
            Recipe.from_dict(recipe | {section: {key: given}})
    with pytest.raises(RecipeError):
        Recipe.from_dict(recipe | {"train": {"schedule": np.zeros(3)}})


def test_sources_of_recipes_are_texts_or_refused() -> None:
    recipe = {"model": {"name": "resnet8"}, "data": {"name": "digits"}}
    for call in (
        lambda: Recipe.from_dict(recipe, source=Hostile()),  # type: ignore[arg-type]
        lambda: Recipe.from_dict(Hostile()),  # type: ignore[arg-type]
        lambda: Study.from_dict(recipe, source=-math.inf),  # type: ignore[arg-type]
        lambda: Recipe.from_toml(Hostile),  # type: ignore[arg-type]
        lambda: Recipe.from_toml([None]),  # type: ignore[arg-type]
        lambda: Recipe.from_toml("x" * 10_000),
        lambda: Recipe.from_json(torch.zeros(0)),  # type: ignore[arg-type]
        lambda: Recipe.from_json(range(3)),  # type: ignore[arg-type]
    ):
        with pytest.raises(RecipeError):
            call()


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_scripted_module_is_told_wherever_it_is_given() -> None:
    net, scripted = network(), torch.jit.script(nn.Linear(3, 3))
    for call in (
        lambda: nervure.connectivity(net, IMAGE, reference=scripted),
        lambda: nervure.count(scripted, torch.ones(2, 3)),
        lambda: recalibrate(net, scripted),
        lambda: nervure.evaluate(net, scripted, progress=False),
        lambda: nervure.measure(net, nervure.trace(net, IMAGE), DATA, want=scripted),
        lambda: Graph.from_json(scripted),
    ):
        with pytest.raises(NervureError):
            call()


@pytest.mark.parametrize("name", ["x" * 256, "\N{GREEK SMALL LETTER PHI}" * 128, "x/" * 2048, "", "\0", "\ud800" * 90])
def test_what_no_system_could_have_as_a_path_is_told(name: str) -> None:
    assert not annotations.is_path(name) and annotations.is_path("x" * 255) and annotations.is_path("\ud800.txt")
    for section, key in (("model", "weights"), ("data", "root")):
        table: dict[str, Any] = {"model": {"name": "resnet8"}, "data": {"name": "digits"}}
        if name:
            with pytest.raises(RecipeError, match=key):
                Recipe.from_dict(table | {section: table[section] | {key: name}})


def test_a_model_without_numbers_is_told(tmp_path: Any) -> None:
    bare, net = network().to("meta"), network()
    graph, cut = nervure.trace(net, IMAGE), prune(net, IMAGE, Magnitude(keep=0.5), verify=False)
    for call in (
        lambda: recalibrate(bare, DATA),
        lambda: masks_of(bare),
        lambda: train(bare, DATA, progress=False),
        lambda: train(bare, DATA, precision="bf16", progress=False),
        lambda: save_state(tmp_path / "state.safetensors", bare),
        lambda: nervure.evaluate(bare, DATA, progress=False),
        lambda: nervure.compact(graph, cut.plan, model=net, example=IMAGE.to("meta")),
        lambda: file_size(bare),
    ):
        with pytest.raises(NervureError):
            call()
    assert not [*tmp_path.iterdir()]


def test_notes_are_plain_data_or_refused_before_anything_is_written(tmp_path: Any) -> None:
    for note in (torch.ones(3), in_itself(), Hostile()):
        with pytest.raises(ArgumentError, match="notes is not plain data"):
            nervure.export(network(), IMAGE, tmp_path / "net.pt2", notes={"a": note})
    assert not [*tmp_path.iterdir()]


def test_a_table_of_latencies_asks_for_a_graph_and_a_plan() -> None:
    table = nervure.LatencyTable({"engine": "eager"}, 1.0, 8, {})
    graph = nervure.trace(network(), IMAGE)
    with pytest.raises(ArgumentError, match="plan is a Plan"):
        table.predict(graph, torch.float16)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="graph is a Graph"):
        table.predict(network(), Plan())  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="plan is a Plan"):
        table.measured_share(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("option", ["lr", "weight_decay"])
def test_a_rate_fits_into_the_weights_it_steps(option: str) -> None:
    with pytest.raises(ArgumentError, match=option):
        train(network(), DATA, progress=False, **{option: 1e308})  # type: ignore[arg-type]


def test_sizes_of_images_are_told_before_memory_is_taken() -> None:
    with pytest.raises(ArgumentError, match="fake makes 67,108,864 at most"):
        fake(samples=10**6)
    with pytest.raises(ArgumentError, match="4096 at most"):
        zoo.load("digits", size=10**6)


def test_an_example_that_is_sparse_is_told() -> None:
    with pytest.raises(NervureError):
        peak_memory(network(), IMAGE.to_sparse())
    with pytest.raises(DataError, match="Give dense tensors"):
        nervure.measure(network(), nervure.trace(network(), IMAGE), [(IMAGE.to_sparse(), DATA[0][1])])
