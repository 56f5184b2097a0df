"""The twin by lot of a plan of masks: the same in everything but which weights stay, and no class loses its path."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from nervure import ERK, SNIP, Keep, MagnitudeMasks, Mask, Plan, apply, prune
from nervure.errors import NervureWarning
from nervure.graph.tape import named_tensors
from nervure.methods import View
from nervure.methods.masks.base_masks import Sparse
from nervure.methods.masks.random_baseline import masks_by_lot
from nervure.tracing import trace
from nervure.zoo import build


def mlp(*widths: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(*[m for a, b in pairwise(widths) for m in (nn.Linear(a, b), nn.ReLU())][:-1])


def view_of(model: nn.Module, example: Tensor) -> View:
    weights = {name: tensor.detach() for name, tensor in named_tensors(model).items()}
    return View(trace(model, example), weights, model=model, example=example)


def heard(model: nn.Module, view: View, masks: tuple[Mask, ...]) -> Tensor:
    """Which outputs hear the input: of absolute weights, without biases, norms that only scale."""
    net = apply(model, view.graph, Plan(masks, view.graph.fingerprint)).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.abs_() if parameter.ndim > 1 else parameter.zero_()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.fill_(1.0)
                module.running_mean.zero_()
        return net.double()(torch.ones_like(view.example).double())[0] > 0


def counts(masks: tuple[Mask, ...]) -> dict[str, int]:
    return {mask.tensor: mask.keep.count for mask in masks}


PILOT = (64, 48, 32, 24, 16, 10)


def test_no_class_is_disconnected_where_lots_without_a_guard_lose_some() -> None:
    model, example = mlp(*PILOT), torch.ones(1, 64)
    view = view_of(model, example)
    plan = MagnitudeMasks(density=0.03).plan(view)
    lost = 0
    for seed in range(12):
        twin = masks_by_lot(view, plan, seed=seed)
        assert counts(twin) == counts(plan.masks)
        assert heard(model, view, twin).all()
        generator = torch.Generator().manual_seed(seed)
        shuffled = tuple(
            Mask(m.tensor, Keep.of(k.reshape(-1)[torch.randperm(k.numel(), generator=generator)].reshape(k.shape)))
            for m, k in ((mask, mask.keep.tensor()) for mask in plan.masks)
        )
        lost += int((~heard(model, view, shuffled)).sum())
    assert lost > 12


@pytest.mark.parametrize(
    "method",
    [
        MagnitudeMasks(density=0.05),
        MagnitudeMasks(density=0.2, granularity="kernel"),
        ERK(density=0.3, granularity="block", block=(2, 2), seed=1),
        ERK(density=0.5, granularity="2:4", seed=1),
        ERK(density=0.2, granularity="connection", seed=1),
    ],
    ids=repr,
)
def test_a_residual_network_has_a_twin_of_the_same_counts_and_pattern(method: Sparse) -> None:
    model, example = build("resnet8", seed=0, width=0.5), torch.ones(2, 3, 8, 8)
    view = view_of(model, example)
    plan = method.plan(view)
    twin = masks_by_lot(view, plan, seed=3)
    assert counts(twin) == counts(plan.masks)
    assert heard(model, view, twin).all()
    assert twin == masks_by_lot(view, plan, seed=3) != masks_by_lot(view, plan, seed=4)
    assert all(a.keep != b.keep for a, b in zip(twin, plan.masks, strict=True) if a.keep.count > 4)
    for mask in twin:
        keep = mask.keep.tensor()
        if method.granularity in ("kernel", "block", "connection"):
            flat = keep.flatten(2) if keep.ndim > 2 else keep[:, :, None]
            assert (flat.all(2) | ~flat.any(2)).all()
        if method.granularity == "block":
            tiles = keep[: keep.shape[0] // 2 * 2, : keep.shape[1] // 2 * 2].unflatten(0, (-1, 2)).unflatten(2, (-1, 2))
            assert (tiles.all(3).all(1) | ~tiles.any(3).any(1)).all()
        if method.granularity == "2:4":
            assert (keep.unflatten(1, (-1, 4)).sum(2) == 2).all()


def test_what_the_plan_leaves_dense_stays_dense_and_vectors_are_shuffled() -> None:
    model, example = mlp(12, 16, 16, 4), torch.ones(1, 12)
    view = view_of(model, example)
    plan = MagnitudeMasks(density=0.2, dense=("2",)).plan(view)
    bias = Mask("0.bias", Keep.of(torch.arange(16) < 5))
    twin = masks_by_lot(view, Plan((*plan.edits, bias), plan.fingerprint, plan.asked), seed=0)
    assert counts(twin) == counts((*plan.masks, bias))
    assert masks_by_lot(view, Plan(), seed=0) == ()


def test_a_plan_that_is_itself_disconnected_has_an_unguarded_twin_and_says_so() -> None:
    model, example = mlp(12, 16, 16, 4), torch.ones(1, 12)
    view = view_of(model, example)
    cut_off = Plan((Mask("2.weight", Keep.of(torch.zeros(16, 16, dtype=torch.bool))),), view.graph.fingerprint)
    with pytest.warns(NervureWarning, match="cannot connect every output"):
        assert counts(masks_by_lot(view, cut_off, seed=0)) == {"2.weight": 0}


def test_the_twin_begins_with_the_weights_of_the_plan() -> None:
    data = [(torch.randn(16, 64), torch.randint(10, (16,)))]
    model, example = mlp(*PILOT), torch.ones(1, 64)
    found = prune(model, example, SNIP(density=0.05), data=data, progress=False)
    view = view_of(model, example)
    twin = apply(model, view.graph, Plan(masks_by_lot(view, found.plan, seed=1), view.graph.fingerprint))
    for name, parameter in twin.named_parameters():
        there = parameter.detach() != 0
        assert torch.equal(parameter.detach()[there], model.get_parameter(name).detach()[there])
