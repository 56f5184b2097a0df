"""Routed experts are units: a cut model is the original in which a gate gives the removed ones minus infinity."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nervure import Cut, Graph, Keep, Plan, apply, prune, trace
from nervure.methods import Magnitude

EXPERTS, WIDTH, INNER = 6, 8, 12
KEEP = torch.tensor([True, False, True, True, False, True])
ONE = torch.tensor([False, False, False, True, False, False])


class Mixture(nn.Module):
    """A stream, and a layer of experts that a gate chooses from; how they are computed is for a subclass to say."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.num_experts, self.top_k = EXPERTS, 2
        self.embed, self.gate = nn.Linear(5, WIDTH), nn.Linear(WIDTH, EXPERTS)
        self.up = nn.Parameter(torch.randn(EXPERTS, 2 * INNER, WIDTH, generator=generator) * 0.4)
        self.down = nn.Parameter(torch.randn(EXPERTS, WIDTH, INNER, generator=generator) * 0.4)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.mix(x, *self.route(x)))

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and numbers of the chosen, both [tokens, k]."""
        weights, ids = torch.topk(self.gate(x).softmax(-1), self.top_k, dim=-1)
        return weights / weights.sum(-1, keepdim=True), ids

    def mix(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        """What the chosen experts make of ``x``."""
        raise NotImplementedError


class Picked(Mixture):
    """Each token picks its experts' matrices out of the stack."""

    def mix(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        tokens, k = ids.shape
        rows, chosen = x.repeat_interleave(k, 0), ids.reshape(-1)
        gate, up = torch.bmm(self.up[chosen], rows[:, :, None])[..., 0].chunk(2, -1)
        y = torch.bmm(self.down[chosen], (F.silu(gate) * up)[:, :, None])[..., 0]
        return (y * weights.reshape(-1, 1)).view(tokens, k, -1).sum(1)


class Grouped(Mixture):
    """Rows sorted by expert, one product for all."""

    def mix(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        tokens, k = ids.shape
        chosen, order = torch.sort(ids.reshape(-1))
        counts = torch.histc(chosen.float(), bins=self.num_experts, min=0, max=self.num_experts - 1)
        ends = torch.cumsum(counts, 0, dtype=torch.int32)
        gate, up = F.grouped_mm(x[order // k], self.up.transpose(1, 2), offs=ends).chunk(2, -1)
        y = F.grouped_mm(F.silu(gate) * up, self.down.transpose(1, 2), offs=ends)
        y = y * weights.reshape(-1)[order][:, None]
        back = torch.empty_like(order)
        back[order] = torch.arange(order.shape[0])
        return y[back].view(tokens, k, -1).sum(1)


class Dense(Mixture):
    """All experts run; a table with zeros for those that were not chosen weighs them."""

    def mix(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        table = torch.zeros(x.shape[0], self.num_experts).to(x).scatter(1, ids, weights)
        gate, up = torch.einsum("ti,eoi->eto", x, self.up).chunk(2, -1)
        y = torch.einsum("eto,eio->eti", F.silu(gate) * up, self.down)
        return torch.einsum("eti,te->ti", y, table)


class Sigmoid(Picked):
    """A gate whose bias chooses and does not weigh, as without an auxiliary loss."""

    def __init__(self) -> None:
        super().__init__()
        self.correction = nn.Buffer(torch.linspace(-0.2, 0.2, EXPERTS))

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.gate(x).sigmoid()
        ids = torch.topk(scores + self.correction.where(scores > 0, -torch.inf), k=self.top_k, dim=-1, sorted=False)[1]
        weights = scores.gather(1, ids)
        return weights / (weights.sum(-1, keepdim=True) + 1e-20), ids


class Written(Picked):
    """As many as the code says."""

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, ids = self.gate(x).softmax(-1).topk(2)
        return weights, ids


NETS: tuple[type[Mixture], ...] = (Picked, Grouped, Dense, Sigmoid, Written)


@contextmanager
def silenced(gate: nn.Module, keep: Tensor) -> Iterator[None]:
    """While this lasts a gate gives the experts that leave no chance."""
    hook = gate.register_forward_hook(lambda _, __, logits: logits.masked_fill(~keep, -torch.inf))
    try:
        yield
    finally:
        hook.remove()


def made(kind: type[Mixture]) -> tuple[Mixture, Tensor]:
    """A mixture and an example that reaches all of its experts."""
    torch.manual_seed(1)
    return kind().eval(), torch.randn(40, 5)


def experts_of(graph: Graph) -> Any:
    """The group of experts."""
    (group,) = [group for group in graph.groups if group.kind == "experts"]
    return group


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("keep", [KEEP, ONE])
def test_without_experts_a_model_is_the_original_whose_gate_excludes_them(kind: type[Mixture], keep: Tensor) -> None:
    if kind is Written and keep is ONE:
        pytest.skip("two are chosen, whatever is there")
    model, x = made(kind)
    graph = trace(model, x)
    group = experts_of(graph)
    assert group.name == "gate"
    assert not group.pinned, group.pinned
    smaller: Any = apply(model, graph, Plan((Cut("gate", Keep.of(keep)),), graph.fingerprint))
    left = int(keep.sum())
    assert smaller.up.shape[0] == smaller.down.shape[0] == smaller.gate.out_features == left
    with torch.no_grad(), silenced(model.gate, keep):
        expected = model(x)
    with torch.no_grad():
        found = smaller(x)
        moved = (model(x) - expected).abs().max()
    assert moved > 1e-2
    assert (found - expected).abs().max() < 1e-5 * moved
    fresh = torch.randn(7, 5)
    with torch.no_grad(), silenced(model.gate, keep):
        expected = model(fresh)
    with torch.no_grad():
        assert torch.allclose(smaller(fresh), expected, atol=1e-6)
    assert smaller.top_k == min(2, left) or kind is Written


def test_fewer_experts_than_are_chosen_leave_a_choice_of_all() -> None:
    model, x = made(Grouped)
    pruned: Any = prune(model, x, Plan((Cut("gate", Keep.of(ONE)),)), progress=False)
    assert pruned.model.top_k == pruned.model.num_experts == 1
    assert pruned.verification < 1e-4


def test_a_number_of_chosen_that_is_written_in_the_code_is_never_undercut() -> None:
    model, x = made(Written)
    group = experts_of(trace(model, x))
    assert group.multiple == 2
    assert [group.round_up(count) for count in (1, 2, 3)] == [2, 2, 4]


class Weighed(Picked):
    """The first and the second choice have weights of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.by_rank = nn.Parameter(torch.tensor([0.7, 0.3]))

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, ids = torch.topk(self.gate(x).softmax(-1), self.top_k, dim=-1)
        return weights * self.by_rank, ids


def test_where_each_choice_has_a_number_of_its_own_no_fewer_are_chosen() -> None:
    model, x = made(Weighed)
    graph = trace(model, x)
    group = experts_of(graph)
    assert not group.pinned
    assert [group.round_up(count) for count in (1, 2, 3)] == [2, 2, 4]
    smaller: Any = apply(model, graph, Plan((Cut("gate", Keep.of(KEEP)),), graph.fingerprint))
    with torch.no_grad(), silenced(model.gate, KEEP):
        expected = model(x)
    with torch.no_grad():
        assert torch.allclose(smaller(x), expected, atol=1e-6)


class Ranked(Picked):
    """The chosen are also told by their numbers."""

    def mix(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        return super().mix(x, weights, ids) + ids[:, :1] / EXPERTS


class Drifting(Picked):
    """A choice of a number that depends on how many there are."""

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, ids = torch.topk(self.gate(x).softmax(-1), self.num_experts // 3, dim=-1)
        return weights, ids


class Shifted(Picked):
    """The weights of the next expert are picked, by a number and not by a unit."""

    def mix(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        return super().mix(x, weights, (ids + 1) % EXPERTS)


class Looped(Mixture):
    """A list that is gone through by number."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(EXPERTS))

    def mix(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows, ranks = torch.where(ids == number)
            y = y.index_add(0, rows, expert(x[rows]) * weights[rows, ranks, None])
        return y


@pytest.mark.parametrize("kind", NETS)
def test_experts_go_by_score_as_other_units_do(kind: type[Mixture]) -> None:
    model, x = made(kind)
    pruned: Any = prune(model, x, Magnitude(keep=0.67), progress=False)
    assert pruned.model.up.shape[0] == 4
    assert pruned.verification < 1e-4


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Ranked, "their places are used as numbers"),
        (Drifting, "as many are chosen as"),
        (Shifted, "their places are used as numbers"),
        (Looped, "their places are used as numbers"),
    ],
)
def test_experts_stay_where_more_is_made_of_their_numbers(kind: type[Mixture], why: str) -> None:
    model, x = made(kind)
    (group,) = [group for group in trace(model, x).groups if group.name == "gate"]
    assert why in group.pinned


class Config:
    """What says how many experts there are, and how many are chosen, read by a constructor alone."""

    def __init__(self) -> None:
        self.num_local_experts, self.num_experts_per_tok = EXPERTS, 2


class Described(Picked):
    """A mixture with a config; generating has a number of its own by the name of ``top_k``."""

    def __init__(self) -> None:
        super().__init__()
        self.config, self.num_experts = Config(), EXPERTS
        self.other = nn.Module()
        self.other.top_k = 50  # type: ignore[assignment]


def test_a_config_follows() -> None:
    model, x = made(Described)
    graph = trace(model, x)
    fewer: Any = apply(model, graph, Plan((Cut("gate", Keep.of(KEEP)),), graph.fingerprint))
    assert (fewer.config.num_local_experts, fewer.config.num_experts_per_tok) == (4, 2)
    assert (fewer.num_experts, fewer.top_k, fewer.other.top_k) == (4, 2, 50)
    one: Any = apply(model, graph, Plan((Cut("gate", Keep.of(ONE)),), graph.fingerprint))
    assert (one.config.num_local_experts, one.config.num_experts_per_tok) == (1, 1)


def test_a_graph_of_experts_is_read_again_as_it_was() -> None:
    model, x = made(Described)
    graph = trace(model, x)
    assert Graph.from_json(graph.to_json()) == graph


class Twice(Grouped):
    """The first choice, and the best of all others: two rankings, one beside the other."""

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.gate(x)
        first = logits.max(-1, keepdim=True).indices
        others = logits.scatter(-1, first, -torch.inf)
        second = others.max(-1, keepdim=True).indices
        weights = [z.softmax(-1).gather(-1, ids) for z, ids in ((logits, first), (others, second))]
        return torch.cat(weights, -1), torch.cat((first, second), -1)


def test_first_and_second_choice_may_be_made_apart() -> None:
    model, x = made(Twice)
    pruned: Any = prune(model, x, Plan((Cut("gate", Keep.of(KEEP)),)), progress=False)
    with torch.no_grad(), silenced(model.gate, KEEP):
        expected = model(x)
    assert experts_of(pruned.graph).size == EXPERTS
    with torch.no_grad():
        assert torch.allclose(pruned.model(x), expected, atol=1e-5)
