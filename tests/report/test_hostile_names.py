"""A name shows as it is written, in every form of output, and does nothing: no tag, no link, no other shape."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from torch import nn

from nervure import Cut, Drop, Keep, Mask, Plan, connectivity, trace
from nervure.core.markup import code, code_block, escape_markdown, html, listing, printable, table
from nervure.export.card import Card
from nervure.report import Point, Report, Row, Width, circuit_picture, graph_page, to_html, to_markdown
from nervure.report import connectivity_page as circuit_page
from nervure.report.charts import file_names
from nervure.report.comparison import Outcome, TimedSetting
from nervure.report.comparison_report import (
    MethodComparison,
    comparison_charts,
    comparison_page,
    comparison_text,
    write_comparison,
)
from nervure.report.connectivity_charts import connectivity_page
from nervure.report.shift_section import strips
from nervure.report.sweep_report import Sweep, sweep_page, sweep_text, write_sweep

HARMLESS = "conv1"
HOSTILE = [
    "<img src=x onerror=alert(1)>", "</td></tr></table><script>alert(1)</script>", "[x](javascript:alert(1))",
    "![x](http://evil/x.png)", "<http://evil>", "http://evil", "www.evil.org", "a@evil.org", "a|b", "`a|b`", "``", "`",
    "**a**", "_a_", "__a__", "a_b_", "~~a~~", "~~~", "```", "# a", "- a", "+ a", "* a", "1. a", "1) a", "> a", "---",
    "===", "***",
    "    a", "\ta", "a\n\n# b", "a\r\n- b", "a  \nb", "\\", "a\\", "\\|", "&lt;b&gt;", "&#60;b&#62;", "&copy",
    "[a]: http://evil", "[^1]", "<!-- a", "<?php", "<![CDATA[", "$a$",
    "{a}`b`", "\x1b[31ma\x1b[0m", "\x1b]0;a\x07", "\x00",
    "\u202egnp.exe", "a\u2028b", "\x85a",
    '" onmouseover="alert(1)', "' onmouseover='alert(1)", "{{ 7 * 7 }}", "{% raw %}",
    "=cmd|' /C calc'!A0", "[red]a[/red]", "../../etc/passwd", "a" * 300, " a ", "é–→", "\ud800",
]  # fmt: skip
NAMES = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(alphabet="ab1 \n\t\\`*_[]()<>!|~#+-=.:/@$&;\"'{}wxm\x1b\u202e", max_size=24),
    st.lists(st.sampled_from(HOSTILE), min_size=2, max_size=3).map("".join),
)
COMMON = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def shape(text: str) -> list[tuple[str, str]]:
    """What Markdown is made of, without its words."""
    tokens = [inner for token in COMMON.parse(text) for inner in (token, *(token.children or ()))]
    return [(token.type, token.tag) for token in tokens if token.type != "text"]


def words(text: str) -> list[str]:
    """The words of each paragraph, cell and so on."""
    inlines = (token.children or [] for token in COMMON.parse(text) if token.type == "inline")
    return ["".join(child.content for child in children) for children in inlines]


class Tags(HTMLParser):
    """What a page is made of: its tags with their attributes, without its words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.values: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(name for name, _ in attrs)))
        self.values += [value or "" for _, value in attrs]
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@given(NAMES)
def test_markdown_shows_a_name_as_it_is_written_wherever_it_stands(name: str) -> None:
    shown = [printable(name).strip()]
    assert words(f"x {escape_markdown(name)}") == [f"x {shown[0]}".strip()] and shape(
        f"x {escape_markdown(name)}"
    ) == shape("x a")
    if escape_markdown(name):
        for form in ("{}", "- {}", "- {}: b", "1. {}", "> {}", "## x {}", "x, {}: y"):
            assert shape(form.format(escape_markdown(name))) == shape(form.format(HARMLESS)), form
        assert words(escape_markdown(name)) == words(f"- {escape_markdown(name)}") == shown
    assert not re.search(r"(?<!\\)(?:\\\\)*://|(?i:www)(?<!\\)(?:\\\\)*\.|(?<!\\)(?:\\\\)*@", escape_markdown(name))


@given(NAMES, NAMES)
def test_a_table_keeps_its_shape(name: str, other: str) -> None:
    text = table(["", name], [[other, name], ["x", other]])
    assert shape(text) == shape(table(["", "a"], [["b", "c"], ["x", "b"]]))
    assert words(text) == ["", *(printable(n).strip() for n in (name, other, name, "x", other))]


@given(NAMES)
def test_code_shows_a_name_as_it_is_written(name: str) -> None:
    span = COMMON.parseInline(f"x {code(name)} y")[0].children or []
    inner = [token.content for token in span if token.type == "code_inline"]
    assert inner == ([printable(name)] if name else [])
    (block,) = COMMON.parse(code_block(name))
    assert (block.type, block.content) == ("fence", listing(name.split("\n")) + "\n")


@given(NAMES)
def test_html_shows_a_name_as_it_is_written(name: str) -> None:
    page = Tags(f'<p title="{html(name)}">{html(name)}</p>')
    assert page.found == [("p", ("title",))]
    assert page.values == ["".join(page.words)] == [listing(name.split("\n"))]
    ElementTree.fromstring(f'<p title="{html(name)}">{html(name)}</p>')


@given(NAMES)
def test_what_is_printed_prints(name: str) -> None:
    assert printable(name).isprintable()
    assert printable(name).encode().decode() == printable(name)


def report(name: str) -> Report:
    row = Row(accuracy=0.9, macs=100, params=10, nonzero=5, bytes=4, samples=9, latency={f"1 in {name}": 1.0})
    return Report(
        title=name,
        method=name,
        recipe={"model": {"name": name, name: name}},
        plan=Plan(
            (Cut(name, [True, False]), Mask(name, Keep.of(torch.tensor([True, False]))), Drop(name)), asked={name: name}
        ),
        rows={"dense": row, "pruned": row},
        widths=(Width(name, 2, 1, "", (name,)), Width(name, 2, 2, name)),
        curves={"dense": (Point(1, 1.0, 0.5),), "pruned": (Point(1, 1.0, 0.5),)},
        verification={name: 1e-7},
        provenance={name: name, "again": name},
        notes=(name,),
        evidence={
            "layers": {name: [[0.1, 0.2], [0.3, 0.4]]},
            "limits": {name: {"upper": 0.5, "shares": [0.1], "quality": [0.2]}},
            "protected": {name: [1]},
        },
        shift={
            "severities": [1],
            "samples": 4,
            "networks": {
                n: {
                    "clean": 0.5,
                    "mean": 0.4,
                    "interval": [0.3, 0.5],
                    "mce": 1,
                    "relative_mce": 1,
                    "accuracy": {name: 0.1},
                }
                for n in ("dense", name)
            },
            "original": [name],
            "pictures": {name: ["data:image/png;base64,AAAA", name, "http://evil/x.png"]},
        },
    )


def outcomes(name: str) -> list[Outcome]:
    known = {"accuracy": 0.5, "macs": 9, "params_kept": 0.5, "provenance": {"commit": name}}
    return [
        Outcome(f"{m}{seed}", name, m, seed, 0.5, "macs", validation=v, macs_kept=k, **known)  # type: ignore[arg-type]
        for m, v, k in (("dense", 0.9, 1.0), (name, 0.5, 0.5), ("B", 0.3, 0.4))
        for seed in (0, 1)
    ]


def sweep(name: str) -> Sweep:
    rows = outcomes(name)
    timed = {row.key: TimedSetting({name: 1.0}, {name: 1.0}) for row in rows}
    return Sweep.of(rows, timed, title=name, recipe={"model": {"name": name}}, folder=name, failures={name: name})


class Named(nn.Module):
    """Layers of that name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.add_module(name.replace(".", "") or "x", nn.Linear(3, 4))
        self.add_module("last", nn.Linear(4, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, last = self.children()
        return last(first(x).relu())  # type: ignore[no-any-return]


def card(name: str) -> Card:
    file = {"name": name, "format": "torch", "precision": "float32", "samples": None, "bytes": 3, "sha256": "a"}
    step = {"method": name, "edits": {"cuts": 1}, "reached": {name: name}}
    return Card(
        {
            "model": name,
            "file": file,
            "files": [file],
            "inputs": [{"name": name, "dtype": "float32", "shape": [1]}],
            "usage": name,
            "pruning": {"steps": [step], "verification": None},
            "costs": {"before": {"params": 1, "nonzero": 1, "macs": 1}},
            "verification": {},
            "notes": {name: {name: name}},
            "provenance": {name: name},
        }
    )


MARKDOWN: dict[str, Callable[[str], str]] = {
    "report": lambda name: to_markdown(report(name)),
    "comparison": lambda name: comparison_text(outcomes(name), title=name, baseline="B"),
    "sweep": lambda name: sweep_text(sweep(name), {name: "x.svg"}),
    "card": lambda name: card(name).to_markdown(),
}
PAGES: dict[str, Callable[[str], str]] = {
    "report": lambda name: to_html(report(name)),
    "sweep": lambda name: sweep_page(sweep(name)),
    "graph": lambda name: graph_page(trace(Named(name), torch.ones(1, 3)), name),
    "circuit": lambda name: circuit_page(connectivity(Named(name), torch.ones(1, 3)), name),
    "connectivity": lambda name: connectivity_page(report(name).evidence),
    "picture": lambda name: circuit_picture(connectivity(Named(name), torch.ones(1, 3)), title=name),
    "comparison": lambda name: "".join(comparison_charts(outcomes(name), baseline="B").values()),
    "comparison page": lambda name: comparison_page(MethodComparison(name, "B", tuple(outcomes(name)))),
}


@pytest.mark.parametrize("form", MARKDOWN)
def test_markdown_of_hostile_names_is_made_of_what_that_of_harmless_ones_is(form: str) -> None:
    wanted = shape(MARKDOWN[form](HARMLESS))
    for name in HOSTILE:
        assert shape(MARKDOWN[form](name)) == wanted, name


@pytest.mark.parametrize("form", PAGES)
def test_a_page_of_hostile_names_is_made_of_what_that_of_harmless_ones_is(form: str) -> None:
    wanted = Tags(PAGES[form](HARMLESS))
    for name in HOSTILE:
        text = PAGES[form](name)
        assert (Tags(text).found, Tags(text).links) == (wanted.found, wanted.links), name
        assert listing(text.split("\n")) == text, name


def test_pictures_come_from_the_report_itself() -> None:
    assert strips(report("x"))["x"] == ["data:image/png;base64,AAAA"]


def test_files_of_charts_stay_in_their_folder(tmp_path: Path) -> None:
    (folder := tmp_path / "out").mkdir()
    for name in HOSTILE:
        write_sweep(sweep(name), folder)
        write_comparison(outcomes(name), folder, title=name, baseline="B")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert all(path.is_file() and len(path.name) < 100 for path in folder.iterdir())


def test_names_that_look_alike_as_files_have_files_of_their_own() -> None:
    assert file_names("c", ["a/b", "a-b", "a b"]) == {"a/b": "c-a-b.svg", "a-b": "c-a-b-1.svg", "a b": "c-a-b-2.svg"}


def test_what_describes_itself_in_a_terminal_keeps_its_lines() -> None:
    for made in (trace, connectivity):
        lines = made(Named(HARMLESS), torch.ones(1, 3)).describe().count("\n")
        for name in HOSTILE:
            text = made(Named(name), torch.ones(1, 3)).describe()
            assert listing(text.split("\n")) == text and text.count("\n") == lines, name
