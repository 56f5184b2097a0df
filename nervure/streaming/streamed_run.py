"""The folder of a run that goes layer by layer: what was asked, which layers are done, what enters the next one."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from nervure.core.files import contents, is_there, read_document, read_json, remove, require_folder, write_json
from nervure.core.locks import exclusive_folder
from nervure.errors import FileError
from nervure.plan import Edit, Plan
from nervure.refit import LayerFit

ASKED = "run.json"
PLAN = "plan.json"
SHOWN = 200
"""Letters of a value in a message."""


@final
@dataclass(frozen=True, slots=True)
class StreamedLayer:
    """What became of one layer.

    Attributes:
        name: of the layer.
        before, after: how many parameters it had and has.
        verification: largest relative error of the cut, as :func:`nervure.verify` finds it; None: not verified.
        difference: largest difference between what was written, loaded again, and the layer; relative.
        fits: what a refit made of it, tensor by tensor.
        plan: its edits, as plain data.
        seconds: how long it took.
        digest: of its file: SHA-256, in hexadecimal digits.
    """

    name: str
    before: int
    after: int
    verification: float | None
    difference: float
    fits: tuple[LayerFit, ...]
    plan: dict[str, Any]
    seconds: float
    digest: str = ""

    @property
    def edits(self) -> tuple[Edit, ...]:
        """Its edits."""
        return Plan.from_json(self.plan).edits

    def __str__(self) -> str:
        fitted = [fit for fit in self.fits if not fit.reason]
        told = f"{self.name}: {self.before:,} -> {self.after:,} parameters"
        if fitted:
            before, after = (sum(getattr(f, n) for f in fitted) / len(fitted) for n in ("held_before", "held_after"))
            told += f", error left out {before:.2g} -> {after:.2g}"
        return f"{told}, {self.seconds:.1f} s"


@final
@dataclass(frozen=True)
class StreamedRun:
    """The folder of a run.

    Attributes:
        folder: where it is.
        asked: all that its result depends on, as plain data.
    """

    folder: Path
    asked: Mapping[str, Any]

    @property
    def draft(self) -> Path:
        """Where the new folder is written before it has its place."""
        return self.folder / "draft"

    @property
    def streams(self) -> Path:
        """Where streams are."""
        return self.folder / "streams"

    @contextmanager
    def begun(self, *, fresh: bool) -> Iterator[None]:
        """Hold the folder; what another run left there is refused, or removed where it is to be ``fresh``.

        Raises:
            FileError: another run is there, or anything else, or another process works there.
        """
        require_folder(self.folder)
        self._require_own()
        with exclusive_folder(self.folder):
            for name in contents(self.folder) if fresh or self.is_finished else ():
                remove(self.folder / name)
            self.require_place(fresh=False)
            if not is_there(self.folder / ASKED):
                write_json(self.folder / ASKED, dict(self.asked))
            for place in (self.draft, self.streams, self.folder / "layers"):
                require_folder(place)
            yield

    @property
    def is_finished(self) -> bool:
        """Whether the new folder was moved to its place."""
        return is_there(self.folder / ASKED) and is_there(self.folder / PLAN) and not is_there(self.draft)

    @property
    def is_same(self) -> bool:
        """Whether the folder is there, and of this run."""
        return is_there(self.folder / ASKED) and not self._differing()

    @property
    def _known(self) -> dict[str, Any]:
        return read_json(self.folder / ASKED, "what a run was asked")

    def _differing(self) -> list[str]:
        return [name for name, value in self.asked.items() if self._known.get(name) != value]

    def require_place(self, *, fresh: bool) -> None:
        """Raise FileError where the folder is another run's, unless it is to be ``fresh``, or no run of this kind."""
        self._require_own()
        if not fresh and is_there(self.folder / ASKED) and (names := self._differing()):
            name = names[0]
            raise FileError(
                f"{str(self.folder)!r} is of another run: {name} was {_short(self._known.get(name))}, and is "
                f"{_short(self.asked[name])} now. Give another out folder, or fresh=True, which removes what is there."
            )

    def _require_own(self) -> None:
        inside = contents(self.folder) if is_there(self.folder) else []
        if inside and not is_there(self.folder / ASKED):
            raise FileError(
                f"{str(self.folder)!r} holds {inside[0]!r} and is no run of prune_folder: nothing is removed there. "
                "Give another out folder."
            )

    def record(self, number: int, layer: StreamedLayer) -> None:
        """A layer is done, and all that the next one needs is on the disk."""
        write_json(self._record(number), asdict(layer))

    def done(self, count: int) -> list[StreamedLayer]:
        """The first layers that are done, of so many."""
        found = list[StreamedLayer]()
        for number in range(count):
            if not is_there(self._record(number)):
                break
            found.append(read_document(self._record(number), StreamedLayer, "the record of a layer"))
        return found

    def _record(self, number: int) -> Path:
        return self.folder / "layers" / f"{number:04}.json"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
