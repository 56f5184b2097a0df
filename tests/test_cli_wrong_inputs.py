"""Whatever a command is given that it cannot use, it says so in one line."""

import os
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from nervure import Magnitude, Stats, prune, save, trace, zoo
from nervure.cli import main
from nervure.cli import options as inputs
from nervure.core.files import write_json
from nervure.errors import NervureWarning
from nervure.export import save_state

MODEL = ("--model", "resnet8", "--option", "width=0.25", "--option", "in_channels=1")
INPUT = ("--input", "1x1x8x8")
DATA = ("--data", "digits")


def said(*words: str) -> tuple[int, list[str]]:
    result = CliRunner().invoke(main, list(words))
    assert result.exception is None or isinstance(result.exception, SystemExit), words
    return result.exit_code, result.output.splitlines()


def refused(*words: str) -> str:
    """What a command says that refuses: one line, after the two or three of usage that click puts before some."""
    code, lines = said(*words)
    assert code == 2, (words, lines)
    assert sum(line.startswith("Error: ") for line in lines) == 1, (words, lines)
    assert lines[-1].startswith("Error: ") and len(lines) <= 4, (words, lines)
    return lines[-1]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Files of every kind, by what they are."""
    folder = tmp_path_factory.mktemp("files")
    net, image = zoo.build("resnet8", in_channels=1, width=0.25), torch.zeros(1, 1, 8, 8)
    graph = trace(net, image)
    pruned = prune(net, image, Magnitude(keep=0.5), verify=False, progress=False)
    write_json(folder / "graph", graph.to_json())
    write_json(folder / "plan", pruned.plan.to_json())
    write_json(folder / "object", {})
    save(folder / "pruned", pruned)
    save_state(folder / "state", net, meta={"model": {"name": "resnet8", "factory": "", "options": {}}})
    Stats(fingerprint=graph.fingerprint, activations={}, samples=0).save(folder / "stats")
    (folder / "text").write_text("hello\n")
    (folder / "empty").write_bytes(b"")
    (folder / "binary").write_bytes(bytes(range(256)) * 8)
    (folder / "latin").write_bytes(b'[model]\nname = "\xe9"\n')
    np.save(folder / "array.npy", np.zeros(3))
    torch.save({"a": 1}, folder / "pickle")
    (folder / "folder").mkdir()
    found = {path.name: str(path) for path in folder.iterdir()}
    return found | {"missing": str(folder / "missing"), "below a file": str(folder / "text" / "x")}


# Each way to give a file, and the kinds that it takes.
WAYS: Mapping[tuple[str, ...], set[str]] = {
    ("run", "FILE", "--folder", "out"): set(),
    ("sweep", "FILE", "--keep", "0.5", "--folder", "out"): set(),
    ("compare", "FILE", "--folder", "out"): set(),
    ("report", "FILE", "--folder", "out"): set(),
    ("score", *MODEL, *INPUT, "--criterion", "activation", "--stats", "FILE"): set(),
    ("plan", "Activation", *MODEL, *INPUT, "--stats", "FILE"): set(),
    ("plan", *MODEL, *INPUT, "--graph", "FILE"): {"graph"},
    ("apply", *MODEL, *INPUT, "--plan", "FILE"): {"plan"},
    ("train", *DATA, "--file", "FILE", "--epochs", "1"): set(),
    ("train", *MODEL, *DATA, "--weights", "FILE", "--epochs", "1"): {"state"},
    ("evaluate", *DATA, "--file", "FILE"): set(),
    ("evaluate", *MODEL, *DATA, "--file", "FILE"): {"pruned"},
    ("evaluate", *MODEL, *DATA, "--shift-root", "FILE"): set(),
    ("evaluate", *MODEL, "--data", "cifar10", "--root", "FILE"): set(),
    ("connectivity", *INPUT, "--file", "FILE"): set(),
    ("connectivity", *MODEL, *INPUT, "--reference", "FILE"): {"state"},
    ("export", *INPUT, "--file", "FILE", "-o", "m.pt2"): set(),
    ("export", *MODEL, *INPUT, "--notes", "FILE", "-o", "m.pt2"): {"graph", "plan", "object"},
}


@pytest.mark.parametrize("words", WAYS, ids=[" ".join(w for w in words if "=" not in w)[:60] for words in WAYS])
def test_a_file_of_another_kind_is_refused(
    words: tuple[str, ...], files: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind in files.keys() - WAYS[words]:
        refused(*(files[kind] if word == "FILE" else word for word in words))


@pytest.mark.parametrize(
    "words",
    [
        ("trace", *MODEL, *INPUT, "-o"),
        ("trace", *MODEL, *INPUT, "--html"),
        ("measure", *MODEL, *DATA, "-o"),
        ("score", *MODEL, *INPUT, "-o"),
        ("train", *MODEL, *DATA, "-o"),
        ("connectivity", *MODEL, *INPUT, "--json"),
        ("export", *MODEL, *INPUT, "--format", "torch", "-o"),
    ],
    ids=lambda words: f"{words[0]} {words[-1]}",
)
def test_what_cannot_be_written_is_refused_before_any_work(
    words: tuple[str, ...], files: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for place in (files["folder"], files["below a file"], "none/x"):
        refused(*words, place)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("evaluate", *DATA, "--file", "a", "--file", "b"), "--file is given twice"),
        (("evaluate", *DATA, "--file=a", "--file", "b"), "--file is given twice"),
        (("trace", "-o", "a", "--out", "b"), "--out is given twice"),
        (("run", "a", "b"), "unexpected extra argument"),
        (("trace", *MODEL, "--input", "9" * 30), "cannot be made"),
        (("trace", *MODEL, *INPUT, "--seed", "9" * 30), "--seed"),
        (("trace", *MODEL, *INPUT, "--seed", "-1"), "--seed"),
        (("train", *MODEL, *DATA, "--batch-size", "9" * 30), "--batch-size"),
        (("evaluate", *MODEL, *DATA, "--batch", "9" * 30), "--batch"),
        (("trace", "--model", ":", *INPUT), "cannot be imported"),
        (("trace", "--model", ".a:b", *INPUT), "cannot be imported"),
        (("trace", "--model", "os:", *INPUT), "no function ''"),
        (("trace", "--model", "math:sqrt", *INPUT), "cannot be built: TypeError"),
        (("trace", "--model", "resnet8", "--option", "width=1e30", *INPUT), "option 'width'"),
        (("trace", "--model", "resnet8", "--option", "width=\udcff", *INPUT), "option 'width'"),
        (("trace", "--model", "\udcff", *INPUT), r"\udcff"),
        (("trace", "--model", "\x1b[31m", *INPUT), r"\x1b[31m"),
        (("",), "No such command"),
    ],
)
def test_wrong_words_are_told(words: tuple[str, ...], told: str) -> None:
    assert told in refused(*words)


def test_a_network_that_is_not_pruned_is_no_file_but_weights(files: Mapping[str, str]) -> None:
    assert "--weights" in refused("evaluate", *DATA, "--file", files["state"])


def test_what_is_not_foreseen_is_one_line_too_and_its_traceback_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object) -> None:
        raise KeyError("a \x1b[31mkey\nand more")

    monkeypatch.setattr(inputs.NetworkChoice, "network", fail)
    code, lines = said("trace", *MODEL, *INPUT)
    assert code == 1 and lines == [
        r"Error: KeyError: 'a \x1b[31mkey\nand more'. That was not foreseen; nervure --debug ... tells where it is."
    ]
    with pytest.raises(KeyError):
        CliRunner().invoke(main, ["--debug", "trace", *MODEL, *INPUT], catch_exceptions=False)


def test_a_warning_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(self: object) -> None:
        warnings.warn("a \x1b[31mname\nis odd", NervureWarning, stacklevel=1)
        raise click_done

    click_done = NotImplementedError()
    monkeypatch.setattr(inputs.NetworkChoice, "network", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert said("trace", *MODEL, *INPUT)[1][0] == r"Warning: a \x1b[31mname is odd"


def test_a_word_that_is_no_utf_8_is_told_on_a_terminal() -> None:
    words = [sys.executable, "-m", "nervure", "trace", "--model", b"\xff\x1b[31m"]
    done = subprocess.run(words, capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    assert done.returncode == 2
    assert rb"\udcff\x1b[31m" in done.stderr and b"Traceback" not in done.stderr


def test_a_name_that_the_disk_does_not_take_is_told() -> None:
    assert "there is no recipe" in refused("run", "a" * 300)
    assert "too long" in refused("trace", *MODEL, *INPUT, "-o", "a" * 300)
