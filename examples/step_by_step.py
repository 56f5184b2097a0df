"""The same, one arrow at a time: trace, plan, apply, verify."""

import torch

from nervure import Magnitude, Pruned, apply, count, trace, verify, zoo
from nervure.methods import View

torch.manual_seed(0)
model = zoo.build("resnet20")
example = torch.randn(1, 3, 32, 32)

# What is coupled to what. Groups that cannot be cut say why.
graph = trace(model, example)
print(f"{len(graph.groups)} groups, {len(graph.prunable)} prunable")
for group in graph.groups:
    if group.is_pinned:
        print(f"  {group.name} stays: {group.pinned}")

# What to do, as data. Nothing has happened to the model yet.
plan = Magnitude(keep=0.5, budget="macs").plan(View(graph, model.state_dict()))
for cut in plan.cuts:
    print(f"  {cut.group:24} {cut.keep.size:4d} -> {cut.keep.count:4d}")

# A new model, checked against the original with the same channels silenced.
smaller = apply(model, graph, plan)
before, after = count(model, example), count(smaller, example)
outcome = verify(model, Pruned(smaller, plan, graph, before, after), example)

print(f"relative error {outcome.error:.1e}, allowed {outcome.tolerance:.0e}")
print(f"{before.macs:,} -> {after.macs:,} multiply-accumulates; {before.params:,} -> {after.params:,} parameters")
