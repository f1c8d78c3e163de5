"""Processes joined by gloo, for tests of what runs in several at once; importable, so that they can be spawned."""

import socket
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def spawn(function, processes, folder):
    """Run ``function(rank, processes)`` in processes joined by gloo; an exception in one fails the call."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_run, (processes, port, function, folder), nprocs=processes)
    assert len(list(Path(folder).iterdir())) == processes, "every process must reach its end"


def _run(rank, processes, port, function, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=processes)
    try:
        function(rank, processes)
        (Path(folder) / str(rank)).touch()
    finally:
        dist.destroy_process_group()
