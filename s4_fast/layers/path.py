"""Which way an S4D layer takes through a sequence: the linear-time scan, or the kernel and an FFT convolution."""

from __future__ import annotations

from typing import NamedTuple


class Threshold(NamedTuple):
    """Where the scan is the faster one: for up to ``states`` pairs, and from ``length`` samples a pair on."""

    states: int
    length: int


# By the kind of device and the backend that runs ssm_scan there. The scan's cost grows with the states, the FFT's with
# the logarithm of the length. Measured forward and backward.
# CPU: with 64 features, batches of 1 to 32 and lengths of 128 to 65536 on two cores with AVX-512 (PyTorch 2.13): at
# n = 32 the native scan took 0.28 to 0.94 of the convolution's time, at n = 128 it was the faster from L = 8192 on; in
# PyTorch the times crossed near L = 1000, 6000, 12000 and 50000 for n = 2, 8, 32 and 128.
# CUDA: with 128 to 512 features, batches of 1 to 64 and lengths of 256 to 65536 on an H200 (PyTorch 2.11): the native
# scan took 0.37 to 0.86 of the convolution's time for n = 4 and 16, 0.44 to 1.01 for n = 32, and for n = 64 1.05 to 1.8
# but for L = 65536 (0.72).
THRESHOLDS = {
    ("cpu", "native"): Threshold(64, 32),
    ("cpu", "pytorch"): Threshold(0, 512),
    ("cuda", "native"): Threshold(32, 1024),
}


