"""Corruptions of pictures: what the world does to them between training and use.

The 15 corruptions and 4 held-out ones of Hendrycks and Dietterich (2019), "Benchmarking neural network robustness to
common corruptions and perturbations" (ICLR), at five severities, and four shifts of place and sign. Each picture is
corrupted by chance that belongs to it (see ``chance``), so any subset comes out the same in any order. Frost, motion
blur and others are made by formula: results are of the style of CIFAR-10-C, not comparable with its published numbers.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from nervure.core.check import checked, nearest, require_choice, show_value
from nervure.core.renamed import old_names
from nervure.core.schema import Seed
from nervure.errors import ArgumentError, DataError
from nervure.evaluation.corruptions import blur, digital, geometry, noise, weather
from nervure.evaluation.corruptions.chance import image_keys
from nervure.evaluation.corruptions.motion import Motion
from nervure.evaluation.corruptions.strengths import Strength, strength

__all__ = ["CORRUPTIONS", "GROUPS", "HELD_OUT", "SEVERITIES", "SHIFTS", "corrupt", "expand_names"]

Corruption = Callable[[Tensor, Tensor, Strength], Tensor]

GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
        "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
        "weather": ("snow", "frost", "fog", "brightness"),
        "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
        "held out": ("speckle_noise", "gaussian_blur", "spatter", "saturate"),
        "geometric": ("rotate", "translate", "scale", "invert"),
    }
)
"""Names by kind; "held out" are the four kept for validation, "geometric" the shifts of place and sign."""

HELD_OUT: tuple[str, ...] = GROUPS["held out"]
SHIFTS: tuple[str, ...] = GROUPS["geometric"]
CORRUPTIONS: tuple[str, ...] = tuple(name for kind, names in GROUPS.items() if kind != "geometric" for name in names)
"""The 15 corruptions and the 4 held-out ones, in the order in which they are published."""

SEVERITIES: tuple[int, ...] = (1, 2, 3, 4, 5)
FAMILIES = ("auto", "small", "large")
LEAST_SIDE = 8
AT_ONCE = 2**21

_MADE: Mapping[str, Corruption] = {
    name: getattr(module, name)
    for module, names in (
        (noise, (*GROUPS["noise"], "speckle_noise")),
        (blur, (*GROUPS["blur"], "gaussian_blur")),
        (weather, ("snow", "frost", "fog", "spatter")),
        (digital, ("brightness", *GROUPS["digital"], "saturate")),
        (geometry, SHIFTS),
    )
    for name in names
}
_MOVES: Mapping[str, Callable[[Tensor, Tensor, Strength], Motion]] = {
    "rotate": geometry.rotation,
    "translate": geometry.translation,
    "scale": lambda images, keys, by: geometry.magnification(images, by.number),
    "elastic_transform": digital.elastic_motion,
    "zoom_blur": blur.zoom_motion,
}
MOVING: frozenset[str] = frozenset(_MOVES)
"""Corruptions after which things are elsewhere in the picture."""


@checked
def corrupt(images: Tensor, name: str, severity: int, *, seed: Seed = 0, family: str = "auto") -> Tensor:
    """Corrupted copy of pictures; the chance that each meets depends on its content, the corruption and the seed alone.

    Args:
        images: float in [0, 1], [images, channels, height, width], one channel (grey) or three (red, green, blue),
            sides of 8 pixels or more (made for 28 to 224).
        name: one of ``CORRUPTIONS`` or ``SHIFTS``.
        severity: 1 (weak) to 5 (strong).
        seed: another seed draws other chance.
        family: strengths made for 32-pixel pictures ("small"), for 224 pixels ("large"), or by the side of these
            pictures ("auto": large from 128 pixels). Lengths scale with the side either way.

    Returns:
        Float in [0, 1] of the shape, dtype and device of ``images``.

    Raises:
        ArgumentError: an unknown name or family, or a severity outside 1..5.
        DataError: images are not floats in [0, 1], of another layout, or too small.
    """
    _require_name(name)
    require_choice(severity, SEVERITIES, "severity")
    require_choice(family, FAMILIES, "family")
    require_pictures(images)
    by = strength(name, severity, min(images.shape[-2:]), family)
    portion = max(1, AT_ONCE // images[0].numel())
    parts = [
        # Severity is no part of the key: with the same chance, more severe is more of the same.
        _MADE[name](part, image_keys(part, name, seed), by).clamp(0, 1)
        for part in images.detach().to(torch.float32).split(portion)
    ]
    return torch.cat(parts).to(images.dtype)


def motion_of(images: Tensor, name: str, severity: int, *, seed: int = 0, family: str = "auto") -> Motion:
    """Where :func:`corrupt` reads the pixels of these pictures, for one of ``MOVING``."""
    by = strength(name, severity, min(images.shape[-2:]), family)
    images = images.detach().to(torch.float32)
    return _MOVES[name](images, image_keys(images, name, seed), by)


def expand_names(shift: str | Iterable[str]) -> tuple[str, ...]:
    """Names that a user's choice stands for: "all" (the 19), a kind ("noise", "blur", ...), names, or a mix of them.

    Raises:
        ArgumentError: for a name that is none of them (the message offers the nearest), or for no name at all.
    """
    asked = [shift] if isinstance(shift, str) else list(shift)
    found: dict[str, None] = {}
    for entry in asked:
        if entry in GROUPS or entry == "all":
            found |= dict.fromkeys(CORRUPTIONS if entry == "all" else GROUPS[entry])
        else:
            found[_require_name(entry)] = None
    if not found:
        raise ArgumentError("shift names no corruption; give 'all', kinds such as 'noise', or names.")
    return tuple(found)


def require_pictures(images: Tensor) -> Tensor:
    """Return ``images`` if they can be corrupted, else raise :class:`DataError` that says what was found instead."""
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] not in (1, 3) or images.numel() == 0:
        given = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        hint = ""
        if isinstance(images, Tensor) and images.ndim == 4 and images.shape[-1] in (1, 3):
            hint = " The channels seem to come last: use images.permute(0, 3, 1, 2)."
        raise DataError(
            f"images of shape {given} cannot be corrupted; expected [images, 1 or 3 channels, height, width].{hint}"
        )
    if min(images.shape[-2:]) < LEAST_SIDE:
        raise DataError(
            f"images of {images.shape[-2]} x {images.shape[-1]} pixels are too small to corrupt; "
            f"{LEAST_SIDE} x {LEAST_SIDE} is the least. Resize them first."
        )
    if not images.is_floating_point():
        raise DataError(f"images are {images.dtype}; give floats in [0, 1] (divide 8-bit images by 255).")
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):
        raise DataError(f"images run from {low:.3g} to {high:.3g}, outside [0, 1]. {_range_hint(low, high)}")
    return images


def _range_hint(low: float, high: float) -> str:
    if math.isnan(low) or math.isnan(high):
        return "They hold NaN."
    if low >= 0 and high <= 255:
        return "They look like 8-bit values: divide by 255."
    return "They look normalised: undo it (images * std + mean) before corrupting."


def _require_name(name: str) -> str:
    known = (*CORRUPTIONS, *SHIFTS)
    if name not in known:
        raise ArgumentError(f"corruption {show_value(name)} is unknown.{nearest(name, known, listed=True)}")
    return name


__getattr__ = old_names(__name__)
