"""What happens to spelling: slips of the keyboard, case, lost marks, accents, letters that look alike, spaces.

A text draws its numbers by a hash of itself, the shift and the seed, as pictures do. Severities meet the same chance.
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import torch

from nervure.evaluation.corruptions.chance import uniform

Lots: TypeAlias = list[float]
Noise: TypeAlias = Callable[[str, float, Lots, Lots], str]

SHARES: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "keyboard_slips": (0.01, 0.03, 0.06, 0.1, 0.15),  # share of the letters
        "letter_swaps": (0.01, 0.03, 0.06, 0.1, 0.15),
        "missing_letters": (0.01, 0.03, 0.06, 0.1, 0.15),
        "extra_letters": (0.01, 0.03, 0.06, 0.1, 0.15),
        "letter_case": (0.1, 0.2, 0.4, 0.7, 1.0),  # of the words
        "missing_punctuation": (0.2, 0.4, 0.6, 0.8, 1.0),  # of the marks
        "accents": (0.02, 0.05, 0.1, 0.2, 0.35),  # of the letters
        "confusables": (0.01, 0.03, 0.06, 0.1, 0.2),
        "whitespace": (0.02, 0.05, 0.1, 0.2, 0.3),  # of the spaces
    }
)
TEXT_GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "typos": ("keyboard_slips", "letter_swaps", "missing_letters", "extra_letters"),
        "casing": ("letter_case",),
        "punctuation": ("missing_punctuation",),
        "unicode": ("accents", "confusables"),
        "spaces": ("whitespace",),
    }
)
TEXT_SHIFTS: tuple[str, ...] = tuple(SHARES)

ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
MARKS = "\u0301\u0300\u0302\u0308\u0303\u0327"  # acute, grave, circumflex, diaeresis, tilde, cedilla
LOOKALIKES = str.maketrans(
    "aceopxyisjABCEHKMOPTX",
    "\u0430\u0441\u0435\u043e\u0440\u0445\u0443\u0456\u0455\u0458\u0410\u0412\u0421\u0415\u041d\u041a\u041c\u041e\u0420\u0422\u0425",
)


def corrupt_text(text: str, name: str, severity: int, *, seed: int = 0, beside: str = "") -> str:
    """A text under one of ``TEXT_SHIFTS``, which belongs to the text and to what it stands ``beside``."""
    content = f"{name}\0{seed}\0{beside}\0{text}".encode("utf-8", "surrogatepass")
    number = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big", signed=True)
    lots, others = (uniform(torch.tensor([number]), len(text), stream=stream)[0].tolist() for stream in (0, 1))
    return NOISES[name](text, SHARES[name][severity - 1], lots, others)


def _by_letter(change: Callable[[str, float], str]) -> Noise:
    """Noise that meets each character alone."""

    def corrupt(text: str, share: float, lots: Lots, others: Lots) -> str:
        each = zip(text, lots, others, strict=True)
        return "".join(change(letter, other) if lot < share else letter for letter, lot, other in each)

    return corrupt


def _neighbours() -> Mapping[str, str]:
    """The keys beside each letter of an English keyboard."""
    found: dict[str, str] = {}
    for number, row in enumerate(ROWS):
        for place, letter in enumerate(row):
            above = ROWS[number - 1][place : place + 2] if number else ""
            below = ROWS[number + 1][max(place - 1, 0) : place + 1] if number < len(ROWS) - 1 else ""
            found[letter] = row[max(place - 1, 0) : place] + row[place + 1 : place + 2] + above + below
    return found


NEIGHBOURS = _neighbours()


def _slip(letter: str, lot: float) -> str:
    keys = NEIGHBOURS.get(letter.lower(), "")
    key = keys[int(lot * len(keys))] if keys else letter
    return key.upper() if letter.isupper() else key


def _doubled_or_beside(letter: str, lot: float) -> str:
    return letter + (letter if lot < 0.5 else _slip(letter, 2 * lot - 1)) if letter.isalpha() else letter


def _accented(letter: str, lot: float) -> str:
    able = [one for mark in MARKS if len(one := unicodedata.normalize("NFC", letter + mark)) == 1]
    return able[int(lot * len(able))] if letter.isalpha() and able else letter


def _swap_letters(text: str, share: float, lots: Lots, others: Lots) -> str:
    letters, place = list(text), 0
    while place < len(letters) - 1:
        if lots[place] < share and letters[place].isalpha() and letters[place + 1].isalpha():
            letters[place : place + 2] = letters[place + 1], letters[place]
            place += 1
        place += 1
    return "".join(letters)


def _swap_case(text: str, share: float, lots: Lots, others: Lots) -> str:
    def change(word: re.Match[str]) -> str:
        return word[0].swapcase() if lots[word.start()] < share else word[0]

    return re.sub(r"\S+", change, text)


NOISES: Mapping[str, Noise] = {
    "keyboard_slips": _by_letter(_slip),
    "letter_swaps": _swap_letters,
    "missing_letters": _by_letter(lambda letter, _: "" if letter.isalpha() else letter),
    "extra_letters": _by_letter(_doubled_or_beside),
    "letter_case": _swap_case,
    "missing_punctuation": _by_letter(lambda letter, _: "" if unicodedata.category(letter).startswith("P") else letter),
    "accents": _by_letter(_accented),
    "confusables": _by_letter(lambda letter, _: letter.translate(LOOKALIKES)),
    "whitespace": _by_letter(lambda letter, lot: letter if letter != " " else "" if lot < 0.5 else "  "),
}
