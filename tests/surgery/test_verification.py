"""A check must be able to fail: wrong cuts of every kind of network are caught, and right ones pass."""

import copy
import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nervure
from nervure import Cut, Graph, Keep, Magnitude, Plan, Pruned, Random, Wanda, apply, prune, rules, trace, verify
from nervure.errors import VerificationError
from nervure.surgery.difference import compare, compare_rounded
from tests.contracts import misread
from tests.memory import peak_of
from tests.networks import noise, seeded


class Answer(nn.Module):
    """A trunk that is cut, and what is made of its answer."""

    def __init__(self, finish: Callable[[Tensor], Any], width: int = 12, outputs: int = 6) -> None:
        super().__init__()
        self.trunk, self.head, self.finish = nn.Linear(5, width), nn.Linear(width, outputs), finish

    def forward(self, x: Tensor) -> Any:
        return self.finish(self.head(self.trunk(x).relu()))


def with_sentinel(y: Tensor) -> Tensor:
    return torch.cat([y, torch.full_like(y[:, :1], 1e9)], 1)


def with_masked_logits(y: Tensor) -> Tensor:
    masked = torch.arange(y.shape[1]) % 2 == 0
    return y.masked_fill(masked, torch.finfo(y.dtype).min)


def boxes_and_scores(y: Tensor) -> Tensor:
    """[batch, 4 + classes, places], as detectors return it: boxes that the cut does not reach, in pixels."""
    boxes = 640 * torch.arange(1.0, 5.0).to(y)[None, :, None].expand(len(y), 4, 3)
    return torch.cat([boxes, 1e-3 * y.sigmoid()[..., None].expand(-1, -1, 3)], 1)


FINISHES: dict[str, Callable[[Tensor], Any]] = {
    "plain": lambda y: y,
    "times 1e-6": lambda y: y * 1e-6,
    "times 1e6": lambda y: y * 1e6,
    "softmax": lambda y: y.softmax(1),
    "softmax over 10,000 classes": lambda y: y.repeat(1, 1700).softmax(1),
    "beside a sentinel": with_sentinel,
    "masked by the smallest number": with_masked_logits,
    "boxes beside scores": boxes_and_scores,
    "beside an output in half precision": lambda y: (y, torch.ones(3, dtype=torch.bfloat16)),
    "in half precision itself": lambda y: y.to(torch.bfloat16),
    "complex": lambda y: torch.fft.fft(y, dim=0),
    "which class": lambda y: (y, y.argmax(1)),
    "beside an infinite output": lambda y: (y, torch.full((2,), float("inf"))),
}


def half(graph: Graph, name: str) -> Plan:
    return Plan((Cut(name, Keep.of(torch.arange(graph[name].size) % 2 == 0)),))


@pytest.mark.parametrize("finish", FINISHES.values(), ids=FINISHES)
def test_a_wrong_cut_is_caught_and_a_right_one_passes(finish: Callable[[Tensor], Any]) -> None:
    model, x = seeded(lambda: Answer(finish)), noise(4, 5)
    graph = trace(model, x)
    plan = half(graph, "trunk")
    right = SimpleNamespace(model=apply(model, graph, plan), graph=graph, plan=plan)
    assert verify(model, right, x)
    wrong = misread(graph, "head.weight", 1)
    with pytest.raises(VerificationError, match="differs from the original without the removed units"):
        verify(model, SimpleNamespace(model=apply(model, wrong, plan), graph=wrong, plan=plan), x)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_examples_that_tell_nothing_are_no_excuse(value: float) -> None:
    model, x = seeded(lambda: Answer(lambda y: y)), torch.full((4, 5), value)
    graph = trace(model, x)
    plan, wrong = half(graph, "trunk"), misread(graph, "head.weight", 1)
    assert verify(model, SimpleNamespace(model=apply(model, graph, plan), graph=graph, plan=plan), x)
    with pytest.raises(VerificationError, match="differs from the original"):
        verify(model, SimpleNamespace(model=apply(model, wrong, plan), graph=wrong, plan=plan), x)


def test_a_head_of_zeros_hides_no_wrong_cut() -> None:
    model, x = seeded(lambda: Answer(lambda y: y)), noise(4, 5)
    nn.init.zeros_(model.get_parameter("head.weight"))
    graph = trace(model, x)
    plan, wrong = half(graph, "trunk"), misread(graph, "head.weight", 1)
    assert verify(model, SimpleNamespace(model=apply(model, graph, plan), graph=graph, plan=plan), x)
    with pytest.raises(VerificationError, match="with random weights and inputs"):
        verify(model, SimpleNamespace(model=apply(model, wrong, plan), graph=wrong, plan=plan), x)


def test_weights_that_were_changed_behind_the_plan_are_caught() -> None:
    model, x = seeded(lambda: Answer(lambda y: 1e-6 * y)), noise(4, 5)
    pruned = prune(model, x, Magnitude(keep=0.5))
    with torch.no_grad():
        pruned.model.get_parameter("head.weight").add_(0.1)
    with pytest.raises(VerificationError, match="on the example"):
        verify(model, pruned, x)


def test_a_size_that_does_not_matter_on_the_example_is_tried_where_it_does() -> None:
    class Branch(Answer):
        def forward(self, x: Tensor) -> Tensor:
            y = self.trunk(x).relu()
            return self.head(y * (1 if y.shape[1] > 7 else 2)) * self.gate

    model = seeded(lambda: Branch(lambda y: y))
    model.register_parameter("gate", nn.Parameter(torch.zeros(6)))
    assert "differs from the original" in trace(model, noise(4, 5))["trunk"].pinned


def test_what_moves_no_output_is_not_called_verified() -> None:
    model, x = seeded(lambda: Answer(lambda y: y * 0)), noise(4, 5)
    pruned = prune(model, x, Magnitude(keep=0.5))
    assert pruned.verification is None
    assert "moves no output far enough" in pruned.unverified
    assert "not verified (what the plan removes moves no output far enough" in str(pruned)


def test_a_choice_that_turns_on_a_rounding_is_settled_in_double_precision() -> None:
    class Nearest(Answer):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            # Two codes that a rounding in single precision tells apart, and nothing in double precision does.
            same = torch.stack([y.sum(1), y.flip(1).sum(1) + 1e-12 * y.sum(1).abs()], 1)
            return torch.cat([y, same.argmax(1, keepdim=True).to(y)], 1)

    model, x = seeded(lambda: Nearest(lambda y: y, outputs=300)), noise(200, 5)
    assert prune(model, x, Magnitude(keep=0.5)).verification is not None


def test_a_dropped_block_may_change_how_long_an_answer_is() -> None:
    class Lengths(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.block, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            h = h + self.block(h)
            frames = 2 + int(h.abs().sum() * 7) % 5
            y: Tensor = self.last(h).repeat(frames, 1)
            return y

    model, x = seeded(Lengths), noise(3, 4)
    graph = trace(model, x)
    plan = Plan((nervure.Drop(graph.blocks[0].name),), graph.fingerprint)
    assert prune(model, x, plan).verification is not None


def test_a_few_rounded_numbers_tell_nothing() -> None:
    pruned = prune(seeded(lambda: Answer(lambda y: y.round(), outputs=1)), noise(3, 5), Magnitude(keep=0.5))
    assert pruned.verification is None
    many = prune(seeded(lambda: Answer(lambda y: y.sign(), outputs=40)), noise(40, 5), Magnitude(keep=0.5))
    assert many.verification is not None


def test_a_cut_behind_a_hundred_layers_is_seen() -> None:
    layers = [m for _ in range(100) for m in (nn.Linear(8, 8), nn.ReLU())]
    model, x = seeded(lambda: nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 8), *layers)), noise(4, 5)
    graph = trace(model, x)
    plan, wrong = half(graph, "0"), misread(graph, "2.weight", 1)
    assert verify(model, SimpleNamespace(model=apply(model, graph, plan), graph=graph, plan=plan), x)
    with pytest.raises(VerificationError, match="differs from the original"):
        verify(model, SimpleNamespace(model=apply(model, wrong, plan), graph=wrong, plan=plan), x)


def test_a_model_in_training_mode_is_verified_as_it_will_be_evaluated() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(5, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))).train()
    x = noise(6, 5)
    pruned = prune(model, x, Magnitude(keep=0.5))
    assert verify(model, pruned, x)
    assert all(module.training for module in (*model.modules(), *pruned.model.modules()))


def test_a_cut_that_takes_nearly_all_of_an_answer_along_is_measured_by_what_is_left() -> None:
    dense, expected = torch.full((4, 3), 1e30, dtype=torch.float64), noise(4, 3).double()
    precision = torch.finfo(torch.float64).eps
    assert not compare([dense], [expected], [expected * 1.001], [precision]).is_right
    assert compare([dense], [expected], [expected * (1 + precision)], [precision]).is_right


def test_where_one_rounding_moves_an_answer_a_lot_nothing_is_told() -> None:
    dense, expected = noise(4, 3).double(), noise(4, 3, seed=8).double()
    precision = torch.finfo(torch.float64).eps
    rounded = expected + 1e-3 * noise(4, 3, seed=9).double()
    found = expected + 1e-2 * noise(4, 3, seed=10).double()
    assert not compare([dense], [expected], [found], [precision]).is_right
    chaotic = compare([dense], [expected], [found], [precision], [[rounded]])
    assert chaotic.is_right
    assert not chaotic.is_telling


class Amplifying(nn.Module):
    """Makes roundings a billion times as large: thirty steps of the logistic map, each doubles what lies apart."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.start = nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, 6), nn.Sigmoid())
        self.end = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.start(x)
        for _ in range(30):
            hidden = 4 * hidden * (1 - hidden)
        return self.end(hidden)


@pytest.mark.parametrize("seed", range(8))
def test_one_number_among_thousands_that_rounding_hardly_moves_does_not_refuse_a_cut(seed: int) -> None:
    """Of many outputs the cut moves some next to nothing, and one draw of roundings moves others next to nothing."""
    model, x = seeded(lambda: Amplifying(64, 5000)), noise(1, 5, seed=seed)
    pruned = prune(model, x, Magnitude(keep=0.5, budget="channels"))
    assert pruned.plan == prune(model, x, Magnitude(keep=0.5, budget="channels"), verify=False).plan
    assert pruned.verification is not None


def test_rounding_is_drawn_until_it_explains_a_difference_and_no_longer() -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*_: object) -> list[Tensor]:
        return [expected + 1e-9 * torch.randn(1, 50_000, dtype=torch.float64, generator=generator)]

    drawn: list[int] = []

    def again(number: int) -> list[Tensor]:
        drawn.append(number)
        return draw()

    expected = torch.randn(1, 50_000, dtype=torch.float64, generator=generator)
    dense, precision = [torch.randn(1, 50_000, dtype=torch.float64, generator=generator)], [2.0**-52]
    assert not compare(dense, [expected], draw(), precision, [draw()]).is_right
    assert compare_rounded(dense, [expected], draw(), precision, again).is_right
    assert 1 < len(drawn) <= 8
    drawn.clear()
    assert not compare_rounded(dense, [expected], [expected * 1.001], precision, again).is_right
    assert len(drawn) == 1


def test_the_empty_plan_is_right() -> None:
    assert prune(seeded(lambda: Answer(lambda y: y)), noise(4, 5), Plan(())).verification == 0


# -- the same random numbers, the same way ---------------------------------------------------------------------------


class Coder(nn.Module):
    """A variational autoencoder, whose code is drawn in ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.mean, self.spread = nn.Linear(6, 16), nn.Linear(16, 8), nn.Linear(16, 8)
        self.leave, self.out = nn.Linear(8, 16), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x).relu()
        mean, spread = self.mean(h), self.spread(h)
        code = mean + torch.randn_like(mean) * spread.exp()
        y: Tensor = self.out(F.dropout(self.leave(code), 0.3, training=True).relu())
        return y + torch.rand(1) + torch.empty(6).normal_() + float(np.random.rand())


def test_noise_is_drawn_alike_in_both_also_over_units_that_are_cut() -> None:
    model, x = seeded(Coder), noise(5, 6)
    pruned = prune(model, x, Magnitude(keep=0.5, scope="layer"))
    assert pruned.verification is not None
    sizes = [pruned.model.get_parameter(f"{name}.bias").shape[0] for name in ("enter", "mean", "spread", "leave")]
    assert sizes == [8, 4, 4, 8]
    wrong = misread(pruned.graph, "out.weight", 1)
    with pytest.raises(VerificationError, match="differs"):
        made = apply(model, wrong, replace(pruned.plan, fingerprint=""))
        verify(model, SimpleNamespace(model=made, graph=wrong, plan=replace(pruned.plan, fingerprint="")), x)


def test_checking_does_not_move_the_random_numbers_of_the_user() -> None:
    model, x = seeded(Coder), noise(5, 6)
    pruned = prune(model, x, Magnitude(keep=0.5))
    torch.manual_seed(4)
    np.random.seed(4)
    before = (torch.rand(1), np.random.rand())
    torch.manual_seed(4)
    np.random.seed(4)
    verify(model, pruned, x)
    assert (torch.rand(1), np.random.rand()) == before


class Experts(nn.Module):
    """Each token goes to the expert that its features choose: a cut of the features moves tokens."""

    def __init__(self, number: int = 4) -> None:
        super().__init__()
        self.enter, self.gate, self.out = nn.Linear(6, 16), nn.Linear(16, number), nn.Linear(16, 3)
        self.norm = nn.LayerNorm(16)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16)) for _ in range(number)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.enter(x))
        weights = self.gate(x).softmax(-1)
        chosen, y = weights.argmax(-1), torch.zeros_like(x)
        for i in chosen.unique().tolist():
            at = (chosen == i).nonzero()[:, 0]
            y.index_add_(0, at, self.experts[i](x[at]) * weights[at, i, None])
        return self.out(x + y)


@pytest.mark.parametrize("seed", range(4))
def test_experts_that_get_other_tokens_after_a_cut_are_compared_all_the_same(seed: int) -> None:
    model, x = seeded(Experts), noise(40, 6)
    pruned = prune(model, x, Random(keep=0.5, scope="layer"), seed=seed)
    assert pruned.verification is not None
    assert "enter" in {cut.group for cut in pruned.plan.cuts}


@pytest.mark.parametrize("seed", [0, 2, 5, 9])
def test_experts_that_an_example_comes_to_after_a_cut_only_are_compared_all_the_same(seed: int) -> None:
    torch.manual_seed(seed)
    model, few, many = Experts().eval(), noise(3, 6), noise(40, 6)
    pruned = prune(model, [few, many], Random(keep=0.5, scope="layer"), seed=seed)
    assert pruned.verification is not None
    # Seeds 2, 5 and 9 send the few tokens to experts that only the many came to; all are cut for all that.
    assert len([cut for cut in pruned.plan.cuts if "experts" in cut.group]) >= 3


def test_norms_in_channels_last_memory_are_compared() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.after = nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.GroupNorm(4, 16)
            self.out = nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.after(self.norm(self.conv(x)).relu().flatten(2)).mean(-1))

    model = seeded(Net).to(memory_format=torch.channels_last)
    x = noise(2, 3, 6, 6).to(memory_format=torch.channels_last)
    assert prune(model, x, Magnitude(keep=0.5, scope="layer")).verification is not None


# -- as its user will run it -----------------------------------------------------------------------------------------


def test_an_encoder_with_a_padding_mask_runs_in_every_mode_after_a_cut() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
            self.enter, self.out, self.encoder = nn.Linear(6, 16), nn.Linear(16, 3), nn.TransformerEncoder(layer, 2)

        def forward(self, x: Tensor, padding: Tensor) -> Tensor:
            y: Tensor = self.out(self.encoder(self.enter(x), src_key_padding_mask=padding))
            return y

    model, padding = seeded(Padded), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    graph = trace(model, (noise(2, 5, 6), padding))
    plan = half(graph, "enter")
    smaller = prune(model, (noise(2, 5, 6), padding), plan).model.eval()
    with torch.no_grad():
        assert smaller(noise(2, 5, 6), padding).shape == (2, 5, 3)


class Fixed(nn.Module):
    """Runs with 8 units only in one of its uses; what is asked there says which."""

    def __init__(self, use: Callable[[nn.Module, Tensor], bool]) -> None:
        super().__init__()
        self.first, self.last, self.use = nn.Linear(4, 8), nn.Linear(8, 2), use

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        if self.use(self, x):
            y = y.reshape(len(x), 8)
        return self.last(y)


USES: dict[str, Callable[[nn.Module, Tensor], bool]] = {
    "in training mode": lambda module, x: module.training,
    "with gradients": lambda module, x: torch.is_grad_enabled(),
    "on a batch of 4": lambda module, x: len(x) == 4,
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_what_breaks_in_ordinary_use_is_not_verified(use: Callable[[nn.Module, Tensor], bool]) -> None:
    model, x = seeded(lambda: Fixed(use)), noise(3, 4)
    told = next(name for name, one in USES.items() if one is use)
    with pytest.raises(
        VerificationError, match=f"'?first'?: it breaks where the original runs, .*{told}: RuntimeError"
    ):
        prune(model, x, Magnitude(keep=0.5))


# -- refusals --------------------------------------------------------------------------------------------------------


class Turned(nn.Module):
    """Two layers whose units are cut right, and between them an operator that its user told a lie about."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu())


def wrong_of(model: nn.Module, x: Tensor) -> Pruned:
    """Both layers cut, the second wrong."""
    graph = misread(trace(model, x), "c.weight", 1)
    plan = Plan((*half(graph, "a"), *half(graph, "b")))
    return Pruned(apply(model, graph, plan), plan, graph, *[nervure.count(model, x)] * 2)


def test_a_plan_of_ones_own_that_is_wrong_is_told_what_part_of_it_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = seeded(Turned), noise(5, 4)
    found = wrong_of(model, x)
    drawn, checker = nervure.tracing.trace_and_check(model, x, (), None)
    drawn.graph = found.graph
    monkeypatch.setattr(sys.modules["nervure.prune"], "trace_and_check", lambda *args, **options: (drawn, checker))
    with pytest.raises(VerificationError, match="To blame: 'b': it differs.*other 1 of 2 edits") as caught:
        prune(model, x, found.plan)
    assert caught.value.right == replace(found.plan, edits=found.plan.edits[:1])
    pruned = prune(model, x, Magnitude(keep=0.5, scope="layer"))
    assert [cut.group for cut in pruned.plan.cuts] == ["a"]
    assert "found wrong when verified: it differs" in pruned.graph["b"].pinned


@torch.library.custom_op("tests::turn", mutates_args=())
def turn(x: Tensor) -> Tensor:
    return torch.roll(x, 1, 1) * 1.0


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_a_rule_that_lies_is_found_out_whatever_the_scale(scale: float) -> None:
    class Lies(Answer):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(torch.ops.tests.turn(self.trunk(x).relu()))
            return y * scale

    with nervure.rule("tests::turn", rules.pointwise()):
        assert "differs from the original" in trace(seeded(lambda: Lies(lambda y: y)), noise(4, 5))["trunk"].pinned


def test_models_that_do_not_run_in_double_precision_are_checked_in_their_own() -> None:
    class Single(Answer):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(super().forward(x), torch.ones(3, 6))

    model, x = seeded(lambda: Single(lambda y: y)), noise(4, 5)
    pruned = prune(model, x, Magnitude(keep=0.5))
    assert pruned.verification is not None
    assert verify(model, pruned, x).tolerance == pytest.approx(torch.finfo(torch.float32).eps ** 0.5)


def test_the_original_is_left_as_it_was() -> None:
    model, x = seeded(Coder), noise(5, 6)
    before = copy.deepcopy(model.state_dict())
    prune(model, x, Magnitude(keep=0.5))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(t.dtype == torch.float32 for t in model.parameters())


@pytest.mark.parametrize("method", [Magnitude(keep=0.9), Wanda(granularity="2:4")], ids=["cut", "masked"])
def test_one_copy_in_double_precision_is_held_at_once(method: Any) -> None:
    layers = [layer for _ in range(8) for layer in (nn.Linear(256, 256), nn.ReLU())]
    model, x = seeded(lambda: nn.Sequential(*layers)), noise(4, 256)
    pruned = prune(model, x, method, data=[x], verify=False)
    size = 8 * sum(p.numel() for p in model.parameters())
    verify(model, pruned, x)
    assert size <= peak_of(lambda: verify(model, pruned, x)) <= 1.5 * size


def test_a_cut_that_is_checked_once_more_is_checked_on_the_same_numbers() -> None:
    model, x = seeded(lambda: nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4))), noise(4, 6)
    pruned = prune(model, x, Magnitude(keep=0.5), verify=False)
    first, second = (verify(model, pruned, x) for _ in range(2))
    assert first.ok
    assert first == second
