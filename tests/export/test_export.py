"""What lies at the path computes what the module computes; what would not is refused, and leaves nothing behind."""

import hashlib
import importlib
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nervure
from nervure import Cut, Drop, Keep, Link, Mask, Plan, export, prune, trace, zoo
from nervure.core.files import read_json
from nervure.core.inputs import Inputs
from nervure.errors import ArgumentError, EngineError, FileError, MissingExtraError, NervureError, VerificationError
from nervure.export import ExportedFile
from nervure.export.checking import difference, random_like, telling
from nervure.prune import Pruned
from tests.networks import randomise

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return randomise(zoo.MODELS["resnet8"](width=0.5))


def half(size: int) -> Keep:
    return Keep.of([i % 2 == 0 for i in range(size)])


def edits(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    weight = model.get_parameter("layer3.0.conv2.weight")
    keep = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    link = torch.rand(8, 32, generator=torch.Generator().manual_seed(2)) < 0.5
    return {
        "cut": (Cut("layer3.0.conv1", half(32)), Cut("conv1", half(8))),
        "masked": (Mask("layer3.0.conv2.weight", Keep.of(keep)),),
        "dropped": (Drop("layer2.0"),),
        "linked": (Link("layer1.0.conv1", "layer3.0.conv2", Keep.of(link.T)),),
    }


def pruned(*kinds: str) -> Pruned:
    model = resnet()
    plan = Plan(tuple(edit for kind in kinds for edit in edits(model)[kind]), trace(model, IMAGE).fingerprint)
    result = prune(model, IMAGE, plan, progress=False)
    with torch.no_grad():
        for name, parameter in result.model.named_parameters():
            # Links begin at zero, where a lost one would not be seen.
            if "link_" in name:
                parameter.copy_(torch.randn(parameter.shape) * result.masks.get(name, torch.ones(())))
    return result


def batches(count: int = 2, samples: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        (torch.randn(samples, 3, 8, 8, generator=generator), torch.randint(10, (samples,), generator=generator))
        for _ in range(count)
    ]


@pytest.mark.slow
def test_cut_masked_dropped_and_linked_it_runs_without_us(tmp_path: Path) -> None:
    import onnxruntime

    result = pruned("cut", "masked", "dropped", "linked")
    done = export(result, IMAGE, tmp_path / "m.onnx", check=batches())
    assert done.checks["random"].batches == (1, 2, 5) and done.checks["data"].largest < 1e-4
    assert done.card.facts["pruning"]["steps"][0]["edits"] == {"cuts": 2, "masks": 1, "drops": 1, "links": 1}
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    for samples in (1, 7):
        x = torch.randn(samples, 3, 8, 8)
        (found,) = session.run(None, {"x": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), result.model(x).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["cut", "masked", "dropped", "linked"])
def test_each_edit_is_exported_by_torch(kind: str, tmp_path: Path) -> None:
    result = pruned(kind)
    result.model.train()
    done = export(result, IMAGE, tmp_path / "m.pt2")
    assert result.model.training and done.checks["random"].largest < 1e-6
    again = torch.export.load(str(done.path)).module()
    torch.testing.assert_close(again(IMAGE), result.model.eval()(IMAGE))


@pytest.mark.slow
def test_a_transformer_is_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = randomise(zoo.MODELS["vit_tiny"](image_size=8, dim=24, depth=1))
    result = prune(model, IMAGE, nervure.Magnitude(keep=0.5), progress=False)
    done = export(result, IMAGE, tmp_path / "vit.onnx")
    assert done.checks["random"].largest < 1e-4
    assert done.card.facts["costs"]["after"]["params"] < done.card.facts["costs"]["before"]["params"]


class Named(nn.Module):
    """Keyword arguments in, a dict with a pair out."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor) -> dict[str, Any]:
        return {"pair": (self.first(x) * mask, mask.sum(1)), "none": None}


@pytest.mark.parametrize("name", ["m.xml", "m.pt2"])
def test_any_structure_is_checked_and_described(name: str, tmp_path: Path) -> None:
    example = {"mask": torch.tensor([[0, 1, 2, 1]]), "x": torch.randn(1, 4)}
    card = export(Named().eval(), example, tmp_path / name).card.facts
    assert [(i["name"], i["dtype"], i["shape"]) for i in card["inputs"]] == [
        ("x", "float32", [None, 4]),
        ("mask", "int64", [None, 4]),
    ]
    assert [o["shape"] for o in card["outputs"]] == [[None, 4], [None]]
    assert ("x=x, mask=mask" if name == "m.pt2" else '{"x": x, "mask": mask}') in card["usage"]


class Wrong(nn.Module):
    """Another function while it is exported."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.01 * x if torch.compiler.is_exporting() else x


@pytest.mark.parametrize("name", ["m.pt2", "m.xml"])
def test_a_file_that_computes_something_else_is_refused_with_the_first_layer(name: str, tmp_path: Path) -> None:
    layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Sequential(Wrong(), nn.Linear(4, 2))).eval()
    (tmp_path / name).write_text("the old one")
    with pytest.raises(VerificationError, match=r"first layer that differs is '2\.0' \(Wrong\), by 1\.0e-02"):
        export(layers, torch.randn(2, 4), tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "the old one"
    # With a larger tolerance it passes, and says how far it is.
    done = export(layers, torch.randn(2, 4), tmp_path / name, tolerance=0.1)
    assert 1e-3 < done.checks["random"].largest < 0.1


def test_what_differs_on_real_inputs_only_is_found(tmp_path: Path) -> None:
    class Rare(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x > 1e6, 0.0, x) if torch.compiler.is_exporting() else x

    check = [(torch.full((3, 2), 2e6), torch.zeros(3))]
    export(Rare().eval(), torch.randn(2, 2), tmp_path / "a.pt2")
    with pytest.raises(VerificationError, match="on data inputs"):
        export(Rare().eval(), torch.randn(2, 2), tmp_path / "b.pt2", check=check)


def test_agreement_and_accuracy_are_those_of_the_data(tmp_path: Path) -> None:
    model = nn.Linear(2, 2, bias=False).eval()
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [3.0, 0.0]])
    found = export(model, x, tmp_path / "m.pt2", check=[(x, torch.tensor([0, 1, 0, 1]))]).checks["data"]
    assert found.agreement == 1.0 and found.accuracy == (0.75, 0.75) and found.batches == (4,)
    told = export(model, x, tmp_path / "m.pt2", check=[(x, torch.zeros(4))]).checks["data"]
    assert told.agreement is None and told.accuracy is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["m.onnx", "m.xml"])
def test_eight_bits_are_told_apart_and_take_a_quarter(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10)]
    model = nn.Sequential(*layers).eval()
    done = export(model, IMAGE, tmp_path / name, precision="int8", calibration=batches(4), check=batches())
    found = done.checks["data"]
    assert 1e-4 < found.largest < 0.2 and found.tolerance is None
    assert found.agreement is not None and found.agreement >= 0.75
    assert done.card.facts["calibrated"] == {"batches": 4}
    weights = sum(p.numel() for p in model.parameters())
    size = (tmp_path / "m.bin" if name == "m.xml" else done.path).stat().st_size
    assert weights < size < 2 * weights


def test_bf16_halves_the_file_and_tells_the_difference(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 8)).eval()
    x = torch.randn(4, 64)
    whole = export(model, x, tmp_path / "whole.pt2").path.stat().st_size
    done = export(model, x, tmp_path / "half.pt2", precision="bf16")
    assert 1e-4 < done.checks["random"].largest < 0.1 and done.checks["random"].tolerance is None
    assert whole - done.path.stat().st_size > 64 * 64
    out = torch.export.load(str(done.path)).module()(x)
    assert out.dtype == torch.float32 and model[0].weight.dtype == torch.float32


class Fixed(nn.Module):
    """For four samples."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(4, 2, 2) + 1


def test_the_number_of_samples_is_left_open_or_fixed_as_asked(tmp_path: Path) -> None:
    x = torch.randn(4, 4)
    with pytest.raises(EngineError, match="Fixed"):
        export(Fixed().eval(), x, tmp_path / "m.pt2")
    check = [(torch.randn(6, 4), torch.zeros(6))]
    done = export(Fixed().eval(), x, tmp_path / "m.pt2", dynamic=False, check=check)
    assert done.card.facts["file"]["samples"] == 4 and done.checks["data"].batches == (4,)
    assert "for 4 samples at a time" in done.card.to_markdown()


class Bessel(nn.Module):
    """An operator that exporters lack, inside a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), self.Layer())

    class Layer(nn.Module):
        """The one to be named."""

        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + 1


@pytest.mark.parametrize("name", ["m.onnx", "m.xml"])
def test_an_operator_that_the_format_lacks_is_named_with_its_layer(name: str, tmp_path: Path) -> None:
    root = logging.getLogger()
    before = root.level, list(root.filters), list(root.handlers)
    with pytest.raises(EngineError, match=r"lacks the operator aten\.special_bessel_j0 of layer 'inner\.1' \(Layer\)"):
        export(Bessel().eval(), torch.randn(2, 4), tmp_path / name)
    assert not list(tmp_path.iterdir())
    assert (root.level, list(root.filters), list(root.handlers)) == before, "the logs of others stay as they are"


@pytest.mark.parametrize("name", ["m.onnx", "m.xml"])
def test_the_logs_of_others_stay_as_they_are(name: str, tmp_path: Path) -> None:
    root = logging.getLogger()
    before = root.level, list(root.filters), list(root.handlers)
    export(nn.Linear(4, 4).eval(), torch.randn(2, 4), tmp_path / name)
    assert (root.level, list(root.filters), list(root.handlers)) == before


def test_what_cannot_be_done_is_refused_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("work was begun")

    monkeypatch.setattr(sys.modules["nervure.export.writing"], "export_graph", never)
    model, x = nn.Linear(2, 2), torch.zeros(1, 2)
    refused: list[tuple[type[NervureError], str, str, dict[str, Any]]] = [
        (ArgumentError, "does not say its format", "m.bin", {}),
        (ArgumentError, r"format='tflite' is not one of 'onnx'", "m.onnx", {"format": "tflite"}),
        (ArgumentError, r"should end with '\.xml'", "m.onnx", {"format": "openvino"}),
        (ArgumentError, "no precision 'bf16'.* is there for openvino, torch", "m.onnx", {"precision": "bf16"}),
        (ArgumentError, "int8' needs calibration=", "m.onnx", {"precision": "int8"}),
        (ArgumentError, "as many samples as the example has", "m.pte", {"dynamic": True}),
        (FileError, "nowhere", "nowhere/m.onnx", {}),
    ]
    for kind, words, name, options in refused:
        with pytest.raises(kind, match=words):
            export(model, x, tmp_path / name, **options)
    (tmp_path / "m.xml").mkdir()
    with pytest.raises(FileError, match="a folder is there"):
        export(model, x, tmp_path / "m.xml")
    with pytest.raises(ArgumentError, match="without numbers"):
        export(model.to("meta"), x, tmp_path / "m.pt2")


def test_a_missing_library_is_told_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(module: str) -> Any:
        raise ImportError(module)

    monkeypatch.setattr(importlib, "import_module", without)
    for name, extra in (("m.onnx", "onnx"), ("m.xml", "openvino"), ("m.pte", "executorch")):
        with pytest.raises(MissingExtraError, match=rf"pip install '\.\[{extra}\]'"):
            export(nn.Linear(2, 2), torch.zeros(1, 2), tmp_path / name)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExportedFile]:
    secret = torch.full((1, 3, 8, 8), 1234.5678)
    notes = {"accuracy": {"clean": 0.9, "shifted": 0.7}, "command": "make it again"}
    folder = tmp_path_factory.mktemp("card")
    yield export(pruned("cut", "masked"), secret, folder / "m.pt2", notes=notes, check=batches())


def test_the_card_travels_with_the_file(done: ExportedFile) -> None:
    assert [path.name for path in done.files] == ["m.pt2", "m.pt2.card.json", "m.pt2.card.md"]
    card = read_json(done.files[1])
    assert card == {k: v for k, v in json.loads(json.dumps(done.card.to_json())).items() if k != "format"}
    (file,) = card["files"]
    assert file["sha256"] == hashlib.sha256(done.path.read_bytes()).hexdigest()
    assert file["bytes"] == done.path.stat().st_size
    assert card["pruning"]["steps"][0]["widths"] == {"layer3.0.conv1": [16, 32], "conv1": [4, 8]}
    assert card["pruning"]["verification"] < 1e-4
    assert card["costs"]["after"]["macs"] < card["costs"]["before"]["macs"]
    assert card["notes"] == {"accuracy": {"clean": 0.9, "shifted": 0.7}}
    assert card["provenance"]["again"] == "make it again" and card["provenance"]["torch"] == torch.__version__
    assert card["verification"]["data"]["agreement"] == 1.0


def test_the_card_reads_well(done: ExportedFile) -> None:
    text = done.files[2].read_text()
    for words in ("# m.pt2", "torch.export.load", "2 cuts, 1 masks", "| accuracy, shifted | 0.7 |", "make it again"):
        assert words in text
    assert str(done).count("\n") == 2 and "accuracy" in str(done)


def test_neither_the_example_nor_the_source_goes_into_the_file(done: ExportedFile) -> None:
    content = done.path.read_bytes()
    assert torch.tensor(1234.5678).numpy().tobytes() * 4 not in content
    assert b"site-packages" not in content and str(Path(nervure.__file__).parent).encode() not in content


def test_differences_are_relative_and_strict() -> None:
    a = torch.tensor([1.0, -4.0])
    assert difference(a, a + torch.tensor([0.0, 0.4])) == pytest.approx(0.1)
    assert difference({"a": (a, None)}, {"a": (a, None)}) == 0.0
    assert difference(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 0])) == 0.25
    # Outputs that are nearly nothing are not blown up.
    assert difference(torch.zeros(2), torch.full((2,), 1e-6)) == pytest.approx(1e-3)
    for other, words in ((a[:1], "shape"), ((a, a), "2 tensors"), (torch.tensor([1.0, torch.nan]), "not finite")):
        with pytest.raises(VerificationError, match=words):
            difference(a, other)


def test_random_inputs_are_like_the_example() -> None:
    example = {"x": 5 + 2 * torch.randn(100, 50), "ids": torch.randint(3, 9, (100, 4)), "scale": torch.tensor(2.0)}
    inputs = Inputs.of(example)
    drawn = random_like(inputs, 200, seed=0).kwargs
    assert drawn["x"].shape == (200, 50) and abs(float(drawn["x"].mean()) - 5) < 0.1
    assert abs(float(drawn["x"].std()) - 2) < 0.1 and drawn["scale"] is example["scale"]
    assert set(drawn["ids"].unique().tolist()) == set(range(3, 9))
    again, other = (random_like(inputs, 200, seed=seed).kwargs for seed in (0, 1))
    assert torch.equal(again["x"], drawn["x"]) and not torch.equal(other["x"], drawn["x"])


def test_layers_tell_in_order_and_are_silent_again() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU()))
    x = torch.randn(1, 2)
    plain = model(x)
    with telling(model) as names:
        outputs = model(x)
        assert names == ["0", "1.0"] and len(outputs) == 2
    assert torch.equal(model(x), plain)


def test_executorch_runs_it_too(tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    done = export(pruned("cut"), IMAGE, tmp_path / "m.pte")
    assert done.card.facts["file"]["samples"] == 2 and done.checks["random"].largest < 1e-4
