"""SparseGPT: weights are chosen while those that stay make up for those that leave, layer by layer.

Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", 2023, algorithm 1.

The plan has the masks. What stays is then fitted by a refit, as after any other method; with
``refit=Refit(masks="surgeon")`` by the same update, column by column, now towards what the dense network says.

Differs from the paper: convolutions and recurrent layers too, as far as their inputs can be read position by position;
every output keeps a weight unless ``guard="none"``; counts are exact; weights that are zero already leave first.
"""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from nervure.budget.weight_masks import Distribution, count_weights, relative_densities, sparse_masks
from nervure.core.schema import Count, Density, Size
from nervure.errors import ArgumentError, BudgetError, DataError
from nervure.methods.base import Folder, Inquiry, View, draw_samples
from nervure.methods.channels.compensation import places_in
from nervure.methods.evidence_folder import answer_folder, remember
from nervure.methods.masks.base_masks import Guard, PrunableWeights, Scored, Sparse
from nervure.methods.masks.gradients import twin
from nervure.refit.mask_selection import MatrixShare, select_masks


@final
@dataclass(frozen=True, slots=True)
class SparseGPT(Sparse):
    """Mask the weights that it costs least to remove once the others of their output make up for them.

    Needs data; labels are not looked at. Weights of layers whose inputs cannot be read position by position (experts,
    computed weights) go by their magnitude. The other hyper-parameters are those of every method that masks weights:
    ``density``, ``distribution`` (not ``"global"``), ``granularity`` (``"element"`` or n:m), ``guard`` (``"outputs"``
    or ``"none"``), ``dense``.

    Attributes:
        samples: how many samples at most are run.
        positions: at how many places of each sample a convolution is looked at, at most. 0: 8, or more where samples
            are few, so that a layer sees about 8,192.
    """

    density: Density = 0.5
    distribution: Distribution = "uniform"
    guard: Guard = "outputs"
    samples: Size = 128
    positions: Count = 0

    def check(self) -> None:
        """Refuse what cannot be chosen layer by layer."""
        if self.pattern.block is not None:
            raise ArgumentError(f"SparseGPT chooses single weights or n:m, not granularity={self.granularity!r}.")
        if self.distribution == "global":
            raise ArgumentError(
                "SparseGPT goes layer by layer: distribution='global' is none. Take 'uniform' or 'erk'."
            )
        if self.guard not in ("outputs", "none"):
            raise ArgumentError(f"SparseGPT has guard='outputs' or 'none', not {self.guard!r}.")

    @property
    def asks_of_scores(self) -> tuple[Inquiry[Any], ...]:
        """The masks themselves."""
        return (SelectedMasks(self),)

    @property
    def heard(self) -> int:
        """How many samples at most tell how loud inputs are."""
        return self.samples

    def scores(self, view: View, field: PrunableWeights) -> Scored:
        """1 for what was chosen, 0 for the rest; magnitude where nothing could be read."""
        chosen = view.ask(SelectedMasks(self))
        return {s.tensor: s.to_matrix(chosen[s.tensor]).float() for s in field.sheets if s.tensor in chosen}

    def kept(self, view: View, field: PrunableWeights) -> dict[str, Tensor]:
        """What was chosen."""
        chosen = view.ask(SelectedMasks(self))
        return {s.tensor: s.to_matrix(chosen[s.tensor]) for s in field.sheets if s.tensor in chosen}

    def choose(self, view: View) -> dict[str, Tensor]:
        """The masks of all tensors, of their shapes, from runs of a copy; raises DataError or BudgetError."""
        if view.data is None:
            raise DataError(f"{self!r} looks at what enters the layers: give data=, batches of inputs.")
        field = PrunableWeights.of(view, self.dense)
        shares = self._shares(field)
        drawn = draw_samples(view, self.samples)
        readable = {s.tensor: shares[s.tensor] for s in field.sheets if s.tensor in shares and not s.is_computed}
        positions, shown = self.positions or places_in(drawn), view.shows_progress
        found = select_masks(twin(view), drawn, readable, positions=positions, seed=view.seed, shown=shown)
        return found | self._by_magnitude(field, {name: shares[name] for name in shares if name not in found})

    def _shares(self, field: PrunableWeights) -> dict[str, MatrixShare]:
        most = self.pattern.most
        guarded = self.guard == "outputs"
        kernels = {s.tensor: len(s.to_matrix(torch.empty(s.shape, device="meta"))[0, 0]) for s in field.sheets}
        if most is not None:
            fitting = [name for name, weight in field.weights.items() if weight.shape[1] % most[1] == 0]
            if not fitting:
                raise BudgetError(f"granularity={self.granularity!r} needs inputs in multiples of {most[1]}: none are.")
            return {name: MatrixShare(0, most, kernels[name], guarded) for name in fitting}
        sizes = {s.tensor: s.size for s in field.sheets}
        needs = {name: len(weight) if guarded else 0 for name, weight in field.weights.items()}
        ratios = self.ratios(field, self.density)
        weights = relative_densities(field.weights, self.distribution, field.kernels, ratios)
        counts = count_weights(sizes, needs, self.density, weights)
        return {name: MatrixShare(count, None, kernels[name], guarded) for name, count in counts.items()}

    def _by_magnitude(self, field: PrunableWeights, shares: dict[str, MatrixShare]) -> dict[str, Tensor]:
        fixed = field.lifelines(field.sizes, self.guard) or {}
        laid = dict[str, Tensor]()
        for name, share in shares.items():
            alone = {name: field.sizes[name]}
            held = {name: fixed[name]} if name in fixed and share.most is None else None
            density = share.keep / alone[name].numel() if share.most is None else self.density
            laid |= sparse_masks(alone, density=density, pattern=self.pattern, fixed=held)
        return field.from_matrices(laid)


@final
@dataclass(frozen=True, slots=True)
class SelectedMasks:
    """What SparseGPT chooses, as asked of a network."""

    method: SparseGPT

    def of(self, view: View, folder: Folder = None) -> dict[str, Tensor]:
        """Ask the model of a view; raises as :meth:`SparseGPT.choose`."""
        place = answer_folder(folder, view, self)
        return remember(place and place / "masks.safetensors", lambda: self.method.choose(view))
