"""All tables and all figures of a report, a sweep or a comparison, as files for a paper."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from nervure.core.check import require_choice
from nervure.core.files import read_json, require_folder, write_text
from nervure.errors import FileError
from nervure.report import charts, tables
from nervure.report import connectivity_charts as connectivity
from nervure.report import shift_section as shift
from nervure.report.comparison_report import KIND as COMPARISON
from nervure.report.comparison_report import MethodComparison
from nervure.report.figures import FIGURES, standalone, write_figure
from nervure.report.quality_chart import quality_chart
from nervure.report.rewiring_charts import rewiring_chart
from nervure.report.run_report import KIND as REPORT
from nervure.report.run_report import Report
from nervure.report.sweep_report import KIND as SWEEP
from nervure.report.sweep_report import Sweep
from nervure.report.table_forms import FORMS, format_table
from nervure.report.tables import Table

Found: TypeAlias = Report | Sweep | MethodComparison

FILES = ("report.json", "sweep.json", "comparison.json")
"""What a folder holds that was run, swept or compared in."""
READERS: Mapping[str, Callable[[Mapping[str, Any]], Found]] = MappingProxyType(
    {REPORT: Report.from_json, SWEEP: Sweep.from_json, COMPARISON: MethodComparison.from_json}
)


def load_found(path: Path) -> Found:
    """The report, sweep or comparison in a file that such work wrote; raises :class:`FileError` otherwise."""
    data = read_json(path, "a report, a sweep or a comparison of nervure")
    reader = READERS.get(str(data.get("kind")))
    if reader is None:
        raise FileError(f"{str(path)!r} is no report of nervure, nor a sweep or a comparison. Give {', '.join(FILES)}.")
    return reader(data)


def tables_of(found: Found) -> dict[str, Table]:
    """All tables that have rows, by name; those called ``numbers`` or ``trials`` hold numbers as they are."""
    named = _report_tables(found) if isinstance(found, Report) else found.tables()
    return {name: table for name, table in named.items() if table.rows}


def figures_of(found: Found) -> dict[str, str]:
    """All figures by name, each an SVG that stands alone."""
    named = _report_figures(found) if isinstance(found, Report) else found.charts()
    return {name: standalone(svg) for name, svg in named.items() if svg}


def write_tables(found: Found, folder: Path, forms: Iterable[str]) -> tuple[Path, ...]:
    """Write every table in each of the forms (``"csv"``, ``"markdown"``, ``"latex"``, ``"html"``) to ``folder``.

    Raises:
        ArgumentError: there is no such form.
        FileError: the folder cannot be written.
    """
    wanted = [require_choice(form, FORMS, "form of a table") for form in forms]
    place, named = require_folder(folder) if wanted else folder, tables_of(found)
    files = charts.file_names("table", named)
    return tuple(
        write_text(place / Path(files[name]).with_suffix(f".{FORMS[form]}"), format_table(table, form))
        for name, table in named.items()
        for form in wanted
    )


def write_figures(found: Found, folder: Path, forms: Iterable[str]) -> tuple[Path, ...]:
    """Write every figure as each of ``"svg"`` and ``"pdf"`` to ``folder``.

    Raises:
        ArgumentError: there is no such form.
        MissingExtraError: for PDF, svglib is not installed.
        FileError: the folder cannot be written.
    """
    wanted = [require_choice(form, FIGURES, "form of a figure") for form in forms]
    place, named = require_folder(folder) if wanted else folder, figures_of(found)
    files = charts.file_names("figure", named)
    return tuple(
        write_figure(place / Path(files[name]).with_suffix(f".{form}"), svg)
        for name, svg in named.items()
        for form in wanted
    )


def _report_tables(report: Report) -> dict[str, Table]:
    return {
        "comparison": tables.comparison(report),
        "speed": tables.speed(report),
        "shift": shift.table(report),
        "budget": tables.budget(report),
        "widths": tables.widths(report),
        "edits": tables.edits(report),
        "refit": tables.refit(report),
        "limits": connectivity.limit_table(report),
        "verification": tables.verification(report),
        "provenance": tables.provenance(report),
        "numbers": tables.numbers(report),
    }


def _report_figures(report: Report) -> dict[str, str]:
    found = {
        "quality": quality_chart(report),
        "accuracy": charts.accuracy_chart(report.curves),
        "validation loss": charts.validation_loss_chart(report.curves),
        "loss": charts.loss_chart(report.curves),
        "rewiring": rewiring_chart(report),
    }
    found |= {f"connectivity of {picture.name}": picture.svg for picture in connectivity.matrices(report)}
    return found | {f"limit of {picture.name}": picture.svg for picture in connectivity.limits(report)}
