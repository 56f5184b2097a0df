"""Whole layers leave the list that holds them, and whatever counts layers follows."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nervure import Magnitude, apply, load, prune, save, trace
from nervure.graph import Graph
from nervure.plan import Drop, Keep, Mask, Plan
from nervure.surgery import masks_after

X = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(5))
WIDTH = 8


class Mixer(nn.Module):
    """A branch that looks up its own place in what is kept between calls."""

    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx, self.up, self.down = layer_idx, nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))


class Layer(nn.Module):
    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__()
        self.kind = config.layer_types[layer_idx]
        self.first, self.second = Mixer(layer_idx), Mixer(layer_idx)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.first(x)
        return x + self.second(x) if self.kind == "full" else x + self.second(x.flip(1))


class Stack(nn.Module):
    """Layers built from a config, run in order."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, self.depth = config, config.num_hidden_layers
        self.embed, self.head = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.run(self.embed(x)))

    def run(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Counted(Stack):
    """Layers fetched by number, as many as the module remembers."""

    def run(self, x: Tensor) -> Tensor:
        for i in range(self.depth):
            x = self.layers[i](x)
        return x


class Sliced(Stack):
    def run(self, x: Tensor) -> Tensor:
        for layer, _ in zip(self.layers[: self.config.num_hidden_layers], self.config.layer_types, strict=True):
            x = layer(x)
        return x


class Zipped(Stack):
    """Layers that go along with another list."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.scales = nn.ParameterList(torch.rand(WIDTH) + i for i in range(config.num_hidden_layers))

    def run(self, x: Tensor) -> Tensor:
        for layer, scale in zip(self.layers, self.scales, strict=False):
            x = layer(x * scale)
        return x


class Marked(Stack):
    """Something is added behind the layer of a certain number."""

    def run(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x)
            x = x + x.flip(1) if i == 2 else x
        return x


class FromTheEnd(Stack):
    def run(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x) if i + 1 < len(self.layers) else layer(x).relu()
            x = x.cumsum(1) if i + 2 == len(self.layers) else x
        return x


class Named(Stack):
    """A layer that the code asks for by its number."""

    def run(self, x: Tensor) -> Tensor:
        return self.layers[3](self.layers[2](self.layers[1](self.layers[0](x))))


def config(layers: int = 4) -> Any:
    return SimpleNamespace(
        hidden_size=WIDTH,
        num_heads=4,
        num_hidden_layers=layers,
        layer_types=["full" if i % 2 else "flipped" for i in range(layers)],
    )


def built(kind: type[Stack] = Stack) -> Stack:
    torch.manual_seed(0)
    return kind(config()).eval()


def dropping(*numbers: int) -> Plan:
    return Plan(tuple(Drop(f"layers.{n}") for n in numbers))


def test_a_model_without_a_layer_is_one_that_was_built_with_fewer() -> None:
    model = built()
    smaller: Any = prune(model, X, dropping(1), progress=False).model
    assert smaller.config.num_hidden_layers == 3 and smaller.depth == 3
    assert smaller.config.layer_types == ["flipped", "flipped", "full"]
    stock = Stack(smaller.config).eval()
    stock.load_state_dict(smaller.state_dict(), strict=True)
    torch.testing.assert_close(stock(X), smaller(X), rtol=0, atol=0)
    assert model.config.num_hidden_layers == len(model.layers) == len(model.config.layer_types) == 4


def test_layers_behind_it_know_their_new_number() -> None:
    smaller: Any = prune(built(), X, dropping(0, 2), progress=False).model
    assert [(m.first.layer_idx, m.second.layer_idx) for m in smaller.layers] == [(0, 0), (1, 1)]


def test_a_number_that_one_layer_alone_has_is_known_by_its_name() -> None:
    class Last(Layer):
        def __init__(self, config: Any, layer_idx: int) -> None:
            super().__init__(config, layer_idx)
            self.other = Mixer(layer_idx)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + self.other(x))

    class Mixed(Stack):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.layers[3] = Last(config, 3)

    model = built(Mixed)
    model.layers[3].first.up.stride = 3  # type: ignore[union-attr]
    smaller: Any = prune(model, X, dropping(1), progress=False).model
    assert smaller.layers[2].other.layer_idx == 2 and smaller.layers[2].first.up.stride == 3


def test_numbers_that_equal_a_size_and_count_no_layers_stay() -> None:
    smaller: Any = prune(built(), X, dropping(1), progress=False).model
    assert smaller.config.num_heads == 4 and smaller.layers[0].first.up.out_features == 12


@pytest.mark.parametrize("kind", [Stack, Counted, Sliced])
@pytest.mark.parametrize("numbers", [(0,), (3,), (1, 2), (0, 1, 2)])
def test_any_layers_of_a_list_can_leave(kind: type[Stack], numbers: tuple[int, ...]) -> None:
    pruned = prune(built(kind), X, dropping(*numbers), progress=False)
    assert len(pruned.model.layers) == 4 - len(numbers) and pruned.verification is not None  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [Zipped, Marked, FromTheEnd, Named])
def test_where_the_number_matters_an_identity_keeps_the_place(kind: type[Stack]) -> None:
    model = built(kind)
    graph = trace(model, X)
    assert not any(b.element for b in graph.blocks)
    pruned = prune(model, X, dropping(1), progress=False)
    assert len(pruned.model.layers) == 4 and pruned.verification is not None  # type: ignore[arg-type]


def test_a_layer_that_the_loop_adds_to_its_input_leaves_as_well() -> None:
    class Added(Stack):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.layers = nn.ModuleList(Mixer(i) for i in range(4))

        def run(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = x + layer(x)
            return x

    smaller: Any = prune(built(Added), X, dropping(1), progress=False).model
    assert [m.layer_idx for m in smaller.layers] == [0, 1, 2]


def test_a_layer_of_one_branch_leaves_and_half_a_layer_of_two_stays() -> None:
    class Short(Layer):
        def forward(self, x: Tensor) -> Tensor:
            return x + self.second(self.first(x))

    class Stages(Stack):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.layers = nn.ModuleList(Short(config, i) for i in range(4))

    graph = trace(built(Stages), X)
    assert [b.element for b in graph.blocks] == [f"layers.{i}" for i in range(4)]
    halves = [b for b in trace(built(), X).blocks if b.kind == "residual"]
    assert len(halves) == 8 and not any(b.element for b in halves)


class Paired(Layer):
    """Returns a tuple, as layers do that may return their attention."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x), None


class Beside(Layer):
    """Both branches hear the same."""

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.second(x) + x


class Rows(Layer):
    """Half of the layer runs on the rows of all samples, one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.first(x)
        rows = x.reshape(-1, x.shape[-1])
        return (rows + self.second(rows)).view(x.shape)


@pytest.mark.parametrize("layer", [Paired, Beside, Rows])
@pytest.mark.parametrize("renumber", [True, False])
def test_layers_of_other_forms_leave_too(layer: type[Layer], renumber: bool) -> None:
    class Formed(Stack):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.layers = nn.ModuleList(layer(config, i) for i in range(4))

        def run(self, x: Tensor) -> Tensor:
            for one in self.layers:
                x = one(x)[0] if layer is Paired else one(x)
            return x

    model = built(Formed)
    smaller: Any = apply(model, trace(model, X), dropping(1), renumber=renumber)
    assert len(smaller.layers) == 4 - renumber
    del model.layers[1]
    torch.testing.assert_close(smaller(X), model(X))


def test_a_layer_that_is_held_elsewhere_too_stays_in_its_place() -> None:
    model: Any = built()
    model.last = model.layers[3]
    assert [b.element for b in trace(model, X).blocks if b.kind == "module"] == [f"layers.{i}" for i in range(3)] + [""]


def test_a_sequential_of_alike_layers_is_a_list_and_one_of_steps_is_none() -> None:
    model: Any = built()
    model.layers = nn.Sequential(*model.layers)
    assert "layers.3.first.up.weight" not in prune(model, X, dropping(1), progress=False).model.state_dict()
    model.layers.append(nn.Identity())
    smaller: Any = prune(model, X, dropping(1), progress=False).model
    assert len(smaller.layers) == 5 and "layers.3.first.up.weight" in smaller.state_dict()


def test_names_can_be_kept() -> None:
    model = built()
    graph = trace(model, X)
    kept, moved = (apply(model, graph, dropping(1), renumber=flag) for flag in (False, True))
    assert "layers.3.first.up.weight" in kept.state_dict() and "layers.3.first.up.weight" not in moved.state_dict()
    torch.testing.assert_close(kept(X), moved(X))


def test_masks_go_by_the_new_names() -> None:
    model = built()
    graph = trace(model, X)
    keep = torch.ones(12, WIDTH, dtype=torch.bool)
    keep[:, 0] = False
    masks = [Mask(f"layers.{i}.first.up.weight", Keep.of(keep)) for i in (0, 1, 2)]
    plan = Plan((*masks, Drop("layers.1")))
    assert sorted(masks_after(graph, plan)) == ["layers.0.first.up.weight", "layers.1.first.up.weight"]
    smaller = apply(model, graph, plan)
    for name, mask in masks_after(graph, plan).items():
        assert not smaller.get_parameter(name)[~mask].any()


def test_what_was_pruned_is_pruned_again_saved_and_loaded(tmp_path: Any) -> None:
    model = built()
    once = prune(model, X, dropping(1), progress=False)
    twice = prune(model, X, [dropping(1), Magnitude(keep=0.6), dropping(2)], progress=False)
    assert len(twice.model.layers) == 2 and twice.model.config.layer_types == ["flipped", "flipped"]  # type: ignore[arg-type, union-attr]
    for pruned in (once, twice):
        again = load(save(tmp_path / "pruned.safetensors", pruned), model)
        torch.testing.assert_close(again.model(X), pruned.model(X))


def test_plans_and_graphs_keep_the_first_numbering() -> None:
    model = built()
    graph = trace(model, X)
    assert Graph.from_json(graph.to_json()) == graph
    smaller: Any = apply(model, graph, dropping(0, 3))
    assert smaller.layers[0].second.down.weight.equal(model.layers[1].second.down.weight)  # type: ignore[union-attr]


def test_encoders_and_decoders_are_counted_apart() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = SimpleNamespace(num_layers=4, num_decoder_layers=4, layer_types=[*config().layer_types])
            self.encoder, self.decoder = Stack(config()), Stack(config())
            self.decoder.embed = nn.Linear(3, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return self.decoder(self.encoder(x))

    torch.manual_seed(0)
    model, plan = Both().eval(), Plan((Drop("encoder.layers.1"),))
    smaller: Any = prune(model, X, plan, progress=False).model
    assert (smaller.config.num_layers, smaller.config.num_decoder_layers) == (3, 4)
    assert (smaller.encoder.config.num_hidden_layers, smaller.decoder.config.num_hidden_layers) == (3, 4)
    # What names no side goes with the number that names none.
    assert len(smaller.config.layer_types) == 3


def test_stages_are_counted_one_by_one() -> None:
    class Stages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = SimpleNamespace(depths=[4, 4], num_layers=2)
            self.embed, self.head = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
            self.stages = nn.ModuleList(nn.ModuleDict({"blocks": Stack(config()).layers}) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            for stage in self.stages:
                for layer in stage["blocks"]:  # type: ignore[index]
                    x = layer(x)
            return self.head(x)

    torch.manual_seed(0)
    plan = Plan((Drop("stages.1.blocks.0"),))
    smaller: Any = prune(Stages().eval(), X, plan, progress=False).model
    assert smaller.config.depths == [4, 3] and smaller.config.num_layers == 2


def test_lists_inside_of_lists_leave_with_what_holds_them() -> None:
    class Inner(nn.Module):
        def __init__(self, layer_idx: int) -> None:
            super().__init__()
            self.layer_idx, self.steps = layer_idx, nn.ModuleList(Mixer(i) for i in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for step in self.steps:
                x = x + step(x)
            return x

    class Outer(Stack):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.layers = nn.ModuleList(Inner(i) for i in range(4))

    model = built(Outer)
    plan = Plan(tuple(Drop(f"layers.{name}") for name in ("1", "1.steps.0", "2.steps.1", "2.steps.2", "3.steps.0")))
    smaller: Any = prune(model, X, plan, progress=False).model
    assert [(m.layer_idx, [s.layer_idx for s in m.steps]) for m in smaller.layers] == [
        (0, [0, 1, 2]),
        (1, [0]),
        (2, [0, 1]),
    ]


def test_copies_and_originals_do_not_share_a_config() -> None:
    model = built()
    before = copy.deepcopy(vars(model.config))
    prune(model, X, dropping(1), progress=False)
    assert vars(model.config) == before


def test_without_weights_nothing_is_tried_and_layers_stay_in_their_place() -> None:
    assert not any(b.element for b in trace(built().to("meta"), X.to("meta")).blocks)


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "GPT2"])
def test_a_decoder_of_transformers_comes_back_from_pretrained_and_generates(kind: str, tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
    if kind != "GPT2":
        sizes |= {"intermediate_size": 48, "num_key_value_heads": 2}
    torch.manual_seed(0)
    made = getattr(transformers, f"{kind}Config")(vocab_size=50, bos_token_id=1, eos_token_id=2, **sizes)
    name = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    model, words = getattr(transformers, name)(made).eval(), torch.randint(3, 50, (2, 6))
    block = "transformer.h.1" if kind == "GPT2" else "model.layers.1"
    smaller: Any = prune(model, {"input_ids": words}, Plan((Drop(block),)), progress=False).model
    smaller.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(words).logits, smaller(words).logits, rtol=0, atol=0)
    cached, plain = (smaller.generate(words, max_new_tokens=4, do_sample=False, use_cache=c) for c in (True, False))
    assert torch.equal(cached, plain)
