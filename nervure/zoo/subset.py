"""Makes the embedded part of Fashion-MNIST again: ``python -m nervure.zoo.subset SOURCE TARGET``.

It takes the first 1,000 images of every class of the training files and the first 200 of every class of the test
files, in published order. No seed is involved, so anybody with the full set gets the same images.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from nervure.core.files import require_folder
from nervure.zoo.draw import first_per_class
from nervure.zoo.readers.embedded import SHA256, sha256
from nervure.zoo.readers.idx import IMAGES, LABELS, LAYOUT, find_idx, has_idx_files, read_idx, write_idx
from nervure.zoo.readers.raw import missing

PER_CLASS = {"train": 1000, "t10k": 200}


def make_subset(source: Path, target: Path, per_class: Mapping[str, int] = PER_CLASS) -> Mapping[str, str]:
    """Draw the subset from the full files in ``source`` into ``target``; file name -> sha256.

    Raises:
        DataError: ``source`` lacks a file, or a class is too small.
    """
    if not has_idx_files(source):
        raise missing(source, "fashion-mnist", LAYOUT)
    require_folder(target)
    for part, count in per_class.items():
        images, labels = (read_idx(find_idx(source, pattern.format(part))) for pattern in (IMAGES, LABELS))
        chosen = first_per_class(labels, count)
        write_idx(target / f"{IMAGES.format(part)}.gz", images[chosen])
        write_idx(target / f"{LABELS.format(part)}.gz", labels[chosen])
    return {path.name: sha256(path) for path in sorted(target.glob("*-ubyte.gz"))}


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the subset and print its checksums; the exit status is 1 if they are not those of the embedded files."""
    parser = argparse.ArgumentParser(prog="python -m nervure.zoo.subset", description=main.__doc__)
    parser.add_argument("source", type=Path, help=f"folder with {LAYOUT}")
    parser.add_argument("target", type=Path, help="folder to write the four files into")
    options = parser.parse_args(arguments)
    made = make_subset(options.source, options.target)
    for file, digest in made.items():
        print(f"{digest}  {file}{'' if SHA256.get(file) == digest else '  (differs from the embedded file)'}")
    return int(made != SHA256)


if __name__ == "__main__":
    raise SystemExit(main())
