"""Data of the user's own: loaders of batches of any form, as a function of the user's makes them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, final

from torch import Tensor

from nervure.core.progress import length
from nervure.errors import RecipeError
from nervure.tasks.task import Task
from nervure.zoo import Dataset

SPLITS = ("train", "validation", "test")
FORMS = (
    "a dict, an object or a tuple of train, validation and test, each of them batches that can be gone through again "
    "and again, such as a DataLoader or a list; or a data set of nervure.zoo.data.assemble"
)


@final
@dataclass(frozen=True, slots=True, eq=False)
class LoaderSplit:
    """One of the loaders, in the words of a split of the zoo.

    Attributes:
        loader: batches of any form, as often as they are asked for.
        most: so many samples are taken of it; 0: all.
    """

    loader: Iterable[Any]
    most: int = 0

    def batches(self, batch_size: int = 0, shuffle_seed: int | None = None, augment: bool = False) -> Iterable[Any]:
        """The batches as the loader makes them: sizes and order are its own.

        Raises:
            RecipeError: they are to be augmented, which only the loader can do.
        """
        if augment:
            raise RecipeError("augment = true is for images of the zoo's form; loaders of your own do it themselves.")
        return _First(self.loader, self.most) if self.most else self.loader

    def sample(self, size: int, seed: int = 0) -> "LoaderSplit":
        """The first ``size`` samples."""
        return replace(self, most=min(size, self.most) if self.most else size)

    def describe(self) -> str:
        """How many batches there are, where that is known."""
        count = length(self.loader)
        return f"{self.most} samples" if self.most else "batches" if count is None else f"{count} batches"


@final
@dataclass(frozen=True, slots=True, eq=False)
class _First:
    """The first so many samples of a loader; the last batch is cut to fit."""

    loader: Iterable[Any]
    most: int

    def __iter__(self) -> Iterator[Any]:
        left, task = self.most, Task()
        for batch in self.loader:
            size = task.samples(batch)
            yield batch if size <= left else task.take(batch, slice(left), size)
            left -= size
            if left <= 0:
                return


@final
@dataclass(frozen=True, slots=True, eq=False)
class OwnData:
    """Three loaders of the user's own.

    Attributes:
        name: what they are called: the function that made them.
        train: what a network learns from, and what evidence is gathered on.
        validation: for every choice made on the way.
        test: for the last number only.
        shown: a smaller batch of the form of the others, to trace with; None: the first for training.
    """

    name: str
    train: LoaderSplit
    validation: LoaderSplit
    test: LoaderSplit
    shown: Any = None

    def first(self) -> Any:
        """The batch to trace with, the first for training; raises RecipeError where there is none."""
        if self.shown is not None:
            return self.shown
        for batch in self.train.batches():
            return batch
        raise RecipeError(f"[data] {self.name}: train gives no batch.")


Data: TypeAlias = Dataset | OwnData


def loaders_in(made: Any, name: str) -> OwnData:
    """The loaders in what a function of the user's made.

    Raises:
        RecipeError: there are no three of them, or one can be gone through once only.
    """
    parts = _parts_of(made)
    missing = [split for split in SPLITS if parts.get(split) is None]
    if len(missing) == len(SPLITS):
        raise RecipeError(f"[data] {name} made a {type(made).__name__}; give {FORMS}.")
    if missing:
        raise RecipeError(f"[data] {name} made no {' and no '.join(missing)}; give {FORMS}.")
    for split in SPLITS:
        _require_again(parts[split], f"[data] {name}: {split}")
    return OwnData(name, *(LoaderSplit(parts[split]) for split in SPLITS))


def _parts_of(made: Any) -> Mapping[str, Any]:
    if isinstance(made, Mapping):
        return {str(key): value for key, value in made.items()}
    if isinstance(made, tuple | list) and not hasattr(made, "_fields"):
        return dict(zip(SPLITS, made, strict=True)) if len(made) == len(SPLITS) else {}
    return {split: getattr(made, split, None) for split in SPLITS}


def _require_again(loader: Any, where: str) -> None:
    if isinstance(loader, Iterator):
        raise RecipeError(f"{where} can be gone through once only; give a list of batches or a loader.")
    if not isinstance(loader, Iterable) or isinstance(loader, Tensor | Mapping | str):
        raise RecipeError(f"{where} is a {type(loader).__name__}, not batches: a DataLoader, or a list.")


def describe_sizes(data: Data) -> str:
    """How large the splits are, e.g. ``"900 train, 100 validation, 200 test"``."""
    if isinstance(data, OwnData):
        splits = {split: getattr(data, split).describe() for split in SPLITS}
        return ", ".join(f"{split} {told}" for split, told in splits.items())
    return f"{len(data.train)} train, {len(data.validation)} validation, {len(data.test)} test"
