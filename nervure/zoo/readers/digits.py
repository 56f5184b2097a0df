"""The handwritten digits that scikit-learn ships (extra ``data``)."""

import numpy as np
import torch

from nervure.core.extras import require_extra
from nervure.zoo.readers.raw import Raw, Request


def read_digits(request: Request) -> Raw:
    """1,797 grey digits of 8 x 8 pixels, for tests that train in seconds. ``request.root`` is not used.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    digits = require_extra("sklearn.datasets", "The digits data set", "data").load_digits()
    # Published in 0..16; stretched to the bytes that every other data set uses (a one-to-one map).
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    names = tuple(str(number) for number in range(10))
    return Raw((torch.from_numpy(pixels).unsqueeze(1), labels), None, names, "scikit-learn", flips=False)
