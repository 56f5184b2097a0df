"""Which commit the working folder is at, asked so that nothing which that folder holds is run."""

import os
import subprocess
from collections.abc import Mapping
from types import MappingProxyType

ALONE = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
"""Shows what a repository itself says, without what its user does."""


def commit() -> str | None:
    """The commit of the working folder, with ``+`` where files differ from it; None where there is none.

    A folder that somebody sent may be a repository whose own settings name commands that ``git status`` runs: filters,
    for files that changed. Where they do, files are not looked at, and ``?`` stands for ``+``.
    """
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        if _git("config", "--name-only", "--get-regexp", r"^filter\..*\.(clean|process)$", settings=ALONE):
            return f"{head}?"
        changes = _git("status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all")
    except OSError:
        return None
    return f"{head}+" if changes else head or None


def _git(*words: str, settings: Mapping[str, str] = MappingProxyType({})) -> str:
    """What git says; nothing where it fails. No monitor of files is run, and nothing is fetched."""
    command = ["git", "-c", "core.fsmonitor=false", *words]
    environment = {**os.environ, "GIT_ALLOW_PROTOCOL": "none", **settings}
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10, env=environment
        ).stdout.strip()
    except subprocess.SubprocessError:
        return ""
