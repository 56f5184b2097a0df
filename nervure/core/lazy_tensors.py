"""Tensors by name that are made when they are asked for, so that not all of them are in memory at once."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import final

from torch import Tensor


@final
class LazyTensors(Mapping[str, Tensor]):
    """A mapping that makes a tensor each time it is asked for; nothing is kept."""

    def __init__(self, names: Iterable[str], make: Callable[[str], Tensor]) -> None:
        self._names, self._make = dict.fromkeys(names), make

    def __getitem__(self, name: str) -> Tensor:
        """The tensor of that name; KeyError where there is none."""
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names
