"""Cutting, dropping, masking, linking, and the check that would catch a wrong cut."""

import copy
from dataclasses import replace
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nervure import Cut, Drop, Graph, Keep, Link, Magnitude, Mask, Plan, apply, prune, trace, verify
from nervure.errors import PlanError, VerificationError
from nervure.surgery import masks_after
from nervure.zoo import build
from tests.networks import NETWORKS, seeded

IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def resnet() -> nn.Module:
    torch.manual_seed(0)
    model = build("resnet20", width=0.5).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.normal_(module.bias)
    return model


def half(graph: Graph) -> Plan:
    return Plan(tuple(Cut(g.name, Keep.of(torch.arange(g.size) % 2 == 0)) for g in graph.prunable), graph.fingerprint)


def result(model: nn.Module, graph: Graph, plan: Plan) -> Any:
    return SimpleNamespace(model=apply(model, graph, plan), graph=graph, plan=plan)


def test_apply_leaves_its_input_alone_bit_for_bit() -> None:
    model = resnet()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    graph = trace(model, IMAGE)
    smaller = apply(model, graph, half(graph))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert type(smaller) is type(model)
    assert {k for k, _ in smaller.named_parameters()} == {k for k, _ in model.named_parameters()}
    assert not {p.data_ptr() for p in smaller.parameters()} & {p.data_ptr() for p in model.parameters()}


def test_a_wrong_cut_is_caught() -> None:
    model = resnet()
    graph = trace(model, IMAGE)
    pruned = result(model, graph, half(graph))
    assert verify(model, pruned, IMAGE).error < 1e-4
    with torch.no_grad():
        pruned.model.layer2[0].conv1.weight[0] += 0.3
    with pytest.raises(VerificationError, match="differs"):
        verify(model, pruned, IMAGE)


def test_a_cut_by_another_plan_is_caught() -> None:
    model = resnet()
    graph = trace(model, IMAGE)
    name = graph.prunable[2].name
    one, other = (Plan((Cut(name, Keep.of(torch.arange(graph[name].size) % 2 == i)),)) for i in (0, 1))
    with pytest.raises(VerificationError):
        verify(model, SimpleNamespace(model=apply(model, graph, one), graph=graph, plan=other), IMAGE)


def test_a_model_that_no_longer_runs_is_caught() -> None:
    model = resnet()
    graph = trace(model, IMAGE)
    pruned = result(model, graph, half(graph))
    pruned.model.fc = nn.Linear(3, 10)
    with pytest.raises(VerificationError, match="does not run"):
        verify(model, pruned, IMAGE)


def test_an_original_that_cannot_be_run_without_the_removed_units_is_said_so() -> None:
    runs = count(1)

    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for _ in range(next(runs)):
                x = x.relu()
            return self.last(x)

    with pytest.raises(VerificationError, match="the same operators"):
        prune(Moody(), torch.randn(2, 4), Magnitude(keep=0.5))


def test_an_example_that_goes_another_way_through_the_model_is_said_so() -> None:
    class Way(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.more, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.last(self.more(y).relu() if len(x) > 4 else y)

    model, long, short = seeded(Way), torch.randn(6, 4), torch.randn(2, 4)
    pruned = prune(model, long, Magnitude(keep=0.5))
    assert verify(model, pruned, long[:5])
    with pytest.raises(VerificationError, match=r"on this example \(\(2, 4\) float32\).*'more' had 8 units.*no such"):
        verify(model, pruned, short)
    with pytest.raises(PlanError, match="another shape or dtype"):
        prune(model, short, pruned.plan)


def test_one_unit_left_before_a_mean_is_no_failure_of_the_check() -> None:
    model, example = NETWORKS["channel_attention"].factory(), NETWORKS["channel_attention"].example()
    assert prune(model, example, Magnitude(keep=0.05, scope="layer")).verification is not None


def test_verifying_keeps_training_flags() -> None:
    model = resnet().train()
    model.bn1.eval()
    pruned = prune(model, IMAGE, Magnitude(keep=0.5))
    assert model.training
    assert not model.bn1.training
    assert pruned.verification is not None


@pytest.mark.parametrize("block", ["layer1.0", "layer2.0", "layer3.2"])
def test_a_dropped_block_is_its_branch_set_to_zero(block: str) -> None:
    model = resnet()
    graph = trace(model, IMAGE)
    pruned = result(model, graph, Plan((Drop(block),), graph.fingerprint))
    silent = copy.deepcopy(model)
    silent.get_submodule(f"{block}.bn2").register_forward_hook(lambda m, a, out: torch.zeros_like(out))
    assert torch.allclose(pruned.model(IMAGE), silent(IMAGE), atol=1e-6)
    verify(model, pruned, IMAGE)
    assert sum(p.numel() for p in pruned.model.parameters()) < sum(p.numel() for p in model.parameters())


def test_drops_and_cuts_compose_in_one_plan_and_in_two() -> None:
    model = resnet()
    graph = trace(model, IMAGE)
    plan = Plan((*half(graph).edits, Drop("layer1.1"), Drop("layer2.0")), graph.fingerprint)
    pruned = result(model, graph, plan)
    verify(model, pruned, IMAGE)
    dropped = apply(model, graph, Plan(plan.drops))
    again = trace(dropped, IMAGE)
    smaller = result(dropped, again, half(again))
    verify(dropped, smaller, IMAGE)
    assert smaller.model(torch.randn(5, 3, 32, 32)).shape == (5, 10)


@pytest.mark.parametrize(("name", "kind"), [("densenet40", "dense"), ("vit_tiny", "module"), ("vit_tiny", "residual")])
def test_every_kind_of_block_can_be_dropped(name: str, kind: str) -> None:
    options = {"depth": 2} if name == "vit_tiny" else {}
    model = build(name, **options).eval()
    graph = trace(model, IMAGE)
    blocks = [b for b in graph.blocks if b.kind == kind]
    pruned = result(model, graph, Plan((Drop(blocks[0].name), Drop(blocks[-1].name))))
    verify(model, pruned, IMAGE)
    assert trace(pruned.model, IMAGE).prunable


def test_a_layer_whose_input_lies_otherwise_in_memory_than_its_output_can_be_dropped() -> None:
    """Operators are chosen by memory layout: the original must run the same ones with the layer silent."""

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.out = nn.Conv2d(3, 16, 3, stride=4), nn.Linear(16, 2)
            self.encoder = nn.TransformerEncoder(
                nn.TransformerEncoderLayer(16, 2, 20, 0.0), 2, enable_nested_tensor=False
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.encoder(self.stem(x).flatten(2).permute(2, 0, 1)))

    model = seeded(Detector)
    graph = trace(model, IMAGE)
    pruned = result(model, graph, Plan((Drop("encoder.layers.0"),)))
    assert verify(model, pruned, IMAGE)
    x = model.stem(IMAGE).flatten(2).permute(2, 0, 1)
    assert torch.allclose(pruned.model(IMAGE), model.out(model.encoder.layers[1](x)), atol=1e-5)


def test_what_listens_to_another_stream_as_well_can_be_dropped() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.read, self.out = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)
            self.layers = nn.ModuleList(nn.TransformerDecoderLayer(8, 2, 12, 0.0, batch_first=True) for _ in "ab")

        def forward(self, x: Tensor, memory: Tensor) -> Tensor:
            x, memory = self.stem(x), self.read(memory)
            for layer in self.layers:
                x = layer(x, memory)
            return self.out(x)

    model, example = seeded(Decoder), (torch.randn(2, 5, 6), torch.randn(2, 7, 6))
    graph = trace(model, example)
    assert {"layers.1.multihead_attn", "layers.1"} <= {b.name for b in graph.blocks if not b.pinned}
    for block in ("layers.1.multihead_attn", "layers.1"):
        pruned = result(model, graph, Plan((*half(graph).edits, Drop(block))))
        assert verify(model, pruned, example)


def test_masks_are_exact_zeros_and_follow_a_cut() -> None:
    model = resnet()
    graph = trace(model, IMAGE)
    name = "layer2.0.conv1.weight"
    keep = torch.rand(model.get_parameter(name).shape, generator=torch.Generator().manual_seed(1)) > 0.5
    plan = Plan((*half(graph).edits, Mask(name, Keep.of(keep))), graph.fingerprint)
    pruned = result(model, graph, plan)
    verify(model, pruned, IMAGE)
    mask = masks_after(graph, plan)[name]
    weight = pruned.model.get_parameter(name)
    assert mask.shape == weight.shape
    assert torch.equal(weight == 0, ~mask)
    assert torch.equal(mask, keep[::2, ::2])


def test_links_start_silent_train_and_survive_copies_and_export() -> None:
    model = resnet()
    graph = trace(model, IMAGE)
    keep = torch.rand(16, 8, generator=torch.Generator().manual_seed(2)) < 0.3
    linked = apply(model, graph, Plan((Link("layer1.0.conv1", "layer2.1.conv1", Keep.of(keep)),)))
    assert torch.allclose(linked(IMAGE), model(IMAGE), atol=1e-6)
    linked(IMAGE).square().sum().backward()
    weight = linked.layer2[1].conv1.link_0.map.weight
    assert weight.shape == (16, 8, 1, 1)
    assert weight.grad[keep].any()
    nn.init.normal_(weight)
    out = linked(IMAGE)
    twin = copy.deepcopy(linked)
    nn.init.zeros_(weight)
    assert torch.equal(twin(IMAGE), out)
    assert torch.allclose(torch.export.export(twin, (IMAGE,)).module()(IMAGE), out, atol=1e-5)
    assert trace(twin, IMAGE).prunable


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Cut("layer1.0.conv1", Keep.of([True])), "8 units"),
        (Cut("layer1.0.conv1", Keep.of([False] * 8)), "fall apart"),
        (Cut("layer9", Keep.of([True])), "no group"),
        (Cut("fc", Keep.of([True] * 9 + [False])), "pinned"),
        (Drop("layer9"), "no block"),
        (Mask("fc.wight", Keep.of([True])), "no such tensor"),
        (Mask("fc.weight", Keep.of([True])), "shape"),
        (Link("layer1.0.conv1", "layer2.1.conv1", Keep.of([True])), "shape"),
    ],
)
def test_an_edit_that_does_not_fit_is_refused_with_what_is_wrong(edit: Any, message: str) -> None:
    model = resnet()
    graph = trace(model, IMAGE)
    with pytest.raises(PlanError, match=message):
        apply(model, graph, Plan((edit,)))


def test_stale_plans_and_foreign_graphs_are_refused() -> None:
    model = resnet()
    graph = trace(model, IMAGE)
    plan = half(graph)
    smaller = apply(model, graph, plan)
    with pytest.raises(PlanError, match="another model"):
        apply(smaller, graph, plan)
    with pytest.raises(PlanError, match="fingerprint"):
        apply(smaller, trace(smaller, IMAGE), plan)
    with pytest.raises(PlanError, match="fingerprint"):
        apply(model, graph, replace(plan, fingerprint="0123"))


def test_a_cut_attention_is_exported_compiled_to_the_same_numbers_and_trained() -> None:
    network = NETWORKS["torch_attention"]
    model, example = network.factory().eval(), network.example()
    graph = trace(model, example)
    pruned = result(model, graph, half(graph))
    verify(model, pruned, example)
    args = example if isinstance(example, tuple) else (example,)
    exported = torch.export.export(pruned.model, args).module()
    expected = pruned.model(*args)
    found = exported(*args)
    pairs = zip(expected, found, strict=True) if isinstance(expected, tuple) else [(expected, found)]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs if isinstance(a, Tensor))
    loaded = copy.deepcopy(pruned.model)
    loaded.load_state_dict(pruned.model.state_dict())
