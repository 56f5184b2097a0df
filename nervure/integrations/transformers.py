"""Masks that hold in the ``Trainer`` of transformers: ``Trainer(..., callbacks=[HoldMasks(pruned.masks)])``."""

from typing import Any, final

from nervure.core.extras import missing_extra
from nervure.integrations.held import Holding
from nervure.training.masks import Masks

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise missing_extra(
        "nervure.integrations.transformers needs transformers and accelerate, which are not installed", "transformers"
    ) from error


@final
class HoldMasks(TrainerCallback):
    """Hold masks from the start of a training to its end; gradients are masked before they are clipped.

    Training goes on from a checkpoint (``resume_from_checkpoint=``) as it began: the weights that are loaded are as
    sparse as they were. In several processes all hold the masks of the first. Parameters of ``fully_shard`` are
    held, with a warning that clipping counts what is masked; those that are flattened or taken apart (FSDP of the first
    kind, DeepSpeed) have other shapes than their masks and are refused.

    Args:
        masks: parameter name -> bool tensor, True stays; None: what is zero when training starts stays zero.
        module: path within the model of the part that the masks name; empty: the model itself.

    Raises:
        ArgumentError: when training starts, if the masks do not fit, or there are no zeros to keep.
    """

    def __init__(self, masks: Masks | None = None, *, module: str = "") -> None:
        # Nothing is called between the backward pass and the clipping.
        self._holding = Holding(masks, module, early=True)

    @property
    def masks(self) -> Masks | None:
        """Copies of the masks that hold, or will; None where they are still to be read from the zeros."""
        return self._holding.masks

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Begin to hold: the optimizer is there, and a checkpoint is loaded."""
        self._holding.begin(given["model"], [given["optimizer"]])

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Let go; the masks stay in ``masks``."""
        self._holding.end()
