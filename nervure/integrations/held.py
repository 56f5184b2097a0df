"""What the callbacks share: masks that begin to hold when a training begins, and let go when it ends."""

from collections.abc import Iterable
from typing import final

from torch import Tensor, nn
from torch.optim import Optimizer

from nervure.graph.models import device_of
from nervure.training.masks import Held, Masks, hold, masks_of, parameters_of, require_masks, same_everywhere


@final
class Holding:
    """Masks of a part of a model over the trainings of one callback.

    Args:
        masks: by the parameter names of the part; None: the zeros that it has when a training begins.
        path: the part, as in ``model.get_submodule``; empty: the model itself.
        early: as in :func:`nervure.hold`.
    """

    def __init__(self, masks: Masks | None, path: str, *, early: bool = False) -> None:
        self.given = None if masks is None else dict(masks)
        self._path = path
        self._early = early
        self._held: Held | None = None

    @property
    def masks(self) -> dict[str, Tensor] | None:
        """Copies, on the CPU, of the masks that hold or will; None where they are still to be read from the zeros."""
        masks = self.given if self._held is None else self._held.masks
        return None if masks is None else {name: mask.detach().cpu().clone() for name, mask in masks.items()}

    def begin(self, model: nn.Module, optimizers: Iterable[Optimizer]) -> None:
        """Hold, the same in all processes; raises ArgumentError where masks do not fit or there are none."""
        self.end()
        part = model.get_submodule(self._path)
        masks = masks_of(part) if self.given is None else self.given
        require_masks(masks, parameters_of(part))
        place = device_of(part)
        same = same_everywhere({name: mask.to(place) for name, mask in masks.items()})
        # That no zeros were found is told by hold itself.
        self._held = hold(part, tuple(optimizers), same if same or self.given is not None else None, early=self._early)

    def mask_gradients(self) -> None:
        """Zero the gradients of what is masked now."""
        if self._held is not None:
            self._held.mask_gradients()

    def end(self) -> None:
        """Let go; the masks as they are now are those of the next training."""
        if self._held is not None:
            self.given = self.masks
            self._held.remove()
            self._held = None
