"""What happened in a run, as a value, and as a page, a text or plain data."""

from nervure.core.renamed import old_names
from nervure.report.comparison import MeanOutcome
from nervure.report.html import graph_page, to_html
from nervure.report.markdown import to_markdown
from nervure.report.neuron_charts import circuit_picture, connectivity_page
from nervure.report.run_report import Point, Report, Row, Width
from nervure.report.sweep_report import Sweep

__all__ = [
    "MeanOutcome",
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

__getattr__ = old_names("nervure.report")
