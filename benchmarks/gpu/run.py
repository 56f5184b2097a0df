"""Run all parts on a GPU: each in a process of its own with a limit of its own; one that fails does not stop others.

Only the standard library is imported here, so that what is missing can be told.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.pages import PAGES

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ROOT / "runs" / "gpu-packages"
NEEDED = ("torch", "numpy", "msgspec", "safetensors", "filelock")
TOTAL = 470
"""Seconds of everything."""
LEAST = 5
"""Seconds without which no part begins."""
MACHINE = """
import json, platform, torch
gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
print(json.dumps({
    "device": gpu.name if gpu else f"no GPU ({platform.machine()})",
    "memory_GiB": round(gpu.total_memory / 2**30) if gpu else None,
    "capability": f"{gpu.major}.{gpu.minor}" if gpu else None,
    "torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version(),
    "cudnn": torch.backends.cudnn.version() if gpu else None,
}))
"""


@dataclass(frozen=True)
class Part:
    """One part of the measurement.

    Attributes:
        name: of its files.
        command: what is run after ``python``.
        seconds: how long it may take.
        page: whose table its lines belong to; empty: it has none.
        needs: a package that it takes beside the others.
    """

    name: str
    command: tuple[str, ...]
    seconds: int
    page: str = ""
    needs: str = ""


TESTS = ("-m", "pytest", "-q", "-x", "--maxfail=20", "-c", "{out}/pytest.ini", "--rootdir=.", "--noconftest")
STAGES: tuple[tuple[Part, ...], ...] = (
    (Part("tests", (*TESTS, "-p", "no:cacheprovider", "tests/test_cuda.py"), 110, needs="pytest"),),
    (Part("training", ("-m", "benchmarks.gpu.training"), 55, "training"),),
    (Part("latency", ("-m", "benchmarks.gpu.latency"), 110, "latency"),),
    (Part("streamed", ("-m", "benchmarks.gpu.streamed"), 90, "streamed", needs="transformers"),),
    # Small networks leave a GPU idle most of the time: the three share it.
    tuple(
        Part(f"study-{name}", ("-m", "benchmarks.gpu.study", "--network", name), 220, "study")
        for name in ("ResNet-20", "ResNet-56", "VGG-16")
    ),
)
"""Parts that run one stage after the other, those of a stage at once."""


def main(words: Sequence[str] | None = None) -> int:
    """Run, and write the summary; 0 where all parts went well."""
    told = read(words)
    out = told.out or ROOT / "runs" / time.strftime("gpu-%Y%m%d-%H%M%S")
    out.mkdir(parents=True, exist_ok=True)
    surroundings = environment(told.device)
    missing = [name for name in NEEDED if not can_import(name, surroundings)]
    if missing:
        print(
            f"{sys.executable} lacks {', '.join(missing)}. nervure needs {', '.join(NEEDED)} and nothing else here. "
            f"Install them, or bring them in {PACKAGES}: benchmarks/gpu.sh says how.",
            file=sys.stderr,
        )
        return 2
    machine = look_at_machine(surroundings)
    print(f"{machine['device']}, torch {machine['torch']}; results: {out}", flush=True)
    deadline, states = time.monotonic() + told.seconds, list[dict[str, Any]]()
    for stage in STAGES:
        chosen = [part for part in stage if not told.only or part.name.startswith(tuple(told.only))]
        states += run_stage(chosen, told, out, surroundings, deadline)
        write_summary(out, machine, states, told)
    print((out / "summary.md").read_text(encoding="utf-8"))
    return int(any(state["state"] != "ok" for state in states))


def read(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh", description=__doc__)
    parser.add_argument("only", nargs="*", help="run only parts that begin so: tests, training, latency, study, ...")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu to try it")
    parser.add_argument("--quick", action="store_true", help="with little of everything")
    parser.add_argument("--out", type=Path, help="folder of results; default: runs/gpu-<time>")
    parser.add_argument(
        "--data", type=Path, help="folder of the four files of Fashion-MNIST, where it is not installed"
    )
    parser.add_argument("--seconds", type=float, default=TOTAL, help="of all parts together (%(default)s)")
    return parser.parse_args(words)


def environment(device: str) -> dict[str, str]:
    """Of the parts: what was brought along is found, and so is this checkout."""
    paths = [str(ROOT), str(PACKAGES), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "NERVURE_TEST_DEVICE": device,
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1" if device == "cpu" else os.environ.get("OMP_NUM_THREADS", "4"),
    }


def can_import(name: str, surroundings: Mapping[str, str]) -> bool:
    """Whether the parts will find a package."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is None)"
    return subprocess.run([sys.executable, "-c", code], env=surroundings, check=False, cwd=ROOT).returncode == 0


def look_at_machine(surroundings: Mapping[str, str]) -> dict[str, Any]:
    """What runs, and of which sources."""
    ran = subprocess.run(
        [sys.executable, "-c", MACHINE], env=surroundings, capture_output=True, text=True, check=False, cwd=ROOT
    )
    machine: dict[str, Any] = (
        json.loads(ran.stdout.splitlines()[-1])
        if ran.returncode == 0
        else {
            "device": f"unknown: {ran.stderr.strip().splitlines()[-1:]}",
            "torch": "unknown",
        }
    )
    return machine | {
        "driver": said("nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"),
        "commit": said("git", "rev-parse", "--short=9", "HEAD") or "unknown",
        "processors": os.cpu_count(),
    }


def said(*command: str) -> str:
    """What a command says; nothing where there is none."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ran.stdout.strip() if ran.returncode == 0 else ""


def run_stage(
    parts: Sequence[Part], told: argparse.Namespace, out: Path, surroundings: Mapping[str, str], deadline: float
) -> list[dict[str, Any]]:
    """Run parts at once, each until it ends or its time is over."""
    states, running = list[dict[str, Any]](), list[tuple[Part, subprocess.Popen[bytes], float, float]]()
    for part in parts:
        if part.needs and not can_import(part.needs, surroundings):
            states.append({"part": part.name, "state": f"left out: {part.needs} is not installed", "seconds": 0})
            continue
        limit = min(part.seconds, deadline - time.monotonic())
        if limit < LEAST:
            states.append({"part": part.name, "state": "left out: no time was left", "seconds": 0})
            continue
        running.append((part, start(part, told, out, surroundings), time.monotonic(), limit))
    return states + [finish(*one) for one in running]


def start(
    part: Part, told: argparse.Namespace, out: Path, surroundings: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    """The process of a part; what it says goes to a log."""
    (out / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n    ignore:not reached by the example\n")
    command = [sys.executable, *(word.replace("{out}", str(out.resolve())) for word in part.command)]
    if part.page:
        lines = out / f"{part.name}.jsonl"
        lines.unlink(missing_ok=True)
        command += ["--device", told.device, "--out", str(lines.resolve())]
        command += ["--quick"] if told.quick else []
        command += ["--data", str(told.data.resolve())] if told.data else []
    print(f"== {part.name}", flush=True)
    with (out / f"{part.name}.log").open("wb") as log:
        return subprocess.Popen(
            command, cwd=ROOT, env=surroundings, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def finish(part: Part, process: "subprocess.Popen[bytes]", begun: float, limit: float) -> dict[str, Any]:
    """How a part ended; it is stopped where it takes longer than it may."""
    try:
        code: int | None = process.wait(max(0.0, begun + limit - time.monotonic()))
    except subprocess.TimeoutExpired:
        code = None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    state = f"stopped after {limit:.0f} s" if code is None else "ok" if code == 0 else f"failed ({code})"
    seconds = round(time.monotonic() - begun, 1)
    print(f"== {part.name}: {state}, {seconds} s", flush=True)
    return {"part": part.name, "state": state, "seconds": seconds}


def write_summary(out: Path, machine: Mapping[str, Any], states: Sequence[Mapping[str, Any]], told: Any) -> None:
    """``summary.json`` and ``summary.md``: the machine, how each part ended, and the tables."""
    pages = {part.page: list[Any]() for stage in STAGES for part in stage if part.page}
    for part in (part for stage in STAGES for part in stage if part.page):
        pages[part.page] += read_lines(out / f"{part.name}.jsonl")
    whole = {"machine": machine, "quick": told.quick, "device": told.device, "parts": states, "rows": pages}
    (out / "summary.json").write_text(json.dumps(whole, indent=1), encoding="utf-8")
    text = [f"# On {machine['device']}", "", "Tried with little of everything: no results." if told.quick else ""]
    text += [", ".join(f"{name} {value}" for name, value in machine.items() if value and name != "device"), ""]
    text += ["| part | | seconds |", "|---|---|---|"]
    text += [f"| {s['part']} | {s['state']}{last_words(out, s)} | {s['seconds']} |" for s in states]
    for page, rows in pages.items():
        if rows:
            text += ["", f"## {page.capitalize()}", "", describe(page, rows)]
    (out / "summary.md").write_text("\n".join(text) + "\n", encoding="utf-8")


def describe(page: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of a part; lines that no table can be made of are shown as they are."""
    try:
        return PAGES[page](rows)
    except Exception as error:
        return f"{type(error).__name__}: {error}\n\n" + "\n".join(f"    {json.dumps(row)}" for row in rows)


def last_words(out: Path, state: Mapping[str, Any]) -> str:
    """The last line of the log of tests, which counts them, and of what failed."""
    log = out / f"{state['part']}.log"
    if not log.exists() or (state["state"] == "ok" and state["part"] != "tests"):
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f": {lines[-1].strip('= ')[:160].replace('|', '/')}" if lines else ""


def read_lines(path: Path) -> list[Any]:
    """All whole lines of a file."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            # The last one, of a part that was stopped.
            continue
    return found


if __name__ == "__main__":
    sys.exit(main())
