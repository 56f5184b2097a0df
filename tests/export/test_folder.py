"""A folder of ``save_pretrained``: the plan beside config and weights, read without the model where it can be."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nervure import ERK, Drop, Energy, Magnitude, Plan, Pruned, load, prune, save
from nervure.errors import FileError, NervureWarning
from nervure.export.blueprint import Blueprint
from nervure.export.folder import PLAN_FILE

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(3))


class Saved(nn.Module):
    """As libraries have it that write config and weights into a folder; one of its weights has two names."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, width), nn.Linear(width, width), nn.Linear(width, 3)
        self.again = self.middle
        self.register_buffer("shift", torch.full((3,), 0.5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.again(self.middle(self.first(x).relu()).relu()).relu()) + self.shift

    def save_pretrained(self, folder: Path, prefix: str = "") -> None:
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text("{}")
        names = [name for name in self.state_dict() if not name.startswith("middle")]
        save_file({prefix + name: self.state_dict()[name] for name in names}, folder / "model.safetensors")


def built(seed: int = 0) -> Saved:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Saved().eval()


@pytest.fixture
def pruned() -> Any:
    return prune(built(), X, Magnitude(keep=0.5), progress=False)


def test_weights_that_are_trained_on_and_saved_again_are_read_with_the_plan(pruned: Any, tmp_path: Path) -> None:
    pruned.model.save_pretrained(tmp_path / "out")
    assert save(tmp_path / "out", pruned, meta={"run": 7}) == tmp_path / "out"
    with torch.no_grad():
        pruned.model.last.weight += 1
    pruned.model.save_pretrained(tmp_path / "out")
    found = load(tmp_path / "out", lambda: built(seed=5))
    assert torch.equal(found.model(X), pruned.model(X))
    assert (found.plan, found.cost_after) == (pruned.plan, pruned.cost_after)
    assert found.model.again is found.model.middle


def test_masks_travel_with_the_plan(tmp_path: Path) -> None:
    pruned: Any = prune(built(), X, ERK(density=0.4), progress=False)
    pruned.model.save_pretrained(tmp_path)
    save(tmp_path, pruned)
    found = load(tmp_path, built())
    assert found.masks.keys() == pruned.masks.keys()
    assert all(torch.equal(found.masks[name], mask) for name, mask in pruned.masks.items())
    assert found.plan == pruned.plan


def test_what_is_missing_is_told(pruned: Any, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"holds no weights.*pruned.model.save_pretrained"):
        save(tmp_path, pruned)
    with pytest.raises(FileError, match=r"holds no nervure\.safetensors, which nervure\.save"):
        load(tmp_path, built)
    pruned.model.save_pretrained(tmp_path)
    save(tmp_path, pruned)
    with pytest.raises(FileError, match=r"does not say how its model is built.*nervure.load\(folder, model\)"):
        load(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileError, match=r"holds no config\.json"):
        load(tmp_path, built)
    with pytest.raises(FileError, match="needs the model before pruning"):
        load(save(tmp_path / "one.safetensors", pruned))


def test_weights_of_other_names_or_another_model_are_told(pruned: Any, tmp_path: Path) -> None:
    pruned.model.save_pretrained(tmp_path, prefix="body.")
    with pytest.raises(FileError, match=r"lack 'first\.weight' and 7 more.*save_original_format=False"):
        save(tmp_path, pruned)
    built().save_pretrained(tmp_path)
    with pytest.raises(FileError, match=r"another model.*again.weight: the file expects \(8, 8\), the model has \(4"):
        save(tmp_path, pruned)
    assert not (tmp_path / PLAN_FILE).exists()
    pruned.model.save_pretrained(tmp_path)
    save(tmp_path, pruned)
    built().save_pretrained(tmp_path)
    with pytest.raises(FileError, match="another model"):
        load(tmp_path, built)


def test_a_damaged_plan_file_is_told(pruned: Any, tmp_path: Path) -> None:
    pruned.model.save_pretrained(tmp_path)
    save(tmp_path, pruned)
    whole = (tmp_path / PLAN_FILE).read_bytes()
    for place in range(8, len(whole), 97):
        (tmp_path / PLAN_FILE).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(FileError):
            load(tmp_path, built)


# ------------------------------------------------------------------------------------------- models of transformers


IDS = torch.randint(0, 60, (8, 12), generator=torch.Generator().manual_seed(1))
SIZES = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24}


def language_model(name: str, **options: Any) -> nn.Module:
    transformers: Any = pytest.importorskip("transformers")
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    model: nn.Module = kind(kind.config_class(**SIZES, **options)).eval()
    return model


def saved(pruned: Pruned, folder: Path) -> Path:
    model: Any = pruned.model
    model.save_pretrained(folder)
    return save(folder, pruned)


METHODS = {
    "alike in all layers": Magnitude(keep=0.5, scope="layer"),
    "widths by layer": Magnitude(keep=0.5, budget="macs"),
    "layers and widths": [Energy(drop=1), Magnitude(keep=0.6, budget="macs")],
}
MODELS = {
    "BertForMaskedLM": {"max_position_embeddings": 16},
    "LlamaForCausalLM": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "Qwen2ForCausalLM": {"num_key_value_heads": 2, "layer_types": ["full_attention"] * 3},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_a_folder_is_read_without_the_model(name: str, method: str, tmp_path: Path) -> None:
    dense = language_model(name, **MODELS[name])
    pruned = prune(dense, {"input_ids": IDS[:2]}, METHODS[method], data=[{"input_ids": IDS}], progress=False)  # type: ignore[arg-type]
    saved(pruned, tmp_path)
    state = torch.random.get_rng_state()
    found = load(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)
    for again in (found, load(tmp_path, dense)):
        assert torch.equal(again.model.eval()(IDS).logits, pruned.model.eval()(IDS).logits)
        assert (again.plan, again.earlier, again.cost_after) == (pruned.plan, pruned.earlier, pruned.cost_after)
    assert type(found.model) is type(dense)
    assert not any(parameter.is_meta for parameter in found.model.parameters())


def test_where_the_config_tells_all_from_pretrained_reads_the_pruned_model(tmp_path: Path) -> None:
    dense = language_model("LlamaForCausalLM")
    pruned = prune(dense, {"input_ids": IDS[:2]}, METHODS["alike in all layers"], progress=False)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error", NervureWarning)
        saved(pruned, tmp_path)
    again: Any = type(dense).from_pretrained(tmp_path)  # type: ignore[attr-defined]
    assert torch.equal(again.eval()(IDS).logits, pruned.model.eval()(IDS).logits)


@pytest.mark.filterwarnings("ignore:Some weights")
def test_where_it_does_not_saving_says_so_and_from_pretrained_refuses(tmp_path: Path) -> None:
    dense = language_model("LlamaForCausalLM")
    pruned = prune(dense, {"input_ids": IDS[:2]}, METHODS["widths by layer"], progress=False)  # type: ignore[arg-type]
    with pytest.warns(NervureWarning, match="read by nervure.load only, not by from_pretrained: built from its config"):
        saved(pruned, tmp_path)
    with pytest.raises((RuntimeError, ValueError)):
        type(dense).from_pretrained(tmp_path)  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore")
def test_layers_whose_kinds_left_with_them_need_the_model(tmp_path: Path) -> None:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    dense = language_model("Qwen2ForCausalLM", num_key_value_heads=2, layer_types=kinds, use_sliding_window=True)
    first = Plan((Drop("model.layers.0"),))
    pruned = prune(dense, {"input_ids": IDS[:2]}, [first, METHODS["widths by layer"]], progress=False)  # type: ignore[list-item]
    saved(pruned, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["layer_types"] == kinds[1:]
    with pytest.raises(FileError, match="does not say how its model is built"):
        load(tmp_path)
    assert torch.equal(load(tmp_path, dense).model.eval()(IDS).logits, pruned.model.eval()(IDS).logits)


@pytest.mark.filterwarnings("ignore")
def test_a_class_that_transformers_does_not_have_is_never_looked_for_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    for name in ("os", "AutoModel", "utils", "pipeline", "__class__", "BertConfig"):
        with pytest.raises(FileError, match="has no model"):
            Blueprint(name, {}).build()
    code = {"auto_map": {"AutoModel": "a--b.C"}, "attn_implementation": "some/kernel", **SIZES}
    assert Blueprint("BertModel", code).build().config._attn_implementation in ("sdpa", "eager")  # type: ignore[union-attr]
    with pytest.raises(FileError, match="cannot be built from its config"):
        Blueprint("BertModel", {"hidden_size": -3}).build()
