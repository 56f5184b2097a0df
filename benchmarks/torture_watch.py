"""What an attempt does besides computing: memory it takes, commands, modules, sockets and files it touches."""

import contextlib
import os
import sys
from pathlib import Path
from typing import Any, final

RUNS = frozenset(
    {
        "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "subprocess.Popen", "pty.spawn",
        "socket.connect", "socket.bind", "socket.getaddrinfo", "ctypes.dlopen", "pickle.find_class", "webbrowser.open",
    }
)  # fmt: skip
KNOWN = frozenset(sys.stdlib_module_names - {"this", "antigravity", "turtle"}) | {
    "nervure", "torch", "numpy", "PIL", "sklearn", "scipy", "safetensors", "msgspec", "filelock", "click", "jinja2",
    "markupsafe",
}  # fmt: skip
"""Packages that nervure itself imports when it needs them."""
COMMIT = ["git", "-c", "core.fsmonitor=false"]
"""Git is asked for the commit so that nothing runs which a repository names; that has tests of its own."""


@final
class Watch:
    """Notes what a reader of files has no use for: commands, sockets, strange modules, writing outside its folder."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._folder: str | None = None
        sys.addaudithook(self._note)

    @contextlib.contextmanager
    def watching(self, folder: Path) -> Any:
        """Note what happens in the block; writing below ``folder`` is allowed."""
        self.seen.clear()
        self._folder = str(folder)
        try:
            yield self.seen
        finally:
            self._folder = None

    def _note(self, event: str, given: tuple[Any, ...]) -> None:
        if self._folder is None:
            return
        if event == "subprocess.Popen" and list(given[1][: len(COMMIT)]) == COMMIT:
            return
        if event in RUNS or (event == "import" and str(given[0]).partition(".")[0] not in KNOWN):
            self.seen.append(f"{event} {given[0]!r:.80}")
        elif event == "open" and self._is_written(*given):
            self.seen.append(f"writes {given[0]!r:.80}")

    def _is_written(self, path: Any, _mode: Any, flags: Any) -> bool:
        if not isinstance(path, str | bytes | os.PathLike) or not (flags or 0) & (os.O_WRONLY | os.O_RDWR):
            return False
        return not os.path.abspath(os.fsdecode(path)).startswith((str(self._folder), "/dev/", "/proc/self/"))


@final
class Meter:
    """The most memory that this process held since :meth:`start`, beyond what it held then, in bytes."""

    def __init__(self) -> None:
        self._before = 0

    def start(self) -> None:
        """Forget the peak so far."""
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self._before = _held("VmRSS")

    def taken(self) -> int:
        """The peak since then."""
        return _held("VmHWM") - self._before


def _held(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:")), 0)
