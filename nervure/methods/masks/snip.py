"""SNIP: weights whose gates the loss answers to stay (Lee, Ajanthan and Torr, 2019; iterative: de Jorge et al., 2021).

Sources: "SNIP: Single-shot Network Pruning based on Connection Sensitivity"; "Progressive Skeletonization: Trimming
more fat from a network at initialization" (FORCE and iterative SNIP).

Differs from the papers: what stays is counted exactly, every output of the network stays connected, biases are left
alone, and several batches are averaged before the absolute value is taken.
"""

from dataclasses import dataclass, field
from typing import final

from nervure.core.schema import Rounds, Size
from nervure.methods.base import View, task_of
from nervure.methods.masks.base_masks import NetworkScored, PrunableWeights, Scored
from nervure.methods.masks.gradients import Statistics, draw_batches, lay_on, slopes, twin
from nervure.scores.saliency import snip
from nervure.tasks.guessing import TaskLike, as_task


@final
@dataclass(frozen=True, slots=True)
class SNIP(NetworkScored):
    """Mask the weights whose absence the loss would notice least, to first order: ``|w * dL/dw|``.

    The other hyper-parameters are those of every method that masks weights: ``density``, ``distribution``,
    ``granularity``, ``block``, ``guard``, ``dense``. Needs data with labels.

    Attributes:
        batches: how many batches of the data the loss is the mean of.
        steps: rounds; each scores what the last has left, on the way to ``density`` in equal ratios.
        revive: whether what an earlier round masked can come back (FORCE; without, iterative SNIP).
        statistics: what batch norms divide by while scoring: those of the ``"batch"``, as is right before training, or
            the ``"running"`` ones, for a trained network or batches of one sample.
        objective: a task or a function (model, batch) -> mean loss; None: that of the model's task.
    """

    batches: Size = 1
    steps: Rounds = 1
    revive: bool = False
    statistics: Statistics = "batch"
    objective: TaskLike | None = field(default=None)

    @property
    def in_stages(self) -> bool:
        """Whether there are several rounds."""
        return self.steps > 1

    def ask_scores(self, view: View, field: PrunableWeights) -> Scored:
        """Connection sensitivity."""
        batches, model = draw_batches(view, self.batches, self), twin(view, self.statistics)
        task = as_task(self.objective) or task_of(view)

        def scores(masks: Scored) -> Scored:
            lay_on(model, view.weights, field.from_matrices(masks))
            found = field.to_matrix(slopes(model, field.weights, batches, task, view.seed))
            return {name: snip(weight, found[name]) for name, weight in field.weights.items()}

        return self.in_rounds(field, self.steps, scores, revive=self.revive)
