"""One eager run of a model, written down: every operator call, its arguments by number, and the module it ran in.

The tape holds no activations. What follows (labels, costs, blocks) are pure functions of it, and can be computed again
under other assumptions without running the model again. Values are in single-assignment form: an in-place write makes
a new value, and writing into a view writes back into what it is a view of.
"""

import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from math import prod
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from nervure.core.inputs import CONTENTS, Inputs
from nervure.core.tensors import outputs_by_name, outputs_in, tensors_in
from nervure.errors import ForwardError, TraceError
from nervure.graph.composites import SimpleOperators
from nervure.graph.modes import disable_compile
from nervure.graph.preserve import restore_after
from nervure.graph.sizes import Attribute, Expression, Size, expression_of, noting_numbers, plain, tagged_attributes
from nervure.graph.storages import StorageLog, alias_of

SMALL_CONSTANT = 4_000_000
SPARSE = frozenset({torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc})
MEASURES = frozenset({"numel", "nelement", "__len__", "stride"})
"""Calls that say something of the shape of a tensor."""
ESCAPES = frozenset({"numpy", "tolist", "__array__", "__dlpack__"})
"""Calls that give the contents of a tensor to something else than PyTorch."""


class Ref(NamedTuple):
    """The number of a value on the tape."""

    id: int


@dataclass(slots=True)
class Value:
    """What is known of one tensor: shape, dtype, and its contents where they are small integers (indices)."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    const: Tensor | None = None
    device: str = "cpu"
    """Where an operator can be called again; without weights that is the processor."""
    strides: tuple[int, ...] = ()
    offset: int = 0
    """How far its elements lie apart in memory along each axis, and where the first one is."""
    stored: int | None = None
    """How many entries a sparse tensor stores."""


@dataclass(slots=True)
class Call:
    """A call the user's code made by name (``Tensor.view``, ``torch.split``); ``tagged``: with sizes that remember."""

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    tagged: bool = False


@dataclass(slots=True)
class Entry:
    """One operator call. ``args`` and ``kwargs`` hold :class:`Ref` for tensors; ``outs`` the results in order."""

    op: Any
    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outs: tuple[Ref, ...]
    module: str
    call: Call | None = None
    _given: "list[Ref] | None" = field(default=None, init=False, repr=False, compare=False)

    @property
    def given(self) -> "list[Ref]":
        """The tensors among its arguments, in order; found once, since an entry is asked dozens of times."""
        if self._given is None:
            self._given = refs_in((*self.args, *self.kwargs.values()))
        return self._given


@dataclass(slots=True)
class WriteBack:
    """A write into a view, seen from what it is a view of: ``out`` is ``base`` with ``value`` at ``views`` of it."""

    base: Ref
    value: Ref
    views: "tuple[ViewStep, ...]"
    out: Ref
    module: str


@dataclass(slots=True)
class ModuleCall:
    """One run of a module: values in and out, entries ``start`` to ``stop``, and the form of its result.

    ``form`` is the number of the value it returned; for a list or a tuple, that of each of its tensors and None for all
    else in it; the name of the type of anything else. ``plain``: a tensor is the first positional argument.
    """

    name: str
    inputs: list[int]
    outputs: list[int]
    start: int
    stop: int
    form: Any
    plain: bool = False


@dataclass(slots=True)
class Run:
    """One run of the model: its first entry on the tape, the values it was given, and those it returned.

    ``named`` are the latter once more, by what they are found under in what was returned.
    """

    start: int
    inputs: list[int]
    outputs: list[int] = field(default_factory=list)
    named: dict[str, list[int]] = field(default_factory=dict)


@dataclass(slots=True)
class Tape:
    """The record of a run on each example, and of one in training mode where parts run in no other.

    See the module's docstring.
    """

    entries: list[Entry | WriteBack] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    named: dict[int, str] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    calls: list["ModuleCall"] = field(default_factory=list)
    numbers: list[Expression] = field(default_factory=list)
    """Attributes and axes that were computed or compared with as numbers."""
    lost: list[Expression] = field(default_factory=list)
    """Attributes and axes whose sizes may be used out of sight."""
    alike: list[tuple[Expression, Expression]] = field(default_factory=list)
    """Attributes and axes that were compared and found equal."""
    read: set[Attribute] = field(default_factory=set)
    """Attributes that were computed with, or given to a call."""
    measured: set[int] = field(default_factory=set)
    """Values whose sizes were read."""
    escapes: list[tuple[int, str]] = field(default_factory=list)
    """Values whose contents went where nothing is recorded, and by which call."""
    attentions: frozenset[str] = frozenset()
    """Modules of ``nn.MultiheadAttention``, which surgery resizes."""
    warm: bool = False
    """Whether the model was run once before, see :func:`record`."""
    storages: StorageLog = field(default_factory=StorageLog)
    """Where the values lie in memory."""

    @property
    def inputs(self) -> list[int]:
        """What the runs were given."""
        return [number for run in self.runs for number in run.inputs]

    @property
    def outputs(self) -> list[int]:
        """What the runs returned."""
        return [number for run in self.runs for number in run.outputs]

    def entries_of(self, run: int) -> range:
        """The numbers of the entries of a run."""
        stops = [*(one.start for one in self.runs), len(self.entries)]
        return range(stops[run], stops[run + 1])

    def idle(self, entries: Iterable[int]) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the model's tensors that none of these entries is given."""
        recorded = (self.entries[number] for number in entries)
        used = {ref.id for entry in recorded if isinstance(entry, Entry) for ref in entry.given}
        return {name: self.values[number].shape for number, name in self.named.items() if number not in used}

    def shape(self, ref: Ref) -> tuple[int, ...]:
        """Shape of a value."""
        return self.values[ref.id].shape


ViewStep: TypeAlias = tuple[Any, tuple[Any, ...], Mapping[str, Any], int]


class _Memory:
    """Numbers for living tensors; forgets the dead, so that a reused address is not mistaken for an old tensor."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._views: dict[int, tuple[weakref.ref[Tensor], weakref.ref[Tensor], tuple[ViewStep, ...]]] = {}

    def number(self, tensor: Tensor) -> int | None:
        entry = self._known.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def remember(self, tensor: Tensor, number: int) -> None:
        self._known[id(tensor)] = (weakref.ref(tensor), number)

    def is_view_of(self, out: Tensor, base: Tensor, step: ViewStep) -> None:
        """Note how ``out`` is seen in what it is a view of in the end: views in between may be gone by then."""
        root, steps = self.seen_in(base) or (base, ())
        self._views[id(out)] = (weakref.ref(out), weakref.ref(root), (*steps, step))

    def seen_in(self, tensor: Tensor) -> tuple[Tensor, tuple[ViewStep, ...]] | None:
        """What a tensor is a view of, and the steps there; None where it is no view, or what it was of is gone."""
        entry = self._views.get(id(tensor))
        if entry is None or entry[0]() is not tensor:
            return None
        root = entry[1]()
        return None if root is None else (root, entry[2])


class Recorder(SimpleOperators):
    """Writes every operator call on a tape.

    What is made of other operators (composite and higher-order ones) is written down as these.
    """

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape
        self.memory = _Memory()
        self.modules: list[str] = []
        self.call: Call | None = None
        self.sizes = True
        self._held: dict[int, list[Value]] = {}
        """Values whose contents are held by reference, by their memory."""

    def value(self, tensor: Tensor) -> Ref:
        """The number of ``tensor``, a new one where it was never seen."""
        number = self.memory.number(tensor)
        return Ref(number) if number is not None else self.new(tensor)

    def new(self, tensor: Tensor, contents: Tensor | None = None) -> Ref:
        """A new number for ``tensor``; its ``contents`` may be known where it has a shape only."""
        const = None
        if _is_small_constant(tensor):
            const = contents if tensor.is_meta else alias_of(tensor)
        device = "cpu" if tensor.device.type == "meta" else str(tensor.device)
        value = Value(tuple(tensor.shape), tensor.dtype, const, device)
        if tensor.layout == torch.strided:
            value.strides, value.offset = tensor.stride(), int(tensor.storage_offset())
        elif tensor.layout in SPARSE:
            value.stored = tensor._nnz()
        self.tape.storages.add(tensor, len(self.tape.entries), is_held=const is not None)
        self.tape.values.append(value)
        if const is not None and not const.is_meta:
            self._held.setdefault(const.untyped_storage()._cdata, []).append(value)
        number = len(self.tape.values) - 1
        self.memory.remember(tensor, number)
        return Ref(number)

    def keep_contents(self, written: Iterable[Tensor]) -> None:
        """Copy the contents of all values that share memory with what is about to be written."""
        for tensor in written:
            if _is_small_constant(tensor) and not tensor.is_meta:
                for value in self._held.pop(tensor.untyped_storage()._cdata, ()):
                    value.const = value.const.clone() if value.const is not None else None

    def _refs(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.value(value)
        if isinstance(value, list | tuple):
            return tuple(self._refs(v) for v in value)
        return value

    def compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run it, and write it down."""
        self.tape.storages.bury(len(self.tape.entries))
        refs = self._refs(_with_tensor_first(func, args))
        named = {key: self._refs(value) for key, value in kwargs.items()}
        module = self.modules[-1] if self.modules else ""
        writes = written_tensors(func, args, kwargs)
        self.keep_contents(writes)
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            out = self._number(args[0])
        else:
            out = func(*args, **kwargs)
        results = results_of(out)
        contents = self._contents(func, args, kwargs, results)
        outs = tuple(self.new(t, c) for t, c in zip(results, contents, strict=True))
        name = name_of(func)
        self.tape.entries.append(Entry(func, name, refs, named, outs, module, self.call))
        if writes:
            self._write_back([t for t in results if any(t is w for w in writes)])
        elif is_view(func) and args and isinstance(args[0], Tensor):
            for i, tensor in enumerate(results):
                self.memory.is_view_of(tensor, args[0], (func, refs, named, i))
        return out

    def _number(self, tensor: Tensor) -> Any:
        contents = self.tape.values[self.value(tensor).id].const
        return tensor.item() if contents is None else contents.item()

    def _contents(self, func: Any, args: Any, kwargs: Any, results: list[Tensor]) -> list[Tensor | None]:
        """Whole numbers computed without weights from whole numbers that are known: masks, positions, indices."""
        unknown: list[Tensor | None] = [None] * len(results)
        if not any(t.is_meta and _is_small_constant(t) for t in results):
            return unknown
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        known = {id(t): self.tape.values[self.value(t).id].const for t in given}
        if func._schema.name.endswith("_like") or func._schema.name.startswith("aten::new_"):
            # These read the shape alone.
            known = {id(t): torch.empty(t.shape, dtype=t.dtype) for t in given}
        if any(contents is None for contents in known.values()):
            return unknown

        def real(value: Any) -> Any:
            if isinstance(value, Tensor):
                return known[id(value)].clone()  # type: ignore[union-attr]
            return torch.device("cpu") if isinstance(value, torch.device) else value

        made: list[Tensor | None] = [*results_of(func(*tree_map(real, args), **tree_map(real, kwargs)))]
        return made if len(made) == len(results) else unknown

    def _write_back(self, written: list[Tensor]) -> None:
        for tensor in written:
            found = self.memory.seen_in(tensor)
            if found is not None:
                root, steps = found
                before, value = self.value(root), self.value(tensor)
                module = self.modules[-1] if self.modules else ""
                self.tape.entries.append(WriteBack(before, value, steps, self.new(root), module))


def _is_small_constant(tensor: Tensor) -> bool:
    is_whole = not tensor.is_floating_point() and not tensor.is_complex()
    return is_whole and tensor.layout == torch.strided and tensor.numel() <= SMALL_CONSTANT


def _with_tensor_first(func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Inside ``vmap`` a number may be given alone where an operator takes a tensor."""
    is_number = len(args) == 1 and isinstance(args[0], int | float | complex)
    takes_tensor = is_number and isinstance(func._schema.arguments[0].type, torch.TensorType)
    return (torch.tensor(args[0]),) if takes_tensor else args


@cache
def name_of(func: Any) -> str:
    """The name of an operator; PyTorch's own without their namespace."""
    return str(func._schema.name).removeprefix("aten::")


def results_of(out: Any) -> list[Tensor]:
    """The tensors among the results of an operator."""
    return [t for t in (out if isinstance(out, list | tuple) else [out]) if isinstance(t, Tensor)]


def written_tensors(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors that an operator writes into, of those that it is given."""
    written = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[i] if i < len(args) else kwargs.get(argument.name)
            if isinstance(given, Tensor):
                written.append(given)
    return written


def is_view(func: Any) -> bool:
    """Whether an operator returns views of what it is given."""
    returns = func._schema.returns
    return bool(returns) and returns[0].alias_info is not None and not returns[0].alias_info.is_write


_LIKE_CALLS = {"expand_as": "expand", "view_as": "view", "reshape_as": "reshape"}


class _Names(TorchFunctionMode):
    """Tells the recorder which call of the user's code is running, and whether its sizes come from attributes."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if name == "__get__":
            out = func(*args, **kwargs)
            return self._tag_shape(args[0], out) if type(out) is torch.Size else out
        if name in MEASURES and args:
            return self._shape_query(name, args[0], func(*args, **kwargs))
        if name in ESCAPES and args:
            escaped = self._recorder.value(_unwrap(args[0])[0])
            self._recorder.tape.escapes.append((escaped.id, name))
        if name == "size":
            out = func(*args, **kwargs)
            shape = self._tag_shape(args[0], args[0].shape)
            axis = args[1] if len(args) > 1 else kwargs.get("dim")
            return shape if type(out) is torch.Size else shape[axis]
        outer = self._recorder.call
        if name in _LIKE_CALLS:
            # The size of another tensor: as if its shape had been given.
            name, args = _LIKE_CALLS[name], (args[0], self._tag_shape(args[1], args[1].shape))
            func, kwargs = getattr(Tensor, name), {}
        sizes = tuple(_sizes(a) for a in args)
        named = {key: _sizes(value) for key, value in kwargs.items()}
        given = [e for s in (*sizes, *named.values()) for e in _expressions(s)]
        self._recorder.tape.read.update(a for e in given for a in e.attributes())
        tagged = bool(given)
        self._recorder.call = Call(name, sizes, named, tagged)
        try:
            # What torch's own code does with the sizes that it is given is no concern of the model's.
            out = func(*plain(args), **plain(kwargs)) if tagged else func(*args, **kwargs)
        finally:
            self._recorder.call = outer
        if tagged and out is not None and not tensors_in(out):
            self._recorder.tape.numbers += [leaf for size in given for leaf in size.leaves()]
        return out

    def _shape_query(self, name: str, tensor: Tensor, out: Any) -> Any:
        """What a call says that follows from the shape of a tensor alone."""
        shape = self._tag_shape(tensor, tensor.shape)
        if name in ("numel", "nelement"):
            return prod(shape)
        counted = shape[:1] if name == "__len__" else shape
        self._recorder.tape.numbers += [n.expression for n in counted if isinstance(n, Size)]
        return out

    def _tag_shape(self, tensor: Tensor, shape: torch.Size) -> torch.Size:
        if not self._recorder.sizes:
            return shape
        whole, axes = _unwrap(tensor)
        number = self._recorder.value(whole).id
        self._recorder.tape.measured.add(number)
        sizes = zip(shape, axes, strict=True)
        return torch.Size([Size.of(Expression(int(n), dimension=(number, axis))) for n, axis in sizes])


def _unwrap(tensor: Tensor) -> tuple[Tensor, list[int]]:
    """Of what a tensor inside ``vmap`` is a part, which is what operators are recorded of, and its axes there."""
    axes = list(range(tensor.ndim))
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        if torch._C._functorch.is_batchedtensor(tensor):
            batch = torch._C._functorch.maybe_get_bdim(tensor)
            axes = [axis + (axis >= batch) for axis in axes]
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor, axes


def _sizes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Tensor
    if isinstance(value, list | tuple):
        return tuple(_sizes(v) for v in value)
    if isinstance(value, slice):
        return slice(_sizes(value.start), _sizes(value.stop), _sizes(value.step))
    if isinstance(value, int):
        return expression_of(value)
    return None if value is None or isinstance(value, float | torch.dtype | torch.device) else value


def _expressions(value: Any) -> Iterator[Expression]:
    if isinstance(value, Expression):
        yield value
    elif isinstance(value, slice):
        yield from (v for v in (value.start, value.stop, value.step) if isinstance(v, Expression))
    elif isinstance(value, tuple):
        for inner in value:
            yield from _expressions(inner)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, buffers and plain tensor attributes by qualified name; shared tensors under their first name."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in _name_tensors(model, remove_duplicate=True):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor
    return found


def names_of_tensors(model: nn.Module) -> dict[str, list[str]]:
    """All names of each tensor, by its first as in :func:`named_tensors`: a head may share its weight with a table."""
    found: dict[int, list[str]] = {id(tensor): [name] for name, tensor in named_tensors(model).items()}
    for name, tensor in _name_tensors(model, remove_duplicate=False):
        if name not in found[id(tensor)]:
            found[id(tensor)].append(name)
    return {names[0]: names for names in found.values()}


def _name_tensors(model: nn.Module, *, remove_duplicate: bool) -> Iterator[tuple[str, Tensor]]:
    modules = [
        (f"{prefix}." if prefix else "", module)
        for prefix, module in model.named_modules(remove_duplicate=remove_duplicate)
    ]
    if _names_its_own(type(model)):
        yield from model.named_parameters(remove_duplicate=remove_duplicate)
        yield from model.named_buffers(remove_duplicate=remove_duplicate)
    else:
        # What these two do, with one walk over the modules for all.
        for held in ("_parameters", "_buffers"):
            for dot, module in modules:
                own = getattr(module, held)
                yield from ((dot + key, value) for key, value in own.items() if value is not None)
    for dot, module in modules:
        yield from ((dot + key, value) for key, value in vars(module).items() if isinstance(value, Tensor))


def _names_its_own(kind: type[nn.Module]) -> bool:
    """Whether a class names its tensors in another way than all modules do."""
    own = (kind.named_parameters, kind.named_buffers, kind._named_members)
    return own != (nn.Module.named_parameters, nn.Module.named_buffers, nn.Module._named_members)


def _form(recorder: Recorder, output: Any) -> Any:
    if isinstance(output, Tensor):
        return recorder.value(output).id
    if type(output) in (list, tuple):
        return type(output)([recorder.value(t).id if isinstance(t, Tensor) else None for t in output])
    return type(output).__name__


def require_seen(model: nn.Module) -> None:
    """Raise :class:`TraceError` where a module is TorchScript: nothing can be seen of what it does."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise TraceError(
                f"{name or 'the model'} is TorchScript, whose parts cannot be seen or cut. Give the module that it was "
                "made from, and script the result."
            )


@contextmanager
def running_modules(model: nn.Module, stack: list[str]) -> Iterator[None]:
    """While this lasts ``stack`` holds the names of the modules that run in this thread, outermost first."""
    mine, hooks = threading.get_ident(), []

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if stack and threading.get_ident() == mine:
            stack.pop()

    for name, module in model.named_modules():

        def enter(module: nn.Module, args: Any, name: str = name) -> None:
            if threading.get_ident() == mine:
                stack.append(name)

        hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _module_stack(model: nn.Module, recorder: Recorder) -> Iterator[None]:
    require_seen(model)
    names = {id(module): name for name, module in model.named_modules()}
    starts: list[tuple[list[int], int]] = []
    mine = threading.get_ident()

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        if threading.get_ident() != mine:
            return
        recorder.modules.append(names[id(module)])
        inputs = [recorder.value(t).id for t in tensors_in((args, kwargs))]
        starts.append((inputs, len(recorder.tape.entries)))

    def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not starts or threading.get_ident() != mine:
            return
        name = recorder.modules.pop()
        inputs, start = starts.pop()
        outputs = [recorder.value(t).id for t in tensors_in(output)]
        form = _form(recorder, output)
        plain = bool(args) and isinstance(args[0], Tensor)
        stop = len(recorder.tape.entries)
        recorder.tape.calls.append(ModuleCall(name, inputs, outputs, start, stop, form, plain))

    hooks = [m.register_forward_pre_hook(enter, with_kwargs=True) for m in model.modules() if id(m) in names]
    hooks += [m.register_forward_hook(leave, with_kwargs=True) for m in model.modules() if id(m) in names]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def plain_kernels(model: nn.Module) -> Iterator[None]:
    """Fused fast paths off, so that attention and recurrent layers run as operators that can be read."""
    fast, onednn = torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled()
    cudnn = torch._C._get_cudnn_enabled()
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    recurrent = any(isinstance(m, nn.RNNBase) for m in model.modules())
    torch.backends.mha.set_fastpath_enabled(False)
    torch._C._set_deterministic_algorithms(False)
    try:
        if recurrent:
            # The context managers of torch.backends also touch settings that warn on machines without them.
            torch._C._set_mkldnn_enabled(False)
            torch._C._set_cudnn_enabled(False)
        with disable_compile():
            yield
    finally:
        torch._C._set_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
        torch.backends.mha.set_fastpath_enabled(fast)
        torch._C._set_mkldnn_enabled(onednn)
        torch._C._set_cudnn_enabled(cudnn)


def record(
    model: nn.Module,
    example: Any,
    *,
    tag: bool = True,
    auxiliary: bool = True,
    warm: bool = False,
    lies: frozenset[Expression] = frozenset(),
) -> tuple[Tape, list[list[Tensor]]]:
    """Run ``model`` once on each example; return the tape and the tensors that it returned on each.

    Args:
        model: any module; its training flag is respected, and what it writes is put back.
        example: a tensor, a tuple of positional arguments, or a dict of keyword arguments; or a list of these.
        auxiliary: run once more in training mode where parameters were not used.
        tag: remember the calls of the user's code, and which integer attributes of modules arrive in sizes.
        warm: run once before, unrecorded, for a model that prepares something on its first run.
        lies: attributes and axes whose sizes are wrong numbers where their origin is not asked (see ``lost``).

    Raises:
        ForwardError: the model's forward raised; the message names the module, the cause is the model's own error.
        TraceError: nothing that was computed reached the output.
    """
    given = Inputs.several(example)
    tape = Tape(warm=warm)
    recorder = Recorder(tape)
    tape.attentions = frozenset(n for n, m in model.named_modules() if isinstance(m, nn.MultiheadAttention))
    with restore_after(model, given), torch.no_grad(), plain_kernels(model), ExitStack() as stack:
        if warm:
            _call(model, given[0], recorder)
        numbers = _number_given(model, given, recorder)
        recorder.sizes = tag
        if tag:
            noted = stack.enter_context(noting_numbers(lies))
            stack.enter_context(tagged_attributes(model))
            tape.numbers, tape.read, tape.alike = noted.numbers, noted.attributes, noted.alike
        stack.enter_context(_module_stack(model, recorder))
        stack.enter_context(recorder)
        if tag:
            stack.enter_context(_Names(recorder))
        outputs = []
        for numbered, inputs in zip(numbers, given, strict=True):
            tape.runs.append(Run(len(tape.entries), numbered))
            found = _call(model, inputs, recorder)
            outputs.append(outputs_in(found))
            if not outputs[-1]:
                raise TraceError(f"the model returned {type(found).__name__} without a tensor in it to trace.")
            _note_outputs(recorder, found)
        if auxiliary and unreached_parameters(model, tape):
            tape.runs.append(Run(len(tape.entries), []))
            _run_in_training_mode(model, given[0], recorder)
        stack.close()
        # Copies: an output may be a buffer, which is put back.
        copies = [[t.clone() for t in found] for found in outputs]
    return tape, copies


def _number_given(model: nn.Module, given: Sequence[Inputs], recorder: Recorder) -> list[list[int]]:
    """Number the tensors of the model, and those of each example; the numbers of the latter."""
    tape = recorder.tape
    for name, tensor in named_tensors(model).items():
        tape.named[recorder.new(tensor).id] = name
    known = len(tape.values)
    for tensor in tensors_in(given):
        if recorder.memory.number(tensor) is None:
            recorder.new(tensor, getattr(tensor, CONTENTS, None))
    numbers = ([recorder.value(tensor).id for tensor in tensors_in(inputs)] for inputs in given)
    return [[number for number in own if number >= known] for own in numbers]


def _call(model: nn.Module, inputs: Inputs, recorder: Recorder) -> Any:
    try:
        return inputs.call(model)
    except TraceError:
        raise
    except Exception as error:
        where = recorder.modules[-1] if recorder.modules else ""
        place = f" in {where!r}" if where else ""
        raise ForwardError(
            f"the model's forward raised {type(error).__name__}{place}: {error}. "
            f"The example was {inputs}; check that it is what the model expects."
        ) from error


def unreached_parameters(model: nn.Module, tape: Tape) -> list[str]:
    """Parameters that no run used: those of auxiliary heads, say, or of experts that got no tokens."""
    idle = tape.idle(range(len(tape.entries)))
    return [name for name, _ in model.named_parameters() if name in idle]


def refs_in(value: Any) -> list[Ref]:
    """All references in nested arguments, in order."""
    if isinstance(value, Ref):
        return [value]
    if isinstance(value, tuple | list):
        return [ref for inner in value for ref in refs_in(inner)]
    return []


def _note_outputs(recorder: Recorder, found: Any) -> None:
    run = recorder.tape.runs[-1]
    run.outputs = [recorder.value(t).id for t in outputs_in(found)]
    run.named = {name: [recorder.value(t).id for t in own] for name, own in outputs_by_name(found).items()}


def _run_in_training_mode(model: nn.Module, inputs: Inputs, recorder: Recorder) -> None:
    """Run once more in training mode; auxiliary heads join the tape."""
    modes = {module: module.training for module in model.modules()}
    if all(modes.values()):
        return
    recorder.modules.clear()
    try:
        for module in modes:
            # Batch norms do not train on one sample, and which mode they are in says nothing about units.
            module.training = not isinstance(module, nn.modules.batchnorm._BatchNorm)
        _note_outputs(recorder, inputs.call(model))
    except Exception:  # a batch of one may not be trainable; evaluation mode was traced all the same
        recorder.modules.clear()
    finally:
        for module, training in modes.items():
            module.training = training
