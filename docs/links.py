"""``python docs/links.py FOLDER``: what a reader of the built pages would miss.

Links to a page or a place that is not there, and words that people type into the search and that find nothing.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from sphinx.search.en import SearchEnglish

sys.path.insert(0, str(Path(__file__).parent.parent))

from docs.searches import SEARCHES

TARGET = re.compile(r"""<[^>]*?\s(?:id|name)=["']([^"']+)["']""")
LINK = re.compile(r"""<(?:a|img|script|link)\b[^>]*?\s(?:href|src)=["']([^"']+)["']""")


def links(folder: Path) -> Iterator[tuple[Path, str]]:
    """Every link of every page that leads to a file."""
    for page in sorted(folder.rglob("*.html")):
        for link in dict.fromkeys(LINK.findall(page.read_text(encoding="utf-8"))):
            parts = urlsplit(link)
            if not (parts.scheme or parts.netloc):
                yield page, link


def is_dead(page: Path, link: str, places: Mapping[Path, frozenset[str]]) -> bool:
    """Whether a link of ``page`` leads nowhere; ``places`` are the ids on each page."""
    parts = urlsplit(link)
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not target.exists():
        return True
    return bool(parts.fragment) and target in places and unquote(parts.fragment) not in places[target]


def dead_links(folder: Path) -> list[str]:
    """A line for each link in ``folder`` that leads nowhere."""
    folder = folder.resolve()
    pages = (page for page in folder.rglob("*.html"))
    places = {page: frozenset(TARGET.findall(page.read_text(encoding="utf-8"))) for page in pages}
    return [f"{page.relative_to(folder)}: {link}" for page, link in links(folder) if is_dead(page, link, places)]


def unfound(index: str, searches: Mapping[str, str] = SEARCHES) -> list[str]:
    """A line for each search that does not find its page in ``index``, the text of searchindex.js."""
    read = json.loads(index[index.index("{") : index.rindex("}") + 1])
    # Numbers are found by the words of the index alone, which a build that goes on loses: a test asks the pages.
    asked = {query: page for query, page in searches.items() if any(letter.isalpha() for letter in query)}
    return [f"searching for {q!r} does not find {page}" for q, page in asked.items() if page not in found(read, q)]


def found(index: Mapping[str, Any], query: str) -> set[str]:
    """The pages that have all words of a query, or an entry of the index that is mostly the query."""
    names, english = index["docnames"], SearchEnglish({})
    words = [word for word in re.findall(r"\w+", query.lower()) if word not in english.stopwords]
    pages = [_pages_with(index, english.stem(word)) for word in words]
    entries = index.get("indexentries", {}).items()
    near = [places for entry, places in entries if query.lower() in entry and 2 * len(query) >= len(entry)]
    return {names[n] for n in set.intersection(*pages)} | {names[place[0]] for places in near for place in places}


def _pages_with(index: Mapping[str, Any], word: str) -> set[int]:
    hits = (index[table].get(word, []) for table in ("terms", "titleterms"))
    return {number for hit in hits for number in (hit if isinstance(hit, list) else [hit])}


def main(folder: Path) -> str:
    """What is wrong, a line each; empty where nothing is."""
    return "\n".join([*dead_links(folder), *unfound((folder / "searchindex.js").read_text(encoding="utf-8"))])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])) or None)
