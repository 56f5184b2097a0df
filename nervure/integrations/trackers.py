"""Numbers of a training in TensorBoard, Weights & Biases or MLflow, as callbacks of :func:`nervure.train`.

Each is three functions of its library behind one value; the libraries are extras, imported when one is asked for.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType, TracebackType
from typing import Any, Self, final

import torch

from nervure.core.check import require_choice
from nervure.core.extras import require_extra
from nervure.core.markup import table
from nervure.training.step import TrainingPoint


@final
@dataclass(frozen=True, slots=True, eq=False)
class Tracker:
    """Where the numbers of a training go; a callback of :func:`nervure.train`, and a context that closes at its end.

    Attributes:
        log: takes numbers by name, and the step.
        note: takes settings by name, once.
        close: writes what is left; a run that the caller began before goes on.
        name: stands before the names of the numbers, with a slash.
    """

    log: Callable[[Mapping[str, float], int], None]
    note: Callable[[Mapping[str, Any]], None]
    close: Callable[[], None]
    name: str = ""

    def under(self, name: str) -> "Tracker":
        """The same place with other names, for one training of several: ``under("pruned")``."""
        return replace(self, name=name)

    def __call__(self, point: TrainingPoint) -> None:
        """Log a step as ``step/loss`` and so on, an epoch as ``epoch/validation`` and so on."""
        start = f"{self.name}/{point.kind}" if self.name else point.kind
        self.log({f"{start}/{name}": value for name, value in point.values.items()}, point.step)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close, whatever happened."""
        self.close()


def to_tensorboard(folder: str = "runs/tensorboard", **options: Any) -> Tracker:
    """Into event files in ``folder``; ``options`` are those of ``torch.utils.tensorboard.SummaryWriter``.

    Raises:
        MissingExtraError: tensorboard is not installed (extra ``tensorboard``).
    """
    require_extra("tensorboard", "logging to TensorBoard", "tensorboard")
    if not _is_first_process():
        return NOWHERE
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(folder, **options)

    def log(values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    def note(settings: Mapping[str, Any]) -> None:
        writer.add_text("settings", table(["", ""], [(name, str(value)) for name, value in settings.items()]))

    return Tracker(log, note, writer.close)


def to_wandb(project: str = "nervure", **options: Any) -> Tracker:
    """Into the run of Weights & Biases that is under way, else into a new one; ``options`` are those of ``wandb.init``.

    Raises:
        MissingExtraError: wandb is not installed (extra ``wandb``).
    """
    wandb = require_extra("wandb", "logging to Weights & Biases", "wandb")
    if not _is_first_process():
        return NOWHERE
    joined = wandb.run is not None
    run = wandb.run if joined else wandb.init(project=project, **options)
    # Its own count of steps must not go back; several trainings in one run each begin at 1.
    run.define_metric("*", step_metric="training_step")

    def log(values: Mapping[str, float], step: int) -> None:
        run.log({**values, "training_step": step})

    def note(settings: Mapping[str, Any]) -> None:
        run.config.update(dict(settings), allow_val_change=True)

    return Tracker(log, note, _nothing if joined else run.finish)


def to_mlflow(**options: Any) -> Tracker:
    """Into the run of MLflow that is active, else into a new one; ``options`` are those of ``mlflow.start_run``.

    Raises:
        MissingExtraError: mlflow is not installed (extra ``mlflow``).
    """
    mlflow = require_extra("mlflow", "logging to MLflow", "mlflow")
    if not _is_first_process():
        return NOWHERE
    joined = mlflow.active_run() is not None
    run = mlflow.active_run() if joined else mlflow.start_run(**options)

    def log(values: Mapping[str, float], step: int) -> None:
        mlflow.log_metrics(dict(values), step=step, run_id=run.info.run_id)

    def note(settings: Mapping[str, Any]) -> None:
        mlflow.log_params(dict(settings), run_id=run.info.run_id)

    return Tracker(log, note, _nothing if joined else mlflow.end_run)


TRACKERS: Mapping[str, Callable[..., Tracker]] = MappingProxyType(
    {"tensorboard": to_tensorboard, "wandb": to_wandb, "mlflow": to_mlflow}
)
"""By their names."""


def track_to(name: str, **options: Any) -> Tracker:
    """A tracker by its name: ``"tensorboard"``, ``"wandb"`` or ``"mlflow"``, with the options of its function.

    Raises:
        ArgumentError: there is no such tracker.
        MissingExtraError: its library is not installed.
    """
    return TRACKERS[require_choice(name, TRACKERS, "tracker")](**options)


def _is_first_process() -> bool:
    """Whether this is the process of several that tells: the others train the same."""
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not several or torch.distributed.get_rank() == 0


def _nothing(*_given: Any) -> None:
    pass


NOWHERE = Tracker(_nothing, _nothing, _nothing)
"""Takes everything and does nothing."""
