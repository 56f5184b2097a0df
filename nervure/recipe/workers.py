"""Who does the jobs: this process, others beside it, or those of a Ray cluster. Jobs and answers are plain data."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias, final

from nervure.core.extras import require_extra
from nervure.core.files import file_errors
from nervure.errors import ArgumentError

Plain: TypeAlias = Mapping[str, Any]
Work: TypeAlias = Callable[[Plain], Plain]


class Pool(Protocol):
    """Does jobs, ``workers`` at once at most."""

    workers: int

    def submit(self, job: Plain) -> Future[Plain]:
        """Begin a job; the future has its answer, or raises ``BrokenExecutor`` where the worker died."""

    def __enter__(self) -> Self:
        """Work may begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all work, done or not."""


def pool_of(work: Work, workers: int, ray: str = "") -> Pool:
    """Who works: this process for 1 worker, others beside it for more, a Ray cluster where its address is given.

    Args:
        work: what is done with a job.
        workers: how many jobs at once; 0: as many as there are cores (of the cluster, with ``ray``).
        ray: ``"auto"``, ``"local"`` or the address of a cluster; empty: no Ray.

    Raises:
        ArgumentError: ``workers`` is negative.
        MissingExtraError: Ray is not installed.
    """
    if workers < 0:
        raise ArgumentError(f"workers={workers} must be 0 or more; 0 takes one for each core.")
    if ray:
        return Cluster(work, workers, ray)
    count = workers or _cores()
    return Here(work) if count == 1 else Beside(count)


def python(module: str, *words: str) -> list[str]:
    """The command that runs a module of ours in a process beside this one, to be given :func:`environment`.

    A ``torch.py`` in the working folder is nothing to it (``-P``), unless this process would import that too.
    """
    return [sys.executable, "-P", "-m", module, *words]


def environment(threads: int) -> dict[str, str]:
    """What can be imported here can be imported there: a network of the user's own, for one."""
    path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@final
class Here:
    """Does each job at once, in this process."""

    def __init__(self, work: Work) -> None:
        self.work, self.workers = work, 1

    def submit(self, job: Plain) -> Future[Plain]:
        """Do the job."""
        future: Future[Plain] = Future()
        future.set_result(self.work(job))
        return future

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@final
class Beside:
    """Does jobs in processes of their own, which are started once and end with this one, however it ends.

    ``command`` starts one: it answers each line of its input by a line, and ends where its input does.
    """

    def __init__(self, workers: int, command: Sequence[str] = python("nervure.recipe.worker")) -> None:
        self.workers, self._command = workers, list(command)
        self._threads = ThreadPoolExecutor(workers)
        self._mine = threading.local()
        self._all: list[subprocess.Popen[str]] = []

    def submit(self, job: Plain) -> Future[Plain]:
        """Begin the job in the next process that is free."""
        return self._threads.submit(self._ask, job)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._all:
            process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._all:
            process.communicate()

    def _ask(self, job: Plain) -> Plain:
        process = self._process()
        try:
            print(json.dumps(job), file=process.stdin, flush=True)
            answer: dict[str, Any] = json.loads(process.stdout.readline())  # type: ignore[union-attr]
        except (OSError, ValueError) as error:
            code = process.wait()
            raise BrokenExecutor(f"the process that worked on it died (exit code {code}); out of memory?") from error
        return answer

    def _process(self) -> "subprocess.Popen[str]":
        """The process of this thread, a new one where it has none or it died."""
        process: subprocess.Popen[str] | None = getattr(self._mine, "process", None)
        if process is None or process.poll() is not None:
            pipe = subprocess.PIPE
            with file_errors(self._command[0], "start"):
                process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, text=True, env=environment(1))
            self._mine.process = process
            self._all.append(process)
        return process


@final
class Cluster:
    """Does jobs on a Ray cluster, whose machines must see the folder of the results under the same path."""

    def __init__(self, work: Work, workers: int, address: str) -> None:
        self._ray: Any = require_extra("ray", "a sweep on a cluster", "ray")
        if not self._ray.is_initialized():
            self._ray.init(
                address=None if address == "local" else address,
                num_cpus=workers or None if address == "local" else None,
                include_dashboard=False,
            )
        self.workers = workers or max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        self._work = self._ray.remote(num_cpus=1, max_retries=0)(work)
        self._threads = ThreadPoolExecutor(self.workers)

    def submit(self, job: Plain) -> Future[Plain]:
        """Begin the job wherever the cluster has a free core."""
        return self._threads.submit(self._ask, job)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._ray.shutdown()

    def _ask(self, job: Plain) -> Plain:
        try:
            answer: dict[str, Any] = self._ray.get(self._work.remote(job))
        except self._ray.exceptions.RayError as error:
            raise BrokenExecutor(f"the cluster lost it: {str(error).splitlines()[0]}") from error
        return answer
