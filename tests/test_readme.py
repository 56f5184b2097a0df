"""What the README and the documentation show is what happens."""

import doctest
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "_build" not in page.parts and "results" not in page.parts]
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def snippets(page: Path) -> Iterator[tuple[int, str]]:
    """Line number and text of every ```python block of a page."""
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        yield text.count("\n", 0, match.start(1)), match.group(1)


def run_dialogue(page: Path, line: int, text: str, names: dict[str, Any]) -> None:
    """Run a block of ``>>>`` examples; what they print must be what the page shows."""
    parsed = doctest.DocTestParser().get_doctest(text, names, page.name, str(page), line)
    runner = doctest.DebugRunner(verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    runner.run(parsed, clear_globs=False)
    # doctest works on a copy: carry the names on to the next block of the page.
    names.update(parsed.globs)


@pytest.mark.parametrize("page", [pytest.param(p, id=str(p.relative_to(ROOT))) for p in PAGES if list(snippets(p))])
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
