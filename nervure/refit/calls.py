"""What modules are given and give while a model runs."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from nervure.core.tensors import cloned, tensors_in
from nervure.refit.activations import Enough, running
from nervure.refit.replay import Replay
from nervure.stats.loaders import Batch

Call: TypeAlias = tuple[Any, Any, Tensor]
"""What a module was given, by place and by name, and the first tensor that it gave; copies, for it may write there."""


def heard(
    replay: Replay, paths: Iterable[str], number: int, batch: Batch, *, only_first: bool = False
) -> dict[str, list[Call]]:
    """What modules were given and gave while a model runs on a part of the data, call by call.

    It runs no further than it takes, and not at all where nobody is to be heard.

    Args:
        replay: the model, perhaps with its beginning done for this part.
        paths: the modules.
        number: the part.
        batch: its samples.
        only_first: only the first call of each module is of interest.
    """
    found: dict[str, list[Call]] = {path: [] for path in paths}
    left = {path: 1 if only_first else replay.runs(path) for path in found}

    def hearing(path: str) -> tuple[Callable[..., None], Callable[..., None]]:
        entered: list[tuple[Any, Any]] = []

        def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
            entered.append(cloned((args, kwargs)))

        def leave(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            found[path].append((*entered.pop(), cloned(tensors_in(output)[0])))
            left[path] -= 1
            if not any(left.values()):
                raise Enough

        return enter, leave

    if not found:
        return {}
    with running(replay.model), torch.no_grad(), ExitStack() as stack:
        for path in found:
            module, (enter, leave) = replay.model.get_submodule(path), hearing(path)
            for hook in (
                module.register_forward_pre_hook(enter, with_kwargs=True),
                module.register_forward_hook(leave, with_kwargs=True),
            ):
                stack.callback(hook.remove)
        with suppress(Enough):
            replay.run(number, batch)
    return found
