"""Files that hold tensors, made wrong: each is told as our own error, and none is believed."""

import copy
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from nervure import Magnitude, Plan, Pruned, load, prune, save, train
from nervure.core.container import Kind, read_container, write_container
from nervure.errors import FileError
from nervure.evaluation import answers
from nervure.evaluation.metrics import Observed
from nervure.export import load_state, read_header, save_state
from nervure.export.saving import PRUNED, STATE
from nervure.methods import SET
from nervure.methods.snacs.limits import Limit
from nervure.methods.snacs.survey import KIND as SURVEY
from nervure.methods.snacs.survey import ConnectivityEvidence
from nervure.plan import Keep, Mask
from nervure.stats import Stats
from nervure.stats.evidence import KIND as STATS
from nervure.training.checkpoint import KIND as TRAINING

EXAMPLE = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0])
HOSTILE = (-1, 0, 10**12, 10**30, 1e308, "", "x", None, True, [], {}, [[]], [1, 2, 3], {"a": 1}, ["a"] * 5)


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 3)
        )


@cache
def pruned() -> Pruned:
    keep = torch.rand(40, 8, generator=torch.Generator().manual_seed(1)) < 0.1
    first = prune(network(), EXAMPLE, Plan((Mask("3.weight", Keep.of(keep)),)), verify=False)
    return prune(first, EXAMPLE, Magnitude(keep=0.7), verify=False)


def go_on(path: Path, *, stop: bool = False) -> Any:
    """Train, from the checkpoint if it is there; what the model is then."""
    model = network()

    def hook(step: Any) -> None:
        if stop and step.number == 6:
            raise KeyboardInterrupt

    rewired = SET(density=0.5, every=2)
    batches = [(EXAMPLE, LABELS), (EXAMPLE.flip(0), LABELS.flip(0)), (EXAMPLE * 2, LABELS), (EXAMPLE - 1, LABELS)]
    options: Any = {"epochs": 2, "optimizer": "adamw", "checkpoint": path, "progress": False}
    history = train(model, batches, hooks=[rewired, hook], **options)
    return dict(model.state_dict()), dict(history.masks), history.loss


def begin(path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        go_on(path, stop=True)


def stats() -> Stats:
    return Stats(
        activations={"a": torch.ones(4, 3), "b": torch.zeros(4, 2)},
        connections={"0.weight": torch.ones(4, 6, 1)},
        labels=LABELS,
        samples=4,
        want=frozenset({"activations", "connections", "labels"}),
        skipped={"c": "it is not there"},
    )


def survey() -> ConnectivityEvidence:
    scores = {"0.weight": torch.rand(8, 6, generator=torch.Generator().manual_seed(3)), "3.weight": torch.ones(40, 8)}
    limits = {"0.weight": Limit((0.0, 0.5), (1.0, 0.5), 0.4, 0.1, 0.2)}
    return ConnectivityEvidence(scores, limits, {"g": torch.tensor([True, False])}, {"x": "why"}, 5)


def page(path: Path) -> answers.Page:
    return answers.Page({"net": path})


def note(path: Path) -> None:
    noted = page(path)
    observed = Observed(torch.rand(4).double(), torch.arange(4), torch.ones(4), torch.zeros(4).double(), LABELS)
    noted.note("net", ("blur", 3), observed, 3)
    noted.save()


def answered(path: Path) -> Any:
    found = page(path).get("net", ("blur", 3))
    return None if found is None else (found[1], vars_of(found[0]))


def vars_of(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


class Format(NamedTuple):
    """A kind of file: how it is written, and what is read of it, for comparing; how many times it is made wrong."""

    kind: Kind
    write: Callable[[Path], Any]
    read: Callable[[Path], Any]
    times: int = 50


def read_pruned(path: Path) -> Any:
    found = load(path, network(7))
    plain = (found.plan, found.earlier, found.graph, found.cost_before, found.cost_after, found.method)
    return plain, found.verification, dict(found.masks), dict(found.model.state_dict()), found.model.training


FORMATS = {
    "pruned": Format(PRUNED, lambda p: save(p, pruned(), meta={"a": [1, "b"]}), read_pruned),
    "header": Format(PRUNED, lambda p: save(p, pruned(), meta={"a": [1, "b"]}), read_header),
    "state": Format(
        STATE,
        lambda p: save_state(p, network()),
        lambda p: dict(load_state(p, network(7)).state_dict()),
    ),
    "packed state": Format(
        STATE,
        lambda p: save_state(p, pruned().model, masks=pruned().masks),
        lambda p: dict(load_state(p, copy.deepcopy(pruned().model)).state_dict()),
    ),
    "training": Format(TRAINING, begin, go_on, 8),
    "stats": Format(STATS, lambda p: stats().save(p), lambda p: vars_of(Stats.load(p))),
    "survey": Format(SURVEY, lambda p: survey().save(p), lambda p: vars_of(ConnectivityEvidence.load(p))),
    "answers": Format(answers.KIND, note, answered),
}


@cache
def whole(name: str, folder: Path) -> tuple[bytes, Any]:
    """The bytes of a file of that kind, and what is read of it."""
    path = folder / name
    FORMATS[name].write(path)
    content = path.read_bytes()
    return content, FORMATS[name].read(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8)) if one.ndim else bool(one == other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_equal(value, other[key])
    elif isinstance(one, tuple | list):
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    else:
        assert one == other


def mutants(content: bytes, draw: Random, times: int) -> Iterator[bytes]:
    """Bits flipped, ends cut off, bytes left out, put in, said twice, or of another value; and the table changed."""
    length = int.from_bytes(content[:8], "little")
    for _ in range(times):
        # Most of what can go wrong is in the table.
        at = draw.randrange(8 + length) if draw.random() < 0.7 else draw.randrange(len(content))
        end = at + draw.choice((1, 2, 8, 100))
        piece = bytes(draw.choice((0, 255, 34, 123)) for _ in range(end - at))
        yield content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]
        yield content[:at]
        yield content[:at] + content[end:]
        yield content[:at] + piece + content[at:]
        yield content[:at] + content[at:end] * 2 + content[end:]
        yield content[:at] + piece + content[end:]
        table = json.loads(content[8 : 8 + length])
        change(table, draw)
        text = json.dumps(table).encode()
        yield len(text).to_bytes(8, "little") + text + content[8 + length :]


def change(tree: Any, draw: Random) -> None:
    """Put something hostile somewhere in plain data, or leave something out."""
    places = list(_places(tree))
    holder, key = draw.choice(places)
    if draw.random() < 0.2:
        del holder[key]
    elif draw.random() < 0.1:
        deep: Any = []
        for _ in range(draw.choice((20, 400))):
            deep = [deep]
        holder[key] = deep
    else:
        holder[key] = copy.deepcopy(draw.choice(HOSTILE))


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield tree, key
        if isinstance(value, dict | list):
            yield from _places(value)


def change_tensors(tensors: dict[str, Tensor], draw: Random) -> None:
    """Leave a tensor out, or give it another name, shape, dtype or other values."""
    name = draw.choice(list(tensors))
    tensor = tensors.pop(name)
    other = draw.choice(
        (
            None,
            tensor.reshape(-1)[:1],
            tensor[None],
            tensor.double(),
            tensor.to(torch.int8),
            torch.full_like(tensor, 1),
            torch.zeros(0),
            torch.zeros(2, 3, 4),
        )
    )
    if other is not None:
        tensors[draw.choice((name, name, name, f"{name}x", name.partition(".")[2]))] = other


@pytest.mark.parametrize("name", FORMATS)
def test_whatever_happens_to_a_file_is_told_or_changes_nothing(name: str, folder: Path, tmp_path: Path) -> None:
    content, expected = whole(name, folder)
    found = 0
    for mutant in mutants(content, Random(name), FORMATS[name].times):
        path = tmp_path / "mutant"
        path.write_bytes(mutant)
        try:
            read = FORMATS[name].read(path)
        except FileError as error:
            assert str(path) in str(error)
            found += 1
            continue
        if name == "answers" and read is None:
            continue
        assert_equal(read, expected)
    assert name == "answers" or found > 5 * FORMATS[name].times


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_its_author_sealed_is_told_where_it_makes_no_sense(name: str, folder: Path, tmp_path: Path) -> None:
    content, _ = whole(name, folder)
    source, path = tmp_path / "source", tmp_path / "mutant"
    source.write_bytes(content)
    told = 0
    for number in range(2 * FORMATS[name].times):
        draw = Random(f"{name} {number}")
        header, tensors = read_container(source, dict[str, Any], FORMATS[name].kind)
        for _ in range(draw.choice((1, 1, 2))):
            if draw.random() < 0.3:
                change_tensors(tensors, draw)
            elif header:
                change(header, draw)
        write_container(path, tensors, header, FORMATS[name].kind)
        try:
            FORMATS[name].read(path)
        except FileError:
            told += 1
    assert name in {"answers", "header"} or told > FORMATS[name].times // 4
