"""A cut model is still the user's: the same class, and everything else in PyTorch takes it as it takes the original."""

import copy
import warnings
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from nervure import Cut, Graph, Keep, Plan, apply, load, prune, save, trace
from nervure.prune import Pruned
from tests.networks import NETWORKS, Example
from tests.oracle import call, difference, halved, tensors

NAMES = ("residual", "grouped_conv", "unet", "vit", "gqa_repeat", "lstm", "dict_output")
EXPORTED_TO_ONNX = ("residual", "gqa_repeat", "lstm")
"""The exporter takes seconds for each."""
RECURRENT = ("lstm",)
"""torch.compile leaves their layers to run as they are, and torch.export warns of their own lists of weights."""
EXACT = 1e-6
ROUNDED = 1e-4
"""Where another compiler orders the sums."""


@cache
def original(name: str) -> nn.Module:
    return NETWORKS[name].factory()


@cache
def graph_of(name: str) -> Graph:
    return trace(original(name), NETWORKS[name].example())


@cache
def pruned(name: str) -> Pruned:
    """Half of every group, verified."""
    graph = graph_of(name)
    plan = Plan(tuple(Cut(g, Keep.of(keep)) for g, keep in halved(graph).items()), graph.fingerprint)
    assert plan
    return prune(original(name), NETWORKS[name].example(), plan, progress=False)


def fresh(name: str) -> nn.Module:
    """The cut model, for tests that change it."""
    return apply(original(name), pruned(name).graph, pruned(name).plan)


def arguments(example: Example) -> tuple[torch.Tensor, ...]:
    assert not isinstance(example, dict)
    return example if isinstance(example, tuple) else (example,)


def longer(example: Example, times: int = 3) -> tuple[torch.Tensor, ...]:
    """The example with another number of samples."""
    return tuple(torch.cat([x] * times) for x in arguments(example))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_of_the_same_class_with_the_same_names(name: str) -> None:
    smaller, model = pruned(name).model, original(name)
    assert type(smaller) is type(model)
    assert list(smaller.state_dict()) == list(model.state_dict())
    assert [n for n, _ in smaller.named_modules()] == [n for n, _ in model.named_modules()]
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_second_cut_model_takes_its_state_and_so_does_a_copy(name: str) -> None:
    smaller, example = pruned(name).model, NETWORKS[name].example()
    other = fresh(name)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(smaller.state_dict())
    twin = copy.deepcopy(smaller)
    assert difference(call(smaller, example), call(other, example)) == 0
    assert difference(call(smaller, example), call(twin, example)) == 0
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in smaller.parameters()}


@pytest.mark.parametrize("name", NAMES)
def test_a_file_gives_it_back(name: str, tmp_path: Path) -> None:
    save(tmp_path / "m.safetensors", pruned(name))
    again = load(tmp_path / "m.safetensors", NETWORKS[name].factory).model
    example = NETWORKS[name].example()
    assert difference(call(pruned(name).model, example), call(again, example)) == 0


@pytest.mark.parametrize("name", NAMES)
def test_it_learns(name: str) -> None:
    model, example = fresh(name).train(), NETWORKS[name].example()
    before = {key: value.clone() for key, value in model.named_parameters()}
    steps = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = sum(out.square().mean() for out in tensors(model(*arguments(example))))
        assert isinstance(loss, torch.Tensor)
        steps.zero_grad()
        loss.backward()
        steps.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert all(not torch.equal(value, before[key]) for key, value in model.named_parameters())
    assert [p.shape for p in model.parameters()] == [p.shape for p in pruned(name).model.parameters()]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_compiled_in_one_piece_where_the_original_is(name: str) -> None:
    torch._dynamo.reset()
    smaller, example = pruned(name).model, NETWORKS[name].example()
    compiled = torch.compile(smaller, backend="aot_eager", fullgraph=name not in RECURRENT)
    assert difference(call(smaller, example), call(compiled, example)) < EXACT


@pytest.mark.parametrize("name", NAMES)
def test_it_is_exported_for_any_number_of_samples_where_the_original_is(name: str) -> None:
    smaller, example = pruned(name).model, NETWORKS[name].example()
    batch = tuple({0: torch.export.Dim.AUTO} for _ in arguments(example))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if name in RECURRENT else "error")
        exported = torch.export.export(smaller, arguments(example), dynamic_shapes=batch).module()
    for given in (arguments(example), longer(example)):
        assert difference(call(smaller, given), call(exported, given)) < EXACT


@pytest.mark.parametrize("name", EXPORTED_TO_ONNX)
def test_it_runs_in_another_engine(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    engine = pytest.importorskip("onnxruntime")
    smaller, example = pruned(name).model, NETWORKS[name].example()
    with warnings.catch_warnings():
        # The exporter warns of its own internals.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(smaller, arguments(example), dynamo=True, verbose=False)
    assert program is not None
    program.save(str(tmp_path / "m.onnx"))
    session = engine.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    found = session.run(None, dict(zip(names, (x.numpy() for x in arguments(example)), strict=True)))
    expected = list(tensors(call(smaller, example)))
    assert difference(expected, [torch.from_numpy(x) for x in found]) < ROUNDED
