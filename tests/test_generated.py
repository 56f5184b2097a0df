"""Cut == zeroed on hundreds of random networks, by two oracles that know nothing of nervure's own check."""

from types import SimpleNamespace

import torch
from hypothesis import HealthCheck, Phase, given, settings
from torch.utils.flop_counter import FlopCounterMode

from nervure import Graph, apply, count, trace, verify
from tests.generated import Generated, networks, shuffle
from tests.oracle import Keeps, call, difference, halved, only_read, plan_of, zero_readers, zero_writers

TOLERANCE = 1e-9


# Shrinking a failure would take as long as the search; the program that failed is short enough to read.
SEARCH = settings(
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)


@settings(SEARCH, max_examples=120)
@given(networks())
def test_random_networks_are_cut_right(generated: Generated) -> None:
    is_cut_right(generated)


@settings(SEARCH, max_examples=50)
@given(networks((shuffle, shuffle, shuffle)))
def test_random_networks_with_channel_shuffles_are_cut_right(generated: Generated) -> None:
    is_cut_right(generated)


def is_cut_right(generated: Generated) -> None:
    """Three ways to cut a network, by every check."""
    model, example = generated.model, generated.example
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graph = trace(model, example)
    every_unit_is_offered(graph, generated)
    for keeps in (halved(graph), last_units(graph), one_group(graph)):
        plan = plan_of(graph, keeps)
        smaller = apply(model, graph, plan)
        found = verify(model, SimpleNamespace(model=smaller, graph=graph, plan=plan), example)
        # A network may be dead behind what was cut: then nothing can be told, and the oracles below decide.
        assert found.error is None or found.error < TOLERANCE
        oracles_agree(generated, graph, keeps)
        costs_are_as_predicted(smaller, generated, graph, keeps)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def last_units(graph: Graph) -> Keeps:
    """One unit of each group."""
    return halved(graph, keep=0.01, seed=1)


def one_group(graph: Graph) -> Keeps:
    """Most units of the middle group: cut with others, a wrong cut can come out right by luck."""
    names = [group.name for group in graph.prunable]
    return halved(graph, keep=0.7, seed=2, only=names[len(names) // 2]) if names else {}


def every_unit_is_offered(graph: Graph, generated: Generated) -> None:
    """Compare with a count that knows one way to cut; widths inside blocks can be a second way for some channels."""
    if generated.units is not None:
        free = [group for group in graph.groups if not group.is_pinned]
        channels = sum(group.size for group in free if group.kind != "widths")
        assert channels <= generated.units <= sum(group.size for group in free), graph.describe()


def oracles_agree(generated: Generated, graph: Graph, keeps: Keeps) -> None:
    """The cut model computes what the original does with its readers, or its writers, at zero."""
    model, example = generated.model, generated.example
    if not generated.has_plain_norms:
        return
    read = only_read(graph, keeps)
    cut = call(apply(model, graph, plan_of(graph, read)), example)
    assert difference(cut, call(zero_readers(model, graph, read), example)) < TOLERANCE
    # A gate of an excitation may be read again elsewhere, where its half for a silent channel counts.
    if generated.keeps_zero and all(step.name != "sigmoid" for step in model.steps):
        cut = call(apply(model, graph, plan_of(graph, keeps)), example)
        assert difference(cut, call(zero_writers(model, graph, keeps), example)) < TOLERANCE


def costs_are_as_predicted(smaller: torch.nn.Module, generated: Generated, graph: Graph, keeps: Keeps) -> None:
    """The graph's prices, nervure's count and torch's own counter say the same."""
    cost = count(smaller, generated.example)
    assert graph.params(keeps) == cost.params == sum(p.numel() for p in smaller.parameters())
    with FlopCounterMode(display=False) as counter:
        call(smaller, generated.example)
    assert graph.macs(keeps) == cost.macs == counter.get_total_flops() // 2
