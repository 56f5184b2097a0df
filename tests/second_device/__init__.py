"""A device of the processor's own memory that torch takes for another one, to try on it what a GPU can change."""

import hashlib
import os
import subprocess
import types
from pathlib import Path
from typing import Any

import torch
from torch import nn

NAME = "second"
SOURCE = Path(__file__).with_name("device.cpp")
LIBRARIES = ("torch", "torch_cpu", "c10")


def chosen() -> torch.device:
    """The device that ``NERVURE_TEST_DEVICE`` names, ``cuda`` where it is not set; ``second`` is this one."""
    return device_of(os.environ.get("NERVURE_TEST_DEVICE", "cuda"))


def is_there(device: torch.device) -> bool:
    """Whether tests can run there."""
    return device.type != "cuda" or torch.cuda.is_available()


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
        _keep_ties()
    return torch.device(NAME, 0)


def _keep_ties() -> None:
    """Tied parameters stay tied where a model moves here and back, as they do on a GPU."""
    real, depth = nn.Module._apply, [0]

    def apply(self: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        places: dict[int, list[tuple[nn.Module, str]]] = {}
        if not depth[0]:
            for module in self.modules():
                for name, parameter in module._parameters.items():
                    places.setdefault(id(parameter), []).append((module, name))
        depth[0] += 1
        try:
            moved = real(self, *args, **kwargs)
        finally:
            depth[0] -= 1
        for (first, known), *others in places.values():
            for module, name in others:
                module._parameters[name] = first._parameters[known]
        return moved

    nn.Module._apply = apply  # type: ignore[method-assign]


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
    how = ["-O1", "-std=c++20", "-fPIC", "-shared", "-w", abi]
    return [os.environ.get("CXX", "c++"), *how, *headers, str(SOURCE), "-o", str(target), *linked]
