"""Which case runs on which backend, and the worker process that measures them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import IO

from s4_fast import dispatch
from s4_fast.bench.cases import Case
from s4_fast.bench.evaluate import DIRECT, KERNEL_GIVEN
from s4_fast.bench.results import Row

# What keep_pages() sets; in the environment it also covers what is allocated before Python runs.
KEEP_PAGES = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "1000000000000"}


@dataclass(frozen=True)
class Job:
    """One case on one backend."""

    case: Case
    backend: str


def plan(cases: Iterable[Case], backends: Iterable[str] = (), *, compiled_at_run_time: bool = True) -> list[Job]:
    """The jobs for ``cases``: the baselines first, then every usable backend except ``reference``.

    Args:
        cases: what to measure.
        backends: the backends to measure instead; those that do not implement a case's op are left out.
        compiled_at_run_time: whether to include PyKeOps, which compiles for up to a minute at its first call.
    """
    status = dispatch.backends()
    chosen = tuple(backends)
    jobs = []
    for case in cases:
        names = [name for name in dispatch.implementations(case.op) if status[name].usable]
        if chosen:
            names = [name for name in names if name in chosen]
        else:
            names = [name for name in names if name != "reference" and (name != "keops" or compiled_at_run_time)]
        if names and case.direct:
            jobs.append(Job(case, DIRECT))
        if names and case.op == "ssm_scan" and not case.state:
            jobs.append(Job(case, KERNEL_GIVEN))
        jobs += [Job(case, name) for name in names]
    return jobs


def run(
    jobs: Iterable[Job], device: str, seconds: float, *, default_allocator: bool = False
) -> Generator[Row, None, None]:
    """Measure every job in a worker process and yield its row, in order.

    A worker that dies (killed for its memory, a crash in native code) costs the row of the job that it was at,
    which then carries the error; a new worker takes the rest.

    Args:
        jobs: what to measure.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:<index>"``.
        seconds: about how long each timing may take; a slow evaluation still runs a few times.
        default_allocator: leave the C allocator of the worker as it is. Otherwise glibc is told to keep freed
            pages, without which whatever materialises large temporaries is slowed by page faults.
    """
    remaining = list(jobs)
    environment = os.environ if default_allocator else {**os.environ, **KEEP_PAGES}
    while remaining:
        with tempfile.TemporaryFile("w+") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "s4_fast.bench.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )
            try:
                yield from _rows(worker, remaining, device, seconds)
                worker.wait()
            finally:
                worker.kill()
                worker.wait()
            if remaining:
                job = remaining.pop(0)
                yield Row(job.case, device, job.backend, error=_cause(worker.returncode, log))


def _rows(worker: subprocess.Popen[str], remaining: list[Job], device: str, seconds: float) -> Iterator[Row]:
    """The rows that ``worker`` sends; each takes its job off ``remaining``."""
    assert worker.stdin is not None and worker.stdout is not None
    request = {"device": device, "seconds": seconds, "jobs": [asdict(job) for job in remaining]}
    try:
        with worker.stdin as stdin:
            json.dump(request, stdin)
    except BrokenPipeError:
        return
    with worker.stdout as lines:
        for line in lines:
            remaining.pop(0)
            yield Row.from_dict(json.loads(line))


def _cause(code: int, log: IO[str]) -> str:
    log.seek(0)
    last = (log.read().strip().splitlines() or [""])[-1]
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return f"the worker {how}{': ' if last else ''}{last}"
