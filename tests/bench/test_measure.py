from __future__ import annotations

import sys
import time
from collections.abc import Callable

import pytest
import torch

from s4_fast.bench import measure


def test_times_are_milliseconds_per_call_in_order() -> None:
    result = measure.timed(lambda: time.sleep(0.005), "cpu", seconds=0.05)
    assert 5 <= result.p20 <= result.median <= result.p80 < 50


def test_a_slow_evaluation_runs_a_few_times_only() -> None:
    calls = []

    def slow() -> None:
        calls.append(1)
        time.sleep(0.05)

    measure.timed(slow, "cpu", seconds=0.01)
    assert len(calls) == 4


def test_several_are_timed_in_turn() -> None:
    calls = []

    def waiting(name: str, seconds: float) -> Callable[[], None]:
        return lambda: (calls.append(name), time.sleep(seconds))[1]

    quick, slow = measure.timed_in_turn([waiting("a", 0.025), waiting("b", 0.05)], seconds=0.4)
    assert 25 <= quick.p20 <= quick.median <= quick.p80
    assert 50 <= slow.p20 <= slow.median <= slow.p80
    assert quick.median < slow.median
    warm_up = [*"aaaa", *"bbbb"]
    assert calls[:8] == warm_up and "".join(calls[8:]) == "ab" * (len(calls) // 2 - 4)


@pytest.mark.skipif(sys.platform != "linux", reason="resident pages are read from /proc")
def test_peak_memory_counts_temporaries_and_not_what_was_there() -> None:
    held = torch.ones(2**24)
    torch.ones(2**23).add(1).sum()
    peak = measure.peak_memory(lambda: (torch.ones(2**23) + 1).sum(), "cpu")
    assert peak is not None
    assert 60 < peak < 80
    assert held.numel() == 2**24


def test_peak_memory_is_unknown_where_the_process_file_system_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(key: str) -> int:
        raise FileNotFoundError("/proc/self/status")

    monkeypatch.setattr(measure, "_status", missing)
    assert measure.peak_memory(lambda: None, "cpu") is None
