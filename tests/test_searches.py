"""What people type into the search stands out on the page that answers it. `make docs` asks the built index as well."""

from pathlib import Path

import pytest

from docs.searches import SEARCHES, pages_for


@pytest.mark.parametrize("query", SEARCHES)
def test_what_people_type_stands_out_on_a_page(query: str) -> None:
    assert SEARCHES[query] in pages_for(query), f"say {query!r} in a heading or the index words of {SEARCHES[query]}.md"


def test_what_stands_on_no_page_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# One page\n\n```{index} GPU, custom loss\n```\n\nSomething else.\n")
    assert [list(pages_for(query, tmp_path)) for query in ("gpu", "Custom Loss", "one", "else")] == [["a"]] * 3 + [[]]
