"""What `patch` refuses: functions that deviate, are missing or would still be called, and wrong names."""

from __future__ import annotations

import re
from types import ModuleType

import pytest
import torch

from s4_fast.state_spaces import patch
from tests.state_spaces.lookalikes_functions import (
    CAUCHY_PAIRS,
    DIAGONAL_LAYER,
    VANDERMONDE,
    fast,
    module_of,
    official,
)


@pytest.fixture
def module() -> ModuleType:
    """The functions of release 4, without layers."""
    names = ("cauchy_cuda", "cauchy_keops", "log_vandermonde_cuda", "log_vandermonde_keops")
    source = CAUCHY_PAIRS.format(name="cauchy_naive", options="") + VANDERMONDE.format(end="_naive")
    return module_of(source + "".join(map(fast, (*names, "log_vandermonde_transpose_keops"))))


LISTED = """standin: log_vandermonde_naive deviates; nothing was replaced. What its functions compute:
cauchy_cuda: not evaluated, for it needs a GPU or KeOps
cauchy_keops: not evaluated, for it needs a GPU or KeOps
cauchy_naive: sum over conjugate pairs
log_vandermonde_cuda: not evaluated, for it needs a GPU or KeOps
log_vandermonde_keops: not evaluated, for it needs a GPU or KeOps
log_vandermonde_naive: half the sum over conjugate pairs
log_vandermonde_transpose_keops: not evaluated, for it needs a GPU or KeOps
log_vandermonde_transpose_naive: sum over time
names=('cauchy_cuda', 'cauchy_keops', 'cauchy_naive', 'log_vandermonde_transpose_keops', \
'log_vandermonde_transpose_naive') replaces these alone, for models that call no others."""


def test_an_error_lists_what_each_function_computes(module):
    original = module.log_vandermonde_naive
    module.log_vandermonde_naive = lambda v, x, L: original(v, x, L) / 2
    with pytest.raises(ValueError, match="deviates") as caught:
        patch(module)
    assert str(caught.value) == LISTED


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("cauchy_naive", lambda y: 1.5 * y, r"something else, relative difference 0\.5"),
        (
            "cauchy_naive",
            lambda y: y.real,
            r"something else \(\(2, 5\), torch.float64 instead of \(2, 5\), torch.complex128",
        ),
        ("cauchy_naive", lambda y: None, r"something else \(NoneType instead"),
        (
            "log_vandermonde_naive",
            lambda y: y[..., 1:],
            r"something else \(\(2, 4\), torch.float64 instead of \(2, 5\)",
        ),
        ("log_vandermonde_naive", lambda y: y * torch.nan, "something else, relative difference nan"),
        ("log_vandermonde_transpose_naive", lambda y: 1 / 0, "fails with ZeroDivisionError: division by zero"),
    ],
)
def test_functions_that_compute_something_else_are_refused_and_nothing_is_replaced(module, name, changed, message):
    original = getattr(module, name)
    setattr(module, name, lambda *arguments: changed(original(*arguments)))
    before = dict(vars(module))
    with pytest.raises(ValueError, match=rf"standin: {name} deviates(.|\n)*\n{name}: {message}"):
        patch(module)
    assert vars(module) == before


def test_functions_that_take_other_arguments_are_refused(module):
    module.log_vandermonde_transpose_keops = module.log_vandermonde_keops
    with pytest.raises(
        ValueError, match=r"log_vandermonde_transpose_keops: does not take the arguments of state-spaces"
    ):
        patch(module)


def test_names_choose_what_is_replaced(module):
    original = module.cauchy_naive
    module.cauchy_naive = lambda v, z, w: 2 * original(v, z, w)
    names = ("log_vandermonde_naive", "log_vandermonde_transpose_naive")
    before = dict(vars(module))
    with pytest.raises(ValueError, match="diagonal ones, which call no Cauchy function"):
        patch(module)
    with patch(module, names=iter(names)) as patched:
        assert tuple(patched.replaced) == names
        assert {name for name in before if getattr(module, name) is not before[name]} == set(names)
    assert vars(module) == before
    with pytest.raises(ValueError, match="cauchy_naive deviates"):
        patch(module, names=("cauchy_naive",))


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["cauchy_naive", "cauchy_nive"], ValueError, "names: 'cauchy_nive' is none of the functions that can be"),
        (["cauchy_slow"], ValueError, "names: standin has no cauchy_slow; it has cauchy_cuda, "),
        (["nn"], ValueError, "names: 'nn' is none of"),
        ([], ValueError, "names: expected at least one of cauchy_cuda"),
        ("cauchy_naive", TypeError, r"names: expected several names of functions, as in \('cauchy_naive',\)"),
    ],
)
def test_names_that_are_unknown_or_missing_are_refused(module, names, error, message):
    before = dict(vars(module))
    with pytest.raises(error, match=message):
        patch(module, names=names)
    assert vars(module) == before


def test_missing_functions_are_listed_and_diagonal_layers_need_not_wait_for_them():
    module = official("3", keops=True)
    del module.cauchy_conj
    before = dict(vars(module))
    with pytest.raises(ValueError, match="cauchy_mult is missing") as caught:
        patch(module)
    assert str(caught.value).splitlines()[3:6] == [f"cauchy_{end}: not there" for end in ("mult", "conj", "naive")]
    assert "names=('log_vandermonde', 'log_vandermonde_transpose') replaces these alone" in str(caught.value)
    assert vars(module) == before
    assert len(patch(module, names=("log_vandermonde", "log_vandermonde_transpose")).replaced) == 2
    with pytest.raises(ValueError, match="Its layers call cauchy_mult, cauchy, whose imports failed"):
        patch(official("1 package"))


def test_names_leave_out_no_function_that_a_layer_may_call_instead():
    module = official("4", extension=True, keops=True)
    before = dict(vars(module))
    with pytest.raises(
        ValueError, match=re.escape("calls cauchy_keops. Nothing was replaced. Add to names: cauchy_keops.")
    ):
        patch(module, names=("cauchy_naive", "cauchy_cuda"))
    assert vars(module) == before
    patch(module, names=("cauchy_naive", "cauchy_cuda", "cauchy_keops"))
    assert not patch(module, names=("cauchy_naive",)).replaced


LAYER = "class Kernel(nn.Module):\n    {body}\n"
CALL = "def forward(self, v, z, w):\n        return {call}(v, z, w)"
LEFT = {
    "an unknown function": (CALL.format(call="cauchy_fast"), "Kernel.forward calls cauchy_fast"),
    "another name": (CALL.format(call="product"), "Kernel.forward calls product"),
    "a table": (CALL.format(call="TABLE['cuda']"), "Kernel.forward calls TABLE"),
    "a wrapped function": (CALL.format(call="partial_product"), "Kernel.forward calls partial_product"),
    "a helper": (CALL.format(call="helper"), "Kernel.forward calls cauchy_fast"),
    "another module's": (CALL.format(call="other.inner.cauchy_fast"), "Kernel.forward calls other.inner.cauchy_fast"),
    "an import": (
        "def forward(self, v):\n        from extensions.cauchy import cauchy_mult\n        return cauchy_mult(v)",
        "Kernel.forward imports cauchy_mult itself",
    ),
    "a default": ("def forward(self, v, f=cauchy_mult):\n        return f(v)", "Kernel.forward holds cauchy_mult as a"),
    "an attribute": ("f = staticmethod(cauchy_mult)", "Kernel has f of its own"),
    "a method": (
        "@torch.no_grad()\n    def _cauchy(self, v, z, w):\n        return v / (z - w)",
        "Kernel has _cauchy of its own",
    ),
    "an inner function": (
        "def forward(self, v):\n        def cauchy_mult(v):\n            return v\n        return cauchy_mult(v)",
        "Kernel.forward makes cauchy_mult itself",
    ),
}


@pytest.mark.parametrize("kind", LEFT)
def test_a_function_that_would_still_be_called_is_an_error(kind):
    body, message = LEFT[kind]
    source = fast("cauchy_mult") + fast("cauchy_fast") + VANDERMONDE.format(end="") + DIAGONAL_LAYER
    source += "import functools\nproduct, TABLE = cauchy_mult, {'cuda': cauchy_mult}\n"
    source += "partial_product = functools.partial(cauchy_mult, symmetric=True)\n"
    source += "def helper(v, z, w):\n    return cauchy_fast(v, z, w)\n"
    module = module_of(source)
    module.other = ModuleType("other")
    module.other.inner = module_of(fast("cauchy_fast"), "inner")
    exec(LAYER.format(body=body), vars(module))
    before = dict(vars(module))
    with pytest.raises(ValueError, match=rf"would still call .*{re.escape(message)}.* Nothing was replaced"):
        patch(module)
    assert vars(module) == before
    with pytest.raises(ValueError, match="would still call"):
        patch(module, names=("cauchy_mult",))
    assert len(patch(module, names=("log_vandermonde",)).replaced) == 1
