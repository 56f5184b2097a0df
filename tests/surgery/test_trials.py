"""What is tried while tracing: all that is doubtful, in few runs."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

import nervure.tracing
from nervure import Cut, Drop, Graph, prune, trace
from nervure.methods import Magnitude
from nervure.surgery.blame import Edit
from nervure.surgery.checker import Checker
from tests.networks import NETWORKS

SEQUENCE = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


def layers(count: int) -> nn.Module:
    """A transformer of this many layers."""
    return nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), count, enable_nested_tensor=False
    ).eval()


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[list[Edit]]:
    """The edits of each trial."""
    trials, why_wrong = [], nervure.tracing.why_wrong

    def watched(checker: Checker, graph: Graph, edits: list[Edit]) -> str:
        trials.append(list(edits))
        return why_wrong(checker, graph, edits)

    monkeypatch.setattr(nervure.tracing, "why_wrong", watched)
    return trials


def test_blocks_and_groups_that_are_right_are_tried_together(tried: list[list[Edit]]) -> None:
    graph = trace(layers(4), SEQUENCE)
    heads = [group.name for group in graph.groups if group.kind == "heads"]
    assert len(heads) == 4 and not any(graph[name].is_pinned for name in heads)
    assert len(tried) <= 2
    assert {Cut, Drop} == {type(edit) for edit in tried[0]}


def test_a_group_inside_of_the_only_block_of_its_kind_is_cut_in_a_trial_of_its_own(tried: list[list[Edit]]) -> None:
    network = NETWORKS["encoder_layer"]
    graph = trace(network.factory().eval(), network.example())
    (block,) = graph.blocks[:1]
    assert [Drop(block.name)] in [[edit for edit in edits if isinstance(edit, Drop)] for edits in tried]
    alone = [edits for edits in tried if not any(isinstance(edit, Drop) for edit in edits)]
    assert "layer.self_attn" in {edit.group for edits in alone for edit in edits if isinstance(edit, Cut)}


RUNS = torch.zeros((), dtype=torch.long)
"""How often a model ran: what a model cannot reach, nobody puts back."""


class Counted(nn.Module):
    """Counts its runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        RUNS.data.add_(1)
        return self.last(self.first(x).relu())


def test_a_verified_prune_runs_a_model_ten_times_smaller_or_not() -> None:
    RUNS.zero_()
    assert prune(Counted().eval(), torch.randn(3, 8), Magnitude(keep=0.5), progress=False).verification is not None
    assert int(RUNS) == 10


class Weighed(nn.Module):
    """Experts in a row, each weighed by its column of a gate: none can leave its list."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.gate = nn.Linear(6, number)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 6)) for _ in range(number))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, y = self.gate(x).softmax(-1), x
        for number, expert in enumerate(self.experts):
            y = y + weights[:, number, None] * expert(y)
        return y


class Plain(Weighed):
    """The same without weighing: here they can."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x + 0 * self.gate(x).sum(-1, keepdim=True)
        for expert in self.experts:
            y = y + expert(y)
        return y


@pytest.mark.parametrize("depth", [2, 6])
def test_lists_that_are_alike_are_tried_once(tried: list[list[Edit]], depth: int) -> None:
    torch.manual_seed(0)
    blocks = [kind(4) for kind in (Weighed, Plain) for _ in range(depth)]
    model = nn.Sequential(OrderedDict((f"{type(one).__name__}{i}", one) for i, one in enumerate(blocks))).eval()
    graph = trace(model, torch.randn(5, 6))
    elements = {block.element.rpartition(".")[0] for block in graph.blocks if block.element}
    assert elements == {f"Plain{i}.experts" for i in range(depth, 2 * depth)}
    assert len(tried) <= 8
