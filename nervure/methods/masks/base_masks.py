"""What methods share that mask single weights, kernels or blocks of them by their scores."""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal, TypeAlias, final

import numpy as np
import torch
from torch import Tensor

from nervure.budget.layer_ratios import (
    OUTLIER,
    OUTLIER_SPREAD,
    SPECTRUM_SPREAD,
    hill_exponent,
    outlier_share,
    ratios_by_outliers,
    ratios_by_spectrum,
)
from nervure.budget.weight_masks import Distribution, sparse_masks, within_rows
from nervure.budget.weights import Pattern, left_dense, sheets
from nervure.core.check import Checked, show_value
from nervure.core.inputs import Inputs
from nervure.core.lazy_tensors import LazyTensors
from nervure.core.schema import Density, NotNegative, Rate, Size
from nervure.core.tensors import without_history
from nervure.errors import ArgumentError, NervureWarning
from nervure.graph.models import evaluating, is_weightless
from nervure.graph.operands import computed_weights
from nervure.graph.products import describe_products
from nervure.graph.types import Product
from nervure.methods.base import Folder, Inquiry, View, model_of
from nervure.methods.evidence_folder import answer_folder, remember
from nervure.methods.masks.activation_norm import InputNorms
from nervure.plan import Keep, Mask, Plan
from nervure.scores.bundles import Layer, layers
from nervure.scores.parent_dependence import needed_children
from nervure.scores.saliency import wanda

Guard: TypeAlias = Literal["paths", "outputs", "units", "none"]
SAMPLES = 128
"""How many samples tell how loud inputs are, where a method does not say."""
Scored: TypeAlias = Mapping[str, Tensor]
"""For each tensor a score of each weight, [outputs, inputs, kernel positions], on the CPU."""


@dataclass(frozen=True, slots=True)
class Sparse(Checked, ABC):
    """Keep the weights with the highest scores; the others are masked.

    Prunable are all weights that multiply: of convolutions, linear and recurrent layers, attention, stacks of experts,
    bare parameters. Biases, scales and tables that are looked up stay, and what ``prune`` is told to ignore. A weight
    that multiplies and cannot be masked is named in a warning, with its share, and ``reached`` counts it as it is.

    Attributes:
        density: the fraction of prunable weights that stays, in (0, 1]; exactly ``round(density * weights)`` of them.
        distribution: ``"global"``: one ranking over all layers; ``"uniform"``: every layer keeps the same fraction;
            ``"erk"``: Erdos-Renyi kernels, where small layers keep more; ``"outliers"``: layers with more weights whose
            size times input stands out keep more (OWL, needs data); ``"spectrum"``: layers whose eigenvalues have
            heavier tails keep more (AlphaPruning). What a full layer cannot take goes to others.
        granularity: what stays or goes together: ``"element"``, ``"kernel"`` (of one input and output channel),
            ``"connection"`` (of two units: the same, but that all inputs of one unit go together), ``"block"`` (of
            kernels), or n of every m inputs, as in ``"2:4"`` (the density is then n / m, layers whose
            inputs are no multiple of m stay dense and are not counted). Kernels and blocks of different sizes come as
            near to the density as they can, from below.
        block: outputs and inputs of a block.
        guard: ``"paths"``: every output of the network hears its input; ``"outputs"``: so does every output of every
            layer; ``"units"``: and each unit that a layer reads is heard by one of its outputs; ``"none"``. Not for
            n:m, where every output keeps inputs anyway.
        dense: layers that stay dense, as names or patterns of names; they are not counted.
        outlier: for ``"outliers"``, how many times the mean of its layer stands out.
        spread: for ``"outliers"`` how far densities go from the mean, at most; for ``"spectrum"`` how far sparsities
            do, as a share of it. None: 0.08 and 0.3, as published.
    """

    wants: ClassVar[frozenset[str]] = frozenset()

    density: Density = 0.1
    distribution: Distribution = "global"
    granularity: str = "element"
    block: tuple[Size, Size] = (4, 4)
    guard: Guard = "paths"
    dense: tuple[str, ...] = ()
    outlier: Rate = field(default=OUTLIER, kw_only=True)
    spread: NotNegative | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        most = self.pattern.most
        if most is not None and abs(self.density - most[0] / most[1]) > 1e-9 and self.density < 1:
            raise ArgumentError(
                f"density={self.density:g}, but granularity={show_value(self.granularity)} keeps {most[0] / most[1]:g} "
                f"of the weights. Give density={most[0] / most[1]:g}."
            )
        self.check()

    def check(self) -> None:
        """Complain about hyper-parameters of one's own that do not go together."""

    @property
    def pattern(self) -> Pattern:
        """What stays or goes together."""
        return Pattern.of(self.granularity, self.block)

    @property
    def by_row(self) -> bool:
        """Whether the best weight of every output comes before the second of any."""
        return False

    @property
    def asks(self) -> tuple[Inquiry[Any], ...]:
        """What is asked of the network, where anything is to go."""
        if self.density == 1:
            return ()
        loud = (InputNorms(self.dense, self.heard),) if self.distribution == "outliers" else ()
        return tuple(dict.fromkeys((ComputedWeights(self.dense), *loud, *self.asks_of_scores)))

    @property
    def heard(self) -> int:
        """How many samples at most tell how loud inputs are."""
        return SAMPLES

    @property
    def asks_of_scores(self) -> tuple[Inquiry[Any], ...]:
        """What is asked to score the weights."""
        return ()

    @abstractmethod
    def scores(self, view: View, field: "PrunableWeights") -> Scored:
        """A score for each weight, higher stays: from the weights, and from what the network has answered."""

    def kept(self, view: View, field: "PrunableWeights") -> dict[str, Tensor]:
        """The masks: for each tensor a boolean of the shape in which the field has it."""
        return self.best(field, self.scores(view, field))

    def plan(self, view: View) -> Plan:
        """Mask what scores lowest.

        Raises:
            DataError: data are needed and there are none, or they are of no use.
            BudgetError: there is nothing to prune, or the density is too low to keep the outputs connected.
            ScoreError: a score is NaN or infinite.
        """
        asked = {
            "budget": "weights",
            "density": self.density,
            "distribution": self.distribution,
            "granularity": self.granularity,
        }
        if self.granularity == "block":
            asked["block"] = list(self.block)
        if self.density == 1:
            return Plan((), view.graph.fingerprint, asked, {"density": 1.0})
        field = PrunableWeights.of(view, self.dense)
        masks = field.from_matrices(self.kept(view, field))
        edits = tuple(Mask(name, Keep.of(mask)) for name, mask in masks.items() if not bool(mask.all()))
        return Plan(edits, view.graph.fingerprint, asked, field.reached(masks))

    def best(self, field: "PrunableWeights", scores: Scored, density: float | None = None) -> dict[str, Tensor]:
        """The masks of highest score, at a density on the way where one is given (n:m comes last)."""
        pattern = self.pattern
        if density is not None and pattern.most is not None:
            pattern = Pattern()
        by_row = self.by_row
        if by_row and (field.silent or self.guard == "units" or any(s.is_divided for s in field.sheets)):
            # What is fixed, or goes first, is chosen over the rows: by the places in them.
            raw, by_row = scores, False
            scores = LazyTensors(raw, lambda name: within_rows(raw[name]))
        scores = field.rank_silent_last(scores)
        return sparse_masks(
            scores,
            density=self.density if density is None else density,
            distribution=self.distribution,
            pattern=pattern,
            fixed=None if pattern.most else field.lifelines(scores, self.guard),
            kernels=field.kernels,
            parents={layer.tensor: layer.blocks for layer in field.layers()} if pattern.joined else None,
            by_row=by_row,
            ratios=self.ratios(field, self.density if density is None else density),
        )

    def ratios(self, field: "PrunableWeights", density: float) -> dict[str, float] | None:
        """How dense each tensor is to be, where outliers or spectra say it; None elsewhere."""
        if self.distribution == "outliers":
            scores = field.loud_sizes(InputNorms(self.dense, self.heard))
            shares = {name: outlier_share(values, self.outlier) for name, values in scores.items()}
            return ratios_by_outliers(shares, density, OUTLIER_SPREAD if self.spread is None else self.spread)
        if self.distribution == "spectrum":
            exponents = {name: hill_exponent(weight.flatten(1)) for name, weight in field.weights.items()}
            counts = {sheet.tensor: sheet.size for sheet in field.sheets}
            return ratios_by_spectrum(
                exponents, counts, density, SPECTRUM_SPREAD if self.spread is None else self.spread
            )
        return None

    def in_rounds(
        self, field: "PrunableWeights", rounds: int, scores: Callable[[Scored], Scored], *, revive: bool = False
    ) -> Scored:
        """Scores of the last of some rounds, each under the masks of the one before, ``density ** (round / rounds)``.

        Args:
            field: the weights.
            rounds: how many.
            scores: scores, 0 or more, of the network under the masks it is given.
            revive: whether what was masked can come back.
        """
        masks = field.whole()

        def score_left() -> Scored:
            found = scores(masks)
            return found if revive else {name: values.masked_fill(~masks[name], -1.0) for name, values in found.items()}

        for number in range(1, rounds):
            masks = self.best(field, score_left(), self.density ** (number / rounds))
        return score_left()


@dataclass(frozen=True, slots=True)
class NetworkScored(Sparse, ABC):
    """Masks by scores that only the network itself can tell."""

    @property
    def in_stages(self) -> bool:
        """Whether scores depend on the density, since weights are scored again when some have left."""
        return False

    @property
    def asks_of_scores(self) -> tuple[Inquiry[Any], ...]:
        """The scores themselves."""
        return (self.inquiry,)

    @property
    def inquiry(self) -> "WeightScores":
        """What is asked: of one round the same for each density."""
        return WeightScores(self if self.in_stages else replace(self, density=1.0))

    def scores(self, view: View, field: "PrunableWeights") -> Scored:
        """What was asked."""
        return view.ask(self.inquiry)

    @abstractmethod
    def ask_scores(self, view: View, field: "PrunableWeights") -> Scored:
        """Run a copy of the model, and score each weight of the field."""


@final
@dataclass(frozen=True, slots=True)
class WeightScores:
    """What a network tells of each of its weights, as a method asks it."""

    method: NetworkScored

    def of(self, view: View, folder: Folder = None) -> Scored:
        """Ask the model of a view; raises as :meth:`Sparse.plan`."""
        field, place = PrunableWeights.of(view, self.method.dense), answer_folder(folder, view, self)
        return remember(place and place / "scores.safetensors", lambda: self.method.ask_scores(view, field))


@final
@dataclass(frozen=True, slots=True, eq=False)
class PrunableWeights:
    """The weights a method chooses from.

    Attributes:
        view: what the method sees.
        sheets: the tensors and what their axes are for, in running order.
        weights: each as [outputs, inputs, kernel positions], on the CPU, in float32 at least.
        kernels: the sides of their kernels.
        sizes: absolute values of what multiplies, laid out as ``weights``: of these, or of what is computed from them.
        silent: which weights multiply as zeros though they are none (a mask of their own); laid out as ``weights``,
            of the tensors that have any.
    """

    view: View
    sheets: tuple[Product, ...]
    weights: Mapping[str, Tensor]
    kernels: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, Tensor]
    silent: Mapping[str, Tensor]

    @staticmethod
    def of(view: View, dense: tuple[str, ...]) -> "PrunableWeights":
        """The weights of a view but those of layers that stay ``dense``; raises ArgumentError or BudgetError."""
        if view.model is None:
            raise ArgumentError("masking weights needs the model itself: give the view its model.")
        found = sheets(view.model, view.graph, dense, view.ignored)
        laid = {s.tensor: s.to_matrix for s in found}
        kernels = {s.tensor: tuple(s.shape[axis] for axis in s.kernel) for s in found}
        real = view.ask(ComputedWeights(dense))
        weights = LazyTensors(laid, lambda name: laid[name](_wide(view.weights[name])))
        sizes = LazyTensors(laid, lambda name: laid[name](_wide(real.get(name, view.weights[name]))).abs())
        masked = [name for name in laid if name in real]
        silent = {name: (sizes[name] == 0) & (weights[name] != 0) for name in masked}
        return PrunableWeights(view, found, weights, kernels, sizes, {n: s for n, s in silent.items() if s.any()})

    def reached(self, masks: Mapping[str, Tensor]) -> dict[str, float | int | str]:
        """The density of all weights that multiply, how many masked ones stay, and what stays dense because it must."""
        forced = left_dense(self.view.graph, self.view.ignored)
        dense = (*forced, *(s for s in self.sheets if s.tensor not in masks))
        silent = self.from_matrices(self.silent)
        stay = sum(int((mask & ~silent[name] if name in silent else mask).sum()) for name, mask in masks.items())
        left = sum(p.size for p in dense)
        whole = sum(mask.numel() for mask in masks.values()) + left
        if forced:
            text = f"{describe_products(forced, whole)} stay dense. The density reached counts them."
            warnings.warn(f"of the weights that multiply {text}", NervureWarning, stacklevel=4)
        told = {"dense": describe_products(dense, whole)} if dense else {}
        return {"density": (stay + left) / whole, "weights": stay, **told}

    def to_matrix(self, values: Mapping[str, Tensor]) -> Scored:
        """Values by tensor, of its shape, laid out as the weights are."""
        return {s.tensor: s.to_matrix(without_history(values[s.tensor]).cpu()) for s in self.sheets}

    def from_matrices(self, laid: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What :meth:`to_matrix` made of some or all tensors, in their shapes again."""
        return {
            s.tensor: s.back(laid[s.tensor], self.view.weights[s.tensor].shape) for s in self.sheets if s.tensor in laid
        }

    def loud_sizes(self, norms: InputNorms) -> Scored:
        """The size of each weight times how loud its input is; where nothing is known of inputs, the size."""
        found = self.view.ask(norms)

        def weigh(name: str) -> Tensor:
            size = self.sizes[name]
            return wanda(size, found[name].to(size)) if name in found else size

        return LazyTensors(self.sizes, weigh)

    def whole(self) -> dict[str, Tensor]:
        """Masks that let every weight stay."""
        return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in self.weights.items()}

    def lots(self, generator: torch.Generator) -> Scored:
        """A random number for each weight."""
        # In double precision: in single, one in sixteen million numbers is drawn twice, and ties go by index.
        return {n: torch.rand(w.shape, generator=generator, dtype=torch.float64) for n, w in self.weights.items()}

    def rank_silent_last(self, scores: Scored) -> Scored:
        """Scores with what is silent below all others of its tensor."""

        def rank(name: str) -> Tensor:
            values = scores[name]
            return torch.where(self.silent[name], values.min() - 1, values) if name in self.silent else values

        return LazyTensors(scores, rank) if self.silent else scores

    def lifelines(self, scores: Scored, guard: Guard) -> Mapping[str, Tensor] | None:
        """The best weight of each output that must not fall silent, as booleans; None where nothing is guarded."""
        divided = {s.tensor for s in self.sheets if s.is_divided}
        if guard == "none" and not divided.intersection(scores):
            return None
        best = {name: values.reshape(len(values), -1).argmax(1) for name, values in scores.items()}
        alive = {name: torch.full((len(values),), guard != "none") for name, values in scores.items()}
        if guard == "paths":
            alive |= self._needed_outputs(best)
        # A row without a weight has no norm to divide by.
        alive |= {name: torch.ones_like(alive[name]) for name in divided.intersection(scores)}
        splits = {s.tensor: s.parts for s in self.sheets}
        units = {layer.tensor: layer.blocks for layer in self.layers()} if guard == "units" else {}

        def fix(name: str) -> Tensor:
            values = scores[name]
            flat = torch.zeros(len(values), values[0].numel(), dtype=torch.bool)
            flat[alive[name], best[name][alive[name]]] = True
            fixed = flat.reshape(values.shape)
            if name in divided:
                _fix_best_of_parents(fixed, values, torch.arange(values.shape[1]))
            if name in units:
                for own, part in zip(fixed.chunk(splits[name]), values.chunk(splits[name]), strict=True):
                    _fix_best_of_parents(own, part, units[name])
            return fixed

        return LazyTensors(scores, fix)

    def layers(self) -> tuple[Layer, ...]:
        """The tensors as connections between units, in running order; those on no axis of the graph are left out."""
        return layers(self.view.graph, self.view.weights, self.weights)

    def _needed_outputs(self, best: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs of each layer that are on the best paths from the network's outputs back to its inputs."""
        listed = [replace(layer, is_first=False) for layer in self.layers()]
        kernels = {s.tensor: math.prod(self.kernels[s.tensor]) for s in self.sheets}
        heard = {layer.tensor: layer.blocks[best[layer.tensor] // kernels[layer.tensor]] for layer in listed}
        return needed_children(self.view.graph, listed, heard)


def _fix_best_of_parents(fixed: Tensor, scores: Tensor, blocks: Tensor) -> None:
    """Also fix, in place, the best weight of each parent of which none is fixed; ``blocks``: the parent of inputs."""
    heard = fixed.any(2).any(0)
    for parent in sorted(set(blocks.tolist()) - set(blocks[heard].tolist())):
        inputs = (blocks == parent).nonzero().flatten()
        values = scores[:, inputs]
        row, place, position = np.unravel_index(int(values.argmax()), values.shape)
        fixed[int(row), int(inputs[int(place)]), int(position)] = True


@final
@dataclass(frozen=True, slots=True)
class ComputedWeights:
    """What multiplies in the place of parameters from which it is computed, but in layers that stay ``dense``."""

    dense: tuple[str, ...]

    def of(self, view: View, folder: Folder = None) -> dict[str, Tensor]:
        """In a run of the model on its example, soon done again; raises ArgumentError or BudgetError."""
        found = sheets(model_of(view), view.graph, self.dense, view.ignored)
        if not any(s.is_computed for s in found) or view.example is None or is_weightless(model_of(view)):
            return {}
        model = model_of(view)
        with evaluating(model):
            return computed_weights(model, partial(Inputs.of(view.example).run, model), found)


def _wide(weight: Tensor) -> Tensor:
    """On the CPU; half precision as float32."""
    return without_history(weight).cpu().to(torch.promote_types(weight.dtype, torch.float32))
