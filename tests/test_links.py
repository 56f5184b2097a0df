"""The check of the built pages finds what is dead, and only that."""

from pathlib import Path

import pytest

pytest.importorskip("sphinx")

import nervure
from docs.links import dead_links, unfound
from docs.reference import PAGES, find, require_all, write_pages

INDEX = (
    'Search.setIndex({"docnames":["a","b"],"indexentries":{"gpu, several":[[1,"x",""]]},'
    '"terms":{"loss":[0,1],"custom":1},"titleterms":{"yolo":0}})'
)


def test_links_to_pages_and_places_that_are_not_there_are_found(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "one.html").write_text(
        '<h1 id="top">1</h1><a href="#top">x</a><a class="y" href="below/two.html#b">x</a><a href="three.html">x</a>'
        '<a href="#bottom">x</a><a href="https://nowhere.example/#z">x</a>'
    )
    (tmp_path / "below" / "two.html").write_text(
        '<p id="b"><a href="../one.html#nothing">x</a><a href="../one.html">x</a>'
    )
    assert dead_links(tmp_path) == ["below/two.html: ../one.html#nothing", "one.html: three.html", "one.html: #bottom"]


def test_a_search_finds_a_page_that_has_all_its_words() -> None:
    assert unfound(INDEX, {"custom loss": "b", "YOLO": "a", "losses": "a", "several": "b"}) == []
    assert len(unfound(INDEX, {"custom loss": "a", "gpu": "b"})) == 2


def test_every_public_name_has_a_page_of_the_reference() -> None:
    require_all(nervure.__all__, PAGES)
    with pytest.raises(ValueError, match="no page of the reference has brand_new"):
        require_all(["prune", "brand_new"], PAGES)


def test_the_pages_of_the_reference_show_no_object_twice(tmp_path: Path) -> None:
    (tmp_path / "of_before.md").touch()
    assert write_pages(tmp_path)
    assert not write_pages(tmp_path)
    assert not (tmp_path / "of_before.md").exists()
    lines = [line for page in tmp_path.rglob("*.md") for line in page.read_text().splitlines()]
    shown = [line.split(":: nervure.")[1] for line in lines if line.startswith((".. autof", ".. autoc"))]
    objects = [id(find(name)) for name in shown]
    assert len(shown) > 300
    assert [name for name, found in zip(shown, objects, strict=True) if objects.count(found) > 1] == []
