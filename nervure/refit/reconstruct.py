"""Local reconstruction: branch by branch, a few steps of training towards what the dense branch gives.

In running order, each branch is given what the smaller network gives it by then, and trained to give what the dense
network gives at its end: errors of the branches before it are made up for. One branch is in memory at a time, with what
goes in and what should come out. No labels. (arXiv 2510.14444 reports the quality of retraining the whole at a tenth of
the data.)
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from nervure.core.container import Kind, read_container, write_container
from nervure.core.files import require_folder
from nervure.core.progress import track
from nervure.core.tensors import digest_of, tensors_in
from nervure.errors import FileError
from nervure.graph.models import device_of, evaluating
from nervure.graph.tape import named_tensors
from nervure.refit.branches import Branch, call_of, choose_outputs, find_branches, first_output, output_of, under
from nervure.refit.gather import GramPart
from nervure.refit.origins import Origin
from nervure.refit.settings import BranchFit, Refit

KIND = Kind("nervure-branch", "a branch that was trained to give what the dense one gives", version=1)
LOOKS = 8
"""How often a branch is judged on the samples left out while it is trained."""


@final
class Reconstructor:
    """Trains the branches of a model in place.

    Args:
        model: the smaller network.
        reference: the dense one.
        came: where the tensors of the former come from.
        masks: which entries of its parameters may be other than zero, by name.
        parts: samples to train on, and samples to judge by.
        how: steps and learning rate.
        folder: where branches that are done are kept; None: nowhere.
    """

    def __init__(
        self,
        model: nn.Module,
        reference: nn.Module,
        came: Mapping[str, Origin],
        masks: Mapping[str, Tensor],
        parts: Sequence[GramPart],
        how: Refit,
        folder: Path | None = None,
    ) -> None:
        device = device_of(model)
        self._model, self._reference, self._came, self._masks, self._how = model, reference, came, masks, how
        self._parts = [GramPart(part.batch.to(device), part.held) for part in parts]
        self._folder = None if folder is None else require_folder(folder)

    def run(self, progress: bool) -> tuple[BranchFit, ...]:
        """Train all branches; what became of each."""
        with evaluating(self._model), evaluating(self._reference):
            branches = find_branches(self._model, self._reference, self._came, self._parts)
            key = "" if self._folder is None else self._digest()
            shown = track(branches, "reconstructing", len(branches), enabled=progress)
            return tuple(self._resume(place, branch, key) for place, branch in enumerate(shown))

    def _digest(self) -> str:
        """What the answer depends on: the networks, the samples, the choices."""
        digest = hashlib.sha256(repr(self._how).encode())
        for side in (self._model, self._reference):
            digest.update(
                digest_of({name: tensor.detach().cpu() for name, tensor in named_tensors(side).items()}).encode()
            )
        for part in self._parts:
            for tensor in tensors_in(part.batch.raw):
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _resume(self, place: int, branch: Branch, key: str) -> BranchFit:
        """What became of a branch; trained now, or before a run was stopped."""
        if branch.reason:
            return BranchFit(branch.name, reason=branch.reason)
        path = None if self._folder is None else self._folder / f"branch-{place:04}.safetensors"
        module = self._model.get_submodule(branch.name)
        if path is not None:
            with suppress(FileError):  # it is not there yet, or damaged
                header, tensors = read_container(path, dict[str, Any], KIND)
                if header["key"] == key and header["fit"]["branch"] == branch.name:
                    module.load_state_dict({**module.state_dict(), **tensors})
                    return BranchFit(**header["fit"])
        fit = self._train(branch, module)
        if path is not None:
            trained = {name: p.detach() for name, p in self._trainable(branch, module).items()}
            write_container(path, trained, {"key": key, "fit": asdict(fit)}, KIND)
        return fit

    def _train(self, branch: Branch, module: nn.Module) -> BranchFit:
        parameters = self._trainable(branch, module)
        if not parameters:
            return BranchFit(branch.name, reason="it has no parameters of its own that may change")
        pairs = self._pairs(branch, module)
        if pairs is None:
            return BranchFit(branch.name, reason="what it gives is not a part of what the dense branch gives")
        seen, held = ([pair for pair in pairs if pair.held is held] for held in (False, True))
        before, held_before = _error(module, seen), _error(module, held)
        if before <= (16 * torch.finfo(torch.float32).eps) ** 2:
            return BranchFit(branch.name, 0, before, before, held_before, held_before)
        steps = self._descend(branch, module, parameters, seen, held)
        return BranchFit(branch.name, steps, before, _error(module, seen), held_before, _error(module, held))

    def _descend(
        self,
        branch: Branch,
        module: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        seen: Sequence["_Pair"],
        held: Sequence["_Pair"],
    ) -> int:
        """Train; the state that does best on the samples left out stays. The number of steps to it."""
        optimizer = torch.optim.AdamW(parameters.values(), lr=self._how.lr, weight_decay=0.0)
        masks = self._masks_of(branch, parameters)
        chance = torch.Generator().manual_seed(self._how.seed)
        least, best, at = _error(module, held), _copies(parameters), 0
        every = max(1, self._how.steps // LOOKS)
        order: list[int] = []
        for step in range(1, self._how.steps + 1):
            order = order or torch.randperm(len(seen), generator=chance).tolist()
            for group in optimizer.param_groups:
                group["lr"] = self._how.lr * (1 - (step - 1) / self._how.steps)
            _step(module, seen[order.pop()], optimizer, masks)
            if step % every == 0 or step == self._how.steps:
                error = _error(module, held)
                if error < least:
                    least, best, at = error, _copies(parameters), step
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(best[name])
        return at

    def _masks_of(self, branch: Branch, parameters: Mapping[str, nn.Parameter]) -> list[tuple[nn.Parameter, Tensor]]:
        names = {name: under(branch.name, name) for name in parameters}
        return [
            (parameters[n], self._masks[whole].to(parameters[n])) for n, whole in names.items() if whole in self._masks
        ]

    def _trainable(self, branch: Branch, module: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters of a branch that may change, and that no other part of the model uses."""
        inside = {under(branch.name, name) for name, _ in module.named_parameters(remove_duplicate=False)}
        shared = {id(p) for name, p in self._model.named_parameters(remove_duplicate=False) if name not in inside}
        return {name: p for name, p in module.named_parameters() if p.requires_grad and id(p) not in shared}

    def _pairs(self, branch: Branch, module: nn.Module) -> list["_Pair"] | None:
        """What goes into a branch and what should come out, for all samples; None where the latter cannot be told."""
        chosen = None
        found = []
        names = [under(branch.name, name) for name, _ in module.named_parameters()]
        for part in self._parts:
            args, kwargs = call_of(self._model, branch.name, part)
            wanted = output_of(self._reference, branch.partner, part)
            if chosen is None:
                with torch.no_grad():
                    mine = first_output(module(*args, **kwargs))
                chosen = choose_outputs(names, self._came, mine, wanted)
            if chosen is None:
                return None
            axis, rows = chosen
            wanted = wanted if rows is None else wanted.index_select(axis, rows.to(wanted.device))
            found.append(_Pair(args, kwargs, wanted, part.held))
        return found


@final
class _Pair:
    """What goes into a branch, and what should come out."""

    def __init__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], wanted: Tensor, held: bool) -> None:
        self.args, self.kwargs, self.wanted, self.held = args, kwargs, wanted, held
        self.spread = float((wanted - wanted.mean()).double().square().sum())

    def loss(self, module: nn.Module) -> Tensor:
        """Squared errors, as a share of the variance of what should come out."""
        wrong = (first_output(module(*self.args, **self.kwargs)) - self.wanted).square().sum()
        return wrong / max(self.spread, torch.finfo(torch.float32).tiny)


def _step(
    module: nn.Module, pair: _Pair, optimizer: torch.optim.Optimizer, masks: Iterable[tuple[nn.Parameter, Tensor]]
) -> None:
    optimizer.zero_grad(set_to_none=True)
    with torch.enable_grad():
        pair.loss(module).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        for parameter, mask in masks:
            parameter.mul_(mask)


def _error(module: nn.Module, pairs: Sequence[_Pair]) -> float:
    with torch.no_grad():
        wrong = sum(float(pair.loss(module)) * pair.spread for pair in pairs)
    return wrong / max(sum(pair.spread for pair in pairs), torch.finfo(torch.float32).tiny)


def _copies(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}
