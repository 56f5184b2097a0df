"""Figures as files: an SVG that stands alone, or a PDF of it for a paper."""

import io
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from nervure.core.extras import require_extra
from nervure.core.files import write_bytes, write_text
from nervure.report.html import page

FIGURES = ("svg", "pdf")
"""What a figure can be written as."""
NAMESPACE = 'xmlns="http://www.w3.org/2000/svg"'
DARK = "@media screen and (prefers-color-scheme:dark)"
MEDIA = re.compile(r"@media[^{]*\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}")
FONT, MARGIN = "Vera", 2
# Of the family that comes with reportlab: what a journal prints must be in the file.
FACES = (("Vera", "normal", "normal"), ("VeraBd", "bold", "normal"), ("VeraIt", "normal", "italic"))


def standalone(svg: str) -> str:
    """A figure of a page as an SVG file of its own, with the page's style in it; one that has a style stays."""
    if "<style>" in svg:
        return svg
    light, dark = _page_colours()
    rules = " ".join(page("charts.css.j2").split())
    words = "text{font-family:system-ui,sans-serif}"
    style = f"<style>{words}{_coloured(rules, light)}{DARK}{{{_coloured(rules, dark)}}}</style>"
    opening = "<svg" if NAMESPACE in svg else f"<svg {NAMESPACE}"
    return svg.replace("<svg", opening, 1).replace("</title>", f"</title>{style}", 1) + "\n"


def to_pdf(svg: str) -> bytes:
    """A figure as a PDF of one page as large as the figure: in light colours, vectors, its font in the file.

    The same figure gives the same bytes. Letters are those of Bitstream Vera, which are Latin.

    Args:
        svg: a figure of this package, alone or of a page.

    Raises:
        MissingExtraError: svglib is not installed (extra ``pdf``).
    """
    svglib = require_extra("svglib.svglib", "a figure as PDF", "pdf")
    from reportlab.graphics import renderPDF

    _register_fonts()
    drawing = svglib.svg2rlg(io.BytesIO(_plain(standalone(svg)).encode()))
    _fit(drawing)
    # Else the page asks for Helvetica, which is not in the file.
    drawing.initialFontName = FONT
    return bytes(renderPDF.drawToString(drawing, invariant=1))


def write_figure(path: Path, svg: str) -> Path:
    """Write a figure as what its name ends with, ``.pdf`` or SVG, and return the path.

    Raises:
        MissingExtraError: for a PDF, svglib is not installed.
        FileError: the file cannot be written.
    """
    if path.suffix.lower() == ".pdf":
        return write_bytes(path, to_pdf(svg))
    return write_text(path, standalone(svg))


def _plain(svg: str) -> str:
    """What svglib reads: no dark colours, no shorthand for fonts, letters that the font has."""
    light = (
        MEDIA.sub("", svg)
        .replace("font-weight:600", "font-weight:bold")
        .replace("font-weight: 600", "font-weight:bold")
    )
    long = re.sub(r"font:([\d.]+px) system-ui,sans-serif", r"font-size:\1;font-family:system-ui,sans-serif", light)
    return long.replace("system-ui,sans-serif", FONT).replace("→", "->")


def _fit(drawing: Any) -> None:
    """Make the page as large as what is drawn: letters of this font may be wider than those of a browser."""
    left, low, right, high = drawing.getBounds()
    left, low = min(left, 0) - MARGIN, min(low, 0) - MARGIN
    right, high = max(right, drawing.width) + MARGIN, max(high, drawing.height) + MARGIN
    drawing.translate(-left, -low)
    drawing.width, drawing.height = right - left, high - low


@cache
def _register_fonts() -> None:
    from svglib.fonts import register_font

    for file, weight, style in FACES:
        register_font(FONT, f"{file}.ttf", weight=weight, style=style)


@cache
def _page_colours() -> tuple[Mapping[str, str], Mapping[str, str]]:
    """The colours of the pages by name, in light and in dark."""
    light, dark, *_ = re.findall(r":root \{(.*?)\}", page("style.css.j2"), re.DOTALL)
    named = re.compile(r"--([\w-]+): (#\w+)")
    return dict(named.findall(light)), dict(named.findall(dark))


def _coloured(rules: str, colours: Mapping[str, str]) -> str:
    return re.sub(r"var\(--([\w-]+)\)", lambda found: colours[found[1]], rules)
