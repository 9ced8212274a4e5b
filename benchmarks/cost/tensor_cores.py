"""Launches of the native kernels on tensor cores at a size, and how often their loops run there."""

from __future__ import annotations

from benchmarks.cost import machine
from benchmarks.cost.cuda_cores import scan_states
from benchmarks.cost.launches import Launch, N, native, up
from benchmarks.cost.sass import Numbers

# What is only for samples that do not begin where 16 bytes do, or are fewer than a chunk or a tile has.
SHORT = ("set(i, from[i])", "return length ? last", "if (i < count) out", "at + i < there", "rest <= 0 ? 0",
         "if (!WHOLE")  # fmt: skip
# What other states give is not added where one block has all states.
ADDED = ("uint32_t word(int i) const",)
TYPES = {"float32": ("float", 4), "bfloat16": ("BFloat16", 2)}
# Bytes of shared memory: of a table of powers by its parts, and of what else a kernel has.
TABLE, STATES, RESPONSE, GRADIENTS = 8192, 1152, 1792, 1152


class Scan:
    """A scan cut into rows, as tensor_scan.cuh does it for more than FEW_FEATURES features."""

    def __init__(self, H: int, L: int, batch: int, signal: str, source: str) -> None:
        self.H, self.batch, self.source = H, batch, f"csrc/cuda/scan/{source}.cu"
        self.type, self.size = TYPES[signal]
        chunks = L // 64
        whole = batch >= 16 and H * up(batch, 16) >= 1024
        self.each = up(chunks, min(chunks, 1 if whole else up(32, batch)))
        self.segments = up(chunks, self.each)
        self.tiles = up(batch * self.segments, 16)
        self.warps = min(4, self.tiles)
        self.shares = up(self.tiles, self.warps)
        self.is_complete = self.tiles <= 4
        self.signal = batch * H * L * self.size
        self.states = 8 * batch * H * chunks * N
        self.left = 8 * batch * H * self.segments * N if self.segments > 1 else 0

    def prepare(self) -> Launch:
        return scan_states(self.source, self.H, 64)[0]

    def sweep(self, backwards: bool, outputs: bool, states: bool = False) -> Launch:
        """What all segments leave behind, or the outputs; those of all states too where a block has all rows."""
        carries = outputs and self.is_complete and self.segments > 1
        kernel = f"tensor::tensor_{'outputs' if outputs else 'states'}_kernel<{self.type}, {str(backwards).lower()}>"
        trips: Numbers = {"run = warp": 4 / self.warps, "tile = share": 1}
        shares: Numbers = {"if (warp > 0)": 1 / self.warps}
        if outputs:
            step = (self.each * carries, self.each)
            carried: Numbers = {"entry < cut.scan.batch": up(self.batch * N, 32 * self.warps), "first < cut.seg": 0}
            if carries:
                carried |= {"first < cut.seg": up(self.segments, 8)}
                shares |= {"entry < cut.scan.batch": min(1.0, self.batch / self.warps)}
            trips |= carried | {"entry = threadIdx": 14 / self.warps, "step < cut": step}
            shares |= {"cut.is_complete()": carries, "pass.final && !": 0, "pass.states)": states}
        else:
            trips |= {"step < cut": self.each}
        again = carries and self.signal > machine.L2_BYTES  # what has left the cache when the outputs are made
        parts = 0 if not outputs else 1 if self.type == "BFloat16" else 2
        return native(
            self.source, kernel, self.H * self.shares, 32 * self.warps, trips=trips, shares=shares, never=SHORT,
            off=ADDED,
            shared=2 * TABLE + STATES + parts * (TABLE + RESPONSE),
            bytes=(1 + outputs + again) * self.signal + self.left * (1 + carries) + states * self.states,
        )  # fmt: skip

    def carry(self, backwards: bool) -> Launch:
        kernel = f"tensor::tensor_carry_kernel<{self.type}, {str(backwards).lower()}>"
        return native(self.source, kernel, up(self.batch * self.H * N, 128), 128, bytes=2 * self.left,
                      trips={"first < cut.seg": up(self.segments, 8)})  # fmt: skip

    def segments_apart(self, backwards: bool) -> list[Launch]:
        return [self.sweep(backwards, False), self.carry(backwards)]

    def run(self, backwards: bool, states: bool = False) -> list[Launch]:
        before = self.segments_apart(backwards) if self.segments > 1 and not self.is_complete else []
        return [self.prepare(), *before, self.sweep(backwards, True, states)]

    def gradients(self, given: bool) -> list[Launch]:
        each = up(self.tiles, max(1, 1024 // self.H))
        shares = up(self.tiles, each)
        trips: Numbers = {"tile = share": each, "step < cut": self.each}
        roles: Numbers = {"if (warp > 0)": 0.25, "if (warp < 2)": -0.5, "if (warp == 2)": 0.75, "if (warp == 3)": -0.25}
        kernel = f"tensor::tensor_gradients_kernel<{self.type}>"
        sums = native(self.source, kernel, self.H * shares, 128, trips=trips, shares=roles, never=SHORT,
                      shared=4 * TABLE + GRADIENTS, bytes=2 * self.signal + self.left + self.states)  # fmt: skip
        trips = {"first < (parts": 1, "row < rows": 1, "correlation_shares": 0, "d = group": 16, "share = group": 0,
                 "k = 2": 0}  # fmt: skip
        shares_of: Numbers = {
            "if (!parts.sums) break": 1,
            "__syncthreads()": 0.25,
            "if (!writes)": 0.25,
            "if (model.x)": int(given),
        }
        finish = native(self.source, "scan_finish_kernel<float>", self.H, 128, trips=trips, shares=shares_of,
                        shared=1536, bytes=100 * self.H * N)  # fmt: skip
        return [*(self.segments_apart(False) if self.segments > 1 else []), sums, finish]


def scan(H: int, L: int, batch: int = 1, signal: str = "float32") -> list[Launch]:
    return Scan(H, L, batch, signal, "tensor_scan").run(False)


def scan_and_gradients(H: int, L: int, batch: int = 1, signal: str = "float32") -> list[Launch]:
    backward = Scan(H, L, batch, signal, "tensor_scan_backward")
    return [*scan(H, L, batch, signal), *backward.run(True, states=True), *backward.gradients(batch == 1)]


def vandermonde(H: int, L: int) -> list[Launch]:
    tiles = up(up(L, 1024), 4)
    each = up(tiles, max(1, 1024 // H))
    trips: Numbers = {"first < n": 1, "row < c * H": 1, "start < L": each, "half < 2": 2}
    # By the branches of that line go the first states, whose outputs are not added to any.
    return [native("csrc/cuda/vandermonde/tensor_vandermonde.cu", "tensor::tensor_vandermonde_kernel",
                   H * up(tiles, each), 128, trips=trips, shares={"j < BLOCKS": 0}, never=SHORT,
                   shared=2 * TABLE + 16 * 36 * 8 + 4 * 32 * 8, bytes=4 * H * L)]  # fmt: skip


def moments(H: int, L: int, first: bool = False) -> list[Launch]:
    groups = up(L, 4096)
    each = up(groups, max(1, 1024 // H, up(groups, 16)))
    parts = up(groups, each)
    tiles = min(4, up(L, 1024))
    shares: Numbers = {"if (warp < WARPS - 1)": 0.75, "if (own < L)": tiles / 4}
    shared = 2 * (2 * 64 * 72 * 2 + 64 * 4 + 4 * 32 * 8) + 16 * 36 * 8 + 32 * (16 + 3 * 8 + 4 * 4)
    found = [native("csrc/cuda/vandermonde/tensor_moments.cu", f"tensor::tensor_moments_kernel<{1 + first}>",
                    parts * H, 128, trips={"tile < WARPS": tiles, "start < end": each}, shares=shares, never=SHORT,
                    shared=shared, bytes=4 * H * L)]  # fmt: skip
    if parts > 1:
        total: Numbers = {"p < parts": (parts // 4, 0)}
        found += [native("csrc/cuda/vandermonde/tensor_moments.cu", "sum_parts_kernel<float",
                         up(2 * H * N, 256), 256, trips=total, bytes=8 * H * N * parts)] * (1 + first)  # fmt: skip
    return found


def vandermonde_and_gradients(H: int, L: int) -> list[Launch]:
    return [*vandermonde(H, L), *moments(H, L, first=True)]
