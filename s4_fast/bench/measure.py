"""Time and peak memory of one evaluation."""

from __future__ import annotations

import ctypes
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

_MIB = 2**20
_SAMPLES = 100
_LEAST_SAMPLES = 3
# Shorter samples are dominated by the clock and by one launch.
_SAMPLE_SECONDS = 1e-3
# Each turn begins with caches that the other has filled, which would show in a shorter one.
_TURN_SECONDS = 2e-2


class Time(NamedTuple):
    """Milliseconds: the median and the 20th and 80th percentile of the samples."""

    median: float
    p20: float
    p80: float


def timed(run: Callable[[], Any], device: str, seconds: float) -> Time:
    """Time ``run`` after a warm-up, for about ``seconds`` and at least three samples.

    CUDA: events around replays of a graph, so that Python does not count (:func:`timed_with_launches` has both);
    around the calls themselves where a graph cannot be captured. Otherwise: wall time.
    """
    return timed_with_launches(replayed(run) if device.startswith("cuda") else run, device, seconds)


def timed_in_turn(runs: Sequence[Callable[[], Any]], seconds: float) -> list[Time]:
    """The times of several on the CPU, a sample of each in turn, for about ``seconds`` together, after a warm-up.

    What slows the machine for a while then slows all of them.
    """
    plans = []
    for run in runs:
        run()
        estimate = _sample(run, "cpu", 3)
        plans.append((run, max(1, math.ceil(_TURN_SECONDS / estimate)), estimate))
    each = sum(calls * estimate for _, calls, estimate in plans)
    count = min(_SAMPLES, max(_LEAST_SAMPLES, int(seconds / each)))
    samples = [[1e3 * _sample(run, "cpu", calls) for run, calls, _ in plans] for _ in range(count)]
    return [_summary(times) for times in zip(*samples, strict=True)]


def replayed(run: Callable[[], Any]) -> Callable[[], Any]:
    """``run`` captured as a CUDA graph, or ``run`` itself where it cannot be captured."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            run()
    stream.synchronize()
    try:
        with torch.cuda.graph(graph, stream=stream):
            run()
    except RuntimeError:
        return run
    return graph.replay


def timed_with_launches(run: Callable[[], Any], device: str, seconds: float) -> Time:
    """As :func:`timed`, but on CUDA too the calls themselves, which the host may be slower to launch than the GPU."""
    run()
    estimate = _sample(run, device, 1)
    calls = max(1, math.ceil(_SAMPLE_SECONDS / estimate))
    count = min(_SAMPLES, max(_LEAST_SAMPLES, int(seconds / (estimate * calls))))
    samples = [1e3 * estimate] if calls == 1 else []
    samples += [1e3 * _sample(run, device, calls) for _ in range(count - len(samples))]
    return _summary(samples)


def _summary(samples: Sequence[float]) -> Time:
    deciles = statistics.quantiles(samples, n=10, method="inclusive")
    return Time(statistics.median(samples), deciles[1], deciles[7])


def _sample(run: Callable[[], Any], device: str, calls: int) -> float:
    """Seconds per call."""
    if device.startswith("cuda"):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(calls):
            run()
        end.record()
        torch.cuda.synchronize()
        return max(start.elapsed_time(end), 1e-6) / 1e3 / calls
    begin = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - begin) / calls


def peak_memory(run: Callable[[], Any], device: str) -> float | None:
    """MiB that one call needs beyond what is held before it, results included; None where it cannot be measured.

    Call ``run`` once before, so that libraries and caches are loaded. CUDA: PyTorch's allocator. Linux: resident
    pages, after the C allocator has returned what it holds.
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / _MIB
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before, _ = _status("VmRSS"), _status("VmHWM")
    except (OSError, AttributeError, KeyError, TypeError):
        # Not glibc (no malloc_trim), not Linux (no /proc), or Windows, where CDLL(None) is a TypeError.
        return None
    run()
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    """KiB of an entry of /proc/self/status."""
    entries = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(entries[key].split()[0])
