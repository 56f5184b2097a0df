"""Masks that hold in a Lightning ``Trainer``: ``Trainer(callbacks=[HoldMasks(pruned.masks)])``."""

from collections.abc import Mapping
from typing import Any, final

from torch import nn
from torch.optim import Optimizer

from nervure.errors import MissingExtraError
from nervure.integrations.held import Holding
from nervure.training.masks import Masks

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback
    except ImportError as error:
        raise MissingExtraError(
            "nervure.integrations.lightning needs Lightning, which is not installed. Run: "
            "pip install 'nervure[lightning]'"
        ) from error


@final
class HoldMasks(Callback):
    """Hold masks from the start of a fit to its end, with all optimizers; gradients are masked before clipping.

    The masks are part of Lightning's checkpoints: a fit that goes on from one (``ckpt_path=``) holds the masks of the
    checkpoint. In several processes all hold those of the first. Parameters of ``fully_shard`` are held; those that are
    flattened or taken apart (FSDP of the first kind, DeepSpeed) have other shapes than their masks and are refused.

    Args:
        masks: parameter name -> bool tensor, True stays; None: what is zero when the fit starts stays zero.
        module: path within the LightningModule of the part that the masks name, such as ``"net"`` where
            ``self.net = pruned.model``; empty: the LightningModule itself.

    Raises:
        ArgumentError: when the fit starts, if the masks do not fit, or there are no zeros to keep.
    """

    def __init__(self, masks: Masks | None = None, *, module: str = "") -> None:
        super().__init__()
        self._holding = Holding(masks, module)

    @property
    def masks(self) -> Masks | None:
        """Copies of the masks that hold, or will; None where they are still to be read from the zeros."""
        return self._holding.masks

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Begin to hold: optimizers are there, and a checkpoint is restored."""
        self._holding.begin(pl_module, trainer.optimizers)

    def on_before_optimizer_step(self, trainer: Any, pl_module: nn.Module, optimizer: Optimizer) -> None:
        """Mask gradients: Lightning clips them next."""
        self._holding.mask_gradients()

    def on_train_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Let go; the masks stay in ``masks``."""
        self._holding.end()

    def on_exception(self, trainer: Any, pl_module: nn.Module, exception: BaseException) -> None:
        """Let go."""
        self._holding.end()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds: the masks."""
        return {} if self.masks is None else {"masks": self.masks}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take the masks of a checkpoint instead of those given."""
        self._holding.given = state_dict.get("masks", self._holding.given)
