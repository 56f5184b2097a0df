"""What needs no transformers: tensors one by one from files, streams on the disk, and what is refused at the door."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nervure import Activation, Magnitude, MagnitudeMasks, Plan, Refit, SparseGPT, Taylor, Wanda, prune_folder
from nervure.errors import ArgumentError, DataError, FileError, NervureError
from nervure.streaming.layer_plans import require_by_layer
from nervure.streaming.layers_ahead import LayersAhead
from nervure.streaming.sharded_weights import INDEX, ShardedWeights, write_index, write_shard
from nervure.streaming.stored_streams import DENSE, SMALL, LayerAlone, Streams, write_stream
from nervure.surgery.apply import named_tensors

TENSORS = {name: torch.randn(3, n, generator=torch.Generator().manual_seed(n)) for n, name in enumerate("abcd", 2)}
UNIFORM = Magnitude(keep=0.5, scope="uniform")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, names in enumerate(("ab", "cd")):
        write_shard(tmp_path / f"part{number}.safetensors", {name: TENSORS[name].t() for name in names})
    write_index(tmp_path, ["part0.safetensors", "part1.safetensors"])
    return tmp_path


def test_tensors_come_one_by_one_and_are_ones_own(folder: Path) -> None:
    weights = ShardedWeights.of(folder)
    assert weights.shapes == {name: tuple(tensor.t().shape) for name, tensor in TENSORS.items()}
    weights.read("b").zero_()
    assert torch.equal(weights.read("b"), TENSORS["b"].t())
    assert weights.tensors(["c"], torch.bfloat16)["c"].dtype == torch.bfloat16
    before = weights.describe()
    os.utime(folder / "part1.safetensors", (1, 1))
    assert ShardedWeights.of(folder).describe() != before


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / INDEX).unlink(), "neither model.safetensors nor"),
        (lambda f: (f / INDEX).write_text("{}"), "is no index of weights"),
        (lambda f: (f / INDEX).write_text('{"weight_map": {"x": "part0.safetensors"}}'), "does not hold"),
        (lambda f: (f / INDEX).write_text('{"weight_map": {"x": "../part0.safetensors"}}'), "outside of its folder"),
        (lambda f: os.truncate(f / "part1.safetensors", 40), "cannot be read as safetensors"),
        (lambda f: (f / "part1.safetensors").unlink(), "cannot be read as safetensors"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(folder: Path, damage: Callable[[Path], Any], words: str) -> None:
    damage(folder)
    with pytest.raises(FileError, match=words):
        ShardedWeights.of(folder)


def test_weights_of_another_form_are_named(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(FileError, match=r"'pytorch_model.bin': write it as safetensors"):
        ShardedWeights.of(tmp_path)


def test_a_layer_alone_has_the_names_of_the_whole_model_and_runs_on_the_stream_of_its_side(tmp_path: Path) -> None:
    whole = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    layer = LayerAlone("1", whole[1], SMALL)
    assert {*named_tensors(layer)} == {"1.weight", "1.bias"}
    streams = Streams(tmp_path / "fitted", (DENSE, SMALL), [[{}, {}]], [3], torch.device("cpu"))
    given = {side: torch.randn(3, 4) for side in (DENSE, SMALL)}
    for side, stream in given.items():
        write_stream(streams.path(1, side, 0), stream)
    (batch,) = streams.batches(1)
    assert torch.equal(batch.feed(layer), whole[1](given[SMALL]))
    assert batch.head(2).feed(layer).shape == (2, 4)
    (nothing,) = streams.batches(0)
    with pytest.raises(FileError, match="is no stream between layers"):
        nothing.feed(layer)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (Activation(keep=0.5), "scope='uniform'"),
        (Magnitude(keep=0.5, scope="layer", budget="macs"), "scope='uniform'"),
        (Taylor(keep=0.5, scope="uniform"), "more than one layer"),
        (SparseGPT(), "more than one layer"),
        (Magnitude(keep=0.5, scope="uniform", budget="latency"), "Give another budget"),
    ],
)
def test_methods_that_need_more_than_a_layer_are_refused(method: Any, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        require_by_layer(method)


@pytest.mark.parametrize("method", [UNIFORM, Wanda(), Plan(), MagnitudeMasks(density=0.5, distribution="uniform")])
def test_methods_that_need_a_layer_are_taken(method: Any) -> None:
    require_by_layer(method)


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ({"method": Wanda()}, DataError, "give data="),
        ({"refit": True}, DataError, "the refit looks at data"),
        ({"refit": Refit(steps=2)}, ArgumentError, "steps=0"),
        ({"parts": ["width"]}, ArgumentError, "width"),
        ({"folder": "nowhere"}, FileError, "no weights to stream"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_read(
    folder: Path, how: dict[str, Any], error: type[NervureError], words: str
) -> None:
    with pytest.raises(error, match=words):
        prune_folder(**{"folder": folder, "out": folder / "out", "method": UNIFORM, **how})


def test_the_index_says_how_many_bytes_all_tensors_have(tmp_path: Path) -> None:
    shards = {"a.safetensors": {"x": torch.ones(3, 5)}, "b.safetensors": {"y": torch.ones(7).bfloat16()}}
    for name, tensors in shards.items():
        write_shard(tmp_path / name, tensors)
    write_index(tmp_path, shards)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 3 * 5 * 4 + 7 * 2


class _Layers:
    """Layers that note when they are read, and of which one cannot be."""

    def __init__(self, device: str) -> None:
        self.device, self.layers, self.read = torch.device(device), ("a", "b", "c", "d"), list[int]()

    def layer(self, number: int) -> nn.Module:
        self.read.append(number)
        if number == 3:
            raise FileError("the last one is gone")
        return nn.Linear(1, number + 1)


def test_elsewhere_the_next_layer_is_read_while_one_is_worked_on() -> None:
    model: Any = _Layers("meta")
    with LayersAhead(model) as layers:
        assert layers.layer(0).out_features == 1
        wait_until(lambda: model.read == [0, 1])
        assert layers.layer(1).out_features == 2
        wait_until(lambda: model.read == [0, 1, 2])
        # Another than that which was read: it is read now.
        assert layers.layer(0).out_features == 1
        assert layers.layer(2).out_features == 3
        with pytest.raises(FileError, match="the last one is gone"):
            layers.layer(3)


def test_on_the_processor_no_layer_is_read_before_its_turn() -> None:
    model: Any = _Layers("cpu")
    with LayersAhead(model) as layers:
        assert [layers.layer(n).out_features for n in (0, 1)] == [1, 2]
    assert model.read == [0, 1]


def wait_until(is_so: Callable[[], bool]) -> None:
    for _ in range(500):
        if is_so():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come")
