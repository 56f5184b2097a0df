"""``trace``: the graph of a model, with every group that is offered for cutting known to be cut right."""

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from nervure.core.check import checked
from nervure.core.inputs import Inputs
from nervure.errors import CopyError, NervureError, NervureWarning
from nervure.graph.blocks import is_doubtful, with_blocks
from nervure.graph.models import evaluating, is_weightless, unwrap, without_fakes
from nervure.graph.modes import leave_modes, whole_convolutions
from nervure.graph.siblings import follow_siblings
from nervure.graph.tape import unreached_parameters
from nervure.graph.trace import (
    Choices,
    Outputs,
    TraceResult,
    check_modules,
    check_weights,
    chosen_patterns,
    draw,
    kept_by_choice,
    pinned_by_choice,
)
from nervure.graph.types import Block, Graph, Group
from nervure.plan import Cut, Drop, Keep, Plan
from nervure.surgery.blame import Edit, families_of, wrong_edits
from nervure.surgery.checker import Checker

SHOWN = 5
"""How many modules that the example does not reach are named."""


@checked
def trace(
    model: nn.Module,
    example: Any,
    *,
    ignore: Choices = (),
    only: Choices | None = None,
    outputs: Outputs = True,
    inputs: bool = False,
    inside_heads: bool = False,
) -> Graph:
    """Find what is coupled to what in ``model`` by running it once on ``example`` (on each, where there are several).

    The model runs in evaluation mode, without gradients and outside of modes that the caller is in; it is left as it
    was, whatever its forward wrote. What compiles a model or spreads it over devices (``torch.compile``,
    ``DistributedDataParallel``) is looked through: names are those of the module inside. Where parts of it only run in
    training mode (auxiliary heads), it runs once more in that mode. Groups whose cut depends on sizes written into the
    code are tried on the example: what does not compute the right thing is pinned, with the reason in
    ``Group.pinned``.

    Args:
        model: any module that runs.
        example: a tensor, a tuple of positional arguments, a dict of keyword arguments, or :class:`nervure.Inputs`;
            or a list of several of these, one for each way through the model (other heads, other experts, an early
            exit): they are joined into one graph, and costs are those of the first. A model on the ``meta`` device, or
            made of fake tensors, is traced without its weights; then nothing is tried.
        ignore: modules, or patterns of module names (``"layer1.*"``), that must not change on any side.
        only: modules or patterns that may lose units; all others are pinned. A group is free where all modules that
            make its units are named: a stream that several layers add to is cut where all of them are. What reads the
            units, and norms on them, follow wherever they are.
        outputs: pin the units that the model returns; or only those of some outputs, by the key, attribute or place
            that they are returned under (``"logits"``, ``["boxes", "scores"]``, ``"0"``).
        inputs: let the channels of the inputs (their axis 1) be units that can go.
        inside_heads: let the width inside attention heads be cut, evenly in all heads; heads are cut whole otherwise.

    Raises:
        ForwardError: the model's own forward raised; its error is the cause.
        TraceError: the weights are not finite, quantised, sharded or have no shape yet, a module is TorchScript, or no
            tensor came out.
        CopyError: a group had to be tried on a copy, and an attribute of the model cannot be copied.
        ArgumentError: ``example``, ``ignore``, ``only`` or ``outputs`` is not what it should be.
    """
    return trace_and_check(model, example, ignore, only, outputs=outputs, inputs=inputs, inside_heads=inside_heads)[
        0
    ].graph


@leave_modes()
@whole_convolutions()
def trace_and_check(
    model: nn.Module,
    example: Any,
    ignore: Choices,
    only: Choices | None,
    *,
    outputs: Outputs = True,
    inputs: bool = False,
    inside_heads: bool = False,
) -> tuple[TraceResult, Checker]:
    """What :func:`trace` finds, with the run that it was read from, and what compares cut models with the original."""
    model = unwrap(model)
    check_modules(model)
    choices = chosen_patterns(model, ignore, only)
    with without_fakes(model) as real, evaluating(real):
        check_weights(real)
        given = Inputs.several(example, real)
        drawing = draw(real, given, outputs=outputs, inputs=inputs, inside_heads=inside_heads)
        drawing.graph = pinned_by_choice(drawing.graph, *choices)
        drawing.graph = _noting_unreached(real, drawing)
        whole = kept_by_choice(with_blocks(drawing), *choices)
        drawing.graph = _with_elements(whole, {})
        unproven = drawing.suspects()
        checker = Checker(real, drawing, given)
        if not is_weightless(real):
            drawing.graph = _check_cuts(checker, whole, unproven)
        elif unproven:
            note = f"{len(unproven)} groups could not be tried without weights: {', '.join(list(unproven)[:5])}"
            drawing.graph = replace(drawing.graph, notes=(*drawing.graph.notes, note))
    return drawing, checker


def _noting_unreached(model: nn.Module, drawing: TraceResult) -> Graph:
    """The graph with a note of the modules that no example reached; a warning says so too."""
    idle, reached = set(unreached_parameters(model, drawing.flow.tape)), {call.name for call in drawing.flow.tape.calls}
    names = []
    for name, module in model.named_modules():
        own = [f"{name}.{key}" if name else key for key, _ in module.named_parameters(recurse=False)]
        if own and name not in reached and idle.issuperset(own):
            names.append(name)
    if not names:
        return drawing.graph
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    note = (
        f"not reached by the example: {', '.join(names[:SHOWN])}{more}. They lose what the others of their list lose, "
        "which nothing checks; where there are none, they stay as they are, and no longer fit where what they read is "
        "cut. Give a list of examples, one for each way through the model"
    )
    warnings.warn(note, NervureWarning, stacklevel=4)
    graph = follow_siblings(model, drawing.graph, idle)
    return replace(graph, notes=(*graph.notes, note))


def _check_cuts(checker: Checker, whole: Graph, unproven: Mapping[str, str]) -> Graph:
    """The graph with what does not compute the right thing pinned, and with the elements of ``whole`` that can go."""
    drawing = checker.drawing
    cuts = _trial_cuts(drawing.graph, unproven)
    lists = _lists(checker, whole)
    # Most often all is right, which a few trials of everything together tell.
    if not any(why_wrong(checker, graph, edits) for graph, edits in _trials(checker, lists, cuts) if edits):
        return _with_elements(drawing.graph, {name: element for one in lists for name, element in one.items()})
    drawing.graph = _pin_wrong_blocks(checker)
    drawing.graph = _find_elements(checker, whole)
    return _pin_wrong_groups(checker, _trial_cuts(drawing.graph, unproven), unproven)


def _trials(
    checker: Checker, lists: Sequence[Mapping[str, str]], cuts: Sequence[Cut]
) -> Iterator[tuple[Graph, list[Edit]]]:
    """Edits to be tried together, each with the graph that they are for: every kind of edit is in one of them.

    Blocks are dropped in both ways, taken out of their list and made the identity. Units are cut where they are not
    inside of what is dropped; of those that are in all trials, in one more.
    """
    graph = checker.drawing.graph
    firsts, others = _telling_drops(lists)
    elements = {name: element for one in lists for name, element in one.items()}
    first_elements = {name: element for name, element in elements.items() if Drop(name) in firsts}
    doubtful, left = _apart(graph, _doubtful_families(checker), [drop.block for drop in firsts])
    trials = [(_with_elements(graph, first_elements), [*firsts, *map(Drop, doubtful)], _first_alone(graph, cuts))]
    if others or trials[0][2] != cuts:
        trials.append((_with_elements(graph, elements), others, cuts))
    for listed, drops, some in trials:
        yield listed, [*drops, *_outside(graph, drops, some)]
    while left:
        doubtful, left = _apart(graph, left, ())
        yield graph, [*map(Drop, doubtful)]
    shown = {_family(graph, cut) for cut in _outside(graph, trials[-1][1], cuts)}
    yield graph, [cut for cut in cuts if _family(graph, cut) not in shown]


def _first_alone(graph: Graph, cuts: Sequence[Cut]) -> Sequence[Cut]:
    """A wrong number of blocks can come out right by chance where their insides are cut too: blocks go first alone."""
    return [cut for cut in cuts if graph[cut.group].kind == "blocks"] or cuts


def _outside(graph: Graph, drops: Iterable[Drop], cuts: Iterable[Cut]) -> list[Cut]:
    """The cuts of groups that do not leave as a whole with what is dropped."""
    gone = tuple(f"{module}." for drop in drops for module in graph.block(drop.block).modules)
    return [cut for cut in cuts if not all(slot.tensor.startswith(gone) for slot in graph[cut.group].slots)]


def _family(graph: Graph, cut: Cut) -> tuple[str, int]:
    return re.sub(r"\d+", "*", cut.group), graph[cut.group].size


def _trial_cuts(graph: Graph, unproven: Mapping[str, str]) -> list[Cut]:
    sized = [graph[name] for name in unproven if graph[name].size > 1]
    return [Cut(group.name, _share(i, group)) for i, group in enumerate(sized)]


def _pin_wrong_groups(checker: Checker, cuts: Sequence[Cut], unproven: Mapping[str, str]) -> Graph:
    """Cut the unproven groups on a copy, run it, and pin those that do not compute the right thing."""
    graph = checker.drawing.graph
    if not cuts:
        return graph

    def attempt(edits: Sequence[Edit]) -> str:
        blocks = _first_alone(graph, [edit for edit in edits if isinstance(edit, Cut)])
        first = why_wrong(checker, graph, blocks) if len(blocks) < len(edits) else ""
        return first or why_wrong(checker, graph, edits)

    wrong = wrong_edits(attempt, families_of(graph, cuts))
    return pin_edits(graph, {edit: f"{unproven[edit.group]}: {wrong[edit]}" for edit in cuts if edit in wrong})


def why_wrong(checker: Checker, graph: Graph, edits: Iterable[Edit]) -> str:
    """Why these edits together do not compute the right thing, in a line; empty where they do."""
    try:
        found = checker.check(graph, Plan(tuple(edits)))
    except CopyError:
        raise
    except NervureError as error:
        return str(error).split("\n", maxsplit=1)[0][:200]
    return f"cannot be checked ({found.reason})" if found.error is None else ""


def pin_edits(graph: Graph, wrong: Mapping[Edit, str]) -> Graph:
    """The graph with what these edits would cut or drop pinned, for the reasons given."""
    groups = {edit.group: reason for edit, reason in wrong.items() if isinstance(edit, Cut)}
    blocks = {edit.block: reason for edit, reason in wrong.items() if isinstance(edit, Drop)}
    return replace(
        graph,
        groups=tuple(replace(g, pinned=groups[g.name]) if g.name in groups else g for g in graph.groups),
        blocks=tuple(replace(b, pinned=blocks[b.name]) if b.name in blocks else b for b in graph.blocks),
    )


def _share(index: int, group: Group) -> Keep:
    """Units to keep in a trial: shares differ, since sizes that are quotients of others fit where all are halved."""
    size = group.size
    kept = max(1, round(size * (0.5, 0.75, 0.34, 0.62)[index % 4]))
    kept = min(group.round_up(kept), group.round_up(size) - group.multiple)
    order = np.argsort((np.arange(size) * 7 + 3) % (size + 1), kind="stable")
    keep = np.zeros(size, dtype=bool)
    keep[order[:kept]] = True
    return Keep.of(keep)


def _pin_wrong_blocks(checker: Checker) -> Graph:
    """Drop the blocks of a doubtful kind once, one of each family, and pin those that compute something else."""
    graph, reasons = checker.drawing.graph, dict[str, str]()
    doubtful = _doubtful(checker)
    for block in doubtful:
        family = re.sub(r"\d+", "*", block.name)
        if family not in reasons:
            reasons[family] = why_wrong(checker, graph, [Drop(block.name)])
    wrong = {Drop(b.name): reasons[re.sub(r"\d+", "*", b.name)] for b in doubtful}
    return pin_edits(graph, {drop: reason for drop, reason in wrong.items() if reason})


def _doubtful(checker: Checker) -> list[Block]:
    blocks = checker.drawing.graph.blocks
    return [block for block in blocks if not block.pinned and is_doubtful(checker.drawing, block)]


def _doubtful_families(checker: Checker) -> list[list[str]]:
    families: dict[str, list[str]] = {}
    for block in _doubtful(checker):
        families.setdefault(re.sub(r"\d+", "*", block.name), []).append(block.name)
    return list(families.values())


def _apart(
    graph: Graph, families: Iterable[Sequence[str]], dropped: Iterable[str]
) -> tuple[list[str], list[Sequence[str]]]:
    """A block of each family that shares no module with others, or with ``dropped``; and the families without one."""
    gone = [f"{module}." for name in dropped for module in graph.block(name).modules]
    chosen, left = list[str](), list[Sequence[str]]()
    for family in families:
        for name in family:
            modules = [f"{module}." for module in graph.block(name).modules]
            if not any(m.startswith(other) or other.startswith(m) for m in modules for other in gone):
                gone += modules
                chosen.append(name)
                break
        else:
            left.append(family)
    return chosen, left


def _find_elements(checker: Checker, whole: Graph) -> Graph:
    """The graph with the elements that blocks of ``whole`` are, where their list bears that they are taken out."""
    graph, lists = checker.drawing.graph, _lists(checker, whole)

    def bears(*chosen: Mapping[str, str]) -> bool:
        listed = _with_elements(graph, {name: element for one in chosen for name, element in one.items()})
        return not any(why_wrong(checker, listed, drops) for drops in _telling_drops(chosen) if drops)

    def bearing(alike: Sequence[Mapping[str, str]]) -> Sequence[Mapping[str, str]]:
        # Lists of a family are alike: where the first fails (experts, which a gate numbers), so do the rest.
        if not bears(alike[0]):
            return []
        return alike if len(alike) == 1 or bears(*alike) else [one for one in alike if bears(one)]

    families: dict[str, list[Mapping[str, str]]] = {}
    for one in lists:
        families.setdefault(re.sub(r"\d+", "*", next(iter(one.values()))), []).append(one)
    good = lists if bears(*lists) else [one for alike in families.values() for one in bearing(alike)]
    return _with_elements(graph, {name: element for one in good for name, element in one.items()})


def _lists(checker: Checker, whole: Graph) -> list[dict[str, str]]:
    """For each list of layers the elements that are blocks and may leave it, by the block's name."""
    lists: dict[str, dict[str, str]] = {}
    holders: dict[nn.Module, list[nn.Module]] = {}
    for module in checker.model.modules():
        for child in module.children():
            holders.setdefault(child, []).append(module)
    for block, now in zip(whole.blocks, checker.drawing.graph.blocks, strict=True):
        if block.element and not now.pinned and _is_listed(checker.model, block.element, holders):
            lists.setdefault(block.element.rpartition(".")[0], {})[block.name] = block.element
    return list(lists.values())


def _telling_drops(lists: Iterable[Iterable[str]]) -> tuple[list[Drop], list[Drop]]:
    """The first block of each list; every second and the last.

    What stands at a certain number, counts from the end or goes along with another list is wrong in one of them.
    """
    listed = [list(names) for names in lists]
    others = [dict.fromkeys((*names[1::2], names[-1])) for names in listed]
    return [Drop(names[0]) for names in listed], [Drop(name) for names in others for name in names]


def _is_listed(model: nn.Module, element: str, holders: Mapping[nn.Module, Sequence[nn.Module]]) -> bool:
    """Whether a module is an element of a list of layers, and of nothing else: of a Sequential, where all are alike."""
    holder, *others = holders[model.get_submodule(element)]
    alike = len({type(child) for child in holder.children()}) == 1
    is_list = isinstance(holder, nn.ModuleList) or (isinstance(holder, nn.Sequential) and alike)
    return is_list and not others and element.rpartition(".")[2].isdigit()


def _with_elements(graph: Graph, elements: Mapping[str, str]) -> Graph:
    """The graph whose blocks are these elements, by the block's name, and no others."""
    return replace(graph, blocks=tuple(replace(b, element=elements.get(b.name, "")) for b in graph.blocks))
