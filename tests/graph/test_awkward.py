"""Every awkward network: cut by halves, together and group by group, verified; nothing pinned without a reason."""

from types import SimpleNamespace

import pytest
import torch

from nervure import apply, trace, verify
from tests.networks import NETWORKS
from tests.oracle import halved, plan_of

# What a tracer gives up on without being wrong; every other network must have at least two groups to cut.
FEWER = {
    "permute_flatten": 1, "view_linear": 1, "every_other": 1, "index_select": 1, "roll_channels": 1,
    "cumulative_channels": 1, "sort_channels": 1, "efficient_channel_attention": 1, "shared_twice": 1, "two_inputs": 1,
    "dict_output": 1, "dataclass_output": 1, "slice_writes": 1, "literal_slices": 1, "lstm_cell": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_halving_every_group_computes_what_the_rest_of_the_original_does(name: str) -> None:
    network = NETWORKS[name]
    model, example = network.factory().eval(), network.example()
    graph = trace(model, example)
    assert len(graph.prunable) >= FEWER.get(name, 2), graph.describe()
    assert all(g.pinned for g in graph.groups if g not in graph.prunable)
    for only in [None, *(g.name for g in graph.prunable)]:
        plan = plan_of(graph, halved(graph, only=only))
        smaller = apply(model, graph, plan)
        assert verify(model, SimpleNamespace(model=smaller, graph=graph, plan=plan), example)
        assert graph.params({c.group: c.keep.tensor() for c in plan.cuts}) == sum(
            p.numel() for p in smaller.parameters()
        )


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_cut_network_trains(name: str) -> None:
    network = NETWORKS[name]
    model, example = network.factory().eval(), network.example()
    graph = trace(model, example)
    smaller = apply(model, graph, plan_of(graph, halved(graph))).train()
    args, kwargs = (
        ((), example) if isinstance(example, dict) else (example if isinstance(example, tuple) else (example,), {})
    )
    with torch.random.fork_rng():
        out = smaller(*args, **kwargs)
    assert out is not None
