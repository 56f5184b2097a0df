"""Wherever a model is, the same call does the same, with examples and batches that are on the CPU as loaders give them.

Where there is no GPU, ``tests/test_second_device.py`` runs all of it on a device of the processor's own memory.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from nervure import (
    SNACS,
    Activation,
    Depth,
    Magnitude,
    MagnitudeMasks,
    Refit,
    Wanda,
    compact,
    compile_sparse,
    connectivity,
    count,
    evaluate,
    export,
    latency,
    latency_table,
    prune,
    prune_folder,
    refit,
    smallest,
    trace,
    train,
    verify,
)
from nervure.cli import main
from nervure.core.late import send
from nervure.methods import Method
from nervure.recipe import Recipe, run
from nervure.tasks import agreement
from nervure.training import cross_entropy, recalibrate, with_distillation
from nervure.zoo import build
from nervure.zoo.data import fake
from tests import contracts
from tests.refit.test_after_every_method import CHOSEN, network_for
from tests.second_device import chosen, is_there

DEVICE = chosen()
CPU = torch.device("cpu")
DATA = fake(samples=128, classes=4, side=16)
EXAMPLE = DATA.example(2)
FIT = Refit(samples=48)

pytestmark = [
    pytest.mark.skipif(not is_there(DEVICE), reason="no GPU on this machine"),
    pytest.mark.filterwarnings("ignore"),
]


def small(device: torch.device = DEVICE) -> nn.Module:
    return build("resnet8", seed=0, num_classes=4, in_channels=3).to(device)


def batches(device: torch.device = CPU) -> Any:
    return DATA.train.batches(32, device=device)


def assert_lives(model: nn.Module, device: torch.device = DEVICE) -> None:
    assert {t.device.type for t in (*model.parameters(), *model.buffers())} == {device.type}


def assert_close(one: nn.Module, other: nn.Module) -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    assert {name: tensor.shape for name, tensor in mine.items()} == {name: t.shape for name, t in theirs.items()}
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor.cpu(), theirs[name].cpu(), rtol=1e-2, atol=1e-3)


# -- every method ---------------------------------------------------------------------------------------------------


@pytest.mark.sampled(share=0.1, times=0)
@pytest.mark.parametrize("fit", [False, FIT], ids=["plain", "refit"])
@pytest.mark.parametrize("method", CHOSEN.values(), ids=lambda method: type(method).__name__)
def test_a_method_decides_there_what_it_decides_here(method: Method, fit: Any) -> None:
    model, example = network_for(method)
    data = contracts.data_for(model, example)
    found = {
        device: prune(copy.deepcopy(model).to(device), example, method, data=data, refit=fit, progress=False)
        for device in (CPU, DEVICE)
    }
    assert_lives(found[DEVICE].model)
    assert (found[DEVICE].verification is None) == (found[CPU].verification is None)
    if DEVICE.type != "cuda":
        # The same kernels: a GPU may decide otherwise where scores are as good as equal.
        assert found[DEVICE].plan.edits == found[CPU].plan.edits
        assert_close(found[DEVICE].model, found[CPU].model)


# -- what else takes an example or batches --------------------------------------------------------------------------


def test_an_example_follows_the_model(tmp_path: Path) -> None:
    model = small()
    pruned = prune(model, EXAMPLE, Magnitude(keep=0.5))
    assert count(model, EXAMPLE) == count(small(CPU), EXAMPLE)
    assert verify(model, pruned, EXAMPLE).ok
    sparse = prune(model, EXAMPLE, MagnitudeMasks(density=0.1))
    assert compact(sparse.graph, sparse.plan, model=model, example=EXAMPLE)
    assert connectivity(model, EXAMPLE)
    assert latency({"one": model}, EXAMPLE, seconds=0.05, rounds=3).median("one") > 0
    export(pruned, EXAMPLE, tmp_path / "model.pt2")
    compile_sparse(sparse.model.eval(), EXAMPLE)


def test_times_of_many_plans_are_taken_there(tmp_path: Path) -> None:
    assert latency_table(small(), EXAMPLE, samples=4, cache=tmp_path / "times", progress=False)


def test_batches_follow_the_model() -> None:
    model, dense = small(), small(CPU)
    assert evaluate(model, DATA.test.batches(32), progress=False).accuracy == pytest.approx(
        evaluate(dense, DATA.test.batches(32), progress=False).accuracy, abs=0.02
    )
    assert recalibrate(model, batches(), batches=2) > 0
    found = smallest(small(), EXAMPLE, Magnitude(keep=0.5), data=batches(), tolerance=0.2, progress=False)
    assert_lives(found.pruned.model)


def test_two_networks_may_be_on_two_devices() -> None:
    student, teacher = small(), small(CPU)
    assert train(student, batches(), objective=with_distillation(cross_entropy, teacher), progress=False).loss
    task = agreement(teacher)
    assert evaluate(student, list(batches()), task=task, progress=False)
    pruned = prune(student, EXAMPLE, Magnitude(keep=0.5))
    with pytest.raises(Exception, match=r"device"):
        refit(pruned, batches(), reference=teacher, progress=False)


def test_a_copy_to_the_cpu_is_there_when_it_is_read() -> None:
    counted = torch.arange(1_000_000, device=DEVICE)
    assert torch.equal(send(counted + 1, CPU), torch.arange(1, 1_000_001))


# -- networks that a GPU runs by other operators --------------------------------------------------------------------


class Recurrent(nn.Module):
    """Two recurrent layers between two others."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.enter, self.rnn, self.leave = nn.Linear(5, 6), kind(6, 8, num_layers=2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        return self.leave(self.rnn(self.enter(x))[0][:, -1])


class Cells(nn.Module):
    """Cells that are called step by step."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.cell, self.leave = kind(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        made = self.cell(x[:, 0])
        return self.leave(made[0] if isinstance(made, tuple) else made)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_cut_and_fitted_there(kind: Any) -> None:
    torch.manual_seed(0)
    model, example = Recurrent(kind), torch.randn(4, 7, 5)
    data = [(torch.randn(32, 7, 5), torch.randint(3, (32,))) for _ in range(3)]
    there = copy.deepcopy(model).to(DEVICE)
    assert trace(there, example).fingerprint == trace(model, example).fingerprint
    for method in (Magnitude(keep=0.5), SNACS(keep=0.5)):
        found = prune(there, example, method, data=data, progress=False)
        here = prune(model, example, method, data=data, progress=False)
        # The sums of gates have another order there.
        assert [(c.group, c.keep.count) for c in found.plan.cuts] == [(c.group, c.keep.count) for c in here.plan.cuts]
        assert found.verification is not None
        assert_lives(found.model)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_recurrent_cells_have_the_units_that_they_have_here(kind: Any) -> None:
    model, example = Cells(kind), torch.randn(4, 7, 5)
    here, there = trace(model, example), trace(copy.deepcopy(model).to(DEVICE), example)
    assert {(g.name, g.size) for g in there.prunable} == {(g.name, g.size) for g in here.prunable}


# -- whole runs -----------------------------------------------------------------------------------------------------

RECIPE = """
[model]
name = "resnet8"
[data]
name = "digits"
train_samples = 400
[train]
epochs = 1
[prune]
method = "SNACS"
keep = 0.5
[refit]
samples = 128
[recover]
epochs = 1
[evaluate]
latency = [4]
rounds = 3
"""


def test_a_recipe_runs_there(tmp_path: Path) -> None:
    told = f'{RECIPE}\n[run]\nfolder = "{tmp_path / "run"}"\ndevice = "{DEVICE}"\n'
    assert run(Recipe.from_toml(told), progress=False)


def test_the_command_line_runs_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    network = ["--model", "resnet8", "--option", "width=0.25", "--data", "digits", "--device", str(DEVICE)]
    for words in (
        ["train", *network, "--epochs", "1", "-o", "dense.safetensors"],
        ["plan", *network, "--weights", "dense.safetensors", "--method", "Taylor", "--keep", "0.5"],
        ["apply", *network, "--weights", "dense.safetensors", "--plan", "plan.json", "-o", "small.safetensors"],
        ["evaluate", *network, "--file", "small.safetensors"],
    ):
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, result.output


SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "pad_token_id": 0,
}
STREAMED = {
    "width": (Activation(keep=0.8, scope="uniform", budget="params"), FIT),
    "masks": (Wanda(granularity="2:4"), Refit(samples=8, masks="surgeon")),
    "layers": (Depth(drop=2, granularity="whole"), FIT),
}


@pytest.mark.parametrize("case", STREAMED)
def test_a_folder_is_pruned_there_layer_by_layer(tmp_path: Path, case: str) -> None:
    transformers: Any = pytest.importorskip("transformers")
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).save_pretrained(tmp_path / "dense")
    data, (method, fit) = [{"input_ids": ids} for ids in torch.randint(3, 60, (8, 12)).split(4)], STREAMED[case]
    loaded = []
    for device in (CPU, DEVICE):
        out = tmp_path / f"on-{device.type}"
        found = prune_folder(tmp_path / "dense", out, method, data=data, refit=fit, device=device, progress=False)
        assert found.difference < 1e-3
        loaded.append(transformers.LlamaForCausalLM.from_pretrained(out))
    assert_close(loaded[1], loaded[0])
