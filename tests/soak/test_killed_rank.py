"""A rank that is killed in the middle of a distributed scan: the others fail in time, and say why."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from s4_fast import S4Layer, distributed

LIMIT = 60.0


def serve(rank: int, world: int, store: str, where: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(seconds=20)
    )
    torch.manual_seed(0)
    layer = distributed.split_time(S4Layer(4, 8))
    u = torch.randn(2, 6, 4, requires_grad=True)
    layer(u).sum().backward()
    if rank == 1 and where == "agree":
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 1 and where == "carry":
        distributed._gather = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
    try:
        loss = layer(u).sum()
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        loss.backward()
        pipe.send("no error")
    except RuntimeError as error:
        pipe.send(str(error))


@pytest.mark.parametrize(
    "where", ["carry", pytest.param("agree", marks=pytest.mark.slow), pytest.param("backward", marks=pytest.mark.slow)]
)
def test_the_others_fail_in_time_and_say_why(where: str, tmp_path: Path) -> None:
    context, world = multiprocessing.get_context("spawn"), 2 if where == "carry" else 3
    pipes, processes = [], []
    for rank in range(world):
        here, there = context.Pipe()
        process = context.Process(target=serve, args=(rank, world, str(tmp_path / "store"), where, there), daemon=True)
        process.start()
        there.close()
        pipes.append(here)
        processes.append(process)
    try:
        processes[1].join(2 * LIMIT)
        assert processes[1].exitcode == -signal.SIGKILL
        deadline = time.monotonic() + LIMIT
        for rank in range(world):
            if rank != 1:
                assert pipes[rank].poll(max(0.0, deadline - time.monotonic())), f"rank {rank} hangs"
                assert f"rank {rank} of {world} waited for another in vain" in pipes[rank].recv()
    finally:
        for process in processes:
            process.kill()
            process.join()
