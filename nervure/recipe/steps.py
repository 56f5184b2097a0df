"""The steps of a run: each reads artefacts of its folder, and leaves its own there."""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nervure.core.files import file_errors, is_there, remove, write_json, write_text
from nervure.core.inputs import Inputs
from nervure.errors import FileError, VerificationError
from nervure.evaluation import CORRUPTIONS, Shifted, evaluate, evaluate_shift, file_size, latency
from nervure.evaluation.held_out import HeldOut, draw_samples
from nervure.export import load_state, save_pretrained, save_state
from nervure.export.pretrained import require_new_folder
from nervure.export.unsaid import pin_unsaid
from nervure.graph import Graph, count
from nervure.graph.tape import named_tensors
from nervure.methods import HasEvidence, View, gather_evidence
from nervure.methods.dynamic.dynamic_sparse import DynamicSparse
from nervure.plan import Plan
from nervure.prune import Pruned, prune, trace_to_prune
from nervure.recipe.context import REFIT, SEARCH, STATS, STATS_FRESH, SURVEYS, RunContext
from nervure.recipe.making import methods_after, refit_of, train_section
from nervure.recipe.own_data import OwnData
from nervure.recipe.probe import answers, write_probe
from nervure.recipe.recipe import RecoverSection, TrainSection
from nervure.recipe.sources import ModelSource
from nervure.recipe.summary import summary
from nervure.recipe.twins import random_twin
from nervure.recipe.workers import environment, python
from nervure.refit import Refit, Refitted, refit
from nervure.report import Report, to_html, to_markdown
from nervure.report.amount_search import verdict
from nervure.report.run_report import DENSE, DENSE_PLUS, PRUNED, RANDOM, Row, place
from nervure.report.shift_section import SHOWN, shift_facts
from nervure.smallest import SAMPLES as HELD
from nervure.smallest import AmountFinder, Bounds
from nervure.stats import Stats, measure
from nervure.surgery import apply, masks_after, verify
from nervure.tasks import Task, classification
from nervure.tracing import trace
from nervure.training import History, Hook, RewiringHook
from nervure.zoo import Dataset, Split

PROBED = 64
RELOAD_TOLERANCE = 1e-5


Step = Callable[[RunContext], None]


def train_dense(bench: RunContext) -> None:
    """Train the dense network, or take the weights that the recipe gives."""
    model, weights = bench.fresh(), bench.recipe.model.weights
    if weights:
        load_state(weights, model)
        history = History((), (), 0, 0.0)
    else:
        history = _train(bench, "dense", model, bench.recipe.train, bench.recipe.run.seed)
    save_state(bench.path("dense.safetensors"), model, meta={"model": bench.source.to_json()})
    _note_history(bench, "dense", history)


def trace_dense(bench: RunContext) -> None:
    """Find what is coupled to what."""
    model, target = bench.dense(), bench.recipe.folder.path
    if target:
        require_new_folder(Path(target))
    graph = trace(model, bench.example())
    if target:
        graph = pin_unsaid(model, graph, bench.recipe.folder.parts)
    write_json(bench.path("graph.json"), graph.to_json())
    bench.say(f"  {len(graph.groups)} groups, {len(graph.prunable)} of them can be cut")


def measure_dense(bench: RunContext) -> None:
    """Gather the evidence that the method wants, if any."""
    gather(bench, bench.method.wants)
    _asked(bench)


def gather(bench: RunContext, want: frozenset[str]) -> None:
    """Gather these signals, if any, in one pass over training images."""
    if not want:
        return
    batches = bench.data.train.batches(bench.recipe.evaluate.batch_size, shuffle_seed=bench.recipe.run.seed)
    stats = measure(
        bench.origin(),
        bench.graph(),
        batches,
        want=want,
        task=bench.task,
        samples=bench.recipe.prune.samples,
        seed=bench.recipe.run.seed,
        progress=bench.progress,
    )
    stats.save(bench.stats)


def plan_cut(bench: RunContext) -> None:
    """Let the method decide, and show the plan before anything is cut."""
    graph = bench.graph()
    if bench.recipe.prune.tolerance:
        search_amount(bench)
    view, method = _asked(bench), bench.decided
    if isinstance(method, DynamicSparse) and not bench.begins_fresh:
        # Weights that were learnt have the size they should have.
        method = replace(method, rescale=False)
    if isinstance(method, HasEvidence):
        found = method.evidence(view)
        write_json(bench.path("evidence.json"), found.to_json())
        plan = method.decide(view, found)
    else:
        plan = method.plan(view)
    write_json(bench.path("plan.json"), plan.to_json())
    bench.say(plan.describe(graph))


def search_amount(bench: RunContext) -> None:
    """Look for the smallest amount within the tolerance, on the validation data; raises as ``nervure.smallest``."""
    asked, seed, model = bench.recipe.prune, bench.recipe.run.seed, bench.origin()
    given = _view(bench, model, bench.graph())
    chosen = {"ignore": (), "only": None}
    traced = trace_to_prune(model, bench.example(), data=given.data, task=bench.task, chosen=chosen, seed=seed)
    validation = bench.data.validation.batches(bench.recipe.evaluate.batch_size)
    finder = AmountFinder(
        # What is pinned in the graph of the run stays in what is tried too.
        replace(traced, view=replace(traced.view, graph=given.graph, stats=given.stats)),
        bench.method,
        HeldOut.of(draw_samples(validation, HELD, bench.task, seed=seed)),
        bench.task or classification(),
        refit=next(iter(refit_of(bench.recipe)), None),
        bounds=Bounds(asked.tolerance, asked.strict),
    )
    found = finder.run(bench.path(SURVEYS), progress=bench.progress, say=bench.say)
    write_json(bench.path(SEARCH), found.search.to_json())
    bench.say(verdict(found.search))


def cut(bench: RunContext) -> None:
    """Cut a copy, and check that it computes what it should."""
    pruned = _cut(bench, bench.plan(), repr(bench.decided))
    batches = bench.data.train.batches(bench.recipe.evaluate.batch_size, shuffle_seed=bench.recipe.run.seed)
    for method in methods_after(bench.recipe):
        seed = bench.recipe.run.seed
        shown = bench.example()
        pruned = prune(pruned, shown, method, data=batches, task=bench.task, seed=seed, progress=bench.progress)
        bench.say(f"then {method!r}\n{pruned.plan.describe(pruned.graph)}")
    bench.save("cut.safetensors", pruned)
    bench.say(f"  verified: largest relative difference {pruned.verification:.1e}")


def refit_cut(bench: RunContext) -> None:
    """Let what stays take over what left, where the recipe asks for it."""
    start = time.perf_counter()
    for how in refit_of(bench.recipe):
        found = _refit(bench, bench.pruned("cut.safetensors"), how)
        seconds = round(time.perf_counter() - start, 2)
        write_json(
            bench.path(REFIT), {"seconds": seconds} | found.summary() | {"fits": list(map(asdict, found.layers))}
        )
        bench.save("refit.safetensors", found.result)
        bench.say(found.describe())


def _refit(bench: RunContext, pruned: Pruned, how: Refit) -> Refitted[Pruned]:
    batches = bench.data.train.batches(bench.recipe.evaluate.batch_size, shuffle_seed=bench.recipe.run.seed)
    return refit(pruned, batches, reference=bench.origin(), task=bench.task, how=how, progress=bench.progress)


def recover(bench: RunContext) -> None:
    """Train what was cut; a method that rewires does so meanwhile."""
    hooks = []
    if isinstance(bench.method, DynamicSparse):
        hooks = [RewiringHook(bench.method, log=bench.path("pruned.events.jsonl"))]
    start = "refit.safetensors" if bench.recipe.refit.samples else "cut.safetensors"
    _recover(bench, "pruned", bench.pruned(start), "model.safetensors", hooks)


def train_twins(bench: RunContext) -> None:
    """Give the dense network, and a random twin of the pruned one, the training that it had."""
    if not bench.recipe.run.twins:
        return
    # Where the pruned network was trained as the dense one was, from the start, the dense one is its own twin.
    if not bench.begins_fresh and not is_there(bench.path("dense-plus.safetensors")):
        model = bench.dense()
        # One more than the first training: the same order of batches twice would be a hidden difference.
        history = _train(bench, "dense-plus", model, bench.recipe.recover, bench.recipe.run.seed + 1)
        # The network last: where it is, nothing of this is done again.
        _note_history(bench, "dense-plus", history)
        save_state(bench.path("dense-plus.safetensors"), model, meta={"model": bench.source.to_json()})
    if is_there(bench.path("random.safetensors")):
        return
    result = bench.pruned("model.safetensors" if isinstance(bench.method, DynamicSparse) else "cut.safetensors")
    twin = random_twin(
        result,
        bench.origin(),
        bench.example(),
        seed=bench.recipe.run.seed,
        rescale=isinstance(bench.method, DynamicSparse) and bench.begins_fresh and bench.method.rescale,
        progress=bench.progress,
    )
    for how in refit_of(bench.recipe):
        twin = _refit(bench, twin, how).result
    _recover(bench, "random", twin, "random.safetensors")


def evaluate_all(bench: RunContext) -> None:
    """Measure quality, size and speed of every network, side by side."""
    models = _networks(bench)
    rows = {name: row_of(bench, model) for name, model in models.items()}
    # The dense twin has the shapes of the dense network: timing it again would only show the noise.
    timed = timed_in_turn(bench, {name: model for name, model in models.items() if name != DENSE_PLUS})
    rows = {name: replace(row, **timed.get(name, {})) for name, row in rows.items()}
    write_json(bench.path("metrics.json"), {name: asdict(row) for name, row in rows.items()})


def evaluate_shifted(bench: RunContext) -> None:
    """Measure every network under corruption, all on the same pictures."""
    asked = bench.recipe.evaluate
    if not asked.shift:
        return
    if not bench.meets_shift:
        bench.say(f"  {bench.without_shift}")
        return
    shown, found = shifted_results(bench, _networks(bench))
    write_json(bench.path("shift.json"), shift_facts(found, _in_unit(shown.images[:SHOWN]), bench.recipe.run.seed))
    for name, one in found.items():
        bench.say(f"  {name}: {100 * one.accuracy:.1f} % under shift")


def shifted_results(bench: RunContext, models: Mapping[str, nn.Module]) -> tuple[Split, dict[str, Shifted]]:
    """The test images that the recipe shows under shift, and what networks make of them."""
    asked, data = bench.recipe.evaluate, bench.data
    assert isinstance(data, Dataset)
    shown = data.test.sample(asked.shift_samples or len(data.test), seed=bench.recipe.run.seed)
    return shown, evaluate_shift(
        models,
        shown.batches(asked.batch_size),
        shift=asked.shift,
        severities=asked.severities,
        seed=bench.recipe.run.seed,
        progress=bench.progress,
    )


def reload(bench: RunContext) -> None:
    """Load the saved file in a fresh process, and compare what it computes."""
    model = bench.pruned("model.safetensors").model.eval()
    inputs = _probed(bench)
    write_probe(bench.path("probe.safetensors"), inputs, answers(model, inputs))
    error = _in_fresh_process(bench.folder, bench.source)
    if not error <= RELOAD_TOLERANCE:
        raise VerificationError(
            f"the saved model, loaded in a fresh process, computes something else: relative difference {error:.1e}. "
            "Does the factory build the same network each time?"
        )
    write_json(bench.path("reload.json"), {"error": error})


def _probed(bench: RunContext) -> Inputs:
    """What the saved network is called with: some test images, or a sample of the user's own data."""
    if isinstance(bench.data, OwnData):
        return Inputs.of(bench.example())
    return Inputs((bench.data.test.normalise(bench.data.test.images[:PROBED]).to(bench.device),))


def write_pretrained(bench: RunContext) -> None:
    """Write the folder that the model's library loads, where the recipe asks for one."""
    asked, name = bench.recipe.folder, bench.source.name
    if not asked.path:
        return
    source = asked.source or (name.partition(":")[2] if name.startswith("hf:") else "")
    pruned = bench.pruned("model.safetensors")
    found = save_pretrained(asked.path, pruned, bench.example(), source=source if os.path.isdir(source) else None)
    bench.say(f"  {found}")


def write_report(bench: RunContext) -> None:
    """Put everything on one page."""
    report = summary(bench)
    report.save(bench.path("report.json"))
    write_report_pages(report, bench.folder)


STEPS: Mapping[str, Step] = {
    "train": train_dense,
    "trace": trace_dense,
    "measure": measure_dense,
    "plan": plan_cut,
    "cut": cut,
    "refit": refit_cut,
    "recover": recover,
    "twins": train_twins,
    "evaluate": evaluate_all,
    "shift": evaluate_shifted,
    "reload": reload,
    "folder": write_pretrained,
    "report": write_report,
}

ARTEFACTS = (
    "recipe.toml",
    "steps.json",
    "dense.safetensors",
    "dense.history.json",
    "graph.json",
    STATS,
    STATS_FRESH,
    SEARCH,
    "evidence.json",
    "plan.json",
    "cut.safetensors",
    "refit.safetensors",
    REFIT,
    "model.safetensors",
    "pruned.history.json",
    "dense-plus.safetensors",
    "dense-plus.history.json",
    "random.safetensors",
    "random.history.json",
    "pruned.events.jsonl",
    "metrics.json",
    "shift.json",
    "probe.safetensors",
    "reload.json",
    "report.json",
    "report.html",
    "report.md",
    *(f"{name}.training.safetensors" for name in ("dense", "pruned", "dense-plus", "random")),
)


def write_report_pages(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write ``report.html`` and ``report.md`` to ``folder`` and return their paths; raises FileError."""
    page = write_text(folder / "report.html", to_html(report))
    return page, write_text(folder / "report.md", to_markdown(report))


def _networks(bench: RunContext) -> dict[str, nn.Module]:
    """The networks that are compared, by name."""
    models = {DENSE: bench.dense(), PRUNED: bench.pruned("model.safetensors").model}
    if bench.recipe.run.twins:
        if not bench.begins_fresh:
            models[DENSE_PLUS] = load_state(bench.path("dense-plus.safetensors"), bench.fresh())
        models[RANDOM] = bench.pruned("random.safetensors").model
    return models


def _in_unit(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def _view(bench: RunContext, model: nn.Module, graph: Graph) -> View:
    weights = {name: tensor.detach() for name, tensor in named_tensors(model).items()}
    # Nothing but what it asks for: what another method of a study wants must not change a plan.
    stats = Stats.load(bench.stats).only(bench.method.wants) if bench.method.wants else None
    batches = bench.data.train.batches(bench.recipe.evaluate.batch_size, shuffle_seed=bench.recipe.run.seed)
    seed, shown = bench.recipe.run.seed, bench.example()
    return View(graph, weights, stats, seed, model, shown, batches, task=bench.task)


def _asked(bench: RunContext) -> View:
    """What the method sees, with all that it wants; answers are kept, so that they are there the second time."""
    view = _view(bench, bench.origin(), bench.graph())
    return gather_evidence(bench.decided, view, folder=bench.path(SURVEYS), progress=bench.progress)


def _cut(bench: RunContext, plan: Plan, method: str) -> Pruned:
    model, graph, example = bench.origin(), bench.graph(), bench.example()
    smaller = apply(model, graph, plan)
    before, after = count(model, example), count(smaller.eval(), example)
    pruned = Pruned(smaller, plan, graph, before, after, method, masks_after(graph, plan))
    return replace(pruned, verification=verify(model, pruned, example).error)


def _recover(bench: RunContext, name: str, pruned: Pruned, file: str, hooks: Sequence[Hook] = ()) -> None:
    if is_there(bench.path(file)):
        return
    # From the start: in the order of the dense network. Afterwards: in another, which twins share.
    fresh = bench.begins_fresh
    section: TrainSection | RecoverSection = bench.recipe.train if fresh else bench.recipe.recover
    seed = bench.recipe.run.seed + (0 if fresh else 1)
    history = _train(bench, name, pruned.model, section, seed, pruned.masks, hooks)
    after = count(pruned.model.eval(), bench.example())
    _note_history(bench, name, history)
    bench.save(file, replace(pruned.with_masks(history.masks) if hooks else pruned, cost_after=after))


def _train(
    bench: RunContext,
    name: str,
    model: nn.Module,
    section: Any,
    seed: int,
    masks: Mapping[str, Tensor] | None = None,
    hooks: Sequence[Hook] = (),
) -> History:
    """Train, able to go on where a run that was stopped left off; the checkpoint goes once the result is saved."""
    history = train_section(
        model,
        bench.data,
        section,
        seed=seed,
        checkpoint=_checkpoint(bench, name),
        masks=masks,
        hooks=hooks,
        teacher=bench.dense() if section is bench.recipe.recover and section.distill else None,
        task=bench.task,
        progress=bench.progress,
        tested=bench.recipe.evaluate.shift or CORRUPTIONS,
        callbacks=[] if bench.tracker is None else [bench.tracker.under(name)],
    )
    if history.validation:
        last = history.validation[-1]
        found = f"accuracy {100 * last:.1f} %" if bench.purpose.tells_classes else f"loss {last:.4g}"
        bench.say(f"  {name}: validation {found}, {history.seconds:.0f} s")
    return history


def _checkpoint(bench: RunContext, name: str) -> Path:
    return bench.path(f"{name}.training.safetensors")


def _note_history(bench: RunContext, name: str, history: History) -> None:
    write_json(bench.path(f"{name}.history.json"), history.to_json())


def remove_checkpoints(folder: Path) -> None:
    """Remove the states of trainings that are over; called when the step that made them is written down."""
    for path in folder.glob("*.training.safetensors"):
        remove(path)


def row_of(bench: RunContext, model: nn.Module) -> Row:
    """Quality on the test split, and size."""
    batches = bench.data.test.batches(bench.recipe.evaluate.batch_size)
    if bench.task is not None:
        return _row_of_task(bench, model, batches, bench.task)
    found = evaluate(model, batches, progress=bench.progress)
    cost = count(model.eval(), bench.example())
    return Row(
        accuracy=found.accuracy,
        loss=found.loss,
        ece=found.ece,
        samples=found.samples,
        params=cost.params,
        nonzero=cost.nonzero,
        macs=cost.macs,
        bytes=file_size(model),
    )


def _row_of_task(bench: RunContext, model: nn.Module, batches: Iterable[Any], task: Task) -> Row:
    """What the task measures, and size."""
    found = evaluate(model, batches, task=task, progress=bench.progress)
    cost = count(model.eval(), bench.example())
    return Row(
        loss=_number(found.pop("loss", math.nan)),
        samples=sum(task.samples(batch) for batch in batches),
        params=cost.params,
        nonzero=cost.nonzero,
        macs=cost.macs,
        bytes=file_size(model),
        metrics={name: _number(value) for name, value in found.items()},
    )


def _number(value: float) -> float | None:
    """JSON has no word for NaN: nothing was measured."""
    return value if math.isfinite(value) else None


def timed_in_turn(bench: RunContext, models: Mapping[str, nn.Module]) -> dict[str, dict[str, Any]]:
    """Latencies by network, as the fields of a :class:`Row`, against the first; empty where the recipe wants none."""
    asked = bench.recipe.evaluate
    if not asked.latency:
        return {}
    table = latency(
        models,
        bench.example(),
        batch_sizes=asked.latency,
        threads=[torch.get_num_threads()],
        engine=asked.engines,
        rounds=asked.rounds,
    )
    by_name = {name: {place(r.batch, r.engine): r for r in table.rows if r.name == name} for name in models}
    first = next(iter(by_name.values()))
    return {
        name: {
            "latency": {key: 1e3 * first[key].median * row.ratio for key, row in rows.items()},
            "speedup": {key: 1 / row.ratio for key, row in rows.items()},
            "speedup_low": {key: 1 / row.ratio_quartiles[1] for key, row in rows.items()},
            "speedup_high": {key: 1 / row.ratio_quartiles[0] for key, row in rows.items()},
        }
        for name, rows in by_name.items()
    }


def _in_fresh_process(folder: Path, source: ModelSource) -> float:
    with file_errors(sys.executable, "start"):
        done = subprocess.run(
            python("nervure.recipe.fresh", str(folder)),
            input=json.dumps(source.to_json()),
            capture_output=True,
            text=True,
            check=False,
            env=environment(torch.get_num_threads()),
        )
    if done.returncode:
        raise FileError(f"the saved model could not be loaded in a fresh process: {_last(done.stderr.splitlines())}")
    return float(json.loads(_last(done.stdout.splitlines()))["error"])


def _last(lines: Iterable[str]) -> str:
    return ([line for line in lines if line.strip()] or ["it said nothing"])[-1]
