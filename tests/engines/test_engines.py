"""Every engine runs a module as the module runs itself: same structure, same numbers, any number of samples."""

import builtins
import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nervure.core.inputs import Inputs
from nervure.engines import ENGINES, prepare, require_engine, runner
from nervure.engines.exported import export_graph, tell_misfits
from nervure.errors import ArgumentError, EngineError, ForwardError, MissingExtraError
from nervure.evaluation import latency

OTHERS = [name for name in ENGINES if name != "eager"]


class Nested(nn.Module):
    """Takes what it likes, and returns a dict with a pair and something that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(4, 6)

    def forward(self, x: Tensor, y: Tensor, scale: float = 2.0) -> dict[str, Any]:
        a = self.first(x).relu()
        return {"both": (a - self.second(y), scale * a), "none": None, "sum": x.sum(1)}


class FixedSamples(nn.Module):
    """Runs with four samples only."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(4, 2, 2) + 1


def same(expected: Any, found: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ENGINES)
def test_inputs_and_outputs_have_the_form_that_the_module_gives_them(name: str) -> None:
    torch.manual_seed(0)
    model = Nested().eval()
    x, y = torch.randn(2, 4), torch.randn(2, 4)
    # By keyword in another order than that of the signature: engines only know positions.
    run = runner(name, model, {"y": y, "x": x})
    for samples in (2, 1, 5):
        given = {"y": torch.randn(samples, 4), "x": torch.randn(samples, 4)}
        found, expected = run(given), model(**given)
        assert isinstance(found["both"], tuple) and found["none"] is None
        same(expected, found)


@pytest.mark.parametrize("name", ENGINES)
def test_positional_arguments_and_the_number_of_threads_are_taken(name: str) -> None:
    torch.manual_seed(0)
    model, before = Nested().eval(), torch.get_num_threads()
    x, y = torch.randn(2, 4), torch.randn(2, 4)
    run = runner(name, model, (x, y), threads=before + 1)
    same(model(x, y), run((x, y)))
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("name", [name for name, engine in ENGINES.items() if "bf16" in engine.precisions])
def test_bf16_is_near_but_not_the_same(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
    x = torch.randn(16, 64)
    found = runner(name, model, x, precision="bf16")(x).float()
    expected = model(x).detach()
    difference = float((found - expected).abs().max())
    if name != "openvino":  # which takes the hint only on processors with bf16
        assert difference > 1e-5
    assert difference < 0.05


def test_a_model_that_fixes_its_samples_runs_with_as_many() -> None:
    x = torch.randn(4, 4)
    program = prepare("openvino", FixedSamples().eval(), x)
    assert program.samples == 4
    same(FixedSamples()(x), program.runner(1)(x))


def test_each_network_of_a_class_is_compiled() -> None:
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        for width in (3, 4):
            model, x = nn.Linear(width, 2).eval(), torch.randn(2, width)
            same(model(x), runner("compile", model, x)(x))


@pytest.mark.parametrize("name", OTHERS)
def test_a_missing_library_is_told_with_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ENGINES[name]
    real: Callable[..., Any] = importlib.import_module

    def without(module: str, *rest: Any) -> Any:
        if module in engine.libraries:
            raise ImportError(module)
        return real(module, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    if not engine.libraries:
        assert require_engine(name) is engine
        return
    with pytest.raises(MissingExtraError, match=rf"engine '{name}' .*pip install '\.\[{engine.extra}\]'"):
        require_engine(name)


def test_what_cannot_be_run_is_refused() -> None:
    x, model = torch.zeros(1, 2), nn.Linear(2, 2)
    with pytest.raises(ArgumentError, match=r"'onnx' is not one of 'eager', .* Did you mean 'onnxruntime'"):
        runner("onnx", model.eval(), x)
    with pytest.raises(ArgumentError, match="precision of the engine 'onnxruntime'='bf16'"):
        runner("onnxruntime", model, x, precision="bf16")
    with pytest.raises(ArgumentError, match="training mode"):
        runner("eager", model.train(), x)

    class Untraceable(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + builtins.len(str(float(x.sum())))

    with pytest.raises(EngineError, match=r"torch\.export cannot read Untraceable"):
        runner("openvino", Untraceable().eval(), x)


def test_latency_is_measured_by_engine_and_compared_within_it() -> None:
    models = {"wide": nn.Linear(4, 8), "narrow": nn.Linear(4, 2)}
    table = latency(
        models,
        torch.randn(2, 4),
        engine=["openvino", "eager"],
        batch_sizes=(1, 3),
        rounds=3,
        seconds=0.0,
        warmup=1,
    )
    assert table.engines == ("openvino", "eager")
    assert len(table.rows) == 2 * 2 * 2
    for engine in table.engines:
        assert table.speedup("wide", 3, engine=engine) == 1.0
        assert table.row("narrow", 3, engine=engine).engine == engine
    assert "openvino" in str(table)


class Cache:
    """What some models return for their next call; not known to torch.export."""


class Caching(nn.Module):
    """Returns a cache unless it is told not to."""

    def forward(self, x: Tensor, use_cache: bool = True) -> Any:
        return (x + 1, Cache()) if use_cache else (x + 1,)


class Branching(nn.Module):
    """Takes a branch by its numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x - 1


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_inputs_that_an_engine_does_not_take_are_told_with_those_that_it_does(name: str) -> None:
    run = runner(name, nn.Linear(8, 3).eval(), torch.rand(2, 8))
    with pytest.raises(EngineError, match=r"on \(2, 9\) float32: .*exported for \(any, 8\) float32. Give such inputs"):
        run(torch.rand(2, 9))
    with pytest.raises(EngineError, match=r"exported for \(any, 8\) float32"):
        run((torch.rand(2, 8), torch.rand(2, 8)))
    same(run(torch.zeros(3, 8)), run(torch.zeros(1, 8)).expand(3, -1))


def test_what_cannot_be_exported_is_told_with_what_to_do() -> None:
    x = torch.rand(2, 4)
    with pytest.raises(EngineError, match=r"Caching: it returns a cache .*use_cache=False to the example\.$"):
        export_graph(Caching(), Inputs((x,)))
    assert export_graph(Caching(), Inputs((), {"x": x, "use_cache": False})).dynamic
    with pytest.raises(EngineError, match=r"Branching: its forward branches on numbers.*torch\.where"):
        export_graph(Branching(), Inputs((x,)))
    with pytest.raises(EngineError, match=r"FixedSamples .* but it can for 4 as in the example: give dynamic=False"):
        export_graph(FixedSamples(), Inputs((torch.rand(4, 4),)), dynamic=True)
    with pytest.raises(ForwardError, match=r"given \(2, 9\) float32"):
        export_graph(nn.Linear(8, 3), Inputs((torch.rand(2, 9),)))


def test_a_number_of_samples_that_an_engine_cannot_take_is_told_to_be_fixed() -> None:
    graph = export_graph(nn.Linear(8, 3).eval(), Inputs((torch.rand(2, 8),)))

    def run(inputs: Any) -> Any:
        raise RuntimeError("reshape of node 7")

    with pytest.raises(EngineError, match=r"Toy cannot run .* reshape of node 7\. .* alone: dynamic=False"):
        tell_misfits("Toy", graph, run)(torch.rand(5, 8))
