"""Every awkward network: cut together, group by group, to the last unit and by blocks; every pin has its reason."""

from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from nervure import Drop, Graph, Plan, apply, count, trace, verify
from tests import networks
from tests.networks import NETWORKS
from tests.oracle import call, difference, double, halved, only_read, plan_of, zero_readers

# The fewest groups that must be found to be prunable; 2 where nothing is said. Fewer than 2: there is only one (as in
# view_linear), or a number in the code or an order among the channels forbids the rest (as in literal_slices).
FEWEST = {
    "fixed_buffer": 1, "scale_from_attribute": 1,
    "permute_flatten": 1, "view_linear": 1, "every_other": 1, "index_select": 1, "roll_channels": 1,
    "sort_channels": 1, "efficient_channel_attention": 1, "shared_twice": 1, "two_inputs": 1,
    "dict_output": 1, "dataclass_output": 1, "literal_slices": 1, "lstm_cell": 1, "shuffle_linear": 1,
    "bias_of_three": 3, "two_towers": 3, "slices_of_three": 4, "slice_writes": 3,
    "projection": 3, "bottlenecks": 3, "concat": 3, "concat_twice": 3, "concat_plus": 3, "dense_block": 4,
    "split_sizes": 4, "chunk_apart": 3, "attribute_slices": 3, "channel_shuffle": 4, "grouped_conv": 4,
    "grouped_chain": 6, "res_next": 4, "depth_multiplier": 3, "conv_transpose": 3, "grouped_transpose": 4, "unet": 7,
    "group_norm": 3, "squeeze_excitation": 3, "channel_attention": 3, "pooling": 3, "padding_modes": 3,
    "partial_conv": 3, "mlp_mixer": 3, "torch_attention": 3, "encoder_layer": 3, "vit": 3, "vit_kernel": 3,
    "separate_qkv": 3, "gqa_repeat": 3, "gqa_kernel": 3, "relative_bias": 3, "rotary": 3, "windows": 3,
}  # fmt: skip

# A statistic over the channels is taken over the survivors, and a tied weight is a writer and a reader at once:
# zeroing readers is no oracle for these.
NOT_ZEROED = {
    "group_norm", "layer_norm", "conv_next", "rms_norm", "global_response_norm", "weight_norm", "channel_attention",
    "softmax_channels", "tied_transposed", "tied_embedding", "mlp_mixer", "encoder_layer", "vit", "vit_kernel",
    "separate_qkv", "gqa_repeat", "gqa_kernel", "relative_bias", "rotary", "windows", "patch_merging",
    "bias_of_three", "sizes_of_the_stream", "two_towers", "cumulative_channels",
}  # fmt: skip

# Attention whose scale is a number that the module keeps (OWN_SCALE), or follows the width of the heads.
OWN_SCALE = ["vit", "vit_kernel", "windows"]
ATTENTION = [
    *OWN_SCALE, "separate_qkv", "gqa_repeat", "gqa_kernel", "relative_bias", "rotary", "torch_attention",
    "encoder_layer", "channel_covariance",
]  # fmt: skip


class Traced(NamedTuple):
    model: nn.Module
    example: Any
    graph: Graph


@cache
def traced(name: str, inside_heads: bool = False) -> Traced:
    model, example, graph = networks.traced(name)
    return Traced(model, example, trace(model, example, inside_heads=True) if inside_heads else graph)


def check(t: Traced, plan: Plan) -> nn.Module:
    smaller = apply(t.model, t.graph, plan)
    assert verify(t.model, SimpleNamespace(model=smaller, graph=t.graph, plan=plan), t.example)
    return smaller


def of_networks(known: dict[str, str], names: Any = NETWORKS) -> pytest.MarkDecorator:
    """Parametrise by network; those in ``known`` fail for the reason given, and must be taken off once they pass."""
    cases = [pytest.param(n, marks=pytest.mark.xfail(reason=known[n], strict=True)) if n in known else n for n in names]
    return pytest.mark.parametrize("name", cases)


@pytest.mark.sampled
@of_networks({})
def test_what_can_be_cut_is_offered_and_what_is_pinned_has_a_reason(name: str) -> None:
    graph = traced(name).graph
    assert len(graph.prunable) >= FEWEST.get(name, 2), graph.describe()
    assert all(g.pinned for g in graph.groups if g not in graph.prunable)


@pytest.mark.sampled
@of_networks({})
def test_halving_groups_computes_what_the_rest_of_the_original_does(name: str) -> None:
    t = traced(name)
    for only in [None, *(g.name for g in t.graph.prunable)]:
        keeps = halved(t.graph, only=only)
        smaller = check(t, plan_of(t.graph, keeps))
        assert t.graph.params(keeps) == sum(p.numel() for p in smaller.parameters())


@pytest.mark.sampled
@of_networks({})
def test_one_unit_may_be_left_of_every_group(name: str) -> None:
    t = traced(name)
    keeps = halved(t.graph, keep=0.01)
    smaller = check(t, plan_of(t.graph, keeps))
    assert t.graph.macs(keeps) == count(smaller, t.example).macs


@pytest.mark.sampled
@of_networks({}, [n for n in NETWORKS if n not in NOT_ZEROED])
def test_a_cut_equals_zeroed_readers(name: str) -> None:
    t = traced(name)
    model, example = double(t.model), double(t.example)
    keeps = only_read(t.graph, halved(t.graph, seed=3))
    found = call(apply(model, t.graph, plan_of(t.graph, keeps)), example)
    assert difference(call(zero_readers(model, t.graph, keeps), example), found) < 1e-9


@pytest.mark.sampled
@of_networks({}, ATTENTION)
def test_heads_become_narrower_only_where_their_scale_does_not_follow(name: str) -> None:
    t = traced(name, inside_heads=True)
    assert name not in OWN_SCALE or any("head_widths" in g.name for g in t.graph.prunable)
    for only in [None, *(g.name for g in t.graph.prunable)]:
        check(t, plan_of(t.graph, halved(t.graph, only=only)))


@pytest.mark.sampled
@of_networks({})
def test_blocks_can_be_dropped_alone_and_with_cuts(name: str) -> None:
    t = traced(name)
    for block in t.graph.blocks:
        if not block.pinned:
            check(t, Plan((Drop(block.name),), t.graph.fingerprint))
            cuts = plan_of(t.graph, halved(t.graph)).cuts
            check(t, Plan((Drop(block.name), *cuts), t.graph.fingerprint))


@pytest.mark.sampled
@of_networks({})
def test_a_cut_network_can_be_traced_and_cut_once_more(name: str) -> None:
    t = traced(name)
    smaller = check(t, plan_of(t.graph, halved(t.graph, keep=0.8)))
    again = Traced(smaller, t.example, trace(smaller, t.example))
    check(again, plan_of(again.graph, halved(again.graph)))


@pytest.mark.sampled
@of_networks({})
def test_a_cut_network_trains(name: str) -> None:
    t = traced(name)
    smaller = apply(t.model, t.graph, plan_of(t.graph, halved(t.graph))).train()
    args, kwargs = ((), t.example) if isinstance(t.example, dict) else (t.example, {})
    output = smaller(*(args if isinstance(args, tuple) else (args,)), **kwargs)
    leaves = torch.utils._pytree.tree_leaves(vars(output) if hasattr(output, "logits") else output)
    sum(x.square().sum() for x in leaves if isinstance(x, torch.Tensor)).backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in smaller.parameters())
