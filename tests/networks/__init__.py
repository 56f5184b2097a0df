"""Tiny seeded networks, each for one thing that networks do; ``NETWORKS[name]`` makes the model and an example.

All are in evaluation mode, and nothing in them is trivially right: norm statistics, affine weights, biases and scales
are random, so that a channel read at the wrong place changes the output.
"""

from tests.networks import (
    attention,
    calling,
    combinations,
    convolutions,
    norms,
    plain,
    resizing,
    sequences,
    splitting,
    views,
)
from tests.networks.registry import (
    NETWORKS,
    Example,
    Head,
    Network,
    cbr,
    conv,
    image,
    noise,
    randomise,
    seeded,
    sequence,
    tokens,
    traced,
    words,
)

__all__ = [
    "NETWORKS",
    "Example",
    "Head",
    "Network",
    "attention",
    "calling",
    "cbr",
    "combinations",
    "conv",
    "convolutions",
    "image",
    "noise",
    "norms",
    "plain",
    "randomise",
    "resizing",
    "seeded",
    "sequence",
    "sequences",
    "splitting",
    "tokens",
    "traced",
    "views",
    "words",
]
