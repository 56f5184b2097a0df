"""What happened in a run, as a value, and as a page, a text or plain data."""

from nervure.report.html import graph_page, to_html
from nervure.report.markdown import to_markdown
from nervure.report.neuron_charts import circuit_picture, connectivity_page
from nervure.report.run_report import Point, Report, Row, Width
from nervure.report.sweep_report import Candidate, Sweep

__all__ = [
    "Candidate",
    "Point",
    "Report",
    "Row",
    "Sweep",
    "Width",
    "circuit_picture",
    "connectivity_page",
    "graph_page",
    "to_html",
    "to_markdown",
]
