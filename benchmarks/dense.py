"""Dense networks that studies begin with: trained once, kept in a file, seen as methods see them."""

from pathlib import Path
from typing import Any

from torch import nn

from nervure import trace, train
from nervure.export import load_state, save_state
from nervure.graph.tape import named_tensors
from nervure.graph.types import Graph
from nervure.methods import View


def train_once(file: Path, model: nn.Module, batches: Any, **how: Any) -> nn.Module:
    """The model with the weights in the file; where there is none, trained and kept there."""
    if file.exists():
        return load_state(file, model).eval()
    train(model, batches, progress=False, **how)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_state(file, model)
    return model.eval()


def view_of(
    model: nn.Module, example: Any, *, graph: Graph | None = None, seed: int = 0, data: Any = None, stats: Any = None
) -> View:
    """What a method sees of a model."""
    weights = {name: tensor.detach() for name, tensor in named_tensors(model).items()}
    return View(graph or trace(model, example), weights, stats, seed, model, example, data)
