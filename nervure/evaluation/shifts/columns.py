"""Shifts of tables: rows of features whose columns are known by rows that were seen before."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from nervure.core.annotations import Batches
from nervure.core.check import checked
from nervure.errors import DataError
from nervure.evaluation.corruptions.chance import normal, uniform
from nervure.evaluation.features import FEATURE_SHIFTS, content_keys, corrupt_features, fix_seed
from nervure.evaluation.shifts.one_shift import Shift, exchange, expand_shifts, separate
from nervure.tasks.batch_forms import Layout, Place, describe_batch, iterate_batches, parts_of

TABLE_SHIFTS: tuple[str, ...] = (*FEATURE_SHIFTS, "scale_drift", "swapped_values")
DRIFTS = (0.1, 0.2, 0.35, 0.5, 0.8)
"""Standard deviation of the logarithm of a column's factor."""
SWAPS = (0.02, 0.05, 0.1, 0.2, 0.3)
"""Share of the values that become those of other rows."""
MOST_ROWS = 4096
"""Rows that are remembered to take values from."""


@checked
def table_shifts(
    rows: Tensor | Batches,
    names: str | Iterable[str] = "all",
    *,
    columns: tuple[int, ...] | None = None,
    inputs: Place | None = None,
) -> tuple[Shift, ...]:
    """Shifts of the rows of a table, one for each name; labels stay.

    * ``"feature_noise"``: normal noise of 0.1 to 1 of a column's deviation;
    * ``"missing_values"``: 5 to 50 % of the values become the mean of their column;
    * ``"covariate_shift"``: each column moves by an offset of its own, of the size of 0.25 to 1.5 deviations;
    * ``"scale_drift"``: each column is stretched about its mean by a factor of its own, ``exp`` of 0.1 to 0.8 z;
    * ``"swapped_values"``: 2 to 30 % of the values become those of other rows, which suits columns of categories.

    Args:
        rows: what the columns are known by, such as the training data: floats [rows, columns], or batches.
        names: ``"all"`` or some of ``TABLE_SHIFTS``.
        columns: which columns shift; None: all. Say which, where others are numbers of categories.
        inputs: where the rows are in a batch, see :class:`nervure.tasks.Layout`; None finds the one part of that form.

    Raises:
        ArgumentError: a name is unknown.
        DataError: there are no rows, or they are not finite.
    """
    layout = Layout(inputs)
    parts = [rows] if isinstance(rows, Tensor) else [rows_in(layout, batch) for batch in iterate_batches(rows)]
    if not parts or not all(part.ndim == 2 and len(part) for part in parts):
        raise DataError("there are no rows to know the columns by: give floats [rows, columns], or batches of them.")
    table = torch.cat([part.detach().double().cpu() for part in parts])
    if not bool(torch.isfinite(table).all()):
        raise DataError("rows hold NaN or infinite values; fill or drop them first.")
    if columns and not all(-table.shape[1] <= column < table.shape[1] for column in columns):
        raise DataError(f"columns={columns} are not all in a table of {table.shape[1]} columns.")
    step = -(-len(table) // MOST_ROWS)
    moments = (table.mean(0).float(), table.std(0, correction=0).float())
    known = _Columns(*moments, table[::step].float(), columns)
    found = expand_shifts(names, {"tables": TABLE_SHIFTS})
    return tuple(Shift(name, _TableChange(name, known, layout)) for name in found)


@final
@dataclass(frozen=True, slots=True, eq=False)
class _Columns:
    """Means and deviations [columns], rows [rows, columns] to take values from, and which columns shift."""

    mean: Tensor
    std: Tensor
    rows: Tensor
    chosen: tuple[int, ...] | None

    def shift(self, rows: Tensor, name: str, severity: int, seed: int) -> Tensor:
        if name in FEATURE_SHIFTS:
            changed = corrupt_features(rows, name, severity, seed=seed, statistics=(self.mean, self.std))
        elif name == "scale_drift":
            lots = normal(fix_seed(seed, rows.device), rows.shape[1])[0]
            mean = self.mean.to(rows)
            changed = mean + (rows - mean) * torch.exp(DRIFTS[severity - 1] * lots).to(rows)
        else:
            changed = self._swapped(rows, name, SWAPS[severity - 1], seed)
        if self.chosen is None:
            return changed
        hit = torch.zeros(rows.shape[1], dtype=torch.bool, device=rows.device)
        hit[list(self.chosen)] = True
        return torch.where(hit, changed, rows)

    def _swapped(self, rows: Tensor, name: str, share: float, seed: int) -> Tensor:
        keys = content_keys(rows, name, seed)
        others = (uniform(keys, rows.shape[1], stream=1) * len(self.rows)).long().clamp(max=len(self.rows) - 1)
        return torch.where(uniform(keys, rows.shape[1]) < share, self.rows.to(rows).gather(0, others), rows)


@final
@dataclass(frozen=True, slots=True, eq=False)
class _TableChange:
    name: str
    columns: _Columns
    layout: Layout

    def __call__(self, batch: Any, severity: int, seed: int) -> Any:
        batch = separate(batch)
        rows = rows_in(self.layout, batch)
        if rows.shape[1] != len(self.columns.mean):
            raise DataError(f"rows have {rows.shape[1]} columns; those that were seen before {len(self.columns.mean)}.")
        return exchange(batch, [(rows, self.columns.shift(rows, self.name, severity, seed))])


def rows_in(layout: Layout, batch: Any) -> Tensor:
    """The one part of a batch's inputs that is floats [rows, columns]; raises DataError."""
    inputs = layout.inputs_in(batch)
    parts = parts_of(inputs)
    listed = inputs if isinstance(inputs, tuple | list) else [inputs] if parts is None else parts.values()
    found = [x for x in listed if isinstance(x, Tensor) and x.is_floating_point() and x.ndim == 2]
    if len(found) != 1:
        raise DataError(
            f"there are {len(found) or 'no'} tables in {describe_batch(batch)}. Give floats [rows, columns], and say "
            "where they are: inputs=."
        )
    return found[0]
