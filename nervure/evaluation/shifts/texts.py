"""Shifts of text: in batches of strings, or of the numbers of tokens, whose labels follow."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from nervure.core.check import checked
from nervure.core.schema import Size
from nervure.errors import DataError
from nervure.evaluation.features import TOKEN_SHIFTS, corrupt_tokens
from nervure.evaluation.shifts.letters import TEXT_GROUPS, corrupt_text
from nervure.evaluation.shifts.one_shift import Shift, exchange, expand_shifts, separate
from nervure.evaluation.shifts.tokens import Codec, Noise, Token, cut_off, rewrite, rewrite_words
from nervure.tasks.batch_forms import Layout, Place, describe_batch, parts_of
from nervure.tasks.categorical import IGNORE, ids_in
from nervure.tasks.outputs import mask_in


@checked
def text_shifts(
    names: str | Iterable[str] = "all",
    *,
    tokenizer: Any = None,
    length: Size | None = None,
    inputs: Place | None = None,
    labels: Place | None = None,
) -> tuple[Shift, ...]:
    """Shifts of spelling, one for each name.

    Tokens are decoded, changed and encoded again, and come out as many as they were: what is longer is cut off, what is
    shorter is padded (in the attention mask too; labels that follow ignore it). Special tokens stay. Labels that are
    the tokens themselves, or the next ones, follow; masked tokens stay with their labels; labels of words stay at their
    words; all others stay.

    Args:
        names: ``"all"``, groups (``"typos"``, ``"casing"``, ``"punctuation"``, ``"unicode"``, ``"spaces"``) or some of
            ``TEXT_SHIFTS``.
        tokenizer: with ``decode`` and ``encode``, such as those of transformers; None where batches hold strings.
        length: tokens that a sample may have, where the model takes more than it had; batches then become as wide as
            they need.
        inputs: where the text is, see :class:`nervure.tasks.Layout`.
        labels: where the labels are.

    Raises:
        ArgumentError: a name is unknown, or the tokenizer is none.
    """
    layout, codec = Layout(inputs, labels), None if tokenizer is None else Codec(tokenizer)
    return tuple(Shift(name, _TextChange(name, codec, layout, length)) for name in expand_shifts(names, TEXT_GROUPS))


@checked
def token_shifts(
    names: str | Iterable[str] = "all",
    *,
    vocabulary: Size | None = None,
    mask: int = 0,
    inputs: Place | None = None,
    labels: Place | None = None,
) -> tuple[Shift, ...]:
    """Shifts of tokens without their text: some are missing, or mistaken for others; labels stay.

    Args:
        names: ``"all"`` or some of ``TOKEN_SHIFTS``.
        vocabulary: number of tokens there are; None takes the largest of a batch plus one, and then a sample comes out
            alike only beside the same others.
        mask: what stands for a missing token.
        inputs: where the tokens are.
        labels: where the labels are.
    """
    layout = Layout(inputs, labels)
    found = expand_shifts(names, {"tokens": TOKEN_SHIFTS})
    return tuple(Shift(name, _TokenChange(name, vocabulary, mask, layout)) for name in found)


@final
@dataclass(frozen=True, slots=True)
class _TokenChange:
    name: str
    vocabulary: int | None
    mask: int
    layout: Layout

    def __call__(self, batch: Any, severity: int, seed: int) -> Any:
        batch = separate(batch)
        ids = _require_ids(self.layout, batch)
        shown = mask_in(batch, ids)
        shown = torch.ones_like(ids, dtype=torch.bool) if shown is None else shown
        # Padding is 0 while the chance is drawn: how much of it there is depends on the other samples.
        changed = corrupt_tokens(
            ids * shown, self.name, severity, seed=seed, vocabulary=self.vocabulary, mask=self.mask
        )
        return exchange(batch, [(ids, torch.where(shown, changed, ids))])


@final
@dataclass(frozen=True, slots=True)
class _TextChange:
    name: str
    codec: Codec | None
    layout: Layout
    length: int | None

    def __call__(self, batch: Any, severity: int, seed: int) -> Any:
        def noise(text: str, beside: str) -> str:
            return corrupt_text(text, self.name, severity, seed=seed, beside=beside)

        if isinstance(batch, str):
            return noise(batch, "")
        batch = separate(batch)
        texts = _texts_in(self.layout, batch)
        if texts:
            return exchange(batch, [(text, noise(str(text), "")) for text in texts])
        ids = _require_ids(self.layout, batch)
        if self.codec is None:
            raise DataError(f"{describe_batch(batch)} holds tokens, and no text. Give text_shifts(tokenizer=...).")
        return TokenRows.of(batch, ids, self.layout, self.codec).rewritten(noise, self.name, self.length)


@final
@dataclass(frozen=True, slots=True)
class TokenRows:
    """The tokens of a batch, and what goes along with them, [samples, tokens] each.

    Attributes:
        batch: the batch.
        ids: the tokens.
        mask: which of them are there; None: all.
        labels: those that are of tokens.
        kinds: which of two texts a token belongs to.
        codec: what reads and writes them.
    """

    batch: Any
    ids: Tensor
    mask: Tensor | None
    labels: Tensor | None
    kinds: Tensor | None
    codec: Codec

    @classmethod
    def of(cls, batch: Any, ids: Tensor, layout: Layout, codec: Codec) -> "TokenRows":
        """Those of a batch."""
        parts = parts_of(layout.inputs_in(batch)) or {}

        def along(part: Any) -> Tensor | None:
            return part if isinstance(part, Tensor) and part.shape == ids.shape else None

        mask, labels = along(parts.get("attention_mask")), along(layout.labels_in(batch))
        return cls(batch, ids, mask, labels, along(parts.get("token_type_ids")), codec)

    def rewritten(self, noise: Noise, name: str, length: int | None) -> Any:
        """The batch with its text changed."""
        rows = []
        for row in range(len(self.ids)):
            tokens = self._tokens(row)
            most = len(tokens) if length is None else length
            rows.append(self._rewrite(tokens, noise, name, most))
        width = self.ids.shape[1] if length is None else max(map(len, rows))
        return exchange(self.batch, self._pairs(rows, width))

    def _tokens(self, row: int) -> list[Token]:
        shown = slice(None) if self.mask is None else self.mask[row].bool()
        ids = self.ids[row][shown].tolist()
        labels = [None] * len(ids) if self.labels is None else self.labels[row][shown].tolist()
        kinds = [0] * len(ids) if self.kinds is None else self.kinds[row][shown].tolist()
        masked, special = self.codec.mask in ids, self.codec.special
        # What is to be told where a mask stands, or stood, must go on being told there.
        fixed = [n in special or (masked and label not in (None, IGNORE)) for n, label in zip(ids, labels, strict=True)]
        return [Token(*each) for each in zip(ids, fixed, labels, kinds, strict=True)]

    def _rewrite(self, tokens: list[Token], noise: Noise, name: str, most: int) -> list[Token]:
        ids, labels = [token.number for token in tokens], [token.label for token in tokens]
        own = all(token.label == token.number for token in tokens if token.counts)
        if self.labels is None or self.codec.mask in ids or own:
            return cut_off(rewrite(tokens, self.codec, noise), most)
        if labels[:-1] == ids[1:]:
            found = cut_off(rewrite(tokens, self.codec, noise), most)
            after = [*(token.number for token in found[1:]), IGNORE]
            return [token._replace(label=label) for token, label in zip(found, after, strict=True)]
        if name == "whitespace":
            raise DataError("spaces say which words there are, and the labels are of words. Leave 'whitespace' out.")
        return cut_off(rewrite_words(tokens, self.codec, noise), most)

    def _pairs(self, rows: list[list[Token]], width: int) -> Iterator[tuple[Tensor, Tensor]]:
        left = self.mask is not None and bool((self.mask[:, 0] == 0).any())
        columns: list[tuple[Tensor | None, int, Callable[[Token], Any]]] = [
            (self.ids, self.codec.padding, lambda token: token.number),
            (self.mask, 0, lambda token: 1),
            (self.labels, IGNORE, lambda token: token.label),
            (self.kinds, 0, lambda token: token.kind),
        ]
        for old, filler, read in columns:
            if old is not None:
                lines = [_padded([read(token) for token in row], width, filler, left) for row in rows]
                yield old, torch.tensor(lines, dtype=old.dtype, device=old.device)


def _padded(line: list[Any], width: int, filler: int, left: bool) -> list[Any]:
    rest = [filler] * (width - len(line))
    return rest + line if left else line + rest


def _require_ids(layout: Layout, batch: Any) -> Tensor:
    ids = ids_in(layout, batch)
    if ids is None:
        raise DataError(f"there is no text and there are no tokens [samples, tokens] in {describe_batch(batch)}.")
    return ids


def _texts_in(layout: Layout, batch: Any) -> list[str]:
    """The strings that go in; of a list of strings alone each is one."""
    if isinstance(batch, list | tuple) and batch and all(isinstance(part, str) for part in batch):
        return list(batch)
    return list(_strings(layout.inputs_in(batch)))


def _strings(part: Any) -> Iterator[str]:
    parts = parts_of(part)
    if isinstance(part, str):
        yield part
    elif parts is not None or isinstance(part, list | tuple):
        for one in part if parts is None else parts.values():
            yield from _strings(one)
