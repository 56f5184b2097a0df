"""A word is answered at once: nothing large is imported for help, a misspelt name, a Tab, or ``import nervure``."""

import ast
import copy
import os
import pickle
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import click
import pytest
from click.shell_completion import ShellComplete

import nervure
from nervure.cli import main
from nervure.cli.surface import FILE, listed_commands
from nervure.cli.write_surface import describe_surface

ANSWER = """
import sys
from nervure.cli import main
try:
    main({args!r}, prog_name="nervure")
except SystemExit as left:
    print("left", left.code)
print("torch" in sys.modules, "numpy" in sys.modules, len(sys.modules))
"""
COMPLETE = {"_NERVURE_COMPLETE": "bash_complete", "COMP_WORDS": "nervure plan --method Mag", "COMP_CWORD": "3"}
MOST_MODULES = 60
"""That ``import nervure`` may add to those of Python itself."""
MOST_TO_ANSWER = 260
"""With click among them."""


def answer(args: list[str], **environment: str) -> list[str]:
    code = ANSWER.format(args=args)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | environment
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("args", "told", "left"),
    [
        (["--version"], "nervure, version", 0),
        (["--help"], "Usage: nervure [OPTIONS] COMMAND", 0),
        (["prune", "--help"], "Usage: nervure prune", 0),
        (["prun"], "", 2),
        (["prune", "--kepe", "3"], "", 2),
    ],
)
def test_a_word_is_answered_without_torch(args: list[str], told: str, left: int) -> None:
    *lines, code, loaded = answer(args)
    assert (lines[0] if lines else "").startswith(told)
    assert code == f"left {left}"
    torch, numpy, modules = loaded.split()
    assert (torch, numpy) == ("False", "False")
    assert int(modules) < MOST_TO_ANSWER


def test_a_tab_is_answered_without_torch() -> None:
    *lines, code, loaded = answer([], **COMPLETE)
    assert lines == ["plain,Magnitude", "plain,MagnitudeMasks"]
    assert (code, loaded.split()[0]) == ("left 0", "False")


def test_importing_nervure_adds_few_modules() -> None:
    code = "import sys, typing; before = len(sys.modules); import nervure; print(len(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < MOST_MODULES


def test_the_list_of_options_is_that_of_the_commands() -> None:
    assert FILE.read_text(encoding="utf-8") == describe_surface(), "run python -m nervure.cli.write_surface"


@pytest.mark.parametrize("width", [50, 80, 200])
@pytest.mark.parametrize("name", listed_commands())
def test_help_from_the_list_is_that_of_the_command(name: str, width: int) -> None:
    main.load()
    context = click.Context(main, info_name="nervure", help_option_names=["-h", "--help"])
    told = []
    for command in map(copy.copy, (listed_commands()[name], main.commands[name])):
        # What other tests ran by itself remembers that its help has one name.
        command._help_option = None
        told.append(command.get_help(click.Context(command, parent=context, info_name=name, max_content_width=width)))
    assert told[0] == told[1]


@pytest.mark.parametrize(
    ("words", "incomplete", "found"),
    [
        ([], "pr", ["prune"]),
        (["plan"], "sna", ["SNACS"]),
        (["prune", "--model"], "resnet8", ["resnet8"]),
        (["train", "--data"], "dig", ["digits"]),
        (["score", "--criterion"], "magn", ["magnitude"]),
        (["report", "--tables"], "la", ["latex"]),
        (["export"], "--tok", ["--tokenizer"]),
    ],
)
def test_names_are_completed(words: list[str], incomplete: str, found: list[str]) -> None:
    shell = ShellComplete(main, {}, "nervure", "_NERVURE_COMPLETE")
    assert [item.value for item in shell.get_completions(words, incomplete)] == found


@pytest.mark.parametrize(
    ("words", "kind"), [(["run"], "file"), (["train", "--file"], "file"), (["run", "r.toml", "--folder"], "dir")]
)
def test_files_and_folders_are_completed(words: list[str], kind: str) -> None:
    shell = ShellComplete(main, {}, "nervure", "_NERVURE_COMPLETE")
    assert [item.type for item in shell.get_completions(words, "")] == [kind]


# -- names of the package ------------------------------------------------------------------------------------------


def test_what_type_checkers_read_is_what_is_found() -> None:
    tree = ast.parse(Path(nervure.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    told = {a.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for a in node.names}
    assert told == nervure._HOME
    assert set(told) == set(nervure.__all__)
    for name, module in told.items():
        assert getattr(nervure, name) is getattr(import_module(module), name)


def test_a_function_is_not_hidden_by_the_submodule_of_its_name() -> None:
    code = (
        "import nervure.export.card, nervure.prune, nervure.refit; import nervure\n"
        "print(callable(nervure.export), callable(nervure.prune), callable(nervure.refit), nervure.zoo.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "True", "nervure.zoo"]


def test_all_names_are_shown_and_a_wrong_one_is_told() -> None:
    assert {*nervure.__all__, "zoo", "methods", "__version__"} <= set(dir(nervure))
    with pytest.raises(AttributeError, match="module 'nervure' has no attribute 'prunes'"):
        nervure.prunes  # noqa: B018
    assert not isinstance(nervure.prune, ModuleType)
    assert pickle.loads(pickle.dumps(nervure.prune)) is nervure.prune
