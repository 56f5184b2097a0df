"""Plain texts as windows of tokens, for language models: the data ``text:FILE`` or ``text:FOLDER``."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from nervure.core.check import Checked
from nervure.core.extras import require_extra
from nervure.core.schema import Size
from nervure.errors import DataError
from nervure.recipe.own_data import LoaderSplit, OwnData

TEXT = "text:"
PARTS = 12
VALIDATION, TEST = (5,), (7, 11)
"""Which twelfths of the text are held out: what is calibrated on lies in none of them."""
TRACED = 32
"""Tokens that tracing looks at: what is coupled to what does not depend on more, and they cost time."""
ENDINGS = (".txt", ".md", ".rst", ".text", ".jsonl")


@final
@dataclass(frozen=True, slots=True)
class TextWindows(Checked):
    """How texts become batches: packed into windows, one text behind the other, without overlap.

    Attributes:
        tokenizer: a folder with a tokenizer, such as that of the model.
        window: tokens of each window.
        train: windows to calibrate and train on.
        validation: windows for choices.
        test: windows to measure on.
        batch: windows of a batch.
        characters: of the texts, read from the beginning.
        chat: conversations (``{"messages": [...]}`` in a line of a .jsonl file) are written as the tokenizer's chat
            template says; False: what is said, line by line.
    """

    tokenizer: str
    window: Size = 256
    train: Size = 64
    validation: Size = 8
    test: Size = 12
    batch: Size = 4
    characters: Size = 1_500_000
    chat: bool = True

    def load(self, places: str | Path) -> OwnData:
        """Batches ``{"input_ids": [windows, tokens]}``, at even distances of each part of the texts.

        Args:
            places: a file, a folder, or several with commas between them, each a text of another kind: as many windows
                of each, in turn.

        Raises:
            DataError: there are no texts, or too few tokens.
            MissingExtraError: transformers is not installed.
        """
        transformers = require_extra("transformers", f"data named {TEXT}...", "transformers")
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(self.tokenizer)
        except (OSError, ValueError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise DataError(f"[data] tokenizer={self.tokenizer!r} holds none: {reason}") from error
        paths = _paths(str(places))
        kinds = [self._split(path, tokenizer, self.characters // len(paths)) for path in paths]
        counts = (self.train, self.validation, self.test)
        train, validation, test = (
            self._batches(rows, n) for rows, n in zip(zip(*kinds, strict=True), counts, strict=True)
        )
        return OwnData(f"{TEXT}{places}", train, validation, test, {"input_ids": kinds[0][0][:2, :TRACED]})

    def _split(self, path: Path, tokenizer: Any, characters: int) -> tuple[Tensor, Tensor, Tensor]:
        """The windows of a text, [windows, tokens]: to calibrate and train on, for choices, and to measure on."""
        rows = self._pack(tokenizer, _read(path, tokenizer if self.chat else None, characters))
        if len(rows) < 2 * PARTS:
            raise DataError(
                f"[data] {str(path)!r} makes {len(rows)} windows of {self.window} tokens; {2 * PARTS} are needed. "
                f"Give more text, or a smaller window (--data-option window={max(8, self.window // 4)})."
            )
        parts = rows.tensor_split(PARTS)
        rest = [part for i, part in enumerate(parts) if i not in (*VALIDATION, *TEST)]
        validation, test = (torch.cat([parts[i] for i in held]) for held in (VALIDATION, TEST))
        return torch.cat(rest), validation, test

    def _pack(self, tokenizer: Any, texts: Sequence[str]) -> Tensor:
        """Windows [windows, tokens]; each begins as the tokenizer begins a text (``<bos>``, where it has one)."""
        start = _beginning(tokenizer)
        ids = [i for text in texts for i in tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
        body = self.window - len(start)
        rows = torch.tensor(ids[: len(ids) // body * body], dtype=torch.int64).view(-1, body)
        return torch.cat([torch.tensor(start, dtype=torch.int64).expand(len(rows), -1), rows], 1)

    def _batches(self, kinds: Sequence[Tensor], most: int) -> LoaderSplit:
        """So many windows in all, as many of each kind, in turn."""
        each = [most // len(kinds) + (place < most % len(kinds)) for place in range(len(kinds))]
        chosen = [spread(rows, count) for rows, count in zip(kinds, each, strict=True)]
        in_turn = [row for rows in zip_longest(*chosen) for row in rows if row is not None]
        return LoaderSplit([{"input_ids": part} for part in torch.stack(in_turn).split(self.batch)])


def spread(rows: Tensor, most: int) -> Tensor:
    """So many rows, or all, at even distances."""
    return rows[torch.linspace(0, len(rows) - 1, min(most, len(rows))).round().long()]


def _paths(places: str) -> list[Path]:
    """A place that is there, or several with commas between them."""
    if Path(places).exists():
        return [Path(places)]
    names = [place.strip() for place in places.split(",")]
    if not all(names):
        raise DataError(f"[data] {TEXT}{places}: nothing stands before or behind a comma. Give a path there.")
    return [Path(name) for name in names]


def _beginning(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text."""
    bare, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    before = whole.index(bare[0]) if bare and bare[0] in whole else 0
    return list(whole[:before])


def _read(path: Path, tokenizer: Any, characters: int) -> list[str]:
    """The texts of a file or of a folder, in the order of their names, up to so many characters."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix.lower() in ENDINGS)
    if not files:
        there = f"no file ends in {', '.join(ENDINGS)}" if path.is_dir() else "nothing is there"
        raise DataError(f"[data] {TEXT}{path}: {there}. Give a file of plain text, or a folder with some.")
    texts: list[str] = []
    for text in (text for file in files for text in _texts_in(file, tokenizer)):
        left = characters - sum(map(len, texts))
        if left <= 0:
            break
        texts.append(text[:left])
    return texts


def _texts_in(file: Path, tokenizer: Any) -> Iterator[str]:
    try:
        whole = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"[data] {str(file)!r} cannot be read as text: {error}.") from error
    if file.suffix.lower() != ".jsonl":
        yield whole
        return
    for number, line in enumerate(filter(str.strip, whole.splitlines()), start=1):
        try:
            yield _text_of(json.loads(line), tokenizer)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f'[data] {str(file)!r}, entry {number}: expected {{"text": ...}} or {{"messages": [...]}} ({error}).'
            ) from error


def _text_of(entry: Any, tokenizer: Any) -> str:
    """The text of one entry; a conversation as the chat template has it, where there is one."""
    if "messages" not in entry:
        return str(entry["text"])
    if getattr(tokenizer, "chat_template", None):
        return str(tokenizer.apply_chat_template(entry["messages"], tokenize=False))
    return "".join(f"{message['content']}\n" for message in entry["messages"])
