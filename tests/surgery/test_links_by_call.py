"""What a link carries belongs to one call: in threads, behind checkpoints, in copies, pickles and other processes."""

import copy
import io
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nervure import Keep, Link, Plan, apply, trace
from nervure.plan import Route
from nervure.surgery.link import Ends

REGIONS = {"target": ((1, 3),), "source": ((0, 2),), "both": ((0, 4),), "apart": ((0, 2), (2, 4))}
"""From and to which layer is computed again; the link goes from the first to the third."""


class Tower(nn.Module):
    """Five layers, stretches of which are checkpointed."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 2)]
        )
        self.regions: tuple[tuple[int, int], ...] = ()
        self.reentrant = False

    def stretch(self, first: int, last: int, x: Tensor) -> Tensor:
        for layer in self.layers[first:last]:
            x = layer(x).tanh()
        return x

    def forward(self, x: Tensor) -> Tensor:
        place = 0
        for first, last in self.regions:
            x = self.stretch(place, first, x)
            x = checkpoint(partial(self.stretch, first, last), x, use_reentrant=self.reentrant)
            place = last
        return self.stretch(place, 5, x)


def linked(*, reads: str = "") -> Tower:
    """A tower with a link from its first layer (or what ``reads`` is given) to its third."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Tower()
    graph = trace(model, torch.randn(3, 4))
    keep = Keep.of(torch.ones(5, 4 if reads else 6, dtype=torch.bool))
    link = Link("" if reads else "layers.0", "layers.2", keep, Route(std=1.0, reads=reads))
    made = apply(model, graph, Plan((link,), graph.fingerprint))
    assert isinstance(made, Tower)
    return made


@pytest.fixture
def inputs() -> Iterator[list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    yield [torch.randn(3, 4, generator=generator) for _ in range(2)]


def gradients(model: Tower, xs: list[Tensor], *, together: bool = True) -> dict[str, Tensor]:
    """Of the summed squares of the outputs for several inputs, all forward passes first."""
    model.zero_grad()
    xs = [x.clone().requires_grad_() for x in xs]
    losses = [model(x).square().sum() for x in xs]
    for loss in [torch.stack(losses).sum()] if together else losses:
        loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {**found, **{f"x{i}": x.grad for i, x in enumerate(xs)}}  # type: ignore[dict-item]


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("reads", ["", "layers.0"])
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("regions", REGIONS)
def test_gradients_with_checkpoints_are_those_without(
    regions: str, reentrant: bool, reads: str, together: bool, inputs: list[Tensor]
) -> None:
    model = linked(reads=reads).train()
    expected = gradients(model, inputs)
    model.regions, model.reentrant = REGIONS[regions], reentrant
    found = gradients(model, inputs, together=together)
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-6), name


def test_threads_do_not_hear_each_other(inputs: list[Tensor]) -> None:
    model = linked().eval()
    expected, wrong = [model(x) for x in inputs], []

    def run(number: int) -> None:
        with torch.no_grad():
            wrong.extend(number for _ in range(200) if not torch.equal(model(inputs[number]), expected[number]))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_link_is_pickled_and_copied_with_its_two_ends(inputs: list[Tensor]) -> None:
    model = linked().eval()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (torch.load(file, weights_only=False), copy.deepcopy(model)):
        assert torch.equal(twin(inputs[0]), model(inputs[0]))
        with torch.no_grad():
            twin.layers[0].weight.zero_()
        assert not torch.equal(twin(inputs[0]), model(inputs[0]))
        assert type(twin.layers[2]).__name__ == "Linear"
        assert twin.state_dict().keys() == model.state_dict().keys()


def _said(model: nn.Module, x: Tensor, pipe: Any) -> None:
    pipe.send(model(x).detach().numpy().tolist())


def test_a_started_process_runs_it(inputs: list[Tensor]) -> None:
    model, context = linked().eval(), torch.multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_said, args=(model, inputs[0], theirs))
    process.start()
    theirs.close()
    assert torch.allclose(torch.tensor(mine.recv()), model(inputs[0]), atol=1e-6)
    process.join()


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_compiled_and_exported_it_is_an_ordinary_graph(inputs: list[Tensor]) -> None:
    model = linked().eval()
    for made in (
        torch.compile(model, backend="eager", fullgraph=True),
        torch.export.export(model, (inputs[0],)).module(),
        torch.jit.trace(model, (inputs[0],)),
    ):
        assert torch.allclose(made(inputs[1]), model(inputs[1]), atol=1e-6)
    torch.compiler.reset()


def test_gradients_of_each_sample_are_those_of_one_alone(inputs: list[Tensor]) -> None:
    model = linked().train()
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, weights, (x[None],)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, inputs[0])
    alone = gradients(model, [inputs[0][1:2]])
    assert all(torch.allclose(each[name][1], alone[name], atol=1e-6) for name in weights)


def test_nothing_is_held_between_passes(inputs: list[Tensor]) -> None:
    model = linked()
    signals = [signal for layer in model.layers for signal in getattr(layer, "_ends", Ends()).said]
    for mode in (model.eval(), model.train()):
        with torch.set_grad_enabled(mode.training):
            out = mode(inputs[0])
        del out
        (signal,) = signals
        assert (signal.traced, signal._given, len(signal._waiting), len(signal._calls)) == (None, {}, 0, 0)
