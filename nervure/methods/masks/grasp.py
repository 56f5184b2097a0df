"""GraSP: weights without which the gradient would carry less stay.

Wang, Zhang and Grosse, "Picking Winning Tickets Before Training by Preserving Gradient Flow", 2020, equation 8.

Differs from the paper: what stays is counted exactly, every output of the network stays connected, and the gradient is
that of the mean over all batches instead of a sum.
"""

from dataclasses import dataclass
from typing import final

from nervure.core.schema import Positive, Size
from nervure.methods.base import View, task_of
from nervure.methods.masks.base_masks import NetworkScored, PrunableWeights, Scored
from nervure.methods.masks.gradients import Statistics, draw_batches, hessian_times_slopes, twin, with_temperature
from nervure.scores.saliency import grasp


@final
@dataclass(frozen=True, slots=True)
class GraSP(NetworkScored):
    """Mask the weights whose removal takes least from the squared norm of the gradient: lowest ``w * (H g)``.

    The other hyper-parameters are those of every method that masks weights: ``density``, ``distribution``,
    ``granularity``, ``block``, ``guard``, ``dense``. Needs data with labels, about ten samples of each class, and a
    model that can be differentiated twice.

    Attributes:
        batches: how many batches of the data the loss is the mean of.
        temperature: outputs are divided by this, above 0; the paper's 200 makes the answers of a classifier nearly
            even. Where the task is none of classes, or its loss follows from no outputs, use 1.
        statistics: what batch norms divide by while scoring, see :class:`SNIP`.
    """

    batches: Size = 1
    temperature: Positive = 200.0
    statistics: Statistics = "batch"

    def ask_scores(self, view: View, field: PrunableWeights) -> Scored:
        """How much the gradient flows through each weight."""
        batches, model = draw_batches(view, self.batches, self), twin(view, self.statistics)
        task = with_temperature(task_of(view), self.temperature)
        product = hessian_times_slopes(model, field.weights, batches, task, view.seed)
        found = field.to_matrix(product)
        return {name: grasp(weight, found[name]) for name, weight in field.weights.items()}
