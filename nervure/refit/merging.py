"""Sums that several processes gathered, each on its share of the samples, as those of all."""

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from nervure.core.collectives import add_up, gather_texts
from nervure.refit.batch_norms import Entered
from nervure.refit.moments import InputSums, Moments


def merge_moments(mine: Mapping[str, Moments], device: torch.device) -> dict[str, Moments]:
    """The moments of all processes by name; a process need not have all of them.

    What shares sums over inputs in every process that has it goes on sharing them.
    """
    heads = _heads(mine)
    inputs = {heads[name]: moments.inputs for name, moments in mine.items()}
    origins = _origins(
        {f"x {head}": (sums.count, sums.x0) for head, sums in inputs.items()}
        | {f"y {name}": (moments.count, moments.y0) for name, moments in mine.items()}
    )
    terms: dict[str, Tensor] = {}
    for head, sums in inputs.items():
        terms |= {f"{part} {head}": term for part, term in sums.about(origins[f"x {head}"]).items()}
    for name, moments in mine.items():
        about = moments.about(origins[f"x {heads[name]}"], origins[f"y {name}"])
        terms |= {f"{part} {name}": term for part, term in about.items()}
    terms = {name: term.to(device) for name, term in add_up(terms).items()}
    shared: dict[str, InputSums] = {}
    found = {}
    for name, head in heads.items():
        x0, y0 = (origins[key].to(device) for key in (f"x {head}", f"y {name}"))
        if head not in shared:
            shared[head] = InputSums.of(x0, {part: terms[f"{part} {head}"] for part in InputSums.TERMS})
        found[name] = Moments.of(y0, shared[head], {part: terms[f"{part} {name}"] for part in Moments.TERMS})
    return found


def merge_entered(mine: Mapping[str, Entered]) -> dict[str, Entered]:
    """What entered the norms, by name, in all processes."""
    terms = {f"{part} {name}": term for name, entered in mine.items() for part, term in entered.terms().items()}
    merged = add_up(terms)
    names = sorted({name.partition(" ")[2] for name in merged})
    return {name: Entered.of({part: merged[f"{part} {name}"] for part in Entered.TERMS}) for name in names}


def _heads(mine: Mapping[str, Moments]) -> dict[str, str]:
    """For each name of any process whose sums over inputs it has: those of the first that shares them everywhere."""
    first: dict[int, str] = {}
    told = {name: first.setdefault(id(mine[name].inputs), name) for name in sorted(mine)}
    theirs = [json.loads(text) for text in gather_texts(json.dumps(told))]
    found = {}
    for name in sorted(set().union(*theirs)):
        heads = {heads[name] for heads in theirs if name in heads}
        found[name] = heads.pop() if len(heads) == 1 else name
    return found


def _origins(given: Mapping[str, tuple[int, Tensor]]) -> dict[str, Tensor]:
    """From where all count, the mean of where each does: large means cost no digits then."""
    totals = add_up({name: torch.cat([x0 * n, torch.full_like(x0[..., :1], n)], -1) for name, (n, x0) in given.items()})
    return {name: total[..., :-1] / total[..., -1:] for name, total in totals.items()}
