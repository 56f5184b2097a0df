"""The parameters that multiply: which they are, and what each of their axes is for."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

from nervure.graph.types import Graph, Product
from nervure.tracing import trace


def products(model: nn.Module, example: Any) -> dict[str, Product]:
    """By name, from a model in evaluation mode."""
    return {product.tensor: product for product in trace(model.eval(), example).products}


class Calls(nn.Module):
    """A weight, and a function of the input and it."""

    def __init__(self, shape: tuple[int, ...], call: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x, self.weight)


def experts(x: Tensor, w: Tensor) -> Tensor:
    return torch.stack([x @ w[i] for i in range(3)]).sum(0)


def absorbed(x: Tensor, w: Tensor) -> Tensor:
    # As in latent attention: heads side by side, and the width of each is summed over.
    return torch.einsum("bhd,hdr->bhr", x.view(2, 2, 3), w.view(2, 3, 5))


@pytest.mark.parametrize(
    ("shape", "call", "laid"),
    [
        ((5, 6), F.linear, (5, 6, 1)),
        ((6, 5), lambda x, w: torch.addmm(x.new_zeros(5), x, w), (5, 6, 1)),
        ((6, 5), lambda x, w: x @ w, (5, 6, 1)),
        ((1, 6), F.linear, (1, 6, 1)),
        ((3, 6, 5), lambda x, w: torch.einsum("bi,eio->beo", x, w), (15, 6, 1)),
        ((3, 6, 5), lambda x, w: torch.bmm(x.expand(3, 2, 6), w), (15, 6, 1)),
        ((3, 6, 5), experts, (15, 6, 1)),
        ((2, 3, 5), lambda x, w: torch.einsum("bhd,hdo->bo", x.view(2, 2, 3), w), (5, 6, 1)),
        ((6, 5), absorbed, (10, 3, 1)),
        ((4, 6, 3), lambda x, w: F.conv1d(x[..., None].expand(2, 6, 7), w), (4, 6, 3)),
        ((4, 2, 3), lambda x, w: F.conv1d(x[..., None].expand(2, 6, 7), w.repeat(3, 1, 1), groups=3), (4, 2, 3)),
        ((6, 4, 3), lambda x, w: F.conv_transpose1d(x[..., None].expand(2, 6, 7), w), (4, 6, 3)),
        ((6, 2, 3), lambda x, w: F.conv_transpose1d(x[..., None].expand(2, 6, 7), w, groups=3), (6, 2, 3)),
        ((4, 6, 6), lambda x, w: F.bilinear(x, x, w), (4, 36, 1)),
        ((4, 6), lambda x, w: F.linear(x, torch.cat([w, w.flip(0)])), (4, 6, 1)),
    ],
)  # fmt: skip
def test_axes_are_outputs_inputs_or_kernel_however_the_weight_is_laid_out(shape: Any, call: Any, laid: Any) -> None:
    (product,) = products(Calls(shape, call), torch.randn(2, 6)).values()
    numbers = torch.arange(torch.Size(shape).numel()).reshape(shape)
    assert not product.reason
    assert product.to_matrix(numbers).shape == laid
    assert torch.equal(product.back(product.to_matrix(numbers), shape), numbers)


def test_an_output_of_a_grouped_transposed_convolution_hears_the_inputs_of_its_row() -> None:
    layer = nn.ConvTranspose1d(6, 4, 3, groups=2, bias=False)
    (product,) = products(layer, torch.randn(1, 6, 7)).values()
    rows = product.to_matrix(layer.weight.detach())
    x = torch.randn(1, 6, 1)
    for output, row in enumerate(rows):
        heard = x[0, :3, 0] if output < 2 else x[0, 3:, 0]
        assert torch.allclose(layer(x)[0, output], heard @ row, atol=1e-6)


def test_recurrent_layers_multiply_with_all_their_matrices() -> None:
    lstm = nn.LSTM(3, 6, num_layers=2, bidirectional=True, proj_size=4)
    matrices = {name for name, parameter in lstm.named_parameters() if parameter.ndim == 2}
    assert products(lstm, torch.randn(5, 2, 3)).keys() == matrices
    cell = nn.GRUCell(3, 4)
    assert products(cell, torch.randn(2, 3)).keys() == {"weight_ih", "weight_hh"}


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_behind_a_norm_the_direction_is_what_multiplies(norm: Any, conv: bool) -> None:
    layer = norm(nn.Conv1d(4, 5, 3) if conv else nn.Linear(4, 5))
    (product,) = products(layer, torch.randn(2, 4, 6) if conv else torch.randn(2, 4)).values()
    assert product.tensor.endswith(("original1", "original", "weight_orig"))
    assert product.is_computed
    assert product.is_divided
    assert product.to_matrix(layer.get_parameter(product.tensor)).shape == (5, 4, 3 if conv else 1)


def test_a_layer_pruned_by_torch_multiplies_with_what_its_mask_leaves() -> None:
    layer = torch_prune.random_unstructured(nn.Linear(4, 5), "weight", 0.5)
    (product,) = products(layer, torch.randn(2, 4)).values()
    assert (product.tensor, product.is_computed, product.is_divided) == ("weight_orig", True, False)


def test_zeros_that_are_none_where_they_multiply_cannot_be_masked_and_are_noted() -> None:
    def standardised(x: Tensor, w: Tensor) -> Tensor:
        return F.linear(x, (w - w.mean(1, keepdim=True)) / w.std(1, keepdim=True))

    def rounded(x: Tensor, w: Tensor) -> Tensor:
        return F.linear(x, w + (w.round().clamp(-1, 1) - w).detach())

    graph = trace(Calls((5, 6), standardised), torch.randn(2, 6))
    assert "zeros are no zeros" in graph.products[0].reason
    assert any("weight (100.0%" in note for note in graph.notes)
    assert not products(Calls((5, 6), rounded), torch.randn(2, 6))["weight"].reason


def test_tables_scales_positions_and_learned_inputs_do_not_multiply() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.positions = nn.Embedding(9, 6), nn.Parameter(torch.randn(1, 4, 6))
            self.scale, self.queries = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(3, 6))
            self.fc = nn.Linear(6, 6)

        def forward(self, tokens: Tensor) -> Tensor:
            x = (self.table(tokens) + self.positions) * self.scale
            return torch.cat([self.fc(x), self.fc(self.queries).expand(2, -1, -1)], 1)

    graph = trace(Reader(), torch.zeros(2, 4, dtype=torch.long))
    assert [product.tensor for product in graph.products] == ["fc.weight"]
    assert any("table.weight (" in note and "does not multiply" in note for note in graph.notes)


def test_what_the_example_does_not_reach_is_taken_for_what_its_kin_is_or_named() -> None:
    class Router(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
            self.other = nn.Bilinear(4, 4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.experts[0](x)

    found = products(Router(), torch.randn(2, 4))
    assert [not found[f"experts.{i}.weight"].reason for i in range(3)] == [True] * 3
    assert found["other.weight"].reason == "is not reached by the example"


def test_a_graph_remembers_what_multiplies() -> None:
    graph = trace(nn.GRU(3, 4), torch.randn(2, 5, 3))
    assert Graph.from_json(graph.to_json()).products == graph.products
    old = {key: value for key, value in graph.to_json().items() if key != "products"}
    assert Graph.from_json(old).products == ()


def test_weight_norm_as_it_was_before_parametrisations() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        layer = nn.utils.weight_norm(nn.Conv1d(4, 5, 3))
    assert products(layer, torch.randn(2, 4, 6)).keys() == {"weight_v"}
