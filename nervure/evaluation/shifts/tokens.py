"""Tokens of a text written anew: taken apart into runs that a noise may change, decoded, changed, encoded again."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple, TypeAlias, final

from nervure.errors import ArgumentError
from nervure.tasks.categorical import IGNORE

Noise: TypeAlias = Callable[[str, str], str]
"""From a text, and what it stands beside, to another text."""


class Token(NamedTuple):
    """One token of a sample: its number, whether it stays as it is, its label (None: there are none), its kind."""

    number: int
    fixed: bool
    label: int | None
    kind: int = 0

    @property
    def counts(self) -> bool:
        """Whether the label does."""
        return self.label is not None and self.label != IGNORE


@final
@dataclass(frozen=True, slots=True)
class Codec:
    """What is asked of a tokenizer: those of transformers, of tokenizers, or any with ``decode`` and ``encode``."""

    tokenizer: Any

    def __post_init__(self) -> None:
        if not all(callable(getattr(self.tokenizer, name, None)) for name in ("decode", "encode")):
            raise ArgumentError(
                f"tokenizer= is a {type(self.tokenizer).__name__}; give what has decode(numbers) and encode(text)."
            )

    def decode(self, numbers: Sequence[int]) -> str:
        """The text of tokens."""
        options = {"clean_up_tokenization_spaces": False} if self._of_transformers else {}
        return str(self.tokenizer.decode(list(numbers), **options))

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without those that mark its ends."""
        options = {"add_special_tokens": False} if self._of_transformers or hasattr(self.tokenizer, "get_vocab") else {}
        found = self.tokenizer.encode(text, **options)
        return [int(number) for number in getattr(found, "ids", found)]

    @property
    def special(self) -> frozenset[int]:
        """Tokens that are no text."""
        return frozenset(getattr(self.tokenizer, "all_special_ids", ()))

    @property
    def padding(self) -> int:
        """What fills up: the token for that, or the one for an end, or 0."""
        named = (getattr(self.tokenizer, name, None) for name in ("pad_token_id", "eos_token_id"))
        return next((int(number) for number in named if isinstance(number, int)), 0)

    @property
    def mask(self) -> int | None:
        """The token that stands where one is to be told."""
        found = getattr(self.tokenizer, "mask_token_id", None)
        return found if isinstance(found, int) else None

    @property
    def _of_transformers(self) -> bool:
        return hasattr(self.tokenizer, "all_special_ids")


def cut_off(tokens: list[Token], length: int) -> list[Token]:
    """The first tokens, and those at the very end that stay as they are."""
    if len(tokens) <= length:
        return tokens
    end = next((place for place in range(len(tokens), 0, -1) if not tokens[place - 1].fixed), 0)
    tail = tokens[end:][:length]
    return tokens[: length - len(tail)] + tail


def rewrite(tokens: Sequence[Token], codec: Codec, noise: Noise) -> list[Token]:
    """The tokens of the changed text; the label of each is itself where those of its run counted, else it has none."""
    found: list[Token] = []
    for (fixed, counts, kind), run in groupby(tokens, lambda token: (token.fixed, token.counts, token.kind)):
        part = list(run)
        found += part if fixed else _encode_run(part, codec, noise, counts, kind)
    return found


def _encode_run(run: list[Token], codec: Codec, noise: Noise, counts: bool, kind: int) -> list[Token]:
    text = codec.decode([token.number for token in run])
    changed = noise(text, "")
    if changed == text:
        return run
    none = None if run[0].label is None else IGNORE
    return [Token(number, False, number if counts else none, kind) for number in codec.encode(changed)]


def rewrite_words(tokens: Sequence[Token], codec: Codec, noise: Noise) -> list[Token]:
    """The tokens of the changed words; the first token of a word keeps its label, further ones that of its last."""
    found: list[Token] = []
    for fixed, run in groupby(tokens, lambda token: token.fixed):
        part = list(run)
        found += part if fixed else _encode_words(part, codec, noise)
    return found


def _encode_words(run: list[Token], codec: Codec, noise: Noise) -> list[Token]:
    found: list[Token] = []
    for text, word in _words(run, codec):
        # A word alone would meet the same chance wherever it stands.
        changed = noise(text, str(len(found)))
        numbers = codec.encode(changed) if changed != text else []
        inner = word[-1].label if len(word) > 1 else IGNORE
        labels = [word[0].label, *[inner] * (len(numbers) - 1)]
        new = [Token(number, False, label, word[0].kind) for number, label in zip(numbers, labels, strict=False)]
        found += new or word
    return found


def _words(run: list[Token], codec: Codec) -> Iterator[tuple[str, list[Token]]]:
    """Tokens of a word and its text: one begins at a space, or where another label does."""
    word: list[Token] = []
    text, told = "", 0
    for place, token in enumerate(run):
        whole = codec.decode([one.number for one in run[: place + 1]])
        piece, told = whole[told:], len(whole)
        if word and (piece[:1].isspace() or (token.counts and token.label != word[-1].label)):
            yield text, word
            word, text = [], ""
        word.append(token)
        text += piece
    if word:
        yield text, word
