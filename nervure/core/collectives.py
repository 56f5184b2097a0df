"""What the processes of one training tell each other: sums, rows and texts, the same in all of them afterwards.

Outside a process group of torch.distributed nothing here does anything: what goes in comes out.
"""

import hashlib
import json
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from nervure.errors import ArgumentError, DataError, NervureError, NervureWarning

T = TypeVar("T")
FEW = 8
PATIENCE = 60.0
"""Seconds after which a process that waits says so."""
ALONE = (
    "All processes call the same functions in the same order; what one does alone stands within "
    "nervure.distributed.reduce_over(None)."
)
_GROUP: ContextVar[Any] = ContextVar("process group", default="all")


def is_sharded(tensor: Tensor) -> bool:
    """Whether each process holds a part of the tensor only (a ``DTensor``)."""
    return type(tensor).__name__ == "DTensor"


def whole(tensor: Tensor) -> Tensor:
    """A tensor that is sharded over processes, put together; any other as it is. All processes have to call this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def release_whole(modules: Iterable[Any]) -> None:
    """Let go of the whole weights that modules sharded by ``fully_shard`` have put together for a forward pass."""
    for module in modules:
        if any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__):
            module.reshard()


def require_unsharded(
    tensors: Iterable[Tensor], what: str, error: type[NervureError] = ArgumentError, instead: str = ""
) -> None:
    """Raise where each process holds a part of the tensors only.

    Args:
        tensors: of a model.
        what: needs them whole.
        error: is raised.
        instead: what does the same with shards, as a sentence.
    """
    if any(map(is_sharded, tensors)):
        raise error(
            f"{what} needs whole weights, and this model is sharded: every process holds a part of them. Do it before "
            "fully_shard; or put the weights together first: nervure.distributed.put_together(sharded, model), where "
            "model is an ordinary one of the same sizes, and shard again after it." + f" {instead}" * bool(instead)
        )


@contextmanager
def group_used(group: Any) -> Iterator[None]:
    """Within the block, the processes that work together are those of ``group``; None: each is alone."""
    token = _GROUP.set(group)
    try:
        yield
    finally:
        _GROUP.reset(token)


def group() -> Any:
    """The process group; None is that of all processes."""
    chosen = _GROUP.get()
    return None if chosen == "all" else chosen


def count() -> int:
    """How many processes work together; 1 outside a process group."""
    # The cheap question first: this is asked where nobody has several processes.
    if _GROUP.get() is None or not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 1
    return torch.distributed.get_world_size(group())


def several() -> bool:
    """Whether more than one process works together."""
    return count() > 1


def rank() -> int:
    """The place of this process among those that work together, from 0 on."""
    return torch.distributed.get_rank(group()) if several() else 0


def portion(samples: int) -> int:
    """How many of so many samples are this process's: those at places rank, rank + count, ..."""
    return (samples - rank() + count() - 1) // count()


def require_portion(number: int, name: str) -> int:
    """The portion of ``number``; raises ArgumentError where a process would have none."""
    if number < count():
        raise ArgumentError(f"{name}={number} is less than the {count()} processes that share it. Give more.")
    return portion(number)


def meet(what: str) -> None:
    """Wait until all processes come to the same function; ``what`` is its name.

    Raises:
        ArgumentError: in all processes, where they call different functions.
    """
    if not several():
        return
    bell = threading.Timer(PATIENCE, _tell_of_waiting, (what, rank()))
    bell.daemon = True
    bell.start()
    try:
        require_same_text(what, ALONE)
    finally:
        bell.cancel()


def _tell_of_waiting(what: str, place: int) -> None:
    told = f"process {place} has waited {PATIENCE} s for the others to call {what} as well. {ALONE}"
    warnings.warn(told, NervureWarning, stacklevel=2)


def require_same_weights(tensors: Iterable[Tensor], what: str) -> None:
    """Raise ArgumentError, in all processes, where their models begin with other numbers; shards are not looked at.

    A few numbers of each tensor tell models apart that were made at random. ``what`` is who asks: all do.
    """
    if not several():
        return
    meet(what)
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        if not (is_sharded(tensor) or tensor.is_meta):
            digest.update(repr(tensor.detach().reshape(-1)[:FEW].double().tolist()).encode())
    require_same_text(
        f"weights {digest.hexdigest()[:8]}",
        "Give all the same model: nervure.distributed.send_model(model) sends that of process 0, and "
        f"torch.manual_seed before it is built makes all alike. {ALONE}",
    )


def in_step(items: Iterable[T]) -> Iterator[T]:
    """The items, until one of the processes has no more: a sharded model runs in all of them or in none."""
    given = iter(items)
    while True:
        mine = list(islice(given, 1))
        if add_up_numbers(len(mine))[0] < count():
            return
        yield mine[0]


def gather_texts(text: str) -> list[str]:
    """The texts of all processes, by rank."""
    if not several():
        return [text]
    # An empty buffer is refused, so a space stands before each.
    letters = torch.frombuffer(bytearray(f" {text}".encode()), dtype=torch.uint8).clone()
    return [part.cpu().numpy().tobytes().decode()[1:] for part in _gather(letters.to(_place()))]


def first_text(text: str) -> str:
    """The text of the first process."""
    return gather_texts(text)[0]


def require_same_text(text: str, told: str) -> None:
    """Raise ArgumentError, in all processes, where they say different things; ``told`` says what to do."""
    texts = gather_texts(text)
    for number, other in enumerate(texts):
        if other != texts[0]:
            raise ArgumentError(f"process 0 has {texts[0]}, process {number} has {other}. {told}")


def done_by_first(make: Callable[[], T], write: Callable[[T], Any], read: Callable[[Any], T]) -> T:
    """What the first process makes while the others wait, in all of them; ``write`` gives JSON that ``read`` takes.

    Raises:
        NervureError: in the others, where the first one raised.
    """
    if not several():
        return make()
    told: dict[str, Any] = {}
    failed: Exception | None = None
    if rank() == 0:
        try:
            with group_used(None):
                told = {"found": write(make())}
        except Exception as error:
            failed, told = error, {"error": f"{type(error).__name__}: {error}"}
    told = json.loads(first_text(json.dumps(told)))
    if failed is not None:
        raise failed
    if "error" in told:
        raise NervureError(f"process 0 failed, and the others wait for it: {told['error']}")
    return read(told["found"])


def send_first(tensors: Iterable[Tensor], source: int = 0) -> None:
    """Give all processes the tensors of the first one, or of another, in place."""
    if not several():
        return
    place = source if group() is None else torch.distributed.get_global_rank(group(), source)
    with torch.no_grad():
        for tensor in tensors:
            # As bytes: not every backend sends every type.
            held = tensor.detach().reshape(1) if tensor.dim() == 0 else tensor.detach().contiguous()
            sent = _movable(held.view(torch.uint8))
            torch.distributed.broadcast(sent, src=place, group=group())
            if sent.data_ptr() != tensor.data_ptr():
                tensor.copy_(sent.to(tensor.device).view(tensor.dtype).view(tensor.shape))


def add_up(tensors: Mapping[str, Tensor], kind: Literal["sum", "mean"] = "sum") -> dict[str, Tensor]:
    """For each name the sum, or the mean, over the processes; one that has no tensor of that name adds nothing.

    Raises:
        DataError: shapes differ between processes.
    """
    if not several():
        return dict(tensors)
    found = {}
    for name, (dtype, shape) in _layouts(tensors, every=False).items():
        mine = tensors.get(name)
        sent = torch.zeros(shape, dtype=dtype, device=_place()) if mine is None else _movable(mine.clone())
        torch.distributed.all_reduce(sent, group=group())
        sent = sent / count() if kind == "mean" else sent
        found[name] = sent.to(sent.device if mine is None else mine.device, dtype)
    return found


def add_up_one(tensor: Tensor) -> Tensor:
    """The sum of a tensor over the processes, in place where that can be; all give one of the same shape."""
    if several():
        torch.distributed.all_reduce(tensor, group=group())
    return tensor


def add_up_numbers(*numbers: float) -> tuple[float, ...]:
    """The sum of each number over the processes."""
    if not several():
        return numbers
    sent = torch.tensor(numbers, dtype=torch.float64, device=_place())
    torch.distributed.all_reduce(sent, group=group())
    return tuple(sent.tolist())


def merge_rows(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For each name that all processes have, the rows of all: first that of the first one, then of the second, ...

    So samples that were dealt in turn come back in their order.

    Raises:
        DataError: rows have other shapes in other processes.
    """
    if not several():
        return dict(tensors)
    found = {}
    for name in _layouts(tensors, every=True):
        tensor = tensors[name]
        parts = _gather(_movable(tensor))
        turns = torch.cat([torch.arange(len(part)) * len(parts) + number for number, part in enumerate(parts)])
        rows = torch.cat(parts)[turns.argsort().to(parts[0].device)]
        found[name] = rows.to(tensor.device, tensor.dtype)
    return found


def merge_words(words: Mapping[str, str]) -> dict[str, str]:
    """What any of the processes says of each name, that of the first that does."""
    if not several():
        return dict(words)
    found: dict[str, str] = {}
    for text in gather_texts(json.dumps(dict(words))):
        found = json.loads(text) | found
    return found


def _layouts(tensors: Mapping[str, Tensor], *, every: bool) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """By name, in one order, the dtype and the shape of what all processes have (``every``), or any has."""
    mine = {name: [str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()}
    theirs = [json.loads(text) for text in gather_texts(json.dumps(mine))]
    names = set.intersection(*map(set, theirs)) if every else set().union(*theirs)
    found = {}
    for name in sorted(names):
        kinds = [kinds[name] for kinds in theirs if name in kinds]
        start = 1 if every else 0
        if any((kind, shape[start:]) != (kinds[0][0], kinds[0][1][start:]) for kind, shape in kinds):
            shapes = " and ".join(sorted({str(tuple(shape)) for _, shape in kinds}))
            raise DataError(
                f"{name!r} has shapes {shapes} in processes that work together. Give all of them the same model, and "
                "batches of one form."
            )
        found[name] = (getattr(torch, kinds[0][0]), tuple(kinds[0][1]))
    return found


def _gather(tensor: Tensor) -> list[Tensor]:
    """The tensors of all processes, which may differ in their first axis only."""
    sizes = [torch.zeros(1, dtype=torch.int64, device=tensor.device) for _ in range(count())]
    torch.distributed.all_gather(
        sizes, torch.tensor([len(tensor)], dtype=torch.int64, device=tensor.device), group=group()
    )
    rows = [int(size) for size in sizes]
    padded = tensor.new_zeros((max(rows), *tensor.shape[1:]))
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in rows]
    torch.distributed.all_gather(parts, padded, group=group())
    return [part[:number] for part, number in zip(parts, rows, strict=True)]


def _movable(tensor: Tensor) -> Tensor:
    """The tensor where, and in a form in which, the processes can send it; its own memory where that is so already."""
    # Not every backend sends booleans.
    sent = tensor.detach().to(torch.uint8) if tensor.dtype == torch.bool else tensor.detach()
    is_there = sent.device.type == "cuda" or _place().type == sent.device.type
    return (sent if is_there else sent.to(_place())).contiguous()


def _place() -> torch.device:
    """Where small tensors have to be to be sent."""
    if torch.distributed.get_backend(group()) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
