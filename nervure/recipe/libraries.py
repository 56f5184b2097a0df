"""Networks of other libraries by their names: ``"timm:resnet50"``, ``"torchvision:resnet18"``, ``"hf:folder-or-name"``.

The library is imported when the network is built. Weights come from files or from its own cache; it fetches them where
it is asked to (``pretrained = true``, or a name of the hub).
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, final

from torch import nn

from nervure.core.check import nearest
from nervure.core.extras import require_extra
from nervure.errors import RecipeError

Options: TypeAlias = Mapping[str, Any]
Suit: TypeAlias = Callable[[Options, int, int], dict[str, Any]]


@final
@dataclass(frozen=True, slots=True)
class Library:
    """How networks of a library are built.

    Attributes:
        build: from a name and options to the network; raises RecipeError where there is none of such a name.
        suit: from options, channels and classes of the data to the options that are not told yet.
    """

    build: Callable[[str, Options], nn.Module]
    suit: Suit


def library_of(name: str) -> Library | None:
    """The library that a name like ``"timm:resnet50"`` begins with; None for any other name."""
    start, colon, _ = name.partition(":")
    return LIBRARIES.get(start) if colon else None


def _build_timm(name: str, options: Options) -> nn.Module:
    timm: Any = require_extra("timm", "a network named 'timm:...'", "timm")
    # Names with a colon are of a hub or a folder: timm itself says what is wrong with those.
    if ":" not in name and not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    model: nn.Module = timm.create_model(name, **options)
    return model


def _suit_timm(options: Options, channels: int, classes: int) -> dict[str, Any]:
    return {"in_chans": channels, "num_classes": classes}


def _build_torchvision(name: str, options: Options) -> nn.Module:
    models: Any = require_extra("torchvision.models", "a network named 'torchvision:...'", "torchvision")
    if name not in models.list_models():
        raise _unknown("torchvision", name, models.list_models())
    told = {key: value for key, value in options.items() if key != "pretrained"}
    weights = told.pop("weights", "DEFAULT" if options.get("pretrained") else None)
    # A network of parts would fetch the weights of its trunk, unasked.
    trunk = {} if "weights_backbone" in told or not _has_trunk(models, name) else {"weights_backbone": None}
    model: nn.Module = models.get_model(name, weights=weights, **trunk, **told)
    return model


def _has_trunk(models: Any, name: str) -> bool:
    return "weights_backbone" in models.get_model_builder(name).__annotations__


def _suit_torchvision(options: Options, channels: int, classes: int) -> dict[str, Any]:
    # The head of trained weights is as it is: another number of classes would be refused.
    return {} if options.get("weights") or options.get("pretrained") else {"num_classes": classes}


def _build_hf(name: str, options: Options) -> nn.Module:
    transformers: Any = require_extra("transformers", "a network named 'hf:...'", "transformers")
    told = {key: value for key, value in options.items() if key not in ("class", "pretrained")}
    pretrained = options.get("pretrained", not os.path.isdir(name) or _has_weights(Path(name)))
    try:
        config, rest = transformers.AutoConfig.from_pretrained(name, return_unused_kwargs=True, **told)
        if hasattr(config, "use_cache") and "use_cache" not in told:
            # What was said before is kept for the next token only: no part of what is pruned.
            config.use_cache = False
        kind = _class_of(transformers, name, options.get("class", ""), config)
        if pretrained:
            with _without_bars(transformers):
                found: nn.Module = kind.from_pretrained(name, config=config, **rest)
            return found
    except OSError as error:
        raise RecipeError(f"[model] hf:{name} cannot be found: {_reason(name, error)}") from error
    if rest:
        known = [*config.to_dict(), "num_labels"]
        raise RecipeError(
            f"[model] hf:{name}: its config has no {', '.join(map(repr, rest))}.{nearest(next(iter(rest)), known)}"
        )
    # Classes of their own are made from a config, those that choose one have a function for it.
    return kind.from_config(config) if kind.__name__.startswith("AutoModel") else kind(config)  # type: ignore[no-any-return]


@contextmanager
def _without_bars(transformers: Any) -> Iterator[None]:
    """A run loads its network again and again: no bar each time."""
    log = transformers.utils.logging
    shown = log.is_progress_bar_enabled()
    log.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            log.enable_progress_bar()


def _has_weights(folder: Path) -> bool:
    return any(any(folder.glob(pattern)) for pattern in ("*.safetensors", "pytorch_model*.bin"))


def _class_of(transformers: Any, name: str, asked: str, config: Any) -> Any:
    """The class that is asked for, or that the config says it was saved from."""
    known = asked or next(iter(getattr(config, "architectures", None) or ()), "")
    if not known:
        raise RecipeError(
            f"[model] hf:{name} does not say which class it is of. Give one among its options, "
            'e.g. class = "AutoModelForTokenClassification".'
        )
    found = getattr(transformers, known, None)
    if not hasattr(found, "from_pretrained"):
        classes = [each for each in dir(transformers) if each.startswith("AutoModel")]
        raise RecipeError(
            f"[model] hf:{name}: transformers has no class {known!r} of networks.{nearest(known, classes, listed=True)}"
        )
    return found


def _reason(name: str, error: OSError) -> str:
    """Why transformers has no such network; of a folder, what lies beside it under a name that is alike."""
    place = Path(name)
    if place.is_dir():
        return f"the folder has no {'config.json' if not (place / 'config.json').exists() else 'weights'}: {error}"
    beside = [each.name for each in place.parent.iterdir() if each.is_dir()] if place.parent.is_dir() else []
    hint = nearest(place.name, beside)
    return (
        f"there is no folder {str(place)!r} (relative to {os.getcwd()!r}).{hint} As a name of the hub: "
        + ((str(error).splitlines() or [""])[0])
    )


def _unknown(library: str, name: str, names: Iterable[str]) -> RecipeError:
    return RecipeError(f"[model] {library} has no network {name!r}.{nearest(name, names)}")


def _suit_nothing(options: Options, channels: int, classes: int) -> dict[str, Any]:
    return {}


LIBRARIES: Mapping[str, Library] = {
    "timm": Library(_build_timm, _suit_timm),
    "torchvision": Library(_build_torchvision, _suit_torchvision),
    "hf": Library(_build_hf, _suit_nothing),
}
"""What a name may begin with -> how its networks are built."""
