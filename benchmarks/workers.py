"""Tasks in forked processes: one that crashes or hangs costs no other."""

import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any

Work = Callable[[Any, Any], Any]
Lost = Callable[[Any, Any, int | None], Any]


@dataclass
class Worker:
    """Tasks in a row, what they came to, and the process that does them."""

    name: Hashable
    todo: list[Any]
    found: dict[Any, Any] = field(default_factory=dict)
    process: Any = None
    pipe: Any = None
    heard: float = 0.0


def run_forked(
    queues: Mapping[Any, Sequence[Any]], work: Work, lost: Lost, *, jobs: int, seconds: float | None
) -> Iterator[tuple[Any, dict[Any, Any]]]:
    """Do the tasks of all queues, several queues at once; each is yielded when it is done.

    Args:
        queues: tasks by the name of their queue. A queue has one process at a time, and its next one after a loss.
        work: what a task of a queue comes to; called in the process.
        lost: what it comes to where its process ended with this code, or (None) was late.
        jobs: queues at a time.
        seconds: by the clock, that a task may take.
    """
    waiting, busy = [Worker(name, list(tasks)) for name, tasks in queues.items()], list[Worker]()
    while waiting or busy:
        while waiting and len(busy) < jobs:
            busy.append(waiting.pop(0))
            _start(busy[-1], work)
        wait([worker.pipe for worker in busy], timeout=1)
        for worker in list(busy):
            _listen(worker, lost, seconds)
            if worker.process is None and worker.todo:
                _start(worker, work)
            elif worker.process is None:
                busy.remove(worker)
                yield worker.name, worker.found


def _start(worker: Worker, work: Work) -> None:
    worker.pipe, theirs = multiprocessing.Pipe(duplex=False)
    todo = list(worker.todo)
    worker.process = multiprocessing.get_context("fork").Process(target=_work, args=(work, worker.name, todo, theirs))
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        # That there are threads: none of them is ours, and none holds a lock.
        worker.process.start()
    theirs.close()
    worker.heard = time.monotonic()


def _work(work: Work, name: Any, tasks: Sequence[Any], pipe: Any) -> None:
    for task in tasks:
        pipe.send(work(name, task))
    os._exit(0)


def _listen(worker: Worker, lost: Lost, seconds: float | None) -> None:
    """Take what has come; where the process is gone or late, note what became of the task it was at."""
    late = False
    try:
        while worker.pipe.poll():
            worker.found[worker.todo[0]] = worker.pipe.recv()
            del worker.todo[0]
            worker.heard = time.monotonic()
        late = seconds is not None and time.monotonic() - worker.heard > seconds
        if not late:
            return
        worker.process.kill()
    except (EOFError, OSError):
        pass
    worker.process.join()
    if worker.todo:
        task = worker.todo.pop(0)
        worker.found[task] = lost(worker.name, task, None if late else worker.process.exitcode)
    worker.process = None
