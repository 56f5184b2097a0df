"""The smallest of several pruned networks that is still good when the data shift.

It is chosen by corruptions that the test does not use: what was chosen on them would look better there than it is.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, final

from torch import nn

from nervure.core.check import checked
from nervure.core.schema import Fraction, Seed
from nervure.errors import ArgumentError, BudgetError
from nervure.evaluation.answers import Key
from nervure.evaluation.corruptions import GROUPS, HELD_OUT, SEVERITIES
from nervure.evaluation.labelled import Data
from nervure.evaluation.shift import Normalisation, Shifted, evaluate_shift

K = TypeVar("K", bound=Hashable)
REFERENCE = "the dense network"
TESTED = frozenset(name for kind in ("noise", "blur", "weather", "digital") for name in GROUPS[kind])


@final
@dataclass(frozen=True, slots=True)
class RobustChoice(Generic[K]):
    """What was chosen, and by what.

    Attributes:
        name: the key of the smallest candidate that keeps enough.
        kept: for each candidate its accuracy under shift over that of the dense network.
        sizes: for each candidate its size.
        share: what had to be kept.
        found: for each candidate its metrics.
        dense: those of the dense network.
    """

    name: K
    kept: Mapping[K, float]
    sizes: Mapping[K, float]
    share: float
    found: Mapping[K, Shifted]
    dense: Shifted

    def table(self) -> str:
        """Candidates by size as Markdown: size, accuracy, accuracy under shift, and what share that is."""
        lines = ["| candidate | size | clean | shifted | kept |", "|---|---|---|---|---|"]
        for name in sorted(self.sizes, key=lambda one: self.sizes[one]):
            found, mark = self.found[name], " (chosen)" if name == self.name else ""
            cells = f"{100 * found.clean.accuracy:.1f} | {100 * found.accuracy:.1f} | {100 * self.kept[name]:.1f} %"
            lines.append(f"| {name}{mark} | {self.sizes[name]:,.0f} | {cells} |")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        rows = {str(name): {"kept": self.kept[name], "size": self.sizes[name]} for name in self.sizes}
        metrics = {str(name): found.to_json() for name, found in self.found.items()}
        dense = self.dense.to_json()
        return {"chosen": str(self.name), "share": self.share, "candidates": rows, "metrics": metrics, "dense": dense}


@checked
def live_weights(model: nn.Module) -> int:
    """How many parameters are not zero: smaller after a cut as after a mask."""
    return sum(int(parameter.detach().count_nonzero()) for parameter in model.parameters())


@checked
def smallest_robust(
    candidates: Mapping[K, nn.Module],
    dense: nn.Module,
    data: Data,
    *,
    share: Fraction = 0.95,
    shift: str | Iterable[str] | Mapping[Key, Data] = HELD_OUT,
    severities: Iterable[int] = SEVERITIES,
    size: Callable[[nn.Module], float] = live_weights,
    normalisation: Normalisation | None = None,
    seed: Seed = 0,
    progress: bool = True,
) -> RobustChoice[K]:
    """Find the smallest candidate that keeps a share of the dense network's accuracy under shift.

    Args:
        candidates: pruned (and trained) networks by name, or by what each keeps: ``{0.2: small, 0.5: larger}``.
        dense: the network they were made from.
        data: (inputs, labels) batches of *validation* samples.
        share: how much of the accuracy must be kept, in (0, 1].
        shift: by which shifts, as for :func:`nervure.evaluation.evaluate_shift`; those of the test are refused. The
            default are the four that their authors held out for this.
        severities: which of 1 to 5.
        size: what is small; the number of parameters that are not zero, if not said otherwise.
        normalisation: mean and std per channel of pictures.
        seed: another seed draws other corruptions.
        progress: show a bar on a terminal.

    Raises:
        ArgumentError: there is no candidate, or ``shift`` names one of the 15 corruptions that tests use.
        BudgetError: no candidate keeps that much; the message says which keeps most.
        DataError: the data cannot be used.
    """
    if not candidates:
        raise ArgumentError("there are no candidates to choose from: give at least one network.")
    if not isinstance(shift, Mapping):
        shift = _of_validation(shift)
    names = {f"candidate {number}": key for number, key in enumerate(candidates)}
    found = evaluate_shift(
        {REFERENCE: dense, **{name: candidates[key] for name, key in names.items()}},
        data,
        shift=shift,
        severities=severities,
        normalisation=normalisation,
        seed=seed,
        progress=progress,
    )
    reference = found[REFERENCE].accuracy
    kept = {key: found[name].accuracy / max(reference, 1e-12) for name, key in names.items()}
    enough = [key for key in kept if kept[key] >= share]
    if not enough:
        best = max(kept, key=lambda key: kept[key])
        raise BudgetError(
            f"share={share:g}: no candidate keeps that much of the accuracy under shift ({reference:.1%} before). "
            f"{best!r} keeps most, {kept[best]:.1%} of it. Give larger candidates, train them longer, or ask for less."
        )
    sizes = {key: size(model) for key, model in candidates.items()}
    return RobustChoice(
        min(enough, key=lambda key: (sizes[key], -kept[key])),
        kept,
        sizes,
        share,
        {key: found[name] for name, key in names.items()},
        found[REFERENCE],
    )


def _of_validation(shift: str | Iterable[str]) -> tuple[str, ...]:
    """The names of a choice; ArgumentError where tests use one of them."""
    asked = [shift] if isinstance(shift, str) else list(shift)
    names = {name for entry in asked for name in (TESTED if entry == "all" else GROUPS.get(entry, (entry,)))}
    if tested := sorted(TESTED & names):
        raise ArgumentError(
            f"shift={shift!r} has corruptions that tests use ({', '.join(tested[:3])}, ...): a choice made by them "
            f"would spoil the test. Give others, such as {', '.join(HELD_OUT)}."
        )
    return tuple(asked)
