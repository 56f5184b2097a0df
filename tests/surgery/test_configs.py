"""What a config says stays true: a model built from it takes the weights that were cut."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nervure import Cut, Graph, Keep, Magnitude, Plan, apply, prune, trace
from nervure.errors import NervureWarning, PlanError
from tests.networks import seeded, tokens


@dataclass
class Config:
    """As libraries have it: everything the constructor needs, and little that the forward pass reads."""

    hidden_size: int = 16
    intermediate_size: int = 24
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 4
    vocab_size: int = 11
    max_position_embeddings: int = 24


class Block(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.width, self.shared = config.head_dim, config.num_attention_heads // config.num_key_value_heads
        self.norm = nn.RMSNorm(config.hidden_size)
        outer, inner = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q, self.o = nn.Linear(config.hidden_size, outer), nn.Linear(outer, config.hidden_size)
        self.k, self.v = nn.Linear(config.hidden_size, inner), nn.Linear(config.hidden_size, inner)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (p(y).unflatten(-1, (-1, self.width)).transpose(1, 2) for p in (self.q, self.k, self.v))
        k, v = (t.repeat_interleave(self.shared, 1) for t in (k, v))
        z = F.scaled_dot_product_attention(q, k, v, scale=0.5)
        x = x + self.o(z.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(x)))


class Language(nn.Module):
    """A decoder that keeps its config."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.Sequential(*[Block(config) for _ in range(config.num_hidden_layers)])
        self.head = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(words)))


class Scaled(Language):
    """The embedding is scaled by a number made of the config, so that it has to stay."""

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(words) * self.config.hidden_size**0.5))


def language(kind: type[Language] = Language, **sizes: int) -> Language:
    model = seeded(lambda: kind(Config(**sizes)))
    assert isinstance(model, Language)
    return model


def cut(graph: Graph, *parts: str, keep: float = 0.5) -> Plan:
    """The same share of every group whose name holds one of ``parts``."""
    chosen = [g for g in graph.prunable if any(part in g.name for part in parts)]
    assert chosen
    return Plan(tuple(Cut(g.name, Keep.of(torch.arange(g.size) < round(keep * g.size))) for g in chosen))


def assert_rebuilt(smaller: nn.Module) -> None:
    """A model of the same class made from the config takes the weights and computes the same."""
    assert isinstance(smaller, Language)
    built = type(smaller)(smaller.config).eval()
    built.load_state_dict(smaller.state_dict())
    assert torch.equal(built(tokens(2, 5)), smaller(tokens(2, 5)))


def test_a_model_built_from_the_config_takes_the_cut_weights() -> None:
    model = language()
    graph = trace(model, tokens(2, 5))
    plan = cut(graph, "embed", "up", ".q")
    pruned = prune(model, tokens(2, 5), plan, progress=False)
    assert pruned.model.config == Config(8, 12, 2, 2, 1, 4)  # type: ignore[comparison-overlap]
    assert_rebuilt(pruned.model)
    assert model.config == Config()
    assert "config.num_attention_heads becomes 2 (it was 4)" in plan.describe(graph)
    assert any("config.intermediate_size" in note and "follow a cut that is alike" in note for note in graph.notes)


def test_widths_inside_heads_follow_too() -> None:
    model = language()
    graph = trace(model, tokens(2, 5), inside_heads=True)
    smaller = apply(model, graph, cut(graph, "widths"))
    assert smaller.config == Config(head_dim=2)  # type: ignore[comparison-overlap]
    assert_rebuilt(smaller)


def test_where_layers_differ_the_config_stays_and_the_plan_says_so() -> None:
    model = language()
    graph = trace(model, tokens(2, 5))
    plan = cut(graph, "blocks.0.up")
    smaller = apply(model, graph, plan)
    assert smaller.config == Config()  # type: ignore[comparison-overlap]
    assert "config.intermediate_size stays 24, which is no longer true" in plan.describe(graph)


def test_two_sizes_that_happen_to_be_equal_are_not_mistaken_for_each_other() -> None:
    """The MLP is as wide as the stream: cutting one of them says nothing of the other."""
    model = language(intermediate_size=16)
    graph = trace(model, tokens(2, 5))
    smaller = apply(model, graph, cut(graph, "up"))
    assert smaller.config == Config(intermediate_size=16)  # type: ignore[comparison-overlap]


def test_layers_that_are_as_many_as_the_heads_stay_as_many() -> None:
    model = language(num_attention_heads=2, num_hidden_layers=2)
    graph = trace(model, tokens(2, 5))
    smaller = apply(model, graph, cut(graph, ".q"))
    assert smaller.config == Config(num_attention_heads=1, num_key_value_heads=1)  # type: ignore[comparison-overlap]


def test_what_the_forward_pass_computes_with_is_left_as_it_is() -> None:
    model = language(Scaled)
    graph = trace(model, tokens(2, 5))
    pruned = prune(model, tokens(2, 5), cut(graph, "embed"), progress=False)
    assert pruned.verification is not None
    assert pruned.model.config == Config()  # type: ignore[comparison-overlap]


def test_what_is_declared_survives_a_round_trip() -> None:
    graph = trace(language(), tokens(2, 5))
    assert {d.attribute for d in graph.declared} >= {"config.hidden_size", "config.num_key_value_heads"}
    assert Graph.from_json(graph.to_json()) == graph
    older = {key: value for key, value in graph.to_json().items() if key != "declared"}
    assert Graph.from_json(older).declared == ()


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_the_models_of_transformers_are_built_again_from_their_configs(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "max_position_embeddings": 64}
    torch.manual_seed(0)
    if kind == "llama":
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_key_value_heads=2)).eval()
    else:
        model = transformers.BertModel(transformers.BertConfig(**sizes)).eval()
    example = {"input_ids": tokens(2, 6, high=50)} | ({"use_cache": False} if kind == "llama" else {})
    graph = trace(model, example, outputs=kind == "llama")
    smaller = apply(model, graph, cut(graph, ""))
    built = type(model)(smaller.config).eval()
    built.load_state_dict(smaller.state_dict())
    with torch.no_grad():
        assert torch.equal(built(**example)[0], smaller(**example)[0])


@dataclass
class Strict(Config):
    """A config that checks itself, in one of the ways that libraries have."""

    asks: str = "validate"

    def __post_init__(self) -> None:
        if self.asks == "dataclass":
            self.check()

    def check(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"{self.hidden_size} is no multiple of {self.num_attention_heads} heads")

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name == "validate" and self.asks == "validate":
            return self.check
        raise AttributeError(name)


class Rebuilt:
    """A config that is no dataclass and checks what it is made of."""

    def __init__(self, **sizes: int) -> None:
        vars(self).update(sizes)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError("no multiple")

    def __getattr__(self, name: str) -> int:
        raise AttributeError(name)

    def to_dict(self) -> dict[str, int]:
        return dict(vars(self))


@pytest.mark.parametrize("asks", ["validate", "dataclass", "to_dict"])
def test_a_width_of_which_a_config_takes_multiples_is_cut_to_multiples(asks: str) -> None:
    config: Any = Rebuilt(**vars(Config())) if asks == "to_dict" else Strict(asks=asks)
    model = seeded(lambda: Language(config)).eval()
    graph = trace(model, tokens(2, 5))
    stream = next(g for g in graph.prunable if g.name == "embed")
    assert stream.multiple == 4
    pruned = prune(model, tokens(2, 5), Magnitude(keep=0.6, scope="layer"), progress=False)
    assert pruned.model.config.hidden_size == 12  # type: ignore[union-attr]
    with pytest.raises(PlanError, match="leaves 10 of 16 units.*multiples of 4 only: keep 12"):
        apply(model, graph, Plan((Cut("embed", Keep.of(torch.arange(16) < 10)),)))


def test_numbers_that_a_config_does_not_take_together_are_named_and_left() -> None:
    model = seeded(lambda: Language(Strict(num_key_value_heads=4))).eval()
    graph = trace(model, tokens(2, 5))
    plan = Plan(tuple(Cut(g.name, Keep.of(torch.arange(g.size) < 3)) for g in graph.prunable if g.kind == "heads"))
    with pytest.warns(NervureWarning, match="config.num_attention_heads stays 4 though 3 are left"):
        smaller = apply(model, graph, plan)
    config: Any = smaller.config
    config.check()
    assert (config.hidden_size, config.num_attention_heads, config.num_key_value_heads) == (16, 4, 4)
    assert smaller(tokens(2, 5)).isfinite().all()


class ReadsItsNumbers(Language):
    """The forward pass reads numbers of which the config takes some only, so that they have to follow the cut."""

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words)
        y: Tensor = self.head(self.blocks(x.view(*words.shape, self.config.hidden_size)))
        queries = self.blocks[0].q(x).view(*words.shape, self.config.num_attention_heads, -1)  # type: ignore[operator]
        return y + queries.mean()


def test_a_config_that_a_cut_makes_invalid_all_the_same_is_named() -> None:
    model = seeded(lambda: ReadsItsNumbers(Strict(num_key_value_heads=4))).eval()
    graph = trace(model, tokens(2, 5))
    assert graph["embed"].multiple == 4
    plan = Plan(tuple(Cut(g.name, Keep.of(torch.arange(g.size) < 3)) for g in graph.prunable if g.kind == "heads"))
    with pytest.warns(NervureWarning, match="config is no longer one that it takes itself.*16 is no multiple of 3"):
        smaller = apply(model, graph, plan)
    assert smaller(tokens(2, 5)).isfinite().all()
