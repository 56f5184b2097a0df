"""``python docs/demo.py``: what ``make demo`` and ``make demo-lm`` do.

It says first what it will cost, makes an environment of its own, and is never silent for long. Standard library alone,
since nothing is installed when it begins.
"""

import argparse
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parent.parent
PATIENCE = 4.0
"""Seconds of silence after which a line says that the work goes on."""
LONGEST = 118
"""Characters of a line of pip that are shown: it lists all packages in one."""
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
MISSING = "No matching distribution found for torch"
PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads that wait for one another sleep meanwhile: on busy cores that takes half of the time."""
WORTH_SHOWING = re.compile(r"\s*(Downloading|Processing|Installing|Building|Successfully|ERROR|WARNING|error)")
TOLD = """\
What comes: a small network is trained on pictures of clothes. Seven eighths of its work are then taken away in six
ways, without any further training, and what is left is compared on test pictures and timed in ONNX Runtime.

What it costs, on two free cores and an ordinary line:
  1. an environment of its own: torch for CPUs (about 190 MB to download) and 65 MB beside it, 930 MB once unpacked;
     less than a minute. Nothing else on this machine changes. To undo it: rm -r {env}
  2. the demo itself: about a minute, on one core. The second time there is only this.
"""
TOLD_LM = """\
What comes: a quarter of the parameters of a language model leaves, what stays is fitted on the text in
{text}, and the smaller model is written as a folder that transformers loads.
Then both go on with the same prompt. (Other text: TEXT=file; another prompt: PROMPT="...")

What it costs: an environment of its own in {env} (torch for CPUs, about 190 MB to
download, and 65 MB beside it; what is there is used), and about four minutes on two free cores for 135 M parameters,
most of them the fit. No training. Stopped, the same command goes on where it was.
"""
WHICH_MODEL = """\
MODEL={model!r} is no folder with a config.json. Give one that transformers loads, with its tokenizer:
  make demo-lm MODEL=my-model
For instance SmolLM2-135M, with the command of the package huggingface_hub:
  hf download HuggingFaceTB/SmolLM2-135M --local-dir my-model
"""
CUDA = """\
No torch for CPUs was found, so the usual one is installed. On Linux that brings CUDA along: gigabytes instead of
190 MB. Stop here (Ctrl-C) if that is too much, and name a place that has one: PIP_EXTRA_INDEX_URL=... make demo
"""


def main() -> int:
    """Say what it costs, make the environment where it is not there, and run the demo."""
    parser = argparse.ArgumentParser(
        description="Train, prune and compare a small network; or shrink a language model."
    )
    parser.add_argument("--env", type=Path, default=ROOT / ".venv-demo", help="folder of the environment")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "demo-sweep", help="folder of the results")
    parser.add_argument("--lm", metavar="MODEL", help="shrink the language model in this folder instead")
    parser.add_argument("--text", default="", help="a file or folder of texts to fit the language model on")
    parser.add_argument("--prompt", default="", help="what both language models are to go on with")
    options = parser.parse_args()
    start = time.monotonic()
    if options.lm is not None:
        shrink_language_model(options.env, options.lm, options.text or str(ROOT / "docs" / "decisions"), options.prompt)
    else:
        compare_cuts(options.env, options.folder)
    print(f"{time.monotonic() - start:.0f} s in all.")
    return 0


def compare_cuts(env: Path, folder: Path) -> None:
    """The demo: a network, cut in several ways."""
    print(TOLD.format(env=env), flush=True)
    python = make_environment(env, ["onnx"])
    clear(folder)
    follow([str(python), "-m", "nervure", "sweep", "examples/demo.toml", "--folder", str(folder)], "the demo")
    print(f"\nLook at it in a browser: {folder / 'sweep.html'}")


def shrink_language_model(env: Path, model: str, text: str, prompt: str) -> None:
    """The demo of language models: a quarter of the parameters leaves, and both models go on with a prompt."""
    dense = Path(model).expanduser().resolve()
    if not model or not (dense / "config.json").exists():
        raise SystemExit(WHICH_MODEL.format(model=model))
    print(TOLD_LM.format(env=env, text=text), flush=True)
    python, smaller = make_environment(env, ["transformers", "metrics"]), ROOT / "runs" / "demo-lm" / dense.name
    data = f"text:{Path(text).expanduser().resolve()}"
    options = ["--keep", "0.75", "--data", data, "--out", str(smaller)]
    follow([str(python), "-m", "nervure", "prune", f"hf:{dense}", *options], "pruning")
    print(f"\nThe same prompt for both. {smaller} is an ordinary folder of transformers.", flush=True)
    follow([str(python), "examples/side_by_side.py", str(dense), str(smaller), *filter(None, [prompt])], "answering")


def make_environment(env: Path, extras: Sequence[str]) -> Path:
    """An environment with this nervure and these extras in ``env``, made once; returns its Python."""
    python = env / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    pins, stamp = ROOT / "constraints-ci.txt", env / f".stamp-{'-'.join(extras)}"
    if stamp.exists() and stamp.stat().st_mtime > max(p.stat().st_mtime for p in (pins, ROOT / "pyproject.toml")):
        return python
    if not python.exists():
        follow([sys.executable, "-m", "venv", str(env)], "making the environment")
    # Byte code is written when a module is first used: compiling all of torch would take as long as installing it.
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-compile", "-c", str(pins)]
    install(pip, pinned("torch", pins.read_text(encoding="utf-8")), f"{ROOT}[{','.join(extras)}]")
    stamp.touch()
    print(f"The environment is ready: {env}\n", flush=True)
    return python


def pinned(name: str, pins: str) -> str:
    """The version of a package that a file of constraints pins."""
    found = re.search(rf"^{name}==(\S+)$", pins, re.MULTILINE)
    if found is None:
        raise SystemExit(f"{name} is not pinned in constraints-ci.txt.")
    return found[1]


def install(pip: Sequence[str], version: str, nervure: str) -> None:
    """Install nervure with torch for CPUs, from wherever there is one; else with the usual torch."""
    for torch in torch_choices(version, sys.platform):
        if torch == [f"torch=={version}"] and sys.platform.startswith("linux"):
            print(CUDA, flush=True)
        try:
            follow([*pip, *torch, "--editable", nervure], "installing", show=WORTH_SHOWING)
        except Failed as error:
            if MISSING not in error.output:
                raise
            print("No torch for CPUs there. Looking elsewhere.", flush=True)
        else:
            return
    raise SystemExit(f"torch {version} is not to be had for this Python and machine. Another Python may have it.")


def torch_choices(version: str, platform: str) -> list[list[str]]:
    """What to ask pip for, one after the other: only on Linux is the usual torch more than one for CPUs."""
    usual = [f"torch=={version}"]
    if not platform.startswith("linux"):
        return [usual]
    # First where this machine's pip looks anyway: there may be no way to any other place.
    return [[f"torch=={version}+cpu"], [f"torch=={version}+cpu", "--extra-index-url", CPU_INDEX], usual]


class Failed(SystemExit):
    """A command that failed; ``output`` is what it said."""

    def __init__(self, command: Sequence[str], code: int, output: str) -> None:
        super().__init__(f"\nfailed with {code}: {' '.join(command)}\n{output[-3000:]}")
        self.output = output


def follow(command: Sequence[str], what: str, *, show: re.Pattern[str] | None = None) -> None:
    """Run a command in the project's folder and pass on its lines, with a line of our own wherever it is silent.

    Args:
        command: its words.
        what: what to call it in lines of our own.
        show: pass on only lines that begin like this; None: all.

    Raises:
        Failed: it ended with another code than 0.
    """
    said: list[str] = []
    # -u, since what is piped is held back otherwise.
    with subprocess.Popen(
        [command[0], "-u", *command[1:]],
        cwd=ROOT,
        env=PATIENT | os.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    ) as running:
        try:
            _pass_on(running, what, show, said)
        except BaseException:
            running.terminate()
            raise
    code = running.returncode
    if code:
        raise Failed(command, code, "".join(said))


def _pass_on(running: "subprocess.Popen[str]", what: str, show: re.Pattern[str] | None, said: list[str]) -> None:
    """Print what is worth showing, or that the work goes on; ``said`` gets every line."""
    heard: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_listen, args=(running.stdout, heard), daemon=True).start()
    start = spoke = time.monotonic()
    while True:
        try:
            line = heard.get(timeout=max(0.0, spoke + PATIENCE - time.monotonic()))
        except queue.Empty:
            line = f"  ... {what}, {time.monotonic() - start:.0f} s"
        else:
            if line is None:
                return
            said.append(line)
            if show and not show.match(line):
                continue
        print(line.rstrip() if show is None else line.rstrip()[:LONGEST], flush=True)
        spoke = time.monotonic()


def _listen(stream: IO[str], heard: "queue.Queue[str | None]") -> None:
    for line in stream:
        heard.put(line)
    heard.put(None)


def clear(folder: Path) -> None:
    """Remove what an earlier demo left, and nothing else."""
    if any((folder / notes).exists() for notes in ("sweep.json", "steps.json")):
        shutil.rmtree(folder)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
