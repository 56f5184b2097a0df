"""``compile_sparse``: the zeros of a masked model made into time, layer by layer, where the clock says so."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from nervure.analysis.connectivity import HasMasks
from nervure.core.check import checked
from nervure.core.inputs import Inputs
from nervure.core.schema import Rounds, Threads
from nervure.core.tensors import tensors_in
from nervure.errors import ArgumentError, VerificationError
from nervure.evaluation.latency import latency
from nervure.graph.copies import copy_model
from nervure.graph.models import unwrap
from nervure.graph.modes import leave_modes
from nervure.sparse.agree import Checks, agreement
from nervure.sparse.candidates import DENSE, density, working
from nervure.sparse.compiled import CompiledSparse, LayerChoice
from nervure.sparse.dead import without_dead_units
from nervure.sparse.layers import SparseLayer
from nervure.sparse.watch import inputs_of, layers_of, outputs_by_layer, outputs_of

Timer: TypeAlias = Callable[[Mapping[str, nn.Module], Any], Mapping[str, float]]
"""Seconds of one forward pass by name, for modules and the inputs that all of them are given."""

GAIN = 0.95
"""What takes more than this share of the dense time counts as no faster: measured times differ by as much."""
ROUNDS = 15
SPARSE, CUT = "sparse", "dead units cut"


@checked
@leave_modes()
def compile_sparse(
    model: nn.Module | HasMasks,
    example: Any,
    *,
    threads: Threads | None = None,
    rounds: Rounds = ROUNDS,
    timer: Timer | None = None,
    verbose: bool = True,
) -> CompiledSparse:
    """Make a sparse model faster for inference on this machine, where it can be; what is not faster stays as it was.

    Dead units leave first: what they say is handed on as a bias, exactly. Then each linear layer and convolution with
    zeros is timed on what the example gives it, in turn with itself as it was: without its rows and columns of zeros,
    as CSR, as blocks (BSR). The fastest is kept. The whole is checked against the original, timed against it, and kept
    only if it is faster. The result takes batches of any size and is fast for the example's. Inputs, weights and the
    model are left as they are.

    Save the *masked* model (:func:`nervure.save`), not this one, and compile it again where it will run: which kernel
    is the fastest is a property of the machine.

    Args:
        model: a model with zeros, in evaluation mode, or what :func:`nervure.prune` returns.
        example: see :class:`nervure.Inputs`; of the batch size to be fast at.
        threads: to time with; None: as many as torch uses now. One is advised: with more, small sparse products wait
            for each other, on a busy machine for tens of milliseconds.
        rounds: timings of each candidate, 3 or more.
        timer: another clock, for tests and for costs of your own (energy, bytes).
        verbose: print :meth:`CompiledSparse.describe`.

    Raises:
        ArgumentError: the model is in training mode, has no zeros, or has masks that its weights do not keep.
        ForwardError: the model does not run on the example.
        VerificationError: the compiled model differs from the original; the message names the first layer that does.
    """
    dense = _require_sparse(model)
    inputs = Inputs.of(example).to(dense)
    threads = torch.get_num_threads() if threads is None else threads
    clock = timer or _clock(threads, rounds)
    with torch.no_grad():
        checks = Checks.of(dense, inputs)
        cut, *notes = _without_dead(dense, inputs, checks)
        choices, layers = _choose_layers(cut, inputs, clock)
        whole, errors = {DENSE: copy_model(dense)}, {DENSE: 0.0}
        if cut is not dense:
            whole[CUT], errors[CUT] = cut, checks.error(cut)
        if layers:
            made = _replace_layers(cut, layers)
            if reason := _running(made, checks):
                notes.append(reason)
            else:
                whole[SPARSE], errors[SPARSE] = made, _verify_whole(cut, made, checks)
        times = clock(whole, inputs.plain())
    best = _fastest(times)
    notes.append(f"timed with threads={threads} on a batch of {_samples(inputs)}")
    found = CompiledSparse(
        whole[best], choices=choices, times=times, choice=best, error=errors[best], notes=tuple(filter(None, notes))
    )
    if verbose:
        print(found.describe())
    return found


def _without_dead(dense: nn.Module, inputs: Inputs, checks: Checks) -> tuple[nn.Module, str]:
    """The model without dead units if it computes the same, else the one with them; and what was done."""
    cut, note = without_dead_units(dense, inputs)
    try:
        checks.error(cut)
    except VerificationError as error:
        return dense, f"dead units stay: without them, {error}"
    return cut, note


def _require_sparse(given: nn.Module | HasMasks) -> nn.Module:
    """The model, known to be one to compile."""
    model = unwrap(given.model if isinstance(given, HasMasks) else given)
    if isinstance(given, HasMasks):
        _require_held(model, given.masks)
    if model.training:
        raise ArgumentError(
            "the model is in training mode, in which dropout and batch norms compute something else. A compiled model "
            "is for inference: call model.eval() first."
        )
    if not any(bool((layer.weight == 0).any()) for layer in _weights(model)):
        raise ArgumentError(
            "no linear layer or convolution has a weight that is zero: there is nothing to gain. Mask the model first, "
            "e.g. prune(model, example, MagnitudeMasks(density=0.1)), or pass the one that was masked."
        )
    return model


def _weights(model: nn.Module) -> Iterator[Any]:
    yield from layers_of(model).values()


def _require_held(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    tensors = dict(model.named_parameters(remove_duplicate=False))
    for name, keep in masks.items():
        if name in tensors and bool(tensors[name].detach()[~keep.to(tensors[name].device)].any()):
            raise ArgumentError(
                f"{name!r} has weights where its mask says zero: it was trained without holding the masks. "
                "Train with nervure.hold, or lay the masks on again."
            )


def _samples(inputs: Inputs) -> int:
    return next((len(t) for t in tensors_in(inputs) if t.ndim), 1)


def _clock(threads: int, rounds: int) -> Timer:
    def seconds(models: Mapping[str, nn.Module], example: Any) -> Mapping[str, float]:
        sizes = (_samples(Inputs.of(example)),)
        table = latency(models, example, batch_sizes=sizes, threads=(threads,), rounds=rounds, seconds=0.0, warmup=2)
        # Others on the machine only ever add time: the first quartile is less of theirs than the median.
        return {row.name: row.quartiles[0] for row in table.rows}

    return seconds


def _choose_layers(
    model: nn.Module, inputs: Inputs, clock: Timer
) -> tuple[tuple[LayerChoice, ...], dict[str, nn.Module]]:
    """The fastest way for each layer with zeros, and the layers that are to be replaced by it."""
    heard, rows, taken = inputs_of(model, inputs), [], dict[str, nn.Module]()
    layers: dict[str, Any] = layers_of(model)
    for name in (*heard, *(name for name in layers if name not in heard)):
        layer = layers[name]
        share = density(layer)
        if share == 1:
            continue
        reason = _why_not(model, name, layer, heard)
        ways, failed = ({}, {"all": reason}) if reason else working(layer, heard[name].first)
        times = clock(ways, heard[name].first) if len(ways) > 1 else {}
        choice = _fastest(times)
        if choice != DENSE:
            taken[name] = ways[choice]
        rows.append(LayerChoice(name, tuple(layer.weight.shape), share, times, choice, failed))
    return tuple(rows), taken


def _why_not(model: nn.Module, name: str, layer: Any, heard: Mapping[str, Any]) -> str:
    """Why a layer cannot be replaced whatever the clock says; empty where it can."""
    if name not in heard:
        return "it is not called: what holds it reads its weight, or does not use it"
    if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.TransformerEncoderLayer):
        return "the fused kernel of nn.TransformerEncoderLayer reads its weight"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "it has hooks of its own"
    return ""


def _fastest(times: Mapping[str, float]) -> str:
    """The fastest way; the first (dense) where none is faster by more than timings differ."""
    best = min(times, key=lambda way: times[way], default=DENSE)
    return best if best == DENSE or times[best] <= GAIN * times[DENSE] else DENSE


def _replace_layers(model: nn.Module, layers: Mapping[str, nn.Module]) -> nn.Module:
    """A copy with these layers in the place of those of the same name, wherever the model holds them."""
    made = copy_model(model)
    if "" in layers:
        return layers[""]
    new = {id(made.get_submodule(name)): layer for name, layer in layers.items()}
    for name, module in list(made.named_modules(remove_duplicate=False)):
        if id(module) in new:
            owner, _, last = name.rpartition(".")
            setattr(made.get_submodule(owner), last, new[id(module)])
    return made.eval()


def _running(made: nn.Module, checks: Checks) -> str:
    """Why the model does not run with its layers replaced; empty where it does.

    Code after a layer may demand the usual order in memory (``view``): then all layers hand on copies.
    """
    reason = ""
    for contiguous in (False, True):
        for module in made.modules():
            if isinstance(module, SparseLayer):
                module.contiguous = contiguous
        try:
            for given in checks.given:
                outputs_of(made, given)
        # Anything may be in the code of a model that expects an ordinary layer.
        except Exception as error:
            reason = f"layers stay dense, since the model does not run without them: {type(error).__name__}: {error}"
        else:
            return ""
    return reason


def _verify_whole(cut: nn.Module, made: nn.Module, checks: Checks) -> float:
    """The error of the whole; raises VerificationError that names the first layer that differs."""
    try:
        return checks.error(made)
    except VerificationError as error:
        raise VerificationError(
            f"the compiled model must not be used; {_first_to_differ(cut, made, checks)}{error}"
        ) from error


def _first_to_differ(cut: nn.Module, made: nn.Module, checks: Checks) -> str:
    names = list(layers_of(cut))
    for given in checks.given:
        said, expected = outputs_by_layer(made, names, given), outputs_by_layer(cut, names, given)
        for name, tensor in expected.items():

            def run(model: nn.Module, name: str = name, given: Inputs = given) -> list[Tensor]:
                return [outputs_by_layer(model, [name], given)[name]]

            try:
                agreement([tensor], [said[name]], f"the first layer that differs is {name!r}", cut, run)
            except VerificationError as error:
                return f"{error} "
    return "no single layer differs. "
