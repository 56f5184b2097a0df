"""What is done with a value that was read: a file may be well formed, and name what is not there."""

import dataclasses
from pathlib import Path
from typing import Any

import nervure
from benchmarks.torture_seeds import example, latencies, model, survey, view
from nervure import Cut, Drop, Keep, Mask, Plan
from nervure.budget.latency_table import LatencyTable, LatencyTally, Rates
from nervure.core.files import read_json, write_json
from nervure.methods.snacs.snacs import SNACS
from nervure.methods.snacs.survey import ConnectivityEvidence
from nervure.recipe.results import read_outcomes
from nervure.report import Report
from nervure.report.comparison_report import write_comparison
from nervure.report.html import to_html
from nervure.report.markdown import to_markdown


def save_plans(folder: Path) -> None:
    """A plan of each kind of edit, with the graph that it is for."""
    graph = nervure.trace(model(), example())
    linked = nervure.N2NSkip(density=0.5, share=0.25).plan(view())
    half = {"inner": Keep.of([place % 2 == 0 for place in range(8)])}
    tensor = model().get_parameter("outer.weight")
    plans = {
        "cut": Plan(tuple(Cut(name, keep) for name, keep in half.items()), graph.fingerprint),
        "mask": Plan((Mask("outer.weight", Keep.of(tensor.abs() > tensor.abs().median())),), graph.fingerprint),
        "drop": Plan((Drop(graph.blocks[0].name),), graph.fingerprint),
        "link": linked,
    }
    for name, plan in plans.items():
        (folder / name).mkdir()
        write_json(folder / name / "graph.json", graph.to_json())
        write_json(folder / name / "plan.json", plan.to_json())


def carry_out(folder: Path) -> Any:
    """Carry a plan out, on the graph beside it, and run what comes of it."""
    graph = nervure.Graph.from_json(read_json(folder / "graph.json"))
    plan = Plan.from_json(read_json(folder / "plan.json"))
    smaller = nervure.apply(model(), graph, plan)
    return smaller, smaller(example()), plan.describe(graph), graph.macs(), graph.params()


def save_table(folder: Path) -> None:
    """A table of latencies for the small network."""
    rates = {name: Rates(0.1, 0.1, 0.1) for name in LatencyTally.of(view().graph, 8).families}
    write_json(folder / "table.json", dataclasses.replace(latencies(), rates=rates).to_json())


def predict(folder: Path) -> Any:
    """What a table says of a plan, and a plan that meets a latency by it."""
    table = LatencyTable.from_json(read_json(folder / "table.json"))
    graph = view().graph
    return table.predict(graph, Plan((), graph.fingerprint)), table.engine


def plan_by_stats(folder: Path) -> Any:
    """What a method decides by evidence from a file."""
    stats = nervure.Stats.load(folder / "stats.safetensors")
    return nervure.Activation(keep=0.5).plan(dataclasses.replace(view(), stats=stats))


def decide_by_survey(folder: Path) -> Any:
    """What SNACS decides by a survey from a file."""
    return SNACS(keep=0.5, granularity="kernels").decide(
        view(), ConnectivityEvidence.load(folder / "connectivity.safetensors")
    )


def save_survey(folder: Path) -> None:
    """A survey."""
    survey().save(folder / "connectivity.safetensors")


def show_report(folder: Path) -> Any:
    """The pages of a report."""
    report = Report.load(folder / "report.json")
    return to_html(report), to_markdown(report)


def show_results(folder: Path) -> Any:
    """The pages of a comparison."""
    outcomes = list(read_outcomes(folder / "results.jsonl"))
    write_comparison(outcomes, folder, title="t", baseline="SNACS")
    return sorted(path.name for path in folder.iterdir())
