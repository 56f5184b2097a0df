"""What the README and the documentation show is what happens."""

import doctest
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from docs.headlines import README, rows_of, with_tables
from nervure.cli import main
from nervure.core.version import __version__
from nervure.recipe import Recipe, Study

ROOT = Path(__file__).parent.parent
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
# The pages on other libraries are run where these are: tests/integrations/test_pages.py.
PAGES = [page for page in PAGES if not {"_build", "results", "integrations"} & {*page.relative_to(ROOT).parts}]
CHANGELOG = ROOT / "CHANGELOG.md"
BEST = "## The best criterion, chosen by pictures held out"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def snippets(page: Path, language: str = "python") -> Iterator[tuple[int, str]]:
    """Line number and text of every block of a page in that language."""
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        if match.group(1) == language:
            yield text.count("\n", 0, match.start(2)), match.group(2)


def pages_with(language: str) -> list[Any]:
    """The pages that have blocks in that language, as parameters of a test."""
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES if list(snippets(page, language))]


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every call of the command ``nervure`` on a page."""
    for _, text in snippets(page, "sh"):
        lines = (shlex.split(line, comments=True) for line in text.splitlines())
        yield from (words[1:] for words in lines if words[:1] == ["nervure"])


def run_dialogue(page: Path, line: int, text: str, names: dict[str, Any]) -> None:
    """Run a block of ``>>>`` examples; what they print must be what the page shows."""
    parsed = doctest.DocTestParser().get_doctest(text, names, page.name, str(page), line)
    runner = doctest.DebugRunner(verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    runner.run(parsed, clear_globs=False)
    # doctest works on a copy: carry the names on to the next block of the page.
    names.update(parsed.globs)


@pytest.mark.parametrize("page", pages_with("python"))
def test_the_code_on_the_page_runs_from_top_to_bottom(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__page__"}
    for line, text in snippets(page):
        if text.lstrip().startswith(">>>"):
            run_dialogue(page, line, text, names)
        else:
            # Blank lines in front, so that a traceback points at the line of the page.
            exec(compile("\n" * line + text, str(page), "exec"), names)


@pytest.mark.parametrize("page", pages_with("sh"))
def test_the_commands_on_the_page_exist_with_their_options(page: Path) -> None:
    main.load()
    for name, *rest in commands(page):
        if name.startswith("-"):
            continue
        # Reads the words without doing the work; raises on an unknown option or a value out of range.
        main.commands[name].make_context(name, rest, parent=click.Context(main)).close()


@pytest.mark.parametrize("page", pages_with("toml"))
def test_the_recipes_on_the_page_can_be_read(page: Path) -> None:
    for _, text in snippets(page, "toml"):
        assert (Study if "[study]" in text else Recipe).from_toml(text).data.name


def test_the_tables_of_the_readme_are_those_of_the_results() -> None:
    text = README.read_text(encoding="utf-8")
    assert with_tables(text) == text, "run: python -m docs.headlines"


def leads(heading: str) -> dict[str, int]:
    """For each network that was held out in how many budgets SNACS is ahead of all that is not of its sizes."""
    found: dict[str, int] = {}
    for row in rows_of("held_out.md", heading):
        if row["network"].startswith("*"):
            continue
        arms = {name: float(value.strip("*")) for name, value in row.items() if name in ARMS and value != "–"}
        if len(arms) == len(ARMS):
            found[row["network"]] = found.get(row["network"], 0) + (max(arms, key=arms.__getitem__) == "SNACS")
    return found


ARMS = ("Random", "Magnitude", "FPGM", "Taylor", "SNACS, means", "Magnitude, isomorphic", "Taylor, isomorphic", "SNACS")


def test_what_the_readme_says_beside_its_tables_is_so() -> None:
    assert leads("## Shifted, without training") == {"MobileNetV2": 3, "ViT": 3, "ResNet-56": 0}
    assert leads("## Clean, without training")["ResNet-56"] == 1
    plain = [float(row["plain, untrained"].split()[0]) for row in rows_of("refit.md", BEST)]
    assert sorted(plain)[len(plain) // 2] < 25, "most networks are near chance as cut"
    half = [row for row in rows_of("real_models.md", "### Classifier") if row["column 1"].startswith("50%")]
    assert len(half) > 2 and all(float(row["same answers: refit"].split()[0]) < 20 for row in half)
    half = rows_of("real_models.md", "### Language")[0]
    assert half["parameters"] == "70 %" and round(float(half["faq: refit"])) == 2
    assert round(float(half["manual: refit"])) == round(float(half["bible: refit"])) == 4
    slower = (
        (ROOT / "docs/results/engine_speed.md").read_text(encoding="utf-8").partition("## Slower than the dense")[2]
    )
    assert "onnxruntime" in slower


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_what_a_page_at_the_top_names_is_there(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    named = re.findall(r"\]\(((?!https?:)[^)#]+)", text) + re.findall(r"`python (\S+\.py)", text)
    assert not [name for name in named if not (ROOT / name).exists()]


def test_the_picture_of_the_readme_is_small() -> None:
    assert (ROOT / "docs/report.png").stat().st_size < 150_000


def test_the_changelog_has_this_version() -> None:
    assert re.search(
        rf"^## \[{re.escape(__version__)}\] - 20\d\d-\d\d-\d\d$", CHANGELOG.read_text("utf-8"), re.MULTILINE
    )


@pytest.mark.parametrize(
    ("text", "message"), [("no table", "marks each of these tables once"), ("## Nothing", "has no table below")]
)
def test_tables_that_are_missing_are_told(text: str, message: str) -> None:
    with pytest.raises(LookupError, match=message):
        rows_of("zoo.md", text) if text.startswith("#") else with_tables(text)
