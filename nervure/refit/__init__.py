"""What stays of a pruned network takes over what left, in closed form, before any training."""

from nervure.refit.fit import refit
from nervure.refit.settings import BranchFit, LayerFit, Refit, Refitted
from nervure.refit.surgeon import obs_update, restrict

__all__ = ["BranchFit", "LayerFit", "Refit", "Refitted", "obs_update", "refit", "restrict"]
