"""Another view of the data that a score has to hold for: the same samples as they might come some other day, or others.

What makes views of batches for training (:mod:`nervure.training.views`) makes them here; batches of another domain are
given as they are, as to :func:`nervure.refit`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, final

from nervure.core.check import show_value
from nervure.core.importing import import_named, is_import_path
from nervure.errors import ArgumentError
from nervure.methods.base import View, draw_samples
from nervure.methods.evidence_folder import BATCHES
from nervure.stats import batches_digest
from nervure.stats.loaders import Batch


@final
class DataViews:
    """What other view there is; equal to another one where that is the same, and known again by what it prints.

    Raises:
        ArgumentError: it is a text, and not written ``package.module:name``, a class, or batches that come once.
    """

    __slots__ = ("_given",)

    def __init__(self, given: Any) -> None:
        if isinstance(given, str) and not is_import_path(given):
            raise ArgumentError(f"views={show_value(given)} is not written 'package.module:name'.")
        if isinstance(given, type):
            raise ArgumentError(
                f"views={show_value(given)} is a class. Give a function of a batch and a seed, such as "
                "nervure.training.picture_views(), its name, or batches of another domain."
            )
        if isinstance(given, Iterator):
            raise ArgumentError(
                f"views={show_value(given)} gives its batches once. Give a list of batches, a loader, or a function of "
                "a batch and a seed, such as nervure.training.picture_views()."
            )
        self._given = given

    def draw(self, view: View, home: Sequence[Batch], samples: int) -> list[Batch]:
        """Batches of this view, of so many samples at most.

        Args:
            view: the model and the seed that views of batches are made by.
            home: the samples of the data.
            samples: how many batches of another domain give.

        Raises:
            DataError: there are none.
            ArgumentError: what a text names cannot be imported.
        """
        found = import_named(self._given, "views") if isinstance(self._given, str) else self._given
        if callable(found):
            found = [found(part.raw, view.seed + number) for number, part in enumerate(home)]
        return draw_samples(replace(view, data=found), samples)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DataViews):
            return NotImplemented
        mine, theirs = self._given, other._given
        return mine is theirs or (isinstance(mine, str) and mine == theirs)

    def __hash__(self) -> int:
        return hash(self._given) if isinstance(self._given, str) else id(self._given)

    def __repr__(self) -> str:
        if isinstance(self._given, str) or callable(self._given):
            return repr(self._given)
        return f"<batches {batches_digest(self._given, count=BATCHES, seed=0)[:16]}>"

    def __deepcopy__(self, memo: dict[int, Any]) -> "DataViews":
        return self


ViewsLike: TypeAlias = DataViews | str | Callable[[Any, int], Any] | Iterable[Any]
"""What an option ``views`` may be: a function of a batch and a seed, or its name, or batches of another domain."""


def views_of(given: ViewsLike | None) -> DataViews | None:
    """The value that an option ``views`` means; raises ArgumentError."""
    return given if given is None or isinstance(given, DataViews) else DataViews(given)


def take_views(method: Any) -> None:
    """Make the option ``views`` of a frozen method a value, or leave it a name; raises ArgumentError."""
    found = views_of(method.views)
    object.__setattr__(method, "views", method.views if isinstance(method.views, str) else found)


def draw_views(view: View, views: DataViews | None, samples: int) -> list[list[Batch]]:
    """So many samples of the data, and those of the other view, if any; raises as :meth:`DataViews.draw`."""
    home = draw_samples(view, samples)
    return [home] if views is None else [home, views.draw(view, home, samples)]
