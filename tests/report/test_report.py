"""A report says what happened, the same in every form, and its page needs nothing but itself."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nervure import Cut, Plan, trace
from nervure.errors import FileError
from nervure.report import Point, Report, Row, Width, graph_page, to_html, to_markdown
from nervure.report.charts import line_chart, nice_ticks, slug
from nervure.report.connectivity_charts import limits, matrices
from nervure.report.figures import NAMESPACE
from nervure.report.quality_chart import quality_chart
from nervure.report.rewiring_charts import event_lines, events_chart, similarity_chart
from nervure.report.shift_section import caption, picture_uri
from nervure.report.shift_section import table as shift_table
from nervure.report.tables import comparison, pinned_groups, speed, stays
from nervure.report.words import PageWords
from nervure.zoo import build

NASTY = "<script>alert(1)</script> & | `x`"


def row(**values: Any) -> Row:
    usual = {"accuracy": 0.9, "loss": 0.3, "ece": 0.02, "samples": 2000, "params": 1000, "nonzero": 1000}
    return Row(**(usual | {"macs": 10_000, "bytes": 4000} | values))


def report(**values: Any) -> Report:
    usual: dict[str, Any] = {
        "title": "Magnitude on resnet8, digits",
        "method": "Magnitude(keep=0.5)",
        "recipe": {"model": {"name": "resnet8", "factory": ""}, "run": {"seed": 3}},
        "plan": Plan((Cut("conv1", [True, False]),), "abc", {"keep": 0.5, "budget": "macs"}, {"keep": 0.48}),
        "rows": {
            "dense": row(latency={"1": 2.0}, speedup={"1": 1.0}),
            "pruned": row(accuracy=0.896, macs=4800, params=600, nonzero=600, latency={"1": 1.4}, speedup={"1": 1.43}),
            "dense+": row(accuracy=0.905),
            "random": row(accuracy=0.88, macs=4800),
        },
        "widths": (Width("conv1", 2, 1), Width("fc", 10, 10, "model output")),
        "curves": {"dense": (Point(1, 1.0, 0.8), Point(2, 0.5, 0.9)), "pruned": (Point(1, 0.6, 0.89),)},
        "verification": {"cut": 1e-7, "saved": None},
        "provenance": {"seed": 3, "torch": "2"},
        "notes": ("A note.",),
    }
    return Report(**(usual | values))


class Page(HTMLParser):
    """Collects what a page refers to and which tags are open."""

    VOID = frozenset({"meta", "link", "br", "img", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_headline_says_it_in_one_sentence() -> None:
    expected = "52 % of the multiply-accumulates removed, accuracy 90.0 → 89.6 %, 1.4x faster at batch 1"
    assert report().headline == expected


@pytest.mark.parametrize(
    ("pruned", "words"),
    [
        ({"macs": 10_000, "nonzero": 300}, "70 % of the weights zeroed"),
        ({"macs": 10_000}, "nothing removed"),
        ({"speedup": {"1": 0.8}}, "slower (0.8x as fast at batch 1)"),
        ({"speedup": {"1": 1.3}, "speedup_low": {"1": 0.9}, "speedup_high": {"1": 1.5}}, "no measurable speed-up"),
        ({"speedup": {"1": 0.9}, "speedup_low": {"1": 0.8}, "speedup_high": {"1": 1.1}}, "no measurable speed-up"),
        ({"speedup": {"1": 1.2, "64": 2.0}}, "2.0x faster at batch 64"),
    ],
)
def test_the_headline_promises_nothing_that_was_not_measured(pruned: dict[str, Any], words: str) -> None:
    assert words in report(rows={"dense": row(), "pruned": row(**pruned)}).headline


def test_the_headline_leaves_out_what_was_not_measured() -> None:
    bare = report(rows={"dense": row(accuracy=None), "pruned": row(accuracy=None, macs=100)}).headline
    assert bare == "99 % of the multiply-accumulates removed"


def test_a_report_survives_a_round_trip(tmp_path: Path) -> None:
    assert Report.from_json(report().to_json()) == report()
    assert Report.from_json(json.dumps(report().to_json())) == report()
    assert Report.load(report().save(tmp_path / "report.json")) == report()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"kind": "nervure-report"}', '{"kind": "nervure-report", "format": 99}', '{"kind": "other"}'],
)
def test_what_is_no_report_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(FileError):
        Report.load(tmp_path / "report.json")


def test_the_page_is_whole_and_refers_to_nothing_outside() -> None:
    text = to_html(report())
    page = Page(text)
    assert page.open == []
    assert page.links and all(link.startswith("#word-") for link in page.links)
    assert all(f'id="{link[1:]}"' in text for link in page.links)
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert not re.search(r"https?://|@import|url\(", text.replace(NAMESPACE, ""))


def test_the_page_shows_every_part() -> None:
    text = to_html(report()).replace("&nbsp;", " ")
    for words in (
        report().headline,
        "dense+",
        "random",
        "conv1",
        "2 → 1",
        "model output",
        "1.0e-07",
        "not made",
        "A note.",
    ):
        assert words in text
    assert text.count("<svg") == 3


def test_names_cannot_break_the_page() -> None:
    nasty = report(
        title=NASTY,
        method=NASTY,
        widths=(Width(NASTY, 4, 2), Width("b", 4, 4, NASTY)),
        rows=dict(report().rows) | {NASTY: row()},
        curves={NASTY: (Point(1, 1.0, 0.5),)},
        notes=(NASTY,),
        provenance={NASTY: NASTY},
    )
    page = Page(to_html(nasty))
    assert "script" not in page.tags
    assert page.open == []


def test_a_report_without_extras_still_makes_a_page() -> None:
    bare = Report("t", "m", {}, Plan(), {"dense": row(), "pruned": row()})
    assert Page(to_html(bare)).open == []
    assert to_html(bare).count("<svg") == 1  # quality against cost
    assert to_markdown(bare).startswith("# t\n")


def test_markdown_tables_have_as_many_cells_in_every_row() -> None:
    text = to_markdown(report(method=NASTY, widths=(Width("a|b", 4, 2),)))
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) >= 4
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block}) == 1


def test_what_stays_is_a_fraction_of_the_dense_network() -> None:
    shares = stays(report())
    assert shares["multiply-accumulates"] == pytest.approx(0.48)
    assert shares["parameters"] == pytest.approx(0.6)
    assert shares["latency, batch 1"] == pytest.approx(1.4 / 2.0)
    assert "non-zero parameters" not in shares


def test_engines_have_a_table_of_their_own_and_the_comparison_the_first() -> None:
    places = {"1": 2.0, "64": 9.0, "1 in openvino": 0.5}
    dense = {"1": 1.0, "64": 81.0, "1 in openvino": 0.25}
    timed = report(rows={name: row(latency=found) for name, found in (("dense", dense), ("pruned", places))})
    assert comparison(timed).head[-2:] == ("ms, batch 1", "ms, batch 64")
    assert speed(timed).rows[-1] == ("openvino", "1", "0.25 (1.00x)", "0.5 (0.50x)")
    assert "9.0x faster at batch 64" in timed.headline
    assert not speed(report()).rows


def test_zeroed_weights_are_told_from_removed_ones() -> None:
    masked = report(rows={"dense": row(), "pruned": row(nonzero=250)})
    assert stays(masked)["parameters"] == 1
    assert stays(masked)["non-zero parameters"] == pytest.approx(0.25)


def test_what_was_not_measured_is_left_open_in_the_comparison() -> None:
    table = comparison(report(rows={"dense": row(), "pruned": row(accuracy=None, loss=None, ece=None, bytes=0)}))
    assert table.rows[1][1:4] == ("–", "–", "–")
    assert all(len(cells) == len(table.head) for cells in table.rows)


def test_pinned_groups_are_gathered_by_their_reason() -> None:
    widths = (Width("a", 2, 2, "output"), Width("b", 2, 2, "output"), Width("c", 1, 1, "a single unit"))
    assert pinned_groups(report(widths=widths)) == {"output": ("a", "b"), "a single unit": ("c",)}


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(-1e6, 1e6)), min_size=1, max_size=20))
def test_charts_are_well_formed_and_stay_in_their_frame(points: list[tuple[int, float]]) -> None:
    drawn = ElementTree.fromstring(line_chart({"dense": points, "pruned": points[:1]}, title="a & b", x_label="epoch"))
    marks = [mark for mark in drawn.iter("path") if "dot" in mark.attrib["class"]]
    assert len(marks) == len(points) + 1
    assert len({mark.attrib["d"] for mark in marks}) == 2  # a shape for each line
    for mark in marks:
        x, y = map(float, re.findall(r"translate\(([-\d.]+) ([-\d.]+)\)", mark.attrib["transform"])[0])
        assert 0 <= x <= 480
        assert 0 <= y <= 290


def test_names_at_line_ends_do_not_overlap() -> None:
    same = [(1.0, 1.0), (2.0, 2.0)]
    drawn = ElementTree.fromstring(line_chart({name: same for name in "abcd"}, title="t", x_label="x"))
    heights = sorted(float(t.attrib["y"]) for t in drawn.iter("text") if t.attrib["class"].startswith("name"))
    assert all(b - a >= 14 for a, b in pairwise(heights))


def test_a_chart_of_nothing_is_nothing() -> None:
    assert line_chart({"dense": []}, title="t", x_label="x") == ""


@given(st.floats(-1e9, 1e9), st.floats(0, 1e9))
def test_ticks_cover_what_they_should_and_rise(low: float, span: float) -> None:
    ticks = nice_ticks(low, low + span)
    width = max(ticks[-1] - ticks[0], 1e-9)
    assert ticks[0] <= low + 1e-6 * width
    assert ticks[-1] >= low + span - 1e-6 * width
    assert all(b > a for a, b in pairwise(ticks))


def test_the_twins_have_classes_of_their_own() -> None:
    assert slug("dense+") != slug("dense")


def test_a_graph_makes_a_page() -> None:
    graph = trace(build("resnet8", width=0.25), torch.randn(1, 3, 16, 16))
    text = graph_page(graph, NASTY)
    assert Page(text).open == []
    assert NASTY not in text and text.count("<script>") == 1  # its own, which searches
    assert all(group.name in text for group in graph.groups)


EVIDENCE: dict[str, Any] = {
    "layers": {"conv1.weight": [[0.0], [0.1]], "conv2.weight": [[0.0, 0.4], [0.9, 0.1]]},
    "sizes": {"conv2.weight": [64, 64]},
    "limits": {"conv1": {"shares": [0.0, 0.5, 0.9], "quality": [0.9, 0.8, 0.1], "upper": 0.5}},
    "protected": {"conv1": [1], "conv2": []},
}


def test_connectivity_is_drawn_where_a_method_tells_of_it() -> None:
    page = to_html(report(evidence=EVIDENCE))
    assert "64 children, 64 parents" in page
    assert "limit 50 %, went 50 %" in page
    assert "conv1.weight" not in page.split("<h2>Connectivity</h2>")[1].split("</section>")[0]
    assert "Protected" in page
    assert "Connectivity" not in to_html(report())
    for picture in (*matrices(report(evidence=EVIDENCE)), *limits(report(evidence=EVIDENCE))):
        ElementTree.fromstring(picture.svg)


def test_stronger_connections_are_darker() -> None:
    (picture,) = matrices(report(evidence=EVIDENCE))
    shades = {
        path.get("d"): float(path.get("fill-opacity", 0)) for path in ElementTree.fromstring(picture.svg).iter("path")
    }
    assert shades["M0 1h1v1h-1z"] == 1.0
    assert shades["M0 1h1v1h-1z"] > shades["M1 0h1v1h-1z"] > shades["M1 1h1v1h-1z"]
    assert not any("M0 0" in str(cells) for cells in shades)


def test_evidence_survives_a_file(tmp_path: Path) -> None:
    told = report(evidence=EVIDENCE)
    assert Report.load(told.save(tmp_path / "report.json")) == told


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_in_a_page_is_the_picture(channels: int) -> None:
    image = pytest.importorskip("PIL.Image")
    picture = torch.randint(0, 256, (channels, 8, 12), dtype=torch.uint8)
    data = base64.b64decode(picture_uri(picture.float() / 255).partition(",")[2])
    shown = image.open(io.BytesIO(data))
    assert shown.mode == {1: "L", 3: "RGB"}[channels]
    small = shown.resize((12, 8), image.Resampling.NEAREST)
    levels = torch.tensor(list(small.tobytes()), dtype=torch.uint8).view(8, 12, channels).permute(2, 0, 1)
    assert torch.equal(levels, picture)


def test_the_events_of_a_method_that_rewires_are_drawn() -> None:
    start = {"kind": "start", "step": 0, "density": 0.2, "dropped": 0, "grown": 0, "weights": 50}
    events = [start, start | {"kind": "rewire", "step": 4, "density": 0.3, "grown": 5}]
    assert event_lines(events) == {"density": [(0, 20.0), (4, 30.0)], "grown": [(4, 10.0)]}
    assert events_chart(events).count("<polyline") == 2
    assert not events_chart([start]) and not events_chart([])


def test_how_alike_runs_are_is_drawn_darker_the_more_it_exceeds_chance() -> None:
    picture = similarity_chart(["a<b", "c"], [[1.0, 0.6], [0.6, 1.0]], 0.2)
    assert picture.count("<rect") == 4 and "a&lt;b" in picture and "chance 20 %" in picture
    assert [shade.split('"')[0] for shade in picture.split('fill-opacity="')[1:]] == ["1.00", "0.50", "0.50", "1.00"]


def test_a_network_has_one_clean_accuracy_where_fewer_samples_were_corrupted() -> None:
    one = {"mean": 0.5, "interval": [0.4, 0.6], "mce": 1.0, "relative_mce": 1.0, "accuracy": {"fog": 0.5}}
    networks = {"dense": {**one, "clean": 0.8}, "pruned": {**one, "clean": 0.7}}
    shifted = report(shift={"severities": [3], "samples": 500, "networks": networks, "original": [], "pictures": {}})
    assert shift_table(shifted).rows[0] == ("clean", "90.0 %", "89.6 %")
    assert "500 of the 2,000 test samples" in caption(shifted) and "on these 500" in caption(shifted)
    assert "80.0 %" not in to_html(shifted)


def test_networks_stand_by_quality_and_cost_in_the_colours_of_the_page_with_the_front() -> None:
    drawn = ElementTree.fromstring(quality_chart(report()))
    told = {title.text for title in drawn.iter("{http://www.w3.org/2000/svg}title")}
    assert {"dense: 90.00 % at 100.0 %", "pruned: 89.60 % at 48.0 %"} <= told
    front = next(line for line in drawn.iter() if line.get("class") == "f")
    assert len(front.attrib["points"].split()) == 2  # pruned, dense+: the random twin and the dense network are beaten
    masked = quality_chart(report(rows={"dense": row(), "pruned": row(nonzero=250)}))
    assert "parameters that are not zero" in masked and "at 25.0 %" in masked
    assert quality_chart(report(rows={"dense": row(), "pruned": row(accuracy=None)})) == ""


def test_a_task_without_accuracy_is_drawn_by_its_first_metric() -> None:
    rows = {"dense": Row(macs=10, metrics={"rmse": 0.5}), "pruned": Row(macs=5, metrics={"rmse": 0.6})}
    told = report(rows=rows, task={"name": "regression", "reason": "", "higher_is_better": {"rmse": False}})
    assert "Rmse (lower is better)" in quality_chart(told)
    assert "±" not in to_html(told).split("<h2>Comparison</h2>")[1].split("</section>")[0]


def test_words_are_explained_once_and_only_those_that_stand_on_the_page() -> None:
    text = to_html(report())
    assert re.findall(r'<dt id="word-\d+">([^<]*)</dt>', text).count("ECE") == 1
    assert "relative mCE" not in text
    assert PageWords().link("<b>") == "&lt;b&gt;"
