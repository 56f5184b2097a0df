"""Evidence gathered on data, as a value that can be saved."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

from torch import Tensor

from nervure.core.container import DamageError, Kind, read_container, reading, write_container
from nervure.core.schema import Count

KIND = Kind("nervure-stats", "statistics saved by nervure", version=2, remedy="Measure again.")
KINDS: Mapping[str, int] = {
    "activations": 2,
    "gradients": 2,
    "moments": 2,
    "effects": 2,
    "readings": 2,
    "routing": 2,
    "connections": 3,
    "blocks": 2,
    "shifts": 2,
}
"""Evidence by group, tensor or block, and how many axes it has."""
WHOLE = ("labels", "outputs")


@final
@dataclass(frozen=True, slots=True)
class _StatsHeader:
    samples: Count
    seed: int
    want: frozenset[str]
    fingerprint: str
    skipped: dict[str, str]


@final
@dataclass(frozen=True, slots=True, eq=False)
class Stats:
    """What ``measure`` saw. Tensors are float32 on the CPU.

    Attributes:
        activations: per group [samples, units], the output of each unit averaged over its positions.
        gradients: per group [samples, units], activation times the gradient of each sample's cross-entropy with respect
            to it, summed over positions: to first order, how much the loss would *fall* if the unit became zero.
        moments: per group [units, 2], mean and mean square over samples and positions.
        effects: per group [samples, units], the same as ``gradients`` at everything that reads the unit, summed: to
            first order, how much the loss of each sample would fall if the unit were cut.
        readings: per group [units, 3], mean absolute value, mean square and share of zeros of what its readers are
            given, over samples, positions and readers.
        connections: per weight tensor [samples, inputs, kernel positions], what enters its layer, averaged over the
            positions of the output, for each position of the kernel (one for linear layers). The layer's mean output
            under any mask is :func:`nervure.stats.response` of the masked weight.
        blocks: per block [samples, features], what it adds to its shortcut, reduced as ``want`` says.
        shifts: per block [samples, 2]: cosine between what enters and what leaves it, averaged over positions (NaN
            where their shapes differ), and the size of what it adds relative to what enters.
        outputs: [samples, outputs], the model's answer; None where it was not wanted.
        labels: [samples] integers; None where they were not wanted.
        samples: number of samples.
        seed: the seed of the pass.
        want: the names of the evidence that was asked for.
        fingerprint: ``Graph.fingerprint`` of the model.
        skipped: groups, weight tensors on an edge, and blocks (as ``"block NAME"``) with something missing above, and
            why.
        routing: per group of experts [experts, 2], the share of tokens that came to each, and the mean norm of what it
            added for these: its output times the weight of the gate.
    """

    activations: Mapping[str, Tensor] = field(default_factory=dict)
    gradients: Mapping[str, Tensor] = field(default_factory=dict)
    moments: Mapping[str, Tensor] = field(default_factory=dict)
    effects: Mapping[str, Tensor] = field(default_factory=dict)
    readings: Mapping[str, Tensor] = field(default_factory=dict)
    connections: Mapping[str, Tensor] = field(default_factory=dict)
    blocks: Mapping[str, Tensor] = field(default_factory=dict)
    shifts: Mapping[str, Tensor] = field(default_factory=dict)
    outputs: Tensor | None = None
    labels: Tensor | None = None
    samples: int = 0
    seed: int = 0
    want: frozenset[str] = frozenset()
    fingerprint: str = ""
    skipped: Mapping[str, str] = field(default_factory=dict)
    routing: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """A digest of where the evidence comes from: seed, samples, what was wanted, and of which model."""
        return hashlib.sha256(json.dumps(self._provenance(), sort_keys=True).encode()).hexdigest()[:16]

    def only(self, want: Iterable[str]) -> "Stats":
        """The same without the evidence that is not named in ``want``; names that were not measured are passed over."""
        wanted = self.want & frozenset(want)
        shown = {name.partition(":")[0] for name in wanted}
        # What is measured along with a signal.
        shown |= {beside for signal, beside in (("activations", "moments"), ("blocks", "shifts")) if signal in shown}
        dropped: dict[str, Any] = {kind: {} for kind in KINDS if kind not in shown}
        dropped |= {name: None for name in WHOLE if name not in shown}
        return replace(self, want=wanted, **dropped)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write to one safetensors file, atomically, and return its path; raises :class:`FileError`."""
        tensors = {f"{kind}/{group}": t for kind in KINDS for group, t in getattr(self, kind).items()}
        tensors |= {name: t for name in WHOLE if (t := getattr(self, name)) is not None}
        return write_container(path, tensors, self._provenance() | {"skipped": dict(self.skipped)}, KIND)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Stats":
        """Read what :meth:`save` wrote; raises :class:`FileError` where it is missing, damaged, foreign or newer."""
        header, tensors = read_container(path, _StatsHeader, KIND)
        with reading(path, KIND):
            _require_evidence(tensors)
        return Stats(
            **{kind: _below(f"{kind}/", tensors) for kind in KINDS},
            labels=tensors.get("labels"),
            outputs=tensors.get("outputs"),
            samples=header.samples,
            seed=header.seed,
            want=header.want,
            fingerprint=header.fingerprint,
            skipped=header.skipped,
        )

    def _provenance(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "seed": self.seed,
            "want": sorted(self.want),
            "fingerprint": self.fingerprint,
        }


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _require_evidence(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        kind, slash, _ = name.partition("/")
        if name not in WHOLE and not (slash and KINDS.get(kind) == tensor.ndim):
            raise DamageError(f"tensor {name!r} of shape {tuple(tensor.shape)} is no evidence.")
