"""How many bytes a model takes as a file."""

from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from nervure.core.check import checked
from nervure.core.tensors import require_numbers

CPU = torch.device("cpu")


@checked
def file_size(model: nn.Module) -> int:
    """Bytes of the model's state as a safetensors file, without writing one.

    A tensor that stands in several places (tied weights) counts once. Masked entries count in full: zeros are stored
    like any other number.

    Raises:
        ArgumentError: a tensor has a shape only.
    """
    return len(save(distinct_tensors(model.state_dict())))


def distinct_tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a state dict as contiguous copies, each memory once, under its first name."""
    first: dict[object, str] = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            place = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype)
            # Empty tensors all start at address 0 and are not the same tensor.
            first.setdefault(place if value.numel() else name, name)
    # Copies, since the format refuses tensors that share memory in part, such as slices of one buffer.
    return {name: require_numbers(state[name].detach(), CPU).cpu().contiguous().clone() for name in first.values()}
