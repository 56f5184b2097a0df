"""What a cut changes beside removing units is told wherever the cut is."""

import torch
from torch import Tensor, nn

from nervure import Magnitude, Plan, trace
from nervure.graph.tape import named_tensors
from nervure.methods import View
from nervure.prune import Step
from nervure.recipe.summary import widths
from nervure.report import Report, Row, to_html, to_markdown


class Normed(nn.Module):
    """Two norms over the units of one group, none over another's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.other = nn.Linear(4, 8), nn.LayerNorm(8), nn.LayerNorm(8)
        self.second, self.last = nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.other(self.one(self.first(x)).relu())).relu())


NOTE = "in one is taken over the survivors (and 1 more)"


def test_plan_and_graph_tell_the_notes_of_what_they_cut() -> None:
    model, example = Normed().eval(), torch.randn(2, 4)
    graph = trace(model, example)
    assert NOTE in graph.describe()
    plan = Magnitude(keep=0.5).plan(View(graph, {n: t.detach() for n, t in named_tensors(model).items()}, model=model))
    assert {cut.group for cut in plan.cuts} == {"first", "second"}
    assert plan.describe(graph).count("note:") == 1 and NOTE in plan.describe(graph)
    assert "note:" not in Plan(tuple(c for c in plan.cuts if c.group == "second")).describe(graph)


def test_a_report_tells_the_notes_of_groups_that_were_cut() -> None:
    model, example = Normed().eval(), torch.randn(2, 4)
    graph = trace(model, example)
    plan = Magnitude(keep=0.5).plan(View(graph, {n: t.detach() for n, t in named_tensors(model).items()}, model=model))
    rows = {"dense": Row(), "pruned": Row()}
    for decided, times in ((plan, 1), (Plan(), 0)):
        report = Report("", "", {}, decided, rows, widths(graph, [Step(graph, decided)]))
        assert Report.from_json(report.to_json()) == report
        assert to_markdown(report).count(NOTE) == to_html(report).count(NOTE) == times
