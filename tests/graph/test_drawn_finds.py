"""What networks drawn at random, and the wide zoo, stumbled over."""

import torch
from torch import Tensor, nn

from nervure import Drop, Plan, apply, prune, trace
from nervure.methods import Random


class Shortcut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.chain = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.chain(x)


class Nested(nn.Module):
    """A list of chains that are lists themselves."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
        self.chains = nn.ModuleList(nn.Sequential(Shortcut(), Shortcut()) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for chain in self.chains:
            x = chain(x)
        return self.head(x)


def test_a_layer_inside_of_one_that_is_dropped_too_leaves_with_it():
    model, x = Nested().eval(), torch.randn(4, 5)
    graph = trace(model, x)
    inside = [b.name for b in graph.blocks if b.name.startswith("chains.0.") and not b.pinned]
    smaller = apply(model, graph, Plan((*map(Drop, inside), Drop("chains.0")), graph.fingerprint))
    torch.testing.assert_close(smaller(x), model.head(model.chains[1](model.stem(x))))


class NothingPicked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        none = x[:, :0][torch.ones(x.shape[0], 0, dtype=torch.bool)]
        return self.head(torch.cat([x.flatten(0, 1), none]))


def test_a_mask_over_no_places_picks_nothing():
    pruned = prune(NothingPicked(), torch.randn(2, 4, 5), Random(keep=0.5), progress=False)
    assert pruned.verification is not None and pruned.model.stem.out_features == 4
