"""Cut == zeroed on hundreds of random networks, by two oracles that know nothing of nervure's own check."""

from types import SimpleNamespace

import torch
from hypothesis import HealthCheck, given, settings

from nervure import apply, count, trace, verify
from tests.generated import Generated, networks
from tests.oracle import call, difference, halved, only_read, plan_of, zero_readers, zero_writers

TOLERANCE = 1e-9


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
@given(networks())
def test_random_networks_are_cut_right(generated: Generated) -> None:
    model, example = generated.model, generated.example
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graph = trace(model, example)
    if generated.units is not None:
        # The count knows one way to cut; widths inside blocks can be a second way to cut the same channels.
        free = [g for g in graph.groups if not g.is_pinned]
        assert generated.units in (sum(g.size for g in free), sum(g.size for g in free if g.kind != "widths"))
    keeps = halved(graph)
    plan = plan_of(graph, keeps)
    smaller = apply(model, graph, plan)
    assert verify(model, SimpleNamespace(model=smaller, graph=graph, plan=plan), example).error < TOLERANCE
    found = call(smaller, example)
    if generated.has_plain_norms:
        read = only_read(graph, keeps)
        cut = call(apply(model, graph, plan_of(graph, read)), example)
        assert difference(cut, call(zero_readers(model, graph, read), example)) < TOLERANCE
        # A gate of an excitation may be read again elsewhere, where its half for a silent channel counts.
        if generated.keeps_zero and all(step.name != "sigmoid" for step in model.steps):
            assert difference(found, call(zero_writers(model, graph, keeps), example)) < TOLERANCE
    cost = count(smaller, example)
    assert (graph.params(keeps), graph.macs(keeps)) == (cost.params, cost.macs)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
