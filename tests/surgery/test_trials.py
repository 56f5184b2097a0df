"""What is tried while tracing: all that is doubtful, in few runs."""

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
