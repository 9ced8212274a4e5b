from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable

import pytest
import torch
from click.testing import CliRunner, Result
from rich.console import Console

import s4_fast
from s4_fast import __main__ as command
from s4_fast import dispatch, doctor, doctor_report
from s4_fast.bench import machine
from s4_fast.bench.accuracy import KNOWN_LIMIT, Errors
from s4_fast.bench.cases import Case
from s4_fast.bench.inputs import OPS

TINY = tuple(Case(op, 2, 3, 40, dtype=dtype) for op in OPS for dtype in ("float32", "float64"))


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CASES", TINY)
    # PyKeOps compiles for a minute where it is installed.
    found = dispatch.backends()
    found["keops"] = dispatch.Status(False, (), "the package 'pykeops' is not installed", "pip install 'pykeops>=2.2'")
    monkeypatch.setattr(dispatch, "backends", lambda: found)


def _doctor(*options: str, width: int = 160) -> Result:
    return CliRunner().invoke(command.main, ["doctor", *options], env={"COLUMNS": str(width)})


def _break(monkeypatch: pytest.MonkeyPatch, op: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Make every backend of ``op`` but the reference return something else."""
    right = getattr(s4_fast, op)

    def broken(*args: object, backend: str, **kwargs: object) -> torch.Tensor:
        out = right(*args, backend=backend, **kwargs)
        return out if backend == "reference" else change(out)

    monkeypatch.setattr(s4_fast, op, broken)


def test_a_sound_installation() -> None:
    result = _doctor()
    assert result.exit_code == 0, result.output
    for expected in (s4_fast.__version__, torch.__version__, "AVX" if "AVX" in result.stdout else "cpu", *OPS):
        assert expected in result.stdout
    assert "FAIL" not in result.stdout


@pytest.mark.parametrize("options", [(), ("--verbose",)])
@pytest.mark.parametrize("width", [80, 120])
def test_the_report_is_readable(width: int, options: tuple[str, ...]) -> None:
    lines = _doctor(*options, width=width).stdout.splitlines()
    assert re.fullmatch(r".+; native library: .+; everything passed \(\d+ checks\)\.", lines[0])
    words = " ".join(" ".join(lines).split())
    assert all(len(line) <= width or " " not in line.strip() for line in lines)
    assert "…" not in words
    shown = ["backend", "usable", "ops, or why not", *OPS, "pytorch"]
    shown += ["forward", "gradient", "worst gradient", "verdict", "float64"] if options else ["float32"]
    assert not [text for text in shown if text not in words]
    # A screen; what is missing on this machine takes a few lines more.
    assert options or len(lines) <= (40 if dispatch.backends()["native"].usable else 48)


def test_what_failed_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    _break(monkeypatch, "fft_conv", lambda out: out * 1.0001)
    lines = _doctor(width=80).stdout.splitlines()
    assert re.search(r"\d+ of \d+ checks FAILED\.$", lines[0])
    assert lines[1].startswith("fft_conv ") and "allowed 2e-06 and 1e-05" in " ".join(" ".join(lines[1:3]).split())
    (row,) = [line for line in lines if line.startswith("fft_conv  ")]
    assert "FAIL" in row and "FAIL" not in next(line for line in lines if line.startswith("ssm_scan  "))


def test_json_is_all_there_is_on_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    _break(monkeypatch, "fft_conv", lambda out: print("[Library] Warning : hello") or out * float("nan"))
    result = _doctor("--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["machine"]["torch"] == torch.__version__ and not found["passed"]
    assert found["backends"]["keops"]["fix"] == "pip install 'pykeops>=2.2'"
    assert set(found["backends"]) == set(dispatch.BACKENDS)
    assert {finding["op"] for finding in found["findings"]} == set(OPS)
    failed = [finding for finding in found["findings"] if finding["verdict"] == "FAIL"]
    assert {finding["op"] for finding in failed} == {"fft_conv"} and failed[0]["forward_error"] is None
    assert found["said"] == ["[Library] Warning : hello"]


def test_what_compilers_write_is_not_on_standard_output(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def noisy(out: torch.Tensor) -> torch.Tensor:
        os.write(1, b"g++: a warning\n")
        return out

    _break(monkeypatch, "fft_conv", noisy)
    assert _doctor("--json").exit_code == 0
    print("back")
    out, err = capfd.readouterr()
    assert out == "back\n" and "g++: a warning" in err


def test_what_libraries_say_is_one_line_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def talkative(out: torch.Tensor) -> torch.Tensor:
        print("[KeOps] Warning : quiet", file=sys.stderr)
        return out

    _break(monkeypatch, "fft_conv", talkative)
    result = _doctor()
    assert result.stdout.splitlines()[-1] == "KeOps: quiet"
    assert result.stdout.count("quiet") == 1 and not result.stderr


@pytest.mark.parametrize("width", [80, 120])
def test_a_machine_with_a_gpu_has_a_table_per_device(width: int) -> None:
    gpu = "NVIDIA H200, 139 GiB, sm_90"
    backends = [name for name in dispatch.BACKENDS if name != "reference"]
    findings = [
        doctor.Finding(case, device, name, "pass", Errors(1.2e-7, 3.4e-6, "x"), "")
        for device in ("cpu", "cuda:0")
        for case in TINY
        for name in backends
    ]
    library = {"instruction set": "avx2", "CUDA": "for sm_80, sm_90; nvcc 12.8"}
    devices = {"cpu": "a CPU", "cuda:0": gpu}
    found = doctor.Examination(machine.describe(), devices, dispatch.backends(), library, "", findings, [])
    console = Console(width=width)
    with console.capture() as capture:
        console.print(doctor_report.text(found), crop=False)
    lines = capture.get().splitlines()
    assert lines[0].startswith(f"{gpu}; native library: yes, AVX2; everything passed")
    assert all(len(line) <= width for line in lines)
    for device in devices:
        assert f"float32 on {device}: of outputs" in capture.get()
    shown = [line for line in lines if line.split()[0:1] == ["fft_conv"]]
    assert len(shown) == 2 and all(name in capture.get() for name in backends)


def test_every_op_is_checked_in_both_precisions_and_at_a_long_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert set(OPS) == set(dispatch.ops())
    assert {(case.op, case.dtype) for case in doctor.CASES} >= {(op, d) for op in OPS for d in ("float32", "float64")}
    assert any(case.L == 2**20 and case.decay for case in doctor.CASES)


def test_a_wrong_result_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    _break(monkeypatch, "log_vandermonde", lambda out: out * 1.0001)
    result = _doctor()
    assert result.exit_code == 1
    assert "FAIL" in result.stdout
    assert "log_vandermonde H=2 n=3 L=40 float32 on pytorch, cpu" in result.stdout


def test_a_wrong_gradient_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    _break(monkeypatch, "cauchy_bilinear", lambda out: 2 * out - out.detach())
    assert _doctor().exit_code == 1


def test_an_exception_is_a_failure_with_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(out: torch.Tensor) -> torch.Tensor:
        raise OSError("libs4.so: undefined symbol")

    _break(monkeypatch, "fft_conv", broken)
    result = _doctor()
    assert result.exit_code == 1
    assert "undefined symbol" in result.stdout


def test_unusable_backends_name_their_cause_and_fix() -> None:
    result = _doctor()
    assert "the package 'pykeops' is not installed" in result.stdout
    assert "pip install 'pykeops>=2.2'" in result.stdout
    assert result.exit_code == 0


def test_keops_rounding_is_a_known_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    found = dispatch.backends()
    found["keops"] = dispatch.Status(True, ("log_vandermonde",))
    monkeypatch.setattr(dispatch, "backends", lambda: found)
    table = dispatch._implementations["log_vandermonde"]
    monkeypatch.setitem(table, "keops", dispatch.Implementation("", lambda call: None, lambda call: False))
    monkeypatch.setattr(dispatch, "_missing", lambda backend: "")
    right = s4_fast.log_vandermonde

    def rounded(*args: object, backend: str, **kwargs: object) -> torch.Tensor:
        if backend != "keops":
            return right(*args, backend=backend, **kwargs)
        return right(*args, backend="pytorch", **kwargs) * (1 + 1e-5)

    monkeypatch.setattr(s4_fast, "log_vandermonde", rounded)
    case = Case("log_vandermonde", 2, 3, 1000)
    verdicts = {finding.backend: finding.verdict for finding in doctor.check(case, "cpu")}
    assert verdicts["keops"] == KNOWN_LIMIT
    assert verdicts["pytorch"] == "pass"


def test_a_forced_backend_is_pointed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "reference")
    result = _doctor()
    assert f"{dispatch.ENVIRONMENT_VARIABLE}=reference" in result.stdout
    assert result.exit_code == 0
