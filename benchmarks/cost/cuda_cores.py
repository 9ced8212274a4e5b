"""Launches of the native kernels on CUDA cores at a size, and how often their loops run there.

A float32 complex number has 8 bytes, a node of powers.cuh 16, ``N`` is the states of every case.
"""

from __future__ import annotations

from benchmarks.cost.launches import Launch, N, native, up
from benchmarks.cost.sass import Numbers


def vandermonde(H: int, L: int) -> list[Launch]:
    M, T, R = (128, 128, 8) if L >= 1 << 14 else (32, 64, 4)
    threads, powers = M * T // R**2, (M + T) // 16 + 32
    trips: Numbers = {
        "first < n": N // 16,
        "entry < states * POWERS": 16 * powers / threads,
        "entry < states * (M + T)": 8 * (M + T) / threads,
        "k < states": 8,
    }
    # The second is what is left of an odd number of states.
    shares: Numbers = {"if (threadIdx.x < states)": 32 / threads, "left[a] = tables.coarse": 0}
    kernel, blocks = rf"vandermonde_kernel<float, Tile<{M}, {T},", H * up(L, M * T)
    shared = 16 * 8 * (M + T + powers + 3)
    return [native("csrc/cuda/vandermonde/vandermonde.cu", kernel, blocks, threads, trips=trips, shares=shares,
                   shared=shared, bytes=4 * H * L)]  # fmt: skip


def moments(H: int, L: int, first: bool = False) -> list[Launch]:
    source = "csrc/cuda/vandermonde/moments.cu"
    M, T, rows, states = (16, 16, 2, 1) if L <= 1024 else (64, 64, 4, 2)
    threads, tiles = M // rows * (16 // states), up(L, M * T)
    each = up(tiles, max(1, min(1024 // (H * N // 16), tiles)))
    parts = up(tiles, each)
    trips: Numbers = {
        "entry < T * K": 8 * T / threads,
        "int64_t tile = share": each,
        "entry < M * T": M * T // threads // 4,
        "t < T": T // 2,
        "entry < (1 + WITH_FIRST) * K": 0,
    }
    shares: Numbers = {
        "if (threadIdx.x < K)": 32 / threads,
        "entry < (1 + WITH_FIRST) * K": 32 / threads,
        "sum += tables.sums": (1, 0),
    }
    kernel = rf"moments_kernel<float, Tile<{M}, {T}, {rows}, {states}>, {str(first).lower()}>"
    shared = 128 * T + 4 * M * (T + 1) + 256 * M // rows + 256
    found = [native(source, kernel, parts * H * N // 16, threads, trips=trips, shares=shares, shared=shared,
                    bytes=4 * H * L)]  # fmt: skip
    if parts > 1:
        total: Numbers = {"p < parts": (parts // 4, 0)}
        blocks, moved = up(2 * H * N, 256), 8 * H * N * parts
        found += [native(source, "sum_parts_kernel<float", blocks, 256, trips=total, bytes=moved)] * (1 + first)
    return found


def vandermonde_and_gradients(H: int, L: int) -> list[Launch]:
    return [*vandermonde(H, L), *moments(H, L, first=True)]


def cauchy(H: int, L: int) -> list[Launch]:
    nodes = L // 2 + 1
    trips: Numbers = {"first < n": 1, "entry < (1 + ROWS)": 0, "k < states": N}
    shares: Numbers = {"entry < (1 + ROWS) * states": (0.5, 0, 0), "if (row < 0)": (0.5, 0.5, 0, 0, 0, 0, 0, 0, 0)}
    return [native("csrc/cuda/cauchy/cauchy.cu", "cauchy_kernel<float, 1, true>", H * up(nodes, 128), 128, trips=trips,
                   shares=shares, shared=16 * N, bytes=8 * H * nodes)]  # fmt: skip


def dplr_spectrum(H: int, L: int) -> list[Launch]:
    nodes = L // 2 + 1
    trips: Numbers = {"first < sizes.n": N // 16, "item < states": 0, "k < states": 16}
    return [native("csrc/cuda/dplr/dplr_spectrum.cu", "dplr_spectrum_kernel<1, float>", H * up(nodes, 128), 128,
                   trips=trips, shares={"item < states": 0.625}, shared=16 * 16 * 5, bytes=8 * H * nodes)]  # fmt: skip


# Of a scan: what the first warp alone does, and the loops of a block of outputs.
FIRST_WARP: Numbers = {"threadIdx.x >= TILE_STATES": 0.25, "threadIdx.x >= TILE_CHUNKS": 0.25}
OUTPUTS: Numbers = {"first < scan.n": 1, "entry < here * T": 8, "direction < scan": 1,
                    "entry < TILE_CHUNKS * TILE_STATES": 2, "k < here": (0, 0, 0, 0, 0, 16),
                    "lag < 2 * T": 0, "s < T": 32}  # fmt: skip


def scan_states(source: str, H: int, L: int, runs: int = 1) -> list[Launch]:
    """The kernels before outputs or gradients, of so many recurrences."""
    chunks = L // 64
    trips: Numbers = {"entry < STAGE": 0, "first < scan.n": 1, "direction < scan": 1, "k = group": (N // 4, 0)}
    shares: Numbers = {"if (block < scan.H * scan.c)": 0, "if (threadIdx.x < states)": 0.25, "bilinear ?": 0,
                       "log1p": 0, "if (threadIdx.x >= T)": 0.5}  # fmt: skip
    prepare = native(source, "scan_prepare_kernel<float, float>", H, 128, trips=trips, shares=shares, shared=4224,
                     bytes=100 * H * N)  # fmt: skip
    trips = {"tile < end": chunks // 32, "entry < T * TILE_STATES": 8, "channel < run": 1,
             "entry < TILE_CHUNKS * T": 4, "t < T": 32, "entry < until": 1, "p < end": chunks // 8}  # fmt: skip
    local = native(source, "scan_local_kernel<float>", H * runs, 128, trips=trips, shared=26240,
                   shares=FIRST_WARP | {"entry < until": 0.25}, bytes=runs * H * (4 * L + 8 * chunks * N))  # fmt: skip
    return [prepare, local]


def scan(H: int, L: int) -> list[Launch]:
    source, chunks = "csrc/cuda/scan/scan.cu", L // 64
    trips = OUTPUTS | {"tile < end": chunks // 32, "entry < TILE_CHUNKS * T": 4}
    output = native(source, "scan_output_kernel<float, float>", H, 128, trips=trips, shared=35456,
                    shares=FIRST_WARP | {"if (direction == int": 0}, bytes=8 * H * (L + chunks * N))  # fmt: skip
    return [*scan_states(source, H, L), output]


def scan_and_gradients(H: int, L: int) -> list[Launch]:
    source, chunks = "csrc/cuda/scan/scan_backward.cu", L // 64
    trips = OUTPUTS | {"tile < end": chunks // 32, "entry < TILE_CHUNKS * T": (4, 0, 4, 0, 4, 4, 0, 4, 0), "m = row": 4,
                       "t = d": 4, "t < T": 32, "entry < T * TILE_STATES": 8, "from = 0": 1}  # fmt: skip
    shares = FIRST_WARP | {"if (direction == int": 0, "if (threadIdx.x < TILE_STATES)": 0.25}
    # One launch has blocks for the parameters, for u and for the correlation.
    kinds: list[tuple[float, float, int]] = [(0, 1, 2), (1, 0, 1), (1, 1, 0)]
    gradients = [
        native(source, "scan_gradients_kernel<float, float>", H, 128, trips=trips, shared=35456,
               shares=shares | {"block < deal.parameters": past_parameters, "block < deal.outputs": past_outputs},
               bytes=8 * H * (L + states * chunks * N), launches=int(past_parameters == 0))
        for past_parameters, past_outputs, states in kinds
    ]  # fmt: skip
    trips = {"first < (parts": 1, "row < rows": 1, "correlation_shares": 0, "d = group": 16, "share = group": 0,
             "k = 2": 0}  # fmt: skip
    finish = native(source, "scan_finish_kernel<float>", H, 128, trips=trips, shared=1536, bytes=100 * H * N)
    return [*scan(H, L), *scan_states(source, H, L, 2), *gradients, finish]
