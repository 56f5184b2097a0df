"""A device of the processor's own memory that torch takes for another one, to try on it what a GPU can change."""

import hashlib
import os
import subprocess
import types
from pathlib import Path

import torch

NAME = "second"
SOURCE = Path(__file__).with_name("device.cpp")
LIBRARIES = ("torch", "torch_cpu", "c10")


def device_of(name: str) -> torch.device:
    """A device by its name; this one is built and made known where it is asked for."""
    return register() if name == NAME else torch.device(name)


def register() -> torch.device:
    """Build the device, unless it is built, make it known to torch, and return it.

    Raises:
        RuntimeError: it cannot be compiled.
    """
    if torch._C._get_privateuse1_backend_name() != NAME:
        torch.utils.rename_privateuse1_backend(NAME)
        torch._register_device_module(NAME, _module())
        torch.ops.load_library(_built())
        torch.utils.generate_methods_for_privateuse1_backend()
        # Without it ``Module.to`` makes other parameters, and tied ones part: on a GPU they stay what they are.
        torch.__future__.set_swap_module_params_on_conversion(True)
    return torch.device(NAME, 0)


def _module() -> types.ModuleType:
    """What torch asks a device for."""
    module = types.ModuleType(f"torch.{NAME}")
    told = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_is_in_bad_fork": lambda: False,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "manual_seed_all": lambda seed: None,
        "get_rng_state": lambda device=NAME: torch.get_rng_state(),
        "set_rng_state": lambda state, device=NAME: torch.set_rng_state(state),
        "get_amp_supported_dtype": lambda: [torch.bfloat16, torch.float16],
    }
    for name, answer in told.items():
        setattr(module, name, answer)
    return module


def _built() -> Path:
    """The compiled device; it is kept for as long as its source and torch stay what they are."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nervure-tests"
    known = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    path = folder / f"{NAME}-{known}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        subprocess.run(_command(draft), check=True, capture_output=True, text=True)
        draft.replace(path)
    return path


def _command(target: Path) -> list[str]:
    place = Path(torch.__file__).parent
    include, library = place / "include", place / "lib"
    headers = [f"-I{include}", f"-I{include / 'torch' / 'csrc' / 'api' / 'include'}"]
    linked = [f"-L{library}", f"-Wl,-rpath,{library}", *(f"-l{name}" for name in LIBRARIES)]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"
    compiler = os.environ.get("CXX", "c++")
    return [compiler, "-O1", "-std=c++20", "-fPIC", "-shared", "-w", abi, *headers, str(SOURCE), "-o", str(target), *linked]
