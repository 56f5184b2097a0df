"""Reference networks: published parameter counts, shapes, names, and errors that help."""

import pytest
import torch
from torch import nn

from nervure.errors import ArgumentError
from nervure.zoo import MODELS, build

IMAGES = {"resnet18": (3, 64, 64), "resnet50": (3, 64, 64), "lenet300": (1, 28, 28), "lenet5": (1, 28, 28)}
SLOW = {"resnet110": {"width": 0.25}, "densenet100": {"growth": 2}, "vgg19": {"width": 0.25}, "vit_small": {"depth": 1}}
FOR_28_GREY = {
    "vgg16": {"width": 0.25},
    "resnet8": {},
    "resnet20": {"shortcut": "pad"},
    "resnet18": {"small_images": True, "width": 0.25},
    "mobilenetv2": {"image_size": 32, "width": 0.25},
    "densenet40": {"growth": 2},
    "vit_tiny": {"image_size": 28, "depth": 1},
    "lenet300": {},
    "lenet5": {},
}


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "options", "published"),
    [
        ("lenet300", {}, 266_610),
        ("lenet5", {}, 431_080),
        ("vgg16", {}, 14_724_042),
        ("vgg19", {}, 20_035_018),
        ("resnet8", {"in_channels": 1}, 308_074),
        ("resnet20", {}, 272_474),
        ("resnet20", {"shortcut": "pad"}, 269_722),
        ("resnet56", {"shortcut": "pad"}, 853_018),
        ("resnet110", {"shortcut": "pad"}, 1_727_962),
        ("resnet18", {}, 11_689_512),
        ("resnet18", {"small_images": True, "num_classes": 10}, 11_173_962),
        ("resnet50", {}, 25_557_032),
        ("mobilenetv2", {}, 3_504_872),
        ("mobilenetv2", {"image_size": 32}, 3_504_872),
        ("densenet100", {"bottleneck": True}, 769_162),
        ("vit_tiny", {"patch": 16, "image_size": 224, "num_classes": 1000}, 5_717_416),
        ("vit_small", {"patch": 16, "image_size": 224, "num_classes": 1000}, 22_050_664),
    ],
)
def test_a_network_has_as_many_parameters_as_published(name, options, published):
    with torch.device("meta"):
        assert count(build(name, **options)) == published


@pytest.mark.parametrize(
    ("name", "millions"), [("densenet40", 1.0), ("densenet100", 7.0), ("resnet32", 0.47), ("vgg11", 9.2)]
)
def test_a_network_has_the_published_millions_of_parameters(name, millions):
    with torch.device("meta"):
        assert count(build(name)) / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize("name", MODELS)
def test_a_network_gives_one_finite_logit_per_class(name):
    model = build(name, num_classes=7, **SLOW.get(name, {}))
    logits = model(torch.randn(2, *IMAGES.get(name, (3, 32, 32))))
    assert logits.shape == (2, 7)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize(("name", "options"), FOR_28_GREY.items())
def test_a_network_takes_grey_images_of_28_pixels(name, options):
    model = build(name, in_channels=1, num_classes=10, **options).eval()
    assert model(torch.randn(1, 1, 28, 28)).shape == (1, 10)


@pytest.mark.parametrize(("name", "options"), FOR_28_GREY.items())
def test_every_parameter_learns(name, options):
    model = build(name, in_channels=1, num_classes=10, **options)
    model(torch.randn(4, 1, 28, 28)).square().sum().backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


def test_resnet_parameters_are_named_as_in_torchvision():
    with torch.device("meta"):
        keys = set(build("resnet50").state_dict())
    expected = {"conv1.weight", "bn1.running_var", "layer1.0.downsample.0.weight", "layer1.0.downsample.1.bias"}
    assert expected | {"layer4.2.conv3.weight", "layer3.5.bn2.num_batches_tracked", "fc.bias"} <= keys
    assert len(keys) == 320


def test_mobilenet_parameters_are_named_as_in_torchvision():
    with torch.device("meta"):
        keys = set(build("mobilenetv2").state_dict())
    expected = {"features.0.0.weight", "features.1.conv.0.0.weight", "features.1.conv.1.weight", "classifier.1.bias"}
    assert expected | {"features.2.conv.2.weight", "features.18.0.weight", "features.17.conv.3.bias"} <= keys
    assert len(keys) == 314


def test_a_stem_of_stride_two_gives_features_of_half_the_side():
    x = torch.randn(1, 3, 32, 32)
    sides = [build("resnet20", stem_stride=stride).conv1(x).shape[-1] for stride in (1, 2)]
    assert sides == [32, 16]


def test_width_multiplies_channels():
    assert build("vgg16", width=0.25).classifier.in_features == 128
    assert build("resnet20", width=1.5).fc.in_features == 96


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    first, second, other = (build("lenet300", seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.fc1.weight, second.fc1.weight)
    assert not torch.equal(first.fc1.weight, other.fc1.weight)


def test_an_unknown_network_names_the_nearest():
    with pytest.raises(ArgumentError, match=r"'resnet-20' is not a known network. Did you mean 'resnet20'"):
        build("resnet-20")


def test_an_unknown_option_names_the_nearest():
    with pytest.raises(ArgumentError, match=r"'numclasses' is not a known option of resnet20. Did you mean 'num_clas"):
        build("resnet20", numclasses=10)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet20", {"width": 0}),
        ("resnet20", {"shortcut": "A"}),
        ("resnet20", {"stem_stride": 3}),
        ("resnet20", {"num_classes": 0}),
        ("vgg16", {"width": "wide"}),
        ("lenet5", {"image_size": 12}),
        ("mobilenetv2", {"image_size": 100}),
        ("vit_tiny", {"patch": 5}),
        ("vit_tiny", {"heads": 5}),
        ("densenet40", {"growth": 0}),
    ],
)
def test_an_option_out_of_range_is_refused_with_what_was_given(name, options):
    with pytest.raises(ArgumentError, match=str(next(iter(options.values())))):
        build(name, **options)
