"""Dropping blocks: the modules of a branch step aside, its output becomes zero (or nothing, where it was concatenated)."""

from typing import Any

from torch import Tensor, nn

from nervure.graph.types import Block


class Pass(nn.Module):
    """Returns its first argument, whatever else it is given."""

    def forward(self, x: Any, *_: Any, **__: Any) -> Any:
        """The first argument."""
        return x


class Silent(nn.Module):
    """Returns zeros of the shape that the module it stands for would have returned.

    Args:
        entered: shape of the input the original saw when it was traced.
        left: shape of what it returned; where it equals ``entered`` the live size is taken, elsewhere the ratio is kept.
        extras: number of further results (None each), for modules that return a tuple; -1: a bare tensor.
    """

    def __init__(self, entered: tuple[int, ...], left: tuple[int, ...], extras: int = -1) -> None:
        super().__init__()
        self.entered, self.left, self.extras = list(entered), list(left), extras

    def forward(self, x: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Zeros."""
        if x is None:
            x = next(v for v in kwargs.values() if isinstance(v, Tensor))
        sizes = [
            n if before == after else n * after // before
            for n, before, after in zip(x.shape, self.entered, self.left, strict=True)
        ]
        zeros = x.new_zeros(sizes)
        return zeros if self.extras < 0 else (zeros, *[None] * self.extras)

    def extra_repr(self) -> str:
        """Shapes, for printing."""
        return f"{tuple(self.entered)} -> {tuple(self.left)}"


def drop(model: nn.Module, block: Block) -> None:
    """Take ``block`` out of ``model`` in place; its last module turns silent, the others let their input pass."""
    for name in block.modules[:-1]:
        _replace(model, name, Pass())
    entered, left, extras = block.shapes
    last: nn.Module = Pass() if block.kind == "module" else Silent(entered, left, extras)
    _replace(model, block.modules[-1], last.train(model.training))


def _replace(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, key = name.rpartition(".")
    old = model.get_submodule(name)
    new.train(old.training)
    setattr(model.get_submodule(parent), key, new)
