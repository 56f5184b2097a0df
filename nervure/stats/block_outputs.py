"""What each removable block adds to its shortcut, sample by sample, and what the model answers."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nervure.core.tensors import tensors_in
from nervure.errors import ArgumentError, DataError
from nervure.graph.types import Block, Graph
from nervure.stats.unit_probe import KERNEL_NDIM, UnreadableError

Reduction: TypeAlias = Callable[[Tensor], Tensor]
"""From a feature map [samples, channels, ...positions] to features [samples, features]."""

POSITIONS: Mapping[int, tuple[int, ...]] = {1: (16,), 2: (4, 4), 3: (2, 2, 4)}
"""Positions that are left of a map with so many position axes: 16 at most."""
POOLS: Mapping[int, Callable[..., Tensor]] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}
PROJECTED = 512


def pool_maps(maps: Tensor) -> Tensor:
    """Averages over 4 x 4 parts of each map (16 parts of a sequence); smaller maps stay as they are."""
    axes = maps.ndim - 2
    if axes not in POOLS:
        return maps.flatten(1)
    sizes = tuple(min(have, want) for have, want in zip(maps.shape[2:], POSITIONS[axes], strict=True))
    return POOLS[axes](maps, sizes).flatten(1)


def average_maps(maps: Tensor) -> Tensor:
    """Each map's average."""
    return maps.flatten(2).mean(2) if maps.ndim > 2 else maps


def project_maps(maps: Tensor) -> Tensor:
    """The flat map on 512 directions drawn once for its size: distances stay within a few percent."""
    flat = maps.flatten(1)
    if flat.shape[1] <= PROJECTED:
        return flat
    generator = torch.Generator().manual_seed(flat.shape[1])
    signs = torch.randint(2, (flat.shape[1], PROJECTED), generator=generator, dtype=torch.int8).to(flat.device)
    return flat @ (signs.to(flat) * 2 - 1) / math.sqrt(PROJECTED)


REDUCTIONS: Mapping[str, Reduction] = {
    "pool4": pool_maps,
    "flatten": lambda maps: maps.flatten(1),
    "gap": average_maps,
    "random": project_maps,
}


@final
class BlockRecorder:
    """Hears blocks, and the model's answer, batch by batch.

    Attributes:
        features: per block what :func:`join_batches` joins, for each batch.
        shifts: per block a list of [samples, 2]: the cosine between what enters and what leaves the block, averaged
            over positions (NaN where they have other shapes), and the size of what it adds relative to what enters.
        failed: blocks that could not be read, and why.
    """

    def __init__(self, graph: Graph, *, reduce: str | None, output: str | None) -> None:
        self.features: defaultdict[str, list[tuple[Tensor, ...]]] = defaultdict(list)
        self.shifts: defaultdict[str, list[Tensor]] = defaultdict(list)
        self._answers: list[tuple[Tensor, ...]] = []
        self.failed: dict[str, str] = {}
        self._blocks = graph.blocks if reduce is not None else ()
        self._reduce = REDUCTIONS["flatten" if reduce is None else reduce]
        self._output = output
        self._entered: dict[str, Tensor] = {}
        self._samples = 0

    @contextmanager
    def listening(self, model: nn.Module) -> Iterator[None]:
        """Hooks are on the model inside the block, and gone after it."""
        with ExitStack() as stack:
            for block in self._blocks:
                if block.pinned:
                    self.failed[block.name] = block.pinned
                    continue
                first, last = model.get_submodule(block.modules[0]), model.get_submodule(block.modules[-1])
                enter = first.register_forward_pre_hook(self._entering(block), with_kwargs=True)
                leave = last.register_forward_hook(self._leaving(block, _is_kernel(model, block)))
                stack.callback(enter.remove)
                stack.callback(leave.remove)
            if self._output is not None:
                stack.callback(model.register_forward_hook(self._answering).remove)
            yield

    def unheard(self, passes: int) -> dict[str, str]:
        """Blocks without evidence from each of so many batches, and why."""
        silent = {b.name for b in self._blocks if len(self.features[b.name]) != passes} - self.failed.keys()
        reasons = self.failed | dict.fromkeys(silent, "it did not run for every batch")
        return {f"block {name}": reason for name, reason in reasons.items()}

    def outputs(self) -> Tensor | None:
        """The model's answers, [samples, outputs]; None where they were not wanted.

        Where batches are of other lengths, those of each sample are averaged over its length.

        Raises:
            DataError: they have other shapes in another way.
        """
        return join_batches(self._answers) if self._answers else None

    def start(self, samples: int) -> None:
        """A batch of so many samples comes."""
        self._samples = samples
        self._entered.clear()

    def finish(self, loss: Tensor | None) -> None:
        """The batch went through."""
        self._entered.clear()

    def _entering(self, block: Block) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._entered[block.name] = tensors_in((args, kwargs))[0].detach()

        return hook

    def _leaving(self, block: Block, is_kernel: bool) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            try:
                self._hear(block, tensors_in(output)[0].detach(), is_kernel)
            except UnreadableError as reason:
                self.failed.setdefault(block.name, str(reason))

        return hook

    def _hear(self, block: Block, left: Tensor, is_kernel: bool) -> None:
        entered = self._entered.pop(block.name)
        if len(left) != self._samples or not left.is_floating_point() or left.ndim < 2:
            raise UnreadableError(f"it puts out {left.dtype} of shape {tuple(left.shape)} for {self._samples} samples")
        added = left - entered if block.kind == "module" else left
        if not bool(torch.isfinite(added).all()):
            raise DataError(f"what block {block.name!r} adds is NaN or infinite. The model or the data are broken.")
        axis = 1 if is_kernel else added.ndim - 1
        maps = added.movedim(axis, 1).float()
        self.features[block.name].append((self._reduce(maps).cpu(), average_maps(maps).cpu()))
        made = shift_of(entered.float(), added.float(), axis, is_beside=block.kind == "dense")
        self.shifts[block.name].append(made.cpu())

    def _answering(self, module: nn.Module, args: Any, output: Any) -> None:
        answer = answer_of(output, self._output or "").detach().float()
        if len(answer) != self._samples:
            raise DataError(
                f"the model answers with shape {tuple(answer.shape)} for {self._samples} samples. "
                "Name another of its outputs."
            )
        if not bool(torch.isfinite(answer).all()):
            raise DataError("the model's outputs are NaN or infinite. The model or the data are broken.")
        self._answers.append(tuple(t.cpu() for t in summarise_answer(answer)))


def summarise_answer(answer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """An answer as [samples, outputs]: in parts of its maps, averaged over its second axis, averaged over its last."""
    if answer.ndim < 3:
        flat = answer.reshape(len(answer), -1)
        return flat, flat, flat
    return pool_maps(answer), answer.mean(1).flatten(1), answer.flatten(2).mean(2)


def join_batches(found: Sequence[tuple[Tensor, ...]]) -> Tensor:
    """What was heard in each batch, several forms of [samples, numbers], in the first form of one width in all.

    Raises:
        DataError: there is none.
    """
    for parts in zip(*found, strict=True):
        if len({part.shape[1] for part in parts}) == 1:
            return torch.cat(parts)
    sizes = " and ".join(sorted({str(parts[0].shape[1]) for parts in found})[:2])
    raise DataError(
        f"what the model answers has other shapes in other batches ({sizes} numbers for a sample), so it cannot be "
        "compared. Give batches of one shape, or name another of its outputs."
    )


def answer_of(output: Any, name: str) -> Tensor:
    """The output called ``name`` (a key, or a position in a tuple); without a name ``"logits"``, or the first tensor.

    Raises:
        ArgumentError: the model returns nothing of that name.
    """
    if name:
        names = dict(output) if isinstance(output, Mapping) else {str(i): v for i, v in enumerate(_parts(output))}
        if not isinstance(names.get(name), Tensor):
            raise ArgumentError(
                f"the model returns no tensor called {name!r}. There are: {', '.join(map(str, names))}."
            )
        found: Tensor = names[name]
        return found
    if isinstance(output, Mapping) and isinstance(output.get("logits"), Tensor):
        logits: Tensor = output["logits"]
        return logits
    tensors = [t for t in tensors_in(output) if t.is_floating_point() and t.ndim]
    if not tensors:
        raise DataError(f"the model returns {type(output).__name__} without a tensor of real numbers.")
    return tensors[0]


def _parts(output: Any) -> list[Any]:
    return list(output) if isinstance(output, tuple | list) else [output]


def _is_kernel(model: nn.Module, block: Block) -> bool:
    """Whether its maps have channels on axis 1, as convolutions make them, and not last, as linear layers do."""
    return any(p.ndim >= KERNEL_NDIM for name in block.modules for p in model.get_submodule(name).parameters())


def shift_of(entered: Tensor, added: Tensor, axis: int, *, is_beside: bool = False) -> Tensor:
    """What a block does to each sample, [samples, 2]; see ``Stats.shifts``.

    Args:
        entered: what enters it.
        added: what it adds to that.
        axis: of the features.
        is_beside: whether that stands beside what entered, as in a dense block.
    """
    rows = len(added)
    size, growth = entered.reshape(rows, -1).norm(dim=1), added.reshape(rows, -1).norm(dim=1)
    if is_beside:
        # New channels stand beside the old: the old lie in the new at this angle.
        cosine = size / torch.hypot(size, growth).clamp_min(1e-30)
    elif entered.shape == added.shape:
        angles = F.cosine_similarity(entered, entered + added, dim=axis)
        angles = torch.where((added == 0).all(axis), 1.0, angles)
        cosine = angles.reshape(rows, -1).mean(1)
    else:
        cosine = torch.full_like(size, torch.nan)
    relative = (
        growth / growth.new_tensor(added[0].numel()).sqrt() / (size / math.sqrt(entered[0].numel())).clamp_min(1e-30)
    )
    return torch.stack([cosine, relative], 1)
