"""The page of the connectivity analysis says what was found, and stands alone."""

from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from nervure import Connectivity, connectivity
from nervure.report import circuit_picture, connectivity_page

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def found() -> Connectivity:
    """Two of the three hidden units are dead, and so is the second output."""
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 2.0], [0.0, 0.0], [1.0, 0.0]]))
        net[2].weight.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 3.0, 0.0]]))
    return connectivity(net, torch.zeros(1, 2), reference=nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)))


def test_the_picture_marks_what_is_dead_without_colour(found: Connectivity) -> None:
    root = ElementTree.fromstring(circuit_picture(found, title="<net>"))
    layers = root.findall(f"{SVG}g")
    titles = [layer.findtext(f"{SVG}title") for layer in layers]
    assert titles[1:] == [
        "0: 2 of 3 units dead, 2 of 6 connections live",
        "2: 1 of 2 units dead, 1 of 6 connections live",
    ]
    slashes = [layer.find(f"{SVG}path[@class='x']").attrib["d"].count("M") for layer in layers]  # type: ignore[union-attr]
    assert slashes == [0, 2, 1]


def test_wide_layers_are_drawn_in_few_cells() -> None:
    wide = connectivity(nn.Linear(2, 5000), torch.zeros(1, 2))
    assert len(circuit_picture(wide, title="wide")) < 20_000


def test_the_page_tells_the_numbers_and_needs_nothing_from_elsewhere(found: Connectivity) -> None:
    text = connectivity_page(found, "<net>")
    assert "&lt;net&gt;" in text
    assert "<net>" not in text
    assert "25.0 %" in text  # 3 of 12 connections live
    assert "Distance to the reference" in text
    assert "<script" not in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_a_page_without_reference_has_no_distances() -> None:
    assert "Distance" not in connectivity_page(connectivity(nn.Linear(2, 2), torch.zeros(1, 2)), "net")
