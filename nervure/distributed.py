"""Several processes on the same model, each with its share of the data.

In a process group of torch.distributed :func:`nervure.measure`, :func:`nervure.refit`, :func:`nervure.train` and
:func:`nervure.evaluate` give all processes the same, to rounding what one process would give that has all of the data.
All processes must call them, in the same order, as they call the operations of torch.distributed.
"""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from nervure.core import collectives
from nervure.core.annotations import Batches
from nervure.core.check import checked, show_value
from nervure.core.collectives import group_used, is_sharded, whole
from nervure.core.lazy_tensors import LazyTensors
from nervure.core.schema import Seed
from nervure.core.tensors import digest_of
from nervure.errors import ArgumentError
from nervure.graph.tape import named_tensors
from nervure.graph.types import Graph
from nervure.methods import Method, View
from nervure.methods.base import inquiries_of, require_method
from nervure.methods.masks.base_masks import ComputedWeights
from nervure.plan import Plan
from nervure.stats.shares import Share, share
from nervure.surgery.shards import cut_shards
from nervure.tasks.guessing import TaskLike, as_task
from nervure.training.masks import same_everywhere
from nervure.training.together import send_model

__all__ = [
    "Share",
    "cut_shards",
    "plan_shards",
    "put_together",
    "reduce_over",
    "same_everywhere",
    "send_model",
    "share",
]


def reduce_over(group: Any) -> AbstractContextManager[None]:
    """Within the block, nervure's functions work together over the processes of this group only.

    Args:
        group: a process group that this process is in, such as ``mesh["data"].get_group()`` where others split the
            model; None: this process works alone, and no other need call what it calls.

    Raises:
        ArgumentError: it is no process group.

    >>> with reduce_over(None):
    ...     pass  # if rank == 0: print(nervure.evaluate(model, data))
    """
    if group is not None and not isinstance(group, torch.distributed.ProcessGroup):
        raise ArgumentError(
            f"group={show_value(group)} is no process group. Give one of torch.distributed.new_group(...) that this "
            "process is in, or None to work alone."
        )
    return group_used(group)


@checked
def put_together(sharded: nn.Module, model: nn.Module) -> nn.Module:
    """Fill an ordinary model, in place, with the whole weights and buffers of one that ``fully_shard`` has sharded.

    All processes call this, and each has the whole model afterwards: so it can be traced, cut and refitted, and then
    sharded again. To cut it without the memory for that: :func:`cut_shards`.

    Args:
        sharded: the sharded model; it is left as it is.
        model: one of the same names and sizes that is not sharded, on the device that is to hold it.

    Returns:
        ``model``.

    Raises:
        ArgumentError: names or sizes differ, or ``model`` is sharded itself or has no memory (the meta device).
    """
    given, places = sharded.state_dict(), model.state_dict()
    if any(map(is_sharded, places.values())):
        raise ArgumentError("model is sharded, too. Give an ordinary one: build it anew.")
    for name in {**given, **places}:
        there, here = (tuple(of[name].shape) if name in of else None for of in (given, places))
        if there != here:
            raise ArgumentError(f"{name!r} has shape {there} in the sharded model, {here} in model. Give one like it.")
    if any(tensor.is_meta for tensor in places.values()):
        raise ArgumentError("model is on the meta device, and has no memory. Call model.to_empty(device=...) before.")
    with torch.no_grad():
        for name, tensor in places.items():
            tensor.copy_(whole(given[name]))
    return model


@checked
def plan_shards(
    sharded: nn.Module,
    graph: Graph,
    method: Method,
    data: Batches | None = None,
    *,
    task: TaskLike | None = None,
    seed: Seed = 0,
    progress: bool = True,
) -> Plan:
    """Let a method plan what leaves of a model that is sharded over processes; :func:`cut_shards` does it.

    All processes call this, and get the same plan. A weight is put together when the method looks at it, one after the
    other. Nothing is verified: shards cannot be compared with themselves without units.

    Args:
        sharded: the model; it is left as it is.
        graph: traced from the same model on the meta device, before it was sharded.
        method: one that decides by weights and by what :func:`nervure.measure` finds (``Magnitude``, ``Taylor``,
            ``MagnitudeMasks``); those that ask the network more (``SNACS``, ``Wanda``, ``OBS``) need it whole.
        data: this process's batches, for methods that measure.
        task: what the model is for; None: what the first batch says.
        seed: for measuring.
        progress: show progress of what takes longer than two seconds.

    Raises:
        ArgumentError: the method asks more than weights and measurements, or the processes differ.
        DataError: the method measures, and there are no data.
        BudgetError: the budget cannot be reached.
    """
    collectives.meet("plan_shards")
    require_method(method, data)
    # What is computed from weights is found in modules, where there is no example to run them on.
    if any(not isinstance(inquiry, ComputedWeights) for inquiry in inquiries_of(method)):
        raise ArgumentError(
            f"{method!r} asks the network more than its weights and what measure finds, and no process has it. "
            "Take another, such as Magnitude, Taylor or MagnitudeMasks; or put the model together first (put_together)."
        )
    tensors = named_tensors(sharded)
    weights = LazyTensors(tensors, lambda name: whole(tensors[name].detach()))
    view = View(graph, weights, None, seed, sharded, None, data, task=as_task(task), shows_progress=progress)
    plan = method.plan(view.listen(method.wants))
    collectives.require_same_text(f"plan {digest_of(plan.to_json())}", collectives.ALONE)
    return plan
