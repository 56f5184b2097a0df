"""Halve the multiply-accumulates of a ResNet in five lines."""

import torch

from nervure import Magnitude, prune, zoo

model = zoo.build("resnet20")
example = torch.randn(1, 3, 32, 32)
pruned = prune(model, example, Magnitude(keep=0.5, budget="macs"))

before, after = pruned.cost_before, pruned.cost_after
print(f"multiply-accumulates  {before.macs:>12,} -> {after.macs:>12,}   {after.macs / before.macs:.1%} stay")
print(f"parameters            {before.params:>12,} -> {after.params:>12,}   {after.params / before.params:.1%} stay")
print(f"largest relative difference from the original with the same channels silenced: {pruned.verification:.1e}")
