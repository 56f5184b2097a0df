"""The pages of the reference: which names stand on which page. Sphinx writes them into docs/reference/ when it builds.

A page is a line of ``PAGES``. A name of ``nervure`` that no line mentions is an error, so that none is left out; an
object stands where it is named first.
"""

import importlib
import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from sphinx.pycode import ModuleAnalyzer

import nervure
from nervure.methods import METHODS

FOLDER = Path(__file__).parent / "reference"


@dataclass(frozen=True)
class Page:
    """A page: its title, names of ``nervure``, then what modules show, and pages that say more.

    Attributes:
        names: dotted names below ``nervure``.
        modules: modules below ``nervure``, each with all that it shows, as far as no page before has it.
        whole: modules that are read without the libraries that they need.
        see: other pages, with the words for the link.
        found: words of the index that lead here.
    """

    title: str
    names: str = ""
    modules: str = ""
    whole: str = ""
    see: tuple[tuple[str, str], ...] = ()
    found: str = ""


SECTIONS = "Model Data Task Train Prune Refit Recover Evaluate Run Sweep Track Folder"
METHODS_PAGE = ("methods/index", "which function is which equation")
PAGES: dict[str, Page] = {
    "prune": Page("prune", "prune Pruned", see=(("tutorial", "tutorial"), ("howto/choosing_keep", "choosing keep"))),
    "prune_folder": Page(
        "prune_folder",
        "prune_folder streaming.StreamedFolder streaming.StreamedLayer",
        see=(("language_models", "a smaller language model"),),
    ),
    "trace": Page("trace and count", "trace count Cost", see=(("concepts", "concepts"),)),
    "smallest": Page("smallest", "smallest Smallest", see=(("how_small", "how small can it get?"),)),
    "apply": Page("apply, verify, compact", "apply verify compact surgery.Verification"),
    "refit": Page(
        "refit",
        "refit Refit Refitted refit.settings.RefitChoices refit.settings.LayerFit refit.settings.BranchFit",
        "refit refit.surgeon",
        see=(("refit", "refit"),),
    ),
    "evaluate": Page("evaluate", "evaluate evaluation.Metrics", see=(("tasks", "your task"),)),
    "save": Page("save and load", "save load export.save_state export.load_state export.read_header"),
    "export": Page(
        "export", "export", "export", see=(("export", "other engines"),), found="ONNX, OpenVINO, ExecuTorch"
    ),
    "measure": Page("measure", "measure Stats", "stats"),
    "train": Page(
        "train and hold", "train hold training.masks_of training.same_everywhere training.Held training.History"
    ),
    "distributed": Page("distributed", modules="distributed", see=(("distributed", "several processes, one model"),)),
    "run": Page("run", "run Recipe", see=(("cli", "command line"),)),
    "sweep": Page("sweep and compare", "sweep Sweep compare Study", see=(("sweep", "trials"),)),
    "connectivity": Page("connectivity", "connectivity Connectivity evaluation.LayerPaths evaluation.live_weights"),
    "similarity": Page("similarity", "similarity Similarity"),
    "latency": Page("latency", "latency latency_table LatencyTable evaluation.Latency evaluation.Timing"),
    "compile_sparse": Page("compile_sparse", "compile_sparse", "sparse", see=(("sparse_speed", "speed from masks"),)),
    "rule": Page("rule", "rule", "rules", see=(("rules", "operations of your own"),)),
    "plan": Page("Plan and its edits", "Plan Cut Mask Drop Link Keep"),
    "graph": Page(
        "Graph",
        "Graph Group Block graph.types.TensorAxis graph.types.Units graph.types.Axis graph.types.OpCost "
        "graph.types.Edge graph.types.SizeAttribute",
    ),
    "inputs": Page("Inputs", "Inputs"),
    "report": Page("Report", "Report", see=(("sweep", "trials"),)),
    "errors": Page("Errors", modules="errors", see=(("what_went_wrong", "what went wrong"),)),
    "arguments": Page("Checked arguments", "core.check.checked core.check.Checked core.progress.ending"),
    "method": Page(
        "View and Method", "methods.View methods.Method methods.method_from", "methods", see=(METHODS_PAGE,)
    ),
    "scores": Page("Scores", modules="scores scores.saliency", see=(("extend/criterion", "a criterion of your own"),)),
    "parents": Page("Dependence on parents", "scores.parent_dependence.of_layers"),
    "budget": Page("Budgets", modules="budget budget.weight_masks", see=(("extend/budget", "a budget of your own"),)),
    "random_masks": Page("Masks by lot", modules="methods.masks.random_baseline"),
    "guidance": Page("Guidance", modules="methods.gcnet.guidance", see=(("methods/gcnet", "GCNet"),)),
    "dependence": Page(
        "Dependence", modules="dependence dependence.student", see=(("methods/dependence", "measures of dependence"),)
    ),
    "dynamic": Page(
        "Rules of rewiring",
        "training.dynamic.growth.GROWTH training.dynamic.growth.Reading training.dynamic.growth.Ask "
        "training.dynamic.growth.random_growth training.dynamic.growth.gradient_growth "
        "training.dynamic.growth.link_growth training.dynamic.growth.strategic_growth",
        "training.dynamic.drop_rules training.dynamic.sites training.dynamic.counts",
        see=(("methods/rewiring", "rewiring"),),
    ),
    "training": Page("Training", modules="training", see=(("sparse_training", "training sparse in your own loop"),)),
    "integrations": Page(
        "In the loops of others",
        modules="integrations.trackers",
        whole="integrations.lightning integrations.transformers integrations.ultralytics",
        see=(("integrations/index", "in other people's loops"),),
    ),
    "tasks": Page("Tasks", modules="tasks", see=(("tasks", "your task"),), found="custom loss"),
    "evaluation": Page("Evaluation", modules="evaluation evaluation.tolerance", see=(("shift", "under shift"),)),
    "analysis": Page(
        "Networks of neurons",
        "analysis.neuron_graph.NeuronGraph analysis.neuron_graph.NodeSet analysis.neuron_graph.EdgeSet "
        "analysis.neuron_graph.WeightUse analysis.heat.Laplacian analysis.heat.LaplacianBlock",
        "analysis.paths",
        see=(("connectivity", "connectivity"),),
    ),
    "engines": Page("Engines", modules="engines", see=(("extend/engine", "an engine of your own"),)),
    "recipe": Page(
        "Sections of a recipe",
        " ".join(f"recipe.recipe.{name}Section" for name in SECTIONS.split()),
    ),
    "study": Page(
        "Sections of a study",
        " ".join(f"recipe.study.{n}" for n in ("StudySection", "NetworkEntry", "MethodEntry", "Trial")),
    ),
    "outcomes": Page(
        "Outcomes and comparisons",
        modules="report.outcome report.comparison report.comparison_report report.paired report.front",
    ),
    "papers": Page(
        "Tables and figures", modules="report.paper report.table_forms report.figures report.connectivity_charts report"
    ),
    "zoo": Page("Zoo", modules="zoo"),
}
PAGES |= {f"methods/{n.lower()}": Page(n, n, see=(METHODS_PAGE,)) for n in nervure.__all__ if n in METHODS}


def shown(module: ModuleType) -> list[str]:
    """The names that a module shows: those it lists, or else its own, and constants that it says something about."""
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    constants = [name for name in described(module.__name__) if name in vars(module) and name not in own]
    listed = getattr(module, "__all__", None)
    return [*own, *constants] if listed is None else list(listed)


def described(module: str) -> list[str]:
    """The variables of a module that have a docstring below them."""
    return [name for owner, name in ModuleAnalyzer.for_module(module).find_attr_docs() if not owner]


def find(dotted: str) -> Any:
    """What a dotted name below ``nervure`` stands for."""
    owner, _, name = f"nervure.{dotted}".rpartition(".")
    return getattr(importlib.import_module(owner), name)


def directive(dotted: str, value: Any) -> str:
    """What makes Sphinx document a name; nothing, where there is no word to show."""
    if inspect.isclass(value):
        return f".. autoclass:: nervure.{dotted}\n   :members:\n"
    if inspect.isroutine(value):
        return f".. autofunction:: nervure.{dotted}\n"
    owner, _, name = f"nervure.{dotted}".rpartition(".")
    return f".. autodata:: nervure.{dotted}\n   :no-value:\n" if name in described(owner) else ""


def names_of_modules(page: Page) -> Iterator[str]:
    """The dotted names of what the modules of a page show, as far as there is a word about it."""
    for path in page.modules.split():
        module = importlib.import_module(f"nervure.{path}")
        public = (name for name in shown(module) if not name.startswith("_") and getattr(module, name).__doc__)
        yield from (f"{path}.{name}" for name in public)


def introduce(path: str) -> str:
    """The words above a module. Where a function has the name of a module, the name stays the function's."""
    collides = callable(getattr(nervure, path, None))
    return f".. automodule:: nervure.{path}\n" + "   :no-index:\n" * collides


def write_page(slug: str, page: Page, seen: set[int]) -> str:
    """The text of a page, with what is not on another; ``seen`` grows by what is."""
    up = "../" * (slug.count("/") + 1)
    heading = [f"# {page.title}"]
    if page.found:
        heading.append(f"```{{index}} {page.found}\n```")
    if page.see:
        heading.append("See also: " + ", ".join(f"[{words}]({up}{at}.md)" for at, words in page.see) + ".")
    body = [introduce(path) for path in page.modules.split()]
    body += [directive(dotted, find(dotted)) for dotted in page.names.split()]
    for dotted in names_of_modules(page):
        value = find(dotted)
        if id(value) not in seen:
            seen.add(id(value))
            body.append(directive(dotted, value))
    body += [f".. automodule:: nervure.{path}\n   :members:\n" for path in page.whole.split()]
    return "\n\n".join([*heading, "```{eval-rst}\n" + "\n".join(filter(None, body)) + "```"]) + "\n"


def require_all(names: Iterable[str], pages: dict[str, Page]) -> None:
    """Refuse a table that leaves out a public name."""
    there = {name for page in pages.values() for name in page.names.split()}
    if missing := sorted(set(names) - there):
        raise ValueError(f"no page of the reference has {', '.join(missing)}: add them to PAGES of docs/reference.py")


def write_pages(folder: Path = FOLDER) -> bool:
    """Write the pages that are not as they were, and remove those that are none; whether there were any."""
    require_all(nervure.__all__, PAGES)
    # What a page names belongs to it, whatever modules come before.
    named = {name: id(find(name)) for page in PAGES.values() for name in page.names.split()}
    seen, changed = set(named.values()), False
    for slug, page in PAGES.items():
        text = write_page(slug, page, seen)
        path = folder / f"{slug}.md"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            changed = True
    for path in folder.rglob("*.md"):
        if path.relative_to(folder).with_suffix("").as_posix() not in PAGES:
            path.unlink()
            changed = True
    return changed
