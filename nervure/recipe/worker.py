"""Run as ``python -m nervure.recipe.worker``: does the jobs that come as lines of JSON, and ends when no more come."""

import json
import os
import queue
import signal
import sys
import threading

from nervure.recipe.trials import answer


def main() -> None:
    """Answer each line of standard input by a line of standard output."""
    # Ctrl-C reaches all processes of a terminal: who asked ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Whatever a network or a method prints must not get among the answers.
    out, sys.stdout = sys.stdout, sys.stderr
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    while True:
        print(json.dumps(answer(json.loads(lines.get()))), file=out, flush=True)


def _listen(lines: "queue.SimpleQueue[str]") -> None:
    for line in sys.stdin:
        lines.put(line)
    # Who asked is gone, even in the middle of a job: nobody would read the answer, and the files may be another's soon.
    os._exit(0)


if __name__ == "__main__":
    main()
