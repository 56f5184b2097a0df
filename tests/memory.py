"""How much memory a call holds at once, counted by the allocator."""

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile


def peak_of(call: Callable[[], Any]) -> int:
    """The most bytes of tensors that are held at once while it runs, beyond what is held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        call()
    now, most = 0, 0
    for event in found.profiler.kineto_results.events():
        now += event.nbytes() if event.name() == "[memory]" else 0
        most = max(most, now)
    return most
