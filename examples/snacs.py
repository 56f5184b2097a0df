"""Prune by connectivity: see what a network's layers hear, then cut filters or mask connections, measured once."""

import tempfile

from nervure import SNACS, evaluate, prune, trace, train, zoo
from nervure.graph.tape import named_tensors
from nervure.methods import View

data = zoo.load("digits")
model = zoo.build("resnet8", seed=0, in_channels=1, width=0.5)
batches = data.train.batches(64, shuffle_seed=0)
train(model, batches, epochs=3, lr=0.1, progress=False)
example = data.example(1)

with tempfile.TemporaryDirectory() as cache:
    # What the plan rests on: who listens to whom, how much of each layer can go, what the next layers lean on.
    method = SNACS(keep=0.5, granularity="kernels", samples=1000, cache=cache)
    weights = {name: tensor.detach() for name, tensor in named_tensors(model).items()}
    found = method.evidence(View(trace(model, example), weights, model=model, example=example, data=batches))
    for layer, limit in found.limits.items():
        print(f"{layer:<26} up to {limit.upper:.0%} of its connections can go")
    print("protected:", {group: units.nonzero().flatten().tolist() for group, units in found.protected.items()})

    # The same measurement serves every budget: these two plans cost nothing more.
    for keep in (0.5, 0.3):
        kernels = SNACS(keep=keep, granularity="kernels", samples=1000, cache=cache)
        masked = prune(model, example, kernels, data=batches, progress=False)
        print(f"{masked.plan.reached['connections']} connections stay at keep={keep}")

# By default filters leave, and what stays takes over: this costs next to nothing before any training.
pruned = prune(model, example, SNACS(keep=0.3), data=batches, progress=False)
print(pruned)
before = evaluate(model, data.test.batches(500), progress=False).accuracy
train(pruned.model, batches, epochs=2, lr=0.05, progress=False)
after = evaluate(pruned.model, data.test.batches(500), progress=False).accuracy
print(f"accuracy {before:.1%} -> {after:.1%} after two epochs of recovery")
