"""Every page on extending has one whole example, short enough to be read at once; tests/test_readme.py runs it."""

import re
from pathlib import Path

import pytest

PAGES = sorted((Path(__file__).parent.parent / "docs" / "extend").glob("*.md"))
EXAMPLES = [page for page in PAGES if page.name != "index.md"]
LONGEST = 30


def test_there_is_a_page_for_each_thing_that_can_be_added() -> None:
    assert {page.stem for page in EXAMPLES} == {
        "criterion", "method", "operator", "budget", "format", "engine", "data", "loaders", "model", "benchmark",
    }  # fmt: skip


@pytest.mark.parametrize("page", EXAMPLES, ids=lambda page: page.stem)
def test_the_page_has_one_example_of_at_most_thirty_lines(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = [line for line in example.splitlines() if line.strip()]
    assert len(lines) <= LONGEST


def test_the_index_names_every_page() -> None:
    index = (EXAMPLES[0].parent / "index.md").read_text(encoding="utf-8")
    assert all(f"({page.name})" in index for page in EXAMPLES)
