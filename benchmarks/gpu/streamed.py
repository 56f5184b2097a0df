"""Layers of an 8 B decoder, pruned one after the other from files to files: by width, and two of four with a refit."""

from benchmarks.gpu.common import settings
from benchmarks.streamed import CASES, Size, measure

LARGE = Size(4096, 14336, 32, 8, 32, 2)
SMALL = Size(64, 160, 8, 4, 32, 2)
TOLD = ("layers", "whole", "tokens", "layer_s", "outside_s", "error_before", "error_after", "difference")


def main() -> None:
    """One case after the other."""
    told = settings()
    for case in CASES:
        with told.trying(case=case):
            found = measure(SMALL if told.quick else LARGE, "8 B", case, told.device)
            told.add(case=case, **{name: found[name] for name in TOLD})


if __name__ == "__main__":
    main()
