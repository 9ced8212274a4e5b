"""The measured choice on GPUs: by architecture, shape and pass, what it leaves to the order, and what it costs."""

from __future__ import annotations

import dataclasses
import json
import re
import timeit
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from s4_fast import (
    backend_table,
    dispatch,
    explain,
    files,
    gpu,
    gpu_choices,
    torch_private,
    use_backend,
)
from s4_fast.bench.accuracy import FAIL
from s4_fast.dispatch import Call
from tests.scripts import load

ROOT = Path(__file__).resolve().parents[1]
OP = "log_vandermonde"


def tune() -> Any:
    return load("benchmarks/tune.py")


def measured(times: dict[str, Any], L: int = 4096, kind: str = "forward", op: str = OP, **more: Any) -> dict[str, Any]:
    return {"op": op, "dtype": "float32", "H": 64, "n": 32, "L": L, kind: times, **more}


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Everything runs on a GPU of an architecture, of which these rows are known."""
    for table in dispatch._implementations.values():
        for name in ("native", "triton", "tensor_cores"):
            if name in table:
                serving = dataclasses.replace(table[name], refuses=lambda call: None, preferred=lambda call: True)
                monkeypatch.setitem(table, name, serving)
    monkeypatch.setattr(dispatch, "_missing", torch_private.constant_in_graphs(lambda backend: ""))
    caches = (gpu_choices._table, gpu_choices._order, gpu_choices._reason)

    def known(*rows: dict[str, Any], architecture: str = "sm_90", here: str = "sm_90") -> None:
        file = tmp_path / "gpu_choices.json"
        file.write_text(json.dumps({architecture: {"measured on": "a GPU", "rows": rows}}), "utf-8")
        monkeypatch.setattr(gpu_choices, "FILE", file)
        monkeypatch.setattr(gpu, "architecture", torch_private.constant_in_graphs(lambda: here))
        for cache in caches:
            cache.cache_clear()

    yield known
    for cache in caches:
        cache.cache_clear()


def call(L: int = 4096, op: str = OP, grads: tuple[str, ...] = (), device: str = "cuda", **sizes: int) -> Call:
    return Call(op, device, torch.float32, {"H": 64, "n": 32, "L": L, **sizes}, grads)


def chosen(*args: Any, **kwargs: Any) -> str:
    return dispatch.choose(call(*args, **kwargs)).backend


def test_the_fastest_runs_and_the_reason_quotes_it(gpus: Callable[..., None]) -> None:
    gpus(measured({"native": [0.047], "pytorch": [0.1], "triton": [0.041]}))
    assert dispatch.choose(call()) == (
        "triton",
        "automatic: measured fastest on sm_90 for about this shape (H = 64, n = 32, L = 4096, forward): "
        "0.041 ms; native 0.047; pytorch 0.1",
        None,
    )
    assert chosen(op="log_vandermonde_transpose") == chosen(device="cpu") == "native"


def test_another_architecture_goes_by_the_order(gpus: Callable[..., None]) -> None:
    gpus(measured({"native": [0.047], "triton": [0.041]}), here="sm_100")
    assert dispatch.choose(call()) == (
        "native",
        f"automatic: first of native, triton, pytorch that serves {OP} here",
        None,
    )


def test_the_nearest_shape_says_it_and_a_far_one_nothing(gpus: Callable[..., None]) -> None:
    gpus(
        measured({"native": [1.0], "triton": [2.0]}, L=1024),
        measured({"native": [2.0], "triton": [1.0]}, L=16384),
    )
    lengths = (1024, 2000, 4000, 4200, 16384, 100_000, 140_000)
    assert [chosen(L) for L in lengths] == ["native"] * 3 + ["triton"] * 3 + ["native"]
    assert chosen(16384, H=64 * 8) == "triton" and chosen(16384, H=64 * 9) == chosen(16384, H=0) == "native"
    assert chosen(16384, batch=4) == "triton" and chosen(16384, batch=16) == "native"


def test_gradients_go_by_both_passes(gpus: Callable[..., None]) -> None:
    gpus(measured({"native": [1.0], "triton": [2.0]}) | {"forward+backward": {"native": [4.0], "triton": [3.0]}})
    assert (chosen(), chosen(grads=("v",))) == ("native", "triton")


def test_half_signals_have_rows_of_their_own(gpus: Callable[..., None]) -> None:
    gpus(measured({"native": [2.0], "pytorch": [1.0]}, op="diagonal_ssm", dtype="bfloat16"))
    assert chosen(op="diagonal_ssm", sample_bytes=2) == "pytorch"
    assert chosen(op="diagonal_ssm", sample_bytes=4) == "native"


@pytest.mark.parametrize(
    ("triton", "expected"), [(0.972, "native"), (0.96, "triton"), (1.0, "native"), (1.5, "native")]
)
def test_near_ties_keep_the_order(triton: float, expected: str, gpus: Callable[..., None]) -> None:
    gpus(measured({"native": [1.0], "triton": [triton]}))
    choice = dispatch.choose(call())
    assert choice.backend == expected
    assert ("first, as no other is clearly faster" in choice.reason) == (triton < 1 and expected == "native")


def test_what_launches_for_longer_does_not_replace_the_first(gpus: Callable[..., None]) -> None:
    gpus(measured({"native": [0.02, 0.1], "triton": [0.01, 0.5]}))
    choice = dispatch.choose(call())
    assert choice.backend == "native"
    assert choice.reason.endswith("0.02 ms; triton 0.01 (with launches native 0.1; triton 0.5)")
    gpus(measured({"native": [0.02, 0.1], "triton": [0.01, 0.1]}))
    assert chosen() == "triton"


def test_only_what_may_be_chosen_and_serves_is(gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(measured({"native": [3.0], "pytorch": [2.5], "tensor_cores": [0.5], "triton": [1.0]}))
    assert chosen() == "triton"
    table = dispatch._implementations[OP]
    monkeypatch.setitem(table, "triton", dataclasses.replace(table["triton"], refuses=lambda call: "it is Sunday"))
    assert chosen() == "pytorch"
    with use_backend("native"):
        assert chosen() == "native"
    monkeypatch.setattr(dispatch, "AUTOMATIC_ORDER", ("tensor_cores", *backend_table.AUTOMATIC_ORDER))
    assert chosen() == "tensor_cores"


def test_a_shape_where_the_first_was_not_measured_keeps_it(gpus: Callable[..., None]) -> None:
    gpus(measured({"pytorch": [2.0], "triton": [1.0]}))
    assert chosen() == "native"


def test_where_a_preferred_backend_does_not_serve_the_fastest_runs(gpus: Callable[..., None]) -> None:
    gpus(measured({"native": [2.0], "triton": [1.0]}, op="cauchy_bilinear"))
    with use_backend("keops"):
        choice = dispatch.choose(call(op="cauchy_bilinear"))
    assert (choice.backend, choice.replaces) == ("triton", "keops") and "measured fastest" in choice.reason


def test_graphs_for_one_length_have_the_choice_and_those_for_any_do_not_ask(gpus: Callable[..., None]) -> None:
    gpus(measured({"native": [2.0], "pytorch": [1.0]}))

    def function(t: Tensor) -> Tensor:
        return t + (10 if dispatch.choose(call(len(t))).backend == "pytorch" else 1)

    torch.compiler.reset()
    counter = CompileCounter()
    run = torch.compile(function, fullgraph=True, backend=counter, dynamic=True)
    assert [run(torch.zeros(L))[0].item() for L in (4096, 5000, 100_000)] == [1, 1, 1] and counter.frame_count == 1
    torch.compiler.reset()
    run = torch.compile(function, fullgraph=True, backend="eager", dynamic=False)
    known = torch_private.is_number(1) and hasattr(torch.fx.experimental.symbolic_shapes, "has_static_value")
    assert [run(torch.zeros(L))[0].item() for L in (4096, 100_000)] == [10 if known else 1, 1]
    torch.compiler.reset()


def test_it_is_read_at_the_first_call_on_a_gpu_and_costs_microseconds(
    gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(measured({"native": [2.0], "triton": [1.0]}))
    x = torch.zeros(2, 3, dtype=torch.complex64)
    explain(OP, x, x, 4)
    assert gpu_choices._table.cache_info().currsize == 0
    assert chosen() == "triton"
    monkeypatch.setattr(gpu_choices, "FILE", ROOT / "nowhere")
    asked = call()
    alone = min(timeit.repeat(lambda: dispatch._first(asked), number=1000, repeat=5))
    assert min(timeit.repeat(lambda: dispatch.choose(asked), number=1000, repeat=5)) - alone < 0.05


def test_the_file_of_the_package_is_what_the_measurements_say() -> None:
    results = sorted((ROOT / "benchmarks/results").glob("nvidia-*.json"))
    expected = tune().tuned({}, [json.loads(file.read_text("utf-8")) for file in results])
    text = gpu_choices.FILE.read_text("utf-8")
    assert text == tune().text(expected), "run: python benchmarks/tune.py benchmarks/results/nvidia-*.json"
    rows = [row for part in expected.values() for row in part["rows"]]
    names = {name for row in rows for kind in gpu_choices.PASSES for name in row.get(kind, {})}
    assert len(rows) > 20
    assert names <= set(backend_table.BACKENDS) - {"reference"}


# ---------------------------------------------------------------------------------------------------------------- tune


def bench_row(op: str, backend: str, milliseconds: float, **more: Any) -> dict[str, Any]:
    """As ``bench --json`` writes it."""
    row = {"op": op, "H": 64, "n": 32, "L": 4096, "batch": 1, "rank": 1, "dtype": "float32", "device": "cuda:0"}
    row |= {"backend": backend, "forward_ms": milliseconds, "forward_backward_ms": None, "accuracy": "pass"}
    return row | {"forward_launched_ms": None, "forward_backward_launched_ms": None, "skipped": "", "error": ""} | more


def document(*rows: dict[str, Any], gpu: str = "NVIDIA A100, 80 GiB, sm_80") -> dict[str, Any]:
    return {"machine": {"gpu": gpu, "torch": "2.13", "triton": "3.6"}, "rows": list(rows)}


def test_results_of_bench_become_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    rows = [
        bench_row(OP, "native", 0.123456, forward_launched_ms=0.2, forward_backward_ms=0.5),
        bench_row(OP, "triton", 0.1, forward_backward_ms=0.4),
        bench_row(OP, "direct", 9.0),
        bench_row(OP, "reference", 9.0),
        bench_row(OP, "pytorch", 0.01, accuracy=FAIL),
        bench_row("cauchy_mult", "native", 0.3),
        bench_row("cauchy_mult", "triton", 0.2),
        bench_row("cauchy_mult", "pytorch", None, skipped="it is Sunday"),
        bench_row("cauchy_bilinear", "triton", 1.0),
        bench_row("cauchy_bilinear", "pytorch", 0.5),
        bench_row("S4DLayer", "s4_fast", 1.0),
        bench_row("ssm_scan", "native", 1.0, device="cpu"),
        bench_row("diagonal_ssm", "native", 1.0, batch=16, dtype="bfloat16"),
        bench_row("diagonal_ssm", "tensor_cores", 0.6, batch=16, dtype="bfloat16"),
    ]
    results, out = tmp_path / "bench.json", tmp_path / "choices.json"
    results.write_text(json.dumps(document(*rows)))
    files.write(out, tune().text({"sm_90": {"measured on": "another", "rows": []}}))
    monkeypatch.setattr("sys.argv", ["tune.py", str(results), "--out", str(out)])
    tune().main()
    assert capsys.readouterr().out == f"sm_80: 3 shapes in {out}\n"
    found = json.loads(out.read_text())
    assert found["sm_90"] == {"measured on": "another", "rows": []}
    assert found["sm_80"] == {
        "measured on": "NVIDIA A100, 80 GiB, sm_80, PyTorch 2.13, Triton 3.6",
        "rows": [
            {
                **{"op": "cauchy_mult", "dtype": "float32", "H": 64, "n": 32, "L": 2049},
                "forward": {"native": [0.3], "triton": [0.2]},
            },
            {
                **{"op": "diagonal_ssm", "dtype": "bfloat16", "batch": 16, "H": 64, "n": 32, "L": 4096},
                "forward": {"native": [1.0], "tensor_cores": [0.6]},
            },
            {
                **{"op": OP, "dtype": "float32", "H": 64, "n": 32, "L": 4096},
                "forward": {"native": [0.1235, 0.2], "triton": [0.1]},
                "forward+backward": {"native": [0.5], "triton": [0.4]},
            },
        ],
    }


def test_results_of_a_cpu_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "bench.json"
    results.write_text(json.dumps({"machine": {"cpu": "a CPU"}, "rows": []}))
    monkeypatch.setattr("sys.argv", ["tune.py", str(results), "--out", str(tmp_path / "out.json")])
    with pytest.raises(SystemExit, match=r"tune.py: it has no GPU: only results of 'bench --device cuda'"):
        tune().main()
    assert not (tmp_path / "out.json").exists()


def test_the_script_for_a_gpu_runs_what_matters_most_first() -> None:
    text = (ROOT / "benchmarks/gpu.sh").read_text("utf-8")
    listed = re.search(r"^all=\((.*)\)$", text, re.MULTILINE)
    assert listed
    steps = listed[1].split()
    assert steps[:6] == ["machine", "native", "tensor", "kernels", "bench", "tune"]
    assert steps[6:] == ["tests", "doctor", "memcheck", "racecheck", "slow-tests"]
    assert not [step for step in steps if not re.search(rf"^    (\S+ \| )?{step}( \| \S+)?\)", text, re.MULTILINE)]
