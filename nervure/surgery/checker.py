"""Whether a plan computes the right thing, on several sets of numbers: random ones in double precision come first."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from nervure.core.inputs import Inputs
from nervure.core.tensors import outputs_in
from nervure.errors import ForwardError, NervureError, VerificationError
from nervure.graph.copies import copy_model
from nervure.graph.cost import Cost, cost_of_run, count
from nervure.graph.models import evaluating
from nervure.graph.preserve import restore_after
from nervure.graph.tape import Entry, Tape, named_tensors, plain_kernels, record, unreached_parameters
from nervure.graph.trace import TraceResult
from nervure.graph.types import Graph
from nervure.plan import Plan
from nervure.surgery.apply import apply_at_last, apply_sharing, keeps_of
from nervure.surgery.difference import Difference, compare, compare_rounded
from nervure.surgery.drop import name_after
from nervure.surgery.link import silence_links, wire_names
from nervure.surgery.randomness import SameNoise, fixed_seed, is_random
from nervure.surgery.redraw import WIDE, redrawn_inputs, rounded_copy, to_double, widen, with_other_numbers
from nervure.surgery.reference import Answer, places, reference, survivors
from nervure.surgery.smaller_inputs import goes_the_same_way, smaller_pictures

LARGEST = 300_000_000
"""Parameters of a model up to which a copy in double precision is made (8 bytes each)."""

MOVES_NOTHING = "what the plan removes moves no output far enough, so a wrong cut would look right"

Cutter = Callable[[nn.Module, bool], nn.Module]
"""Makes the smaller model from one with the structure of the original; True: which has its masks, and is let go."""


@final
@dataclass(frozen=True, slots=True)
class Verification:
    """Outcome of a verification.

    Attributes:
        error: the largest difference of an output, relative to how far the cut moved it; None if no check could be
            made that would have told a wrong cut apart.
        tolerance: how large it may be: the square root of the precision that the outputs are computed in.
        outputs: the number of outputs that were compared.
        reason: why no check was made.
    """

    error: float | None
    tolerance: float
    outputs: int
    reason: str = ""

    @property
    def ok(self) -> bool:
        """Whether the check was made, and passed."""
        return self.error is not None and self.error <= self.tolerance

    def __bool__(self) -> bool:
        return self.ok


class Numbers(NamedTuple):
    """What to compute with: how it is told, in double precision or not, what is drawn anew, on pictures how large."""

    told: str
    wide: bool
    weights: bool
    inputs: bool
    seed: int = 0
    small: bool = False


GIVEN = Numbers("on the example", False, False, False)
EXACT = Numbers("in double precision", True, False, False)
SMALL = Numbers("with random weights and smaller inputs", True, True, True, small=True)
DRAWN = (
    *(Numbers("with random weights and inputs", True, True, True, seed) for seed in range(3)),
    Numbers("with random weights", True, True, False),
    EXACT,
    Numbers("with random weights and inputs, not in double precision", False, True, True),
    Numbers("with random weights, not in double precision", False, True, False),
)
"""In the order in which they are tried, until one tells."""


@dataclass(frozen=True, slots=True)
class _Setting:
    """A model with certain numbers, the inputs, what it answers, how exactly, and whether it draws random numbers."""

    model: nn.Module
    inputs: Inputs
    dense: list[Tensor]
    precisions: list[float]
    is_random: bool


class Checker:
    """Compares cut models with the original without the removed units, on every example.

    Args:
        model: the original.
        drawing: the runs that its graph was read from.
        given: what each of its runs was given.
    """

    def __init__(self, model: nn.Module, drawing: TraceResult, given: Sequence[Inputs]) -> None:
        self.model, self.drawing = model, drawing
        self.runs = [_RunChecker(model, drawing, run, one) for run, one in enumerate(given)]

    def check(self, graph: Graph, plan: Plan) -> Verification:
        """Whether ``plan`` computes the right thing, on random numbers (as given where those tell nothing).

        Raises:
            VerificationError: it does not.
        """
        with evaluating(self.model):
            return _worst([run.check(graph, plan) for run in self.runs])

    def check_made(self, graph: Graph, plan: Plan, smaller: nn.Module) -> Verification:
        """As :meth:`check`, for a smaller model that was made before: it may not disagree on the examples either."""
        with evaluating(self.model):
            return _worst([run.check_made(graph, plan, smaller) for run in self.runs])

    def forget(self) -> None:
        """Let go of the copies that were made to compare with; they are made anew where they are needed again."""
        for run in self.runs:
            run.settings.clear()

    def count(self, smaller: nn.Module) -> Cost:
        """As :func:`nervure.count`; of a model that was checked, by the run that it was checked on."""
        last = self.runs[0].last if len(self.runs) == 1 else None
        if last is None or last[0] is not smaller or unreached_parameters(smaller, last[1]):
            return count(smaller, [run.inputs for run in self.runs])
        return cost_of_run(smaller, last[1])


def _worst(found: list[Verification]) -> Verification:
    """One verification for several: what any of them told counts."""
    made = [one for one in found if one.error is not None]
    return max(made, key=lambda one: one.error or 0.0) if made else found[0]


class _RunChecker:
    """A checker on one example, which is like a run of the drawing."""

    def __init__(self, model: nn.Module, drawing: TraceResult, run: int, inputs: Inputs) -> None:
        self.model, self.drawing, self.run, self.inputs = model, drawing, run, inputs
        self.settings: dict[Numbers, _Setting | str] = {}
        self.last: tuple[nn.Module, Tape] | None = None
        self.small: Inputs | None = None
        """Smaller inputs that take the same way, as far as that is known."""

    def check(self, graph: Graph, plan: Plan) -> Verification:
        """Whether ``plan`` computes the right thing, on random numbers (as given where those tell nothing).

        Raises:
            VerificationError: it does not.
        """

        def cut(model: nn.Module, is_last: bool) -> nn.Module:
            return _smaller_of(model, graph, plan, is_last=is_last)

        return self._first_that_tells(graph, plan, cut, (*DRAWN, GIVEN))

    def check_made(self, graph: Graph, plan: Plan, smaller: nn.Module) -> Verification:
        """As :meth:`check`, for a smaller model that was made before: it may not disagree on the example either."""
        given = self._compare(GIVEN, graph, plan, lambda *_: smaller, may_draw=not plan.edits)
        if not plan.edits and given is not None:
            return Verification(given.error, given.tolerance, given.outputs)

        def cut(model: nn.Module, is_last: bool) -> nn.Module:
            return _with_numbers(smaller, _smaller_of(model, graph, plan, is_last=is_last))

        if given is not None and not given.is_right:
            drawn = self._in_double(graph, plan, cut) if given.agrees_as_whole else None
            if drawn is not None and _is_made_of(smaller, self.model, graph, plan):
                # Single numbers of an answer may be all rounding; in double precision each of them agrees.
                return drawn
            given = self._compare(GIVEN, graph, plan, lambda *_: smaller)
        if given is not None and not given.is_right and _is_made_of(smaller, self.model, graph, plan):
            # What a model chooses (the best boxes, the nearest code) may turn on a rounding; not in double precision.
            exact = self._compare(EXACT, graph, plan, cut)
            given = exact if exact is not None and exact.is_right and exact.is_telling else given
        _require_right(given, GIVEN)
        drawn = self._first_that_tells(graph, plan, cut, DRAWN, is_last=True)
        if drawn.error is None and given is not None and given.is_telling:
            return Verification(given.error, given.tolerance, given.outputs)
        return drawn

    def _in_double(self, graph: Graph, plan: Plan, cut: Cutter) -> Verification | None:
        """What random numbers in double precision tell, where they tell at once that all is right."""
        try:
            found = self._first_that_tells(graph, plan, cut, DRAWN[:1])
        except VerificationError:
            return None
        return found if found.error is not None else None

    def _first_that_tells(
        self, graph: Graph, plan: Plan, cut: Cutter, choices: tuple[Numbers, ...], *, is_last: bool = False
    ) -> Verification:
        """What the first numbers that tell anything tell; those that were tried are let go where it ``is_last``."""
        outputs, why = 0, ""
        small = self._compare(SMALL, graph, plan, cut, is_last=is_last) if choices[0] == DRAWN[0] else None
        if small is not None and small.is_right and small.is_telling:
            return Verification(small.error, small.tolerance, small.outputs)
        for numbers in choices:
            found = self._compare(numbers, graph, plan, cut, is_last=is_last)
            _require_right(found, numbers)
            if found is not None and found.is_telling:
                return Verification(found.error, found.tolerance, found.outputs)
            if found is not None:
                outputs, why = max(outputs, found.outputs), MOVES_NOTHING
        return Verification(None, 0.0, outputs, why or self._why_nothing_runs(choices))

    def _why_nothing_runs(self, choices: tuple[Numbers, ...]) -> str:
        return "; ".join(dict.fromkeys(f"{n.told} {self.settings[n]}" for n in choices))

    def _compare(
        self,
        numbers: Numbers,
        graph: Graph,
        plan: Plan,
        cut: Cutter,
        *,
        may_draw: bool = True,
        is_last: bool = False,
    ) -> Difference | None:
        """The comparison with these numbers; None where the model does not run with them.

        Where answers differ, rounding may be drawn to explain it. Where it ``is_last``, the copy with these numbers
        becomes the smaller one: both would take twice the memory.
        """
        setting = self._setting(numbers)
        if isinstance(setting, str):
            return None
        run = self.drawing, self.run, graph, plan
        is_last = is_last and setting.model is not self.model
        if is_last:
            del self.settings[numbers]
        expected = reference(setting.model, *run, setting.inputs, is_masked=is_last)
        smaller = cut(setting.model, is_last)
        with silence_links(smaller, filter(None, map(name_after(graph, plan), wire_names(graph, plan)))):
            found = self._answer(setting, smaller, expected)
        dense = survivors(setting.dense, self.drawing, self.run, keeps_of(graph, plan))

        def again(draw: int) -> list[Tensor]:
            whole = self._setting(numbers)
            assert isinstance(whole, _Setting)
            return reference(rounded_copy(whole.model, draw), *run, whole.inputs, is_masked=True).outputs

        answers = dense, expected.outputs, found, setting.precisions
        return compare_rounded(*answers, again) if may_draw else compare(*answers)

    def _answer(self, setting: _Setting, smaller: nn.Module, expected: Answer) -> list[Tensor]:
        noise = SameNoise(expected.noise) if setting.is_random else nullcontext()
        with evaluating(smaller), fixed_seed(smaller), noise:
            if setting.model is not self.model:
                return outputs_of(smaller, setting.inputs)
            with _running_smaller():
                tape, (found,) = record(smaller, setting.inputs, tag=False, auxiliary=False)
                self.last = smaller, tape
                return found

    # -- numbers to compute with ------------------------------------------------------------------------------------

    def _setting(self, numbers: Numbers) -> _Setting | str:
        if numbers not in self.settings:
            self.settings[numbers] = self._made(numbers)
        return self.settings[numbers]

    def _made(self, numbers: Numbers) -> _Setting | str:
        """A model with these numbers; or why there is none."""
        if numbers == GIVEN:
            return self._given_setting()
        if numbers.wide and self._size > LARGEST:
            return f"{self._size:,} parameters are too many for a copy in double precision"
        given = smaller_pictures(self.inputs) if numbers.small else self.inputs
        if given is None:
            return "no picture is large"
        model = with_other_numbers(self.model, wide=numbers.wide, seed=numbers.seed if numbers.weights else None)
        inputs = given.map(to_double) if numbers.wide else given
        if numbers.inputs:
            inputs = redrawn_inputs(inputs, numbers.seed)
        try:
            with evaluating(model), fixed_seed(model), SameNoise({}):
                warm = self.drawing.flow.tape.warm
                tape, (dense,) = record(model, inputs, tag=False, auxiliary=False, warm=warm)
        except NervureError as error:
            return f"the model's forward raised {type(error.__cause__).__name__}: {str(error.__cause__)[:100]}"
        if any(bool(torch.isnan(t).any()) for t in dense):
            return "the model's outputs are not numbers"
        if not (goes_the_same_way(self.drawing, self.run, tape) if numbers.small else self._is_same_way(tape)):
            return "the model takes another way"
        if numbers.small:
            self.small = given
        return _Setting(model, inputs, dense, _precisions(tape, 0), _draws(tape, 0))

    def _given_setting(self) -> _Setting:
        """The model and the example as they are; where nothing is drawn at random, it has answered already."""
        tape, dense, draws = (
            self.drawing.flow.tape,
            self.drawing.outputs[self.run],
            _draws(self.drawing.flow.tape, self.run),
        )
        if draws:
            with evaluating(self.model), fixed_seed(self.model), SameNoise({}):
                dense = outputs_of(self.model, self.inputs)
        return _Setting(self.model, self.inputs, dense, _precisions(tape, self.run), draws)

    @cached_property
    def _size(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def _is_same_way(self, tape: Tape) -> bool:
        """Whether a run went through no other modules than the one that was drawn, and reads units where it did."""
        was = list(places(self.drawing.flow.tape, self.run))
        now = {(place.module, place.name) for _, place, _ in places(tape)}
        modules, read = {module for module, _ in now}, {read.entry for read in self.drawing.flow.reads}
        if not modules <= {place.module for _, place, _ in was}:
            return False
        return all((p.module, p.name) in now for i, p, _ in was if i in read and p.module in modules)


def outputs_of(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """All tensors that ``model`` returns on ``example``; raises VerificationError where it does not run."""
    with _running_smaller(), restore_after(model, inputs), plain_kernels(model):
        # Copies: an output may be a buffer, which is put back.
        return [t.clone() for t in outputs_in(inputs.run(model))]


@contextmanager
def _running_smaller() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        cause = error.__cause__ if isinstance(error, ForwardError) and error.__cause__ else error
        raise VerificationError(
            f"the pruned model does not run on the example: {type(cause).__name__}: {cause}."
        ) from cause


def _require_right(found: Difference | None, numbers: Numbers) -> None:
    if found is not None and not found.is_right:
        raise VerificationError(
            f"it differs from the original without the removed units by {found.error:.1e} of what the cut moves "
            f"({numbers.told}; allowed {found.tolerance:.0e})"
        )


def _is_made_of(smaller: nn.Module, model: nn.Module, graph: Graph, plan: Plan) -> bool:
    """Whether the numbers of ``smaller`` are what the plan leaves of those of ``model``."""
    numbers, own = named_tensors(apply_sharing(model, graph, plan)), named_tensors(smaller)
    return numbers.keys() == own.keys() and all(torch.equal(numbers[name], own[name]) for name in own)


def _smaller_of(model: nn.Module, graph: Graph, plan: Plan, *, is_last: bool) -> nn.Module:
    """What the plan makes of a model: to be looked at beside it, or, where it ``is_last``, in its place."""
    return (apply_at_last if is_last else apply_sharing)(model, graph, plan)


def _with_numbers(smaller: nn.Module, made: nn.Module) -> nn.Module:
    """A copy of ``smaller`` with the numbers of what its plan made."""
    numbers, memo = named_tensors(made), dict[int, Any]()
    for name, tensor in named_tensors(smaller).items():
        if name not in numbers or numbers[name].shape != tensor.shape:
            has = tuple(numbers[name].shape) if name in numbers else "nothing of that name"
            raise VerificationError(
                f"the pruned model is not what its plan makes: {name!r} has shape {tuple(tensor.shape)}, the plan "
                f"leaves {has}"
            )
        if type(tensor) is type(numbers[name]):
            memo[id(tensor)] = numbers[name]
    result = copy_model(smaller, memo)
    if any(t.dtype in WIDE.values() for t in numbers.values()):
        widen(result)
    with torch.no_grad():
        for name, tensor in named_tensors(result).items():
            if tensor is not numbers[name]:
                tensor.copy_(numbers[name])
    return result


def _draws(tape: Tape, run: int) -> bool:
    """Whether a run draws random numbers."""
    return any(is_random(entry.op, entry.args, entry.kwargs) for _, _, entry in places(tape, run))


def _precisions(tape: Tape, run: int) -> list[float]:
    """The coarsest relative rounding of any value that each output of a run was computed from (0: whole numbers)."""
    coarsest = [torch.finfo(v.dtype).eps if _is_fraction(v.dtype) else 0.0 for v in tape.values]
    for entry in tape.entries:
        if isinstance(entry, Entry):
            given = max((coarsest[r.id] for r in entry.given), default=0.0)
            outs = entry.outs
        else:
            given, outs = max(coarsest[entry.base.id], coarsest[entry.value.id]), (entry.out,)
        for out in outs:
            coarsest[out.id] = max(coarsest[out.id], given)
    return [coarsest[number] for number in tape.runs[run].outputs]


def _is_fraction(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex
