"""Names and modules of before are found, with a warning that says what they are called now."""

import importlib
import sys
import warnings

import pytest
import torch

import nervure
from nervure.core.renamed import GONE_IN, MODULES, NAMES, OldModules, old_method
from nervure.core.version import __version__

GONE = rf"the old name is gone in version {GONE_IN}\."


@pytest.mark.parametrize("package", NAMES)
def test_names_of_before_are_what_they_are_called_now(package: str) -> None:
    module = importlib.import_module(package)
    for old, new in NAMES[package].items():
        with pytest.warns(DeprecationWarning, match=rf"^{package}\.{old} is called {package}\.{new} now: {GONE}$"):
            assert getattr(module, old) is getattr(module, new)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = module.nothing


@pytest.mark.parametrize("old", MODULES)
def test_modules_of_before_are_the_modules_of_now(old: str) -> None:
    with pytest.warns(DeprecationWarning, match=rf"^nervure\.{old} is called nervure\.{MODULES[old]} now: {GONE}$"):
        sys.modules.pop(f"nervure.{old}", None)
        found = importlib.import_module(f"nervure.{old}")
    now = importlib.import_module(f"nervure.{MODULES[old]}")
    assert found is now
    assert now.__name__ == now.__spec__.name == f"nervure.{MODULES[old]}"


@pytest.mark.parametrize("old", MODULES)
def test_modules_of_before_leave_functions_of_their_name(old: str) -> None:
    package, _, name = f"nervure.{old}".rpartition(".")
    with warnings.catch_warnings():
        # The package may have another name by now, too.
        warnings.simplefilter("ignore", DeprecationWarning)
        before = vars(importlib.import_module(package)).get(name)
    sys.modules.pop(f"nervure.{old}", None)
    with pytest.warns(DeprecationWarning, match="is called"):
        importlib.import_module(f"nervure.{old}")
    assert not callable(before) or vars(sys.modules[package])[name] is before


def test_what_was_to_be_gone_by_now_is_gone() -> None:
    now, gone = (tuple(map(int, version.split("."))) for version in (__version__, GONE_IN))
    assert now < gone, "take the old names out of nervure/core/renamed.py, and what asks for them out of the packages."


def test_what_never_was_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("nervure.never")
    assert sum(isinstance(finder, OldModules) for finder in sys.meta_path) == 1


def test_papers_are_found_in_their_folders() -> None:
    from nervure.methods.gcnet import GCNet
    from nervure.methods.n2nskip import N2NSkip
    from nervure.methods.snacs import SNACS

    assert (GCNet, N2NSkip, SNACS) == (nervure.GCNet, nervure.N2NSkip, nervure.SNACS)


def test_methods_of_before_do_what_they_did() -> None:
    class Now:
        def scale(self, by: int) -> int:
            return 2 * by

        scaled = old_method("scaled", "scale")

    with pytest.warns(DeprecationWarning, match=rf"^Now\.scaled is called scale now: {GONE}$"):
        assert Now().scaled(3) == 6


def test_public_classes_have_their_methods_of_before() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    pruned = nervure.prune(model, torch.randn(2, 4), nervure.Magnitude(keep=0.5), progress=False)
    with pytest.warns(DeprecationWarning, match="with_masks"):
        assert pruned.rewired({}).plan == pruned.with_masks({}).plan
    with pytest.warns(DeprecationWarning, match="round_up"):
        assert pruned.graph.groups[0].allowed(3) == pruned.graph.groups[0].round_up(3)
