"""What is saved is what is loaded, and whatever is wrong with a file is said."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nervure import ERK, Depth, Drop, Keep, Magnitude, Mask, Plan, Pruned, apply, count, load, prune, save, trace, train
from nervure.core.container import DamageError, digest, write_container
from nervure.core.inputs import Inputs
from nervure.core.tensors import tensors_in
from nervure.errors import ArgumentError, FileError
from nervure.export import load_state, read_header, save_state
from nervure.export.packing import POSITIONS, Packing, pack, unpack
from nervure.export.saving import PRUNED, STATE
from nervure.surgery import masks_after
from nervure.zoo import build
from tests.networks import NETWORKS

IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
# One for each thing that could be lost on the way.
ALIKE = ("residual", "grouped_conv", "layer_norm", "windows", "weight_norm")


def resnet() -> nn.Module:
    return build("resnet8", seed=0, width=0.5).eval()


def other_resnet() -> nn.Module:
    return build("resnet8", seed=99, width=0.5).eval()


def halved(model: nn.Module | None = None, example: Any = IMAGE) -> Pruned:
    return prune(resnet() if model is None else model, example, Magnitude(keep=0.5))


def planned(model: nn.Module, plan: Plan, example: Any = IMAGE) -> Pruned:
    graph = trace(model, example)
    smaller = apply(model, graph, plan)
    cost = count(model, example), count(smaller, example)
    return Pruned(smaller, plan, graph, *cost, "by hand", masks_after(graph, plan))


def outputs(model: nn.Module, example: Any = IMAGE) -> list[Tensor]:
    return tensors_in(Inputs.of(example).run(model.eval()))


def assert_same_outputs(one: nn.Module, other: nn.Module, example: Any = IMAGE) -> None:
    for a, b in zip(outputs(one, example), outputs(other, example), strict=True):
        assert torch.equal(a, b)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save(tmp_path / "model.safetensors", halved())


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The file with another header of ours around the same tensors, sealed."""
    header = read_header(path)
    change(header)
    kind = replace(PRUNED, name=header.pop("kind"), version=header.pop("format"))
    return write_container(path, load_file(path), header, kind)


def before_seals(path: Path, change: Callable[[dict[str, Any]], None] = lambda header: None) -> Path:
    """The file as earlier versions wrote it: a checksum of the tensors in the header, and no seal."""
    header = read_header(path) | {"format": 3, "sha256": digest(load_file(path))}
    change(header)
    save_file(load_file(path), path, metadata={"nervure": json.dumps(header)})
    return path


class Tied(nn.Module):
    """One matrix embeds the words and reads them out; a buffer is persistent, another is not and drawn at random."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(11, 6), nn.Linear(6, 8), nn.Linear(8, 6)
        self.out = nn.Linear(6, 11, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("scale", torch.rand(()) + 1)
        self.register_buffer("shift", torch.randn(6), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) * self.scale + self.shift
        return self.out(h + self.down(torch.relu(self.up(h))))


WORDS = torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ALIKE)
def test_what_is_loaded_computes_what_was_saved(name: str, tmp_path: Path) -> None:
    factory, example = NETWORKS[name]
    pruned = prune(factory(), example(), Magnitude(keep=0.6))
    again = load(save(tmp_path / "model.safetensors", pruned), factory)
    assert_same_outputs(pruned.model, again.model, example())


def test_everything_about_the_pruning_comes_back(saved: Path) -> None:
    pruned, again = halved(), load(saved, resnet)
    assert again.plan == pruned.plan
    assert again.graph == pruned.graph
    assert (again.cost_before, again.cost_after) == (pruned.cost_before, pruned.cost_after)
    assert (again.method, again.verification) == (pruned.method, pruned.verification)


def test_the_weights_of_the_model_given_do_not_matter(saved: Path) -> None:
    assert_same_outputs(halved().model, load(saved, other_resnet).model)


def test_a_model_given_is_left_as_it_was(saved: Path) -> None:
    model = other_resnet()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load(saved, model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_same_model_makes_the_same_file(tmp_path: Path) -> None:
    one, other = save(tmp_path / "one.safetensors", halved()), save(tmp_path / "other.safetensors", halved())
    assert one.read_bytes() == other.read_bytes()


def test_training_after_the_cut_is_in_the_file(tmp_path: Path) -> None:
    pruned = halved()
    train(pruned.model, [(IMAGE, torch.tensor([0, 1]))], epochs=1, progress=False)
    again = load(save(tmp_path / "model.safetensors", pruned), resnet)
    assert_same_outputs(pruned.model, again.model)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_comes_back(training: bool, tmp_path: Path) -> None:
    pruned = halved()
    pruned.model.train(training)
    assert load(save(tmp_path / "model.safetensors", pruned), resnet).model.training is training


def test_shared_parameters_are_stored_once_and_stay_shared(tmp_path: Path) -> None:
    pruned = halved(Tied().eval(), WORDS)
    path = save(tmp_path / "model.safetensors", pruned)
    assert len({"embed.weight", "out.weight"} & set(load_file(path))) == 1
    again = load(path, lambda: Tied().eval()).model
    assert again.get_parameter("out.weight") is again.get_parameter("embed.weight")
    assert_same_outputs(pruned.model, again, WORDS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_precision_of_the_file_wins(dtype: torch.dtype, tmp_path: Path) -> None:
    pruned = halved()
    pruned.model.to(dtype)
    again = load(save(tmp_path / "model.safetensors", pruned), resnet).model
    for name, tensor in pruned.model.state_dict().items():
        assert again.state_dict()[name].dtype == tensor.dtype
        assert torch.equal(again.state_dict()[name], tensor)


def test_masks_and_dropped_blocks_come_back(tmp_path: Path) -> None:
    model = resnet()
    keep = Keep.of(torch.rand(model.get_parameter("fc.weight").shape) > 0.5)
    pruned = planned(model, Plan((Mask("fc.weight", keep), Drop("layer1.0"))))
    again = load(save(tmp_path / "model.safetensors", pruned), resnet)
    assert_same_outputs(pruned.model, again.model)
    assert torch.equal(again.masks["fc.weight"], keep.tensor())


def test_the_header_can_be_read_alone_and_holds_what_the_user_gave(tmp_path: Path) -> None:
    path = save(tmp_path / "model.safetensors", halved(), meta={"name": "resnet8"})
    assert read_header(path)["meta"] == {"name": "resnet8"}


def test_a_truncated_file_is_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    for length in (0, 5, 300, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:length])
        with pytest.raises(FileError, match="truncated"):
            load(saved, resnet)


def test_a_flipped_bit_anywhere_in_the_tensors_is_found(saved: Path) -> None:
    whole = bytearray(saved.read_bytes())
    for place in (len(whole) - 1, len(whole) - 5000):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        saved.write_bytes(damaged)
        with pytest.raises(FileError, match="checksum"):
            load(saved, resnet)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(FileError, match="did not write it"):
        load(tmp_path / "foreign.safetensors", resnet)
    (tmp_path / "text.safetensors").write_text("hello, this is no safetensors file at all")
    with pytest.raises(FileError, match="not a safetensors file"):
        load(tmp_path / "text.safetensors", resnet)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="nothing is there"):
        load(tmp_path / "none.safetensors", resnet)
    with pytest.raises(FileError, match="a folder is there"):
        load(tmp_path, resnet)


def test_a_newer_format_is_refused(saved: Path) -> None:
    with pytest.raises(FileError, match="Upgrade"):
        load(rewritten(saved, lambda header: header.update(format=999)), resnet)


def test_a_header_without_its_parts_is_refused(saved: Path) -> None:
    for part in ("costs", "masks", "plan", "graph"):
        path = rewritten(save(saved, halved()), lambda header, part=part: header.pop(part))
        with pytest.raises(FileError, match=f"damaged: its header .*{part}"):
            load(path, resnet)


def test_another_model_is_refused_with_what_differs(saved: Path) -> None:
    with pytest.raises(FileError, match=r"conv1\.weight: the file expects \(8, .*the model has \(16, "):
        load(saved, lambda: build("resnet8", width=1.0))
    with pytest.raises(FileError, match="no such tensor"):
        load(saved, lambda: nn.Linear(2, 2))


def test_a_factory_that_builds_no_model_is_refused(saved: Path) -> None:
    with pytest.raises(FileError, match="returned a int"):
        load(saved, lambda: 3)  # type: ignore[arg-type, return-value]


def test_a_state_that_is_no_tensor_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"steps": 3}

        def set_extra_state(self, state: Any) -> None:
            pass

    pruned = replace(halved(), model=Extra(2, 2))
    with pytest.raises(FileError, match="_extra_state"):
        save(tmp_path / "model.safetensors", pruned)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="choose another folder"):
        save(tmp_path / "no" / "such" / "model.safetensors", halved())
    with pytest.raises(FileError, match="holds no weights"):
        save(tmp_path, halved())


def test_a_failed_write_leaves_the_old_file_and_no_trace(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nervure.core.files.os.fsync", full)
    with pytest.raises(FileError, match="No space left"):
        save(saved, halved())
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_dense_state_round_trips_and_is_told_from_a_pruned_one(tmp_path: Path, saved: Path) -> None:
    path = save_state(tmp_path / "dense.safetensors", resnet())
    assert_same_outputs(load_state(path, other_resnet()), resnet())
    with pytest.raises(FileError, match="of kind 'nervure', not the state of a dense model"):
        load_state(saved, resnet())
    with pytest.raises(FileError, match="of kind 'nervure-state', not a pruned model"):
        load(path, resnet)


def test_a_plain_file_of_weights_is_welcome(tmp_path: Path) -> None:
    save_file({name: tensor.clone() for name, tensor in resnet().state_dict().items()}, tmp_path / "plain.safetensors")
    assert_same_outputs(load_state(tmp_path / "plain.safetensors", other_resnet()), resnet())
    with pytest.raises(FileError, match="the model has"):
        load_state(tmp_path / "plain.safetensors", build("resnet8", width=1.0))


def pictures() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(16, 3, 16, 16, generator=generator), torch.arange(16) % 4) for _ in range(2)]


def test_layers_then_channels_are_one_result_that_a_file_gives_back(tmp_path: Path) -> None:
    methods = [Depth(drop=1), Magnitude(keep=0.6, budget="macs")]
    both = prune(resnet(), IMAGE, methods, data=pictures(), progress=False)
    step = prune(prune(resnet(), IMAGE, methods[0], data=pictures(), progress=False), IMAGE, methods[1])
    assert (both.plan, both.earlier) == (step.plan, step.earlier)
    assert [len(s.plan.drops) for s in both.earlier] == [1]
    assert both.plan.cuts
    assert both.cost_before == count(resnet(), IMAGE)
    assert both.cost_after == count(both.model, IMAGE)
    assert both.cost_after.macs <= 0.6 * count(apply(resnet(), both.earlier[0].graph, both.earlier[0].plan), IMAGE).macs
    train(both.model, [(IMAGE, torch.tensor([0, 1]))], epochs=1, progress=False)
    again = load(save(tmp_path / "both.safetensors", both), other_resnet)
    assert_same_outputs(again.model, both.model)
    assert (again.plan, again.earlier, again.graph) == (both.plan, both.earlier, both.graph)
    assert str(again).startswith("Depth(")
    assert ", then Magnitude(" in str(again)


def test_what_was_masked_stays_masked_through_a_later_cut(tmp_path: Path) -> None:
    model = resnet()
    name = "layer3.0.conv2.weight"
    keep = torch.rand(model.get_parameter(name).shape, generator=torch.Generator().manual_seed(2)) > 0.5
    masked = prune(model, IMAGE, Plan((Mask(name, Keep.of(keep)),)))
    cut = prune(masked, IMAGE, Magnitude(keep=0.5))
    mask = cut.masks[name]
    assert mask.shape == cut.model.get_parameter(name).shape != keep.shape
    assert not cut.model.get_parameter(name)[~mask].any()
    assert torch.equal(load(save(tmp_path / "m.safetensors", cut), other_resnet).masks[name], mask)


def test_a_list_of_no_methods_is_refused() -> None:
    with pytest.raises(ArgumentError, match="names no method"):
        prune(resnet(), IMAGE, [])


def masked(density: float, model: nn.Module | None = None) -> Pruned:
    return prune(resnet() if model is None else model, IMAGE, ERK(density=density), progress=False, verify=False)


@pytest.mark.parametrize(("density", "layout"), [(0.5, "bitmask"), (0.03, "csr16")])
def test_masked_tensors_take_the_bytes_of_what_stays_and_come_back_bit_for_bit(
    density: float, layout: str, tmp_path: Path
) -> None:
    found = masked(density)
    path = save(tmp_path / "m.safetensors", found)
    layouts = {told["layout"] for told in read_header(path)["packed"].values()}
    assert layout in layouts
    again = load(path, other_resnet)
    assert again.plan == found.plan
    assert again.masks.keys() == found.masks.keys()
    assert all(torch.equal(again.masks[name], mask) for name, mask in found.masks.items())
    assert all(torch.equal(again.model.state_dict()[n], value) for n, value in found.model.state_dict().items())
    stored = sum(tensor.numel() * tensor.element_size() for tensor in load_file(path).values())
    state = found.model.state_dict()
    positions = {n: min(-(-m.numel() // 8), 2 * int(m.sum()) + 4) for n, m in found.masks.items()}
    spared = {n: 4 * int((~m).sum()) - positions[n] for n, m in found.masks.items()}
    whole = sum(value.numel() * value.element_size() for value in state.values())
    assert stored == whole - sum(max(0, n) for n in spared.values())


def test_positions_in_tensors_of_more_than_one_row_come_back() -> None:
    tensor = torch.arange(1.0, 200_001).reshape(400, 500)
    for density in (0.001, 0.05, 0.4):
        mask = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(1)) < density
        stored, layouts = pack({"a": tensor * mask}, {"a": mask})
        tensors, keeps = unpack(stored, layouts)
        assert torch.equal(tensors["a"], tensor * mask)
        assert torch.equal(keeps["a"].tensor(), mask)
        assert sum(t.numel() * t.element_size() for t in stored.values()) < 4 * mask.sum() + 25_001


@pytest.mark.parametrize("value", [1.0, -0.0, float("nan")])
def test_what_nobody_held_at_zero_is_saved_whole(value: float, tmp_path: Path) -> None:
    found = masked(0.1)
    name, mask = next(iter(found.masks.items()))
    with torch.no_grad():
        found.model.get_parameter(name)[~mask] = value
    path = save(tmp_path / "m.safetensors", found)
    assert name not in read_header(path)["packed"]
    again = load(path, other_resnet)
    assert torch.equal(again.masks[name], mask)
    there, here = (m.get_parameter(name).detach().view(torch.int32) for m in (again.model, found.model))
    assert torch.equal(there, here)


def test_a_sparse_state_goes_into_a_plain_model(tmp_path: Path) -> None:
    found = masked(0.1)
    small = save_state(tmp_path / "sparse.safetensors", found.model, masks=found.masks)
    large = save_state(tmp_path / "dense.safetensors", found.model)
    assert small.stat().st_size < 0.4 * large.stat().st_size
    assert_same_outputs(load_state(small, other_resnet()), found.model)
    assert_same_outputs(load_state(large, other_resnet()), found.model)


def test_files_of_before_seals_still_load(tmp_path: Path) -> None:
    found = masked(0.1)
    again = load(before_seals(save(tmp_path / "m.safetensors", found)), other_resnet)
    assert_same_outputs(again.model, found.model)
    assert all(torch.equal(again.masks[name], mask) for name, mask in found.masks.items())


def test_a_file_from_before_packing_still_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = masked(0.1)
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["nervure.export.saving"], "pack", lambda tensors, masks: (dict(tensors), {}))
        path = save(tmp_path / "m.safetensors", found)

    def as_before(header: dict[str, Any]) -> None:
        header["format"] = 1
        assert not header.pop("packed")

    again = load(before_seals(path, as_before), other_resnet)
    assert again.plan == found.plan
    assert all(torch.equal(again.masks[name], mask) for name, mask in found.masks.items())


def test_packed_tensors_that_do_not_fit_their_positions_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "m.safetensors", masked(0.1))

    def misshaped(header: dict[str, Any]) -> None:
        header["packed"]["fc.weight"]["shape"] = [3, 3]

    with pytest.raises(FileError, match=r"fc\.weight: the file expects \(3, 3\)|mask of 'fc\.weight'"):
        load(rewritten(path, misshaped), other_resnet)


@pytest.mark.parametrize("layout", ["bitmask", "csr16"])
def test_a_shape_that_no_memory_holds_is_refused_before_any_is_taken(layout: str, tmp_path: Path) -> None:
    huge = {"layout": layout, "shape": [10**6, 10**6]}
    path = save(tmp_path / "m.safetensors", masked(0.1))
    with pytest.raises(FileError, match=r"(1000000, 1000000)|mask of 'fc\.weight' is not in the file"):
        load(rewritten(path, lambda header: header["packed"].update({"fc.weight": huge})), other_resnet)
    found = masked(0.1)
    path = save_state(tmp_path / "s.safetensors", found.model, masks=found.masks)
    header = read_header(path)
    header["packed"]["fc.weight"] = huge
    write_container(path, load_file(path), header, STATE)
    with pytest.raises(FileError, match=r"fc\.weight: the file expects \(1000000, 1000000\)"):
        load_state(path, other_resnet())


@pytest.mark.parametrize(
    ("layout", "shape", "positions"),
    [
        ("bitmask", (9,), [255]),
        ("bitmask", (9,), [255, 128, 0]),
        ("bitmask", (9,), [255, 192]),
        ("csr16", (9,), [1, 0]),
        ("csr16", (9,), [2, 0, 0, 0, 1, 0]),
        ("csr16", (9,), [1, 0, 0, 0, 1, 0, 0]),
        ("csr16", (9,), [255, 255, 255, 255, 1, 0]),
        ("csr16", (9,), [2, 0, 0, 0, 2, 0, 1, 0]),
        ("csr16", (9,), [2, 0, 0, 0, 1, 0, 1, 0]),
        ("csr16", (9,), [1, 0, 0, 0, 9, 0]),
        ("csr16", (70_000,), [0, 0, 0, 0, 1, 0, 0, 0, 200, 200]),
    ],
)
def test_positions_that_are_none_of_the_shape_are_refused(
    layout: Any, shape: tuple[int, ...], positions: list[int]
) -> None:
    stored = {"a": torch.ones(2), f"{POSITIONS}a": torch.tensor(positions, dtype=torch.uint8)}
    with pytest.raises(DamageError, match=r"'a' of shape .* has positions of another one"):
        unpack(stored, {"a": Packing(layout, shape)})


def test_values_that_are_more_or_fewer_than_their_places_are_refused() -> None:
    bits = torch.tensor([0b1110_0000], dtype=torch.uint8)
    for values in (torch.ones(2), torch.ones(4)):
        with pytest.raises(DamageError, match="for 3 places"):
            unpack({"a": values, f"{POSITIONS}a": bits}, {"a": Packing("bitmask", (8,))})


def test_tensors_at_odd_places_of_a_file_compute_bit_for_bit_what_was_saved(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(67, 131), nn.ReLU(), nn.Linear(131, 3)).eval()
    table, data = {"first": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}, bytes(3)
    for name, tensor in model.state_dict().items():
        raw = tensor.numpy().tobytes()
        table[name] = {"dtype": "F32", "shape": [*tensor.shape], "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    wider = nn.Sequential(nn.Linear(67, 131), nn.ReLU(), nn.Linear(131, 3)).eval()
    wider.register_buffer("first", torch.ones(3, dtype=torch.uint8))
    text = json.dumps(table).encode()
    text += b" " * (len(text) % 2)
    (tmp_path / "odd").write_bytes(len(text).to_bytes(8, "little") + text + data)
    inputs = torch.randn(33, 67, generator=torch.Generator().manual_seed(4))
    assert_same_outputs(load_state(tmp_path / "odd", wider), model, inputs)


def test_integers_do_not_become_fractions(tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in resnet().state_dict().items()}
    counter = next(name for name in state if name.endswith("num_batches_tracked"))
    model = other_resnet()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(state | {counter: state[counter].float()}, tmp_path / "plain.safetensors")
    with pytest.raises(FileError, match=f"{counter}: the file has torch.float32, the model torch.int64"):
        load_state(tmp_path / "plain.safetensors", model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
