"""The sub-commands. Each reads and writes the artefacts of one arrow."""

import math
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

from nervure.cli.command_group import command_line, main, tell
from nervure.cli.options import (
    ANYWHERE,
    BATCH,
    EXAMPLE,
    FOLDER,
    PAGE,
    PAGES,
    QUIET,
    SEED,
    Asked,
    Example,
    NetworkChoice,
    asking,
    example,
    from_file,
    grid_options,
    input_options,
    named_options,
    output,
    setting,
)
from nervure.cli.streamed_texts import prune_streamed
from nervure.cli.writing_recipes import recipe_for_texts, recipe_from_options
from nervure.core.container import Kind, write_container
from nervure.core.files import read_json, require_folder, require_writable, write_json, write_text
from nervure.core.inputs import Inputs
from nervure.engines import ENGINES, require_engine
from nervure.errors import ArgumentError
from nervure.evaluation import SEVERITIES, Timing, connectivity, evaluate, file_size, latency, peak_memory
from nervure.evaluation.corruptions import expand_names as chosen_corruptions
from nervure.export import FORMATS, Format, export, save, save_state
from nervure.export.gguf import require_tokenizer
from nervure.export.quantising import INT8
from nervure.export.unsaid import PARTS
from nervure.export.writing import TOLERANCE, require_format
from nervure.graph import Graph, count
from nervure.graph.tape import named_tensors
from nervure.integrations.trackers import TRACKERS
from nervure.methods import METHODS, Method, View, method_keeping
from nervure.methods.dynamic.dynamic_sparse import DynamicSparse
from nervure.plan import Plan
from nervure.prune import Pruned, prune
from nervure.recipe import Recipe, Study
from nervure.recipe import compare as compare_methods
from nervure.recipe import run as run_recipe
from nervure.recipe import sweep as sweep_recipe
from nervure.recipe.recipe import TrackSection
from nervure.recipe.steps import write_report_pages
from nervure.recipe.text_windows import TEXT
from nervure.recipe.tracking import open_tracker, require_tracker
from nervure.refit import Refit, refit
from nervure.report import MethodComparison, Report, Sweep, circuit_picture, connectivity_page, graph_page
from nervure.report.comparison_report import comparison_text, write_comparison_pages
from nervure.report.figures import FIGURES, write_figure
from nervure.report.markdown import table_text
from nervure.report.paper import FILES, Found, load_found, write_figures, write_tables
from nervure.report.run_report import in_words
from nervure.report.sweep_report import write_sweep
from nervure.report.table_forms import FORMS
from nervure.report.tables import percent, quantity
from nervure.scores import CRITERIA
from nervure.scores import score as scored
from nervure.sparse import compile_sparse
from nervure.stats import SIGNALS, Stats
from nervure.stats import measure as measure_stats
from nervure.surgery import apply as apply_plan
from nervure.surgery import masks_after
from nervure.surgery import verify as verify_cut
from nervure.training import RewiringHook
from nervure.training import train as train_model

SCORES = Kind("nervure-scores", "scores of units", version=1)
METHOD_HELP = f"One of {', '.join(METHODS)}, or one of your own, package.module:name"
REWIRING = [name for name, method in METHODS.items() if issubclass(method, DynamicSparse)]
LISTENS = frozenset({"gradients", "effects"})
"""Evidence that needs a loss."""
SET = click.option(
    "--set",
    "settings",
    type=setting,
    multiple=True,
    metavar="KEY=VALUE",
    help="Another option of the method or criterion, e.g. norm=2.",
)
GRAPH = click.option("--graph", "graph_file", type=ANYWHERE, help="A graph written by trace.")
STATS = click.option("--stats", "stats_file", type=ANYWHERE, help="Evidence written by measure.")


@main.command(epilog=example("nervure run examples/demo.toml --folder runs/demo"))
@click.argument("recipe", type=ANYWHERE)
@FOLDER
@click.option("--fresh", is_flag=True, help="Begin anew in a folder that was used before.")
@QUIET
def run(recipe: Path, folder: Path | None, fresh: bool, quiet: bool) -> None:
    """Do all that a recipe (TOML) says.

    Train, prune, recover, compare and report. A run that was stopped goes on where it was.
    """
    parsed = Recipe.from_toml(recipe)
    place = folder or Path(parsed.run.folder)
    report = run_recipe(parsed, folder=place, progress=not quiet, resume=not fresh)
    tell(f"\n{report.headline}")
    tell(f"{place / 'report.html'}")


@main.command(
    "prune",
    epilog=example(
        "nervure prune --model resnet8 --data digits --keep 0.5 --epochs 3",
        "nervure prune --model resnet8 --data digits --tolerance 0.01 --refit",
        "nervure prune --model timm:resnet18 --option pretrained=true --data my_data:load --keep 0.5 --method Taylor",
        "nervure prune --model hf:my-bert --data my_data:tokens --task token_classification --refit",
        "nervure prune hf:my-llama --keep 0.75 --data text:my_texts --out smaller-llama",
        "nervure prune --stream hf:my-llama --keep 0.75 --data text:my_texts --out smaller-llama",
    ),
)
@input_options()
@click.argument("network", metavar="[MODEL]", required=False)
@click.option("--method", default="Magnitude", metavar="NAME", help=f"{METHOD_HELP}. Magnitude; of texts Activation.")
@asking
@SET
@click.option(
    "--tolerance",
    type=float,
    default=0.0,
    help="In the place of --keep: as small as costs at most so much before training; 0.01 is a point of accuracy.",
)
@click.option("--strict", is_flag=True, help="The whole interval has to be within the tolerance.")
@click.option("--refit/--no-refit", "fits", default=False, help="Let what stays take over what left, before training.")
@click.option("--epochs", type=click.IntRange(0), default=5, help="Of training after the cut: 5; on texts none.")
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="On texts, what is cut: ffn.")
@click.option("--train-epochs", type=click.IntRange(0), help="Of training before it; else 10, 0 for trained weights.")
@click.option("--lr", type=float, help="The peak learning rate of both; else as in a recipe, 1e-4 for hf: networks.")
@click.option("--optimizer", type=click.Choice(["sgd", "adamw"]), help="Of both; else sgd, adamw for hf: networks.")
@click.option("-o", "--out", type=PAGES, help="The folder of the run; on texts that of the smaller model.")
@click.option("--fresh", is_flag=True, help="Begin anew in a folder that was used before.")
@click.option("--stream", is_flag=True, help="On texts: one layer at a time is in memory; nothing is trained.")
@QUIET
def prune_command(
    choice: NetworkChoice,
    *,
    network: str | None,
    out: Path | None,
    fresh: bool,
    quiet: bool,
    stream: bool,
    parts: tuple[str, ...],
    **told: Any,
) -> None:
    """Write a recipe and run it: train, prune, recover, compare, report.

    The recipe lies in the folder of the run; change it, and go on with `nervure run`. A language model on texts (--data
    text:FILE-OR-FOLDER) is cut alike in all layers, refitted, measured, and written to a folder that transformers
    loads; the run is in the folder of that name and -run. With --stream it need not fit into memory.
    """
    _require_one_amount(told["tolerance"])
    if network and choice.model:
        raise ArgumentError(f"two networks are named, {network!r} and --model {choice.model!r}. Name one.")
    choice = replace(choice, model=network or choice.model)
    if stream:
        how: dict[str, Any] = {"parts": parts, "told": told, "fresh": fresh, "progress": not quiet}
        tell(f"\n{prune_streamed(choice, out, named=named_options(), **how)}")
        return
    if choice.data_name.startswith(TEXT):
        recipe = recipe_for_texts(choice, out, parts=parts, named=named_options(), **told)
    elif parts:
        raise ArgumentError("--part is for a language model on texts: --data text:FILE-OR-FOLDER.")
    else:
        recipe = recipe_from_options(choice, out, **told)
    place = Path(recipe.run.folder)
    report = run_recipe(recipe, folder=place, progress=not quiet, resume=not fresh)
    tell(f"\n{report.headline}")
    tell(f"{place / 'report.html'}")
    if recipe.folder.path:
        tell(f"model: {recipe.folder.path}, which from_pretrained loads")
    tell(f"recipe: {place / 'recipe.toml'}, to be changed and run again in another folder: nervure run ... --folder")


def _require_one_amount(tolerance: float) -> None:
    """Raise ArgumentError where an amount is given, and one is to be looked for too, or nothing says how much."""
    if "tolerance" in named_options() and not 0 < tolerance < math.inf:
        raise ArgumentError(f"--tolerance {tolerance:g} must be above 0, such as 0.001 for a tenth of a point.")
    for name in sorted({"keep", "density", "target"} & named_options()):
        if tolerance:
            raise ArgumentError(f"--tolerance looks for what stays, and --{name} says it. Give one of them.")


@main.command(epilog=example("nervure sweep examples/sweep.toml --folder runs/sweep"))
@click.argument("recipe", type=ANYWHERE)
@click.option("--keep", "keeps", type=float, multiple=True, help="A fraction that stays; several times.")
@click.option("--method", "methods", multiple=True, metavar="NAME", help="A method; several times.")
@click.option("--seed", "seeds", type=SEED, multiple=True, help="A seed; several times.")
@grid_options
def sweep(
    recipe: Path,
    *,
    keeps: tuple[float, ...],
    methods: tuple[str, ...],
    seeds: tuple[int, ...],
    folder: Path | None,
    **how: Any,
) -> None:
    """Try several budgets, methods and seeds on a recipe.

    As [sweep] in the recipe says; what is given here is taken instead. Draws quality against cost, marks the Pareto
    front and suggests its knee. A sweep that was stopped goes on where it was.
    """
    parsed = Recipe.from_toml(recipe)
    place = folder or Path(f"{parsed.run.folder}-sweep")
    found = sweep_recipe(
        parsed,
        keeps=keeps or None,
        methods=methods or None,
        seeds=seeds or None,
        folder=place,
        **how,
    )
    tell(f"\n{table_text(found.table())}\n\n{found.headline}")
    _wrote(place / "sweep.html")


@main.command(epilog=example("nervure compare examples/study.toml --folder runs/study"))
@click.argument("study", type=ANYWHERE)
@grid_options
def compare(study: Path, folder: Path | None, **how: Any) -> None:
    """Compare methods side by side, as a study (TOML) says.

    Same trained networks, same evidence, same recovery, several seeds. A comparison that was stopped goes on where it
    was; new methods are added by naming them in the study.
    """
    parsed = Study.from_toml(study)
    place = folder or Path(parsed.study.folder)
    outcomes = compare_methods(parsed, folder=place, **how)
    text = comparison_text(outcomes, title=parsed.study.title, baseline=parsed.study.baseline)
    tell(f"\n{text}")
    _wrote(place / "comparison.html")


@main.command(epilog=example("nervure trace --model resnet20 --input 1x3x32x32 -o graph.json --html graph.html"))
@input_options(EXAMPLE)
@click.option("--ignore", multiple=True, metavar="PATTERN", help="Modules that must not change, e.g. 'layer1.*'.")
@click.option("--only", multiple=True, metavar="PATTERN", help="Modules that may lose units.")
@click.option("--html", type=PAGE, help="Also write a page.")
@click.option("--plan", "plan_file", type=ANYWHERE, help="Show on the page what this plan would take.")
@output("graph.json", "the graph")
def trace(
    choice: NetworkChoice,
    ignore: tuple[str, ...],
    only: tuple[str, ...],
    html: Path | None,
    plan_file: Path | None,
    out: Path,
) -> None:
    """Find what is coupled to what in a network."""
    _writable(out, html)
    if plan_file is not None and html is None:
        raise ArgumentError("--plan is shown on the page: say with --html where to write that.")
    plan = None if plan_file is None else _plan_from(plan_file)
    graph = choice.graph(choice.network(), ignore=ignore, only=only or None)
    tell(graph.describe())
    _wrote(write_json(out, graph.to_json()))
    if html is not None:
        _wrote(write_text(html, graph_page(graph, choice.model, plan)))


@main.command(epilog=example("nervure measure --model resnet8 --data digits --want activations -o stats.safetensors"))
@input_options(EXAMPLE)
@click.option("--want", multiple=True, metavar="SIGNAL", help=f"One of {', '.join(sorted(SIGNALS))}; several times.")
@click.option("--samples", default=2048, show_default=True, help="How many training samples at most.")
@click.option("--per-class", type=click.IntRange(0), default=0, help="How many of each class at most; 0: no limit.")
@output("stats.safetensors", "the evidence")
def measure(choice: NetworkChoice, want: tuple[str, ...], samples: int, per_class: int, out: Path) -> None:
    """Gather evidence on data: what units say, what enters the layers, how much the loss listens; labels."""
    _writable(out)
    model, data = choice.network(), choice.data()
    batches = data.train.batches(256, shuffle_seed=choice.seed)
    wanted = want or ("activations",)
    graph = choice.graph(model)
    task = choice.task() if choice.task_name or LISTENS & set(wanted) else None
    how: dict[str, Any] = {"want": wanted, "samples": samples, "per_class": per_class, "seed": choice.seed}
    stats = measure_stats(model, graph, batches, task=task, **how)
    kinds = sorted({name.partition(":")[0] for name in stats.want} - {"labels", "outputs"})
    heard = [f"{kind} of {len(getattr(stats, kind))}" for kind in kinds]
    tell(f"{stats.samples} samples; {', '.join(heard) or ', '.join(sorted(stats.want))}")
    for name, reason in stats.skipped.items():
        tell(f"  {name} skipped: {reason}")
    _wrote(stats.save(out))


@main.command(
    epilog=example("nervure score --model resnet20 --input 1x3x32x32 --criterion magnitude -o scores.safetensors")
)
@input_options(EXAMPLE)
@click.option(
    "--criterion",
    default="magnitude",
    show_default=True,
    help=f"One of {', '.join(sorted(CRITERIA))}, or a function of your own, package.module:name.",
)
@SET
@STATS
@output("scores.safetensors", "the scores")
def score(
    choice: NetworkChoice, criterion: str, settings: tuple[tuple[str, Any], ...], stats_file: Path | None, out: Path
) -> None:
    """Give each unit a number; higher stays."""
    _writable(out)
    model = choice.network()
    graph = choice.graph(model)
    stats = Stats.load(stats_file) if stats_file else None
    scores = scored(criterion, graph, dict(named_tensors(model)), stats, **({"seed": choice.seed} | dict(settings)))
    width = max(map(len, scores), default=0)
    tell(f"{'group':<{width}}  units   lowest   median  highest")
    for group, values in scores.items():
        low, middle, high = float(values.min()), float(values.median()), float(values.max())
        tell(f"{group:<{width}}  {len(values):5d} {low:8.3f} {middle:8.3f} {high:8.3f}")
    write_container(out, scores, {"criterion": criterion, "fingerprint": graph.fingerprint}, SCORES)
    _wrote(out)


@main.command(
    epilog=example(
        "nervure plan Magnitude --keep 0.5 --model resnet20 --input 1x3x32x32 -o plan.json",
        "nervure plan SNIP --density 0.1 --model resnet20 --data digits -o plan.json",
        "nervure plan --budget latency --engine eager --target 0.6 --model resnet20 --input 1x3x32x32 -o plan.json",
    )
)
@input_options(EXAMPLE)
@click.argument("name", metavar="[METHOD]", required=False)
@click.option("--method", default="", help=f"{METHOD_HELP}; Magnitude if none is named.")
@asking
@SET
@GRAPH
@STATS
@output("plan.json", "the plan")
def plan(
    choice: NetworkChoice,
    *,
    name: str | None,
    method: str,
    asked: Asked,
    settings: tuple[tuple[str, Any], ...],
    graph_file: Path | None,
    stats_file: Path | None,
    out: Path,
) -> None:
    """Let a METHOD decide what to cut or mask, and show it; nothing is cut."""
    _writable(out)
    if name and method:
        raise ArgumentError(f"two methods are named, {name!r} and --method {method!r}. Name one.")
    chosen = name or method or "Magnitude"
    made = asked.settle(chosen, dict(settings)).method(chosen, dict(settings))
    _require_evidence(made, stats_file, choice)
    model = choice.network()
    graph = _graph_from(graph_file) if graph_file else choice.graph(model)
    weights = {name: tensor.detach() for name, tensor in named_tensors(model).items()}
    shown = choice.example() if choice.inputs is not None or choice.data_name else None
    data = choice.data().train.batches(256, shuffle_seed=choice.seed) if choice.data_name else None
    stats = Stats.load(stats_file) if stats_file else None
    if made.wants and stats is None and data is not None:
        stats = measure_stats(model, graph, data, want=made.wants, task=choice.task(), seed=choice.seed)
    task = choice.task() if data is not None else None
    decided = made.plan(View(graph, weights, stats, choice.seed, model, shown, data, task=task, shows_progress=True))
    tell(decided.describe(graph))
    if "milliseconds" in decided.reached:
        took, share = decided.reached["milliseconds"], decided.reached["keep"]
        tell(f"timed on {decided.asked['engine']}: {took:.3g} ms, {percent(share)} of the dense network")
    _wrote(write_json(out, decided.to_json()))


@main.command(
    epilog=example(
        "nervure plan  --model resnet20 --input 1x3x32x32 --keep 0.5 -o plan.json",
        "nervure apply --model resnet20 --input 1x3x32x32 --plan plan.json -o model.safetensors",
    )
)
@input_options(EXAMPLE)
@click.option("--plan", "plan_file", required=True, type=ANYWHERE, help="A plan written by plan.")
@GRAPH
@click.option("--verify/--no-verify", default=True, show_default=True, help="Check what the cut network computes.")
@output("model.safetensors", "the pruned network")
def apply(choice: NetworkChoice, plan_file: Path, graph_file: Path | None, verify: bool, out: Path) -> None:
    """Cut as a plan says, check the result, save it."""
    _writable(out)
    decided = _plan_from(plan_file)
    model, example = choice.network().eval(), choice.example()
    graph = _graph_from(graph_file) if graph_file else choice.graph(model)
    smaller = apply_plan(model, graph, decided).eval()
    costs = count(model, example), count(smaller, example)
    pruned = Pruned(smaller, decided, graph, *costs, f"plan {plan_file.name}", masks_after(graph, decided))
    if verify:
        pruned = replace(pruned, verification=verify_cut(model, pruned, example).error)
    tell(str(pruned))
    _wrote(save(out, pruned, meta={"model": choice.source().to_json()}))


@main.command(
    "refit",
    epilog=example(
        "nervure refit --file model.safetensors --weights trained.safetensors --data digits -o refitted.safetensors",
    ),
)
@input_options(from_file)
@click.option("--samples", type=click.IntRange(1), default=1024, show_default=True, help="Training samples to fit on.")
@SET
@output("refitted.safetensors", "the refitted network")
def refit_command(choice: NetworkChoice, samples: int, settings: tuple[tuple[str, Any], ...], out: Path) -> None:
    """Let what stays of a pruned network take over what left, without labels and before any training.

    Each layer of the network of --file is fitted to say what the dense one, with its --weights, says on the data.
    --set takes the choices of nervure.Refit: ridge, positions, streams, norms, masks.
    """
    _writable(out)
    if not choice.file or not choice.weights:
        raise ArgumentError(
            "a refit takes the pruned network, --file model.safetensors, and the dense one that it was cut from, "
            "--weights trained.safetensors."
        )
    how = Refit(**{"seed": choice.seed, **dict(settings), "samples": samples})
    batches = choice.data().train.batches(256, shuffle_seed=choice.seed)
    found = refit(choice.pruned(), batches, reference=choice.network().eval(), task=choice.task(), how=how)
    tell(found.describe())
    _wrote(save(out, found.result, meta={"model": choice.source().to_json()}))


@main.command(
    epilog=example(
        "nervure train --model resnet8 --data digits --epochs 3 -o trained.safetensors",
        "nervure train --file model.safetensors --data digits --epochs 3 -o recovered.safetensors",
        "nervure train --model resnet8 --data digits --rewire RigL --density 0.1 -o sparse.safetensors",
    )
)
@input_options(from_file)
@click.option("--epochs", type=click.IntRange(1), default=5, show_default=True)
@click.option("--lr", type=float, default=0.05, show_default=True, help="Peak learning rate.")
@click.option("--batch-size", type=BATCH, default=128, show_default=True)
@click.option("--augment", is_flag=True, help="Shift and mirror the images.")
@click.option("--precision", type=click.Choice(["float32", "bf16"]), default="float32", show_default=True)
@click.option("--rewire", metavar="METHOD", help=f"Drop and grow connections meanwhile: {', '.join(REWIRING)}.")
@click.option("--density", type=float, help="With --rewire, the fraction of the weights that stays.")
@SET
@click.option("--track", type=click.Choice(list(TRACKERS)), help="Where to tell how it goes.")
@click.option(
    "--track-option",
    "track_options",
    type=setting,
    multiple=True,
    metavar="KEY=VALUE",
    help="Option of the tracker, e.g. project=mine.",
)
@click.option("--events", type=PAGE, help="With --rewire, write what happened (JSON lines).")
@output("trained.safetensors", "the trained network")
def train(  # noqa: PLR0913 - one for each option
    choice: NetworkChoice,
    *,
    epochs: int,
    lr: float,
    batch_size: int,
    augment: bool,
    precision: str,
    rewire: str | None,
    density: float | None,
    settings: tuple[tuple[str, Any], ...],
    track: str | None,
    track_options: tuple[tuple[str, Any], ...],
    events: Path | None,
    out: Path,
) -> None:
    """Train a network; masks hold, or are rewired.

    With --file, train a pruned network saved before. With --rewire, begin with a sparse one, by lot or as the file has
    it.
    """
    _writable(out, events)
    tracking = _tracking(track, dict(track_options))
    method = _rewiring(rewire, density, dict(settings), fresh=not (choice.file or choice.weights))
    data, source, purpose = choice.data(), choice.source(), choice.purpose()
    pruned = choice.pruned() if choice.file else None
    if method is not None and pruned is None:
        pruned = prune(choice.network(), choice.example(), method, seed=choice.seed, progress=False)
    model = pruned.model if pruned else choice.network()
    with open_tracker(tracking, out.parent) or nullcontext() as tracker:
        history = train_model(
            model,
            data.train.batches(batch_size, shuffle_seed=choice.seed, augment=augment),
            task=purpose.task,
            objective=purpose.task,
            epochs=epochs,
            lr=lr,
            masks=pruned.masks if pruned else None,
            validation=data.validation.batches(500),
            precision="bf16" if precision == "bf16" else "float32",
            seed=choice.seed,
            hooks=[] if method is None else [RewiringHook(method, log=events)],
            callbacks=[] if tracker is None else [tracker],
        )
    for epoch, (loss, quality) in enumerate(zip(history.loss, history.validation, strict=True), start=1):
        told = f"accuracy {percent(quality)}" if purpose.tells_classes else f"loss {quality:.4f}"
        tell(f"epoch {epoch}: loss {loss:.4f}, validation {told}")
    meta = {"model": source.to_json()}
    if pruned is None:
        _wrote(save_state(out, model, meta=meta))
        return
    if method is not None:
        happened = history.events[1:]
        dropped, grown = sum(event.dropped for event in happened), sum(event.grown for event in happened)
        pruned = replace(pruned.with_masks(history.masks), cost_after=count(model, choice.example()))
        tell(f"{len(happened)} events: {dropped:,} connections dropped, {grown:,} grown")
        tell(f"{pruned.cost_after.nonzero:,} of {pruned.cost_after.params:,} parameters are not 0")
    _wrote(save(out, pruned, meta=meta))


def _tracking(name: str | None, options: dict[str, Any]) -> TrackSection:
    """Where a training is told, before anything is read; raises where that is not there."""
    if options and not name:
        raise ArgumentError(f"--track-option {next(iter(options))}: it needs --track.")
    section = TrackSection(name or "", options)
    require_tracker(section)
    return section


@main.command(
    "evaluate",
    epilog=example(
        "nervure evaluate --file model.safetensors --data digits --batch 1 --batch 64",
        "nervure evaluate --file model.safetensors --data digits --batch 64 --engine eager --engine onnxruntime",
        "nervure evaluate --model resnet8 --weights trained.safetensors --data digits --shift all --severity 3",
        "nervure evaluate --file model.safetensors --data cifar10 --root data --shift-root data/CIFAR-10-C",
    ),
)
@input_options(from_file)
@click.option("--batch", "batches", type=BATCH, multiple=True, help="Also time a forward pass of so many.")
@click.option(
    "--engine",
    "engines",
    multiple=True,
    metavar="NAME",
    help=f"What runs it then: {', '.join(ENGINES)}; several times.",
)
@click.option("--shift", multiple=True, metavar="NAME", help="Also under corruption: all, a kind (noise), a name.")
@click.option("--severity", type=click.IntRange(1, 5), multiple=True, help="Of the corruptions; default: 1 to 5.")
@click.option("--shift-root", type=PAGES, help="A folder of corrupted test data to take instead: CIFAR-10-C, ...")
@click.option("--samples", type=click.IntRange(0), default=0, help="Test samples under corruption; 0: all.")
@click.option("--cache", type=PAGES, help="A folder where answers under --shift are kept, for the next time.")
@click.option("--sparse", is_flag=True, help="Also time it compiled for its zeros, which --batch must be given for.")
@output("", "the numbers (JSON)")
def evaluate_command(
    choice: NetworkChoice,
    *,
    batches: tuple[int, ...],
    engines: tuple[str, ...],
    sparse: bool,
    shift: tuple[str, ...],
    shift_root: Path | None,
    severity: tuple[int, ...],
    samples: int,
    cache: Path | None,
    out: Path | None,
) -> None:
    """Measure a network's quality, size and speed; with --shift, how good it stays when the data change.

    With --file, that of a pruned network saved before.
    """
    _writable(out)
    _require_timing(batches, engines, sparse=sparse)
    levels = severity or SEVERITIES
    names = chosen_corruptions(shift) if shift and shift_root is None else shift
    model = choice.ready().eval()
    wanted: Any = names
    if shift_root is not None:
        test = choice.images().test
        wanted = choice.load_corrupted(shift_root, test, names=names or None, severities=levels, samples=samples)
    example = choice.example()
    cost = count(model, example)
    quality = _tell_quality(choice, model)
    numbers: dict[str, Any] = {**quality, "params": cost.params, "nonzero": cost.nonzero, "macs": cost.macs}
    tell(f"parameters  {cost.params:,}; multiply-accumulates {cost.macs:,}")
    memory = {batch: peak_memory(model, example, batch=batch) for batch in batches or (1,)}
    numbers |= {"bytes": file_size(model), "memory": {str(batch): asdict(m) for batch, m in memory.items()}}
    tell(f"file        {quantity(numbers['bytes'], 'B')}")
    for batch, m in memory.items():
        parts = f"{quantity(m.weights, 'B')} of weights, {quantity(m.activations, 'B')} of activations at the peak"
        tell(f"memory      {parts} at batch {batch}")
    if batches:
        timed = _time_engines(model, example, batches, engines or ("eager",), sparse=sparse)
        numbers["latency"] = [asdict(row) for row in timed]
    if wanted:
        test = choice.images().test
        shown = test.sample(samples or len(test), seed=choice.seed).batches(500)
        shifted = evaluate(model, shown, shift=wanted, severities=levels, seed=choice.seed, cache=cache)
        numbers["shift"] = shifted.to_json()
        tell(shifted.describe())
    if out is not None:
        _wrote(write_json(out, numbers))


def _tell_quality(choice: NetworkChoice, model: nn.Module) -> dict[str, Any]:
    """Measure and tell what the task says, or else accuracy, loss and calibration."""
    batches, task = choice.data().test.batches(500), choice.task()
    if task is None:
        found = evaluate(model, batches)
        tell(f"accuracy    {percent(found.accuracy)} of {found.samples} test samples")
        tell(f"loss, ECE   {found.loss:.4f}, {found.ece:.4f}")
        return found.to_json()
    measured = evaluate(model, batches, task=task)
    for name, value in measured.items():
        better = "higher" if task.higher_is_better[name] else "lower"
        tell(f"{in_words(name):<11} {value:.4g} ({better} is better)")
    return {"task": task.name, "metrics": {name: v if math.isfinite(v) else None for name, v in measured.items()}}


def _require_timing(batches: Sequence[int], engines: Sequence[str], *, sparse: bool) -> None:
    if sparse and not batches:
        raise ArgumentError("--sparse without --batch: say for how many samples at once it is to be fast, --batch 64.")
    if sparse and engines and "eager" not in engines:
        raise ArgumentError("--sparse is for PyTorch itself: leave --engine, or add --engine eager.")
    if engines and not batches:
        raise ArgumentError("--engine without --batch: say how many samples at once are to be timed, --batch 64.")
    for engine in engines:
        require_engine(engine)


def _time_engines(
    model: nn.Module, example: Example, batches: Sequence[int], engines: Sequence[str], *, sparse: bool
) -> list[Timing]:
    """Time forward passes by engine, and say so; with ``sparse`` also of the model compiled for its zeros."""
    threads = [torch.get_num_threads()]
    rows: list[Timing] = []
    for batch in batches:
        models = {"model": model}
        if sparse:
            compiled = compile_sparse(model, Inputs.of(example).resize(batch), verbose=False)
            tell(compiled.describe())
            models["sparse"] = compiled
        rows += latency(models, example, batch_sizes=[batch], threads=threads).rows if "eager" in engines else ()
    others = [engine for engine in engines if engine != "eager"]
    if others:
        rows += latency({"model": model}, example, batch_sizes=batches, threads=threads, engine=others).rows
    for row in rows:
        name = " compiled for its zeros" if row.name == "sparse" else ""
        where = "" if row.engine == "eager" else f" in {row.engine}"
        tell(f"latency     {1e3 * row.median:.3g} ms at batch {row.batch}{name}{where}")
    return rows


@main.command(
    "connectivity",
    epilog=example(
        "nervure connectivity --model resnet20 --input 1x3x32x32 --html connectivity.html",
        "nervure connectivity --file model.safetensors --input 1x3x32x32 --reference dense",
    ),
)
@input_options(EXAMPLE, from_file)
@click.option(
    "--reference", default="", metavar="dense|from_file", help="Compare with the network as it was, or its weights."
)
@click.option("--strength", default="l2", show_default=True, help="Of a kernel: l2, l1, mean or binary.")
@click.option("--normalize", default="none", show_default=True, help="The Laplacian of heat: none, meandeg or sym.")
@click.option("--json", "out", type=PAGE, help="Write all numbers.")
@click.option("--html", type=PAGE, help="Write a page.")
@click.option("--picture", type=PAGE, help="Write the picture of the page (.svg or .pdf).")
def connectivity_command(
    choice: NetworkChoice,
    reference: str,
    strength: str,
    normalize: str,
    out: Path | None,
    html: Path | None,
    picture: Path | None,
) -> None:
    """Tell which units of a network still hear its input and are heard at its output.

    Dense or sparse: a connection is there where a weight is not 0. With --file, a pruned network saved before.
    """
    _writable(out, html, picture)
    model = choice.pruned() if choice.file else choice.network()
    shown, before = choice.example(), _reference(choice, reference)
    options: dict[str, Any] = {"strength": strength, "normalize": normalize}
    found = connectivity(model, shown, reference=before, **options)
    tell(found.describe())
    name = choice.model or choice.file
    if out is not None:
        _wrote(write_json(out, found.to_json()))
    if html is not None:
        _wrote(write_text(html, connectivity_page(found, name)))
    if picture is not None:
        _wrote(write_figure(picture, circuit_picture(found, title=name)))


def _reference(choice: NetworkChoice, reference: str) -> nn.Module | None:
    if not reference:
        return None
    return (choice if reference == "dense" else replace(choice, weights=reference)).network()


@main.command(
    "export",
    epilog=example(
        "nervure export --file model.safetensors --data digits -o model.onnx",
        "nervure export --file model.safetensors --data digits --precision int8 -o model.xml",
        "nervure export --model resnet20 --input 1x3x32x32 -o resnet20.pt2",
        "nervure export --model hf:my-llama --input 1x32:long --precision q8_0 -o llama.gguf",
    ),
)
@input_options(EXAMPLE, from_file)
@click.option("--format", "form", help=f"One of {', '.join(FORMATS)}; else as the name of the file says.")
@click.option(
    "--precision", default="float32", show_default=True, help="Also bf16, int8, float16, q8_0, as the format can."
)
@click.option("--fixed", is_flag=True, help="For as many samples as the example has, not for any number.")
@click.option("--samples", type=click.IntRange(1), default=512, show_default=True, help="Test samples to check on.")
@click.option("--calibrate", type=click.IntRange(1), default=256, show_default=True, help="Training samples for int8.")
@click.option("--tolerance", type=float, help=f"Largest difference allowed; for float32 {TOLERANCE:g}.")
@click.option("--tokenizer", type=ANYWHERE, help="For gguf: a folder with tokenizer.json, or a GGUF; else --model's.")
@click.option("--notes", type=PAGE, help="Numbers for the card (JSON), such as evaluate writes.")
@output("model.onnx", "the file")
def export_command(
    choice: NetworkChoice,
    *,
    form: str | None,
    precision: str,
    fixed: bool,
    samples: int,
    calibrate: int,
    tolerance: float | None,
    tokenizer: Path | None,
    notes: Path | None,
    out: Path,
) -> None:
    """Write a network for another engine, and check that the file computes the same.

    On random inputs, and with --data on its test samples too. A card stands beside the file: what was pruned, costs,
    differences, checksums.
    """
    words = _tokenizer_for(require_format(out, form, precision), tokenizer, choice)
    _writable(out)
    if precision == INT8 and not choice.data_name:
        raise ArgumentError("--precision int8 learns the ranges of activations from data: give --data NAME.")
    noted = read_json(notes, "numbers written by nervure evaluate") if notes else {}
    model = choice.pruned() if choice.file else choice.network()
    data = choice.data() if choice.data_name else None
    done = export(
        model,
        choice.example(),
        out,
        format=form,
        precision=precision,
        dynamic=False if fixed else None,
        check=data.test.sample(samples, seed=choice.seed).batches(64) if data else None,
        calibration=data.train.sample(calibrate, seed=choice.seed).batches(32) if data else None,
        tolerance=tolerance,
        tokenizer=words,
        notes=noted | {"command": command_line()},
    )
    tell(str(done))
    for path in done.files:
        _wrote(path)


def _tokenizer_for(form: Format, tokenizer: Path | None, choice: NetworkChoice) -> Any:
    """The tokenizer as given, or that of the folder that the network comes from; raises where it is missing."""
    if not form.decoders:
        return tokenizer
    library, _, name = choice.model.partition(":")
    found = Path(name) if tokenizer is None and library == "hf" and Path(name).is_dir() else tokenizer
    return require_tokenizer(found)


@main.command(
    "report", epilog=example("nervure report runs/demo", "nervure report runs/sweep --tables latex --figures pdf")
)
@click.argument("source", type=ANYWHERE)
@click.option("--folder", type=PAGES, help="Where the pages go; else beside it.")
@click.option(
    "--tables", multiple=True, type=click.Choice(list(FORMS)), help="Also every table as that; several times."
)
@click.option("--figures", multiple=True, type=click.Choice(FIGURES), help="Every figure so; several times.")
def report_command(source: Path, folder: Path | None, tables: tuple[str, ...], figures: tuple[str, ...]) -> None:
    """Write the pages of a report again, and its tables and figures for a paper.

    SOURCE is a report.json, sweep.json or comparison.json, or the folder that holds one; out come HTML and Markdown,
    and what is asked for in folders of their own beside them.
    """
    names = [name for name in FILES if os.path.exists(source / name)] if os.path.isdir(source) else []
    file = source / (names or FILES)[0] if os.path.isdir(source) else source
    found = load_found(file)
    place = require_folder(folder or file.parent)
    tell(found.headline)
    pages = _write_pages(found, place)
    for path in (
        *pages,
        *write_tables(found, place / "tables", tables),
        *write_figures(found, place / "figures", figures),
    ):
        _wrote(path)


def _write_pages(found: Found, folder: Path) -> tuple[Path, ...]:
    match found:
        case Report():
            return write_report_pages(found, folder)
        case Sweep():
            return write_sweep(found, folder)
        case MethodComparison():
            return write_comparison_pages(found, folder)


def _rewiring(
    name: str | None, density: float | None, settings: dict[str, Any], *, fresh: bool
) -> DynamicSparse | None:
    """The method that rewires, if any; the weights of a network that was trained keep their size."""
    if name is None:
        if density is not None or settings:
            raise ArgumentError(f"--density and --set are the rewiring method's: name one, --rewire {REWIRING[0]}.")
        return None
    method = method_keeping(name, settings, keep=0.1, budget="params", density=density)
    if not isinstance(method, DynamicSparse):
        raise ArgumentError(f"--rewire {name!r} does not rewire while training. Name one of {', '.join(REWIRING)}.")
    return method if fresh else replace(method, rescale=False)


def _graph_from(path: Path) -> Graph:
    return Graph.from_json(read_json(path, "a graph written by nervure trace"))


def _plan_from(path: Path) -> Plan:
    return Plan.from_json(read_json(path, "a plan written by nervure plan"))


def _require_evidence(method: Method, path: Path | None, choice: NetworkChoice) -> None:
    if method.wants and path is None and not choice.data_name:
        wanted = " ".join(f"--want {signal}" for signal in sorted(method.wants))
        raise ArgumentError(
            f"{method!r} needs evidence: give --data NAME to measure now, or run nervure measure {wanted}, "
            "then give --stats from_file."
        )


def _writable(*paths: Path | None) -> None:
    """Complain now, not after the work is done."""
    for path in paths:
        if path is not None:
            require_writable(path)


def _wrote(path: Path) -> None:
    tell(f"wrote {path}")
