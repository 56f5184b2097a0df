"""``nervure prune --stream``: a language model in a folder, pruned on texts layer by layer."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nervure.cli.command_group import tell
from nervure.cli.options import Asked, NetworkChoice
from nervure.cli.writing_recipes import HF, REFIT_WINDOWS, place_for
from nervure.errors import ArgumentError
from nervure.methods import METHODS
from nervure.methods.blocks.depth import Depth
from nervure.methods.lookup import find_method, options_of
from nervure.recipe.text_windows import TEXT
from nervure.refit import Refit
from nervure.streaming import StreamedFolder, prune_folder
from nervure.streaming.layer_plans import PARTS
from nervure.streaming.streamed_run import StreamedLayer

TOLD_OTHERWISE = {
    "tolerance": "what stays is not looked for layer by layer: give --keep or --density",
    "strict": "what stays is not looked for layer by layer: give --keep or --density",
    "epochs": "nothing is trained layer by layer: leave it out",
    "train_epochs": "nothing is trained layer by layer: leave it out",
    "lr": "nothing is trained layer by layer: leave it out",
    "optimizer": "nothing is trained layer by layer: leave it out",
}
"""Options of the command that say nothing here."""


def prune_streamed(
    choice: NetworkChoice,
    out: Path | None,
    *,
    parts: Sequence[str],
    named: Collection[str],
    told: Mapping[str, Any],
    fresh: bool,
    progress: bool,
) -> StreamedFolder:
    """Do what the options say; raises as :func:`nervure.prune_folder`.

    Args:
        choice: the network and its texts.
        out: where the smaller folder goes.
        parts: what is cut; none: units inside layers.
        named: the options that the user wrote.
        told: the other options of the command.
        fresh: begin anew.
        progress: tell each layer as soon as it is done.
    """
    folder = choice.model.removeprefix(HF)
    if not choice.model.startswith(HF) or not choice.data_name.startswith(TEXT):
        raise ArgumentError("--stream is for a language model in a folder, on texts: hf:FOLDER --data text:TEXTS.")
    for name in sorted(TOLD_OTHERWISE.keys() & named):
        raise ArgumentError(f"--{name.replace('_', '-')} and --stream: {TOLD_OTHERWISE[name]}.")
    for part in parts:
        if part not in PARTS:
            raise ArgumentError(f"--part {part} and --stream: it spans layers. Leave it out, or --stream.")
    asked: Asked = told["asked"]
    method = told["method"] if "method" in named else "Activation"
    kind = find_method(METHODS, method)
    knows = options_of(kind)
    usual: dict[str, Any] = {name: "uniform" for name in ("scope", "distribution") if name in knows}
    usual |= {"granularity": "whole"} if kind is Depth else {}
    settings = usual | dict(told["settings"])
    asked = asked if "budget" in named else replace(asked, budget="params")
    asked = asked.settle(method, settings)
    is_masked, chosen = "density" in knows, [part for part in PARTS if part in (parts or ("ffn",))]
    fits = Refit(samples=REFIT_WINDOWS, seed=choice.seed, masks="surgeon" if is_masked else "exact")
    data = replace(choice, data_options={"tokenizer": folder, **choice.data_options}).data()
    return prune_folder(
        folder,
        out or place_for(folder, asked),
        asked.method(method, settings),
        data=data.train.batches(),
        refit=fits if told["fits"] or "fits" not in named else False,
        parts=chosen,
        seed=choice.seed,
        fresh=fresh,
        device=choice.device,
        progress=progress,
        tell=_tell if progress else None,
    )


def _tell(layer: StreamedLayer) -> None:
    tell(f"  {layer}")
