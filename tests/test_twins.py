"""The random twin of a result, of whatever chain of methods: as large, as sparse and as dear, chosen by lot."""

from typing import Any, TypeAlias

import pytest
import torch

from nervure import Energy, Magnitude, MagnitudeMasks, N2NSkip, Pruned, count, prune
from nervure.graph.tape import named_tensors
from nervure.recipe.twins import random_twin
from nervure.zoo import build

HALF, SPARSE = Magnitude(keep=0.4, budget="macs"), MagnitudeMasks(density=0.3)
PATTERN = MagnitudeMasks(density=0.5, granularity="2:4")
CHAINS: dict[str, list[Any]] = {
    "cut": [HALF],
    "mask": [SPARSE],
    "cut, then mask": [HALF, SPARSE],
    "mask, then cut": [SPARSE, HALF],
    "mask in a pattern, then cut": [PATTERN, HALF],
    "mask, cut, mask": [SPARSE, HALF, MagnitudeMasks(density=0.1)],
    "cut twice": [HALF, Magnitude(keep=0.6, budget="params")],
    "drop": [Energy(drop=1)],
    "drop, then cut": [Energy(drop=1), HALF],
    "cut, then drop": [HALF, Energy(drop=1)],
    "drop, mask, cut": [Energy(drop=1), SPARSE, HALF],
    "mask, then drop": [SPARSE, Energy(drop=1)],
    "links": [N2NSkip(density=0.3)],
    "links, then cut": [N2NSkip(density=0.3), HALF],
    "cut, then links": [HALF, N2NSkip(density=0.3)],
    "identities, then cut": [N2NSkip(density=0.3, skips="identity"), HALF],
}


def costs(pruned: Pruned, example: torch.Tensor) -> tuple[int, int, int]:
    found = count(pruned.model, example)
    return found.params, found.nonzero, found.macs


def shapes(pruned: Pruned) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in named_tensors(pruned.model).items()}


Network: TypeAlias = tuple[torch.nn.Module, torch.Tensor, list[Any]]


@pytest.fixture(scope="module")
def network() -> Network:
    model = build("resnet20", seed=0, in_channels=1, width=0.25).eval()
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(32, 1, 8, 8, generator=generator), torch.arange(32) % 10) for _ in range(4)]
    return model, data[0][0][:2], data


@pytest.mark.parametrize("methods", CHAINS.values(), ids=CHAINS)
def test_a_twin_costs_what_the_result_of_the_whole_chain_does(methods: list[Any], network: Network) -> None:
    model, example, data = network
    result = prune(model, example, methods, data=data, progress=False)
    twin = random_twin(result, model, example, seed=1, progress=False)
    assert costs(twin, example) == costs(result, example)
    assert twin.masks.keys() == result.masks.keys()
    if not result.plan.drops:
        assert shapes(twin) == shapes(result)
        assert {n: int(m.sum()) for n, m in twin.masks.items()} == {n: int(m.sum()) for n, m in result.masks.items()}


def test_a_twin_is_drawn_by_its_seed_and_differs_from_the_result(network: Network) -> None:
    model, example, data = network
    result = prune(model, example, [SPARSE, HALF], progress=False)
    first, again, other = (random_twin(result, model, example, seed=seed, progress=False) for seed in (1, 1, 2))
    weights = [one.model.get_parameter("layer2.0.conv1.weight").detach() for one in (first, again, other, result)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2]) and not torch.equal(weights[0], weights[3])
    dropped = [prune(model, example, Energy(drop=2), data=data, progress=False)]
    dropped += [random_twin(dropped[0], model, example, seed=seed, progress=False) for seed in range(4)]
    assert len({tuple(one.plan.drops) for one in dropped}) > 1


def test_what_was_masked_in_a_block_that_leaves_is_no_mask_any_more(network: Network) -> None:
    model, example, data = network
    result = prune(model, example, [SPARSE, Energy(drop=1)], data=data, progress=False)
    assert all(mask.shape == result.model.get_parameter(name).shape for name, mask in result.masks.items())
