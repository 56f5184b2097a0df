import sys

import pytest
import torch
from torch import nn

import nervure
from nervure import OBS, SNACS, GCNet, SparseGPT, Taylor
from nervure.core import progress


class Terminal:
    encoding = "utf-8"

    def __init__(self):
        self.text = ""

    def isatty(self):
        return True

    def write(self, text):
        self.text += text
        return len(text)

    def flush(self):
        pass


def terminal_in(monkeypatch):
    """Called in the test itself, since pytest puts its own stderr back between set-up and test."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    return screen


def test_items_pass_through_and_short_work_shows_nothing(monkeypatch):
    terminal = terminal_in(monkeypatch)
    assert list(progress.track(iter("abc"), "reading")) == ["a", "b", "c"]
    assert terminal.text == ""


def test_long_work_shows_a_bar_unless_told_not_to(monkeypatch):
    terminal = terminal_in(monkeypatch)
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    list(progress.track([1, 2], "reading", enabled=False))
    assert terminal.text == ""
    list(progress.track([1, 2], "reading"))
    assert "reading" in terminal.text


def test_nothing_is_shown_where_there_is_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    list(progress.track([1, 2], "reading"))
    assert capsys.readouterr().err == ""


def test_an_error_passes_through_and_the_bar_is_put_away(monkeypatch):
    terminal = terminal_in(monkeypatch)
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    with pytest.raises(KeyError), progress.progress("working", 3) as advance:
        advance()
        raise KeyError
    assert "working" in terminal.text and terminal.text.endswith("\x1b[2K")
    with progress.progress("working") as advance:
        advance()


def test_lengths_are_known_or_none():
    assert progress.length([1, 2]) == 2 and progress.length(iter([1])) is None


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (SNACS(), "asking what may leave"),
        (OBS(), "asking what may leave"),
        (GCNet(of="patches", density=0.5), "asking what may leave"),
        (SparseGPT(), "choosing weights"),
        (Taylor(), "measuring"),
    ],
)
def test_methods_that_ask_the_network_show_it_unless_told_not_to(monkeypatch, method, said):
    terminal = terminal_in(monkeypatch)
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    data = [(torch.randn(32, 6), torch.arange(32) % 3)]
    nervure.prune(network, data[0][0], method, data=data, refit=False, progress=False)
    assert terminal.text == ""
    nervure.prune(network, data[0][0], method, data=data, refit=False)
    assert said in terminal.text
