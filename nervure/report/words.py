"""The words of a page that not everybody knows, and what they mean, told at its end."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, final

from nervure.core.markup import html

if TYPE_CHECKING:
    from markupsafe import Markup

WORDS: Mapping[str, str] = MappingProxyType(
    {
        "accuracy": "Share of the test samples that are named right.",
        "validation": "The same measure on samples kept apart from training, to choose by; test samples have no say.",
        "loss": "Mean loss over the test samples; where classes are told, the cross-entropy in nats. Lower is better.",
        "top5": "Share of the test samples whose right class is among the five likeliest.",
        "f1": "Harmonic mean of precision and recall, averaged over the classes.",
        "calibration error": "How far the confidence of answers is from the share that is right.",
        "mean iou": "What answer and truth share of what either covers, averaged over the classes.",
        "map": "Mean average precision of boxes, over several overlaps with the truth.",
        "perplexity": "Exponential of the loss for each token: between so many tokens the model is undecided.",
        "rmse": "Root of the mean squared error.",
        "mae": "Mean absolute error.",
        "r2": "Share of the variance that is explained; 1 is perfect, 0 is what the mean would do.",
        "cosine": "Cosine of the angle between what was answered and what was right.",
        "flips": "Share of the samples to which the dense network answers something else.",
        "kl": "Divergence from the answers of the dense network, in nats.",
        "word error rate": "Words to be changed, added or taken out, for each word that was right.",
        "character error rate": "The same of characters.",
        "ECE": "Expected calibration error: how far the confidence of answers is from the share that is right.",
        "parameters": "Entries of all weights. Where some are masked, sweeps count those that are not zero.",
        "non-zero": "Parameters that are not zero.",
        "MACs": "Multiply-accumulates of one forward pass of one sample: convolutions, matrix products, attention.",
        "multiply-accumulates": "Of one forward pass of one sample: convolutions, matrix products, attention; MACs.",
        "file": "Size of the saved file.",
        "ms": (
            "Milliseconds of a forward pass of so many samples. Of the dense network it is the median over rounds in "
            "which all networks take turns; of the others that median over their speed-up, which is the median over "
            "the rounds of the dense network's time by their own. In brackets the speed-up: the milliseconds shown, "
            "divided. What an engine does once is not timed."
        ),
        "latency": "Milliseconds of a forward pass of so many samples, as a share of the dense network's.",
        "engine": "What runs the network: eager is PyTorch as it is, compile is torch.compile.",
        "dense": "The network before anything was removed, as trained.",
        "pruned": "What the method made of it, after the same further training as its twins.",
        "dense+": "A twin: the dense network, not pruned, given the same further training as the pruned one.",
        "random": (
            "A twin: as many units and weights stay in each group as in the pruned network, chosen by lot, with the "
            "same further training. What it lacks is what the choice is worth."
        ),
        "keep": "The fraction of the budget that stays: 0.4 removes 60 %.",
        "budget": "What is counted when it is said how much may stay.",
        "channels": "Units (channels, heads, neurons) that stay in the groups that may be cut.",
        "params": "Parameters that stay.",
        "macs": "Multiply-accumulates that stay.",
        "granularity": "What a unit is: a whole filter, or one kernel of it.",
        "scope": "Whether units compete over the whole network or within their layer.",
        "group": "Units that leave together or not at all, in every tensor that knows them.",
        "fitted": "How the weights that stay were fitted: ridge regression with its penalty, or a bias alone.",
        "error": "Squared, as a share of the variance of what the dense layer puts out: before → after.",
        "corruption": "How the test pictures were changed before they were shown.",
        "under shift": "Mean accuracy on test pictures that were corrupted.",
        "mean under shift": "Mean over the corruptions.",
        "95 % interval": "Where the true value lies in 95 of 100 such samples.",
        "mCE": "Mean error under corruption, over that of the dense network: below 100, pruning helped.",
        "relative mCE": (
            "The same of what is lost to corruption: clean accuracy less the mean under shift, both on the samples "
            "that were corrupted. A dash where that of the dense network is within its standard error."
        ),
        "setting": "A method at a budget; its numbers are means over seeds.",
        "choice": "front: no other setting costs as little and is as good. suggested: the knee of the front.",
        "plan (s)": "Seconds that the method took to decide.",
        "seeds": "How many runs there are, each with a training and data order of its own.",
        "pairs": "How many pairs of runs share network and seed.",
        "told apart": (
            "Whether a paired t test of the runs finds a difference at p below 0.05. Of twenty that are alike, chance "
            "tells one apart."
        ),
        "minus": "The paired difference: same network, same seed, same budget.",
        "lost": "How much worse than the dense network, on samples held out.",
        "within": "Whether that is within the tolerance.",
        "cut against silenced original": (
            "Right after the cut: the smaller network against the dense one with the removed units set to zero. Both "
            "must compute the same."
        ),
        "saved file in a fresh process": "The saved file, loaded in a new process, against what was saved.",
    }
)
"""Words as tables begin with them, in the order of the end of a page."""
_NUMBERS = {word: number for number, word in enumerate(WORDS)}
_LONGEST_FIRST = sorted(WORDS, key=len, reverse=True)


@final
class PageWords:
    """Links words of one page to what explains them, and remembers which those were."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def link(self, cell: str) -> "Markup":
        """HTML of a cell: the word that it begins with is a link, where it is explained.

        >>> PageWords().link("ECE (%)").endswith(">ECE</a> (%)")
        True
        """
        from markupsafe import Markup

        word = next((word for word in _LONGEST_FIRST if cell == word or cell.startswith((f"{word} ", f"{word},"))), "")
        if not word:
            return Markup(html(cell))
        self._used.add(word)
        return Markup(f'<a class="word" href="#word-{_NUMBERS[word]}">{word}</a>{html(cell[len(word) :])}')

    @property
    def used(self) -> Sequence[tuple[int, str, str]]:
        """Number, word and meaning of those that were linked."""
        return [(_NUMBERS[word], word, meaning) for word, meaning in WORDS.items() if word in self._used]
