"""What a library's own loader makes of a pruned model is told where it is another model."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nervure import Plan, prune, save
from nervure.errors import NervureWarning
from nervure.export.config_fit import fit_config
from nervure.export.stock import stock_differences
from nervure.plan import Cut, Drop, Keep

X = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(5))


class Config:
    def __init__(self, hidden_size: int = 8, intermediate_size: int = 12, num_hidden_layers: int = 3) -> None:
        self.hidden_size, self.intermediate_size = hidden_size, intermediate_size
        self.num_hidden_layers = num_hidden_layers

    def to_dict(self) -> dict[str, Any]:
        if self.hidden_size % 2:
            raise ValueError(f"hidden_size={self.hidden_size} is odd")
        return dict(vars(self))


class Layer(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.first, self.mix = (nn.Linear(config.hidden_size, config.hidden_size) for _ in range(2))
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.first(x).relu())
        return x + self.down(self.up(x).relu())


class Pretrained(nn.Module):
    """As libraries have it: built from a config, filled by name."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.scale = config, config.hidden_size**0.5
        self.embed, self.head = nn.Linear(5, config.hidden_size), nn.Linear(config.hidden_size, 3)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.noise = nn.Dropout(1 / config.num_hidden_layers)

    @classmethod
    def from_pretrained(cls, folder: str) -> "Pretrained":
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) * self.scale
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@pytest.fixture
def model() -> Pretrained:
    torch.manual_seed(0)
    return Pretrained(Config()).eval()


def halved(*names: str, size: int) -> Plan:
    return Plan(tuple(Cut(name, Keep.of(torch.arange(size) < size // 2)) for name in names))


def test_layers_and_widths_that_the_config_follows_are_read(model: Pretrained, tmp_path: Path) -> None:
    plan = Plan((Drop("layers.1"), *halved("layers.0.up", "layers.1.up", "layers.2.up", size=12)))
    pruned = prune(model, X, plan, progress=False)
    assert stock_differences(pruned.model) == ""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(tmp_path / "pruned.safetensors", pruned)


def test_half_a_layer_that_is_gone_is_told_by_plan_and_file(model: Pretrained, tmp_path: Path) -> None:
    pruned = prune(model, X, Plan((Drop("layers.1.up"),)), progress=False)
    said = pruned.plan.describe(pruned.graph)
    assert "no config says that layers.1.up is dropped" in said and "nervure.load" in said
    with pytest.warns(NervureWarning, match=r"not by from_pretrained.*layers\.1\.up\.weight is \(12, 8\).*nothing"):
        save(tmp_path / "pruned.safetensors", pruned)


def test_a_layer_that_is_taken_out_is_told_too(model: Pretrained) -> None:
    pruned = prune(model, X, Plan((Drop("layers.1"),)), progress=False)
    said = pruned.plan.describe(pruned.graph)
    assert "taken out of layers, and those behind it move up" in said and "no config" not in said


def test_widths_that_differ_by_layer_are_told(model: Pretrained, tmp_path: Path) -> None:
    pruned = prune(model, X, halved("layers.0.up", size=12), progress=False)
    assert "config.intermediate_size stays 12" in pruned.plan.describe(pruned.graph)
    with pytest.warns(NervureWarning, match=r"layers\.0\.up\.weight is \(12, 8\) where this has \(6, 8\)"):
        save(tmp_path / "pruned.safetensors", pruned)


def test_a_scale_that_is_made_of_a_size_is_told(model: Pretrained) -> None:
    plan = halved("embed", *(f"layers.{i}.first" for i in range(3)), size=8)
    smaller: Any = prune(model, X, plan, progress=False).model
    assert smaller.config.hidden_size == 4
    assert ".scale is 2 where this has 2.828" in stock_differences(smaller)


def test_a_config_that_cannot_be_read_again_is_told_in_its_own_words(model: Pretrained) -> None:
    broken = copy.deepcopy(model)
    broken.config.hidden_size = 7
    assert "cannot be built from its config (ValueError: hidden_size=7 is odd)" in stock_differences(broken)


def test_other_models_are_not_asked(model: Pretrained) -> None:
    assert stock_differences(nn.Linear(2, 3)) == ""
    state = torch.random.get_rng_state()
    assert stock_differences(model) == "" and torch.equal(torch.random.get_rng_state(), state)


# ------------------------------------------------------------------------------------------------- fitting a config


class LayeredConfig(Config):
    """As libraries have it whose layers may differ; its width is said by a name that means nothing."""

    per_layer_config: dict[int, dict[str, int]] | None = None

    def __init__(
        self, per_layer_config: dict[int, dict[str, int]] | None = None, frobs: int = 12, **sizes: int
    ) -> None:
        super().__init__(**sizes)
        del self.intermediate_size
        self.frobs, self.per_layer_config = frobs, per_layer_config

    def at(self, number: int) -> Config:
        own = (self.per_layer_config or {}).get(number, {})
        return Config(self.hidden_size, own.get("frobs", self.frobs), self.num_hidden_layers)


class Layered(Pretrained):
    def __init__(self, config: LayeredConfig) -> None:
        super().__init__(config.at(0))
        self.config: Config = config
        self.layers = nn.ModuleList(Layer(config.at(i)) for i in range(config.num_hidden_layers))


UPS = ("layers.0.up", "layers.1.up", "layers.2.up")


def test_a_number_of_any_name_is_found_by_its_size() -> None:
    torch.manual_seed(0)
    pruned = prune(Layered(LayeredConfig()).eval(), X, halved(*UPS, size=12), progress=False)
    assert stock_differences(pruned.model)
    fitted = fit_config(pruned.model)
    assert fitted.distance == 0 and dict(fitted.changes) == {("frobs",): 6}
    assert fitted.changed.frobs == 6 and fitted.config.frobs == 12


def test_numbers_that_differ_by_layer_are_said_by_layer_where_a_config_can() -> None:
    torch.manual_seed(0)
    pruned = prune(Layered(LayeredConfig()).eval(), X, halved(UPS[2], size=12), progress=False)
    fitted = fit_config(pruned.model)
    assert fitted.distance == 0 and dict(fitted.changes) == {("per_layer_config",): {2: {"frobs": 6}}}


def test_what_no_number_says_is_left_over(model: Pretrained) -> None:
    pruned = prune(model, X, halved(UPS[2], size=12), progress=False)
    fitted = fit_config(pruned.model)
    assert fitted.distance == 3 and not fitted.changes
    assert {one.tensor for one in fitted.resized} == {f"layers.2.{n}" for n in ("up.weight", "up.bias", "down.weight")}
