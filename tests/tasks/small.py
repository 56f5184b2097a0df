"""Small models with data for every task that has a loss of its outputs."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nervure import tasks
from nervure.tasks import Task


@dataclass
class Case:
    """A task, a model for it and one batch of four samples."""

    task: Task
    model: nn.Module
    batch: Any


class Output(OrderedDict):  # type: ignore[type-arg]
    """What models of transformers return: a mapping whose parts are attributes too."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Tokens(nn.Module):
    """Scores for each token, from the tokens alone."""

    def __init__(self, vocabulary: int, classes: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(vocabulary, 6), nn.Linear(6, classes)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **_: Any
    ) -> Output:
        logits = self.head(self.embed(input_ids))
        if labels is None:
            return Output(logits=logits)
        return Output(loss=nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), logits=logits)


class TinyForCausalLM(Tokens):
    """A causal model by its name."""


class Writer(nn.Module):
    """Encoder and decoder: what it writes depends on both."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 6), nn.Linear(6, 9)

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        return nn.functional.pad(labels[:, :-1].clamp(min=0), (1, 0))

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor) -> Output:
        return Output(logits=self.head(self.embed(decoder_input_ids) + self.embed(input_ids).mean(1, keepdim=True)))


class Lines(nn.Sequential):
    """Scores for each frame, frames first."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).transpose(0, 1)


def _ids(vocabulary: int = 9, length: int = 7) -> Tensor:
    return torch.randint(0, vocabulary, (4, length))


def _padded(ids: Tensor) -> Tensor:
    ids = ids.clone()
    ids[0, 4:] = ids[2, 5:] = -100
    return ids


def _dense() -> Case:
    torch.manual_seed(5)
    return Case(tasks.agreement(nn.Linear(3, 5)), nn.Linear(3, 5), torch.randn(4, 3))


CASES: dict[str, Callable[[], Case]] = {
    "classification": lambda: Case(
        tasks.classification(), nn.Linear(3, 7), (torch.randn(4, 3), torch.randint(0, 7, (4,)))
    ),
    "smoothed": lambda: Case(
        tasks.classification(smoothing=0.1), nn.Linear(3, 5), {"input": torch.randn(4, 3), "label": torch.arange(4)}
    ),
    "mixed": lambda: Case(tasks.classification(), nn.Linear(3, 5), (torch.randn(4, 3), torch.rand(4, 5).softmax(1))),
    "multilabel": lambda: Case(tasks.multilabel(), nn.Linear(3, 5), (torch.randn(4, 3), torch.randint(0, 2, (4, 5)))),
    "yes or no": lambda: Case(tasks.multilabel(), nn.Linear(3, 1), (torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))),
    "regression": lambda: Case(tasks.regression(), nn.Linear(3, 2), (torch.randn(4, 3), torch.randn(4, 2))),
    "huber": lambda: Case(
        tasks.regression(distance="huber"), nn.Linear(3, 1), (torch.randn(4, 3), torch.randn(4).clamp(-0.9, 3))
    ),
    "embedding": lambda: Case(tasks.embedding(), nn.Linear(3, 6), (torch.randn(4, 3), torch.randn(4, 6))),
    "token classification": lambda: Case(
        tasks.token_classification(), Tokens(9, 5), {"input_ids": _ids(), "labels": _padded(_ids(5))}
    ),
    "causal, without labels": lambda: Case(tasks.language_modelling(), Tokens(9, 9), _ids()),
    "causal, padded": lambda: Case(
        tasks.language_modelling(), Tokens(9, 9), {"input_ids": (ids := _ids()), "labels": _padded(ids)}
    ),
    "masked": lambda: Case(
        tasks.language_modelling("masked"), Tokens(9, 9), {"input_ids": _ids(), "labels": _padded(_ids())}
    ),
    "segmentation": lambda: Case(
        tasks.segmentation(), nn.Conv2d(3, 4, 2, 2), (torch.randn(4, 3, 8, 8), torch.randint(0, 4, (4, 8, 8)))
    ),
    "ctc": lambda: Case(
        tasks.sequence("ctc"), nn.Linear(3, 6), (torch.randn(4, 9, 3), _padded(torch.randint(1, 6, (4, 6))))
    ),
    "ctc, frames first": lambda: Case(
        tasks.sequence("ctc", time_first=True),
        Lines(nn.Linear(3, 6)),
        (torch.randn(4, 9, 3), _padded(torch.randint(1, 6, (4, 6)))),
    ),
    "seq2seq": lambda: Case(
        tasks.sequence("seq2seq"), Writer(), {"input_ids": _ids(), "labels": _padded(_ids(length=6))}
    ),
    "agreement": _dense,
}
