"""What happened in a run, as a value, and as a page, a text or plain data."""

from nervure.core.renamed import old_names
from nervure.report.comparison import MeanOutcome
from nervure.report.comparison_report import MethodComparison
from nervure.report.html import to_html
from nervure.report.markdown import to_markdown
from nervure.report.neuron_charts import circuit_picture, connectivity_page
from nervure.report.paper import figures_of, tables_of, write_figures, write_tables
from nervure.report.run_report import Point, Report, Row, Width
from nervure.report.sweep_report import Sweep
from nervure.report.table_forms import format_table
from nervure.report.tables import Table
from nervure.report.trace_page import graph_page

__all__ = [
    "MeanOutcome",
    "MethodComparison",
    "Point",
    "Report",
    "Row",
    "Sweep",
    "Table",
    "Width",
    "circuit_picture",
    "connectivity_page",
    "figures_of",
    "format_table",
    "graph_page",
    "tables_of",
    "to_html",
    "to_markdown",
    "write_figures",
    "write_tables",
]

__getattr__ = old_names("nervure.report")
