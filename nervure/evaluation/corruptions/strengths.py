"""How strong each corruption is at severities 1 to 5.

Two published families, 2 to 5 times apart: the one for 32-pixel pictures (CIFAR-10-C) and the one for 224 pixels
(ImageNet-C), both of Hendrycks and Dietterich (2019), "Benchmarking neural network robustness to common corruptions
and perturbations"; the constants are those of their public scripts. Lengths are in pixels of such a picture and
scale with its side. Ours are ``saturate`` of grey pictures, the geometric shifts, and, in the small family,
what did not grow with the severity in our formulas: parts of ``defocus_blur``, ``glass_blur`` (whose last number is the
share of pixels that move), ``snow``, ``elastic_transform`` and ``spatter``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias, final

Level: TypeAlias = float | tuple[float, ...]
Levels: TypeAlias = tuple[Level, Level, Level, Level, Level]

SMALL: Mapping[str, Levels] = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "shot_noise": (500, 250, 100, 75, 50),
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.1, 0.3), (1.5, 0.1)),
    "glass_blur": ((0.05, 1, 1, 0.3), (0.25, 1, 1, 0.45), (0.4, 1, 1, 0.7), (0.4, 1, 2, 0.7), (0.45, 1, 3, 0.8)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "zoom_blur": (1.06, 1.11, 1.16, 1.21, 1.26),
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.55, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "elastic_transform": ((0, 0, 0.03), (0.05, 0.2, 0.04), (0.08, 0.06, 0.06), (0.1, 0.04, 0.065), (0.12, 0.03, 0.07)),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
    "jpeg_compression": (80, 65, 58, 50, 40),
    "speckle_noise": (0.06, 0.1, 0.12, 0.16, 0.2),
    "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1),
    "spatter": (
        (0.62, 0.1, 0.7, 0.7, 0.25, 0),
        (0.65, 0.1, 0.8, 0.7, 0.25, 0),
        (0.65, 0.3, 1, 0.69, 0.25, 0),
        (0.65, 0.1, 0.7, 0.665, 0.6, 1),
        (0.65, 0.1, 0.7, 0.65, 0.6, 1),
    ),
    "saturate": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
}
LARGE: Mapping[str, Levels] = {
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "shot_noise": (60, 25, 12, 5, 3),
    "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),
    "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    "glass_blur": ((0.7, 1, 2, 1), (0.9, 2, 1, 1), (1, 2, 3, 1), (1.1, 3, 2, 1), (1.5, 4, 2, 1)),
    "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    "zoom_blur": (1.11, 1.16, 1.21, 1.26, 1.31),
    "snow": (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    "frost": ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    "elastic_transform": ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)),
    "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),
    "jpeg_compression": (25, 18, 15, 10, 7),
    "speckle_noise": (0.15, 0.2, 0.35, 0.45, 0.6),
    "gaussian_blur": (1, 2, 3, 4, 6),
    "spatter": (
        (0.65, 0.3, 4, 0.69, 0.6, 0),
        (0.65, 0.3, 3, 0.68, 0.6, 0),
        (0.65, 0.3, 2, 0.68, 0.5, 0),
        (0.65, 0.3, 1, 0.65, 1.5, 1),
        (0.67, 0.4, 1, 0.65, 1.5, 1),
    ),
    "saturate": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
}
OURS: Mapping[str, Levels] = {
    "rotate": (5, 10, 15, 20, 30),  # degrees, either way
    "translate": (1 / 28, 2 / 28, 3 / 28, 4 / 28, 5 / 28),  # of the side
    "scale": (0.9, 0.8, 0.7, 0.6, 0.5),
    "invert": (0.02, 0.05, 0.1, 0.2, 1.0),  # share of the negative in the picture
}
GREY_GAIN = (1.2, 1.4, 1.7, 2.0, 2.5)  # what saturates a picture without colours: its sensor


@final
@dataclass(frozen=True, slots=True)
class Strength:
    """One severity of one corruption for pictures of one size.

    Attributes:
        severity: 1 to 5.
        level: the published constants.
        scale: pixels of the picture at hand per pixel of the published ones.
    """

    severity: int
    level: Level
    scale: float

    @property
    def number(self) -> float:
        """The constant, of a corruption that has one."""
        assert not isinstance(self.level, tuple)
        return float(self.level)

    @property
    def numbers(self) -> tuple[float, ...]:
        """The constants, of a corruption that has several."""
        assert isinstance(self.level, tuple)
        return self.level


SMALL_SIDE, LARGE_SIDE, BORDER = 32, 224, 128
LEAST_SCALE = 0.75  # below it, a blur of less than a pixel is none


def strength(name: str, severity: int, side: int, family: str) -> Strength:
    """Constants of a corruption; ``family`` "auto" takes the one for small pictures below 128 pixels."""
    large = family == "large" or (family == "auto" and side >= BORDER)
    table = OURS if name in OURS else LARGE if large else SMALL
    return Strength(
        severity, table[name][severity - 1], max(LEAST_SCALE, side / SMALL_SIDE) if not large else side / LARGE_SIDE
    )
