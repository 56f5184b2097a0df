"""Pictures per second of processor time with the corruptions of other packages; run by ``corruptions.py``.

Run with the Python of an environment that has them (``pip install imagecorruptions==1.1.2 'setuptools<70'
albumentations``): ``python benchmarks/corruptions_peers.py images.npy``, uint8 [images, 32, 32, 3]. It needs neither
torch nor nervure. Prints one line of JSON: by package and corruption the pictures per second, or what it raised.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

SEVERITY = 3
AT_LEAST = 1.0

# The transform of albumentations that does the same kind of thing; strengths are about those of severity 3.
ALBUMENTATIONS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "gaussian_noise": ("GaussNoise", {}),
    "shot_noise": ("ShotNoise", {}),
    "impulse_noise": ("SaltAndPepper", {}),
    "defocus_blur": ("Defocus", {}),
    "glass_blur": ("GlassBlur", {"max_delta": 1, "iterations": 1}),
    "motion_blur": ("MotionBlur", {}),
    "zoom_blur": ("ZoomBlur", {"max_factor": 1.16}),
    "snow": ("RandomSnow", {}),
    "fog": ("RandomFog", {}),
    "brightness": ("RandomBrightnessContrast", {"contrast_limit": 0}),
    "contrast": ("RandomBrightnessContrast", {"brightness_limit": 0}),
    "elastic_transform": ("ElasticTransform", {}),
    "pixelate": ("Downscale", {}),
    "jpeg_compression": ("ImageCompression", {}),
    "speckle_noise": ("MultiplicativeNoise", {"elementwise": True}),
    "gaussian_blur": ("GaussianBlur", {}),
    "spatter": ("Spatter", {}),
    "saturate": ("HueSaturationValue", {}),
}


def rate(work: Callable[[np.ndarray], Any], images: np.ndarray) -> float | str:
    """Pictures per second of processor time, over a second at least; or the error."""
    try:
        work(images[0])
        began, done = time.process_time(), 0
        while time.process_time() - began < AT_LEAST:
            work(images[done % len(images)])
            done += 1
        return done / (time.process_time() - began)
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0][:120]


def imagecorruptions(images: np.ndarray) -> dict[str, float | str]:
    """Each corruption that the package names."""
    package = import_module("imagecorruptions")
    names = package.get_corruption_names("all")
    return {
        name: rate(lambda image, name=name: package.corrupt(image, corruption_name=name, severity=SEVERITY), images)
        for name in names
    }


def albumentations(images: np.ndarray) -> dict[str, float | str]:
    """Each transform that comes near to a corruption."""
    package = import_module("albumentations")
    found: dict[str, float | str] = {}
    for name, (kind, options) in ALBUMENTATIONS.items():
        if hasattr(package, kind):
            transform = getattr(package, kind)(p=1.0, **options)
            found[name] = rate(lambda image, transform=transform: transform(image=image), images)
        else:
            found[name] = f"there is no {kind}"
    return found


def main() -> None:
    """Measure what is installed."""
    warnings.simplefilter("ignore")
    images, found = np.load(sys.argv[1]), {}
    for measure in (imagecorruptions, albumentations):
        name = measure.__name__
        try:
            found[name] = {"version": version(name), "rates": measure(images)}
        except (ImportError, PackageNotFoundError) as error:
            found[name] = {"version": "", "rates": {}, "failed": f"{type(error).__name__}: {error}"}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
