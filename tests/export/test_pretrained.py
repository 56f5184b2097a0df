"""A folder that the model's library loads by itself: the config follows, nothing is missing, outputs are equal."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nervure import Drop, Magnitude, Plan, Pruned, prune, trace
from nervure.budget import allocate
from nervure.errors import ArgumentError, FileError, VerificationError
from nervure.export import save_pretrained
from nervure.export.unsaid import part_of, pin_unsaid, what_no_config_says
from nervure.scores import magnitude

pytestmark = pytest.mark.filterwarnings("ignore")
IDS = torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(1))
SIZES = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24}
QUERIES = {**SIZES, "num_key_value_heads": 2}
GPT = {"vocab_size": 60, "n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 32, "bos_token_id": 0}
T5 = {"vocab_size": 60, "d_model": 16, "d_kv": 4, "num_layers": 3, "num_heads": 4, "d_ff": 24}
SIDES = {f"{side}_{key}": n for side in ("encoder", "decoder") for key, n in (("layers", 3), ("attention_heads", 4))}
BART = {"vocab_size": 60, "d_model": 16, **SIDES, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 12}


CASES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {**QUERIES, "tie_word_embeddings": True},
    "Qwen2ForCausalLM": {**QUERIES, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "Qwen3ForCausalLM": {**QUERIES, "head_dim": 4},
    "Qwen3MoeForCausalLM": {**QUERIES, "head_dim": 4, "num_experts": 4, **EXPERTS},
    "MistralForCausalLM": {**QUERIES, "sliding_window": 6},
    "Gemma2ForCausalLM": {**QUERIES, "head_dim": 4, "sliding_window": 6},
    "Gemma3ForCausalLM": {**QUERIES, "head_dim": 4, "sliding_window": 6},
    "DeepseekV3ForCausalLM": {**SIZES, "num_key_value_heads": 4, **LATENT, "first_k_dense_replace": 3},
    "GPT2LMHeadModel": GPT,
    "GPTNeoXForCausalLM": SIZES,
    "OPTForCausalLM": {**{k: v for k, v in SIZES.items() if k != "intermediate_size"}, "ffn_dim": 24},
    "PhiForCausalLM": SIZES,
    "FalconForCausalLM": {**SIZES, "ffn_hidden_size": 24},
    "MambaForCausalLM": {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 3, "state_size": 4},
    "BertForMaskedLM": SIZES,
    "RobertaForMaskedLM": SIZES,
    "DistilBertForMaskedLM": {"vocab_size": 60, "dim": 16, "n_layers": 3, "n_heads": 4, "hidden_dim": 24},
    "ElectraForMaskedLM": {**SIZES, "embedding_size": 16},
    "T5ForConditionalGeneration": T5,
    "BartForConditionalGeneration": BART,
}
IN_PLACE = {"T5ForConditionalGeneration"}
"""Models whose layers hand more than a stream from one to the next, so that none leaves its list."""


def build(name: str, **more: Any) -> Any:
    transformers: Any = pytest.importorskip("transformers")
    kind = getattr(transformers, name)
    torch.manual_seed(0)
    return kind(kind.config_class(**{"pad_token_id": 0, "use_cache": False, **CASES[name], **more})).eval()


def example_of(model: Any) -> dict[str, Any]:
    decoded = {"decoder_input_ids": IDS[:, :7]} if model.config.is_encoder_decoder else {}
    return {"input_ids": IDS, **decoded}


def cut_alike(model: Any, parts: tuple[str, ...] = ("ffn", "heads", "width")) -> Pruned:
    example = example_of(model)
    graph = pin_unsaid(model, trace(model, example), parts)
    plan = allocate(graph, magnitude(graph, model.state_dict()), keep=0.5, scope="uniform")
    return prune(model, example, plan, progress=False)


def parts_of(pruned: Pruned) -> set[str]:
    return {part_of(pruned.graph[cut.group]) for cut in pruned.plan.cuts}


def is_equal(again: Any, model: nn.Module, example: dict[str, Any]) -> bool:
    with torch.no_grad():
        return torch.equal(again.eval()(**example).logits, model.eval()(**example).logits)


@pytest.mark.parametrize("name", CASES)
def test_a_uniform_cut_is_an_ordinary_folder(name: str, tmp_path: Path) -> None:
    model = build(name)
    pruned = cut_alike(model)
    assert pruned.cost_after.params < pruned.cost_before.params
    found = save_pretrained(tmp_path / "small", pruned, example_of(model))
    again, told = type(model).from_pretrained(tmp_path / "small", output_loading_info=True)
    assert not any(told.values()) and found.difference == 0
    assert is_equal(again, pruned.model, example_of(model))


@pytest.mark.parametrize("name", [name for name in CASES if name not in IN_PLACE])
def test_a_dropped_layer_is_an_ordinary_folder(name: str, tmp_path: Path) -> None:
    model = build(name)
    blocks = trace(model, example_of(model)).blocks
    (first, *_) = (b.name for b in blocks if b.element.endswith(".1") and not b.pinned)
    pruned = prune(model, example_of(model), Plan((Drop(first),)), progress=False)
    save_pretrained(tmp_path / "small", pruned, example_of(model))
    again, told = type(model).from_pretrained(tmp_path / "small", output_loading_info=True)
    assert not any(told.values())
    assert is_equal(again, pruned.model, example_of(model))
    assert len(again.state_dict()) < len(model.state_dict())


def test_what_no_config_says_is_pinned_before_anything_is_cut() -> None:
    gemma, bart = build("Gemma3ForCausalLM"), build("BartForConditionalGeneration")
    graph = trace(gemma, example_of(gemma))
    reasons = what_no_config_says(gemma, graph)
    assert {part_of(graph[name]) for name in reasons} == {"width"}
    assert all("scalar_embed_scale" in reason for reason in reasons.values())
    assert parts_of(cut_alike(bart)) == {"ffn"}
    assert parts_of(cut_alike(llama())) == {"ffn", "heads", "width"}
    pinned = pin_unsaid(gemma, graph, ("layers",))
    assert not pinned.prunable and [b.name for b in pinned.blocks if not b.pinned] == [
        f"model.layers.{i}" for i in range(3)
    ]


def llama(**more: Any) -> Any:
    return build("LlamaForCausalLM", **more)


def test_tokenizer_and_cache_come_from_the_dense_folder_and_weights_do_not(tmp_path: Path) -> None:
    dense = llama(use_cache=True)
    dense.save_pretrained(tmp_path / "dense")
    for name in ("tokenizer.json", "chat_template.jinja", "modeling.py", "pytorch_model.bin"):
        (tmp_path / "dense" / name).write_text("{}")
    dense.config.use_cache = False
    pruned = cut_alike(dense, ("ffn",))
    options: dict[str, Any] = {"source": tmp_path / "dense", "max_shard_size": 4000}
    found = save_pretrained(tmp_path / "small", pruned, example_of(dense), **options)
    assert {"tokenizer.json", "chat_template.jinja", "config.json", "generation_config.json"} < set(found.files)
    assert not {"modeling.py", "pytorch_model.bin"} & set(found.files)
    assert sum(name.endswith(".safetensors") for name in found.files) > 1 and "model.safetensors" not in found.files
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert config["use_cache"] is True and config["intermediate_size"] == 12
    assert pruned.model.config.use_cache is False


def test_what_no_config_says_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    model = llama()
    graph = trace(model, example_of(model))
    (half,) = (b.name for b in graph.blocks if b.name == "model.layers.1.mlp")
    by_layer = Magnitude(keep=0.5, budget="macs", scope="global")
    for method, said in ((Plan((Drop(half),)), "drop the whole layer"), (by_layer, 'scope="uniform"')):
        pruned = prune(model, example_of(model), method, progress=False)
        with pytest.raises(FileError, match=r"no config of LlamaForCausalLM says this model") as error:
            save_pretrained(tmp_path / "small", pruned, example_of(model))
        assert said in str(error.value) and not list(tmp_path.iterdir())


def test_a_folder_that_computes_something_else_is_not_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = llama()
    pruned = cut_alike(model, ("ffn",))
    load = type(model).from_pretrained

    def spoil(*args: Any, **options: Any) -> Any:
        again, told = load(*args, **options)
        again.model.layers[2].mlp.up_proj.weight.data[0] += 1
        return again, told

    with monkeypatch.context() as patch:
        patch.setattr(type(model), "from_pretrained", spoil)
        with pytest.raises(VerificationError, match="computes something else"):
            save_pretrained(tmp_path / "small", pruned, example_of(model))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_stays_unless_it_may_be_replaced(tmp_path: Path) -> None:
    model = llama()
    pruned = cut_alike(model, ("ffn",))
    (tmp_path / "small").mkdir()
    save_pretrained(tmp_path / "small", pruned, example_of(model))
    with pytest.raises(FileError, match="overwrite=True replaces it"):
        save_pretrained(tmp_path / "small", pruned, example_of(model))
    (tmp_path / "small" / "old.txt").write_text("")
    found = save_pretrained(tmp_path / "small", pruned, example_of(model), overwrite=True)
    assert "old.txt" not in found.files
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("")
    with pytest.raises(FileError, match="no saved model"):
        save_pretrained(tmp_path / "mine", pruned, example_of(model), overwrite=True)


def test_other_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"Linear has no save_pretrained.*nervure\.save"):
        save_pretrained(tmp_path / "small", nn.Linear(2, 3), torch.randn(1, 2))
