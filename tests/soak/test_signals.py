"""Interruptions during native calls, and processes that are forked after threads were started."""

from __future__ import annotations

import os
import signal
import threading

import pytest
import torch

import s4_fast
from s4_fast import S4DLayer, S4Layer, use_backend
from tests.helpers import needs_native


@needs_native
def test_an_interruption_is_raised_and_the_process_goes_on() -> None:
    u, x = torch.randn(2, 8, 4096), torch.complex(-torch.rand(8, 32), torch.randn(8, 32))
    B = torch.randn(8, 32, dtype=torch.complex64)
    expected = s4_fast.ssm_scan(u, x, B, B, backend="native")

    def until_interrupted() -> None:
        while True:
            s4_fast.ssm_scan(u, x, B, B, backend="native")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for _ in range(3):
            timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                until_interrupted()
            timer.join()
            assert torch.equal(s4_fast.ssm_scan(u, x, B, B, backend="native"), expected)
    finally:
        signal.signal(signal.SIGINT, before)


def everything(backend: str) -> list[torch.Tensor]:
    torch.manual_seed(0)
    u, x = torch.randn(2, 8, 600), torch.complex(-torch.rand(8, 16), torch.randn(8, 16))
    B = torch.randn(8, 16, dtype=torch.complex64)
    found = []
    with use_backend(backend):
        for function in (
            lambda v: s4_fast.ssm_scan(v, x, B, B),
            lambda v: s4_fast.fft_conv(v, x.real.expand(-1, 16)),
            lambda v: s4_fast.log_vandermonde_transpose(v, B.expand(2, -1, -1), x, 600),
            S4DLayer(600, 8),
            S4Layer(600, 8),
        ):
            v = u.clone().requires_grad_()
            y = function(v)
            y.abs().sum().backward()
            assert v.grad is not None
            found += [y.detach(), v.grad]
    return found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("backend", [pytest.param("native", marks=needs_native), "pytorch"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_after_threads_computes_the_same(backend: str) -> None:
    expected = everything(backend)
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        same = False
        torch.set_num_threads(1)  # as a DataLoader's workers do: the threads of PyTorch's OpenMP do not outlive a fork
        try:
            same = all(torch.allclose(*pair, 1e-4, 1e-4) for pair in zip(everything(backend), expected, strict=True))
        finally:
            os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
    thread = threading.Thread(target=everything, args=(backend,))
    thread.start()
    thread.join()
    assert all(map(torch.equal, everything(backend), expected))
