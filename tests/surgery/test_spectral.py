import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import spectral_norm as hooked

from nervure import Cut, Keep, Plan, apply, prune, trace
from nervure.methods import Random

NORMS = {"parametrization": parametrizations.spectral_norm, "hook": hooked}
X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def _network(norm, kind=nn.Conv2d):
    torch.manual_seed(0)
    middle = kind(6, 12, 3, padding=1)
    layers = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), norm(middle), nn.ReLU(), norm(nn.Conv2d(12, 4, 3)))
    layers(X)
    return layers.eval()


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_weights_that_survive_stay_as_they_are(norm, kind):
    model = _network(norm, kind)
    graph = trace(model, X)
    inputs, outputs = (torch.arange(n) % 3 > 0 for n in (6, 12))
    writers = [g for g in graph.prunable if g.size in (6, 12)]
    cuts = tuple(Cut(g.name, Keep.of(inputs if g.size == 6 else outputs)) for g in writers)
    smaller = apply(model, graph, Plan(cuts, graph.fingerprint)).eval()
    # Hooks compute the weight when the layer runs.
    model(X), smaller(X)
    kept = model[2].weight[inputs][:, outputs] if kind is nn.ConvTranspose2d else model[2].weight[outputs][:, inputs]
    torch.testing.assert_close(smaller[2].weight, kept)
    torch.testing.assert_close(smaller[4].weight, model[4].weight[:, outputs])


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_a_cut_of_weights_with_a_spectral_norm_is_verified_and_trains(norm):
    pruned = prune(_network(norm), X, Random(keep=0.5), progress=False)
    assert pruned.verification is not None and pruned.cost_after.params < pruned.cost_before.params
    pruned.model.train()(X).sum().backward()
    weight = pruned.model[2].weight.detach()
    assert float(torch.linalg.matrix_norm(weight.flatten(1), 2)) == pytest.approx(1, abs=0.3)
