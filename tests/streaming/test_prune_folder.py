"""A folder pruned layer by layer holds the bits that the same work in memory gives, however often it was stopped."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import nervure.streaming.layer_by_layer as work
from nervure import (
    Activation,
    Cut,
    Depth,
    Drop,
    Keep,
    Magnitude,
    MagnitudeMasks,
    Mask,
    Plan,
    Refit,
    Wanda,
    prune,
    prune_folder,
)
from nervure.errors import ArgumentError, BudgetError, DataError, FileError, NervureError, PlanError, VerificationError
from nervure.streaming import StreamedFolder, competing_masks, first_pass, stored_streams

prune_module = importlib.import_module("nervure.streaming.prune_folder")

pytestmark = pytest.mark.filterwarnings("ignore")
LAYERS = 2
SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 24,
}
DATA = [
    {"input_ids": ids} for ids in torch.randint(3, 60, (8, 12), generator=torch.Generator().manual_seed(1)).split(4)
]
EXAMPLE = {"input_ids": DATA[0]["input_ids"][:2]}
FIT = Refit(samples=8)
WIDTH = Activation(keep=0.8, scope="uniform", budget="params")
MASKS = Wanda(granularity="2:4")
FILES = {"model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors", "config.json"}


def build(name: str = "LlamaForCausalLM", **more: Any) -> Any:
    transformers: Any = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    kind = getattr(transformers, name)
    torch.manual_seed(0)
    given = {"pad_token_id": 0, **({"num_key_value_heads": 2} if name != "OPTForCausalLM" else {}), **SIZES, **more}
    return kind(kind.config_class(**given)).eval()


def load(folder: Path) -> Any:
    """The model that transformers loads, with all that is outside of its layers frozen."""
    transformers: Any = pytest.importorskip("transformers")
    config = transformers.AutoConfig.from_pretrained(folder)
    config.use_cache = False
    kind = getattr(transformers, config.architectures[0])
    model, told = kind.from_pretrained(folder, config=config, output_loading_info=True)
    assert not any(told.values())
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(".layers." in parameter_name)
    return model.eval()


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense") / "llama"
    build().save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def states(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def go(dense: Path, out: Path, method: Any = WIDTH, **how: Any) -> StreamedFolder:
    return prune_folder(dense, out, method, **{"data": DATA, "refit": FIT, "progress": False, **how})


def outside_dense(method: Any) -> Any:
    """The method that leaves the head of a whole model alone, as going layer by layer does."""
    return replace(method, dense=("lm_head",)) if isinstance(method, Wanda | MagnitudeMasks) else method


CASES: dict[str, tuple[Any, Any]] = {
    "width, refit": (WIDTH, FIT),
    "width alone": (Magnitude(keep=0.5, scope="uniform"), False),
    "masks, surgeon": (MASKS, replace(FIT, masks="surgeon")),
    "masks, exact": (MagnitudeMasks(density=0.5, distribution="uniform"), FIT),
}
SLOW = {"width alone", "masks, exact"}


@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.slow if case in SLOW else ()) for case in CASES])
def test_the_bits_are_those_of_the_work_in_memory(dense: Path, tmp_path: Path, case: str) -> None:
    method, refit = CASES[case]
    found = go(dense, tmp_path / "small", method, refit=refit)
    in_memory = prune(
        load(dense), EXAMPLE, outside_dense(method), data=DATA, refit=refit, only=["*.mlp.*"]
        if isinstance(method, Activation | Magnitude) else None, progress=False,
    )  # fmt: skip
    assert_same(load(tmp_path / "small").state_dict(), in_memory.model.state_dict())
    assert {*found.plan.edits} == {*in_memory.plan.edits}
    assert found.difference == 0
    assert all(layer.verification is not None and layer.verification < 1e-4 for layer in found.layers)
    assert not (tmp_path / "small-run" / "streams").exists()


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Qwen2ForCausalLM": {"tie_word_embeddings": True, "sliding_window": 6, "use_sliding_window": True},
    "Gemma3ForCausalLM": {"head_dim": 4, "sliding_window": 6},
    "OPTForCausalLM": {"ffn_dim": 24, "word_embed_proj_dim": 16},
}
"""Models whose layers differ in how they are called, and that have biases and positions to look up."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_models_are_those_of_the_work_in_memory(tmp_path: Path, name: str) -> None:
    build(name, **ARCHITECTURES[name]).save_pretrained(tmp_path / "dense")
    found = go(tmp_path / "dense", tmp_path / "small", MASKS)
    in_memory = prune(load(tmp_path / "dense"), EXAMPLE, found.plan, data=DATA, refit=FIT, progress=False)
    assert_same(load(tmp_path / "small").state_dict(), in_memory.model.state_dict())


def test_weights_that_are_changed_as_they_are_loaded_are_refused(tmp_path: Path) -> None:
    sizes = {"head_dim": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
    build("Qwen3MoeForCausalLM", **sizes).save_pretrained(tmp_path / "dense")
    with pytest.raises(FileError, match="Where transformers changes tensors as it loads them"):
        go(tmp_path / "dense", tmp_path / "small", MASKS)


def test_a_given_plan_and_half_precision(tmp_path: Path) -> None:
    build().to(torch.bfloat16).save_pretrained(tmp_path / "dense")
    keep = Keep.of(torch.arange(24) % 4 > 0)
    plan = Plan(tuple(Cut(f"model.layers.{n}.mlp.gate_proj", keep) for n in range(LAYERS)))
    go(tmp_path / "dense", tmp_path / "small", plan)
    in_memory = prune(load(tmp_path / "dense"), EXAMPLE, plan, data=DATA, refit=FIT, progress=False)
    found = load(tmp_path / "small")
    assert found.dtype == torch.bfloat16
    assert_same(found.state_dict(), in_memory.model.state_dict())


@pytest.mark.slow
def test_layers_behind_one_that_was_edited_are_fitted_too(dense: Path, tmp_path: Path) -> None:
    keep = Keep.of(torch.rand(24, 16, generator=torch.Generator().manual_seed(3)) < 0.5)
    plan = Plan((Mask("model.layers.0.mlp.up_proj.weight", keep),))
    found = go(dense, tmp_path / "small", plan)
    in_memory = prune(load(dense), EXAMPLE, plan, data=DATA, refit=FIT, progress=False)
    assert_same(load(tmp_path / "small").state_dict(), in_memory.model.state_dict())
    assert any(fit.freedom != "none" for fit in found.layers[1].fits)


def test_heads_leave_alike(dense: Path, tmp_path: Path) -> None:
    found = go(dense, tmp_path / "small", Magnitude(keep=0.5, scope="uniform"), parts=["heads"])
    assert found.config["num_key_value_heads"] == (2, 1)
    assert load(tmp_path / "small").model.layers[1].self_attn.o_proj.in_features == 8


def test_the_folder_is_an_ordinary_one(dense: Path, tmp_path: Path) -> None:
    found = go(dense, tmp_path / "small", refit=False)
    assert {*found.files} >= FILES | {"tokenizer.json", "model.safetensors.index.json", "generation_config.json"}
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert config["use_cache"] is True
    assert config["intermediate_size"] == found.config["intermediate_size"][1] < 24
    assert "intermediate_size 24 ->" in str(found)


# -- stopped -------------------------------------------------------------------------------------------------------


class Stop(BaseException):
    """The process is asked to end."""


PLACES = [
    (work, "write_shard", 0), (work, "write_shard", 1), (stored_streams, "write_stream", 3),
    (work, "write_stream", 3), (work, "write_stream", 9), (work, "settle_folder", 0),
]  # fmt: skip


def test_stopped_at_any_write_it_goes_on_to_the_same_bits(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = Magnitude(keep=0.5, scope="uniform")
    go(dense, tmp_path / "whole", method)
    for module, name, after in PLACES:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, stopping(getattr(module, name), after))
            with pytest.raises(Stop):
                go(dense, tmp_path / "small", method)
    assert not (tmp_path / "small").exists()
    go(dense, tmp_path / "small", method)
    assert_same(states(tmp_path / "small"), states(tmp_path / "whole"))


def stopping(real: Callable[..., Any], after: int) -> Callable[..., Any]:
    """The function, until it was called so often."""
    calls = [0]

    def call(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] > after:
            raise Stop
        return real(*args)

    return call


SCRIPT = """
import sys, torch
from nervure import Activation, Refit, prune_folder
data = [{"input_ids": x} for x in torch.load(sys.argv[3])]
method = Activation(keep=0.8, scope="uniform", budget="params")
prune_folder(sys.argv[1], sys.argv[2], method, data=data, refit=Refit(samples=8), progress=False)
"""


KILLS = 5


@pytest.mark.slow
def test_killed_it_goes_on_to_the_same_bits(dense: Path, tmp_path: Path) -> None:
    go(dense, tmp_path / "whole")
    torch.save([batch["input_ids"] for batch in DATA], tmp_path / "tokens.pt")
    places = map(str, (dense, tmp_path / "small", tmp_path / "tokens.pt"))
    call = [sys.executable, "-W", "ignore", "-c", SCRIPT, *places]
    killed = 0
    for number in range(KILLS):
        process = subprocess.Popen(call)
        # Some are killed as soon as something is written, others later.
        for _ in range(1 + 3 * number % 7):
            wait_for_a_write(tmp_path / "small-run", process)
        killed += process.poll() is None
        process.kill()
        process.wait()
    subprocess.run(call, check=True)
    assert killed >= min(KILLS, 3)
    assert_same(states(tmp_path / "small"), states(tmp_path / "whole"))


def wait_for_a_write(folder: Path, process: subprocess.Popen[bytes]) -> None:
    """Until other files are in a folder than now, or the process has ended."""
    before = names_in(folder)
    while process.poll() is None and names_in(folder) == before:
        time.sleep(0.003)


def names_in(folder: Path) -> set[str]:
    """All that is in a folder and in those in it, drafts too."""
    return {os.path.join(place, name) for place, _, names in os.walk(folder) for name in names}


def test_what_is_done_is_not_done_again(dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = go(dense, tmp_path / "small", refit=False)
    monkeypatch.setattr(work, "write_shard", stopping(work.write_shard, 0))
    again = go(dense, tmp_path / "small", refit=False)
    assert (again.plan, again.layers, again.config) == (first.plan, first.layers, first.config)
    with pytest.raises(FileError, match="nothing is overwritten"):
        go(dense, tmp_path / "small", refit=False, fresh=True)
    monkeypatch.undo()
    before = states(tmp_path / "small")
    shutil.rmtree(tmp_path / "small")
    go(dense, tmp_path / "small", replace(first.plan, fingerprint="another"), refit=False, fresh=True)
    assert_same(states(tmp_path / "small"), before)
    shutil.rmtree(tmp_path / "small")
    go(dense, tmp_path / "small", replace(first.plan, fingerprint="another"), refit=False)
    assert_same(states(tmp_path / "small"), before)


def test_each_layer_is_told(dense: Path, tmp_path: Path) -> None:
    told = list[str]()
    go(dense, tmp_path / "small", refit=False, tell=lambda layer: told.append(str(layer)))
    assert [line.partition(":")[0] for line in told] == [f"model.layers.{n}" for n in range(LAYERS)]


# -- refused -------------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[dict[str, Any], type[NervureError], str]] = {
    "no tokens": ({"data": [torch.randn(4, 12)]}, DataError, "whole numbers"),
    "unknown tokens": ({"data": [torch.full((4, 12), 60)]}, DataError, "the model knows 0 to 59"),
    "no batches of them": ({"data": ["text"]}, DataError, "give tokens"),
    "an unknown group": ({"method": Plan((Cut("layers.9", Keep.of([True])),))}, PlanError, "none of that name"),
    "nothing": ({"method": Plan()}, PlanError, "nothing to do"),
    "the head": (
        {"method": Plan((Mask("lm_head.weight", Keep.of(torch.ones(60, 16, dtype=torch.bool))),))},
        PlanError,
        "in no layer",
    ),
    "other sizes by layer": (
        {"method": Plan((Cut("model.layers.1.mlp.gate_proj", Keep.of(torch.arange(24) < 12)),))},
        FileError,
        "no config of LlamaForCausalLM says this model",
    ),
    "no such layer": ({"method": Wanda(granularity="2:4", dense=("heads",))}, ArgumentError, "fits nothing"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_done_is_refused_before_any_work(dense: Path, tmp_path: Path, case: str) -> None:
    how, error, words = WRONG[case]
    with pytest.raises(error, match=words):
        go(dense, tmp_path / "small", **{"method": WIDTH, **how})
    assert [*tmp_path.iterdir()] == []


def test_a_model_that_is_no_list_of_layers_is_refused(tmp_path: Path) -> None:
    transformers: Any = pytest.importorskip("transformers")
    sizes = {"vocab_size": 60, "d_model": 16, "d_kv": 4, "num_layers": 3, "num_heads": 4, "d_ff": 24}
    transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes)).save_pretrained(tmp_path / "dense")
    with pytest.raises(ArgumentError, match="nothing to stream"):
        go(tmp_path / "dense", tmp_path / "small")


def damages() -> Iterator[tuple[str, Callable[[Path], None], str]]:
    yield "no config", lambda f: (f / "config.json").unlink(), "holds no config.json"
    yield "no tensor", lambda f: _without(f, "model.norm.weight"), "has no 'model.norm.weight'"
    yield "cut short", lambda f: os.truncate(f / "model.safetensors", 5000), "cannot be read as safetensors"


def _without(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, folder / "model.safetensors")


@pytest.mark.parametrize(("damage", "words"), [pytest.param(d, words, id=name) for name, d, words in damages()])
def test_a_folder_that_is_not_whole_is_refused(
    dense: Path, tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    shutil.copytree(dense, tmp_path / "dense")
    damage(tmp_path / "dense")
    with pytest.raises(FileError, match=words):
        go(tmp_path / "dense", tmp_path / "small")


def test_what_is_there_stays(dense: Path, tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "mine").write_text("mine")
    with pytest.raises(FileError, match="'mine'"):
        go(dense, tmp_path / "small")


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_of_a_run_that_is_no_run_of_ours_stays(dense: Path, tmp_path: Path, fresh: bool) -> None:
    other = tmp_path / "small-run"
    other.mkdir()
    (other / "plan.json").write_text("{}")
    (other / "recovered.safetensors").write_text("a night of work")
    with pytest.raises(FileError, match=r"holds 'plan.json' and is no run of prune_folder"):
        go(dense, tmp_path / "small", refit=False, fresh=fresh)
    assert (other / "recovered.safetensors").read_text() == "a night of work"


def test_the_folder_that_is_worked_in_is_refused_as_a_place(dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(dense)
    with pytest.raises(FileError, match="nothing is overwritten"):
        go(dense, Path())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool])
def test_tokens_are_numbers_that_a_table_is_looked_up_by(dense: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    with pytest.raises(DataError, match="give tokens"):
        go(dense, tmp_path / "small", data=[DATA[0]["input_ids"].to(dtype)])


@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_a_shard_that_was_damaged_since_it_was_made_is_found(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(work, "write_shard", stopping(work.write_shard, 2))
        with pytest.raises(Stop):
            go(dense, tmp_path / "small", refit=False)
    (first,) = (tmp_path / "small-run" / "draft").glob("model-00002-*")
    content = first.read_bytes()
    first.write_bytes(content[:-40] + bytes(40)) if harm == "cut" else first.unlink()
    with pytest.raises(VerificationError, match="fresh=True"):
        go(dense, tmp_path / "small", refit=False)
    assert not (tmp_path / "small").exists()


def test_another_run_is_told_apart(dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(work, "write_shard", stopping(work.write_shard, 2))
        with pytest.raises(Stop):
            go(dense, tmp_path / "small", refit=False)
    with pytest.raises(FileError, match=r"another run: method was .*keep=0\.8.*keep=0\.7"):
        go(dense, tmp_path / "small", replace(WIDTH, keep=0.7), refit=False)
    with pytest.raises(FileError, match="another run: data"):
        go(dense, tmp_path / "small", data=DATA[:1], refit=False)
    found = go(dense, tmp_path / "small", replace(WIDTH, keep=0.7), refit=False, fresh=True)
    assert found.plan.asked["keep"] == 0.7


def test_a_shard_that_is_not_what_was_meant_is_found(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damage(path: Path, tensors: Any) -> None:
        real(path, {name: tensor * 1.01 if "down_proj" in name else tensor for name, tensor in tensors.items()})

    real = work.write_shard
    monkeypatch.setattr(work, "write_shard", damage)
    with pytest.raises(VerificationError, match=r"'model.layers.0', loaded again from .* computes something else"):
        go(dense, tmp_path / "small", refit=False)
    assert not (tmp_path / "small").exists()


# -- whole layers leave --------------------------------------------------------------------------------------------

DEEP = {"num_hidden_layers": 5}
DEPTH = Depth(drop=2, granularity="whole")


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five layers, of which the second and the fourth do least."""
    folder = tmp_path_factory.mktemp("deep") / "llama"
    model = build(**DEEP)
    with torch.no_grad():
        for number, share in ((1, 0.2), (3, 0.1)):
            layer = model.model.layers[number]
            layer.mlp.down_proj.weight *= share
            layer.self_attn.o_proj.weight *= share
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("refit", [FIT, False])
def test_layers_that_leave_are_those_of_the_work_in_memory(deep: Path, tmp_path: Path, refit: Any) -> None:
    found = go(deep, tmp_path / "small", DEPTH, refit=refit)
    in_memory = prune(load(deep), EXAMPLE, DEPTH, data=DATA, refit=refit, progress=False)
    assert {*found.plan.edits} == {*in_memory.plan.edits} == {Drop("model.layers.1"), Drop("model.layers.3")}
    assert found.plan.reached["scores"] == pytest.approx(in_memory.plan.reached["scores"], rel=1e-4)
    assert found.config["num_hidden_layers"] == (5, 3)
    assert_same(load(tmp_path / "small").state_dict(), in_memory.model.state_dict())
    assert found.difference == 0
    assert [layer.after > 0 for layer in found.layers] == [True, False, True, False, True]
    assert len([*(tmp_path / "small").glob("*.safetensors")]) == 4


def test_layers_before_all_edits_are_passed_through(deep: Path, tmp_path: Path) -> None:
    plan = Plan((Drop("model.layers.2"), Drop("model.layers.3")))
    found = go(deep, tmp_path / "small", plan)
    in_memory = prune(load(deep), EXAMPLE, plan, data=DATA, refit=FIT, progress=False)
    assert_same(load(tmp_path / "small").state_dict(), in_memory.model.state_dict())
    assert [len(layer.fits) > 0 for layer in found.layers] == [False, True, False, False, True]


def test_a_plan_may_drop_layers_and_cut_those_that_stay(deep: Path, tmp_path: Path) -> None:
    keep = Keep.of(torch.arange(24) % 4 > 0)
    cuts = tuple(Cut(f"model.layers.{n}.mlp.gate_proj", keep) for n in (0, 2, 3, 4))
    plan = Plan((Drop("model.layers.1"), *cuts))
    found = go(deep, tmp_path / "small", plan)
    in_memory = prune(load(deep), EXAMPLE, plan, data=DATA, refit=FIT, progress=False)
    assert found.config["num_hidden_layers"] == (5, 4)
    assert found.config["intermediate_size"] == (24, 18)
    assert_same(load(tmp_path / "small").state_dict(), in_memory.model.state_dict())


def test_stopped_in_either_pass_it_goes_on_to_the_same_bits(
    deep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(deep, tmp_path / "whole", DEPTH)
    places = [
        (stored_streams, "write_stream", 1),
        (first_pass, "write_stream", 3),
        (first_pass, "write_shard", 2),
        (work, "write_shard", 2),
    ]
    for module, name, after in places:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, stopping(getattr(module, name), after))
            with pytest.raises(Stop):
                go(deep, tmp_path / "small", DEPTH)
    monkeypatch.setattr(first_pass, "write_shard", stopping(first_pass.write_shard, 0))
    first = go(deep, tmp_path / "small", DEPTH)
    assert_same(states(tmp_path / "small"), states(tmp_path / "whole"))
    again = go(deep, tmp_path / "small", DEPTH)
    assert (again.plan, again.layers, again.config) == (first.plan, first.layers, first.config)


@pytest.mark.parametrize("dropped", [0, 1])
def test_layers_that_differ_by_their_number_keep_what_they_do(tmp_path: Path, dropped: int) -> None:
    """Every second layer looks at a window alone: the list in the config loses what the layers lose."""
    more = {"head_dim": 4, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"] * 2}
    build("Gemma3ForCausalLM", **DEEP | {"num_hidden_layers": 4}, **more).save_pretrained(tmp_path / "dense")
    found = go(tmp_path / "dense", tmp_path / "small", Plan((Drop(f"model.layers.{dropped}"),)), refit=False)
    left = [kind for number, kind in enumerate(more["layer_types"]) if number != dropped]
    assert json.loads((tmp_path / "small" / "config.json").read_text())["layer_types"] == left
    assert found.difference == 0
    whole = prune(load(tmp_path / "dense"), EXAMPLE, found.plan, progress=False).model
    with torch.no_grad():
        assert torch.equal(whole(**DATA[0]).logits, load(tmp_path / "small")(**DATA[0]).logits)


def test_layers_that_the_smaller_model_would_call_otherwise_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"head_dim": 4, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
    build("Gemma3ForCausalLM", **more).save_pretrained(tmp_path / "dense")
    real = prune_module.fit_config

    def forgetful(model: Any) -> Any:
        found = real(model)
        found.changed.layer_types = more["layer_types"][:1]
        return found

    monkeypatch.setattr(prune_module, "fit_config", forgetful)
    with pytest.raises(VerificationError, match=r"'model.layers.0' another 'attention_mask'"):
        go(tmp_path / "dense", tmp_path / "small", Plan((Drop("model.layers.0"),)), refit=False)
    assert not (tmp_path / "small").exists()


DEPTHS: dict[str, tuple[Any, type[NervureError], str]] = {
    "halves": (Depth(drop=1), ArgumentError, "granularity='whole'"),
    "the whole model again": (Depth(drop=1, granularity="whole", score="cka"), ArgumentError, "runs the whole model"),
    "more than there are": (Depth(drop=6, granularity="whole"), BudgetError, "only 5 blocks"),
    "all": (Depth(drop=5, granularity="whole"), PlanError, "drops all 5 layers"),
    "half a layer": (Plan((Drop("model.layers.1.mlp"),)), PlanError, "which is no whole layer"),
}


@pytest.mark.parametrize("case", DEPTHS)
def test_what_no_layer_says_is_refused_before_any_work(deep: Path, tmp_path: Path, case: str) -> None:
    method, error, words = DEPTHS[case]
    with pytest.raises(error, match=words):
        go(deep, tmp_path / "small", method)
    assert [*tmp_path.iterdir()] == []


# -- masks of layers that compete ----------------------------------------------------------------------------------

COMPETING: dict[str, tuple[Any, Any]] = {
    "sizes over all layers": (MagnitudeMasks(density=0.5), False),
    "sizes, small layers keep more": (MagnitudeMasks(density=0.4, distribution="erk"), FIT),
    "loudness over all layers": (Wanda(density=0.5, distribution="global", rows=False), FIT),
    "outliers": (Wanda(density=0.4, distribution="outliers"), replace(FIT, masks="surgeon")),
    "sizes, by outliers": (MagnitudeMasks(density=0.4, distribution="outliers"), False),
    "spectra": (MagnitudeMasks(density=0.4, distribution="spectrum", granularity="kernel"), False),
}


@pytest.mark.parametrize("case", COMPETING)
def test_masks_that_compete_over_layers_are_those_of_the_work_in_memory(deep: Path, tmp_path: Path, case: str) -> None:
    method, refit = COMPETING[case]
    found = go(deep, tmp_path / "small", method, refit=refit)
    in_memory = prune(load(deep), EXAMPLE, outside_dense(method), data=DATA, refit=refit, progress=False)
    assert {*found.plan.edits} == {*in_memory.plan.edits}
    assert len({round(mask.keep.count / mask.keep.size, 2) for mask in found.plan.masks}) > 1
    assert_same(load(tmp_path / "small").state_dict(), in_memory.model.state_dict())
    assert found.difference == 0
    again = go(deep, tmp_path / "small", method, refit=refit)
    assert {*again.plan.edits} == {*found.plan.edits}


def test_sizes_need_no_data(deep: Path, tmp_path: Path) -> None:
    found = go(deep, tmp_path / "small", MagnitudeMasks(density=0.5), refit=False, data=None)
    assert found.plan.reached["density"] == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(DataError, match="give data="):
        go(deep, tmp_path / "other", Wanda(density=0.5, distribution="outliers"), refit=False, data=None)
    with pytest.raises(BudgetError, match="keep every output connected"):
        go(deep, tmp_path / "sparse", MagnitudeMasks(density=1e-4, guard="outputs"), refit=False, data=None)


@pytest.mark.parametrize(
    ("place", "name", "after"),
    [
        (first_pass, "write_stream", 3),
        (first_pass, "write_shard", 2),
        (competing_masks, "write_json", 0),
        (work, "write_shard", 3),
    ],
)
def test_stopped_while_layers_compete_it_goes_on_to_the_same_bits(
    deep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, after: int
) -> None:
    method = Wanda(density=0.4, distribution="outliers")
    whole = go(deep, tmp_path / "whole", method)
    with monkeypatch.context() as patch:
        patch.setattr(place, name, stopping(getattr(place, name), after))
        with pytest.raises(Stop):
            go(deep, tmp_path / "parts", method)
    parts = go(deep, tmp_path / "parts", method)
    assert {*parts.plan.edits} == {*whole.plan.edits}
    assert_same(states(tmp_path / "parts"), states(tmp_path / "whole"))
