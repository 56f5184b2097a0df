"""Pictures as they were before they were normalised: corruptions are made on these."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, final, runtime_checkable

import torch
from torch import Tensor

from nervure.errors import ArgumentError, DataError
from nervure.evaluation.corruptions import corrupt

Normalisation: TypeAlias = tuple[Sequence[float], Sequence[float]]
ROUNDING = 1e-4  # float32 normalised and back is off by less


@runtime_checkable
class Normalised(Protocol):
    """Batches that know how their pictures were normalised: (pictures - mean) / std, per channel."""

    @property
    def mean(self) -> Sequence[float]:
        """Per channel, in [0, 1]."""
        ...

    @property
    def std(self) -> Sequence[float]:
        """Per channel, above 0."""
        ...


@final
@dataclass(frozen=True, slots=True)
class PictureRange:
    """How inputs become pictures in [0, 1], and back.

    Attributes:
        mean: per channel, in [0, 1]; None where inputs are such pictures already.
        std: per channel, above 0.
    """

    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    @classmethod
    def of(cls, data: Any, given: Normalisation | None) -> "PictureRange":
        """As it was given, or as the data know it; raises ArgumentError where it is none."""
        if given is None and isinstance(data, Normalised):
            given = (data.mean, data.std)
        if given is None:
            return cls(None, None)
        mean, std = (tuple(map(float, part)) for part in given)
        if len(mean) != len(std) or not std or min(std) <= 0:
            raise ArgumentError(f"normalisation={given!r} must be (mean, std): one of each per channel, std above 0.")
        return cls(mean, std)

    def corrupt(self, inputs: Tensor, name: str, severity: int, seed: int, family: str = "auto") -> Tensor:
        """The inputs under a corruption, which is made on the pictures that they were before."""
        return self.back(corrupt(self.pictures(inputs), name, severity, seed=seed, family=family))

    def __str__(self) -> str:
        """What answers that are kept on disk are known by, since the first version."""
        return f"_Undo(mean={self.mean!r}, std={self.std!r})"

    def pictures(self, inputs: Tensor) -> Tensor:
        """The pictures that inputs were; raises DataError where they are not normalised as said."""
        low, high = float(inputs.min()), float(inputs.max())
        inside = low >= 0 and high <= 1
        if self.mean is None or self.std is None:
            if not inside:
                raise DataError(
                    f"inputs run from {low:.3g} to {high:.3g}: they seem normalised, or 8-bit. Corruptions are made on "
                    "pictures in [0, 1]: pass normalisation=(mean, std), or normalise inside the model."
                )
            return inputs
        if len(self.mean) not in (1, inputs.shape[1]):
            raise DataError(f"normalisation is for {len(self.mean)} channels; the pictures have {inputs.shape[1]}.")
        if inside and low < high:
            raise DataError(
                f"inputs run from {low:.3g} to {high:.3g} although they should be normalised (mean {self.mean}): they "
                "are not. Leave normalisation out, or normalise the inputs."
            )
        result = inputs * self._column(self.std, inputs) + self._column(self.mean, inputs)
        low, high = float(result.min()), float(result.max())
        if low < -ROUNDING or high > 1 + ROUNDING:
            raise DataError(
                f"with the normalisation undone, pictures run from {low:.3g} to {high:.3g}, outside [0, 1]: were they "
                f"normalised twice, or by other numbers than mean {self.mean} and std {self.std}?"
            )
        return result.clamp(0, 1)

    def back(self, pictures: Tensor) -> Tensor:
        """Inputs of pictures."""
        if self.mean is None or self.std is None:
            return pictures
        return (pictures - self._column(self.mean, pictures)) / self._column(self.std, pictures)

    @staticmethod
    def _column(values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)
