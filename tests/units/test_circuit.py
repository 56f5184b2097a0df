"""Circuits against graphs written by hand."""

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from nervure import zoo
from nervure.analysis.build import draw_circuit
from nervure.analysis.neuron_graph import NeuronGraph
from nervure.errors import TraceError

Edges = Mapping[tuple[str, str], float]


def edges(circuit: NeuronGraph) -> dict[tuple[str, str], float]:
    """Strengths by the names of the two units, as in ``("input:0", "conv1:3")``."""
    names = [f"{s.name}:{i}" for s in circuit.stages for i in range(s.size)]
    found: dict[tuple[str, str], float] = {}
    for bundle in circuit.bundles:
        for sources, targets, values in bundle.edges():
            for a, b, value in zip(sources.tolist(), targets.tolist(), values.tolist(), strict=True):
                assert a < b, "edges lead forward"
                assert (names[a], names[b]) not in found
                found[names[a], names[b]] = value
    return found


def given_weight(layer: nn.Module, values: object) -> None:
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(values))


def near(expected: Edges) -> object:
    return pytest.approx({k: v for k, v in expected.items() if v})


def joined(weight: Tensor, source: str, target: str) -> dict[tuple[str, str], float]:
    """Every input to every output by the norm over the kernel, where that is not 0."""
    strengths = weight.detach().reshape(*weight.shape[:2], -1).norm(dim=2)
    return {
        (f"{source}:{i}", f"{target}:{o}"): float(strengths[o, i])
        for o in range(weight.shape[0])
        for i in range(weight.shape[1])
        if strengths[o, i] != 0
    }


def straight(source: str, target: str, size: int, shift: int = 0) -> dict[tuple[str, str], float]:
    """Edges of strength 1 between units of the same number."""
    return {(f"{source}:{i}", f"{target}:{i + shift}"): 1.0 for i in range(size)}


def test_weights_that_are_zero_are_no_edges() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    given_weight(net[0], [[1.0, 0.0, -2.0], [0.0, 0.0, 0.5]])
    given_weight(net[2], [[0.0, 3.0]])
    circuit = draw_circuit(net, torch.zeros(4, 3))
    assert edges(circuit) == near(
        {("input:0", "0:0"): 1, ("input:2", "0:0"): 2, ("input:2", "0:1"): 0.5, ("0:1", "2:0"): 3}
    )
    assert circuit.inputs.tolist() == [0, 1, 2]
    assert circuit.outputs.tolist() == [5]


@pytest.mark.parametrize(("strength", "expected"), [("l2", 5.0), ("l1", 7.0), ("mean", 7 / 9), ("binary", 1.0)])
def test_a_kernel_is_one_edge(strength: str, expected: float) -> None:
    conv = nn.Conv2d(1, 1, 3)
    nn.init.zeros_(conv.weight)
    conv.weight.data[0, 0, 0, 1], conv.weight.data[0, 0, 2, 2] = 3.0, -4.0
    circuit = draw_circuit(conv, torch.zeros(1, 1, 5, 5), strength=strength)  # type: ignore[arg-type]
    assert list(edges(circuit).values()) == pytest.approx([expected])


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 3, padding=1), nn.Linear(2, 3)
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.one(x)))
        return self.head((x + self.two(x)).relu().mean((2, 3)))


def test_a_shortcut_is_an_edge_of_one_between_units_of_the_same_number() -> None:
    net = Residual()
    assert edges(draw_circuit(net, torch.zeros(1, 2, 4, 4))) == near(
        joined(net.one.weight, "input", "one")
        | joined(net.two.weight, "one", "two")
        | straight("one", "model.add", 2)
        | straight("two", "model.add", 2)
        | joined(net.head.weight, "model.add", "head")
    )


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 3, 1), nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.cat([self.one(x), x], 1))


def test_a_concatenation_keeps_its_parts_apart() -> None:
    net = Concat()
    assert edges(draw_circuit(net, torch.zeros(1, 2, 4, 4))) == near(
        joined(net.one.weight, "input", "one")
        | joined(net.two.weight[:, :3], "one", "two")
        | joined(net.two.weight[:, 3:], "input", "two")
    )


class Shuffle(nn.Module):
    """Two halves, the channels of which alternate afterwards; then a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 2, 1), nn.Conv2d(4, 4, 1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        x = torch.cat([self.one(a), b], 1)
        return self.two(x.view(1, 2, 2, 3, 3).transpose(1, 2).reshape(1, 4, 3, 3))


def test_halves_shuffles_and_groups_are_followed() -> None:
    net = Shuffle()
    found = edges(draw_circuit(net, torch.zeros(1, 4, 3, 3)))
    order = ["one:0", "input:2", "one:1", "input:3"]
    weight = net.two.weight.detach().abs().flatten(1)
    expected = joined(net.one.weight, "input", "one")
    for out in range(4):
        for i in range(2):
            expected[order[2 * (out // 2) + i], f"two:{out}"] = float(weight[out, i])
    assert found == near(expected)


def test_a_depthwise_convolution_joins_each_channel_to_itself() -> None:
    conv = nn.Conv2d(3, 6, 3, groups=3)
    norms = conv.weight.detach().flatten(1).norm(dim=1)
    assert edges(draw_circuit(conv, torch.zeros(1, 3, 4, 4))) == near(
        {(f"input:{o // 2}", f"model:{o}"): float(norms[o]) for o in range(6)}
    )


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_reads_its_first_axis(groups: int) -> None:
    conv = nn.ConvTranspose2d(4, 6, 2, groups=groups)
    strengths = conv.weight.detach().flatten(2).norm(dim=2)
    per_group = 6 // groups
    assert edges(draw_circuit(conv, torch.zeros(1, 4, 3, 3))) == near(
        {
            (f"input:{i}", f"model:{i // (4 // groups) * per_group + o}"): float(strengths[i, o])
            for i in range(4)
            for o in range(per_group)
        }
    )


def test_a_flattened_channel_is_a_block_of_inputs() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3))
    circuit = draw_circuit(net, torch.zeros(1, 1, 4, 4))
    block = net[3].weight.reshape(3, 2, 4)
    assert edges(circuit) == near(joined(net[0].weight, "input", "0") | joined(block, "0", "3"))


def test_pixels_are_units_where_a_linear_layer_reads_them() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    assert edges(draw_circuit(net, torch.zeros(5, 1, 3, 4))) == near(joined(net[1].weight, "input", "1"))


def test_features_of_tokens_are_units_along_the_last_axis() -> None:
    net = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3))
    assert edges(draw_circuit(net, torch.zeros(2, 7, 4))) == near(joined(net[1].weight, "input", "1"))


def test_tokens_choose_rows_of_a_table() -> None:
    net = nn.Sequential(nn.Embedding(4, 2), nn.Linear(2, 3))
    given_weight(net[0], [[3.0, 0.0], [-3.0, 0.0], [3.0, 0.0], [3.0, 0.0]])
    circuit = draw_circuit(net, torch.zeros(1, 5, dtype=torch.long))
    assert edges(circuit) == near({("input:0", "0:0"): 3.0} | joined(net[1].weight, "0", "1"))


class Norms(nn.Module):
    """A norm written out: its statistics hear every unit and join none."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return self.fc(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def test_a_norm_joins_nothing() -> None:
    net = Norms()
    found = {k: v for k, v in edges(draw_circuit(net, torch.ones(2, 3))).items() if ":" in k[1] and "mean" not in k[1]}
    assert found == near(joined(net.fc.weight, "input", "fc"))


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.squeeze(x.mean((2, 3), keepdim=True)))


def test_a_gate_is_joined_to_what_it_gates() -> None:
    net = Gate()
    assert edges(draw_circuit(net, torch.zeros(1, 2, 3, 3))) == near(
        joined(net.squeeze.weight, "input", "squeeze")
        | straight("input", "model.mul", 2)
        | straight("squeeze", "model.mul", 2)
    )


class Attention(nn.Module):
    """Two heads of width one; ``fused`` or step by step."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.q, self.k, self.v = (nn.Linear(2, 2) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(1, 5, 2, 1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.fused:
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, 5, 2)
        return ((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2).reshape(1, 5, 2)


@pytest.mark.parametrize("fused", [True, False])
def test_queries_and_keys_decide_on_their_head_and_values_pass(fused: bool) -> None:
    circuit = draw_circuit(Attention(fused), torch.zeros(1, 5, 2))
    names = [f"{s.name}:{i}" for s in circuit.stages for i in range(s.size)]
    reach = {name: {name} for name in names}
    for a, b in sorted(edges(circuit), key=lambda edge: names.index(edge[0]), reverse=True):
        reach[a] |= reach[b]
    outputs = [names[n] for n in circuit.outputs.tolist()]
    for layer in ("q", "k", "v"):
        assert [len(reach[f"{layer}:{i}"] & set(outputs)) for i in range(2)] == [1, 1]
        assert not reach[f"{layer}:0"] & reach[f"{layer}:1"]


def test_a_class_token_and_positions_are_the_units_they_are_put_beside() -> None:
    circuit = draw_circuit(zoo.build("vit_tiny"), torch.zeros(1, 3, 32, 32))
    sizes = {s.name: s.size for s in circuit.stages}
    assert sizes["patch_embed.proj"] == sizes["blocks.0.attn.proj"] == 192
    assert "patch_embed.proj#2" not in sizes


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.tokens = nn.Linear(3, 2), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.tokens(self.stem(x).transpose(1, 2))


def test_a_weight_over_places_joins_each_unit_to_itself() -> None:
    net = Mixer()
    strength = float(net.tokens.weight.detach().norm())
    assert edges(draw_circuit(net, torch.zeros(1, 4, 3))) == near(
        joined(net.stem.weight, "input", "stem") | {("stem:0", "tokens:0"): strength, ("stem:1", "tokens:1"): strength}
    )


def test_what_is_computed_of_weights_counts_as_it_is() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    torch_prune.random_unstructured(net[0], "weight", amount=3)
    circuit = draw_circuit(net, torch.zeros(1, 3))
    weight = net[0].weight_orig.detach() * net[0].weight_mask
    assert edges(circuit) == near(joined(weight, "input", "0") | joined(net[1].weight, "0", "1"))
    assert {use.tensor for use in circuit.uses} == {"0.weight_orig", "1.weight"}


class Written(nn.Module):
    """A buffer that is filled in two parts, one of them by a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(2, 2), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = x.new_zeros(len(x), 4)
        out[:, :2] = self.one(x)
        out[:, 2:].copy_(x)
        return self.two(out)


def test_writes_into_parts_are_followed() -> None:
    net = Written()
    assert edges(draw_circuit(net, torch.zeros(3, 2))) == near(
        joined(net.one.weight, "input", "one")
        | joined(net.two.weight[:, :2], "one", "two")
        | joined(net.two.weight[:, 2:], "input", "two")
    )


class Padded(nn.Module):
    """A shortcut padded with channels of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + F.pad(x, (0, 0, 0, 0, 1, 1))


def test_channels_of_padding_are_no_units() -> None:
    net = Padded()
    assert edges(draw_circuit(net, torch.zeros(1, 2, 3, 3))) == near(
        joined(net.conv.weight, "input", "conv")
        | straight("input", "model.add", 2)
        | {("conv:1", "model.add:0"): 1, ("conv:2", "model.add:1"): 1}
    )


def test_a_recurrent_layer_is_unrolled() -> None:
    net = nn.RNN(2, 3, bias=False, batch_first=True)
    circuit = draw_circuit(net, torch.zeros(1, 4, 2))
    recurrent = [use for use in circuit.uses if use.tensor == "weight_hh_l0"]
    assert len(recurrent) >= 3
    assert len({id(b.matrix) for b in circuit.bundles if b.matrix.shape == (3, 3) and b.kind == "weight"}) == 1


class Routed(nn.Module):
    """Tokens go to one of two experts, as a gate has it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.one, self.two = nn.Linear(3, 2), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        best = self.gate(x).argmax(-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate((self.one, self.two)):
            (at,) = torch.where(best == number)
            out.index_add_(0, at, expert(x[at]))
        return out


def test_experts_that_inputs_choose_keep_their_units_apart() -> None:
    net = Routed()
    circuit = draw_circuit(net, torch.randn(9, 3))
    assert circuit.notes == ()
    found = {edge: value for edge, value in edges(circuit).items() if "gate" not in edge[0] + edge[1]}
    assert found == near(
        joined(net.one.weight, "input", "one")
        | joined(net.two.weight, "input", "two")
        | straight("one", "model.index_add", 3)
        | straight("two", "model.index_add", 3)
    )


class Fourier(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(x, dim=-1).real


def test_a_transform_over_units_joins_them_all() -> None:
    circuit = draw_circuit(Fourier(), torch.zeros(1, 3))
    assert len(circuit.outputs) == 1
    assert {a for a, _ in edges(circuit)} == {"input:0", "input:1", "input:2"}


def test_the_model_is_left_as_it_was() -> None:
    net = Residual()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net.train()
    draw_circuit(net, torch.randn(2, 2, 4, 4))
    assert net.training
    assert net.norm.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_shapes_alone_are_not_enough() -> None:
    with torch.device("meta"):
        net = nn.Linear(2, 2)
    with pytest.raises(TraceError, match="weights"):
        draw_circuit(net, torch.zeros(1, 2))


@pytest.mark.parametrize("name", ["resnet20", "vgg11", "densenet40", "mobilenetv2", "vit_tiny"])
def test_every_network_of_the_zoo_is_known(name: str) -> None:
    circuit = draw_circuit(zoo.build(name), torch.zeros(1, 3, 32, 32))
    assert circuit.notes == ()
    assert circuit.outputs.tolist() == list(range(circuit.stages[-1].start, circuit.size))
    assert len(circuit.inputs) == 3
