"""Memory stays as it is over many steps and lengths, and where there is too little of it a process goes on."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import s4_fast
from s4_fast import S4SequenceModel, dispatch
from tests.helpers import needs_native

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what memory a process has in /proc")


def resident() -> int:
    """Bytes of memory that are this process's, without the free pages that the C allocator keeps."""
    with suppress(AttributeError):  # glibc alone gives them back when asked
        ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def model(layer: str) -> S4SequenceModel:
    torch.manual_seed(0)
    return S4SequenceModel(2, 8, 2, 1, 8, layer=layer, task="regression")


def train(layer: str, steps: int) -> int:
    """By how many bytes the process grows after a tenth of the steps."""
    made = model(layer)
    optimiser = torch.optim.AdamW(s4_fast.get_ssm_param_groups(made, 1e-4))
    before = 0
    for step in range(steps):
        if step == steps // 10:
            before = resident()
        optimiser.zero_grad()
        made(torch.ones(2, 16, 2)).square().mean().backward()
        optimiser.step()
    return resident() - before


@torch.no_grad()
def advance(layer: str, steps: int) -> int:
    made, u = model(layer).eval(), torch.ones(1, 2)
    state, before = made.init_state(1), 0
    for step in range(steps):
        if step == steps // 10:
            before = resident()
        y, state = made.step(u, state)
    assert torch.isfinite(y).all()
    return resident() - before


def lengths(layer: str, count: int) -> int:
    """Over ``count`` lengths, no two of them the same."""
    made, before = model(layer), 0
    for step, length in enumerate(torch.randperm(count).tolist()):
        if step == count // 3:
            before = resident()
        made(torch.ones(1, length + 3, 2)).sum().backward()
        made.zero_grad()
    return resident() - before


@linux
@pytest.mark.parametrize("layer", ["s4d", "s4"])
@pytest.mark.parametrize(
    ("run", "count"),
    [
        (train, 60),
        (advance, 500),
        (lengths, 60),
        pytest.param(train, 10_000, marks=pytest.mark.slow),
        pytest.param(advance, 1_000_000, marks=pytest.mark.slow),
        pytest.param(lengths, 3000, marks=pytest.mark.slow),
    ],
)
def test_memory_stays_as_it_is(run: Any, count: int, layer: str) -> None:
    # 10^6 steps that kept a byte each, or 3000 lengths that kept their kernels, would show.
    assert run(layer, count) < (8 * 2**20 if run is not lengths else 24 * 2**20)


def test_a_call_that_lacks_memory_says_for_what(monkeypatch: pytest.MonkeyPatch) -> None:
    u, x, B = torch.randn(2, 3, 8), -torch.ones(3, 4, dtype=torch.complex64), torch.ones(3, 4, dtype=torch.complex64)
    expected = s4_fast.ssm_scan(u, x, B, B, backend="pytorch")
    report = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1024 bytes.\nframe #0"

    def fail(*args: Any) -> Tensor:
        raise RuntimeError(report)

    module: ModuleType = dispatch.load("ssm_scan", "pytorch")
    for function in ("ssm_scan", "ssm_scan_backward"):
        v = u.clone().requires_grad_()
        y = s4_fast.ssm_scan(v, x, B, B, backend="pytorch")
        with monkeypatch.context() as inside:
            inside.setattr(module, function, fail)
            with pytest.raises(RuntimeError) as caught:
                y.sum().backward() if "backward" in function else s4_fast.ssm_scan(u, x, B, B, backend="pytorch")
        message = str(caught.value)
        assert message.startswith(f"{function} by pytorch of u (2, 3, 8), x (3, 4), B (3, 4), C (3, 4), ")
        assert message.endswith(f": too little memory: {report.splitlines()[0]}")
    assert torch.equal(s4_fast.ssm_scan(u, x, B, B, backend="pytorch"), expected)


LIMITED = """
import json, resource, sys
import torch
import s4_fast
from s4_fast import memory, use_backend

torch.set_num_threads(1)
H, n, L, batch = 64, 32, 16384, 8
complex_ = lambda *shape: torch.randn(*shape, dtype=torch.complex64)
x = torch.complex(-torch.rand(H, n) * 0.1 - 0.01, torch.randn(H, n))
u, D, dt = torch.randn(batch, H, L), torch.randn(H), torch.full((H, 1), 0.01)
B, C, P = complex_(H, n), complex_(H, n), complex_(1, H, n)
layers = {"S4DLayer": s4_fast.S4DLayer(H, 2 * n), "S4Layer": s4_fast.S4Layer(H, 2 * n)}
cases = {
    "log_vandermonde": lambda u, x, B, L: s4_fast.log_vandermonde(B, x, L),
    "log_vandermonde_transpose": lambda u, x, B, L: s4_fast.log_vandermonde_transpose(u[..., :L], B, x, L),
    "cauchy_bilinear": lambda u, x, B, L: s4_fast.cauchy_bilinear(B, x, L),
    "dplr_kernel": lambda u, x, B, L: s4_fast.dplr_kernel(x * 0.01, P, P, B[None], C[None], dt, L),
    "fft_conv": lambda u, x, B, L: s4_fast.fft_conv(u[..., :L], x.real, D),
    "ssm_scan": lambda u, x, B, L: s4_fast.ssm_scan(u[..., :L], x, B, C, D),
    **{name: lambda u, x, B, L, layer=layer: layer(u[..., :L].mT.contiguous()) for name, layer in layers.items()},
}
size = lambda: next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) * 1024
unlimited = resource.RLIM_INFINITY
found = {}
backend = sys.argv[1]
with use_backend(backend):
    for name, case in cases.items():
        small = case(u, x, B, 64)
        for mebibytes in (2, 6, 20, 50):
            for backward in (False, True):
                given = [t.clone().requires_grad_(backward) for t in (u, x, B)]
                loss = case(*given, L).abs().sum() if backward else None
                resource.setrlimit(resource.RLIMIT_AS, (size() + mebibytes * 2**20, unlimited))
                try:
                    loss.backward() if backward else case(*given, L)
                    said = ""
                except (RuntimeError, MemoryError) as error:
                    said = str(error) if memory.ran_out(error) else f"WRONG {error!r}"
                finally:
                    resource.setrlimit(resource.RLIMIT_AS, (unlimited, unlimited))
                del loss
                if not torch.equal(case(u, x, B, 64), small):
                    said = "WRONG numbers"
                found[f"{name} {mebibytes} {backward}"] = said
print(json.dumps(found))
"""


@linux
@pytest.mark.slow
@pytest.mark.parametrize("backend", [pytest.param("native", marks=needs_native), "pytorch"])
def test_a_process_goes_on_after_too_little_memory(backend: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(s4_fast.__file__).parents[1])}
    command = [sys.executable, "-W", "ignore", "-c", LIMITED, backend]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert not {case: said for case, said in found.items() if said.startswith("WRONG")}
    assert sum("too little memory" in said for said in found.values()) >= 5
