"""What is looked for in what a model returned: its logits, a vector for each sample, its own loss."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from nervure.errors import ArgumentError
from nervure.tasks.batch_forms import Place, describe_batch, find_part, parts_of

LOGITS = ("logits", "out", "prediction_logits", "predictions")
VECTORS = ("sentence_embedding", "embeddings", "image_embeds", "text_embeds", "pooler_output")


def logits_in(output: Any, place: Place | None = None, names: Iterable[str] = LOGITS) -> Tensor:
    """The tensor itself, the part of one of ``names``, the first of several, or what is at ``place``.

    Raises:
        ArgumentError: no tensor is there.
    """
    if place is not None:
        return logits_in(find_part(output, place))
    if isinstance(output, Tensor):
        return output
    parts = parts_of(output)
    if parts is not None:
        name = next((name for name in names if name in parts), None)
        tensors = [part for part in parts.values() if isinstance(part, Tensor)]
        if name is not None or len(tensors) == 1:
            return tensors[0] if name is None else logits_in(parts[name])
    if isinstance(output, tuple | list) and output:
        return logits_in(output[0])
    raise ArgumentError(
        f"the model returned {describe_batch(output)}; logits are looked for as a tensor, a part called 'logits', or "
        "the first of a tuple. Say which: output=, or give a Task whose loss reads it."
    )


def vectors_in(output: Any, batch: Any, place: Place | None = None) -> Tensor:
    """One vector for each sample, [samples, numbers]; those of tokens become their mean where the mask is 1."""
    if place is None:
        parts = parts_of(output) or {}
        names = (*VECTORS, "last_hidden_state")
        place = next((name for name in names if isinstance(parts.get(name), Tensor)), None)
    found = logits_in(output, place)
    if found.ndim == 3:
        mask = mask_in(batch, found)
        weights = found.new_ones(found.shape[:2]) if mask is None else mask.to(found)
        return (found * weights[..., None]).sum(1) / weights.sum(1, keepdim=True).clamp(min=1)
    return found.flatten(1)


def mask_in(batch: Any, tokens: Tensor) -> Tensor | None:
    """Which tokens are there, as the batch says, bool [samples, tokens]; None where it does not, or of others."""
    inputs = batch[0] if isinstance(batch, tuple | list) and batch else batch
    mask = (parts_of(inputs) or {}).get("attention_mask")
    return mask.bool() if isinstance(mask, Tensor) and mask.shape == tokens.shape[:2] else None


def loss_in(output: Any) -> Tensor | None:
    """The loss that the model computed itself; None where it did not."""
    loss = (parts_of(output) or {}).get("loss")
    return loss if isinstance(loss, Tensor) and loss.numel() == 1 else None
