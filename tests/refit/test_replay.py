"""Modules that are done do not run again, and nothing is different for it."""

import copy
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from nervure import Magnitude, prune, zoo
from nervure.refit import refit
from nervure.refit.activations import Enough
from nervure.refit.replay import Replay
from nervure.stats.loaders import Batch
from nervure.zoo.models.densenet import DenseNet

Runs = Counter[str]


class Layer(nn.Module):
    """A product that counts its runs."""

    def __init__(self, runs: Runs, name: str, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear, self.name, self.__dict__["runs"] = nn.Linear(inputs, outputs), name, runs

    def forward(self, x: Tensor) -> Tensor:
        self.runs[self.name] += 1
        found: Tensor = self.linear(x).relu()
        return found


class Pyramid(nn.Module):
    """Down and up again: what is above looks at what was below, with operators of its own between the modules."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.runs = Runs()
        self.a, self.b = Layer(self.runs, "a", 4, 8), Layer(self.runs, "b", 8, 6)
        self.c, self.d = Layer(self.runs, "c", 6, 8), Layer(self.runs, "d", 16, 5)
        self.head, self.act = nn.Linear(5, 3), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.act(self.b(a) - 0.1)
        c = self.c(b)
        d = self.d(torch.cat([a * 2, c], dim=1))
        found: Tensor = self.head(d)
        return found


class Shared(Pyramid):
    """One parameter is used by two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.e = Layer(self.runs, "e", 4, 8)
        self.e.linear.weight = self.a.linear.weight

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = super().forward(x) + self.e(x)[:, :3]
        return found


def data(size: int = 64) -> Tensor:
    return torch.randn(size, 4, generator=torch.Generator().manual_seed(1))


def batch() -> Batch:
    return Batch(data(8), 8)


@pytest.mark.parametrize(
    ("pending", "stay"),
    [
        ([("head.weight", 0)], []),
        ([("d.linear.weight", 0)], ["d"]),
        ([("c.linear.weight", 0)], ["c", "d"]),
        ([("c.linear.weight", 0), ("head.weight", 0)], ["c", "d"]),
        ([("a.linear.weight", 0)], ["a", "b", "c", "d"]),
    ],
)
def test_what_runs_before_all_that_is_pending_is_left_out(pending: list[tuple[str, int]], stay: list[str]) -> None:
    model = Pyramid().eval()
    expected = model(data(8))
    replay = Replay(model, batch())
    replay.advance(pending, [batch()])
    model.runs.clear()
    with replay.skipped(0), torch.no_grad():
        assert torch.equal(model(data(8)), expected)
    assert sorted(model.runs) == stay
    assert all("forward" not in vars(module) for module in model.modules())


def test_each_part_of_the_data_gets_its_own() -> None:
    model = Pyramid().eval()
    parts = [Batch(part, 8) for part in data().split(8)]
    replay = Replay(model, parts[0])
    for key in ("b.linear.weight", "d.linear.weight"):
        replay.advance([(key, 0)], parts)
    for number, part in enumerate(parts):
        with replay.skipped(number), torch.no_grad():
            assert torch.equal(model(part.inputs), Pyramid().eval()(part.inputs))


def test_modules_that_share_a_parameter_run() -> None:
    model = Shared().eval()
    replay = Replay(model, batch())
    replay.advance([("head.weight", 0)], [batch()])
    model.runs.clear()
    with replay.skipped(0), torch.no_grad():
        model(data(8))
    assert sorted(model.runs) == ["a", "e"]


class Drawing(nn.Module):
    """Numbers are drawn in one module and the next."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)
        self.noise = nn.Module()
        self.noise.forward = lambda x: x + torch.randn_like(x)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.second(self.noise(self.noise(self.first(x))) + torch.randn(()))
        return found


def test_a_model_that_gives_something_else_without_them_runs_whole() -> None:
    model = Drawing().eval()
    replay = Replay(model, batch())
    replay.advance([("second.weight", 0)], [batch()])
    with replay.skipped(0):
        torch.manual_seed(0)
        found = model(data(8))
    torch.manual_seed(0)
    assert torch.equal(found, model(data(8)))


SMALL = [
    zoo.build("resnet8", in_channels=1),
    DenseNet(depth=16, in_channels=1, num_classes=10, growth=4, bottleneck=False),
    zoo.build("vit_tiny", in_channels=1, image_size=16, patch=4, dim=16, depth=2, heads=2),
]


class Wide(nn.Module):
    """Runs on eight samples at a time, and on no other number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.second(self.first(x).view(8, 4).relu())
        return found


def test_a_model_that_runs_on_whole_batches_only_is_looked_at_on_one() -> None:
    model = Wide().eval()
    replay = Replay(model, batch())
    replay.advance([("second.weight", 0)], [batch()])
    model.first.weight.data.zero_()
    with replay.skipped(0), torch.no_grad():
        assert float(model(data(8)).std(0).min()) > 0


@pytest.mark.filterwarnings("ignore:too few samples")
@pytest.mark.parametrize("model", SMALL, ids=lambda model: type(model).__name__)
def test_a_refit_is_that_of_running_all_again(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    model.eval()
    images = torch.rand(24, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    pruned = prune(model, images[:2], Magnitude(keep=0.5), progress=False, verify=False)
    short = refit(pruned, [images], reference=model, progress=False)
    monkeypatch.setattr(Replay, "advance", lambda *args: None)
    whole = refit(pruned, [images], reference=model, progress=False)
    assert short.layers == whole.layers
    for one, other in zip(short.result.model.parameters(), whole.result.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_nothing_runs_behind_what_is_wanted() -> None:
    model = Pyramid().eval()
    replay = Replay(model, batch())
    model.runs.clear()
    with replay.stopped([("b.linear.weight", 0)]), pytest.raises(Enough):
        model(data(8))
    assert sorted(model.runs) == ["a", "b"]
    with replay.stopped([("head.weight", 0)]):
        assert model(data(8)).shape == (8, 3)


def test_what_runs_before_a_module_is_left_out() -> None:
    model = Pyramid().eval()
    replay = Replay(model, batch())
    replay.advance(["c"], [batch()])
    model.runs.clear()
    with replay.skipped(0), torch.no_grad():
        model(data(8))
    assert sorted(model.runs) == ["c", "d"]


class Cell(nn.Module):
    """Two products in a block of its own, so that it is gone through in parts; what is between them is told."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.first, self.between, self.second = nn.Linear(8, 8), between, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = self.between(y)
        found: Tensor = x + self.second(y if z is None else y + z)
        return found


class Overwrite(nn.Module):
    """Writes into what it is given, and gives nothing."""

    def forward(self, x: Tensor) -> None:
        x.relu_()


class Same(nn.Module):
    """Gives what it is given, which is written to afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.same, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        kept: Tensor = self.same(x)
        self.act(x)
        return kept


class Note(nn.Module):
    """Writes down what another module reads."""

    def __init__(self) -> None:
        super().__init__()
        self.write, self.product, self.read = nn.Module(), nn.Linear(8, 8), nn.Module()
        note: dict[str, Tensor] = {}
        self.write.forward = lambda x: note.update(x=x * 2) or x * 1
        self.read.forward = lambda x: x + note.pop("x")
        self.__dict__["note"] = note

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.read(self.product(self.write(x)).relu())
        return found


class Matrix(nn.Module):
    """Gives a parameter, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Module()
        self.table.weight = nn.Parameter(torch.randn(8, 8))
        self.table.forward = lambda: self.table.weight.t()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x.relu() @ self.table()
        return found


class Depends(nn.Module):
    """Another way on more than two samples: what was not read is, and a module runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.other = nn.LayerNorm(8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        other, found = self.other(x), self.norm(x).relu()
        return found if len(x) <= 2 else self.norm(found + other)


class Hooked(nn.Module):
    """A hook changes what a product gives."""

    def __init__(self) -> None:
        super().__init__()
        self.product = nn.Linear(8, 8)
        self.product.register_forward_hook(lambda module, args, out: out * 1.5)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.product(x).relu()
        return found


class Noisy(nn.Module):
    """Draws random numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn(x.shape)


def cells(between: type[nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), Cell(between()), Cell(between()), nn.Linear(8, 3)).eval()


def same_bias() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(n, 8), nn.ReLU()) for n in (4, 8, 8, 8)), nn.Linear(8, 3))
    model[3][0].bias = model[1][0].bias
    return model.eval()


STRANGE = {
    **{kind.__name__: cells(kind) for kind in (Overwrite, Same, Note, Matrix, Depends, Hooked, Noisy)},
    "SameBias": same_bias(),
}


@pytest.mark.filterwarnings("ignore:too few samples")
@pytest.mark.parametrize("name", STRANGE)
def test_a_strange_model_is_refitted_as_if_all_ran_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = STRANGE[name]
    pruned = copy.deepcopy(model)
    for parameter in pruned.parameters():
        parameter.data.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    if name == "SameBias":
        assert pruned[3][0].bias is pruned[1][0].bias
    short = refit(pruned, [data()], reference=model, progress=False)
    monkeypatch.setattr(Replay, "advance", lambda *args: None)
    whole = refit(pruned, [data()], reference=model, progress=False)
    assert short.layers == whole.layers
    for one, other in zip(short.result.parameters(), whole.result.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_was_not_read_is_kept_where_it_is_read_again() -> None:
    model = Pyramid().eval()
    expected = model(data(8))
    replay = Replay(model, batch())
    for key in ("head.weight", "b.linear.weight"):
        replay.advance([(key, 0)], [batch()])
    with replay.skipped(0), torch.no_grad():
        assert torch.equal(model(data(8)), expected)
