"""Networks rewired while they train: counts are exact, chance is the same everywhere, a run goes on from any event."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nervure
from nervure import GMP, SET, RigL, Synthesis, prune, train
from nervure.errors import ArgumentError, BudgetError, FileError
from nervure.training import Event, History, RewiringHook, RollbackPolicy, TrainingStep, mean_density
from nervure.training.dynamic.protocol import SparseTrainer
from tests.training.processes import run_in_two

CLASSES = 4


class Attentive(nn.Module):
    """Attention and an MLP over a few positions."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, (2, 8))
        x = x + self.attention(x, x, x)[0]
        x = x + self.down(self.up(x).relu())
        return self.head(x.mean(1))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, CLASSES))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 4, 4)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, CLASSES),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "convolutions": convolutions, "attention": Attentive}
METHODS: tuple[Any, ...] = (
    SET(density=0.3),
    RigL(density=0.3, events=5),
    RigL(density=0.4, events=5, distribution="global", grace=1, drop="saliency"),
    GMP(density=0.3, events=5),
    GMP(density=0.3, events=5, distribution="erk", schedule="linear", start=0.8),
    Synthesis(density=0.5, start=0.3, events=5),
    Synthesis(density=0.5, start=0.3, events=5, prune=0, granularity="element", distribution="uniform", pool=3.0),
    Synthesis(density=0.5, start=0.3, events=5, strength="activation", origins="hard", initial="gauss"),
    Synthesis(density=0.6, start=0.4, events=4, growth="links", distribution="global", initial="first"),
)
GATED = Synthesis(density=0.5, start=0.3, events=6, gate=True, patience=4, growth="random")


def network(kind: str = "mlp", seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return NETWORKS[kind]()


def batches(seed: int = 0, count: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, 16, generator=torch.Generator().manual_seed(9))
    labels = [torch.randint(CLASSES, (16,), generator=generator) for _ in range(count)]
    return [(centres[y] + 0.8 * torch.randn(16, 16, generator=generator), y) for y in labels]


def quiet(model: nn.Module, *hooks: Any, data: Any = None, **options: Any) -> History:
    options = {"epochs": 3, "lr": 0.05, **options}
    return train(model, batches() if data is None else data, hooks=list(hooks), progress=False, **options)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def count(masks: Any) -> int:
    return sum(int(mask.sum()) for mask in masks.values())


class Watching:
    """Before every step: how many weights there are, and that nothing else is there."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def __call__(self, step: TrainingStep) -> None:
        for name, mask in step.masks.items():
            parameter = step.model.get_parameter(name)
            moments = [v for v in step.optimizer.state[parameter].values() if isinstance(v, Tensor) and v.dim()]
            assert all(not bool(value.detach()[~mask].any()) for value in (parameter, *moments))
        self.counts.append(count(step.masks))


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_counts_are_exact_at_every_step_and_the_log_tells_them(method: Any, kind: str) -> None:
    model, watching = network(kind), Watching()
    history = quiet(model, watching, method, optimizer="adamw" if kind == "attention" else "sgd")
    there = {event.step: event.nonzero for event in history.events}
    expected = [there[max(s for s in there if s < max(step, 1))] for step in range(history.steps)]
    assert watching.counts == expected
    assert count(history.masks) == history.events[-1].nonzero
    assert all(not bool(model.get_parameter(name)[~mask].any()) for name, mask in history.masks.items())
    for before, event in zip(history.events, history.events[1:], strict=False):
        assert event.nonzero == before.nonzero - event.dropped + event.grown
        assert sum(turnover.nonzero for turnover in event.layers.values()) == event.nonzero
    wanted = round(method.density * history.events[-1].weights)
    kernel = 9 if method.granularity == "kernel" and kind == "convolutions" else 1
    assert wanted - 2 * kernel < history.events[-1].nonzero <= wanted
    assert eval(repr(method), {name: getattr(nervure, name) for name in nervure.__all__}) == method


@pytest.mark.parametrize("method", [SET(density=0.3), RigL(density=0.3, events=5)], ids=repr)
def test_what_is_exchanged_is_exactly_as_many_in_every_layer(method: Any) -> None:
    events = quiet(network(), method).events
    assert len(events) > 2 and all(event.dropped > 0 for event in events[1:-1])
    for event in events[1:]:
        assert all(turnover.dropped == turnover.grown for turnover in event.layers.values())
        assert {n: t.nonzero for n, t in event.layers.items()} == {n: t.nonzero for n, t in events[0].layers.items()}


def test_growth_without_pruning_only_grows_and_stays_within_the_capacity() -> None:
    events = quiet(network(), Synthesis(density=0.5, start=0.3, events=5, prune=0)).events
    assert all(event.dropped == 0 for event in events)
    densities = [event.density for event in events]
    assert densities == sorted(densities) and densities[-1] <= 0.5 < densities[-1] + 0.01


def test_every_output_of_every_layer_goes_on_hearing() -> None:
    for method in (GMP(density=0.09, events=5), RigL(density=0.09, events=5, fraction=0.9, distribution="global")):
        masks = quiet(network(), method).masks
        assert all(bool(mask.any(1).all()) for mask in masks.values())


# What lies on no path

RECYCLING: tuple[tuple[str, Any], ...] = (
    ("mlp", SET(density=0.1, guard="paths")),
    ("mlp", RigL(density=0.1, events=5, guard="paths")),
    ("convolutions", RigL(density=0.1, events=5, guard="paths")),
    ("attention", RigL(density=0.1, events=5, guard="paths")),
    ("convolutions", RigL(density=0.2, events=5, guard="paths", distribution="global", grace=1)),
    ("mlp", Synthesis(density=0.2, start=0.1, events=5, guard="paths")),
)


def on_paths(model: nn.Module, masks: Any) -> tuple[int, int]:
    """Weights on a path from an input to an output, and all."""
    found = nervure.connectivity(model, batches()[0][0][:2])
    live = sum(layer.live for layer in found.layers)
    return live, count(masks)


@pytest.mark.parametrize(("kind", "method"), RECYCLING, ids=lambda case: case if isinstance(case, str) else repr(case))
def test_from_the_start_and_after_each_event_every_weight_lies_on_a_path(method: Any, kind: str) -> None:
    hook, model, seen = RewiringHook(method), network(kind), []

    def look(step: TrainingStep) -> None:
        if len(hook.events) > len(seen):
            # What grew begins at zero, and connectivity is that of weights that are not.
            whole = network(kind)
            for name, mask in hook.masks.items():
                whole.get_parameter(name).data.copy_(mask)
            seen.append(on_paths(whole, hook.masks))

    events = quiet(model, look, hook, look).events
    assert len(seen) == len(events) and [there for _, there in seen] == [event.nonzero for event in events]
    assert all(live == there for live, there in seen)
    assert method.growth == "strategic" or len({there for _, there in seen}) == 1


def test_weights_on_no_path_stay_without_the_guard() -> None:
    model = network()
    history = quiet(model, RigL(density=0.1, events=5))
    live, there = on_paths(model, history.masks)
    assert live < there


def test_gradual_pruning_drops_what_lies_on_no_path_first_and_counts_exactly() -> None:
    ends = {}
    for guard in ("none", "paths"):
        model = network()
        history = quiet(model, GMP(density=0.06, events=5, guard=guard))
        assert history.events[-1].nonzero == round(0.06 * history.events[0].weights)
        ends[guard] = on_paths(model, history.masks)[0]
        hears = nervure.connectivity(model, batches()[0][0][:2]).dead_classes
        assert not hears or guard == "none"
    assert ends["paths"] > ends["none"]


def test_a_network_without_any_path_is_rewired_as_without_the_guard() -> None:
    masks = {"0.weight": torch.zeros(24, 16), "2.weight": torch.zeros(12, 24), "4.weight": torch.zeros(CLASSES, 12)}
    masks = {name: mask.bool() for name, mask in masks.items()}
    masks["0.weight"][:, :3] = True
    history = quiet(network(), RigL(density=0.1, events=3, guard="paths"), masks=masks)
    assert {event.nonzero for event in history.events} == {72}


def test_a_path_guard_goes_below_one_weight_for_each_output() -> None:
    with pytest.raises(BudgetError, match=r"it takes 40 to keep every output connected"):
        quiet(network(), RigL(density=0.05, events=3))
    history = quiet(network(), RigL(density=0.05, events=3, guard="paths"))
    assert history.events[-1].nonzero == round(0.05 * history.events[0].weights)


# Weights that grow


def event(
    method: SparseTrainer, model: nn.Module, *, at: int = 3
) -> tuple[RewiringHook, dict[str, Tensor], TrainingStep]:
    """The first event of a method, stopped before the optimizer moves; the masks before it."""
    hook, seen = RewiringHook(method), {}

    def stop(step: TrainingStep) -> None:
        if len(hook.events) == at - 1:
            seen["before"] = {name: mask.clone() for name, mask in step.masks.items()}
        if len(hook.events) >= at:
            seen["step"] = step
            raise KeyboardInterrupt

    first, second = lambda step: stop(step) if len(hook.events) < at else None, stop
    with pytest.raises(KeyboardInterrupt):
        quiet(model, first, hook, second)
    return hook, seen["before"], seen["step"]


@pytest.mark.parametrize("growth", ["random", "strategic", "gradient", "links"])
def test_growth_from_zero_leaves_the_function_as_it_was(growth: str) -> None:
    model, outputs = network(), []
    hook = RewiringHook(Synthesis(density=0.6, start=0.3, events=4, prune=0, growth=growth))
    x = batches()[0][0]

    def listen(step: TrainingStep) -> None:
        outputs.append((len(hook.events), model(x).detach().clone()))

    quiet(model, listen, hook, listen)
    pairs = [(a, b) for (m, a), (n, b) in zip(outputs[::2], outputs[1::2], strict=True) if m != n]
    assert len(pairs) == 4 and all(torch.equal(a, b) for a, b in pairs)


def test_what_grew_has_no_moments_and_survives_the_next_event() -> None:
    grown: list[dict[str, Tensor]] = []
    steady: dict[str, Any] = {"ramp": "linear", "schedule": "constant", "growth": "random"}
    hook = RewiringHook(Synthesis(density=0.5, start=0.3, events=6, prune=0.6, grace=1, **steady))
    before: dict[str, Tensor] = {}

    def note(step: TrainingStep) -> None:
        before.update({name: mask.clone() for name, mask in step.masks.items()})

    def check(step: TrainingStep) -> None:
        if hook.events[-1].step == step.number and hook.events[-1].kind == "rewire":
            now = hook.masks
            new = {name: mask & ~before[name] for name, mask in now.items()}
            for name, places in new.items():
                parameter = step.model.get_parameter(name)
                for value in (parameter, *step.optimizer.state[parameter].values()):
                    assert not bool(value.detach()[places].any())
            assert all(bool(now[name][young].all()) for last in grown[-1:] for name, young in last.items())
            grown.append(new)

    quiet(network(), note, hook, check)
    assert len(grown) == 6 and all(count(new) for new in grown)


def test_new_weights_begin_at_the_scale_that_was_asked() -> None:
    for initial, scale in (("gauss", 0.1), ("first", 1.0)):
        model = network()
        firsts = weights(model)
        method = Synthesis(density=0.6, start=0.3, events=4, prune=0, initial=initial, scale=scale, rescale=False)
        hook, before, step = event(method, model, at=2)
        for name, mask in hook.masks.items():
            new, parameter = mask & ~before[name], step.model.get_parameter(name).detach()
            assert bool(parameter[new].all())
            if initial == "first":
                assert torch.equal(parameter[new], firsts[name][new])
            else:
                assert float(parameter[new].std()) < 0.3 * float(parameter[before[name]].std())


# The same everywhere


@pytest.mark.parametrize("method", [METHODS[0], METHODS[2], METHODS[5], RECYCLING[1][1], GATED], ids=repr)
def test_a_run_goes_on_from_any_event_to_the_very_same_network(method: Any, tmp_path: Path) -> None:
    options = {"validation": batches(seed=1, count=2), "optimizer": "adamw", "lr": 0.01}
    whole = network()
    expected = quiet(whole, method, **options)
    for stop in {event.step + 1 for event in expected.events} & set(range(expected.steps)):

        def interrupt(step: TrainingStep, at: int = stop) -> None:
            if step.number == at:
                raise KeyboardInterrupt

        place = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            quiet(network(), RewiringHook(method), interrupt, checkpoint=place, **options)
        fresh = network(seed=5)
        history = quiet(fresh, RewiringHook(method, log=tmp_path / "log.jsonl"), checkpoint=place, **options)
        assert same(weights(whole), weights(fresh)), stop
        assert same(dict(expected.masks), dict(history.masks)) and history.loss == expected.loss
        assert history.events == expected.events and history.validation == expected.validation
        lines = (tmp_path / "log.jsonl").read_text().splitlines()
        assert tuple(Event.from_json(json.loads(line)) for line in lines) == history.events


def test_dropout_goes_on_from_the_middle_of_an_epoch(tmp_path: Path) -> None:
    def dropping(seed: int = 0) -> nn.Module:
        return nn.Sequential(network(seed=seed), nn.Dropout(0.5), nn.Linear(CLASSES, CLASSES))

    torch.manual_seed(0)
    whole, method = dropping(), RigL(density=0.4, events=4)
    first = weights(whole)
    quiet(whole, method)

    def interrupt(step: TrainingStep) -> None:
        if step.number == 12:
            raise KeyboardInterrupt

    again = dropping()
    again.load_state_dict(first)
    with pytest.raises(KeyboardInterrupt):
        quiet(again, method, interrupt, checkpoint=tmp_path / "run")
    quiet(again, method, checkpoint=tmp_path / "run")
    assert same(weights(whole), weights(again))


def test_chance_follows_from_the_seed_alone() -> None:
    runs = [quiet(network(), SET(density=0.3), seed=seed).masks for seed in (0, 0, 1)]
    assert same(dict(runs[0]), dict(runs[1])) and not same(dict(runs[0]), dict(runs[2]))


WORKER = """
from torch.nn.parallel import DistributedDataParallel
from nervure import RigL, Synthesis, train
from tests.training.test_rewiring import batches, network

grown = Synthesis(density=0.5, start=0.3, events=5, strength="activation", pool=2.0)
for method in (RigL(density=0.3, events=5), RigL(density=0.15, events=5, guard="paths"), grown):
    spread = DistributedDataParallel(network(seed=rank))
    # Another seed for each: the chance of the first must count for all.
    found = train(spread, batches()[rank::2], epochs=3, lr=0.05, seed=rank, hooks=[method], progress=False)
    assert found.events[-1].step and sum(event.grown for event in found.events)
    for name, mask in found.masks.items():
        require_same(spread.get_parameter(name).detach())
        require_same(mask.to(torch.uint8))
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch cannot train in several processes")
def test_processes_that_train_together_rewire_alike(tmp_path: Path) -> None:
    run_in_two(WORKER, tmp_path)


# Judged


def test_an_event_that_does_harm_is_undone_as_if_it_had_never_been() -> None:
    options: dict[str, Any] = {"growth": "random", "initial": "gauss", "scale": 10.0, "begin": 0.3, "end": 0.95}
    options |= {"ramp": "linear", "prune": 0.2, "schedule": "constant", "grace": 1}
    spoiled = Synthesis(density=0.7, start=0.3, events=4, gate=True, **options)
    states: dict[int, dict[str, Tensor]] = {}
    model, hook = network(), RewiringHook(spoiled)

    def before(step: TrainingStep) -> None:
        if step.number in hook.table:
            states[step.number] = weights(model)

    undone: list[int] = []

    def after(step: TrainingStep) -> None:
        if hook.events[-1].kind == "undo" and hook.events[-1].step == step.number:
            cause = max(e.step for e in hook.events if e.kind == "rewire")
            assert same(weights(model), states[cause])
            assert hook.events[-1].nonzero == hook.events[-3].nonzero
            undone.append(step.number)

    history = quiet(model, before, hook, after, validation=batches(seed=1, count=2), lr=0.003)
    assert undone and [e.step for e in history.events if e.kind == "undo"] == undone
    assert all(e.auc is not None and e.accuracy is not None for e in history.events[1:])


def test_patience_ends_the_rewiring() -> None:
    method = Synthesis(density=0.5, start=0.3, events=10, patience=2)
    history = quiet(network(), method, validation=batches(seed=1, count=2), lr=1e-9)
    kinds = [event.kind for event in history.events]
    assert kinds[-1] == "stop" and kinds.count("rewire") < 10
    assert method.judge == RollbackPolicy(undo=False, tolerance=0.0, patience=2)


# What it costs


def test_the_mean_density_is_that_of_the_steps() -> None:
    watching = Watching()
    history = quiet(network(), watching, GMP(density=0.3, events=5))
    # A hook before the method sees the masks of the step before.
    counts = [*watching.counts[1:], history.events[-1].nonzero]
    mean = sum(counts) / len(counts) / history.events[0].weights
    assert mean_density(history.events, history.steps) == pytest.approx(mean)


# Together with the rest of the house


def test_masks_of_another_method_can_be_the_start() -> None:
    x, _ = batches()[0]
    pruned = prune(network(), x, nervure.SNIP(density=0.3), data=batches(), progress=False)
    history = quiet(pruned.model, RigL(density=0.3, events=5), masks=pruned.masks)
    assert history.events[0].nonzero == count(pruned.masks) == history.events[-1].nonzero
    with pytest.raises(ArgumentError, match=r"a density of 0\.3, but RigL begins with 0\.2"):
        quiet(pruned.model, RigL(density=0.2, events=5), masks=pruned.masks)


@pytest.mark.parametrize("distribution", ["erk", "global"])
def test_links_are_rewired_under_the_same_budget_as_layers(distribution: Any) -> None:
    skips = nervure.N2NSkip(density=0.4, share=0.4, first="erk")
    pruned = prune(network(), batches()[0][0], skips, progress=False)
    links = [name for name in pruned.masks if "link_" in name]
    assert links
    method = RigL(density=0.4, events=5, distribution=distribution)
    history = quiet(pruned.model, Watching(), method, masks=pruned.masks)
    assert {event.nonzero for event in history.events} == {count(pruned.masks)}
    assert round(0.4 * history.events[0].weights) == count(pruned.masks)
    assert any(not torch.equal(history.masks[name], pruned.masks[name]) for name in links)
    moved = {name: int(mask.sum()) - int(pruned.masks[name].sum()) for name, mask in history.masks.items()}
    assert any(moved.values()) == (distribution == "global") and sum(moved.values()) == 0
    assert all(not bool(pruned.model.get_parameter(name)[~history.masks[name]].any()) for name in links)


def test_layers_that_stay_dense_and_masks_of_others_are_left_alone() -> None:
    bias = torch.arange(24) % 2 == 0
    history = quiet(network(), RigL(density=0.3, events=5, dense=("0",)), masks={"0.bias": bias})
    assert torch.equal(history.masks["0.bias"], bias) and "0.weight" not in history.masks
    assert history.events[0].weights == 24 * 12 + 12 * CLASSES


def test_the_start_varies_as_the_whole_would() -> None:
    model, whole = nn.Sequential(nn.Linear(400, 50), nn.Linear(50, CLASSES)), nn.Linear(400, 50)
    data = [(torch.randn(8, 400), torch.arange(8) % CLASSES)]
    first: list[Tensor] = []
    quiet(model, lambda step: first.append(model[0].weight.detach().clone()), SET(density=0.1), data=data)
    found = first[0]
    assert 0.05 < float((found != 0).float().mean()) < 0.15
    assert float(found.square().sum()) == pytest.approx(float(whole.weight.detach().square().sum()), rel=0.1)


# Bad input


def refused(method: Callable[[], Any], words: str, error: type[Exception] = ArgumentError, **options: Any) -> None:
    with pytest.raises(error, match=words):
        quiet(network(), method(), **options)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (lambda: Synthesis(density=0.05, start=0.2), r"the capacity, density=0\.05, is below start=0\.2"),
        (lambda: GMP(density=0.5, start=0.4), r"start=0\.4 is below density=0\.5"),
        (lambda: RigL(density=0.3, events=40), r"events=40 does not fit a training of 24 steps"),
        (lambda: RigL(density=0.3, every=100), r"every=100 does not fit a training of 24 steps"),
        (lambda: SET(density=0.3, every=2, events=3), r"every=2 and events=3 both say when"),
        (lambda: SET(density=0.3, begin=0.8, end=0.4), r"begin=0\.8 and end=0\.4"),
        (lambda: SET(density=0.3, growth="gradeint"), r"Did you mean 'gradient'"),
        (lambda: SET(density=0.3, drop="magnitud"), r"Did you mean 'magnitude'"),
        (lambda: SET(density=0.5, granularity="2:4"), r"granularity='2:4' is not one of 'element', 'kernel'"),
        (lambda: SET(density=0.3, fraction=1.5), r"fraction=1\.5"),
        (lambda: Synthesis(density=0.3, prune=1.0), r"prune=1\.0.: prune is .*in \[0, 1\)"),
        (lambda: Synthesis(density=0.3, pool=0.5), r"pool=0\.5.: pool is .*, 1 or more"),
        (lambda: Synthesis(density=0.3, start=0.2, gate=True), r"judges its events by validation data"),
        (lambda: RigL(density=0.3, grace=-1), r"grace=-1.: grace is a whole number, 0 or more"),
        (lambda: RigL(density=0.3, scale=float("nan")), r"scale=nan.: scale is a finite number"),
    ],
)
def test_what_cannot_be_is_refused_in_words(method: Callable[[], Any], words: str) -> None:
    refused(method, words)


def test_too_low_a_density_says_how_much_it_takes() -> None:
    with pytest.raises(BudgetError, match=r"takes 40 .*Give density=0\.055"):
        quiet(network(), GMP(density=0.01))


def test_a_class_and_what_does_not_rewire_are_refused() -> None:
    for wrong in (RigL, nervure.Magnitude(keep=0.5)):
        with pytest.raises(ArgumentError, match="does not rewire"):
            RewiringHook(wrong)  # type: ignore[arg-type]


def test_a_hook_called_out_of_order_is_refused() -> None:
    hook, steps = RewiringHook(RigL(density=0.3, events=5)), []
    model = network()
    with pytest.raises(KeyboardInterrupt):
        quiet(
            model,
            hook,
            lambda step: steps.append(step) if step.number < 2 else (_ for _ in ()).throw(KeyboardInterrupt),
        )
    with pytest.raises(ArgumentError, match="called for step 0 after step 2"):
        hook(steps[0])
    with pytest.raises(ArgumentError, match="before its training began"):
        RewiringHook(RigL(density=0.3))(steps[0])


def test_a_run_on_other_data_or_from_another_topology_is_not_gone_on_with(tmp_path: Path) -> None:
    path, method = tmp_path / "run", RigL(density=0.3, events=5)
    x, _ = batches()[0]
    masks = prune(network(), x, nervure.ERK(density=0.3, seed=1), progress=False).masks
    quiet(network(), method, checkpoint=path)
    with pytest.raises(FileError, match="another first batch of data"):
        quiet(network(), method, checkpoint=path, data=batches(seed=3))
    with pytest.raises(FileError, match="began with other masks"):
        quiet(network(), method, checkpoint=path, masks=masks)
    with pytest.raises(FileError, match="another timetable"):
        quiet(network(), method, checkpoint=path, data=batches()[:7])
    with pytest.raises(FileError, match="rewiring="):
        quiet(network(), replace(method, fraction=0.2), checkpoint=path)
    with pytest.raises(FileError, match="rewiring="):
        quiet(network(), checkpoint=path)
