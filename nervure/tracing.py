"""``trace``: the graph of a model, with every group that is offered for cutting known to be cut right."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from nervure.errors import CopyError, NervureError, VerificationError
from nervure.graph.blocks import is_doubtful, with_blocks
from nervure.graph.example import evaluating, is_weightless, placed_like, unfaked, unwrapped
from nervure.graph.modes import isolated
from nervure.graph.trace import (
    Choice,
    Drawing,
    check_modules,
    check_weights,
    chosen_patterns,
    draw,
    kept_by_choice,
    pinned_by_choice,
)
from nervure.graph.types import Graph, Group
from nervure.plan import Cut, Drop, Keep, Plan
from nervure.surgery.apply import apply
from nervure.surgery.verify import compare, outputs_of, reference


def trace(
    model: nn.Module,
    example: Any,
    *,
    ignore: Iterable[Choice] = (),
    only: Iterable[Choice] | None = None,
    outputs: bool = True,
    inputs: bool = False,
    inside_heads: bool = False,
) -> Graph:
    """Find what is coupled to what in ``model`` by running it once on ``example``.

    The model runs in evaluation mode, without gradients and outside of modes that the caller is in; it is left as it
    was, whatever its forward wrote. What compiles a model or spreads it over devices (``torch.compile``,
    ``DistributedDataParallel``) is looked through: names are those of the module inside. Where parts of it only run in
    training mode (auxiliary heads), it runs once more in that mode. Groups whose cut depends on sizes written into the
    code are tried on the example: what does not compute the right thing is pinned, with the reason in
    ``Group.pinned``.

    Args:
        model: any module that runs.
        example: a tensor, a tuple of positional arguments, or a dict of keyword arguments. A model on the ``meta``
            device, or made of fake tensors, is traced without its weights; then nothing is tried.
        ignore: modules, or patterns of module names (``"layer1.*"``), that must not change on any side.
        only: modules or patterns that may lose units; all others are pinned.
        outputs: pin the units that the model returns.
        inputs: let the channels of the inputs (their axis 1) be units that can go.
        inside_heads: let the width inside attention heads be cut, evenly in all heads; heads are cut whole otherwise.

    Raises:
        ForwardError: the model's own forward raised; its error is the cause.
        TraceError: the weights are not finite, quantised, sharded or have no shape yet, a module is TorchScript, or no
            tensor came out.
        CopyError: a group had to be tried on a copy, and an attribute of the model cannot be copied.
        ArgumentError: ``example``, ``ignore`` or ``only`` is not what it should be.
    """
    return drawn(model, example, ignore, only, outputs=outputs, inputs=inputs, inside_heads=inside_heads).graph


@isolated()
def drawn(
    model: nn.Module,
    example: Any,
    ignore: Iterable[Choice],
    only: Iterable[Choice] | None,
    *,
    outputs: bool = True,
    inputs: bool = False,
    inside_heads: bool = False,
) -> Drawing:
    """What :func:`trace` finds, with the run that it was read from: for more questions about the same model."""
    model = unwrapped(model)
    check_modules(model)
    choices = chosen_patterns(model, ignore, only)
    with unfaked(model) as real, evaluating(real):
        check_weights(real)
        example = placed_like(real, example)
        drawing = draw(real, example, outputs=outputs, inputs=inputs, inside_heads=inside_heads)
        drawing.graph = pinned_by_choice(drawing.graph, *choices)
        drawing.graph = kept_by_choice(with_blocks(drawing), *choices)
        suspects = drawing.suspects()
        if not is_weightless(real):
            drawing.graph = _with_blocks_tried(real, drawing, example)
            drawing.graph = tried(real, drawing, suspects, example) if suspects else drawing.graph
        elif suspects:
            note = f"{len(suspects)} groups could not be tried without weights: {', '.join(list(suspects)[:5])}"
            drawing.graph = replace(drawing.graph, notes=(*drawing.graph.notes, note))
    return drawing


def tried(model: nn.Module, drawing: Drawing, suspects: Mapping[str, str], example: Any) -> Graph:
    """Cut the suspected groups on a copy, run it, and pin those that do not compute the right thing."""
    families: dict[tuple[str, int], list[str]] = {}
    for name in suspects:
        group = drawing.graph[name]
        if group.size > 1:
            families.setdefault((re.sub(r"\d+", "*", name), group.size), []).append(name)
    trial = _Trial(model, drawing, example)
    bad = trial.failing([name for names in families.values() for name in names], list(families.values()))
    groups = tuple(
        replace(g, pinned=f"{suspects[g.name]}: {trial.reasons.get(g.name, 'does not survive a cut')}")
        if g.name in bad
        else g
        for g in drawing.graph.groups
    )
    return replace(drawing.graph, groups=groups)


def _share(index: int, group: Group) -> Keep:
    """Units to keep in a trial: shares differ, since sizes that are quotients of others fit where all are halved."""
    size = group.size
    kept = max(1, round(size * (0.5, 0.75, 0.34, 0.62)[index % 4]))
    kept = min(group.allowed(kept), group.allowed(size) - group.multiple)
    order = np.argsort((np.arange(size) * 7 + 3) % (size + 1), kind="stable")
    keep = np.zeros(size, dtype=bool)
    keep[order[:kept]] = True
    return Keep.of(keep)


def _with_blocks_tried(model: nn.Module, drawing: Drawing, example: Any) -> Graph:
    """Drop the blocks of a doubtful kind once, one of each family."""
    trial, blocks = _Trial(model, drawing, example), []
    verdicts: dict[str, str] = {}
    for block in drawing.graph.blocks:
        family = re.sub(r"\d+", "*", block.name)
        doubtful = is_doubtful(drawing, block)
        if doubtful and not block.pinned and family not in verdicts:
            trial.computes(Plan((Drop(block.name),)), block.name)
            verdicts[family] = trial.reasons.get(block.name, "")
        reason = verdicts.get(family, "") if doubtful else ""
        blocks.append(replace(block, pinned=block.pinned or reason))
    return replace(drawing.graph, blocks=tuple(blocks))


class _Trial:
    def __init__(self, model: nn.Module, drawing: Drawing, example: Any) -> None:
        self._model, self._drawing, self._example = model, drawing, example
        self.reasons: dict[str, str] = {}

    def failing(self, names: list[str], families: list[list[str]]) -> set[str]:
        """Which of ``names`` cannot be cut; families are tried as one before their members are."""
        if not names or self.passes(names):
            return set()
        if len(families) > 1:
            half = len(families) // 2
            bad: set[str] = set()
            for part in (families[:half], families[half:]):
                bad |= self.failing([n for family in part for n in family], part)
            good = [n for n in names if n not in bad]
            # Each half may pass and both together fail: then what was cut second has to stay.
            if not bad and not self.passes(good):
                return {n for family in families[half:] for n in family}
            return bad
        if len(names) == 1 or not self.passes(names[:1]):
            # The members of a family are alike: where the first fails, so do the rest.
            for name in names:
                self.reasons.setdefault(name, self.reasons.get(names[0], "does not survive a cut"))
            return set(names)
        return self.failing(names[:1], [names[:1]]) | self.failing(names[1:], [[n] for n in names[1:]])

    def passes(self, names: list[str]) -> bool:
        """Cut these groups, each by another share, and compare with the original without what left."""
        graph = self._drawing.graph
        cuts = {n: Cut(n, _share(i, graph[n])) for i, n in enumerate(names)}
        # A wrong number of blocks can come out right by chance where their insides are cut too: blocks go first alone.
        blocks = [n for n in names if graph[n].kind == "blocks"]
        if blocks and len(blocks) < len(names) and not self.computes(Plan(tuple(cuts[n] for n in blocks)), names[0]):
            return False
        return self.computes(Plan(tuple(cuts.values())), names[0])

    def computes(self, plan: Plan, name: str) -> bool:
        """Whether a plan computes the right thing; where it does not, the reason is noted under ``name``."""
        graph = self._drawing.graph
        try:
            smaller = apply(self._model, graph, plan)
            found = outputs_of(smaller, self._example)
            outcome = compare(reference(self._model, self._drawing, graph, plan, self._example), found)
            if not outcome:
                raise VerificationError(f"relative error {outcome.error:.1e}")
        except CopyError:
            raise
        except NervureError as error:
            self.reasons[name] = str(error).split("\n", maxsplit=1)[0][:200]
            return False
        return True
