"""A report as one HTML page that needs nothing but itself: no script, no font, no picture from elsewhere."""

from functools import cache
from typing import TYPE_CHECKING, Any

from nervure.core.markup import html, listing
from nervure.report import amount_search, charts, tables
from nervure.report import connectivity_charts as connectivity
from nervure.report import shift_section as shift
from nervure.report.quality_chart import quality_chart, quality_note
from nervure.report.rewiring_charts import rewiring_chart
from nervure.report.run_report import Report
from nervure.report.table_forms import html_table
from nervure.report.words import PageWords

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


def to_html(report: Report) -> str:
    """The whole report as the text of one self-contained HTML page."""
    return page(
        "report.html.j2",
        report=report,
        tables=tables,
        amount_search=amount_search,
        slug=charts.slug,
        html_table=html_table,
        quality_chart=quality_chart(report),
        quality_note=quality_note(report),
        accuracy_chart=charts.accuracy_chart(report.curves),
        validation_loss_chart=charts.validation_loss_chart(report.curves),
        loss_chart=charts.loss_chart(report.curves),
        connectivity=connectivity,
        shift=shift,
        rewiring_chart=rewiring_chart(report),
        again=_again(report),
        recipe=tables.recipe_rows(report.recipe),
    )


def _again(report: Report) -> dict[str, str]:
    command = report.provenance.get("again")
    return {"The command that does all of this again": str(command)} if command else {}


def page(template: str, **values: Any) -> str:
    """Fill a template of this package; all values are escaped except SVG made here.

    ``words`` links those that the page explains at its end.
    """
    return _environment().get_template(template).render(**({"words": PageWords(), "unbroken": _unbroken} | values))


def _unbroken(text: str) -> "Markup":
    """A headline in which no line begins with a percent sign or an arrow."""
    from markupsafe import Markup

    return Markup(html(text).replace(" %", "&nbsp;%").replace(" → ", "&nbsp;→&nbsp;"))


@cache
def _environment() -> "Environment":
    # jinja2 takes a while to import: only those who make a page pay for it.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("nervure.report", "templates"),
        autoescape=True,
        finalize=_show,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )


def _show(value: Any) -> Any:
    """What a template shows of a value: text that prints; SVG made here is a kind of text of its own, and stays."""
    return listing(value.split("\n")) if type(value) is str else value
