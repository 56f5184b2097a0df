"""``--input``: one or several, in order or by name, of any kind of numbers, for every sub-command that takes it."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from nervure.cli import main

NETS = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.b, self.out = nn.Embedding(9, 16), nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, ids, y):
        return self.out((self.table(ids).mean(1) + self.b(y)).relu())

class Masked(Two):
    def forward(self, ids, y, keep):
        return super().forward(ids, y.float() * keep)

def two():
    return Two()

def masked():
    return Masked()
"""
ORDERED = ("--input", "2x5:long", "--input", "2x4")
NAMED = ("--input", "y=2x4", "--input", "ids=2x5:long")


@pytest.fixture(autouse=True)
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("two_inputs.py").write_text(NETS)
    yield
    sys.modules.pop("two_inputs", None)


def said(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, list(words))
    return result.exit_code, " ".join(result.output.split())


@pytest.mark.parametrize("given", [ORDERED, NAMED], ids=["in order", "by name"])
def test_several_inputs_go_through_every_command_that_takes_one(given: tuple[str, ...]) -> None:
    chosen = ("--model", "two_inputs:two", *given)
    for words in (
        ("trace", *chosen, "--html", "graph.html"),
        ("score", *chosen),
        ("plan", *chosen, "-o", "plan.json"),
        ("apply", *chosen, "--plan", "plan.json", "-o", "model.safetensors"),
        ("connectivity", *chosen),
        ("export", "--file", "model.safetensors", "--trust-factory", *given, "-o", "model.pt2"),
    ):
        code, text = said(*words)
        assert code == 0, (words[0], text)
    assert "16 -> " in said("plan", *chosen)[1]


def test_inputs_are_of_the_type_that_is_said() -> None:
    kinds = ("--input", "2x5:int", "--input", "2x4:double", "--input", "2x4:bool")
    code, text = said("trace", "--model", "two_inputs:masked", *kinds)
    assert code == 0 and "groups can be cut" in text


def test_inputs_of_one_shape_differ_and_are_always_the_same() -> None:
    from nervure.cli.options import inputs_of, shape

    first, second = inputs_of([shape("3x4"), shape("3x4")])
    assert not torch.equal(first, second)
    assert torch.equal(first, inputs_of([shape("3x4")]))
    assert inputs_of([shape("keep=2x3:bool")])["keep"].dtype == torch.bool


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["2xx"], "'2xx' is not a shape"),
        (["0x3"], "'0x3' is not a shape"),
        (["2x5:word"], "'2x5:word' asks for numbers of type 'word'; it is one of float, double"),
        (["2x5:"], "of type ''"),
        (["=2x5"], "'=2x5' is not a shape"),
        (["a b=2x5"], "'a b=2x5' is not a shape"),
        (["x=2x5", "x=2x4"], "'x' is named twice"),
        (["x=2x5", "2x4"], "of x, 2x4 some have names"),
        (["99999999999x99999999999"], "99999999999x99999999999 cannot be made"),
    ],
)
def test_what_is_no_input_is_repeated_with_what_to_write(given: list[str], message: str) -> None:
    words = [word for one in given for word in ("--input", one)]
    code, text = said("trace", "--model", "two_inputs:two", *words)
    assert code == 2 and message in text


@pytest.mark.parametrize("command", ["trace", "measure", "score", "plan", "apply", "connectivity", "export"])
def test_the_help_says_how_several_inputs_and_whole_numbers_are_written(command: str) -> None:
    text = said(command, "--help")[1]
    assert "1x16:long" in text and "ids=1x16:long" in text and "Several times" in text
