"""The recipe that ``nervure prune`` writes from its options."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nervure.cli.options import HALF, Asked, NetworkChoice
from nervure.errors import ArgumentError
from nervure.methods import METHODS
from nervure.methods.blocks.dropping import Dropping
from nervure.methods.lookup import find_method, options_of
from nervure.recipe import Recipe
from nervure.recipe.recipe import VERSION, FolderSection

EPOCHS = 10
"""Of training before the cut, for a network with fresh weights."""
FINE_TUNING: Mapping[str, Any] = {"optimizer": "adamw", "lr": 1e-4}
"""How networks of transformers are trained, unless it is told otherwise: the rates of a recipe would undo them."""
OF_TEXTS: Mapping[str, Any] = {"lr": 3e-4, "schedule": "onecycle", "distill": 0.5, "temperature": 1.0}
"""How a smaller language model recovers: half by the next token, half by what the dense model thinks of all of them."""
TO_RECOVER: Mapping[str, int] = {"train": 512, "batch": 2}
"""Windows that it recovers on, once each: many small steps."""
MEASURED = 64
"""Windows that methods look at, however many there are to recover on."""
HF = "hf:"
REFIT_WINDOWS = 16
"""Of texts a refit looks at so many windows, every token of them; more take longer than all the rest."""


def recipe_from_options(  # noqa: PLR0913 - one keyword per option
    choice: NetworkChoice,
    out: Path | None,
    *,
    method: str,
    asked: Asked,
    settings: tuple[tuple[str, Any], ...],
    fits: bool,
    epochs: int,
    train_epochs: int | None,
    lr: float | None,
    optimizer: str | None,
    tolerance: float,
    strict: bool,
) -> Recipe:
    """The recipe that options say; raises ArgumentError where network or data are missing, RecipeError as a recipe."""
    if not choice.model:
        choice.source()
    if not choice.data_name:
        raise ArgumentError(
            "no data: a run trains and measures. Give --data NAME or package.module:function; without data, "
            "nervure plan and nervure apply cut a network."
        )
    usual = FINE_TUNING if choice.model.startswith("hf:") else {}
    training = dict(usual) | _without_none(lr=lr, optimizer=optimizer)
    before = (0 if _is_trained(choice) else EPOCHS) if train_epochs is None else train_epochs
    asked = _settle(asked, method, settings, tolerance)
    options = dict(settings) | _without_none(engine=asked.engine, target=asked.target)
    folder = out or Path("runs") / _file_name(f"{choice.model}-{method}-{_amount(asked, tolerance)}")
    return Recipe.from_dict(
        {
            "model": {"name": choice.model, "weights": choice.weights, "options": dict(choice.options)},
            "data": {"name": choice.data_name, "root": choice.root, "options": dict(choice.data_options)},
            "task": {"name": choice.task_name, "options": dict(choice.task_options)},
            "train": {"epochs": before, **training},
            "prune": {
                "method": method,
                "keep": asked.keep,
                "budget": asked.budget,
                "density": asked.density or 0.0,
                "options": options,
                "tolerance": tolerance,
                "strict": strict,
                "version": VERSION,
            },
            "refit": {"samples": 1024, "positions": 0} if fits else {},
            "recover": {"epochs": epochs, **training},
            "run": {"folder": str(folder), "seed": choice.seed, "device": choice.device},
        },
        source="what the options say",
    )


def recipe_for_texts(
    choice: NetworkChoice,
    out: Path | None,
    *,
    parts: Sequence[str],
    named: Collection[str],
    method: str,
    asked: Asked,
    fits: bool,
    epochs: int,
    **told: Any,
) -> Recipe:
    """The recipe for a language model of transformers on texts: cut, refit, measure, and write a folder.

    Args:
        choice: the network and its data.
        out: where the folder of the smaller model goes.
        parts: what is cut; none: units inside layers; of methods that drop, whole layers.
        named: the options that the user wrote, whatever they are by default.
        method: the method.
        asked: how much stays.
        fits: whether to refit, where that was written.
        epochs: of training after the cut, where that was written.
        **told: the other options of the command.
    """
    folder = choice.model.removeprefix(HF)
    if not choice.model.startswith(HF):
        raise ArgumentError(
            f"network {choice.model!r} on texts: give a language model of transformers, hf:FOLDER, whose tokenizer "
            "lies beside it."
        )
    method = method if "method" in named else "Activation"
    maker = find_method(METHODS, method)
    drops = isinstance(maker, type) and issubclass(maker, Dropping)
    usual = {"granularity": "whole"} if drops else {"scope": "uniform"} if "scope" in options_of(maker) else {}
    asked = asked if "budget" in named else replace(asked, budget="params")
    asked = _settle(asked, method, (*usual.items(), *told["settings"]), told["tolerance"])
    place = out or place_for(folder, asked, told["tolerance"])
    epochs = epochs if "epochs" in named else 0
    windows = {"tokenizer": folder, **(TO_RECOVER if epochs else {}), **choice.data_options}
    recipe = recipe_from_options(
        replace(choice, data_options=windows),
        place.with_name(f"{place.name}-run"),
        method=method,
        asked=asked,
        fits=False,
        epochs=epochs,
        **{**told, "settings": (*usual.items(), *told["settings"])},
    )
    content = recipe.to_dict()
    content["task"] = content["task"] if choice.task_name else {"name": "language_modelling"}
    content["prune"]["samples"] = MEASURED
    content["refit"]["samples"] = REFIT_WINDOWS if fits or "fits" not in named else 0
    content["recover"] |= {**OF_TEXTS, "precision": _fast_precision(), **_without_none(lr=told["lr"])}
    content["evaluate"] |= {"latency": [], "shift": []}
    content["run"] |= {"twins": False, "threads": 0}
    dropped = ("layers",) if drops else FolderSection().parts
    content["folder"] = {"path": str(place), "parts": list(parts or dropped)}
    return Recipe.from_dict(content, source="what the options say")


def _fast_precision() -> str:
    """What a training here multiplies in: bfloat16 where the processor or a GPU has it, two to three times as fast."""
    known: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    has_bf16 = any(known.get(name) for name in ("avx512_bf16", "amx_bf16"))
    return "bf16" if has_bf16 or (torch.cuda.is_available() and torch.cuda.is_bf16_supported()) else "float32"


def place_for(folder: str, asked: Asked, tolerance: float = 0.0) -> Path:
    """Where a smaller folder goes, where nothing says so: beside what is worked in, by name and amount."""
    return Path(_file_name(f"{Path(folder).name}-{_amount(asked, tolerance)}"))


def _amount(asked: Asked, tolerance: float) -> str:
    """How much stays, in the name of a folder."""
    return f"within-{tolerance:g}" if tolerance else f"{asked.keep}"


def _settle(asked: Asked, method: str, settings: Sequence[tuple[str, Any]], tolerance: float) -> Asked:
    return replace(asked, keep=HALF) if tolerance else asked.settle(method, dict(settings))


def _is_trained(choice: NetworkChoice) -> bool:
    """Whether the network begins with weights that were learnt; those of a folder or a hub are, unless told not."""
    asked = choice.options.get("pretrained", choice.options.get("weights"))
    return bool(choice.weights) or (choice.model.startswith("hf:") if asked is None else bool(asked))


def _without_none(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.")
