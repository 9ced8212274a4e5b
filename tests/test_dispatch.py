from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

import s4_fast
from s4_fast import BackendUnavailableError, dispatch, explain, fft_conv, log_vandermonde, use_backend
from s4_fast.dispatch import ENVIRONMENT_VARIABLE
from tests.helpers import keops_missing, needs_keops

U, K = torch.randn(2, 3, 8), torch.randn(3, 8)


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
    monkeypatch.setattr(dispatch, "BACKENDS", (*dispatch.BACKENDS, "stub"))
    monkeypatch.setattr(dispatch, "_AUTOMATIC_ORDER", ("stub", *dispatch._AUTOMATIC_ORDER))
    return module


def chosen(backend: str | None = None) -> str:
    return explain(fft_conv, U, K, backend=backend).backend


def sevens(y: Tensor) -> bool:
    return bool((y == 7).all())


# ------------------------------------------------------------------------------------------------- the order of say


def test_the_call_overrules_the_block_which_overrules_the_environment(
    stub: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chosen() == "pytorch"
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "reference")
    assert chosen() == "reference"
    with use_backend("stub"):
        assert chosen() == "stub"
        assert chosen("pytorch") == "pytorch"
    assert chosen() == "reference"


def test_auto_in_the_call_or_the_block_overrules_what_is_below(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "reference")
    assert chosen("auto") == "pytorch"
    with use_backend("auto"):
        assert chosen() == "pytorch"
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "auto")
    assert chosen() == "pytorch"
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "")
    assert chosen() == "pytorch"


def test_blocks_nest_and_end_with_exceptions() -> None:
    with use_backend("reference"):
        with use_backend("pytorch"):
            assert chosen() == "pytorch"
        assert chosen() == "reference"
        with pytest.raises(KeyError), use_backend("pytorch"):
            raise KeyError
        assert chosen() == "reference"
    assert chosen() == "pytorch"


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


def test_a_block_may_stand_inside_a_compiled_function(stub: ModuleType) -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def function(u: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        with use_backend("stub"):
            inside = fft_conv(u, k)
        return inside, fft_conv(u, k)

    inside, outside = function(U, K)
    assert sevens(inside)
    torch.testing.assert_close(outside, fft_conv(U, K))


# ---------------------------------------------------------------------------------------------- the automatic choice


def test_automatic_choice_takes_a_backend_where_it_is_preferred_and_serves(stub: ModuleType) -> None:
    many = torch.randn(1, 100, 8), torch.randn(100, 8)
    assert explain(fft_conv, *many).backend == "stub"
    assert explain(fft_conv, U, K).backend == "pytorch"
    assert explain(fft_conv, *(t.double() for t in many)).backend == "pytorch"


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
    x = torch.zeros(1, 2, dtype=torch.complex64)
    message = r"'stub' \(from use_backend\(\)\) cannot run log_vandermonde: it does not implement log_vandermonde; "
    with use_backend("stub"), pytest.raises(BackendUnavailableError, match=message + "backends that do: reference,"):
        log_vandermonde(x, x, 3)


def test_a_backend_without_any_op_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "BACKENDS", (*dispatch.BACKENDS, "abacus"))
    with pytest.raises(BackendUnavailableError, match=r"'abacus' .* this version of s4_fast has no implementation"):
        fft_conv(U, K, backend="abacus")


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    x = torch.zeros(1, 2, dtype=torch.complex64)
    message = r"^backend 'keops' .*: the package 'pykeops' is not installed; run: pip install 's4_fast\[keops\]'$"
    with pytest.raises(BackendUnavailableError, match=message):
        log_vandermonde(x, x, 3, backend="keops")
    status = dispatch.backends()["keops"]
    assert (status.usable, status.cause) == (False, "the package 'pykeops' is not installed")
    assert status.fix == "pip install 's4_fast[keops]'"


def test_a_missing_compiler_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(dispatch.shutil, "which", lambda name: None)
    x = torch.zeros(1, 2, dtype=torch.complex64)
    with pytest.raises(
        BackendUnavailableError, match=r"'keops' .* there is no C\+\+ compiler; run: apt-get install g\+\+"
    ):
        log_vandermonde(x, x, 3, backend="keops")
    monkeypatch.setattr(dispatch.shutil, "which", lambda name: "/opt/bin/c++" if name == "c++" else None)
    monkeypatch.setenv("CXX", "c++")
    assert dispatch.backends()["keops"].usable


@needs_keops
def test_a_failing_compiler_is_an_error_that_says_how_to_see_more(tmp_path: Path) -> None:
    code = "import torch, s4_fast; x = torch.zeros(1, 2, dtype=torch.complex64)\n"
    code += "try: s4_fast.log_vandermonde(x, x, 3, backend='keops')\n"
    code += "except s4_fast.BackendUnavailableError as error: print(error)"
    result = run(code, KEOPS_CACHE_FOLDER=str(tmp_path), CXXFLAGS="--no-such-flag")
    assert result.startswith("backend 'keops' could not compile")
    assert "PYKEOPS_VERBOSE=1 shows what the compiler said" in result


@pytest.mark.parametrize("name", ["cuda", "PyTorch", "", "pytorch "])
def test_an_unknown_name_is_refused_with_the_known_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = "expected one of reference, pytorch, keops, triton, native"
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
    assert tuple(status) == dispatch.BACKENDS
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
assert dict(os.environ) == environment
assert not torch.cuda.is_initialized()
"""
    assert run(code) == ""


@needs_keops
def test_keops_keeps_standard_output_clean() -> None:
    code = "import torch, s4_fast; x = torch.zeros(1, 2, dtype=torch.complex64)\n"
    code += "s4_fast.log_vandermonde(x, x, 3, backend='keops')"
    assert run(code) == ""


def test_public_names_exist() -> None:
    assert all(hasattr(s4_fast, name) for name in s4_fast.__all__)
