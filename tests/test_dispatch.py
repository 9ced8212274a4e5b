from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import s4_fast
from s4_fast import (
    BackendUnavailableError,
    S4SequenceModel,
    backend_requests,
    backend_table,
    dispatch,
    explain,
    fft_conv,
    log_vandermonde,
    native_library,
    use_backend,
)
from s4_fast.backend_table import BACKENDS, Backend
from s4_fast.dispatch import ENVIRONMENT_VARIABLE
from tests.helpers import keops_missing, needs_keops, needs_native, relative_error

U, K = torch.randn(2, 3, 8), torch.randn(3, 8)
X = torch.zeros(1, 2, dtype=torch.complex64)
AUTOMATIC = "pytorch" if native_library.cause() else "native"  # for fft_conv


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A backend "stub" of fft_conv alone that returns sevens, refuses float64, and is preferred for 100 features."""
    module = ModuleType("tests.stub_backend")
    module.fft_conv = lambda u, k, D: u.new_full((u.shape[0], k.shape[0], *u.shape[1:]), 7.0)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    table = dict(dispatch._implementations["fft_conv"])
    table["stub"] = dispatch.Implementation(
        module.__name__,
        refuses=lambda call: "it has no float64" if call.dtype == torch.float64 else None,
        preferred=lambda call: call.shape["H"] == 100,
    )
    monkeypatch.setitem(dispatch._implementations, "fft_conv", table)
    monkeypatch.setitem(BACKENDS, "stub", Backend())
    monkeypatch.setattr(dispatch, "AUTOMATIC_ORDER", ("stub", *dispatch.AUTOMATIC_ORDER))
    return module


def chosen(backend: str | None = None) -> str:
    return explain(fft_conv, U, K, backend=backend).backend


def sevens(y: Tensor) -> bool:
    return bool((y == 7).all())


# ------------------------------------------------------------------------------------------------- the order of say


def test_the_call_overrules_the_block_which_overrules_the_environment(
    stub: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chosen() == AUTOMATIC
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "reference")
    assert chosen() == "reference"
    with use_backend("stub"):
        assert chosen() == "stub"
        assert chosen("pytorch") == "pytorch"
    assert chosen() == "reference"


def test_auto_in_the_call_or_the_block_overrules_what_is_below(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "reference")
    assert chosen("auto") == AUTOMATIC
    with use_backend("auto"):
        assert chosen() == AUTOMATIC
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "auto")
    assert chosen() == AUTOMATIC
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "")
    assert chosen() == AUTOMATIC


def test_blocks_nest_and_end_with_exceptions() -> None:
    with use_backend("reference"):
        with use_backend("pytorch"):
            assert chosen() == "pytorch"
        assert chosen() == "reference"
        with pytest.raises(KeyError), use_backend("pytorch"):
            raise KeyError
        assert chosen() == "reference"
    assert chosen() == AUTOMATIC


def test_the_chosen_backend_runs(stub: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sevens(fft_conv(U, K, backend="stub"))
    with use_backend("stub"):
        assert sevens(fft_conv(U, K))
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "stub")
    assert sevens(fft_conv(U, K))
    monkeypatch.delenv(ENVIRONMENT_VARIABLE)
    assert not sevens(fft_conv(U, K))


def test_compiled_functions_see_the_block_they_are_called_in(stub: ModuleType) -> None:
    compiled = torch.compile(fft_conv, fullgraph=True, backend="aot_eager")
    expected = fft_conv(U, K)
    torch.testing.assert_close(compiled(U, K), expected)
    with use_backend("stub"):
        assert sevens(compiled(U, K))
    torch.testing.assert_close(compiled(U, K), expected)


def test_a_block_that_is_entered_again_compiles_nothing_again(stub: ModuleType) -> None:
    counter = CompileCounter()
    compiled = torch.compile(fft_conv, fullgraph=True, backend=counter)
    for outer in ("auto", "reference", "pytorch"):
        for _ in range(3):
            compiled(U, K)
            with use_backend(outer), use_backend("stub"):
                compiled(U, K)
    assert counter.frame_count == 2


def test_a_block_may_stand_inside_a_compiled_function(stub: ModuleType) -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def function(u: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        with use_backend("stub"):
            inside = fft_conv(u, k)
        return inside, fft_conv(u, k)

    inside, outside = function(U, K)
    assert sevens(inside)
    torch.testing.assert_close(outside, fft_conv(U, K))


def test_blocks_of_threads_may_be_left_in_any_order() -> None:
    first, second, third = (use_backend(name) for name in ("reference", "pytorch", "keops"))
    with ThreadPoolExecutor(1) as elsewhere:
        first.__enter__()
        elsewhere.submit(second.__enter__).result()
        assert chosen() == "pytorch" == elsewhere.submit(chosen).result()
        first.__exit__(None, None, None)
        assert chosen() == "pytorch"
        third.__enter__()
        elsewhere.submit(second.__exit__, None, None, None).result()
        assert dispatch.requested() == "keops"
        third.__exit__(None, None, None)
    assert chosen() == AUTOMATIC and dispatch.requested() is None


def test_blocks_of_many_threads_leave_nothing_behind() -> None:
    barrier = threading.Barrier(8)

    def enter_and_leave(seed: int) -> None:
        rng = random.Random(seed)
        barrier.wait()
        for _ in range(300):
            blocks = [use_backend(rng.choice(["reference", "pytorch", "auto"])) for _ in range(3)]
            for block in blocks:
                block.__enter__()
            rng.shuffle(blocks)
            for block in blocks:
                block.__exit__(None, None, None)
                dispatch.requested()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(enter_and_leave, range(8)))
    assert backend_requests._blocks == () and dispatch.requested() is None


def test_a_compiled_block_does_not_bring_back_one_that_another_thread_leaves(stub: ModuleType) -> None:
    outer, right = use_backend("reference"), stub.fft_conv

    def leaving(*args: Tensor) -> Tensor:
        if dispatch.requested() is not None:
            outer.__exit__(None, None, None)
        return right(*args)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def function(u: Tensor, k: Tensor) -> Tensor:
        with use_backend("stub"):
            return fft_conv(u, k)

    stub.fft_conv = leaving  # type: ignore[attr-defined]
    outer.__enter__()
    assert sevens(function(U, K))
    assert dispatch.requested() is None


# --------------------------------------------------------------------------------------------- backends preferred


def prefer_by_block(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(backend_requests, "_innermost", backend_requests.Request(name, "use_backend()", False))
    return "use_backend()"


def prefer_by_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, name)
    return f"the environment variable {ENVIRONMENT_VARIABLE}"


BOTH_WAYS = pytest.mark.parametrize("prefer", [prefer_by_block, prefer_by_environment])


@BOTH_WAYS
def test_what_a_preferred_backend_does_not_serve_is_chosen_automatically(
    prefer: Callable[..., str], stub: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = prefer("stub", monkeypatch)
    assert sevens(fft_conv(U, K)) and explain(fft_conv, U, K).reason == f"requested by {where}"
    double, kernels = U.double(), K.double()
    found = explain(fft_conv, double, kernels)
    assert found.backend == AUTOMATIC and not sevens(fft_conv(double, kernels))
    assert found.reason.startswith(f"{where} prefers stub, which refuses this call (it has no float64); automatic: ")
    found = explain(log_vandermonde, X, X, 3)
    assert found.backend in ("native", "pytorch") and log_vandermonde(X, X, 3).shape == (1, 3)
    assert found.reason.startswith(f"{where} prefers stub, which does not implement log_vandermonde; automatic: ")


@BOTH_WAYS
@pytest.mark.usefixtures("no_keops")
def test_a_preferred_backend_that_is_missing_raises_for_every_op(
    prefer: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prefer("keops", monkeypatch)
    for call in (lambda: log_vandermonde(X, X, 3), lambda: fft_conv(U, K), lambda: dispatch.requested("fft_conv")):
        with pytest.raises(BackendUnavailableError, match=r"pykeops' is not installed; run: pip install"):
            call()


def test_compiled_functions_replace_what_a_preferred_backend_does_not_serve(stub: ModuleType) -> None:
    compiled = torch.compile(fft_conv, fullgraph=True, backend="aot_eager")
    for u, k in ((U, K), (U.double(), K.double())):
        with use_backend("stub"):
            torch.testing.assert_close(compiled(u, k), fft_conv(u, k))
        torch.testing.assert_close(compiled(u, k), fft_conv(u, k))


def test_what_is_requested_of_an_op(stub: ModuleType) -> None:
    assert dispatch.requested() is dispatch.requested("fft_conv") is None
    with use_backend("stub"):
        assert dispatch.requested() == dispatch.requested("fft_conv") == "stub"
        assert dispatch.requested("ssm_scan") is None
    with use_backend("stub", strict=True):
        assert dispatch.requested("ssm_scan") == "stub"
    with use_backend("stub"), use_backend("auto"):
        assert dispatch.requested() is None


@pytest.mark.parametrize("layer", ["s4d", "s4"])
@pytest.mark.parametrize(
    "backend",
    ["reference", "pytorch", pytest.param("native", marks=needs_native), pytest.param("keops", marks=needs_keops)],
)
def test_a_whole_model_runs_on_a_preferred_backend(layer: str, backend: str) -> None:
    torch.manual_seed(0)
    model = S4SequenceModel(2, 4, 3, 2, 8, layer=layer)
    u = torch.randn(3, 40, 2)
    with torch.no_grad():
        expected = model(u)
    with use_backend(backend):
        got = model(u)
        got.sum().backward()
        with torch.no_grad():
            _, state = model.prefill(u[:, :-1])
            last, _ = model.step(u[:, -1], state)
    assert relative_error(got.detach(), expected) < 1e-4
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    assert last.isfinite().all()


# ------------------------------------------------------------------------------------------------------ registrations


def test_unknown_names_are_not_registered() -> None:
    known = ", ".join(dispatch.ops())
    with pytest.raises(ValueError, match=rf"unknown op 'fft' in register\(\); expected one of {known}$"):
        dispatch.register("fft", "pytorch", "nowhere")
    known = "reference, pytorch, keops, triton, native, tensor_cores"
    with pytest.raises(ValueError, match=rf"unknown backend 'Native' in register\(\); expected one of {known}$"):
        dispatch.register("fft_conv", "Native", "nowhere")
    assert dispatch.implementations("fft_conv") == ("reference", "pytorch", "native")


def test_what_a_module_offers_is_told_by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dispatch._implementations, "fft_conv", {})
    dispatch.register("fft_conv", "reference", "nowhere")
    dispatch.register("fft_conv", "pytorch", "nowhere", offers={"encores": ("cpu",)})
    assert dispatch.offers("fft_conv", "pytorch", "encores", "cpu")
    assert not dispatch.offers("fft_conv", "pytorch", "encores", "cuda")
    assert not dispatch.offers("fft_conv", "pytorch", "flowers", "cpu")
    assert not dispatch.offers("fft_conv", "reference", "encores", "cpu")


def test_no_backend_takes_the_turn_of_another() -> None:
    rows = {"late": Backend(turn=2), "first": Backend(turn=1), "never": Backend(), "second": Backend(turn=1)}
    assert backend_table.in_turn(rows) == ("first", "second", "late")


def test_the_table_of_backends_is_whole() -> None:
    assert backend_table.AUTOMATIC_ORDER == ("native", "triton", "pytorch")
    assert {row.turn for row in BACKENDS.values()} == {None, 1, 2, 3}
    assert not BACKENDS["pytorch"].devices and not BACKENDS["pytorch"].requirements
    for (op, device, name), pays in backend_table.SCAN_THRESHOLDS.items():
        assert BACKENDS[name].scan[op, device] == pays and name in dispatch.implementations(op)


# ---------------------------------------------------------------------------------------------- the automatic choice


def test_automatic_choice_takes_a_backend_where_it_is_preferred_and_serves(stub: ModuleType) -> None:
    many = torch.randn(1, 100, 8), torch.randn(100, 8)
    assert explain(fft_conv, *many).backend == "stub"
    assert explain(fft_conv, U, K).backend == AUTOMATIC
    assert explain(fft_conv, *(t.double() for t in many)).backend == AUTOMATIC


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_automatic_choice_never_takes_keops(dtype: torch.dtype) -> None:
    v = torch.randn(4, 4, dtype=dtype)
    for op, arguments in [("log_vandermonde", (v, v, 9)), ("cauchy_mult", (v, v, v))]:
        assert "keops" in dispatch.implementations(op)
        assert explain(op, *arguments).backend in ("native", "pytorch")


def test_pytorch_serves_every_op() -> None:
    assert all("pytorch" in dispatch.implementations(op) for op in dispatch.ops())


# -------------------------------------------------------------------------------------------------- explicit choices


def test_an_explicit_choice_is_not_replaced_where_it_cannot_serve(stub: ModuleType) -> None:
    with pytest.raises(
        BackendUnavailableError, match=r"'stub' \(from backend=\) cannot run fft_conv: it has no float64"
    ):
        fft_conv(U.double(), K.double(), backend="stub")
    with (
        use_backend("stub", strict=True),
        pytest.raises(BackendUnavailableError, match=r"'stub' \(from use_backend\(\)\) .* it has no float64"),
    ):
        fft_conv(U.double(), K.double())
    message = r"'stub' \(from use_backend\(\)\) cannot run log_vandermonde: it does not implement log_vandermonde; "
    with (
        use_backend("stub", strict=True),
        pytest.raises(BackendUnavailableError, match=message + "backends that do: reference,"),
    ):
        log_vandermonde(X, X, 3)


def test_a_device_that_a_backend_does_not_run_on_is_named() -> None:
    u, k = U.to("meta"), K.to("meta")
    x = X.to("meta")
    assert explain(log_vandermonde, x, x, 3).backend == "pytorch"
    assert explain(fft_conv, u, k, backend="reference").backend == "reference"
    for name in ("native", "triton", "keops"):
        if not dispatch.backends()[name].cause:
            with pytest.raises(BackendUnavailableError, match=f"'{name}' .*: it serves cpu and cuda, not meta"):
                explain(log_vandermonde, x, x, 3, backend=name)


@pytest.fixture
def no_keops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pykeops", raising=False)
    monkeypatch.setattr(backend_table.importlib.util, "find_spec", lambda name: None)


@pytest.mark.usefixtures("no_keops")
def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    message = r"^backend 'keops' .*: the package 'pykeops' is not installed; run: pip install 'pykeops>=2.2'$"
    with pytest.raises(BackendUnavailableError, match=message):
        log_vandermonde(X, X, 3, backend="keops")
    status = dispatch.backends()["keops"]
    assert (status.usable, status.cause) == (False, "the package 'pykeops' is not installed")
    assert status.fix == "pip install 'pykeops>=2.2'"


def test_a_missing_compiler_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_table.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(backend_table.shutil, "which", lambda name: None)
    with pytest.raises(
        BackendUnavailableError, match=r"'keops' .* there is no C\+\+ compiler; run: apt-get install g\+\+"
    ):
        log_vandermonde(X, X, 3, backend="keops")
    monkeypatch.setattr(backend_table.shutil, "which", lambda name: "/opt/bin/c++" if name == "c++" else None)
    monkeypatch.setenv("CXX", "c++")
    assert dispatch.backends()["keops"].usable


@needs_keops
@pytest.mark.slow
def test_a_failing_compiler_is_an_error_that_says_how_to_see_more(tmp_path: Path) -> None:
    code = "import torch, s4_fast; x = torch.zeros(1, 2, dtype=torch.complex64)\n"
    code += "try: s4_fast.log_vandermonde(x, x, 3, backend='keops')\n"
    code += "except s4_fast.BackendUnavailableError as error: print(error)"
    result = run(code, KEOPS_CACHE_FOLDER=str(tmp_path), CXXFLAGS="--no-such-flag")
    assert result.startswith("backend 'keops' could not compile")
    assert "PYKEOPS_VERBOSE=1 shows what the compiler said" in result


@pytest.mark.parametrize("name", ["cuda", "PyTorch", "", "pytorch "])
def test_an_unknown_name_is_refused_with_the_known_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = "expected one of reference, pytorch, keops, triton, native, tensor_cores"
    with pytest.raises(ValueError, match=f"unknown backend '{name}' in backend=; {known}"):
        fft_conv(U, K, backend=name)
    with pytest.raises(ValueError, match=rf"unknown backend '{name}' in use_backend\(\); {known}"), use_backend(name):
        pass
    if name:
        monkeypatch.setenv(ENVIRONMENT_VARIABLE, name)
        with pytest.raises(ValueError, match=f"'{name}' in the environment variable {ENVIRONMENT_VARIABLE}; {known}"):
            fft_conv(U, K)


# ---------------------------------------------------------------------------------------------- explain and backends


def test_explain_says_who_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    assert explain(fft_conv, U, K) == explain("fft_conv", U, K)
    assert explain(fft_conv, U, K).reason.startswith("automatic")
    assert explain(fft_conv, U, K, backend="reference").reason == "requested by backend="
    with use_backend("reference"):
        assert explain(fft_conv, U, K).reason == "requested by use_backend()"
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "reference")
    assert explain(fft_conv, U, K).reason == f"requested by the environment variable {ENVIRONMENT_VARIABLE}"


def test_explain_raises_what_the_call_would_raise() -> None:
    with pytest.raises(ValueError, match="fft_conv: expected k of shape"):
        explain(fft_conv, U, K[:1])
    with pytest.raises(ValueError, match=r"unknown op 'fft'; expected one of .*fft_conv"):
        explain("fft", U, K)


def test_explain_computes_nothing() -> None:
    huge = torch.empty(1, 1, dtype=torch.complex64).expand(10**9, 10**9)
    assert explain("log_vandermonde", huge, huge, 2**20).backend in ("native", "pytorch")


def test_what_is_asked_of_a_backend_includes_the_gradients_it_must_give() -> None:
    x = torch.zeros(2, 3, dtype=torch.complex64)
    describe = dispatch._describers["log_vandermonde"]
    assert describe(x, x, 5).grads == ()
    assert describe(x, x.clone().requires_grad_(), 5).grads == ("x",)
    with torch.no_grad():
        assert describe(x, x.clone().requires_grad_(), 5).grads == ()


def test_backends_lists_all_of_them_with_what_they_implement() -> None:
    status = dispatch.backends()
    assert tuple(status) == tuple(BACKENDS)
    assert status["pytorch"].usable
    assert set(status["pytorch"].ops) == set(dispatch.ops())
    assert set(status["keops"].ops) == {"log_vandermonde", "log_vandermonde_transpose", "cauchy_mult"}
    assert status["keops"].usable == (not keops_missing())
    assert all(entry.usable or entry.cause for entry in status.values())


# ------------------------------------------------------------------------------------------------------------ import


def run(code: str, **environment: str) -> str:
    """The standard output of ``code`` in a fresh interpreter that turns warnings into errors."""
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | environment).stdout


def test_import_is_quiet_and_touches_nothing() -> None:
    code = """
import os, sys, torch
sys.modules.update(dict.fromkeys(["pykeops", "triton", "matplotlib", "rich", "click"]))  # importing them now fails
environment = dict(os.environ)
import s4_fast
unused = {"s4_fast.distributed", "s4_fast.export", "s4_fast.state_spaces", "torch._dynamo", "torch._inductor", "sympy"}
assert not unused & set(sys.modules)
assert dict(os.environ) == environment
assert not torch.cuda.is_initialized()
"""
    assert run(code) == ""


def test_all_modules_are_there_after_an_import_of_the_package() -> None:
    code = """
import s4_fast
assert {"state_spaces", "distributed", "export", "ops", "S4DLayer", "__version__"} <= set(dir(s4_fast))
assert not {"s4_fast.state_spaces", "s4_fast.distributed", "s4_fast.export"} & set(__import__("sys").modules)
print(s4_fast.state_spaces.S4D.__name__, s4_fast.distributed.scan.__name__, s4_fast.export.to_c.__name__)
print(s4_fast.layers.S4DLayer is s4_fast.S4DLayer, s4_fast.ops.fft_conv is s4_fast.fft_conv)
try:
    s4_fast.state_space
except AttributeError as error:
    print(error)
"""
    said = "module 's4_fast' has no attribute 'state_space'"
    assert run(code) == f"S4D scan to_c\nTrue True\n{said}\n"


@needs_keops
@pytest.mark.slow
def test_keops_keeps_standard_output_clean() -> None:
    code = "import torch, s4_fast; x = torch.zeros(1, 2, dtype=torch.complex64)\n"
    code += "s4_fast.log_vandermonde(x, x, 3, backend='keops')"
    assert run(code) == ""


def test_public_names_exist() -> None:
    assert all(hasattr(s4_fast, name) for name in s4_fast.__all__)
