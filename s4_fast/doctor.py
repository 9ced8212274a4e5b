"""Is this installation sound: versions, devices, backends, and the measured error of every op on each of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from s4_fast import dispatch, native_library
from s4_fast.bench import evaluate, machine
from s4_fast.bench.accuracy import FAIL, KNOWN_LIMIT, PASS, Errors, errors, reference, tolerances, verdict
from s4_fast.bench.cases import Case
from s4_fast.bench.inputs import OPS, Arguments, arguments
from s4_fast.terminal import shown

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


def examine(console: Console) -> int:
    """Print the whole report; the exit code is 1 when an op fails on a usable backend, else 0."""
    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    console.print(_pairs(machine.describe()))
    console.print(_devices(devices))
    console.print(_backends())
    console.print(_pairs(native_library.describe()))
    forced = os.environ.get(dispatch.ENVIRONMENT_VARIABLE)
    if forced:
        console.print(f"{dispatch.ENVIRONMENT_VARIABLE}={shown(forced)} asks for a backend", style="yellow")
    with console.status("measuring"):
        findings = [finding for device in devices for case in CASES for finding in check(case, device)]
    console.print(_accuracy(findings))
    failures = [finding for finding in findings if finding.verdict == FAIL]
    for finding in failures:
        where = f"{finding.case.op} {finding.case.sizes} {finding.case.dtype} on {finding.backend}, {finding.device}"
        console.print(Text(f"{where}: {finding.note}", style="bold red"))
    if failures:
        console.print(Text(f"{len(failures)} of {len(findings)} checks failed.", style="bold red"))
    else:
        console.print(Text(f"{len(findings)} checks, no failure.", style="green"))
    if any(finding.verdict == KNOWN_LIMIT for finding in findings):
        console.print("known limit: PyKeOps rounds the phase of exp(x l) to float32. It is never chosen automatically.")
    return 1 if failures else 0


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


def _pairs(values: dict[str, str]) -> Table:
    grid = Table.grid(padding=(0, 2))
    for name, value in values.items():
        grid.add_row(Text(name, style="bold"), Text(value))
    return grid


def _devices(devices: list[str]) -> Table:
    grid = Table(box=box.SIMPLE_HEAD, header_style="bold")
    for heading in ("device", "what it is"):
        grid.add_column(heading)
    for device in devices:
        described = machine.describe(device)
        grid.add_row(device, described["gpu"] if device.startswith("cuda") else described["cpu"])
    return grid


def _backends() -> Table:
    grid = Table(box=box.SIMPLE_HEAD, header_style="bold")
    for heading in ("backend", "usable", "ops, or why not"):
        grid.add_column(heading)
    for name, status in dispatch.backends().items():
        if status.usable:
            grid.add_row(name, Text("yes", style="green"), ", ".join(status.ops))
        else:
            fix = f"\nfix: {status.fix}" if status.fix else ""
            grid.add_row(name, Text("no", style="yellow"), Text(status.cause + fix))
    return grid


def _accuracy(findings: list[Finding]) -> Table:
    grid = Table(box=box.SIMPLE_HEAD, header_style="bold", caption="Errors: relative norms against float64.")
    for heading in ("op", "sizes", "dtype", "backend", "device"):
        grid.add_column(heading, no_wrap=True)
    for heading in ("forward", "worst gradient"):
        grid.add_column(heading, justify="right", no_wrap=True)
    grid.add_column("", no_wrap=True)
    styles = {PASS: "green", KNOWN_LIMIT: "yellow", FAIL: "bold red"}
    for finding in findings:
        case = finding.case
        grid.add_row(
            *(case.op, case.sizes, case.dtype, finding.backend, finding.device),
            *_shown(finding.errors),
            Text(finding.verdict, style=styles[finding.verdict]),
        )
    return grid


def _shown(errors: Errors | None) -> tuple[str, str]:
    if errors is None:
        return "", ""
    if errors.gradient is None:
        return f"{errors.forward:.1e}", "no gradient"
    return f"{errors.forward:.1e}", f"{errors.gradient:.1e} ({errors.worst})"
