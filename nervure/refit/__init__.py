"""What stays of a pruned network takes over what left, in closed form, before any training."""

from nervure.refit.fit import refit
from nervure.refit.surgeon import obs_update, restrict
from nervure.refit.values import LayerFit, Refit, Refitted

__all__ = ["LayerFit", "Refit", "Refitted", "obs_update", "refit", "restrict"]
