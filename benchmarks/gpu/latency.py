"""How long pruned networks take on a GPU in bfloat16: by width, as 2:4, as they are, as CUDA graphs, compiled.

Every group keeps the same share of its units: half of them; 47 %, which no kernel likes; and that rounded up to
multiples of 8 and of 64. 2:4 is of the linear layers.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from benchmarks.gpu.common import Settings, Work, capture, medians, parameters_of, settings
from benchmarks.gpu.networks import NETWORKS, SMALL, Network
from nervure import Magnitude, prune
from nervure.graph.copies import copy_model
from nervure.zoo import build

WIDTHS = {
    "half": {"keep": 0.5},
    "47 %": {"keep": 0.47},
    "47 %, by 8": {"keep": 0.47, "multiple": 8},
    "47 %, by 64": {"keep": 0.47, "multiple": 64},
}
BATCHES = (1, 8, 32, 128, 256)


def variants(network: Network, told: Settings, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Dense, cut and with two of four weights, each made when it is asked for."""
    torch.manual_seed(0)
    dense = network.make().to(told.device).eval()
    yield "dense", lower(dense, network)
    example = torch.randn(1, *network.sample, device=told.device)
    for kind, how in WIDTHS.items():
        with told.trying(network=name, variant=kind):
            method = Magnitude(scope="uniform", **how)
            pruned = prune(dense, example, method, progress=False)
            told.add(network=name, variant=kind, error=pruned.verification, parameters=parameters_of(pruned.model))
            yield kind, lower(pruned.model, network)
            if kind == "half":
                yield "half, 2:4", two_of_four(lower(pruned.model, network))
    yield "2:4", two_of_four(lower(dense, network))


def lower(model: nn.Module, network: Network) -> nn.Module:
    """A copy in bfloat16."""
    copy = copy_model(model).to(torch.bfloat16).eval()
    return copy.to(memory_format=torch.channels_last) if network.is_image else copy


def two_of_four(model: nn.Module) -> nn.Module:
    """The model, whose linear layers keep the larger two of each four weights, in the format of sparse tensor cores."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear) and not any(size % 64 for size in layer.weight.shape):
            fours = layer.weight.detach().unflatten(1, (-1, 4))
            kept = torch.zeros_like(fours).scatter_(2, fours.abs().topk(2, dim=2).indices, 1)
            weight = torch.sparse.to_sparse_semi_structured((fours * kept).flatten(1))
            layer.weight = nn.Parameter(weight, requires_grad=False)
    return model


def batch_of(network: Network, size: int, told: Settings) -> Tensor:
    """So many samples."""
    x = torch.randn(size, *network.sample, device=told.device, dtype=torch.bfloat16)
    return x.to(memory_format=torch.channels_last) if network.is_image else x


def measure(name: str, models: Mapping[str, nn.Module], network: Network, size: int, told: Settings) -> None:
    """All variants on a batch, one after the other in turn: as they are, and as graphs."""
    x = batch_of(network, size, told)
    works: dict[str, Work] = {kind: lambda m=model: m(x) for kind, model in models.items()}
    for mode in ("eager", "graph") if told.on_gpu else ("eager",):
        ready = dict[str, Work]()
        for kind, work in works.items():
            with told.trying(network=name, variant=kind, batch=size, mode=mode):
                work()
                ready[kind] = capture(work, told.device) if mode == "graph" else work
        found = medians(ready, told.device, 0.02 if told.quick else 0.08)
        for kind, seconds in found.items():
            told.add(network=name, variant=kind, batch=size, mode=mode, ms=1e3 * seconds)


def compile_some(name: str, models: Mapping[str, nn.Module], network: Network, told: Settings) -> None:
    """Compiled, which takes seconds for each: what is compared most."""
    size = 2 if told.quick else 32
    x = batch_of(network, size, told)
    works = dict[str, Work]()
    for kind in ("dense", "half", "2:4"):
        if kind in models:
            with told.trying(network=name, variant=kind, batch=size, mode="compiled"):
                compiled = torch.compile(models[kind], dynamic=False)
                compiled(x)
                works[kind] = lambda m=compiled: m(x)
    for kind, seconds in medians(works, told.device, 0.1).items():
        told.add(network=name, variant=kind, batch=size, mode="compiled", ms=1e3 * seconds)


def plan_for_time(told: Settings) -> None:
    """A plan for a share of the dense time; a batch that is large, since orders alone take the time of a small one."""
    named = {"network": "ResNet-18, 112 px", "variant": "planned for 0.75 of the time"}
    with told.trying(**named):
        model = build("resnet8" if told.quick else "resnet18", seed=0).to(told.device).eval()
        size, side = (4, 16) if told.quick else (256, 112)
        example = torch.randn(size, 3, side, side, device=told.device)
        pruned = prune(model, example, Magnitude(budget="latency", target=0.75, engine="eager"), progress=False)
        works = {"dense": lambda: model(example), "pruned": lambda: pruned.model(example)}
        found = medians(works, told.device, 0.2)
        reached = {name: float(value) for name, value in pruned.plan.reached.items()}
        told.add(**named, asked=0.75, share=found["pruned"] / found["dense"], reached=reached)


def main() -> None:
    """Network by network; what takes long at the end."""
    told, kept = settings(), dict[str, dict[str, nn.Module]]()
    networks = SMALL if told.quick else NETWORKS
    with torch.no_grad():
        for name, network in networks.items():
            models = kept[name] = {}
            with told.trying(network=name), torch.enable_grad():
                for kind, model in variants(network, told, name):
                    models[kind] = model
            for size in (1, 2) if told.quick else BATCHES:
                with told.trying(network=name, batch=size):
                    measure(name, models, network, size, told)
        for name, network in reversed(networks.items()):
            compile_some(name, kept[name], network, told)
        plan_for_time(told)


if __name__ == "__main__":
    main()
