"""What a Lightning ``Trainer`` needs of pruned modules: masks that hold, and plans in its checkpoints.

A checkpoint holds the sizes of a pruned module, and its class builds those from before. ``KeepPlan`` puts the plan into
each checkpoint, and ``accept_pruned`` lets ``load_from_checkpoint`` of a class follow it.
"""

from collections.abc import Mapping
from functools import wraps
from typing import Any, TypeVar, final

from torch import nn
from torch.optim import Optimizer

from nervure.core.extras import missing_extra
from nervure.integrations.held import Holding
from nervure.integrations.plans import Planned, has_shapes_of, replay_plans, write_plans
from nervure.training.masks import Masks

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback
    except ImportError as error:
        raise missing_extra(
            "nervure.integrations.lightning needs Lightning, which is not installed", "lightning"
        ) from error

T = TypeVar("T")
KEY = "nervure"
"""What a checkpoint holds of a pruned module lies there."""


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


@final
class KeepPlan(Callback):
    """Put the plan of a pruned module into each checkpoint, as text beside the weights; see :func:`accept_pruned`.

    Args:
        pruned: what ``nervure.prune`` returned.
        module: path within the LightningModule of the part that was pruned, such as ``"net"`` where
            ``self.net = pruned.model``; empty: the LightningModule itself was.

    Raises:
        ArgumentError: ``pruned`` has no plan.
    """

    def __init__(self, pruned: Planned, *, module: str = "") -> None:
        super().__init__()
        self._entry = {"module": module, "plans": write_plans(pruned)}

    def on_save_checkpoint(self, trainer: Any, pl_module: nn.Module, checkpoint: dict[str, Any]) -> None:
        """Add the plan."""
        checkpoint[KEY] = dict(self._entry)


def accept_pruned(kind: type[T]) -> type[T]:
    """Let a class of LightningModules load checkpoints of pruned ones: what it builds is pruned by the plan there.

    ``accept_pruned(Module).load_from_checkpoint(path)``, or once and for all ``@accept_pruned`` above the class. A fit
    that goes on from such a checkpoint (``ckpt_path=``) may start with the dense module. Checkpoints without a plan are
    loaded as ever.

    Args:
        kind: the class; its ``on_load_checkpoint`` does this first from now on.

    Raises:
        FileError: when a checkpoint is loaded whose plan is damaged, or made for another module.
    """
    hook: Any = kind.on_load_checkpoint  # type: ignore[attr-defined]
    if getattr(hook, "accepts_pruned", False):
        return kind

    @wraps(hook)
    def on_load_checkpoint(self: Any, checkpoint: dict[str, Any]) -> None:
        _make_smaller(self, checkpoint)
        hook(self, checkpoint)

    on_load_checkpoint.accepts_pruned = True  # type: ignore[attr-defined]
    kind.on_load_checkpoint = on_load_checkpoint  # type: ignore[attr-defined]
    return kind


def _make_smaller(module: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Prune a module in place as a checkpoint says, where it is not as small already."""
    entry = checkpoint.get(KEY)
    if entry is None or has_shapes_of(module, checkpoint["state_dict"]):
        return
    path = str(entry["module"])
    smaller = replay_plans(module.get_submodule(path), entry["plans"])
    if path:
        module.set_submodule(path, smaller)
    else:
        # The trainer is not part of a copy.
        vars(module).update({key: value for key, value in vars(smaller).items() if key != "_trainer"})
