"""What stays of a pruned network takes over what left: in closed form, and branch by branch."""

from nervure.refit.fit import refit
from nervure.refit.settings import BranchFit, LayerFit, Refit, Refitted
from nervure.refit.surgeon import obs_update, restrict
from nervure.refit.train_branches import Reconstruct, Reconstructed, reconstruct

__all__ = [
    "BranchFit",
    "LayerFit",
    "Reconstruct",
    "Reconstructed",
    "Refit",
    "Refitted",
    "obs_update",
    "reconstruct",
    "refit",
    "restrict",
]
