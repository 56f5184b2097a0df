"""Evidence gathered on data, as a value that can be saved."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nervure.check import require_format
from nervure.errors import FileError
from nervure.files import replacing, require_file

FORMAT = 1
KIND = "nervure-stats"
KINDS = ("activations", "gradients", "moments", "effects", "readings", "connections", "blocks", "shifts")
WHOLE = ("labels", "outputs")


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

    @property
    def digest(self) -> str:
        """A digest of where the evidence comes from: seed, samples, what was wanted, and of which model."""
        return hashlib.sha256(json.dumps(self._provenance(), sort_keys=True).encode()).hexdigest()[:16]

    def only(self, want: Iterable[str]) -> "Stats":
        """The same without the evidence that is not named in ``want``; names that were not measured are passed over."""
        wanted = self.want & frozenset(want)
        shown = wanted | ({"moments"} if "activations" in wanted else set())
        dropped: dict[str, Any] = {kind: {} for kind in KINDS if kind not in shown}
        dropped |= {name: None for name in WHOLE if name not in shown}
        return replace(self, want=wanted, **dropped)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write to one safetensors file, atomically, and return its path; raises :class:`FileError`."""
        tensors = {f"{kind}/{group}": _own(t) for kind in KINDS for group, t in getattr(self, kind).items()}
        tensors |= {name: _own(t) for name in WHOLE if (t := getattr(self, name)) is not None}
        header = {"kind": KIND, "format": FORMAT, "digest": self.digest, "skipped": dict(self.skipped)}
        with replacing(path) as temporary:
            try:
                save_file(tensors, str(temporary), metadata={"nervure": json.dumps(header | self._provenance())})
            except SafetensorError as error:
                raise FileError(f"cannot write {str(path)!r}: {error}. What was there is untouched.") from error
        return Path(path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Stats":
        """Read what :meth:`save` wrote; raises :class:`FileError` where it is missing, damaged, foreign or newer."""
        source = require_file(path, "statistics saved by nervure")
        try:
            with safe_open(str(source), framework="pt") as file:
                header = _header(source, file.metadata())
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        except (SafetensorError, OSError) as error:
            raise FileError(
                f"{str(source)!r} cannot be read: {error}. It is truncated or another kind of file."
            ) from error
        return Stats(
            **{kind: _below(f"{kind}/", tensors) for kind in KINDS},
            labels=tensors.get("labels"),
            outputs=tensors.get("outputs"),
            samples=header["samples"],
            seed=header["seed"],
            want=frozenset(header["want"]),
            fingerprint=header["fingerprint"],
            skipped=header["skipped"],
        )

    def _provenance(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "seed": self.seed,
            "want": sorted(self.want),
            "fingerprint": self.fingerprint,
        }


def _own(tensor: Tensor) -> Tensor:
    """Copy into memory of its own: a file has no views."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _header(path: Path, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    try:
        header = json.loads((metadata or {}).get("nervure", "{}"))
    except json.JSONDecodeError as error:
        raise FileError(f"{str(path)!r} has a damaged header: {error}.") from error
    if not isinstance(header, dict) or header.get("kind") != KIND:
        raise FileError(f"{str(path)!r} does not hold statistics saved by nervure.")
    require_format(header, FORMAT, repr(str(path)), FileError)
    _require_keys(path, header, ("samples", "seed", "want", "fingerprint", "skipped"))
    return header


def _require_keys(path: Path, header: Mapping[str, Any], keys: Iterable[str]) -> None:
    missing = [key for key in keys if key not in header]
    if missing:
        raise FileError(f"{str(path)!r} has a damaged header: {', '.join(missing)} missing.")
