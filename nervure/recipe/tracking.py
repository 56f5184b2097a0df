"""Where the trainings of a run are told: the tracker that its recipe names."""

from pathlib import Path

from nervure.core.extras import require_extra
from nervure.errors import RecipeError
from nervure.integrations.trackers import TRACKERS, Tracker
from nervure.recipe.context import RunContext
from nervure.recipe.recipe import TrackSection


def require_tracker(section: TrackSection) -> None:
    """Raise MissingExtraError where the library of the tracker is not installed."""
    if section.to:
        require_extra(section.to, f"[track] to = {section.to!r}", section.to)


def open_tracker(section: TrackSection, folder: Path) -> Tracker | None:
    """The tracker that a section names, begun; None where it names none.

    Args:
        section: what is asked for.
        folder: event files of TensorBoard go to ``tensorboard`` in it, unless the options say where.

    Raises:
        RecipeError: the tracker does not take these options.
        MissingExtraError: its library is not installed.
    """
    if not section.to:
        return None
    start = {"folder": str(folder / "tensorboard")} if section.to == "tensorboard" else {}
    try:
        return TRACKERS[section.to](**start | dict(section.options))
    except TypeError as error:
        raise RecipeError(f"[track] to = {section.to!r} does not take these options: {error}.") from error


def settings_of(bench: RunContext) -> dict[str, object]:
    """What a tracker notes of a run, once."""
    recipe = bench.recipe
    return {
        "model": recipe.model.label,
        "data": bench.data.name,
        "task": bench.purpose.name,
        "method": repr(bench.method),
        "keep": recipe.prune.keep,
        "budget": recipe.prune.budget,
        "seed": recipe.run.seed,
        "recipe": recipe.fingerprint,
    }
