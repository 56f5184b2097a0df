"""``export``: a network as a file for another engine, checked against the module before it is there."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from torch import nn

from nervure.core.annotations import Batches, FilePath
from nervure.core.check import checked, require_choice, show_value
from nervure.core.documents import require_plain
from nervure.core.files import disk_refusal, drafts, require_writable, settle, write_json, write_text
from nervure.core.inputs import Inputs
from nervure.core.markup import listing
from nervure.core.schema import NotNegative
from nervure.engines import Runner
from nervure.engines.engine import BF16, FLOAT32
from nervure.engines.exported import Exported, export_graph, exporter_error, reason
from nervure.errors import ArgumentError, EngineError, NervureError, VerificationError
from nervure.evaluation.labelled import pairs
from nervure.export.card import (
    Card,
    checks_facts,
    file_facts,
    inputs_of,
    model_name,
    outputs_of,
    provenance,
    pruning_facts,
)
from nervure.export.checking import FileDifference, first_different, on_data, on_random, random_like
from nervure.export.formats import FORMATS, Format, in_bf16
from nervure.export.gguf import Decoder, GgufReader, check_decoder, read_decoder, require_tokenizer
from nervure.export.quantising import INT8
from nervure.graph.cost import count
from nervure.graph.models import is_weightless
from nervure.graph.modes import leave_modes
from nervure.prune import Pruned

TOLERANCE = 1e-4
"""For float32: other engines order the sums in another way."""
BATCHES = (1, 2, 5)
"""Batch sizes on which a file for any number of samples is checked."""
CALIBRATED = 64
"""Batches to calibrate on, at most."""


@final
@dataclass(frozen=True, slots=True)
class ExportedFile:
    """A network as a file for another engine.

    Attributes:
        path: where it is.
        files: all that belongs to it: weights beside it, its card as JSON and as Markdown.
        format: of the file.
        precision: what it is computed in.
        checks: how far it is from the module, by what was run: ``"random"``, and ``"data"`` where some were given.
        card: what travels with it.
    """

    path: Path
    files: tuple[Path, ...]
    format: str
    precision: str
    checks: Mapping[str, FileDifference]
    card: Card

    def __str__(self) -> str:
        size = sum(file["bytes"] for file in self.card.facts["files"])
        lines = [f"{self.path}: {self.format} in {self.precision}, {size:,} bytes"]
        for name, found in self.checks.items():
            line = f"  on {name} inputs: largest relative difference {found.largest:.1e}"
            if found.tolerance is not None:
                line += f" (allowed {found.tolerance:.0e})"
            if found.agreement is not None:
                line += f", same class {100 * found.agreement:.2f} %"
            if found.accuracy is not None:
                line += f", accuracy {100 * found.accuracy[0]:.2f} -> {100 * found.accuracy[1]:.2f} %"
            lines.append(line)
        return listing(lines)


@checked
@leave_modes()
def export(  # noqa: PLR0913 - one for each wish
    model: nn.Module | Pruned,
    example: Any,
    path: FilePath,
    *,
    format: str | None = None,
    precision: str = FLOAT32,
    dynamic: bool | None = None,
    check: Batches | None = None,
    calibration: Batches | None = None,
    tolerance: NotNegative | None = None,
    notes: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
) -> ExportedFile:
    """Write a network as a file for another engine, and check that the file computes what the module computes.

    The file is written beside ``path`` under another name, loaded by the engine it is for, and run on random inputs and
    on those of ``check``. Only what passes is put at ``path``, with a card (``<path>.card.json`` and ``.card.md``).

    Args:
        model: what ``prune`` returns, or any module. It is exported in evaluation mode, and left as it is.
        example: see :class:`nervure.Inputs`. Its numbers do not go into the file.
        path: where to; the folder must exist.
        format: ``"onnx"`` (``.onnx``), ``"openvino"`` (``.xml`` with ``.bin``), ``"torch"`` (``.pt2``, of
            ``torch.export``), ``"executorch"`` (``.pte``, XNNPACK) or ``"gguf"`` (``.gguf``, decoders of transformers
            for llama.cpp); None: as the suffix of ``path`` says.
        precision: ``"float32"``: as the module has it; ``"bf16"`` (torch, openvino, gguf); ``"int8"`` (onnx, openvino):
            the static quantiser of ONNX Runtime, weights per channel; ``"float16"``, ``"q8_0"`` (gguf).
        dynamic: for any number of samples; False: for as many as the example has. None: any number, where the format
            can (executorch cannot).
        check: batches of real (inputs, labels) to compare on; with class labels, agreement and both accuracies are
            told as well.
        calibration: batches of real (inputs, labels) for ``"int8"``, at most 64 are used. Not those of ``check``.
        tolerance: largest difference of an output relative to its largest magnitude. None: 1e-4 for float32, while for
            the lower precisions the difference is told, whatever it is.
        notes: further facts for the card as plain data, such as accuracies, clean and shifted; under ``"command"``,
            what makes this file again.
        tokenizer: for gguf, where its vocabulary comes from: a folder with ``tokenizer.json``, a tokenizer of
            transformers, or the GGUF file of the model before pruning.

    Returns:
        Where the file is, how far it is from the module, and its card.

    Raises:
        ArgumentError: the format or the precision is unknown, int8 lacks data to calibrate on, gguf a tokenizer, or
            notes are no plain data.
        MissingExtraError: a library is not installed; the message names the extra.
        FileError: the place cannot be written.
        EngineError: the format or the engine cannot take the model; the operator and its layer are named.
        VerificationError: the file computes something else; the message names the first layer that differs.
    """
    target = Path(path)
    require_plain(notes, "notes", ArgumentError)
    form = require_format(target, format, precision, dynamic)
    vocabulary = _require_vocabulary(form, tokenizer)
    cards = tuple(target.with_name(f"{target.name}.card.{suffix}") for suffix in ("json", "md"))
    for place in (*form.files(target), *cards):
        require_writable(place)
    module = model.model if isinstance(model, Pruned) else model
    if is_weightless(module):
        raise ArgumentError(f"{model_name(module)} has tensors without numbers; give it its weights before exporting.")
    inputs = Inputs.of(example).to(module)
    given, noted = _calibration(calibration, precision), dict(notes or {})
    again = str(noted.pop("command", _call(target, form, precision)))
    with drafts(target) as folder:
        job = _Job(form, precision, module, inputs, form.dynamic if dynamic is None else dynamic, given, vocabulary)
        graph, runner = job.made(folder / target.name)
        checks = _check_file(job, graph, runner, check, tolerance, folder / target.name)
        written = [file for file in form.files(folder / target.name) if file.exists()]
        facts = {
            "model": model_name(module),
            "file": {
                "name": target.name,
                "format": form.name,
                "precision": precision,
                "samples": None if isinstance(graph, Decoder) else graph.fixed,
            },
            "files": [file_facts(file) for file in written],
            "inputs": graph.inputs() if isinstance(graph, Decoder) else inputs_of(graph),
            "outputs": graph.outputs() if isinstance(graph, Decoder) else outputs_of(graph),
            "pruning": pruning_facts(model if isinstance(model, Pruned) else None),
            "costs": _costs(model, inputs),
            "calibrated": {"batches": len(given)} if given else {},
            "verification": checks_facts(checks),
            "notes": noted,
            "provenance": provenance(again, form.libraries(precision)),
            "usage": usage(form, target.name, precision, graph),
        }
        card = Card(facts)
        written += [
            write_json(folder / cards[0].name, card.to_json()),
            write_text(folder / cards[1].name, card.to_markdown()),
        ]
        return ExportedFile(target, _move_files(written, target.parent), form.name, precision, checks, card)


def require_format(path: Path, name: str | None, precision: str = FLOAT32, dynamic: bool | None = None) -> Format:
    """The format called ``name``, or that of the suffix of ``path``, if it can be written here: ask before long work.

    Raises:
        ArgumentError: there is no such format, or it has no such precision, or is not for any number of samples.
        MissingExtraError: a library it needs is not installed.
    """
    if name is None:
        by_suffix = {form.suffix: form.name for form in FORMATS.values()}
        if path.suffix not in by_suffix:
            raise ArgumentError(
                f"{str(path)!r} does not say its format: give format=, one of {', '.join(map(repr, FORMATS))}, "
                f"or a name that ends with {', '.join(by_suffix)}."
            )
        name = by_suffix[path.suffix]
    form = FORMATS[require_choice(name, FORMATS, "format")]
    if path.suffix != form.suffix:
        raise ArgumentError(f"{str(path)!r} should end with {form.suffix!r}, as files of the format {name!r} do.")
    if precision not in form.needs:
        able = ", ".join(other.name for other in FORMATS.values() if precision in other.needs)
        raise ArgumentError(
            f"the format {name!r} has no precision {show_value(precision)}; it has {', '.join(map(repr, form.needs))}."
            + (f" {precision!r} is there for {able}." if able else "")
        )
    if dynamic and not form.dynamic:
        raise ArgumentError(f"files of the format {name!r} are for as many samples as the example has; leave dynamic.")
    form.require(precision)
    return form


@final
@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """What is to be written: a module, in a format and a precision."""

    form: Format
    precision: str
    module: nn.Module
    inputs: Inputs
    dynamic: bool
    calibration: Sequence[Inputs]
    tokenizer: Any

    def made(self, path: Path) -> tuple[Exported | Decoder, Runner]:
        """Write the file to ``path``, and load it."""
        graph = self._read()
        try:
            self.form.write(graph, path, self.precision, self.calibration)
            return graph, self.form.read(path, graph, self.precision)
        except NervureError:
            raise
        except Exception as error:
            if refusal := disk_refusal(error, path.parent):
                raise refusal from error
            told = f"the module cannot be written as {self.form.name!r}"
            if isinstance(graph, Decoder):
                raise EngineError(f"{told}: {reason(error)}.") from error
            raise exporter_error(told, graph, error) from error

    def _read(self) -> Exported | Decoder:
        """The module as the format takes it."""
        if self.form.decoders:
            return read_decoder(self.module, self.inputs, self.tokenizer)
        lowered = self.form.name == "torch" and self.precision == BF16
        module = in_bf16(self.module) if lowered else self.module
        return export_graph(module, self.inputs, dynamic=self.dynamic)


def _check_file(
    job: _Job,
    graph: Exported | Decoder,
    runner: Runner,
    check: Batches | None,
    tolerance: float | None,
    path: Path,
) -> dict[str, FileDifference]:
    allowed = TOLERANCE if tolerance is None and job.precision == FLOAT32 else tolerance
    try:
        if isinstance(graph, Decoder):
            checks = check_decoder(graph, GgufReader(path), job.precision, tolerance, check)
        else:
            batches = BATCHES if graph.dynamic else (graph.samples,)
            checks = {"random": on_random(job.module, runner, job.inputs, batches, allowed)}
            if check is not None:
                checks["data"] = on_data(job.module, runner, pairs(check, "check"), allowed, graph.fixed)
    except VerificationError as error:
        raise VerificationError(f"{_wrong(job)}: {error} Nothing was written.") from error
    for name, found in checks.items():
        if not found.ok:
            layer = "" if isinstance(graph, Decoder) else f" {_first_layer(job, graph, found, path.parent)}"
            raise VerificationError(
                f"{_wrong(job)}: on {name} inputs the largest relative difference is {found.largest:.1e}, allowed "
                f"{found.tolerance:.0e}.{layer} Nothing was written."
            )
    return checks


def _require_vocabulary(form: Format, tokenizer: Any) -> Any:
    if form.decoders:
        return require_tokenizer(tokenizer)
    if tokenizer is not None:
        raise ArgumentError(f"tokenizer= is for 'gguf'; files of the format {form.name!r} hold none. Leave it out.")
    return None


def _wrong(job: _Job) -> str:
    return f"the {job.form.name} file of {model_name(job.module)} computes something else than the module"


def _first_layer(job: _Job, graph: Exported, found: FileDifference, folder: Path) -> str:
    """Say which layer is the first that differs, by an export whose outputs are those of all layers."""
    inputs = random_like(job.inputs, graph.fixed or max(BATCHES), seed=0)
    allowed = found.tolerance or 0.0
    try:
        first = first_different(job.module, inputs, allowed, lambda: job.made(folder / f"layers{job.form.suffix}")[1])
    except (NervureError, ValueError) as error:
        return f"Which layer is the first that differs could not be found ({error})."
    if first is None:
        return (
            "No layer differs by itself when all put out what they compute: it is in what the engine makes of several."
        )
    name, apart = first
    kind = type(job.module.get_submodule(name)).__name__
    return f"The first layer that differs is {name!r} ({kind}), by {apart:.1e}."


def _calibration(data: Batches | None, precision: str) -> list[Inputs]:
    if precision != INT8:
        return []
    if data is None:
        raise ArgumentError(
            "precision='int8' needs calibration=, batches of real (inputs, labels) from which the ranges of the "
            "activations are learnt; some hundred training samples will do."
        )
    return [Inputs.of_batch(inputs) for inputs, _ in itertools.islice(pairs(data, "calibration"), CALIBRATED)]


def _costs(model: nn.Module | Pruned, inputs: Inputs) -> dict[str, Any]:
    module = model.model if isinstance(model, Pruned) else model
    now = count(module, inputs).to_json()
    return {"before": model.cost_before.to_json(), "after": now} if isinstance(model, Pruned) else {"now": now}


def _call(target: Path, form: Format, precision: str) -> str:
    return f"nervure.export(model, example, {target.name!r}, format={form.name!r}, precision={precision!r})"


def usage(form: Format, name: str, precision: str, graph: Exported | Decoder) -> str:
    """The lines of Python that run the file called ``name``."""
    # Between double quotes in lines of Python.
    quoted = json.dumps(name, ensure_ascii=False)[1:-1]
    if isinstance(graph, Decoder):
        return form.usage.format(name=quoted)
    inputs = [entry.name for entry in graph.placeholders()]
    return form.usage.format(
        name=quoted,
        hint="bf16" if precision == BF16 else "f32",
        inputs=", ".join(f'"{entry}": {entry}' for entry in inputs),
        arguments=", ".join([*inputs[: graph.positional], *(f"{key}={key}" for key in graph.names)]),
        values=", ".join(inputs),
    )


def _move_files(files: Sequence[Path], folder: Path) -> tuple[Path, ...]:
    """Put the files into ``folder``; the one that gives the export its name comes last, when the others are there."""
    for file in (*files[1:], files[0]):
        settle(file, folder / file.name)
    return tuple(folder / file.name for file in files)
