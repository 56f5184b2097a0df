"""What bad input gets: a clear error from one tree, before work is lost."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nervure import Magnitude, Random, apply, count, evaluate, measure, prune, trace, train
from nervure.budget import allocate
from nervure.errors import (
    ArgumentError,
    BudgetError,
    DataError,
    ForwardError,
    NervureError,
    PlanError,
    ScoreError,
    TraceError,
)
from nervure.methods import METHODS, method_from
from nervure.zoo import build

IMAGE = torch.randn(2, 3, 32, 32)
BATCH = (torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,)))


def resnet() -> nn.Module:
    return build("resnet20", seed=0, width=0.5)


def broken(value: float) -> nn.Module:
    model = resnet()
    with torch.no_grad():
        model.conv1.weight[0, 0, 0, 0] = value
    return model


@pytest.mark.parametrize("keep", [0, -0.5, 1.5, float("nan"), True, "half"])
def test_a_keep_outside_its_range(keep: Any) -> None:
    for method in (Magnitude, Random):
        with pytest.raises(ArgumentError, match=r"keep=.*\(0, 1\]"):
            method(keep=keep)


@pytest.mark.parametrize(
    "options", [{"norm": 3}, {"scope": "all"}, {"budget": "time"}, {"minimum": 0}, {"multiple": 0}]
)
def test_options_outside_their_choices(options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(options))):
        Magnitude(**options)


def test_a_budget_that_no_plan_can_meet_says_which_one_can_be_met() -> None:
    with pytest.raises(BudgetError, match=r"0\.\d+"):
        prune(resnet(), IMAGE, Magnitude(keep=0.001, budget="macs"))
    with pytest.raises(BudgetError, match="ignored"):
        prune(resnet(), IMAGE, Magnitude(keep=0.5), ignore="*")


def test_an_example_that_does_not_fit_shows_the_models_own_error_and_the_module() -> None:
    with pytest.raises(ForwardError, match=r"'conv1'.*channels.*\(2, 1, 32, 32\)") as caught:
        trace(resnet(), torch.randn(2, 1, 32, 32))
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(ForwardError, match="missing 1 required positional"):
        count(resnet(), ())


def test_a_model_whose_forward_raises() -> None:
    class Raises(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("weights not loaded")

    with pytest.raises(ForwardError, match="weights not loaded"):
        trace(nn.Sequential(nn.Linear(3, 3), Raises()), torch.randn(1, 3))


@pytest.mark.parametrize("example", [None, 3, "image", {1: IMAGE}])
def test_an_example_of_the_wrong_kind(example: Any) -> None:
    with pytest.raises(ArgumentError, match="example"):
        trace(resnet(), example)


def test_a_model_without_tensors_in_its_output_or_without_parameters() -> None:
    class Says(nn.Module):
        def forward(self, x: Tensor) -> str:
            return "seven"

    with pytest.raises(TraceError, match="str"):
        trace(Says(), IMAGE)
    assert trace(nn.ReLU(), IMAGE).groups == ()
    with pytest.raises(BudgetError):
        prune(nn.ReLU(), IMAGE, Magnitude(keep=0.5))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value: float) -> None:
    with pytest.raises(NervureError, match=r"conv1\.weight"):
        prune(broken(value), IMAGE, Magnitude(keep=0.5))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:Lazy modules:UserWarning")
def test_modules_that_cannot_be_seen_into_or_have_no_weights_yet() -> None:
    scripted = torch.jit.trace(nn.Linear(4, 8), torch.ones(2, 4))
    with pytest.raises(TraceError, match=r"^1 is TorchScript.*made from"):
        trace(nn.Sequential(nn.Linear(4, 4), scripted), torch.ones(2, 4))
    with pytest.raises(TraceError, match=r"0\.weight has no shape yet"):
        trace(nn.Sequential(nn.LazyLinear(8)), torch.ones(2, 4))


def test_scores_that_are_missing_or_of_the_wrong_size() -> None:
    graph = trace(resnet(), IMAGE)
    scores = {g.name: torch.ones(g.size) for g in graph.prunable}
    with pytest.raises(ScoreError, match=graph.prunable[0].name):
        allocate(graph, scores | {graph.prunable[0].name: torch.ones(3)}, keep=0.5)
    del scores[graph.prunable[1].name]
    with pytest.raises(ScoreError, match=graph.prunable[1].name):
        allocate(graph, scores, keep=0.5)


def measured(model: nn.Module, data: Any) -> None:
    measure(model, trace(model, IMAGE), data, want=frozenset({"activations"}), progress=False)


def trained(model: nn.Module, data: Any) -> None:
    train(model, data, epochs=1, progress=False)


def evaluated(model: nn.Module, data: Any) -> None:
    evaluate(model, data, progress=False)


USES = pytest.mark.parametrize("use", [measured, trained, evaluated])


@USES
def test_an_empty_loader(use: Callable[[nn.Module, Any], None]) -> None:
    with pytest.raises(DataError, match="empty|no batch|nothing"):
        use(resnet(), [])


@USES
def test_data_that_are_not_finite(use: Callable[[nn.Module, Any], None]) -> None:
    images = BATCH[0].clone()
    images[3, 0, 0, 0] = float("nan")
    with pytest.raises(DataError, match="NaN|finite"):
        use(resnet(), [(images, BATCH[1])])


@pytest.mark.parametrize("use", [trained, evaluated])
@pytest.mark.parametrize("label", [10, -1])
def test_labels_out_of_range(use: Callable[[nn.Module, Any], None], label: int) -> None:
    model = resnet()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    labels = BATCH[1].clone()
    labels[5] = label
    with pytest.raises(DataError, match=str(label)):
        use(model, [(BATCH[0], labels)])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_last_batch_of_one_that_batch_norm_cannot_train_on() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    batches = [(torch.randn(n, 3, 2, 2), torch.randint(0, 3, (n,))) for n in (4, 1)]
    with pytest.raises(DataError, match="batch of 1 .*drop_last"):
        train(model, batches, epochs=1, progress=False)


def test_a_plan_for_another_model() -> None:
    pruned = prune(resnet(), IMAGE, Magnitude(keep=0.5))
    other = build("resnet32", width=0.5)
    with pytest.raises(PlanError, match="another"):
        apply(other, pruned.graph, pruned.plan)
    with pytest.raises(PlanError, match="fingerprint"):
        prune(other, IMAGE, pruned.plan)


def test_a_method_that_is_none() -> None:
    for method in (Magnitude, "magnitude", None):
        with pytest.raises(ArgumentError, match="method"):
            prune(resnet(), IMAGE, method)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="[Mm]agnitude"):
        method_from("magnitud")
    with pytest.raises(ArgumentError, match="keep"):
        method_from("magnitude", kep=0.5)
    assert "magnitude" in {name.lower() for name in METHODS}
