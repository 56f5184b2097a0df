"""One example in every form: what a public function makes of it does not depend on the form."""

import copy
from collections import UserDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nervure
from nervure import Inputs, Magnitude, MagnitudeMasks
from nervure.analysis.connectivity import connectivity
from nervure.engines import ENGINES, Program, runner
from nervure.engines.engine import Engine
from nervure.errors import ArgumentError, ForwardError
from nervure.evaluation import latency, peak_memory
from nervure.methods import SynFlow

X, GATE = torch.linspace(-1, 1, 24).reshape(4, 6), torch.linspace(0, 1, 24).reshape(4, 6)


class Gated(nn.Module):
    """Takes two tensors, by position or by name."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x * gate)))


FORMS: dict[str, Any] = {
    "positional": (X, GATE),
    "named": {"x": X, "gate": GATE},
    "a mapping that is no dict": UserDict({"x": X, "gate": GATE}),
    "inputs": Inputs((X, GATE)),
    "inputs of both kinds": Inputs((X,), {"gate": GATE}),
    "the first of several": [(X, GATE), (X[:2], GATE[:2])],
}
SPARSE = nervure.prune(Gated().eval(), (X, GATE), MagnitudeMasks(density=0.3, guard="none"), progress=False)


def seconds_of_one(models: Any, example: Any) -> dict[str, float]:
    """A clock that runs what it is given as a user would."""
    for model in models.values():
        if isinstance(example, Tensor):
            model(example)
        elif not isinstance(example, Inputs):
            model(**example) if isinstance(example, dict) else model(*example)
    return dict.fromkeys(models, 1.0)


DOORS: dict[str, Callable[[Any], Any]] = {
    "trace": lambda example: nervure.trace(Gated().eval(), example).fingerprint,
    "count": lambda example: nervure.count(Gated(), example).params,
    "prune": lambda example: nervure.prune(Gated(), example, Magnitude(keep=0.5), progress=False).plan,
    "verify": lambda example: nervure.verify(SPARSE.model, _uncut(example), example).outputs > 0,
    "compact": lambda example: nervure.compact(SPARSE.graph, SPARSE.masks, model=Gated(), example=example),
    "connectivity": lambda example: connectivity(SPARSE, example).effective_density,
    "latency": lambda example: latency({"a": Gated()}, example, batch_sizes=(2,), rounds=3, seconds=0.0).rows[0].batch,
    "peak_memory": lambda example: peak_memory(Gated(), example, batch=2),
    "runner": lambda example: runner("eager", Gated().eval(), example)(example).tolist(),
    "compile_sparse": lambda example: (
        nervure.compile_sparse(SPARSE, example, timer=seconds_of_one, verbose=False).model(X, GATE).tolist()
    ),
    "SynFlow": lambda example: (
        nervure.prune(Gated(), example, SynFlow(density=0.5, steps=3), progress=False).plan.reached
    ),
    "meta": lambda example: nervure.trace(Gated().to("meta"), example).fingerprint,
}


def _uncut(example: Any) -> Any:
    return nervure.prune(SPARSE.model, example, nervure.Plan(), progress=False, verify=False)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("form", [form for form in FORMS if form != "positional"])
def test_the_form_of_an_example_makes_no_difference(form: str, door: str) -> None:
    assert DOORS[door](FORMS[form]) == DOORS[door](FORMS["positional"])


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize("form", ["positional", "a mapping that is no dict", "inputs of both kinds"])
def test_a_file_is_checked_on_an_example_of_any_form(form: str, suffix: str, tmp_path: Path) -> None:
    # Loaders that put samples together make a list of what comes in a tuple.
    batch = [X, GATE] if form == "positional" else FORMS[form]
    found = nervure.export(
        Gated().eval(), FORMS[form], tmp_path / f"file{suffix}", check=[(batch, torch.zeros(4, dtype=torch.long))]
    )
    assert found.checks["data"].ok and found.checks["data"].accuracy is not None
    names = {"positional": "x, gate", "inputs of both kinds": "x, gate=gate"}.get(form, "x=x, gate=gate")
    assert suffix != ".pt2" or found.card.facts["usage"].endswith(f"({names})")


@pytest.mark.parametrize("form", FORMS)
def test_batches_of_data_hold_inputs_in_any_form(form: str) -> None:
    inputs = FORMS[form] if isinstance(FORMS[form], tuple | dict | UserDict | Inputs) else [X, GATE]
    labels = torch.tensor([0, 1, 2, 0])
    model, other = Gated(), Gated()
    history = nervure.train(model, [(inputs, labels)], lr=0.01, progress=False)
    assert history.loss == nervure.train(other, [((X, GATE), labels)], lr=0.01, progress=False).loss
    data, plain = [(inputs, labels)], [((X, GATE), labels)]
    assert nervure.evaluate(model, data, progress=False) == nervure.evaluate(model, plain, progress=False)
    graph = nervure.trace(model, (X, GATE))
    for given in (data, [inputs] if not isinstance(inputs, tuple | list) else data):
        stats, expected = (
            nervure.measure(model, graph, d, want={"activations"}, progress=False) for d in (given, plain)
        )
        assert all(torch.equal(stats.activations[name], value) for name, value in expected.activations.items())


def test_engines_of_the_user_get_what_a_user_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def prepare(model: nn.Module, example: Any, precision: str) -> Program:
        seen.append(example)
        return Program(lambda threads: lambda inputs: seen.append(inputs))

    monkeypatch.setitem(ENGINES, "mine", Engine("mine", prepare))  # type: ignore[arg-type]
    latency({"a": nn.ReLU()}, X, engine="mine", rounds=3, seconds=0.0)
    assert seen and all(isinstance(one, Tensor) and one.shape == (1, 6) for one in seen)


def test_methods_of_the_user_get_what_a_user_gives() -> None:
    seen = []

    class Looks:
        wants = frozenset[str]()

        def plan(self, view: Any) -> nervure.Plan:
            seen.append(view.example)
            return nervure.Plan()

    for example in (X, (X,), {"input": X}, [X, X[:2]]):
        nervure.prune(nn.Linear(6, 3), example, Looks(), progress=False)
    assert isinstance(seen[0], Tensor) and isinstance(seen[1], Tensor) and list(seen[2]) == ["input"]
    assert isinstance(seen[3], list) and [len(one) for one in seen[3]] == [4, 2]


@pytest.mark.parametrize(
    ("example", "words"),
    [
        ("x", "example is a str"),
        ({0: X}, "keyword arguments by name"),
        ([], "no examples"),
        ([[X]], "example is a list"),
    ],
)
def test_what_is_no_example_is_told(example: Any, words: str) -> None:
    for door in (nervure.trace, nervure.count):
        with pytest.raises(ArgumentError, match=words):
            door(Gated(), example)
    with pytest.raises(ArgumentError, match=words):
        latency({"a": Gated()}, example)


def test_an_example_in_itself_is_told() -> None:
    deep: dict[str, Any] = {}
    deep["x"] = deep
    for example in (deep, (deep,), Inputs((), deep), UserDict({"x": deep})):
        with pytest.raises(ArgumentError, match="nested too deeply"):
            nervure.count(Gated(), example)
    with pytest.raises(ArgumentError, match="kwargs"):
        Inputs((), {0: X})  # type: ignore[dict-item]


def test_inputs_are_moved_resized_copied_and_told() -> None:
    inputs = Inputs((X, 3), {"gate": (GATE, None)})
    assert str(inputs) == "(4, 6) float32, (4, 6) float32" and inputs.samples == 4
    assert inputs.resize(5).kwargs["gate"][0].shape == (5, 6) and inputs.resize(5).args[1] == 3
    assert inputs.to(torch.device("meta")).args[0].is_meta and inputs.to(nn.ReLU()) is inputs
    for other in (copy.copy(inputs), copy.deepcopy(inputs)):
        assert torch.equal(other.args[0], X) and torch.equal(other.kwargs["gate"][0], GATE)
    assert [type(Inputs.of(form).plain()) for form in (X, (X, X), {"x": X}, Inputs((X,), {"y": X}))] == [
        Tensor, tuple, dict, Inputs
    ]  # fmt: skip
    with pytest.raises(ForwardError, match=r"It was given \(4, 6\) float32, \(2,\) int64"):
        Inputs.of((X, torch.tensor([1, 2]))).run(Gated())


def test_a_device_that_gave_up_is_told_with_what_to_do() -> None:
    class GaveUp(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise torch.AcceleratorError("CUDA error: device-side assert triggered\nCUDA kernel errors might be ...")

    with pytest.raises(ForwardError, match=r"assert triggered\. It answers no more .* \(4, 6\) float32 on the CPU"):
        Inputs((X,)).run(GaveUp())
