"""Is this installation sound: versions, devices, backends, and the measured error of every op on each of them."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from s4_fast import dispatch, native_library
from s4_fast.backend_status import Backends
from s4_fast.bench import evaluate, machine
from s4_fast.bench.accuracy import FAIL, Errors, errors, reference, tolerances, verdict
from s4_fast.bench.cases import Case
from s4_fast.bench.inputs import OPS, Arguments, arguments

_SIZES = {"dplr_kernel": (4, 32, 1024), "fft_conv": (8, 1, 1000), "ssm_step": (8, 32, 1), "dplr_step": (8, 32, 1)}
CASES = (
    *(
        Case(op, *_SIZES.get(op, (8, 32, 1000)), batch=2, dtype=dtype, state=True)
        for op in OPS
        for dtype in ("float32", "float64")
    ),
    Case("dplr_kernel", 2, 32, 1024, rank=2),
    # Phases of 10^6 radians that a float32 product x l cannot hold.
    Case("log_vandermonde", 1, 4, 2**20, decay=1e-6),
    Case("log_vandermonde_transpose", 1, 4, 2**20, decay=1e-6),
    Case("ssm_scan", 1, 4, 2**20, decay=1e-6, state=True),
    Case("diagonal_ssm", 1, 4, 2**20, decay=1e-6, state=True),
)


@dataclass(frozen=True)
class Finding:
    """The measured accuracy of one backend on one case. ``note`` says what went wrong, if anything did."""

    case: Case
    device: str
    backend: str
    verdict: str
    errors: Errors | None
    note: str


@dataclass(frozen=True)
class Examination:
    """What is on this machine, and what was measured.

    Attributes:
        machine: versions and the processor, by heading.
        devices: what the devices are, by PyTorch's names.
        backends: the status of every backend.
        native_library: what is known of it, by heading; empty where none is loaded.
        requested: the backend that the environment asks for, or the empty string.
        findings: of every case, device and backend.
        said: what libraries printed meanwhile, each line once.
    """

    machine: dict[str, str]
    devices: dict[str, str]
    backends: Backends
    native_library: dict[str, str]
    requested: str
    findings: list[Finding]
    said: list[str]

    @property
    def failures(self) -> list[Finding]:
        """What broke, or misses the accuracy contract."""
        return [finding for finding in self.findings if finding.verdict == FAIL]


def examine(progress: Callable[[str, int, int], None] = lambda label, done, total: None) -> Examination:
    """Look and measure. ``progress`` is told before each case what it is, how many are done, and of how many."""
    here = machine.describe()
    devices = {"cpu": here["cpu"]}
    for index in range(torch.cuda.device_count()):
        devices[f"cuda:{index}"] = machine.describe(f"cuda:{index}")["gpu"]
    jobs = [(device, case) for device in devices for case in CASES]
    findings: list[Finding] = []
    said = io.StringIO()
    for done, (device, case) in enumerate(jobs):
        progress(f"{case.op} on {device}", done, len(jobs))
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            findings += check(case, device)
    return Examination(
        here,
        devices,
        dispatch.backends(),
        native_library.describe(),
        os.environ.get(dispatch.ENVIRONMENT_VARIABLE, ""),
        findings,
        list(dict.fromkeys(line.strip() for line in said.getvalue().splitlines() if line.strip())),
    )


def check(case: Case, device: str) -> Iterator[Finding]:
    """Measure ``case`` on every usable backend that implements its op and takes the call.

    Except ``reference``, which is the yardstick.
    """
    inputs = arguments(case, device)
    expected = reference(case, inputs)
    status = dispatch.backends()
    for backend in dispatch.implementations(case.op):
        if (
            backend == "reference"
            or not status[backend].usable
            or evaluate.refusal(case.op, backend, inputs, grads=False)
        ):
            continue
        try:
            measured = errors(_outcome(case.op, backend, inputs), expected)
        except Exception as error:  # a broken backend is what this command is there to report
            yield Finding(case, device, backend, FAIL, None, f"{type(error).__name__}: {error}")
            continue
        judged = verdict(case, backend, measured)
        allowed = "allowed {:.0e} and {:.0e}".format(*tolerances(case))
        yield Finding(case, device, backend, judged, measured, allowed if judged == FAIL else "")


def _outcome(op: str, backend: str, inputs: Arguments) -> evaluate.Outcome:
    function = evaluate.implementation(op, backend)
    if evaluate.refusal(op, backend, inputs, grads=True):
        return evaluate.Outcome(evaluate.forward(function, inputs)(), {})
    return evaluate.forward_backward(function, inputs)()
