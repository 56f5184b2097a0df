"""Whatever is given to a public function is what its annotation says, or is refused in one line that says so."""

import inspect
import itertools
import math
import random
import sys
import time
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nervure
from nervure import Magnitude, MagnitudeMasks, Random, evaluate, hold, measure, prune, trace, train
from nervure.core.annotations import acceptor
from nervure.core.check import checked, show_value
from nervure.errors import ArgumentError, CallError, DataError, ForwardError, NervureError
from nervure.evaluation import table_shifts
from nervure.training import cross_entropy, picture_views, recalibrate

EXAMPLE = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0])
DATA = [(EXAMPLE, LABELS), (EXAMPLE + 1, LABELS)]
SECONDS = 20.0
EACH = 8
"""Bad values that are tried in one argument, drawn by lot."""


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).eval()


GRAPH = trace(network(), EXAMPLE)
MASKED = prune(network(), EXAMPLE, MagnitudeMasks(density=0.5))
PRUNED = prune(network(), EXAMPLE, Magnitude(keep=0.5))
SHIFT = {("x", 1): DATA}
SOME = {"a": network()}
SCORES = torch.softmax(EXAMPLE[:, :3], 1)
GOOD: Mapping[str, Mapping[str, Any]] = {
    "nervure.apply": {"graph": GRAPH, "plan": PRUNED.plan},
    "nervure.compact": {"model": None, "graph": GRAPH, "plan": PRUNED.plan},
    "nervure.compile_sparse": {"model": MASKED, "example": EXAMPLE, "rounds": 3, "threads": 1},
    "nervure.connectivity": {"example": EXAMPLE},
    "nervure.count": {"example": EXAMPLE},
    "nervure.evaluate": {"data": DATA},
    "nervure.latency": {"models": {"a": network()}, "example": EXAMPLE, "rounds": 3, "seconds": 0.0, "warmup": 1},
    "nervure.load": {"path": "pruned.safetensors", "model": network},
    "nervure.measure": {"graph": GRAPH, "data": DATA},
    "nervure.prune": {"example": EXAMPLE, "method": Magnitude()},
    "nervure.save": {"path": "again.safetensors", "pruned": PRUNED},
    "nervure.trace": {"example": EXAMPLE},
    "nervure.train": {"data": DATA, "progress": False},
    "nervure.verify": {"pruned": PRUNED, "example": EXAMPLE},
    "nervure.budget.allocate": {"graph": GRAPH, "scores": {g.name: torch.rand(5) for g in GRAPH.prunable}, "keep": 0.5},
    "nervure.budget.top": {"scores": torch.rand(5), "k": 2},
    "nervure.engines.runner": {"engine": "eager", "example": EXAMPLE},
    "nervure.evaluation.accuracy": {"probabilities": SCORES, "labels": LABELS},
    "nervure.evaluation.calibration_error": {"probabilities": SCORES, "labels": LABELS},
    "nervure.evaluation.class_accuracies": {"correct": LABELS == 0, "labels": LABELS, "classes": 3},
    "nervure.evaluation.corrupt": {"images": torch.rand(2, 3, 32, 32), "name": "gaussian_noise", "severity": 1},
    "nervure.evaluation.macro_auc": {"scores": SCORES, "labels": LABELS},
    "nervure.evaluation.peak_memory": {"example": EXAMPLE},
    "nervure.evaluation.smallest_robust": {"candidates": SOME, "dense": network(), "data": DATA, "shift": SHIFT},
    "nervure.evaluation.wilson_interval": {"successes": 1, "samples": 3},
    "nervure.export.save_state": {"path": "state.safetensors"},
    "nervure.methods.companion": {"example": EXAMPLE, "data": DATA},
    "nervure.methods.method_keeping": {"name": "magnitude", "share": {}, "keep": 0.5, "budget": "macs"},
    "nervure.stats.data_digest": {"data": DATA, "samples": 4, "per_class": 0, "labelled": True, "seed": 0},
    "nervure.training.cross_entropy": {"batch": DATA[0]},
    "nervure.training.with_distillation": {"objective": cross_entropy, "teacher": network()},
    "nervure.training.augmented": {"objective": cross_entropy, "views": picture_views()},
    "nervure.training.consistent": {"objective": cross_entropy, "views": picture_views()},
    "nervure.training.jensen_shannon": {"logits": [SCORES, SCORES]},
    "nervure.training.passes_of": {"objective": cross_entropy},
    "nervure.training.shift_views": {"shifts": table_shifts(EXAMPLE), "tested": []},
    "nervure.training.label_smoothing": {"eps": 0.1},
    "nervure.training.masks_of": {},
    "nervure.training.recalibrate": {"data": DATA},
    "nervure.zoo.build": {"name": "lenet300"},
}  # fmt: skip
BAD: tuple[Any, ...] = (
    *(None, object(), "x", "", "\0", "x" * 100_000, b"x", -1, 0, 1.5, math.nan, math.inf, 10**18, 10**23, 10**5000),
    *(True, [], {}, (1, 2), {1}, [1], ["a"], {"a": 1}, {"a": torch.ones(2)}, torch.ones(2)),
    *(torch.ones((), device="meta"), torch.ones(4, 6, device="meta"), EXAMPLE.double(), nn.Linear, nn.ReLU()),
    *(lambda: 0, Magnitude, Magnitude()),
    *(Path("no such file"), [(EXAMPLE,)], [EXAMPLE], [(EXAMPLE[:0], LABELS[:0])], [(EXAMPLE, LABELS + 90)]),
    *([(EXAMPLE, LABELS.float())], [(EXAMPLE * math.nan, LABELS)], [(EXAMPLE, LABELS[0])], [(EXAMPLE[:, :5], LABELS)]),
)  # fmt: skip
CALLERS = {"objective", "optimizer", "schedule", "size", "timer"}
"""Functions of the caller: what they raise is theirs."""


def function(name: str) -> Callable[..., Any]:
    module, _, last = name.rpartition(".")
    found: Callable[..., Any] = getattr(sys.modules[module], last)
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", GOOD)
def test_an_argument_does_what_it_says_or_is_refused_in_words(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    nervure.save("pruned.safetensors", PRUNED)
    called, lots = function(name), random.Random(name)
    names = [p.name for p in inspect.signature(called).parameters.values() if p.kind is not p.VAR_KEYWORD]
    fresh = ["model"] if "model" in names and "model" not in GOOD[name] else []
    called(**GOOD[name], **{key: network() for key in fresh})
    for argument, value in ((a, v) for a in names if a not in CALLERS for v in lots.sample(BAD, EACH)):
        start = time.monotonic()
        given = {**GOOD[name], **{key: network() for key in fresh}, argument: value}
        try:
            called(**given)
        except NervureError as error:
            assert 0 < len(str(error)) < 2000, (argument, show_value(value))
        except Exception as error:
            raise AssertionError(f"{name}({argument}={show_value(value)})") from error
        assert time.monotonic() - start < SECONDS, (argument, show_value(value))


def plain(hint: Any) -> bool:
    return hint in (int, float) or any(plain(member) for member in typing.get_args(hint) if member is not Any)


@pytest.mark.parametrize("name", GOOD)
def test_every_number_of_a_public_function_says_its_range(name: str) -> None:
    for argument, hint in typing.get_type_hints(function(name), include_extras=True).items():
        if argument not in ("return", "severity", "severities", "shift", "size", "normalisation", "table", "timer"):
            bare = [h for h in (hint, *typing.get_args(hint)) if h in (int, float)]
            assert not bare or typing.get_origin(hint) is typing.Annotated, (argument, hint)


def test_what_is_no_network_is_refused_with_what_to_do() -> None:
    for wrong, words in (
        (nn.Linear, "make an instance of it: Linear()"),
        (network().state_dict(), "load_state_dict"),
        (Path("model.pt"), "nervure.load"),
        (None, "torch.nn.Module"),
        (EXAMPLE, "torch.nn.Module"),
    ):
        with pytest.raises(ArgumentError, match=words.replace("(", r"\(").replace(")", r"\)")):
            trace(wrong, EXAMPLE)  # type: ignore[arg-type]


def test_arguments_in_the_wrong_places_are_told() -> None:
    with pytest.raises(ArgumentError, match=r"method is a Method .*; got <Tensor of shape \(4, 6\)"):
        prune(network(), Magnitude(), EXAMPLE)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="model is .*got <Tensor"):
        prune(EXAMPLE, network(), Magnitude())  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="graph is a Graph; got"):
        measure(network(), DATA, GRAPH)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"That is a class; make an instance of it: Magnitude\(\)"):
        prune(network(), EXAMPLE, Magnitude)  # type: ignore[arg-type]


def test_an_argument_that_is_none_is_told_with_the_nearest() -> None:
    with pytest.raises(CallError, match="Did you mean 'epochs'"):
        train(network(), DATA, epoch=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="It takes model, data"):
        evaluate()  # type: ignore[call-overload]


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    return itertools.repeat(DATA[0])


class Endless:
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return batches()


@pytest.mark.parametrize(
    "use",
    [
        lambda data: train(network(), data, progress=False),
        lambda data: train(network(), DATA, validation=data, progress=False),
        lambda data: evaluate(network(), data, progress=False),
        lambda data: measure(network(), GRAPH, data, want={"labels"}, per_class=10**9, progress=False),
        lambda data: recalibrate(network(), data, batches=10**9),
    ],
)
def test_data_without_an_end_are_told(use: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nervure.core.progress.ENDLESS", 20)
    with pytest.raises(DataError, match=r"gave 20 batches and did not end.*len\(\)"):
        use(Endless())


def test_data_that_say_how_many_they_are_may_be_more_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nervure.core.progress.ENDLESS", 3)
    assert evaluate(network(), DATA * 3, progress=False).samples == 6 * len(LABELS)


def test_samples_end_what_has_no_end() -> None:
    assert measure(network(), GRAPH, Endless(), samples=10, progress=False).samples == 10
    assert recalibrate(network(), Endless(), batches=3) == 3


def test_what_a_model_raises_on_a_batch_is_told_with_the_batch() -> None:
    for use in (evaluate, train, recalibrate):
        with pytest.raises(ForwardError, match=r"forward raised RuntimeError.*\(4, 5\) float32") as caught:
            use(network(), [(EXAMPLE[:, :5], LABELS)])  # type: ignore[operator]
        assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_function_that_is_given_takes_as_many_arguments_as_it_gets() -> None:
    with pytest.raises(ArgumentError, match="objective is a function of 2 arguments"):
        train(network(), DATA, objective=lambda model: 0, progress=False)  # type: ignore[arg-type, misc]
    with pytest.raises(ArgumentError, match="one real number"):
        train(network(), DATA, objective=lambda model, batch: 0, progress=False)  # type: ignore[arg-type, return-value]


def test_masks_that_are_held_are_tensors_by_name() -> None:
    model = network()
    with pytest.raises(ArgumentError, match="masks is a mapping"):
        hold(model, torch.optim.SGD(model.parameters(), lr=0.1), [torch.ones(5, 6)])  # type: ignore[arg-type]


def test_a_check_costs_little() -> None:
    @checked
    def called(model: nn.Module, data: list[int], rate: float, *, name: str = "", count: int = 1) -> None:
        return None

    model = network()
    best = min(seconds(lambda: called(model, [1], 2, name="b", count=3)) for _ in range(5))
    assert best < 100e-6


def seconds(call: Callable[[], Any], times: int = 200) -> float:
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def test_a_checked_function_is_still_itself() -> None:
    assert inspect.signature(train).parameters["lr"].default == 0.1
    assert train.__doc__ and train.__doc__.startswith("Train a model") and train.__module__ == "nervure.training.loop"


def test_what_an_annotation_accepts_stands_in_words() -> None:
    said = {
        int | None: "a whole number or None",
        tuple[int, ...]: "a tuple, each item a whole number",
        Callable[[int], int]: "a function of 1 argument",
        Mapping[str, Tensor]: "a mapping from a text to a torch.Tensor",
        typing.Literal["a", "b"]: "one of 'a', 'b'",
    }
    for hint, words in said.items():
        assert acceptor(hint).words == words


def test_values_in_errors_are_short_and_always_there() -> None:
    class Hostile:
        def __repr__(self) -> str:
            raise KeyError

    values = (Hostile(), "x" * 10**6, [EXAMPLE] * 100, 10**5000, {"a": network()}, lambda: 0, EXAMPLE)
    assert all(0 < len(show_value(value)) <= 80 for value in values)
    assert show_value(EXAMPLE) == "<Tensor of shape (4, 6), torch.float32>"


@pytest.mark.parametrize("method", [Random(), MagnitudeMasks(density=0.5)])
def test_numbers_on_the_meta_device_are_refused(method: Any) -> None:
    with pytest.raises(ArgumentError, match="meta device"):
        prune(network(), torch.ones(4, 6, device="meta"), method)
