"""The calls whose cost is predicted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.cost import cuda_cores, tensor_cores
from benchmarks.cost.launches import Launch, N, triton, up
from benchmarks.cost.sass import Numbers

FORWARD, BOTH = "forward", "forward+backward"
# Ops whose outputs or inputs are complex values at nodes, and the bytes of a sample of the others'.
OF_NODES, BYTES = ("cauchy_mult", "cauchy_bilinear", "dplr_kernel"), {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Case:
    """A call at a size, as ``nvidia-h200.json`` names it; ``measured`` where that has no row."""

    op: str
    implementation: str
    H: int
    L: int
    launches: Callable[[int, int], list[Launch]]
    kind: str = FORWARD
    others: int = 0  # small kernels of PyTorch in the call
    measured: float | None = None  # milliseconds
    batch: int = 1
    signal: str = "float32"


def of_triton(op: str) -> Callable[[int, int], list[Launch]]:
    """The one kernel of a forward op."""

    def launches(H: int, L: int) -> list[Launch]:
        states, nodes = torch.ones(H, N, dtype=torch.complex64), L // 2 + 1
        if op == "log_vandermonde":
            return triton(op, states[None], states, L, trips={"range(0, n, K)": N // 16}, bytes=4 * H * L)
        if op == "log_vandermonde_transpose":
            each = up(up(L, 1024), 1024 // H)
            trips: Numbers = {"(split * each": each} if each > 1 else {}
            return triton(op, torch.empty(1, H, L), states[None], states, L, trips=trips, bytes=4 * H * L)
        rest = (states, L) if op == "cauchy_bilinear" else (states.new_empty(1, nodes), states, True)
        return triton(op, states[None], *rest, trips={"in range(n)": N}, bytes=8 * H * nodes)

    return launches


def cases() -> Iterator[Case]:
    yield from native_cases()
    for op, others in (("log_vandermonde", 0), ("log_vandermonde_transpose", 1), ("cauchy_mult", 0),
                       ("cauchy_bilinear", 0)):  # fmt: skip
        for H, L in ((128, 4096), (1024, 1024), (1024, 4096), (1024, 16384)):
            yield Case(op, "triton", H, L, of_triton(op), others=others)


def native_cases() -> Iterator[Case]:
    yield from on_cuda_cores()
    yield from on_tensor_cores()


def on_cuda_cores() -> Iterator[Case]:
    yield Case("log_vandermonde", "native", 1024, 4096, cuda_cores.vandermonde)
    yield Case("log_vandermonde", "native", 1024, 65536, cuda_cores.vandermonde, measured=0.385)
    yield Case("log_vandermonde", "native", 1024, 4096, cuda_cores.vandermonde_and_gradients, BOTH, others=7)
    for H in (128, 1024):
        for L in (1024, 4096, 16384, 65536):
            yield Case("log_vandermonde_transpose", "native", H, L, cuda_cores.moments, others=1)
    for H, L in ((128, 4096), (1024, 1024), (1024, 4096)):
        yield Case("cauchy_mult", "native", H, L, cuda_cores.cauchy)
    for L in (4096, 16384):
        yield Case("dplr_kernel", "native", 1024, L, cuda_cores.dplr_spectrum, others=20)
    yield Case("ssm_scan", "native", 1024, 4096, cuda_cores.scan)
    yield Case("ssm_scan", "native", 1024, 4096, cuda_cores.scan_and_gradients, BOTH)


def on_tensor_cores() -> Iterator[Case]:
    for L in (4096, 16384, 65536):
        yield Case("log_vandermonde", "tensor", 1024, L, tensor_cores.vandermonde)
        yield Case("log_vandermonde", "tensor", 1024, L, tensor_cores.vandermonde_and_gradients, BOTH, others=7)
        yield Case("log_vandermonde_transpose", "tensor", 1024, L, tensor_cores.moments, others=1)
    yield Case("ssm_scan", "tensor", 1024, 4096, tensor_cores.scan)
    yield Case("ssm_scan", "tensor", 1024, 4096, tensor_cores.scan_and_gradients, BOTH)
    for signal in ("bfloat16", "float32"):
        for kind, launches in ((FORWARD, tensor_cores.scan), (BOTH, tensor_cores.scan_and_gradients)):
            yield Case("diagonal_ssm", "tensor", 1024, 4096, partial(launches, batch=16, signal=signal), kind,
                       batch=16, signal=signal)  # fmt: skip
