"""A compiled model, and why it is as it is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import nn

from nervure.core.markup import listing
from nervure.sparse.candidates import DENSE
from nervure.sparse.layers import Inference


@final
@dataclass(frozen=True, slots=True)
class LayerChoice:
    """What became of one layer with zeros, and why.

    Attributes:
        layer: its name.
        shape: of its weight, as it was when it was timed (dead units may have been cut before).
        density: share of its weights that are not zero.
        times: seconds of one forward pass on the example's batch, for each way that works; ``"dense"`` is as it was.
        choice: the way taken.
        failed: ways that do not work here, and why.
    """

    layer: str
    shape: tuple[int, ...]
    density: float
    times: Mapping[str, float]
    choice: str
    failed: Mapping[str, str] = field(default_factory=dict)


@final
class CompiledSparse(Inference):
    """A model that computes what the masked one does, for inference; made by :func:`compile_sparse`.

    Attributes:
        model: the module that runs: your model with layers replaced, or a copy of it where nothing was faster.
        choices: one row for each layer with zeros.
        times: seconds of the whole by name: ``"dense"`` (as it was), ``"dead units cut"``, ``"sparse"``.
        choice: which of these ``model`` is.
        error: largest difference to the original, relative to the outputs' largest value.
        notes: what else there is to know.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        choices: tuple[LayerChoice, ...],
        times: Mapping[str, float],
        choice: str,
        error: float,
        notes: tuple[str, ...],
    ) -> None:
        super().__init__()
        self.model = model
        self.choices, self.times, self.choice = choices, dict(times), choice
        self.error, self.notes = error, notes
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns, without gradients."""
        with torch.no_grad():
            return self.model(*args, **kwargs)

    @property
    def speedup(self) -> float:
        """How many times as fast as the dense model on the example's batch, as measured when it was compiled."""
        return self.times[DENSE] / self.times[self.choice]

    def describe(self) -> str:
        """A table: layer by layer the density, the times and the choice; then the whole, and what was noted."""
        width = max([len("layer"), *(len(row.layer) for row in self.choices)])
        ways = list(dict.fromkeys(way for row in self.choices for way in row.times))
        lines = [f"{'layer':<{width}}  density  " + "".join(f"{way:>9}" for way in ways) + "  taken (times in ms)"]
        for row in self.choices:
            cells = "".join(f"{1e3 * row.times[w]:9.3f}" if w in row.times else f"{'–':>9}" for w in ways)
            lines.append(f"{row.layer:<{width}}  {100 * row.density:6.2f}%  {cells}  {row.choice}")
        whole = ", ".join(f"{name} {1e3 * seconds:.3f} ms" for name, seconds in self.times.items())
        lines.append(f"whole: {whole}")
        lines.append(f"taken: {self.choice}, {self.speedup:.2f} times as fast as dense, error {self.error:.1e}")
        return listing([*lines, *self.notes])
