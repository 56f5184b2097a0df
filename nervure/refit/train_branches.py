"""``reconstruct``: branch by branch, what stays is trained for a few steps to give what the dense network gives there.

A branch is a residual block or a whole layer. What a closed form cannot reach, non-linear as it is, a few steps can, at
a fraction of the memory of training: one branch is held at a time, with what enters it and what it should give.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nervure.core.annotations import Batches, FilePath
from nervure.core.check import Checked, checked
from nervure.core.container import Kind, read_container, write_container
from nervure.core.progress import track
from nervure.core.schema import Count, Rate, Seed, Size
from nervure.core.tensors import cloned, digest_of, tensors_in
from nervure.errors import ArgumentError, DataError, FileError
from nervure.graph.copies import copy_model
from nervure.graph.models import unwrap
from nervure.refit.activations import watchable
from nervure.refit.branches import PrunedBranch, branches
from nervure.refit.calls import Call, heard
from nervure.refit.gather import GramPart
from nervure.refit.origins import require_weights, take_apart
from nervure.refit.replay import Replay, replay_of
from nervure.refit.settings import BranchFit
from nervure.refit.split import require_different, split
from nervure.tasks.guessing import TaskLike, as_task

M = TypeVar("M")
KIND = Kind("branch", "a branch that was reconstructed", 1)
LOOKS = 8
"""How often the samples left out are looked at."""
EXACT = (16 * torch.finfo(torch.float32).eps) ** 2
"""An error that is rounding in single precision."""


@final
@dataclass(frozen=True, slots=True)
class Reconstruct(Checked):
    """How to reconstruct.

    Attributes:
        samples: how many samples of the data are used, a quarter of them to choose by.
        steps: of Adam for each branch, each on one batch of the data.
        lr: the learning rate at the start; it falls to nothing as a cosine.
        seed: for the order of batches, also of a loader that shuffles.
    """

    samples: Size = 1024
    steps: Count = 200
    lr: Rate = 1e-3
    seed: Seed = 0


@final
@dataclass(frozen=True, slots=True)
class Reconstructed(Generic[M]):
    """A model with its branches reconstructed.

    Attributes:
        result: what was given, reconstructed: a module, or a pruned model.
        branches: what became of each branch, in running order.
        samples: how many samples were trained on, and how many were left out.
    """

    result: M
    branches: tuple[BranchFit, ...]
    samples: tuple[int, int]

    def __str__(self) -> str:
        return self.describe()

    def describe(self) -> str:
        """A readable table, branch by branch."""
        width = max([len("branch"), *(len(fit.branch) for fit in self.branches)])
        lines = [f"{'branch':<{width}}  {'error on samples':>20}  {'left out':>20}"]
        for fit in self.branches:
            numbers = f"{fit.before:>8.2g} -> {fit.after:<8.2g}  {fit.held_before:>8.2g} -> {fit.held_after:<8.2g}"
            lines.append(f"{fit.branch:<{width}}  {'left as it is: ' + fit.reason if fit.reason else numbers}".rstrip())
        seen, held = self.samples
        return "\n".join([*lines, f"{seen} samples trained on, {held} left out"])


@checked
def reconstruct(
    pruned: M,
    data: Batches,
    *,
    reference: nn.Module,
    task: TaskLike | None = None,
    how: Reconstruct | None = None,
    names: Iterable[str] | None = None,
    masks: Mapping[str, Tensor] | None = None,
    checkpoint: FilePath | None = None,
    progress: bool = True,
) -> Reconstructed[M]:
    """Train what is left, branch by branch in running order, to give what the dense network gives there. No labels.

    What enters a branch is what the smaller network gives so far. A branch that is as in the dense network stays so,
    and so do frozen parameters, those that are shared with other branches, and statistics of batch norms. The best
    step on samples that are left out is kept, so no branch is worse there than it was. Masked connections stay zero.

    Args:
        pruned: a pruned model, as :func:`nervure.prune` or :func:`nervure.refit` returns it; or a module of the shape
            of ``reference``. It is not changed.
        data: batches of any form; labels are not looked at.
        reference: the dense network that it was pruned from, with its weights.
        task: how batches go into the model (:mod:`nervure.tasks`), where their form does not say it.
        how: the choices, see :class:`Reconstruct`.
        names: the modules of the smaller network that are branches. None: the smallest that hold a residual block of
            its graph each; without any, the layers of its longest list.
        masks: of a module: which entries of its parameters may be other than zero, by name.
        checkpoint: a folder where branches that are done are kept: what was stopped goes on there.
        progress: show progress of what takes longer than two seconds.

    Raises:
        ArgumentError: there are no branches, one of ``names`` is no module, or ``reference`` is another network.
        PlanError: ``reference`` has other layers than the network that it was pruned from.
        DataError: the data are empty, all the same, or not finite, or the network makes them so.
        FileError: the checkpoint is of another model, other data, branches, masks or other choices.
    """
    how = Reconstruct() if how is None else how
    model, steps, held = take_apart(pruned, masks)
    reference = unwrap(reference)
    require_weights(model, reference, steps)
    parts = split(data, how.samples, as_task(task), seed=how.seed)
    require_different(parts)
    result = copy_model(model)
    found = branches(result, reference, steps, parts[0].batch, names)
    run = "" if checkpoint is None else _fingerprint(model, reference, parts, held, found, how)
    folder = None if checkpoint is None else Path(checkpoint)
    trainer = _Trainer(result, reference, parts, held, how, folder, run)
    with_bar = track(found, "reconstructing", len(found), enabled=progress)
    fits = tuple(trainer.fit(branch, number) for number, branch in enumerate(with_bar))
    counts = (sum(p.batch.size for p in parts if not p.held), sum(p.batch.size for p in parts if p.held))
    whole: Any = result if isinstance(pruned, nn.Module) else replace(pruned, model=result)  # type: ignore[type-var]
    return Reconstructed(whole, fits, counts)


@final
@dataclass(frozen=True, slots=True, eq=False)
class _Sample:
    """What enters a branch for some samples, and what it should give."""

    args: Any
    kwargs: Any
    target: Tensor
    held: bool


class _Trainer:
    def __init__(
        self,
        model: nn.Module,
        reference: nn.Module,
        parts: Sequence[GramPart],
        masks: Mapping[str, Tensor],
        how: Reconstruct,
        folder: Path | None,
        run: str,
    ) -> None:
        first = parts[0].batch
        self._sides = (replay_of(model, first), replay_of(reference, first))
        self._model, self._parts, self._masks, self._how, self._folder = model, parts, masks, how, folder
        self._run = run
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def fit(self, branch: PrunedBranch, number: int) -> BranchFit:
        """Train one branch, or take it from the checkpoint."""
        if branch.reason:
            return BranchFit(branch.name, reason=branch.reason)
        path = None if self._folder is None else self._folder / f"{number:04d}.safetensors"
        if path is not None and path.exists():
            return self._load(branch, path)
        found = self._train(branch)
        if path is not None:
            header = {"run": self._run, "fit": asdict(found)}
            write_container(path, dict(self._trained(branch)), header, KIND)
        return found

    def _load(self, branch: PrunedBranch, path: Path) -> BranchFit:
        header, tensors = read_container(path, dict[str, Any], KIND)
        trained = dict(self._trained(branch))
        if header.get("run") != self._run or tensors.keys() != trained.keys():
            raise FileError(
                f"{str(path)!r} holds a branch of another model, other data, branches, masks or choices. "
                "Give another folder."
            )
        _write(trained, tensors)
        return BranchFit(**header["fit"])

    def _trained(self, branch: PrunedBranch) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that may change, by their names in the branch."""
        for name, parameter in self._model.get_submodule(branch.name).named_parameters():
            if parameter.requires_grad and f"{branch.name}.{name}" not in branch.shared:
                yield name, parameter

    def _train(self, branch: PrunedBranch) -> BranchFit:
        module, trained = self._model.get_submodule(branch.name), dict(self._trained(branch))
        if not trained:
            return BranchFit(branch.name, reason="all its parameters are frozen or shared")
        samples = list(self._samples(branch))
        with watchable(self._model):
            before = _errors(module, samples)
            best = self._search(branch, trained, samples, before[1]) if before[1] > EXACT else {}
        _write(trained, best)
        with watchable(self._model):
            after = _errors(module, samples)
        return BranchFit(branch.name, before[0], after[0], before[1], after[1])

    def _samples(self, branch: PrunedBranch) -> Iterator[_Sample]:
        """Run both networks as far as the branch, part by part."""
        names = (branch.name, branch.partner)
        for replay, name in zip(self._sides, names, strict=True):
            with watchable(replay.model) as watch:
                replay.advance(watch, replay.start(name), [part.batch for part in self._parts])
        mine, theirs = self._sides
        for number, part in enumerate(self._parts):
            args, kwargs, given = _first_call(mine, branch.name, number, part)
            _, _, target = _first_call(theirs, branch.target, number, part)
            target = _left_of(target.to(given.device), given, branch.cuts)
            if target.shape != given.shape:
                raise ArgumentError(
                    f"branch {branch.name!r} gives {tuple(given.shape)} and {branch.target!r} of the dense network "
                    f"{tuple(target.shape)}: they are no partners. Leave it out of names."
                )
            if not bool(torch.isfinite(target).all() and torch.isfinite(given).all()):
                raise DataError(f"what {branch.name!r} gives is NaN or infinite. The model or the data are broken.")
            yield _Sample(args, kwargs, target, part.held)

    def _search(
        self, branch: PrunedBranch, trained: Mapping[str, nn.Parameter], samples: Sequence[_Sample], least: float
    ) -> dict[str, Tensor]:
        """The values that did best on the samples left out; none where nothing did better."""
        module, best = self._model.get_submodule(branch.name), dict[str, Tensor]()
        seen = [sample for sample in samples if not sample.held]
        generator = torch.Generator().manual_seed(self._how.seed)
        adam = torch.optim.Adam(trained.values(), lr=self._how.lr)
        fall = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(self._how.steps, 1))
        for step in range(1, self._how.steps + 1):
            sample = seen[int(torch.randint(len(seen), (), generator=generator))]
            adam.zero_grad()
            with torch.enable_grad():
                (_loss(module, sample) / sample.target.numel()).backward()
            adam.step()
            fall.step()
            self._hold(branch, trained)
            if step % max(self._how.steps // LOOKS, 1) == 0:
                error = _errors(module, samples)[1]
                if error < least:
                    least, best = error, {name: p.detach().clone() for name, p in trained.items()}
        return best

    def _hold(self, branch: PrunedBranch, trained: Mapping[str, nn.Parameter]) -> None:
        for name, parameter in trained.items():
            if (keep := self._masks.get(f"{branch.name}.{name}")) is not None:
                parameter.masked_fill_(~keep.to(parameter.device), 0)


def _first_call(replay: Replay, name: str, number: int, part: GramPart) -> Call:
    """What enters a branch in the run of a part of the data, and the tensor that it gives."""
    calls = heard(replay, [name], number, part.batch, only_first=True)[name]
    if not calls:
        raise ArgumentError(f"branch {name!r} does not run on these data. Leave it out of names.")
    return calls[0]


def _left_of(target: Tensor, given: Tensor, cuts: Sequence[Tensor]) -> Tensor:
    """What stays of a target where a branch gives less: of the positions that fit, those where it is nearest."""
    if target.ndim != given.ndim:
        return target
    for axis in range(1, given.ndim):
        most = target.shape[axis]
        there = [p.to(target.device) for p in cuts if len(p) == given.shape[axis] < most and int(p.max()) < most]
        if given.shape[axis] < most and there:
            narrow = [target.index_select(axis, p) for p in there]
            target = min(narrow, key=lambda t: float((t - given).square().sum()) if t.shape == given.shape else 0.0)
    return target


def _loss(module: nn.Module, sample: _Sample) -> Tensor:
    """The sum of squared errors on some samples."""
    args, kwargs = cloned((sample.args, sample.kwargs))
    given = tensors_in(module(*args, **kwargs))[0]
    return F.mse_loss(given.float(), sample.target.float(), reduction="sum")


def _errors(module: nn.Module, samples: Sequence[_Sample]) -> tuple[float, float]:
    """The error on the samples that are trained on, and on those left out, as shares of the targets' variance."""
    found = []
    for held in (False, True):
        mine = [sample for sample in samples if sample.held == held]
        count = sum(s.target.numel() for s in mine)
        mean = sum(float(s.target.double().sum()) for s in mine) / count
        spread = sum(float((s.target.double() - mean).square().sum()) for s in mine)
        with torch.no_grad():
            wrong = sum(float(_loss(module, sample)) for sample in mine)
        found.append(wrong / max(spread, torch.finfo(torch.float64).tiny))
    return found[0], found[1]


def _write(trained: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            trained[name].copy_(value)


def _fingerprint(
    model: nn.Module,
    reference: nn.Module,
    parts: Sequence[GramPart],
    masks: Mapping[str, Tensor],
    found: Sequence[PrunedBranch],
    how: Reconstruct,
) -> str:
    """What the values of a branch follow from: those before it too, for they are what enters it."""
    inputs, held = [part.batch.inputs for part in parts], sorted(masks)
    names = repr(([(branch.name, branch.target) for branch in found], held))
    tensors = (model.state_dict(), reference.state_dict(), inputs, [masks[name] for name in held])
    return f"{digest_of(tensors)} {hashlib.sha256(names.encode()).hexdigest()[:16]} {how}"
