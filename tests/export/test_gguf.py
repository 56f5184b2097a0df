"""GGUF files say what a decoder computes, also where widths differ and branches left; else they are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from torch import Tensor, nn

from nervure import Cut, Drop, Keep, Plan, apply, export, trace
from nervure.cli import main
from nervure.errors import ArgumentError, EngineError, MissingExtraError, VerificationError
from nervure.export.gguf import GgufReader, reference_decoder, tensors_of
from nervure.export.gguf.layer_sizes import find_shape
from nervure.export.gguf.vocabulary import PIECES

needs_gguf = pytest.mark.usefixtures("_library")
TOKENS, WIDTH, VOCABULARY = torch.randint(40, (2, 12), generator=torch.Generator().manual_seed(0)), 32, 40
WORDS = {"model": {"type": "BPE", "vocab": {chr(97 + i): i for i in range(26)}, "merges": []}, "added_tokens": []}
LAYER = "model.layers."


@pytest.fixture
def _library() -> None:
    pytest.importorskip("gguf")


class Output(NamedTuple):
    logits: Tensor
    hidden_states: tuple[Tensor, ...]


class SmallRMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * self.weight


class GroupedAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head_dim, self.scaling = 8, 8**-0.5
        self.q_proj, self.o_proj = nn.Linear(WIDTH, 32, bias=False), nn.Linear(32, WIDTH, bias=False)
        self.k_proj, self.v_proj = nn.Linear(WIDTH, 16, bias=False), nn.Linear(WIDTH, 16, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (
            p(x).view(*x.shape[:-1], -1, self.head_dim).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = (t * cos + torch.cat([-t[..., 4:], t[..., :4]], -1) * sin for t in (q, k))
        k, v = (t[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2) for t in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scaling)
        return self.o_proj(mixed.transpose(1, 2).reshape(*x.shape[:-1], -1))


class GatedFFN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(WIDTH, 64, bias=False), nn.Linear(WIDTH, 64, bias=False)
        self.down_proj = nn.Linear(64, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm, self.self_attn = SmallRMSNorm(WIDTH), GroupedAttention()
        self.post_attention_layernorm, self.mlp = SmallRMSNorm(WIDTH), GatedFFN()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Trunk(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(DecoderLayer() for _ in range(3))
        self.norm, self.rotary_emb = SmallRMSNorm(WIDTH), nn.Module()
        self.rotary_emb.register_buffer("inv_freq", 100.0 ** (-torch.arange(0, 8, 2) / 8), persistent=False)


class SmallDecoder(nn.Module):
    """Named and put together as decoders of transformers are."""

    def __init__(self, kind: str = "llama", tied: bool = True) -> None:
        super().__init__()
        self.config = SimpleNamespace(
            model_type=kind,
            hidden_act="silu",
            rms_norm_eps=1e-5,
            max_position_embeddings=64,
            rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        )
        self.model, self.lm_head = Trunk(), nn.Linear(WIDTH, VOCABULARY, bias=False)
        if tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def device(self) -> torch.device:
        return self.lm_head.weight.device

    def forward(self, input_ids: Tensor, use_cache: bool = False, output_hidden_states: bool = False) -> Output:
        x = self.model.embed_tokens(input_ids)
        angles = torch.arange(x.shape[1])[:, None] * self.model.rotary_emb.inv_freq
        cos, sin = torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()
        states = [x]
        for layer in self.model.layers:
            states.append(layer(states[-1], cos, sin))
        return Output(self.lm_head(self.model.norm(states[-1])), tuple(states) if output_hidden_states else ())


def built(kind: str = "llama", tied: bool = True) -> SmallDecoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SmallDecoder(kind, tied).eval()


def edited(cuts: dict[str, int], drops: tuple[str, ...] = (), model: nn.Module | None = None) -> nn.Module:
    model = model or built()
    graph = trace(model, TOKENS)
    kept = {name: Keep.of([i < count for i in range(graph[name].size)]) for name, count in cuts.items()}
    edits = (*(Cut(name, keep) for name, keep in kept.items()), *map(Drop, drops))
    return apply(model, graph, Plan(edits, graph.fingerprint)).eval()


@pytest.fixture
def words(tmp_path: Path) -> Path:
    folder = tmp_path / "words"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps({**WORDS, "pre_tokenizer": {"type": "ByteLevel"}}))
    return folder


# -- what is written -----------------------------------------------------------------------------------------------


@needs_gguf
def test_layers_that_are_alike_are_a_plain_llama(tmp_path: Path, words: Path) -> None:
    model = edited({f"{LAYER}{i}.mlp.gate_proj": 48 for i in range(3)})
    done = export(model, TOKENS, tmp_path / "m.gguf", tokenizer=words)
    file = GgufReader(done.path)
    assert file.settings["general.architecture"] == "llama"
    assert (file.settings["llama.feed_forward_length"], file.settings["llama.attention.head_count"]) == (48, 4)
    assert "output.weight" not in file.types
    assert torch.equal(file.tensor("blk.2.ffn_gate.weight"), model.get_parameter(f"{LAYER}2.mlp.gate_proj.weight"))
    assert done.checks["random"].largest < 1e-5
    assert {path.name for path in done.files} == {"m.gguf", "m.gguf.card.json", "m.gguf.card.md"}
    assert "llama" in done.card.to_markdown()


@needs_gguf
def test_widths_that_differ_and_branches_that_left(tmp_path: Path, words: Path) -> None:
    model = edited(
        {f"{LAYER}0.mlp.gate_proj": 33, f"{LAYER}2.self_attn.q_proj": 1}, (f"{LAYER}1.self_attn", f"{LAYER}2.mlp")
    )
    done = export(model, TOKENS, tmp_path / "m.gguf", tokenizer=words)
    file = GgufReader(done.path)
    assert file.settings["general.architecture"] == "deci"
    assert file.settings["deci.attention.head_count"] == [4, 0, 2]
    assert file.settings["deci.attention.head_count_kv"] == [2, 0, 1]
    assert file.settings["deci.feed_forward_length"] == [33, 64, 32]
    assert not any(name.startswith("blk.1.attn") for name in file.types)
    assert not file.tensor("blk.2.ffn_down.weight").any()
    assert done.checks["random"].largest < 1e-5


@needs_gguf
@pytest.mark.parametrize("drops", [(f"{LAYER}1",), (f"{LAYER}1.self_attn", f"{LAYER}1.mlp")])
def test_layers_that_left_are_not_in_the_file(drops: tuple[str, ...], tmp_path: Path, words: Path) -> None:
    model = edited({}, drops)
    file = GgufReader(export(model, TOKENS, tmp_path / "m.gguf", tokenizer=words).path)
    assert (file.settings["general.architecture"], file.settings["llama.block_count"]) == ("llama", 2)
    last = list(model.get_submodule("model.layers").children())[-1]
    assert torch.equal(file.tensor("blk.1.ffn_up.weight"), last.mlp.up_proj.weight)


@needs_gguf
@pytest.mark.parametrize(
    ("precision", "kind", "largest"),
    [("float32", "F32", 1e-5), ("float16", "F16", 1e-2), ("bf16", "BF16", 1e-1), ("q8_0", "Q8_0", 1e-1)],
)
def test_precisions(precision: str, kind: str, largest: float, tmp_path: Path, words: Path) -> None:
    model = edited({f"{LAYER}0.mlp.gate_proj": 33}, model=built(tied=False))
    done = export(model, TOKENS, tmp_path / "m.gguf", precision=precision, tokenizer=words)
    file = GgufReader(done.path)
    assert file.types["output.weight"] == file.types["blk.1.ffn_down.weight"] == kind
    assert file.types["blk.0.attn_norm.weight"] == "F32"
    # Rows of 33 do not fall into blocks.
    assert file.types["blk.0.ffn_down.weight"] == ("F16" if kind == "Q8_0" else kind)
    assert done.checks["random"].largest < largest


@needs_gguf
def test_the_vocabulary_is_copied_from_another_file(tmp_path: Path, words: Path) -> None:
    first = export(built(), TOKENS, tmp_path / "a.gguf", tokenizer=words).path
    second = export(edited({f"{LAYER}0.mlp.gate_proj": 8}), TOKENS, tmp_path / "b.gguf", tokenizer=first).path
    one, other = (
        {k: v for k, v in GgufReader(path).settings.items() if k.startswith("tokenizer.")} for path in (first, second)
    )
    assert one == other
    assert one["tokenizer.ggml.pre"] == "gpt-2"
    assert one["tokenizer.ggml.tokens"][25:27] == ["z", "[PAD26]"]


@needs_gguf
def test_a_tokenizer_by_pieces_of_words(tmp_path: Path) -> None:
    vocabulary = {"<unk>": 0, "<s>": 1, "<0x0A>": 2, "▁": 3, "a": 4, "b": 5, "ab": 6, "▁ab": 7}
    model = {"type": "BPE", "vocab": vocabulary, "unk_token": "<unk>", "byte_fallback": True}
    model["merges"] = [["a", "b"], ["▁", "ab"]]
    said = {"model": model, "added_tokens": [{"id": 1, "content": "<s>", "special": True}]}
    said["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(said))
    found = GgufReader(export(built(), TOKENS, tmp_path / "m.gguf", tokenizer=tmp_path).path).settings
    assert found["tokenizer.ggml.model"] == "llama"
    assert found["tokenizer.ggml.token_type"][:9] == [2, 3, 6, 1, 1, 1, 1, 1, 5]
    assert found["tokenizer.ggml.scores"][4:8] == [-2, -2, 0, -1]
    assert found["tokenizer.ggml.add_space_prefix"]


def test_ways_to_split_text_have_one_name_each() -> None:
    assert len(set(PIECES.values())) == len(PIECES)


# -- what is refused -----------------------------------------------------------------------------------------------


@needs_gguf
def test_words_that_say_something_else_are_refused(
    tmp_path: Path, words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors_of, "_interleave", lambda tensor, heads: tensor.detach())
    (tmp_path / "m.gguf").write_text("what was there")
    with pytest.raises(VerificationError, match="layer that differs is number 0.* Nothing was written"):
        export(built(), TOKENS, tmp_path / "m.gguf", tokenizer=words, precision="q8_0")
    assert (tmp_path / "m.gguf").read_text() == "what was there"
    assert {path.name for path in tmp_path.iterdir()} == {"m.gguf", "words"}


@needs_gguf
def test_a_network_that_makes_much_of_a_rounding_is_no_wrong_file(
    tmp_path: Path, words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So little is allowed that any network makes too much of roundings.
    monkeypatch.setattr(reference_decoder, "TOLERANCE", 1e-10)
    done = export(built(), TOKENS, tmp_path / "m.gguf", tokenizer=words)
    assert 1e-10 < done.checks["random"].largest <= done.checks["random"].tolerance < 1e-4
    monkeypatch.setattr(tensors_of, "_interleave", lambda tensor, heads: tensor.detach())
    with pytest.raises(VerificationError, match="layer that differs is number 0"):
        export(built(), TOKENS, tmp_path / "wrong.gguf", tokenizer=words)


def other_width(model: SmallDecoder) -> None:
    model.model.layers[1].self_attn.head_dim = 4


def own_scale(model: SmallDecoder) -> None:
    model.model.layers[1].self_attn.scaling = 1.0


def one_more(model: SmallDecoder) -> None:
    model.model.more = nn.Linear(2, 2)


def adapter(model: SmallDecoder) -> None:
    model.model.layers[2].mlp.up_proj = nn.Sequential(model.model.layers[2].mlp.up_proj)


def long_rotary(model: SmallDecoder) -> None:
    model.config.rope_parameters["rope_type"] = "yarn"


def other_rotary(model: SmallDecoder) -> None:
    model.model.rotary_emb.inv_freq *= 2


def activation(model: SmallDecoder) -> None:
    model.config.hidden_act = "relu"


@needs_gguf
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (other_width, "Cut whole heads"),
        (own_scale, "scales by 1, where heads 8 wide"),
        (one_more, "'model.more.weight' and 1 more"),
        (adapter, "merge_and_unload"),
        (long_rotary, "'yarn'"),
        (other_rotary, "heads became narrower"),
        (activation, "'relu'"),
    ],
)
def test_what_gguf_cannot_say(change: Callable[[SmallDecoder], None], told: str, tmp_path: Path, words: Path) -> None:
    model = built()
    change(model)
    with pytest.raises(EngineError, match=told):
        export(model, TOKENS, tmp_path / "m.gguf", tokenizer=words)
    assert not (tmp_path / "m.gguf").exists()


@needs_gguf
def test_layers_that_differ_where_the_architecture_has_one_number(tmp_path: Path, words: Path) -> None:
    model = edited({f"{LAYER}1.mlp.gate_proj": 8})
    model.config.model_type = "gemma9"
    with pytest.raises(EngineError, match="'gemma9' is no decoder"):
        export(model, TOKENS, tmp_path / "m.gguf", tokenizer=words)
    model.config.model_type = "qwen3"
    with pytest.raises(EngineError, match=r"layer 1 has 4 heads .* 8 wide, the first has .*scope='layer'"):
        find_shape(model)


@needs_gguf
def test_numbers_that_a_precision_does_not_hold(tmp_path: Path, words: Path) -> None:
    model = built()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e5
    with pytest.raises(EngineError, match=r"blk.0.ffn_up.weight holds 1e\+05, more than F16"):
        export(model, TOKENS, tmp_path / "m.gguf", tokenizer=words, precision="float16")
    narrow = edited({"model.embed_tokens#2": 30})
    with pytest.raises(EngineError, match=r"embeddings are 30 wide.*float16"):
        export(narrow, TOKENS, tmp_path / "m.gguf", tokenizer=words, precision="q8_0")
    assert not [*tmp_path.glob("m.gguf*")]


@needs_gguf
def test_inputs_that_are_no_decoders(tmp_path: Path, words: Path) -> None:
    with pytest.raises(ArgumentError, match=r"give tokenizer= \(--tokenizer\), a folder with tokenizer.json"):
        export(built(), TOKENS, tmp_path / "m.gguf")
    with pytest.raises(ArgumentError, match="there is no tokenizer"):
        export(built(), TOKENS, tmp_path / "m.gguf", tokenizer=tmp_path)
    with pytest.raises(ArgumentError, match="tokenizer=3 is no tokenizer"):
        export(built(), TOKENS, tmp_path / "m.gguf", tokenizer=3)
    with pytest.raises(EngineError, match="Linear is no decoder"):
        export(nn.Linear(2, 2), torch.ones(1, 2), tmp_path / "m.gguf", tokenizer=words)
    with pytest.raises(ArgumentError, match="a decoder takes token numbers"):
        export(built(), torch.ones(1, 2), tmp_path / "m.gguf", tokenizer=words)
    with pytest.raises(ArgumentError, match="tokenizer= is for 'gguf'"):
        export(nn.Linear(2, 2), torch.ones(1, 2), tmp_path / "m.pt2", tokenizer=words)


@needs_gguf
@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("{", "cannot be read"),
        (json.dumps({**WORDS, "pre_tokenizer": {"type": "Whitespace"}}), "GGUF file of the model before pruning"),
        (json.dumps({"model": {"vocab": {"a": 99}}}), "knows 100 tokens, the model 40"),
        (json.dumps({"model": {"type": "Unigram", "vocab": {"a": 1}}}), "type 'Unigram'"),
    ],
)
def test_tokenizers_that_do_not_fit(said: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(said)
    with pytest.raises(ArgumentError, match=told):
        export(built(), TOKENS, tmp_path / "m.gguf", tokenizer=tmp_path)


def test_the_library_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"needs gguf.*pip install '\.\[gguf\]'"):
        export(built(), TOKENS, tmp_path / "m.gguf", tokenizer=tmp_path)


def test_the_command_line_wants_a_tokenizer_too() -> None:
    words = ["export", "--model", "lenet5", "--input", "1x1x28x28", "-o", "m.gguf"]
    pytest.importorskip("gguf")
    done = CliRunner().invoke(main, words)
    assert (done.exit_code, "--tokenizer" in done.output) == (2, True)
    done = CliRunner().invoke(main, [*words, "--tokenizer", "nowhere"])
    assert "tokenizer='nowhere': there is no tokenizer" in done.output


# -- against transformers ------------------------------------------------------------------------------------------


def kinds() -> dict[str, tuple[str, dict[str, Any]]]:
    scaled = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0}
    scaled |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    return {
        "llama": ("Llama", {"attention_bias": True}),
        "llama3": ("Llama", {"rope_parameters": scaled}),
        "mistral": ("Mistral", {"sliding_window": 40}),
        "qwen2": ("Qwen2", {}),
        "qwen3": ("Qwen3", {"head_dim": 16}),
        "gemma3": ("Gemma3", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8}),
    }


@needs_gguf
@pytest.mark.parametrize("kind", [*kinds()])
def test_decoders_of_transformers(kind: str, tmp_path: Path, words: Path) -> None:
    transformers = pytest.importorskip("transformers")
    name, more = kinds()[kind]
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = getattr(transformers, f"{name}TextConfig" if kind == "gemma3" else f"{name}Config")(
        vocab_size=40, num_hidden_layers=7, max_position_embeddings=64, **sizes, **more
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    done = export(model, {"input_ids": TOKENS}, tmp_path / "m.gguf", tokenizer=words)
    assert done.checks["random"].largest < 1e-4
    said = GgufReader(done.path).settings
    if kind == "mistral":
        assert said["llama.context_length"] == 40
