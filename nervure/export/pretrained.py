"""A pruned model as an ordinary folder of its library: written, loaded again by the library alone, compared, moved."""

import copy
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from nervure.core.annotations import FilePath
from nervure.core.check import checked
from nervure.core.files import contents, drafts, file_errors, is_there, require_folder
from nervure.core.inputs import Inputs
from nervure.errors import ArgumentError, FileError, VerificationError
from nervure.export.checking import difference
from nervure.export.config_fit import ConfigTrial, fit_config
from nervure.export.folder import CONFIG_FILE
from nervure.export.stock import describe_differences
from nervure.graph.models import device_of, evaluating, is_weightless, unwrap
from nervure.graph.preserve import restore_after
from nervure.prune import Pruned

LOADED = 1e-5
"""Largest difference, relative to the largest output: other kernels may be chosen for the same weights."""
WEIGHTS = re.compile(r".*\.(safetensors|bin|pt|pth|h5|msgpack|ot|onnx|gguf|index\.json)", re.IGNORECASE)
HIDDEN = re.compile(r"\..*")
CODE = re.compile(r".*\.(py|pyc|so|dll)", re.IGNORECASE)
USED = "use_cache"


@final
@dataclass(frozen=True, slots=True)
class SavedFolder:
    """A folder that the model's library loads.

    Attributes:
        path: where it is.
        difference: largest difference of any output of the model that was loaded again, relative to the largest
            magnitude of that output; 0 where all are equal.
        config: what the config says otherwise than the model's own did, by name: (before, now).
        files: the names of its files.
    """

    path: Path
    difference: float
    config: Mapping[str, tuple[Any, Any]]
    files: tuple[str, ...]

    def __str__(self) -> str:
        changed = "".join(f", {name} {before} -> {now}" for name, (before, now) in self.config.items())
        return f"{self.path}: loaded again by its library, largest difference {self.difference:.1e}{changed}"


@checked
def save_pretrained(
    path: FilePath,
    pruned: Pruned | nn.Module,
    example: Any,
    *,
    source: FilePath | None = None,
    tokenizer: Any = None,
    max_shard_size: int | str = "5GB",
    overwrite: bool = False,
) -> SavedFolder:
    """Write a folder that ``from_pretrained`` of the model's library loads where nervure is not installed.

    The config follows the model: numbers that equal a size which was cut are set until the library builds a model of
    the same sizes. The folder is written beside its place, loaded by ``from_pretrained`` with nothing missing, left
    over or of another size, run on ``example``, and moved to its place only when its outputs are those of the model.

    Args:
        path: the folder; it must not be there, or be empty.
        pruned: a result of :func:`nervure.prune` (trained since, perhaps), or its model.
        example: inputs on which both are compared, see :func:`nervure.trace`.
        source: the folder of the dense model: its tokenizer, chat template and other small files are copied, and its
            ``use_cache`` is said again. Weights and code are not copied.
        tokenizer: anything with ``save_pretrained``, such as a tokenizer or a processor.
        max_shard_size: weights are split into files of at most this.
        overwrite: a saved model that is there already is replaced.

    Returns:
        What was written.

    Raises:
        FileError: no config says the model (what differs is told), or the folder cannot be written.
        VerificationError: what was loaded again computes something else, or lacks tensors; nothing is left there.
        ArgumentError: the model is of no library with ``save_pretrained`` and ``from_pretrained``.
    """
    model: Any = unwrap(pruned.model if isinstance(pruned, Pruned) else pruned)
    target = require_new_folder(Path(path), overwrite)
    _require_kind(model)
    fitted = fit_config(model)
    require_config_says(model, fitted)
    with drafts(target.with_name(f"{target.name}.draft")) as folder:
        draft = folder / target.name
        with _config_of(model, fitted.changed, cache_said_by(source)):
            model.save_pretrained(draft, max_shard_size=max_shard_size)
        if source is not None:
            copy_beside(Path(source), draft)
        if tokenizer is not None:
            tokenizer.save_pretrained(draft)
        found = _load_and_compare(model, draft, Inputs.of(example))
        settle_folder(draft, target, folder / "before")
    return SavedFolder(target, found, changes_of_config(model.config, fitted.changed), tuple(contents(target)))


def require_new_folder(path: Path, overwrite: bool = False) -> Path:
    """The folder at ``path``, where none is, or an empty one; raises FileError otherwise.

    With ``overwrite`` it may hold a saved model.
    """
    target = Path(os.path.abspath(path))
    with file_errors(path, "read"):
        if target.exists() and not target.is_dir():
            raise FileError(f"{str(path)!r} should be a folder, but a file is there.")
        inside = contents(target) if target.is_dir() else []
    if inside and not (overwrite and CONFIG_FILE in inside):
        told = "overwrite=True replaces it" if CONFIG_FILE in inside else "it is no saved model"
        raise FileError(f"{str(path)!r} is there and holds {inside[0]!r}: {told}. Or give the name of a new folder.")
    require_folder(target.parent)
    return target


def _require_kind(model: Any) -> None:
    for name in ("save_pretrained", "from_pretrained"):
        if not callable(getattr(type(model), name, None)):
            raise ArgumentError(
                f"{type(model).__name__} has no {name}: no library writes or loads a folder of it. Name a file: "
                "nervure.save('model.safetensors', pruned)."
            )
    if is_weightless(model):
        raise ArgumentError(f"this {type(model).__name__} has no weights (it is on 'meta'): nothing can be written.")


def require_config_says(model: nn.Module, fitted: ConfigTrial) -> None:
    """Raise FileError where no config was found from which the library builds a model."""
    if not fitted.distance:
        return
    said = describe_differences(model, fitted.stock) if fitted.stock is not None else "nothing can be built from it"
    half = fitted.stock is not None and any(name not in model.state_dict() for name in fitted.stock.state_dict())
    what = (
        "Where half a layer left, drop the whole layer"
        if half and not fitted.resized
        else 'Let all layers keep the same number (a method\'s scope="uniform"), and leave what no config says '
        "(ignore=)"
    )
    raise FileError(
        f"no config of {type(model).__name__} says this model: {said}. from_pretrained would build another one, so no "
        f"folder is written. {what}; or write it for nervure.load: nervure.save('model.safetensors', pruned)."
    )


@contextmanager
def _config_of(model: Any, config: Any, said: Mapping[str, Any]) -> Iterator[None]:
    """While this lasts, the model has another config."""
    before, written = model.config, copy.deepcopy(config)
    for key, value in said.items():
        setattr(written, key, value)
    try:
        model.config = written
        yield
    finally:
        model.config = before


def cache_said_by(source: Any) -> dict[str, Any]:
    """What the dense folder says of the cache: tracing and training switch it off for themselves."""
    if source is None:
        return {}
    file = Path(source) / CONFIG_FILE
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(f"source={str(source)!r} is no folder of a saved model: {error}.") from error
    return {USED: said[USED]} if isinstance(said, dict) and type(said.get(USED)) is bool else {USED: True}


def copy_beside(source: Path, draft: Path) -> None:
    """Copy what is no weight, no code and not there yet."""
    for file in sorted(source.iterdir()):
        is_left = any(pattern.fullmatch(file.name) for pattern in (HIDDEN, WEIGHTS, CODE))
        if file.is_file() and not is_left and not (draft / file.name).exists():
            shutil.copyfile(file, draft / file.name)
    templates = source / "additional_chat_templates"
    if templates.is_dir():
        shutil.copytree(templates, draft / templates.name, dirs_exist_ok=True)


def _load_and_compare(model: Any, draft: Path, example: Inputs) -> float:
    """Load a folder as its library does, and say how far its outputs are from those of ``model``."""
    how = getattr(model.config, "_attn_implementation", None)
    options: dict[str, Any] = {} if how is None else {"attn_implementation": how}
    with torch.random.fork_rng(devices=[]):
        again, told = type(model).from_pretrained(
            draft, output_loading_info=True, ignore_mismatched_sizes=True, local_files_only=True, **options
        )
    for key in ("missing_keys", "mismatched_keys", "unexpected_keys", "error_msgs"):
        if wrong := sorted(map(str, told.get(key) or ())):
            raise VerificationError(
                f"the folder was loaded again with {len(wrong)} {key.replace('_', ' ')}, first {wrong[0]!r}: its "
                "library writes or reads it otherwise. Nothing was left there."
            )
    again = again.to(device_of(model), next(model.parameters()).dtype)
    example = example.to(model)
    with restore_after(model, [example]), evaluating(model), evaluating(again), torch.no_grad():
        expected, found = first_output(example.run(model)), first_output(example.run(again))
    apart = difference(expected, found)
    if not apart <= LOADED:
        raise VerificationError(
            f"the folder, loaded again by {type(model).__name__}.from_pretrained, computes something else: largest "
            f"difference {apart:.1e} of its largest output. Nothing was left there."
        )
    return apart


def first_output(output: Any) -> Any:
    """The first of what a model puts out: logits, or a hidden state; not what it keeps for the next token."""
    if isinstance(output, torch.Tensor):
        return output
    logits = getattr(output, "logits", None)
    return logits if logits is not None else output[0]


def settle_folder(draft: Path, target: Path, before: Path) -> None:
    """Move a whole folder to its place; what was there goes, or comes back where that fails."""
    with file_errors(target, "write"):
        had = is_there(target)
        if had:
            target.rename(before)
        try:
            draft.rename(target)
        except OSError:
            if had:
                before.rename(target)
            raise


def changes_of_config(before: Any, now: Any) -> dict[str, tuple[Any, Any]]:
    """What a config says otherwise than another one, by name: (before, now)."""
    old, new = before.to_dict(), now.to_dict()
    return {key: (old.get(key), value) for key, value in new.items() if old.get(key) != value}
