"""Two processes that train together."""

import os
import subprocess
import sys
from pathlib import Path

OPENING = """
import sys, torch, torch.distributed as dist
rank, where = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{where}", rank=rank, world_size=2)

def require_same(value):
    both = [torch.empty_like(value) for _ in range(2)]
    dist.all_gather(both, value)
    assert torch.equal(*both)
"""
CLOSING = """
dist.destroy_process_group()
print("same")
"""


def run_in_two(script: str, folder: Path) -> None:
    """Run ``script`` in both, where ``rank``, ``torch``, ``dist`` and ``require_same(tensor)`` are known."""
    command = [sys.executable, "-c", OPENING + script + CLOSING]
    running = [
        subprocess.Popen(
            [*command, str(rank), str(folder / "meeting")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    for process in running:
        out, err = process.communicate(timeout=400)
        assert out.strip() == "same", err
