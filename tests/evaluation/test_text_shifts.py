"""Text under shift: what changes, what follows, and what stays."""

from typing import Any

import pytest
import torch
from torch import Tensor

from nervure.errors import ArgumentError, DataError
from nervure.evaluation import SEVERITIES, TEXT_SHIFTS, Shift, text_shifts, token_shifts
from nervure.evaluation.shifts.letters import corrupt_text

TEXT = (
    "It was the best of times, it was the worst of times; it was the age of wisdom, it was the age of foolishness. "
    "There were a king with a large jaw and a queen with a plain face, on the throne of England!"
)
PAD, BEGIN, END, MASK = range(4)


class Letters:
    """A tokenizer whose tokens are letters, in the manner of transformers."""

    all_special_ids = (PAD, BEGIN, END, MASK)
    pad_token_id, eos_token_id, mask_token_id = PAD, END, MASK

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return [ord(letter) + 4 for letter in text]

    def decode(self, numbers: list[int], clean_up_tokenization_spaces: bool = True) -> str:
        return "".join(chr(number - 4) for number in numbers)


class Plain:
    """A tokenizer that knows nothing but its two functions."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, numbers: list[int]) -> str:
        return "".join(map(chr, numbers))


def rows(*texts: str, width: int = 0, left: bool = False) -> dict[str, Tensor]:
    lines = [[BEGIN, *Letters().encode(text), END] for text in texts]
    width = max(width, *map(len, lines))
    fill = [[0] * (width - len(line)) for line in lines]
    ids = [f + line if left else line + f for f, line in zip(fill, lines, strict=True)]
    mask = [f + [1] * len(line) if left else [1] * len(line) + f for f, line in zip(fill, lines, strict=True)]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def one(name: str, **options: Any) -> Shift:
    return text_shifts(name, tokenizer=Letters(), **options)[0]


def text_of(batch: dict[str, Tensor], row: int) -> str:
    ids = batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist()
    return Letters().decode([number for number in ids if number > MASK])


def edits(before: str, after: str) -> int:
    """How many letters must be put in, left out or exchanged (Levenshtein 1966)."""
    row = list(range(len(after) + 1))
    for count, letter in enumerate(before, 1):
        last, row[0] = row[0], count
        for place, other in enumerate(after, 1):
            last, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, last + (letter != other))
    return row[-1]


@pytest.mark.parametrize("name", TEXT_SHIFTS)
def test_a_stronger_shift_leaves_less_of_the_text(name: str) -> None:
    changed = [corrupt_text(TEXT, name, severity) for severity in SEVERITIES]
    moved = [edits(TEXT, one) for one in changed]
    assert moved == sorted(moved) and moved[-1] > moved[1] > 0
    assert changed == [corrupt_text(TEXT, name, severity) for severity in SEVERITIES]
    assert corrupt_text(TEXT, name, 3, seed=1) != changed[2]


def test_shifts_do_what_their_names_say() -> None:
    assert sorted(corrupt_text(TEXT, "letter_swaps", 5)) == sorted(TEXT) != list(TEXT)
    assert not set(",;.!") & set(corrupt_text(TEXT, "missing_punctuation", 5))
    assert corrupt_text(TEXT, "letter_case", 5) == TEXT.swapcase()
    assert corrupt_text(TEXT, "whitespace", 5).replace(" ", "") == TEXT.replace(" ", "")
    assert len(corrupt_text(TEXT, "accents", 5)) == len(corrupt_text(TEXT, "confusables", 5)) == len(TEXT)
    assert len(corrupt_text(TEXT, "missing_letters", 3)) < len(TEXT) < len(corrupt_text(TEXT, "extra_letters", 3))


def test_groups_name_their_shifts_and_wrong_names_are_told() -> None:
    assert [shift.name for shift in text_shifts("typos")] == list(TEXT_SHIFTS[:4])
    assert [shift.name for shift in text_shifts()] == list(TEXT_SHIFTS)
    with pytest.raises(ArgumentError, match="'keyboard_slip' is unknown.*keyboard_slips"):
        text_shifts("keyboard_slip")
    with pytest.raises(ArgumentError, match="decode"):
        text_shifts(tokenizer=3)
    with pytest.raises(ArgumentError, match="severity"):
        text_shifts("accents")[0]("text", 6)


def test_strings_change_wherever_they_stand() -> None:
    (shift,) = text_shifts("keyboard_slips")
    expected = [corrupt_text(text, "keyboard_slips", 3, seed=5) for text in (TEXT, "a b c")]
    assert shift(TEXT, 3, seed=5) == expected[0]
    assert shift([TEXT, "a b c"], 3, seed=5) == expected
    texts, labels = shift(([TEXT, "a b c"], torch.tensor([0, 1])), 3, seed=5)
    assert texts == expected and labels.tolist() == [0, 1]
    batch = {"text": [TEXT, "a b c"], "label": [TEXT, "no"], "n": torch.ones(2)}
    found = shift(batch, 3, seed=5)
    assert found["text"] == expected and found["label"] == batch["label"] and batch["text"][0] == TEXT
    assert all(type(text) is str for text in found["text"] + found["label"])


@pytest.mark.parametrize("name", TEXT_SHIFTS)
def test_tokens_are_those_of_the_changed_text(name: str) -> None:
    batch = rows(TEXT, "a few words, then more of them; and then none.", width=220)
    found = one(name, length=400)(batch, 4)
    assert text_of(found, 0) == corrupt_text(TEXT, name, 4)
    assert found["input_ids"].shape == found["attention_mask"].shape
    for row in range(2):
        ids = found["input_ids"][row][found["attention_mask"][row].bool()]
        assert (int(ids[0]), int(ids[-1])) == (BEGIN, END)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("name", ["extra_letters", "missing_letters"])
def test_a_sample_comes_out_the_same_in_any_batch(name: str, left: bool) -> None:
    batch, alone = rows(TEXT, TEXT[:50], left=left), rows(TEXT[:50], left=left)
    together = one(name)(batch, 5, seed=3)
    assert together["input_ids"].shape == batch["input_ids"].shape
    assert text_of(together, 1) == text_of(one(name)(alone, 5, seed=3), 0) != TEXT[:50]
    assert bool((together["input_ids"][:, 0 if left else -1] == PAD)[1])


def test_labels_of_a_language_model_follow() -> None:
    ids = rows(TEXT)["input_ids"]
    same = one("missing_letters")({"input_ids": ids, "labels": ids}, 5)
    counted = same["labels"] != -100
    assert torch.equal(same["labels"][counted], same["input_ids"][counted])
    assert not bool((same["labels"] == PAD).any()) and int(counted.sum()) < ids.numel()
    after = torch.cat([ids[:, 1:], torch.full((1, 1), -100)], 1)
    moved = one("extra_letters")((ids, after), 5)
    assert torch.equal(moved[0][:, 1:], moved[1][:, :-1]) and not torch.equal(moved[0], ids)


def test_a_prompt_that_does_not_count_still_does_not() -> None:
    ids = rows(TEXT)["input_ids"]
    labels = ids.clone()
    labels[:, :40] = -100
    found = one("missing_letters")({"input_ids": ids, "labels": labels}, 4)
    start = int((found["labels"][0] != -100).nonzero()[0])
    assert start < 40 and bool((found["labels"][0, :start] == -100).all())
    counted = found["labels"] != -100
    assert torch.equal(found["labels"][counted], found["input_ids"][counted])


def test_masked_tokens_stay_with_their_labels() -> None:
    batch = rows(TEXT)
    labels = torch.full_like(batch["input_ids"], -100)
    for place in (10, 30, 31, 77):
        labels[0, place], batch["input_ids"][0, place] = batch["input_ids"][0, place], MASK
    found = one("keyboard_slips")({**batch, "labels": labels}, 5)
    assert not torch.equal(found["input_ids"], batch["input_ids"])
    masked = found["input_ids"] == MASK
    assert torch.equal(masked, found["labels"] != -100)
    assert torch.equal(found["labels"][masked], labels[labels != -100])


def test_labels_of_words_stay_at_their_words() -> None:
    batch, text = rows("alpha beta gamma delta epsilon"), "alpha beta gamma delta epsilon"
    labels = torch.full_like(batch["input_ids"], -100)
    starts = [place for place in range(len(text)) if place == 0 or text[place - 1] == " "]
    for number, place in enumerate(starts):
        # The letter before a word is its space, which belongs to it.
        labels[0, 1 + max(place - 1, 0)] = number
    for name in ("missing_letters", "extra_letters"):
        found = one(name, length=60)({**batch, "labels": labels}, 5, seed=2)
        told = found["labels"][0]
        assert told[told != -100].tolist() == [0, 1, 2, 3, 4]
        words = text_of(found, 0).split()
        assert len(words) == 5 and words != text.split()
        spaces = [place for place in (told > 0).nonzero()[:, 0].tolist()]
        assert all(int(found["input_ids"][0, place]) == ord(" ") + 4 for place in spaces)
    with pytest.raises(DataError, match="whitespace"):
        one("whitespace")({**batch, "labels": labels}, 5)


def test_labels_of_samples_and_of_other_sequences_stay() -> None:
    batch = {**rows(TEXT, TEXT), "labels": torch.tensor([1, 0]), "position_ids": torch.arange(5)}
    found = one("accents")(batch, 5)
    assert torch.equal(found["labels"], batch["labels"]) and torch.equal(found["position_ids"], torch.arange(5))
    target = torch.randint(0, 9, (2, 7))
    assert torch.equal(one("accents")({**rows(TEXT, TEXT), "labels": target}, 5)["labels"], target)


def test_two_texts_of_a_pair_stay_apart() -> None:
    batch = rows("the first text of two", "the first text of two")
    batch["input_ids"][:, 10] = END
    batch["token_type_ids"] = (torch.arange(23) > 10).long().expand(2, -1).clone()
    found = one("missing_letters")(batch, 5, seed=1)
    end = (found["input_ids"][0] == END).nonzero()[:, 0].tolist()
    assert len(end) == 2 and end[0] < 10
    kinds = found["token_type_ids"][0]
    assert not bool(kinds[: end[0] + 1].any()) and bool(kinds[end[0] + 1 : end[1] + 1].all())


def test_what_is_cut_off_keeps_its_end() -> None:
    batch = rows(TEXT)
    found = one("extra_letters")(batch, 5)
    assert found["input_ids"].shape == batch["input_ids"].shape
    assert int(found["input_ids"][0, -1]) == END


def test_a_tokenizer_may_know_two_functions_only() -> None:
    ids = torch.tensor([Plain().encode(TEXT)])
    (shift,) = text_shifts("letter_swaps", tokenizer=Plain())
    assert Plain().decode(shift(ids, 4)[0].tolist()) == corrupt_text(TEXT, "letter_swaps", 4)


def test_batches_without_text_are_told() -> None:
    with pytest.raises(DataError, match="no text"):
        one("accents")(torch.rand(2, 3), 1)
    with pytest.raises(DataError, match="tokenizer="):
        text_shifts("accents")[0](torch.ones(2, 3, dtype=torch.int64), 1)
    with pytest.raises(DataError, match="no part of it"):
        one("accents", inputs=lambda batch: batch["a"] + 1)({"a": torch.full((1, 9), 90)}, 5)


def test_tokens_are_lost_without_regard_to_padding() -> None:
    batch = rows(TEXT, TEXT[:60])
    for shift in token_shifts(vocabulary=300):
        together, alone = shift(batch, 5, seed=1), shift(rows(TEXT[:60]), 5, seed=1)
        assert torch.equal(together["input_ids"][1, :62], alone["input_ids"][0])
        assert not bool(together["input_ids"][1, 62:].any())
        weak = shift(batch, 1, seed=1)["input_ids"]
        clean, strong = batch["input_ids"], together["input_ids"]
        assert 0 < int((weak != clean).sum()) < int((strong != clean).sum())
