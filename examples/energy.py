"""Drop whole layers that tell little of the answer, then cut channels of what is left."""

from nervure import Energy, Magnitude, evaluate, measure, prune, trace, train, zoo
from nervure.methods import View

data = zoo.load("digits")
model = zoo.build("resnet20", seed=0, in_channels=1, width=0.25)
batches = data.train.batches(64, shuffle_seed=0)
train(model, batches, epochs=2, lr=0.1, progress=False)

# Every block with its score, the error of the score, and how often it would leave on other draws of the data.
method = Energy(drop=3, rounds=3, recalibrate=5)
example = data.example(1)
graph = trace(model, example)
stats = measure(model, graph, batches, want=method.wants, progress=False)
print(method.describe(View(graph, {}, stats, model=model, example=example, data=batches)))

pruned = prune(model, example, [method, Magnitude(keep=0.7, budget="macs")], data=batches, progress=False)
print(pruned)
before = evaluate(model, data.test.batches(500), progress=False).accuracy
train(pruned.model, batches, epochs=1, lr=0.03, schedule="cosine", progress=False)
after = evaluate(pruned.model, data.test.batches(500), progress=False).accuracy
print(f"accuracy {before:.1%} -> {after:.1%} after one epoch of recovery")
