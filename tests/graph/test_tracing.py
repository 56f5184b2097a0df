"""What tracing finds: groups, products, sizes that follow, choices of the user, blocks, costs."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nervure import Cut, Drop, Graph, Keep, Link, Mask, Plan, apply, count, prune, trace, verify
from nervure.errors import ArgumentError, ForwardError, PlanError, TraceError
from nervure.graph.sizes import Attribute, Expression, Size, noting_numbers
from nervure.graph.types import Units
from nervure.zoo import build
from nervure.zoo.models.densenet import DenseNet
from tests.networks import NETWORKS, traced


def test_sizes_remember_their_attribute_through_arithmetic() -> None:
    with noting_numbers():
        heads = Size.of(Expression(4, attribute=Attribute("attn", "num_heads")))
        width = (3 * heads) // 2 + 1
        assert width == 7
    assert isinstance(width, Size)
    assert width.expression.evaluate(lambda leaf: leaf.value // 2) == 4
    assert str(width.expression) == "((3 * num_heads) // 2) + 1"
    assert type(heads / 2) is float


def test_integers_of_a_model_are_put_back_after_tracing() -> None:
    model, example = NETWORKS["vit"].factory(), NETWORKS["vit"].example()
    before = {name: dict(vars(m)) for name, m in model.named_modules()}
    trace(model, example)
    for name, module in model.named_modules():
        for key, value in before[name].items():
            assert type(vars(module)[key]) is type(value), f"{name}.{key}"


def test_groups_of_a_residual_network_are_what_one_sees_in_it() -> None:
    graph = trace(build("resnet20"), torch.randn(1, 3, 32, 32))
    assert graph["conv1"].size == 16
    assert {s.tensor for s in graph["conv1"].writers} == {"conv1.weight"} | {
        f"layer1.{i}.conv2.weight" for i in range(3)
    }
    assert graph["fc"].pinned == "model output"
    assert "input" in graph["conv1.inputs"].pinned
    assert graph["layer2.0.conv1"].size == 32


def test_heads_leave_whole_and_take_their_number_along() -> None:
    model, example = NETWORKS["separate_qkv"].factory().eval(), NETWORKS["separate_qkv"].example()
    graph = trace(model, example)
    heads = next(g for g in graph.groups if g.kind == "heads")
    smaller = apply(model, graph, Plan((Cut(heads.name, Keep.of([i != 1 for i in range(heads.size)])),)))
    smaller(*example) if isinstance(example, tuple) else smaller(example)
    changed = [
        (key, vars(old)[key], vars(new)[key])
        for old, new in zip(model.modules(), smaller.modules(), strict=True)
        for key in vars(old)
        if key == "num_heads"
    ]
    assert changed == [("num_heads", heads.size, heads.size - 1)]
    inside = [g for g in graph.groups if g.kind == "head widths"]
    assert inside and all(g.is_pinned for g in inside)


def test_widths_inside_heads_are_cut_only_where_asked_and_only_where_nothing_drifts() -> None:
    def widths(name: str) -> list[str]:
        graph = trace(NETWORKS[name].factory(), NETWORKS[name].example(), inside_heads=True)
        return [g.pinned for g in graph.groups if g.kind == "head widths"]

    assert widths("vit") == [""]
    # This one lets the kernel take the softmax scale from the width that it sees.
    assert all("differs from the original" in reason for reason in widths("separate_qkv"))


@pytest.mark.sampled
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_graph_survives_a_round_trip_through_json(name: str) -> None:
    _, _, graph = traced(name)
    again = Graph.from_json(json.loads(json.dumps(graph.to_json())))
    assert again == graph
    assert again.fingerprint == graph.fingerprint


def test_ignored_layers_change_on_no_side_and_only_chosen_ones_lose_units() -> None:
    model, example = build("resnet20"), torch.randn(1, 3, 32, 32)
    ignoring = trace(model, example, ignore=["layer2.*", model.fc])
    assert not any(s.tensor.startswith(("layer2.", "fc.")) for g in ignoring.prunable for s in g.slots)
    chosen = trace(model, example, only="layer3.1")
    assert [g.name for g in chosen.prunable] == ["layer3.1.conv1"]
    with pytest.raises(ArgumentError, match="layr"):
        trace(model, example, ignore=["layr1"])


def test_outputs_and_inputs_are_units_where_the_user_wants_them_to_be() -> None:
    model, example = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)), torch.randn(3, 6)
    graph = trace(model, example, outputs=False, inputs=True)
    assert [g.size for g in graph.prunable] == [5, 4, 6]
    names = {g.size: g.name for g in graph.prunable}
    plan = Plan((Cut(names[4], Keep.of([True, False, True, False])), Cut(names[6], Keep.of([True] * 3 + [False] * 3))))
    assert apply(model, graph, plan)(example[:, :3]).shape == (3, 2)


def test_an_operation_without_a_rule_pins_what_flows_through_it_and_says_so() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.linalg.qr(self.b(self.a(x)))[0])

    graph = trace(Odd(), torch.randn(6, 4))
    assert "no rule" in graph["b"].pinned
    assert any("linalg_qr" in note for note in graph.notes)
    assert [g.name for g in graph.prunable] == ["a"]


def test_auxiliary_heads_that_run_in_training_only_are_cut_along() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head, self.aux = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 3)
            self.norm = nn.BatchNorm1d(8)

        def forward(self, x: Tensor) -> Any:
            y = self.norm(self.stem(x))
            return (self.head(y), self.aux(y)) if self.training else self.head(y)

    model, example = Auxiliary().eval(), torch.randn(5, 4)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    graph = trace(model, example)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not model.training
    smaller = apply(model, graph, Plan((Cut("stem", Keep.of([True] * 5 + [False] * 3)),))).train()
    assert [tuple(t.shape) for t in smaller(example)] == [(5, 3), (5, 3)]
    assert graph.macs() == count(model, example).macs


def test_every_matrix_product_is_counted_once() -> None:
    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1, groups=1)
            self.deep = nn.Conv2d(4, 8, 3, groups=4)
            self.up = nn.ConvTranspose2d(8, 2, 2, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.up(self.deep(self.conv(x))).flatten(2)
            return torch.einsum("bcn,bdn->bcd", y, y) @ torch.ones(2, 5)

    cost = count(Products(), torch.randn(2, 3, 6, 6))
    conv, deep, up = 2 * 36 * 4 * 3 * 9, 2 * 16 * 8 * 1 * 9, 2 * 16 * 8 * 2 * 4
    assert cost.layers["conv"].macs == conv
    assert cost.layers["deep"].macs == deep
    assert cost.layers["up"].macs == up
    assert cost.macs == conv + deep + up + 2 * 2 * 2 * 64 + 2 * 2 * 2 * 5
    assert cost.params == sum(p.numel() for p in Products().parameters())


@pytest.mark.parametrize("equation", ["nsc,cd->nsd", "nsc,cd"])
def test_a_contraction_over_one_unit_costs_what_the_graph_says(equation: str) -> None:
    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.weight = nn.Linear(3, 4), nn.Parameter(torch.randn(4, 5))

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum(equation, self.first(x), self.weight)

    model, example = Summed(), torch.randn(2, 7, 3)
    graph = trace(model, example)
    keep = torch.tensor([False, True, False, False])
    smaller = apply(model, graph, Plan((Cut("first", Keep.of(keep)),)))
    assert count(model, example).macs == graph.macs() == 2 * 7 * 4 * (3 + 5)
    assert count(smaller, example).macs == graph.macs({"first": keep}) == 2 * 7 * (3 + 5)


def test_attention_is_counted_with_its_two_products() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(3, 5, 8)
    projections, products = 3 * 5 * 8 * 32, 2 * 3 * 5 * 5 * 8
    assert count(attention.eval(), (x, x, x)).macs == projections + products


@pytest.mark.parametrize(
    ("name", "options", "parameters", "macs", "size"),
    [("resnet50", {}, 25_557_032, 4_089_184_256, 224), ("mobilenetv2", {}, 3_504_872, 300_774_272, 224)],
)
def test_costs_of_known_networks_are_the_published_ones(
    name: str, options: dict[str, Any], parameters: int, macs: int, size: int
) -> None:
    cost = count(build(name, **options).eval(), torch.randn(1, 3, size, size))
    assert (cost.params, cost.macs) == (parameters, macs)


def test_a_model_on_the_meta_device_is_traced_without_weights() -> None:
    with torch.device("meta"):
        model = build("resnet20")
    graph = trace(model, torch.randn(1, 3, 32, 32))
    real = trace(build("resnet20"), torch.randn(1, 3, 32, 32))
    assert [(g.name, g.size, g.pinned) for g in graph.groups] == [(g.name, g.size, g.pinned) for g in real.groups]
    assert graph.macs() == real.macs()


def test_errors_of_the_model_are_shown_with_the_module_they_come_from() -> None:
    with pytest.raises(ForwardError, match=r"'1'.*shapes cannot be multiplied") as caught:
        trace(nn.Sequential(nn.ReLU(), nn.Linear(4, 2)), torch.randn(1, 5))
    assert isinstance(caught.value.__cause__, RuntimeError)
    broken = nn.Linear(4, 2)
    with torch.no_grad():
        broken.weight[0, 0] = float("nan")
    with pytest.raises(TraceError, match="weight"):
        trace(broken, torch.randn(1, 4))


def test_dense_layers_with_a_bottleneck_are_blocks_too() -> None:
    graph = trace(DenseNet(16, 3, 10, 4, True).eval(), torch.randn(1, 3, 8, 8))
    assert [b.name for b in graph.blocks] == [f"features.{stage}.{layer}" for stage in (1, 3, 5) for layer in (0, 1)]
    assert all(b.kind == "dense" and f"{b.name}.narrow" in b.modules for b in graph.blocks)


def test_blocks_of_residual_dense_and_transformer_networks_are_found() -> None:
    image = torch.randn(1, 3, 32, 32)
    assert [b.kind for b in trace(build("resnet20"), image).blocks] == ["residual"] * 9
    assert {b.kind for b in trace(build("densenet40"), image).blocks} == {"dense"}
    kinds = [b.kind for b in trace(build("vit_tiny"), image).blocks]
    assert kinds.count("module") * 2 == kinds.count("residual")


def test_whole_layers_that_norm_after_their_shortcuts_can_be_dropped() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
    model = nn.Sequential(nn.Linear(6, 16), *nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).layers).eval()
    example = torch.randn(2, 5, 6)
    graph = trace(model, example)
    assert [b.name for b in graph.blocks if b.kind == "module" and not b.pinned] == ["1", "2", "3"]
    smaller = prune(model, example, Plan((Drop("2"),), graph.fingerprint)).model
    torch.testing.assert_close(smaller(example), model[3](model[1](model[0](example))))


def test_sizes_that_are_quotients_of_each_other_are_cut_as_one() -> None:
    class Quotient(nn.Module):
        """Heads and their widths from the width of the stream: whole heads go, and their part of the stream."""

        def __init__(self) -> None:
            super().__init__()
            self.heads, self.embed, self.qkv = 4, nn.Linear(6, 32), nn.Linear(32, 96)
            self.out, self.up, self.head = nn.Linear(32, 32), nn.Linear(32, 24), nn.Linear(24, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            n, t, c = x.shape
            q, k, v = (p.view(n, t, self.heads, c // self.heads).transpose(1, 2) for p in self.qkv(x).chunk(3, -1))
            y = (q @ k.transpose(-2, -1)).softmax(-1) @ v
            return self.head(self.up(x + self.out(y.transpose(1, 2).reshape(n, t, c))))

    model, example = Quotient().eval(), torch.randn(2, 5, 6)
    graph = trace(model, example)
    assert [(g.name, g.size) for g in graph.prunable] == [("embed", 4), ("up", 24)]
    plan = Plan((Cut("embed", Keep.of([True, False, True, True])),), graph.fingerprint)
    smaller = apply(model, graph, plan)
    assert (smaller.heads, smaller.embed.out_features, smaller.qkv.out_features) == (3, 24, 72)
    assert verify(model, SimpleNamespace(model=smaller, graph=graph, plan=plan), example)


def test_blocks_that_cannot_step_aside_are_pinned_with_the_reason() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
            self.layers, self.out = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.layers(x))

    for block in trace(Encoder(), torch.randn(2, 5, 16)).blocks:
        assert not block.pinned or "does not run" in block.pinned or "step aside" in block.pinned


def test_tables_name_groups_pins_and_blocks() -> None:
    graph = trace(build("resnet20"), torch.randn(1, 3, 32, 32))
    table = str(graph)
    for text in ("layer2.0.conv1", "pinned: model output", "block layer1.0 (residual)", "groups can be cut"):
        assert text in table
    keep = Keep.of(torch.arange(32) < 20)
    mask = Keep.of(torch.rand(64, 10).t() > 0.5)
    link = Link("layer1.0.conv1", "layer2.1.conv1", Keep.of(torch.rand(32, 16) > 0.9))
    plan = Plan((Cut("layer2.0.conv1", keep), Drop("layer1.0"), Mask("fc.weight", mask), link))
    text = plan.describe(graph)
    for part in ("32 -> 20", "block dropped", "connections masked", "skip connections", "cuts in all"):
        assert part in text


def test_units_are_values() -> None:
    units = Units([0, 0, 1, -1])
    assert units == Units([0, 0, 1, -1])
    assert hash(units) == hash(Units([0, 0, 1, -1]))
    assert units.kept(torch.tensor([False, True]).numpy()).tolist() == [False, False, True, True]
    with pytest.raises(AttributeError):
        units.array = 1  # type: ignore[assignment]
    with pytest.raises(ValueError, match="read-only"):
        units.array[0] = 5


def test_a_graph_names_the_nearest_group() -> None:
    graph = trace(build("resnet20"), torch.randn(1, 3, 32, 32))
    with pytest.raises(PlanError, match=r"layer1\.0\.conv1"):
        graph["layer1.0.conv"]
    with pytest.raises(PlanError, match=r"Did you mean 'layer1\.\d'"):
        graph.block("layer1.O")


class Normalised(nn.Module):
    """Rows brought to length one, the length spread over the units in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.first, self.way = nn.Linear(5, 6), way

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        length = x.norm(dim=-1, keepdim=True)
        match self.way:
            case "normalize":
                return nn.functional.normalize(x, dim=-1)
            case "expand_as":
                return x / length.expand_as(x)
            case "expand_as, scaled":
                return x / (length.expand_as(x) * 2 + 1)
            case "expand_as, of others":
                return x / length.expand_as(torch.ones(len(x), 6))
        return x / length.expand(-1, 6)


@pytest.mark.parametrize("way", ["normalize", "expand_as", "expand_as, scaled"])
def test_one_value_spread_over_units_follows_their_number(way: str) -> None:
    torch.manual_seed(0)
    model, example = Normalised(way), torch.randn(3, 5)
    graph = trace(model, example, outputs=False)
    assert graph["first"].pinned == ""
    keep = torch.tensor([True, False, True, True, False, True])
    smaller = apply(model, graph, Plan((Cut("first", Keep.of(keep)),)))
    wanted = nn.functional.normalize(model.first(example)[:, keep], dim=-1) if way != "expand_as, scaled" else None
    if wanted is not None:
        assert torch.allclose(smaller(example), wanted, atol=1e-6)
    assert smaller(example).shape == (3, 4)


@pytest.mark.parametrize("way", ["expand_as, of others", "expand to a number"])
def test_one_value_spread_over_a_fixed_number_of_places_pins_the_units_it_meets(way: str) -> None:
    graph = trace(Normalised(way), torch.randn(3, 5), outputs=False)
    assert graph["first"].is_pinned


def test_a_graph_names_what_makes_and_reads_units_before_what_goes_along() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    first = str(trace(model, torch.randn(1, 3, 5, 5))).splitlines()[0]
    assert "writer 0.weight[0], reader 3.weight[1], rider 0.bias[0], rider " in first
    assert first.endswith(" and 3 more")
