"""What a refit is asked for, and what it did."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, final

from nervure.core.check import Checked
from nervure.core.schema import Count, NotNegative, Seed, Size

M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class RefitChoices:
    """What a refit and its section in a recipe both say.

    Attributes:
        samples: how many samples of the data are used, a quarter of them to choose by.
        ridge: how strongly weights are held where they are, in units of the mean variance of an input; ``"auto"``:
            for each layer what does best on samples that were left out.
        positions: at how many places of each sample a convolution is looked at, at most. 0: 32, or more where
            samples are few, so that a layer sees about 8,192.
        streams: whether a layer that is added to a stream (a residual connection) is fitted to what the dense network's
            stream is then, errors of those before it included, rather than to what the dense layer says. Where blocks
            were dropped behind it, to the stream behind these.
        norms: whether batch norms get the statistics of what enters them now.
        masks: how what stays of a masked layer is found: ``"exact"`` (least squares inside the mask, by conjugate
            gradients) or ``"surgeon"`` (the optimal brain surgeon's update, column by column as in SparseGPT: rougher,
            and cheaper for wide layers).
        steps: behind the closed form, of training for each branch, as :func:`nervure.refit.reconstruct` does; what
            reads the branches is fitted again then. 0: none.
    """

    samples: Count = 1024
    ridge: NotNegative | Literal["auto"] = "auto"
    positions: Count = 0
    streams: bool = True
    norms: bool = True
    masks: Literal["exact", "surgeon"] = "exact"
    steps: Count = 0


@final
@dataclass(frozen=True, slots=True)
class Refit(RefitChoices, Checked):
    """How to refit: see :class:`RefitChoices`; ``samples`` from 1 on, ``seed`` for places and loaders that shuffle."""

    samples: Size = 1024
    seed: Seed = 0


@final
@dataclass(frozen=True, slots=True)
class LayerFit:
    """What became of one layer. Errors are squared, as a share of the variance of what the dense layer says.

    Attributes:
        tensor: the parameter.
        inputs: how many each of its outputs is a sum over.
        outputs: how many it has.
        positions: how many were fitted on.
        freedom: what was fitted: ``"ridge"`` (all weights), ``"scale"`` (a factor for each input), ``"bias"``,
            ``"none"``.
        ridge: how strongly weights were held.
        before, after: error on the samples that were fitted on.
        held_before, held_after: error on those that were left out. They chose the freedom and the ridge, nothing else.
        reason: why it was left as it was; empty where it was not.
        shifted_before, shifted_after: the largest error on the samples of other views that were left out; 0 where there
            are no other views.
    """

    tensor: str
    inputs: int = 0
    outputs: int = 0
    positions: int = 0
    freedom: str = "none"
    ridge: float = 0.0
    before: float = 0.0
    after: float = 0.0
    held_before: float = 0.0
    held_after: float = 0.0
    reason: str = ""
    shifted_before: float = 0.0
    shifted_after: float = 0.0


@final
@dataclass(frozen=True, slots=True)
class BranchFit:
    """What became of one branch. Errors are squared, as a share of the variance of what the dense network gives there.

    Attributes:
        branch: the name of its module.
        before, after: error on the samples that were trained on.
        held_before, held_after: error on those that were left out. They chose the step that was kept.
        reason: why it was left as it was; empty where it was not.
    """

    branch: str
    before: float = 0.0
    after: float = 0.0
    held_before: float = 0.0
    held_after: float = 0.0
    reason: str = ""


@final
@dataclass(frozen=True, slots=True)
class Refitted(Generic[M]):
    """A refitted model.

    Attributes:
        result: what was given, refitted: a module, or a pruned model whose plan says so (``reached["refit"]``).
        layers: what became of each layer, in running order.
        samples: how many samples of the data were fitted on, and how many were left out.
        shift: how far the dense network's means are from those that its batch norms know, in standard deviations,
            on average over channels; the largest norm's. None: it has no batch norms.
        branches: what became of each branch, in running order, where ``how.steps`` asked for it.
    """

    result: M
    layers: tuple[LayerFit, ...]
    samples: tuple[int, int]
    shift: float | None = None
    branches: tuple[BranchFit, ...] = ()

    def __str__(self) -> str:
        return self.describe()

    def summary(self) -> dict[str, Any]:
        """Plain data: how many samples and layers, and the mean errors over the layers that were looked at."""
        return summary(self.layers, self.samples)

    def describe(self) -> str:
        """A readable table, layer by layer."""
        width = max([len("layer"), *(len(layer.tensor) for layer in self.layers)])
        lines = [
            f"{'layer':<{width}}  {'inputs':>6} {'positions':>9}  {'fitted':<12} "
            f"{'error on samples':>20}  {'left out':>20}"
        ]
        for f in self.layers:
            if f.reason:
                lines.append(f"{f.tensor:<{width}}  left as it is: {f.reason}")
                continue
            how = f"{f.freedom} {f.ridge:g}" if f.freedom == "ridge" else f.freedom
            lines.append(f"{f.tensor:<{width}}  {f.inputs:>6} {f.positions:>9}  {how:<12} {_told_errors(f)}".rstrip())
        seen, held = self.samples
        lines.append(f"{seen} samples fitted on, {held} left out")
        lines += [f"branch {b.branch}: {b.reason or _told_errors(b)}" for b in self.branches]
        means = self.summary()
        if "shifted_before" in means:
            lines.append(
                f"on views, left out: {means['shifted_before']:.2g} -> {means['shifted_after']:.2g}, mean of layers"
            )
        return "\n".join(lines)


def _told_errors(fit: LayerFit | BranchFit) -> str:
    return f"{fit.before:>8.2g} -> {fit.after:<8.2g}  {fit.held_before:>8.2g} -> {fit.held_after:<8.2g}"


def summary(layers: tuple[LayerFit, ...], samples: tuple[int, int]) -> dict[str, Any]:
    """What a plan keeps of a refit, as plain data."""
    fitted = [layer for layer in layers if not layer.reason]

    def mean(name: str) -> float:
        return sum(float(getattr(layer, name)) for layer in fitted) / max(len(fitted), 1)

    names = ["before", "after", "held_before", "held_after"]
    names += ["shifted_before", "shifted_after"] if any(layer.shifted_before for layer in fitted) else []
    found: Mapping[str, Any] = {name: mean(name) for name in names}
    return {"samples": samples[0], "left_out": samples[1], "layers": len(fitted), **found}
