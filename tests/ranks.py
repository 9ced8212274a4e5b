"""Processes for tests of torch.distributed: started once, joined in a gloo group, and given functions to run."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

LIMIT = 120.0  # seconds that one function may take; a hang is a failure
_GRACE = 5.0  # seconds that the other ranks have after one has failed

needs_fsdp = pytest.mark.skipif(
    not hasattr(torch.cpu.current_stream(), "record_event"), reason="fully_shard does not run on this PyTorch's CPU"
)


class Ranks:
    """``world`` processes, in a gloo group, that start when there is something to run, and again after a failure."""

    def __init__(self, world: int) -> None:
        self.world = world
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """``function(*args)`` on every rank; what each returned. It fails with the output of all if one raises."""
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send((function, args))
        answers: list[Any] = [None] * self.world
        deadline = time.monotonic() + LIMIT
        for rank, pipe in enumerate(self._pipes):
            try:
                if not pipe.poll(max(0.0, deadline - time.monotonic())):
                    answers[rank] = (False, "no answer")
                else:
                    answers[rank] = pipe.recv()
            except EOFError:
                answers[rank] = (False, "the process ended")
            if not answers[rank][0]:
                deadline = min(deadline, time.monotonic() + _GRACE)
        if all(fine for fine, _ in answers):
            return [value for _, value in answers]
        self.stop()
        outputs = [path.read_text(errors="replace")[-5000:] for path in self._logs]
        reports = (
            f"--- rank {rank}: {answers[rank][1]}\n{output}"
            for rank, output in enumerate(outputs)
            if not answers[rank][0]
        )
        pytest.fail("\n".join(reports), pytrace=False)

    def stop(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.terminate()
            process.join()
        self._processes, self._pipes = [], []

    def _start(self) -> None:
        # One process imports for all; it has no threads when it is forked.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(
            ["pytest", "s4_fast.distributed", "s4_fast.state_spaces", "torch.distributed.fsdp"]
        )
        directory = Path(tempfile.mkdtemp(prefix="s4_fast_ranks_"))  # a new one: a leftover would join a wrong group
        self._logs = [directory / f"rank{rank}.txt" for rank in range(self.world)]
        for rank in range(self.world):
            here, there = context.Pipe()
            arguments = (rank, self.world, str(directory / "store"), str(self._logs[rank]), there)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            there.close()
            self._processes.append(process)
            self._pipes.append(here)


def _serve(rank: int, world: int, store: str, log: str, pipe: Connection) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, function(*args)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
