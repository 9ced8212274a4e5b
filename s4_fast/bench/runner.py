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
from pathlib import Path
from typing import IO, Any

import torch

from s4_fast import dispatch
from s4_fast.bench.cases import Case
from s4_fast.bench.checkouts import Checkout
from s4_fast.bench.evaluate import COMPILED, DIRECT, OURS, baselines
from s4_fast.bench.layers import LAYERS, beside
from s4_fast.bench.peers import OTHER_LAYERS
from s4_fast.bench.results import Row

# What keep_pages() sets; in the environment it also covers what is allocated before Python runs.
KEEP_PAGES = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "1000000000000"}


@dataclass(frozen=True)
class Job:
    """One case on one backend."""

    case: Case
    backend: str


def plan(
    cases: Iterable[Case],
    backends: Iterable[str] = (),
    *,
    quick: bool = False,
    checkout: Checkout | None = None,
) -> list[Job]:
    """The jobs for ``cases``: the baselines first, then every usable backend except ``reference``; layers themselves.

    Args:
        cases: what to measure.
        backends: the backends to measure instead; those that do not implement a case's op are left out.
        quick: whether to leave out PyKeOps and ``torch.compile``, whose first calls take up to a minute, and the other
            layers of equal width, which take seconds a call.
        checkout: a checkout of state-spaces/s4, whose layers stand beside the drop-ins for them.
    """
    usable = [name for name, status in dispatch.backends().items() if status.usable]
    chosen = [name for name in usable if name in tuple(backends)]
    jobs = []
    for case in cases:
        ours = _ours(case, usable, chosen if backends else None, quick)
        if ours:
            jobs += [Job(case, name) for name in (*_baselines(case, quick, checkout), *ours)]
    return jobs


def _ours(case: Case, usable: list[str], chosen: list[str] | None, quick: bool) -> list[str]:
    if case.op in LAYERS:
        return [OURS] if chosen is None else chosen
    names = [name for name in dispatch.implementations(case.op) if name in usable]
    if chosen is not None:
        return [name for name in names if name in chosen]
    return [name for name in names if name != "reference" and not (quick and name == "keops")]


def _baselines(case: Case, quick: bool, checkout: Checkout | None) -> list[str]:
    whole = LAYERS.get(case.op)
    names = [DIRECT, COMPILED] if case.direct and (whole is None or whole.direct) and case.dtype != "bfloat16" else []
    # The recurrence of a scan with a state is a loop over samples, which a compiler would unroll; cases of slow decay
    # are about errors.
    if quick or (case.op == "dplr_scan" and case.state) or case.decay is not None:
        names = names[:1]
    if whole is None:
        return names + ([] if case.state else list(baselines(case.op)))
    official = [checkout.name] if checkout is not None and case.op in checkout.ops else []
    return [*names, *official, *(name for name in beside(case) if not (quick and name in OTHER_LAYERS))]


def run(
    jobs: Iterable[Job],
    device: str,
    seconds: float,
    *,
    default_allocator: bool = False,
    peer: Path | None = None,
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
        peer: where the checkout is that the jobs were planned with.
    """
    remaining = list(jobs)
    settings = {"threads": torch.get_num_threads(), "peer": None if peer is None else str(peer)}
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
                yield from _rows(worker, remaining, {"device": device, "seconds": seconds, **settings})
                worker.wait()
            finally:
                worker.kill()
                worker.wait()
            if remaining:
                job = remaining.pop(0)
                yield Row(job.case, device, job.backend, error=_cause(worker.returncode, log))


def _rows(worker: subprocess.Popen[str], remaining: list[Job], settings: dict[str, Any]) -> Iterator[Row]:
    """The rows that ``worker`` sends; each takes its job off ``remaining``."""
    assert worker.stdin is not None and worker.stdout is not None
    request = {**settings, "jobs": [asdict(job) for job in remaining]}
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
