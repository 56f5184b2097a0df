"""Tables and figures for a paper: the same in every form, whatever the names are."""

import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from nervure import Plan
from nervure.cli import main
from nervure.core.markup import latex, sheet_cell
from nervure.errors import ArgumentError, FileError, MissingExtraError
from nervure.report import Point, Report, Row, Table, figures_of, format_table, tables_of, write_figures, write_tables
from nervure.report.figures import standalone, to_pdf, write_figure
from nervure.report.paper import load_found
from nervure.report.tables import MISSING

NASTY = r'a&b_c%d|e,f"g"' + "'h'\n\\i{j}$k#l^m~n<o>[p]*q`r --s →"
TABLE = Table(("method", "points & more"), ((NASTY, "+1.20 ± 0.30"), ("=1+1", MISSING), ("-3", "1.4×")))


def report(**values: Any) -> Report:
    rows = {"dense": Row(accuracy=0.9, params=10, macs=20), "pruned": Row(accuracy=0.8, params=5, macs=10)}
    curves = {"dense": (Point(1, 1.0, 0.5), Point(2, 0.5, 0.6)), NASTY: (Point(1, 0.7, 0.55),)}
    evidence = {
        "layers": {NASTY: [[0.1, 0.9], [0.4, 0.2]]},
        "limits": {"fc": {"shares": [0.0, 1.0], "quality": [0.9, 0.1], "upper": 0.5}},
    }
    usual = {"title": NASTY, "method": "M", "recipe": {}, "plan": Plan((), "abc"), "rows": rows, "curves": curves}
    return Report(**(usual | {"evidence": evidence} | values))


class Cells(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and data.strip():
            self.rows[-1][-1] += data


def test_every_form_has_every_cell() -> None:
    one_line = NASTY.replace("\n", r"\n")
    read = list(csv.reader(io.StringIO(format_table(TABLE, "csv"))))
    assert read == [list(TABLE.head), [one_line, "+1.20 ± 0.30"], ["'=1+1", ""], ["-3", "1.4×"]]
    assert Cells(format_table(TABLE, "html")).rows[1:] == [[NASTY, "+1.20 ± 0.30"], ["=1+1", MISSING], ["-3", "1.4×"]]
    assert len(re.findall(r"(?<!\\)\|", format_table(TABLE, "markdown").splitlines()[2])) == 3
    assert format_table(TABLE, "markdown").endswith("\n")


def test_latex_is_a_table_whose_cells_do_nothing() -> None:
    lines = format_table(TABLE, "latex").splitlines()
    assert lines[1:4] == [r"\begin{tabular}{lr}", r"\toprule", r"method & points \& more \\"]
    assert lines[-1] == r"\end{tabular}"
    for line in lines[5:-2]:
        assert len(re.findall(r"(?<!\\)&", line)) == 1
        assert line.endswith(r" \\")
        bare = re.sub(
            r"\\[a-z]+|\\[{}$&#_%]|\$\\?[-a-z]+\$|\{[^{}]*\}", "", line.removesuffix(r" \\").replace(" & ", "")
        )
        assert not set('\\{}$&#_%^~<>|[]*`"').intersection(bare) - {"]"}
    assert "−" not in latex("-3") and latex("-3") == "$-$3"
    assert latex("--x") == "-{}-x"


@pytest.mark.parametrize("cell", ["=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-2+cmd|' /C calc'!A0", " =1", "-x y"])
def test_a_cell_that_a_sheet_would_compute_is_text(cell: str) -> None:
    assert sheet_cell(cell) == f"'{cell}"


@pytest.mark.parametrize("cell", ["-0.5", "+1.20 ± 0.30 (n=3)", "1.4x", "name", "", "+4.00"])
def test_a_cell_of_numbers_stays(cell: str) -> None:
    assert sheet_cell(cell) == cell


def test_an_empty_table_is_an_empty_text_and_a_form_that_is_none_is_refused() -> None:
    assert {format_table(Table(("a",), ()), form) for form in ("csv", "markdown", "latex", "html")} == {""}
    with pytest.raises(ArgumentError, match="'xls' is not one of 'csv', 'markdown', 'latex', 'html'"):
        format_table(TABLE, "xls")


def test_tables_are_written_once_for_each_form(tmp_path: Path) -> None:
    assert write_tables(report(), tmp_path / "none", ()) == ()
    assert not (tmp_path / "none").exists()
    paths = write_tables(report(), tmp_path / "t", ("csv", "latex"))
    assert {p.suffix for p in paths} == {".csv", ".tex"}
    assert len(paths) == 2 * len(tables_of(report())) == len(list((tmp_path / "t").iterdir()))
    assert all(p.read_text() for p in paths)
    with (tmp_path / "t" / "table-numbers.csv").open() as file:
        (dense, pruned) = csv.DictReader(file)
    assert (dense["accuracy"], pruned["macs"]) == ("0.9", "10")


def test_every_figure_of_a_report_is_an_svg_that_needs_no_page(tmp_path: Path) -> None:
    found = figures_of(report())
    assert list(found)[:3] == ["quality", "accuracy", "loss"]
    assert len(found) == 5
    for svg in found.values():
        root = ElementTree.fromstring(svg)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        style = root.find("{http://www.w3.org/2000/svg}style")
        assert style is not None and style.text is not None
        assert "var(" not in style.text
        assert "prefers-color-scheme:dark" in style.text
        assert standalone(svg) == svg
    paths = write_figures(report(), tmp_path, ("svg",))
    assert [p.read_text() for p in paths] == list(found.values())


def test_without_svglib_a_pdf_is_refused_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "svglib.svglib", None)
    with pytest.raises(MissingExtraError, match=r"pip install '\.\[pdf\]'"):
        write_figure(tmp_path / "a.PDF", next(iter(figures_of(report()).values())))
    assert write_figure(tmp_path / "a.svg", "<svg><title>t</title></svg>").read_text().startswith("<svg xmlns")


def test_what_svglib_gets_is_light_plain_and_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A double in its place: what is ours is what it is given, and the page that is asked for."""
    given: list[str] = []

    class Drawing:
        width, height = 480.0, 290.0
        moved = (0.0, 0.0)

        def getBounds(self) -> tuple[float, float, float, float]:
            return -10.0, 5.0, 500.0, 280.0

        def translate(self, x: float, y: float) -> None:
            self.moved = x, y

    drawn = Drawing()

    def module(name: str, **content: Any) -> None:
        made = ModuleType(name)
        vars(made).update(content)
        monkeypatch.setitem(__import__("sys").modules, name, made)

    module("svglib")
    module("svglib.svglib", svg2rlg=lambda file: given.append(file.read().decode()) or drawn)
    module("svglib.fonts", register_font=lambda *_args, **_how: None)
    module("reportlab")
    module("reportlab.graphics", renderPDF=type("", (), {"drawToString": lambda *_a, **_k: b"%PDF"}))
    assert to_pdf(figures_of(report())["accuracy"]) == b"%PDF"
    assert "@media" not in given[0] and "#0072b2" in given[0] and "#63b8ec" not in given[0]
    assert "system-ui" not in given[0] and "font-weight: 600" not in given[0]
    assert drawn.moved == (12.0, 2.0)
    assert (drawn.width, drawn.height) == (514.0, 294.0)


def test_a_pdf_is_the_same_twice_and_has_its_font_within(tmp_path: Path) -> None:
    pytest.importorskip("svglib")
    for svg in figures_of(report()).values():
        assert to_pdf(svg) == to_pdf(svg)
        assert to_pdf(svg).startswith(b"%PDF")
    assert b"BitstreamVeraSans" in to_pdf(figures_of(report())["accuracy"])


def test_the_command_line_writes_what_is_asked_for_beside_the_pages(tmp_path: Path) -> None:
    report().save(tmp_path / "report.json")
    done = CliRunner().invoke(main, ["report", str(tmp_path), "--tables", "latex", "--figures", "svg"])
    assert done.exit_code == 0, done.output
    names = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.*")}
    assert {"report.html", "tables/table-comparison.tex", "figures/figure-loss.svg"} <= names
    assert "wrote" in done.output


def test_what_is_no_report_sweep_or_comparison_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"kind": "other"}')
    with pytest.raises(FileError, match="Give report.json, sweep.json, comparison.json"):
        load_found(tmp_path / "x.json")
