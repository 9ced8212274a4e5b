"""The kernels whose cost is predicted: their launches at a size, and how often their loops run there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.cost.launches import Launch, native, triton
from benchmarks.cost.sass import Numbers

FORWARD, BOTH = "forward", "forward+backward"
N = 32  # states of all cases


@dataclass(frozen=True)
class Case:
    """A call at a size, as ``nvidia-h200.json`` names it; ``measured`` stands in for a row that it does not have."""

    op: str
    implementation: str
    H: int
    L: int
    launches: Callable[[int, int], list[Launch]]
    kind: str = FORWARD
    measured: float | None = None
    others: int = 0  # kernels of PyTorch that the call runs beside ours


def up(a: int, b: int) -> int:
    return -(-a // b)


def vandermonde(H: int, L: int) -> list[Launch]:
    M, T, R = (128, 128, 8) if L >= 1 << 14 else (32, 64, 4)
    threads = M * T // R**2
    powers = (M + T) // 16 + 32
    return [
        native(
            "csrc/cuda/vandermonde.cu",
            rf"vandermonde_kernel<float, Tile<{M}, {T},",
            H * up(L, M * T),
            threads,
            trips={
                "first < n": N // 16,
                "entry < states * POWERS": 16 * powers / threads,
                "entry < states * (M + T)": 16 * (M + T) / threads / 2,
                "k < states": 16 / 2,
            },
            # The last is what is left of an odd number of states.
            shares={"if (threadIdx.x < states)": 32 / threads, "left[a] = tables.coarse": 0},
            shared=16 * 8 * (M + T + powers + 1 + 2),
            bytes=4 * H * L,
        )
    ]


def moments(H: int, L: int, first: bool = False) -> list[Launch]:
    M, T, rows, columns = (16, 16, 2, 1) if L <= 1024 else (64, 64, 4, 2)
    K, threads, blocks = 16, (M // rows) * (16 // columns), N // 16
    tiles = up(L, M * T)
    each = up(tiles, max(1, min(1024 // (H * blocks), tiles)))
    shares = up(tiles, each)
    launch = native(
        "csrc/cuda/moments.cu",
        rf"moments_kernel<float, Tile<{M}, {T}, {rows}, {columns}>, {str(first).lower()}>",
        shares * H * blocks,
        threads,
        trips={
            "entry < T * K": T * K / threads / 2,
            "int64_t tile = share": each,
            "entry < M * T": M * T // threads // 4,
            "t < T": T // 2,
            "entry < (1 + with_first) * K": 0,
        },
        shares={
            "if (threadIdx.x < K)": 32 / threads,
            "entry < (1 + with_first) * K": 32 / threads,
            "sum += tables.sums": (1, 0),
        },
        shared=8 * K * T + 4 * M * (T + 1) + 16 * K * M // rows + 16 * K,
        bytes=4 * H * L,
    )
    if shares == 1:
        return [launch]
    return [launch, native("csrc/cuda/moments.cu", "sum_parts_kernel<float", up(2 * H * N, 256), 256,
                           trips={"p < parts": (shares // 4, 0)}, bytes=8 * H * N * shares)] * (1 + first)  # fmt: skip


def cauchy(H: int, L: int) -> list[Launch]:
    nodes = L // 2 + 1
    trips = {"first < n": 1, "entry < (1 + ROWS)": 0, "k < states": N}
    shares = {"entry < (1 + ROWS) * states": (0.5, 0, 0), "if (row < 0)": (0.5, 0.5, 0, 0, 0, 0, 0, 0, 0)}
    return [native("csrc/cuda/cauchy.cu", "cauchy_kernel<float, 1, true>", H * up(nodes, 128), 128, trips=trips,
                   shares=shares, shared=16 * N, bytes=8 * H * nodes)]  # fmt: skip


def dplr_spectrum(H: int, L: int) -> list[Launch]:
    nodes = L // 2 + 1
    trips = {"first < sizes.n": N / 16, "item < states": 0, "k < states": 16}
    return [native("csrc/cuda/dplr_spectrum.cu", "dplr_spectrum_kernel<1, float>", H * up(nodes, 128), 128,
                   trips=trips, shares={"item < states": 0.625}, shared=16 * 16 * 5, bytes=8 * H * nodes)]  # fmt: skip


STATES_OF = {"threadIdx.x >= K": 0.25, "threadIdx.x >= M": 0.25}


def scan_states(source: str, H: int, L: int, runs: int = 1) -> list[Launch]:
    """The kernels before the outputs or the gradients, of so many recurrences."""
    chunks = L // 64
    prepare = native(
        source,
        "scan_prepare_kernel<float, float>",
        H,
        128,
        trips={"entry < STAGE": 0, "first < scan.n": 1, "direction < scan": 1, "k = group": (N // 4, 0)},
        shares={"if (block < scan.H * scan.c)": 0, "if (threadIdx.x < states)": 0.25, "bilinear ?": 0, "log1p": 0,
                "if (threadIdx.x >= T)": 0.5},
        shared=4224,
        bytes=100 * H * N,
    )  # fmt: skip
    local = native(
        source,
        "scan_local_kernel<float>",
        H * runs,
        128,
        trips={"tile < end": chunks // 32, "entry < T * K": 8, "channel < run": 1, "entry < M * T": 4, "t < T": 32,
               "entry < until": 1, "p < end": chunks // 8},
        shares={**STATES_OF, "entry < until": 0.25},
        shared=26240,
        bytes=runs * (4 * H * L + 8 * H * chunks * N),
    )  # fmt: skip
    return [prepare, local]


OUTPUT_TRIPS = {"first < scan.n": 1, "entry < here * T": 8, "direction < scan": 1, "entry < M * K": 2,
                "k < here": (0, 0, 0, 0, 0, 16), "from = 0": 1, "lag < 2 * T": 0, "s < T": 32}  # fmt: skip


def scan(H: int, L: int) -> list[Launch]:
    chunks = L // 64
    output = native(
        "csrc/cuda/scan.cu",
        "scan_output_kernel<float, float>",
        H,
        128,
        trips={"tile < end": chunks // 32, "entry < M * T": 4}
        | {key: trips for key, trips in OUTPUT_TRIPS.items() if key != "from = 0"},
        shares={**STATES_OF, "if (direction == int": 0},
        shared=35456,
        bytes=8 * H * L + 8 * H * chunks * N,
    )
    return [*scan_states("csrc/cuda/scan.cu", H, L), output]


def scan_and_gradients(H: int, L: int) -> list[Launch]:
    source, chunks = "csrc/cuda/scan_backward.cu", L // 64
    trips = {"tile < end": chunks // 32, "entry < M * T": (4, 0, 4, 0, 4, 4, 0, 4, 0), "m = row": 4, "t = d": 4,
             "t < T": 32, "entry < T * K": 8, **OUTPUT_TRIPS}  # fmt: skip
    # Blocks of three kinds in one launch: for the parameters, for u, for the correlation.
    signals, states = 4 * H * L, 8 * H * chunks * N
    kinds = ((0, 1, 2 * signals + 2 * states), (1, 0, 2 * signals + states), (1, 1, 2 * signals))
    gradients = [
        native(
            source,
            "scan_gradients_kernel<float, float>",
            H,
            128,
            trips=trips,
            shares={"block < deal.parameters": parameters, "block < deal.outputs": outputs, "if (direction == int": 0,
                    "if (threadIdx.x < K)": 0.25, **STATES_OF},
            shared=35456,
            bytes=moved,
            launches=int(parameters == 0),
        )
        for parameters, outputs, moved in kinds
    ]  # fmt: skip
    finish = native(
        source,
        "scan_finish_kernel<float>",
        H,
        128,
        trips={"first < (parts": 1, "row < rows": 1, "correlation_shares": 0, "d = group": 16, "share = group": 0,
               "k = 2": 0},
        shared=1536,
        bytes=100 * H * N,
    )  # fmt: skip
    return [*scan(H, L), *scan_states(source, H, L, 2), *gradients, finish]


def of_triton(op: str, trips: Callable[[int, int], Numbers]) -> Callable[[int, int], list[Launch]]:
    """The one kernel of a Triton op with its trips at (H, L)."""

    def launches(H: int, L: int) -> list[Launch]:
        states, nodes = torch.ones(H, N, dtype=torch.complex64), L // 2 + 1
        arguments: tuple[Any, ...] = (states[None], states, L)
        if op == "log_vandermonde_transpose":
            arguments = (torch.empty(1, H, L), states[None], states, L)
        elif op == "cauchy_mult":
            arguments = (states[None], states.new_empty(1, nodes), states, True)
        moved = 8 * H * nodes if op.startswith("cauchy") else 4 * H * L
        ((code, blocks, threads),) = triton(op, *arguments)
        return [Launch(lambda: code, blocks, threads, trips(H, L), bytes=moved)]

    return launches


TRITON = {
    "log_vandermonde": of_triton("log_vandermonde", lambda H, L: {"range(0, n, K)": N // 16}),
    "log_vandermonde_transpose": of_triton("log_vandermonde_transpose", lambda H, L: {"(split * each": up(up(L, 1024), 1024 // H)} if up(up(L, 1024), 1024//H) > 1 else {}),
    "cauchy_mult": of_triton("cauchy_mult", lambda H, L: {"in range(n)": N}),
    "cauchy_bilinear": of_triton("cauchy_bilinear", lambda H, L: {"in range(n)": N}),
}


def cases() -> Iterator[Case]:
    yield Case("log_vandermonde", "native", 1024, 4096, vandermonde)
    yield Case("log_vandermonde", "native", 1024, 65536, vandermonde, measured=0.385)
    gradients = lambda H, L: [*vandermonde(H, L), *moments(H, L, first=True)]  # noqa: E731
    yield Case("log_vandermonde", "native", 1024, 4096, gradients, BOTH, others=7)
    for H in (128, 1024):
        for L in (1024, 4096, 16384, 65536):
            yield Case("log_vandermonde_transpose", "native", H, L, moments, others=1)
    for H, L in ((128, 4096), (1024, 1024), (1024, 4096)):
        yield Case("cauchy_mult", "native", H, L, cauchy)
    for L in (4096, 16384):
        yield Case("dplr_kernel", "native", 1024, L, dplr_spectrum, others=20)
    yield Case("ssm_scan", "native", 1024, 4096, scan)
    yield Case("ssm_scan", "native", 1024, 4096, scan_and_gradients, BOTH)
    for op, launches in TRITON.items():
        for H, L in ((128, 4096), (1024, 1024), (1024, 4096), (1024, 16384)):
            splits = op == "log_vandermonde_transpose" and H * (L // 1024) > 1024 >= 2 * H
            yield Case(op, "triton", H, L, launches, others=splits + (op == "log_vandermonde_transpose"))
