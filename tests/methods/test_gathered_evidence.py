"""What methods want is gathered first: once, in one place, and in a folder it is kept and gone on from."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.data import DataLoader

from nervure import SNIP, Depth, Energy, GCNet, MagnitudeMasks, N2NSkip, Plan, SynFlow, Taylor, Wanda, trace
from nervure.errors import DataError
from nervure.graph.tape import named_tensors
from nervure.methods import Method, View, gather_evidence
from nervure.methods.blocks.evaluator import BlockEvaluator
from nervure.methods.masks.base_masks import ComputedWeights
from tests.contracts import a_plan_runs_no_network, counting_runs
from tests.old_snacs import old_snacs

pytestmark = pytest.mark.filterwarnings("ignore::nervure.errors.NervureWarning")

KEPT: tuple[Method, ...] = (
    old_snacs(keep=0.6, limits=False),
    GCNet(density=0.6, rounds=2),
    SNIP(density=0.5, steps=2),
    SynFlow(density=0.5, steps=2),
    Wanda(),
    Energy(drop=1, rounds=1),
    Depth(tolerance=0.3),
)


class Residual(nn.Module):
    """Three residual blocks between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(3))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


@cache
def model() -> nn.Module:
    torch.manual_seed(0)
    return Residual().eval()


def view(net: nn.Module | None = None, labels: Callable[[Tensor], Tensor] = lambda y: y) -> View:
    net, x, y = net or model(), torch.randn(60, 6, generator=torch.Generator().manual_seed(1)), torch.arange(60) % 3
    data = list(zip(x.split(20), labels(y).split(20), strict=True))
    weights = {name: tensor.detach() for name, tensor in named_tensors(net).items()}
    return View(trace(net, x[:2]), weights, None, 0, net, x[:2], data)


@pytest.mark.parametrize("method", KEPT, ids=lambda m: type(m).__name__)
def test_what_was_gathered_into_a_folder_is_not_asked_again(method: Any, tmp_path: Path) -> None:
    seen = view() if not method.wants else view().listen(method.wants)
    plan = method.plan(gather_evidence(method, seen, folder=tmp_path))
    with counting_runs() as runs:
        assert method.plan(gather_evidence(method, seen, folder=tmp_path)) == plan
    assert not runs
    assert plan == method.plan(seen)


@pytest.mark.parametrize("method", [SNIP(), GCNet(density=0.5), Energy(drop=1)], ids=lambda m: type(m).__name__)
def test_a_damaged_answer_is_made_again(method: Any, tmp_path: Path) -> None:
    seen = view()
    expected = method.plan(gather_evidence(method, seen, folder=tmp_path))
    (path,) = tmp_path.glob("*/*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-2] + bytes([whole[-2] ^ 64]) + whole[-1:])
    assert method.plan(gather_evidence(method, seen, folder=tmp_path)) == expected
    assert path.read_bytes() == whole


def test_trials_of_blocks_that_were_stopped_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, method, asked = view(), Energy(drop=1), list[Any]()
    expected, real = method.plan(seen), BlockEvaluator.answers_without

    def stopping(judge: BlockEvaluator, names: tuple[str, ...]) -> Tensor:
        asked.append(names)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return real(judge, names)

    monkeypatch.setattr(BlockEvaluator, "answers_without", stopping)
    with pytest.raises(KeyboardInterrupt):
        gather_evidence(method, seen, folder=tmp_path)
    assert method.plan(gather_evidence(method, seen, folder=tmp_path)) == expected
    # The whole network, the first two blocks, where it was stopped; then the whole, and the blocks that were missing.
    assert asked == [(), ("blocks.0",), ("blocks.1",), (), ("blocks.1",), ("blocks.2",)]


@pytest.mark.parametrize("method", [SNIP(density=0.5), Energy(drop=1)], ids=lambda m: type(m).__name__)
def test_other_labels_are_another_question(method: Any, tmp_path: Path) -> None:
    for labels in (lambda y: y, lambda y: (y + 1) % 3):
        gather_evidence(method, view(labels=labels), folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_what_cannot_be_told_apart_later_is_not_kept(tmp_path: Path) -> None:
    method = SNIP(objective=lambda net, batch: net(batch[0]).square().mean())
    gather_evidence(method, view(), folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_scores_of_one_round_serve_every_density() -> None:
    gathered = replace(gather_evidence(SNIP(density=0.5), view()), data=None)
    methods: tuple[Method, ...] = (SNIP(density=0.2), SNIP(density=0.7), N2NSkip(density=0.3, share=0.0))
    with counting_runs() as runs:
        plans = [method.plan(gathered) for method in methods]
    assert not runs
    assert plans == [method.plan(view()) for method in methods]


def test_weights_that_are_computed_are_evidence_too() -> None:
    net = nn.Sequential(weight_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 3)).eval()
    seen = view(net)
    assert a_plan_runs_no_network(seen, MagnitudeMasks(density=0.5)).masks
    assert seen.ask(ComputedWeights(()))


@dataclass(frozen=True)
class Plain:
    """A method of a user, who knows of signals only."""

    wants: ClassVar[frozenset[str]] = frozenset({"activations"})

    def plan(self, view: View) -> Plan:
        """Nothing, of what was measured."""
        assert view.stats is not None
        return Plan((), view.graph.fingerprint, {}, {"heard": sorted(view.stats.activations)[0]})


def test_a_method_that_asks_nothing_needs_no_more_than_wants_and_plan() -> None:
    assert Plain().plan(gather_evidence(Plain(), view())).reached == {"heard": "blocks.0.0"}


def test_what_was_measured_is_not_measured_again() -> None:
    once = gather_evidence(Taylor(), view())
    with counting_runs() as runs:
        assert gather_evidence(Taylor(keep=0.3), once).stats is once.stats
    assert not runs


def test_a_view_without_data_or_model_says_what_is_missing() -> None:
    bare = replace(view(), data=None)
    for method in (Taylor(), Wanda(), Energy(drop=1), old_snacs()):
        with pytest.raises(DataError, match="give data=|Give data="):
            gather_evidence(method, bare)


def test_blocks_are_judged_on_the_same_batches_of_a_loader_that_shuffles() -> None:
    seen = replace(view(), data=DataLoader(torch.arange(40.0), batch_size=4, shuffle=True))
    before = torch.get_rng_state()
    (first, held), (again, also) = (BlockEvaluator(seen, 3)._split() for _ in range(2))
    assert torch.equal(torch.cat(first + held), torch.cat(again + also))
    assert torch.equal(before, torch.get_rng_state())
