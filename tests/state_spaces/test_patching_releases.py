"""`patch` under the layers of each official release: values, gradients, and the faults of fallbacks."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import s4_fast
from s4_fast.dispatch import BackendUnavailableError
from s4_fast.state_spaces import patch
from tests.helpers import FORWARD, GRADIENT, log_nodes, normal, relative_error, widened
from tests.state_spaces.lookalikes_functions import (
    CAUCHY_PAIRS,
    fast,
    layer,
    module_of,
    official,
)

# The release, whether it finds the CUDA extension and KeOps, and what is replaced.
VANDERMONDES = ["log_vandermonde", "log_vandermonde_transpose"]
NAIVE_4 = ["cauchy_naive", "log_vandermonde_naive", "log_vandermonde_transpose_naive"]
KEOPS_4 = ["cauchy_keops", "log_vandermonde_keops", "log_vandermonde_transpose_keops"]
FOUND = [
    ("1", False, False, ["cauchy_conj"]),
    ("1", True, True, ["cauchy_mult", "cauchy_conj"]),
    ("2 package", True, False, ["cauchy_mult"]),
    ("2 package", True, True, ["cauchy_mult", "cauchy.cauchy_conj"]),
    ("2.1", True, False, ["cauchy_mult"]),
    ("2.1", True, True, ["cauchy_mult", "cauchy_conj"]),
    ("2.1 package", False, False, ["cauchy_slow"]),
    ("2.1 package", True, False, ["cauchy_mult", "cauchy_slow"]),
    ("3", False, True, ["cauchy_conj", *VANDERMONDES]),
    ("3", True, True, ["cauchy_mult", "cauchy_conj", *VANDERMONDES]),
    ("3 package", False, False, ["cauchy_naive", *VANDERMONDES]),
    ("4", False, False, NAIVE_4),
    ("4", False, True, [*KEOPS_4, *NAIVE_4]),
    ("4", True, True, ["cauchy_cuda", "log_vandermonde_cuda", *KEOPS_4, *NAIVE_4]),
]
FALLBACKS = {"2.1": "cauchy_slow", "3": "cauchy_naive"}


def cauchy(v: Tensor, z: Tensor, w: Tensor, conj: bool = True) -> Tensor:
    half = (v.unsqueeze(-1) / (z - w.unsqueeze(-1))).sum(-2)
    return half + (v.conj().unsqueeze(-1) / (z - w.conj().unsqueeze(-1))).sum(-2) if conj else half


def half_of_the_pairs(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    return cauchy(v, z, w, conj=False)


def vandermonde(v: Tensor, x: Tensor, L: int) -> Tensor:
    return 2 * (v.unsqueeze(-1) * torch.exp(x.unsqueeze(-1) * torch.arange(L, device=x.device))).sum(-2).real


def transpose(u: Tensor, v: Tensor, x: Tensor) -> Tensor:
    powers = torch.exp(x.unsqueeze(-1) * torch.arange(u.shape[-1], device=x.device))
    return (u.unsqueeze(-2) * v.unsqueeze(-1) * powers).sum(-1)


def assert_computes(function, definition, tensors: list[Tensor], *scalars: int) -> None:
    """Values and every gradient are those of the definition in float64."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    wide = [widened(t.detach()).requires_grad_() for t in tensors]
    actual, expected = function(*leaves, *scalars), definition(*wide, *scalars)
    assert relative_error(actual, expected.detach()) <= FORWARD["float32"]
    g = torch.ones_like(actual)
    grads = torch.autograd.grad(actual, leaves, g), torch.autograd.grad(expected, wide, widened(g))
    errors = [relative_error(a, e) for a, e in zip(*grads, strict=True)]
    assert all(error <= GRADIENT["float32"] for error in errors), errors


@pytest.fixture
def sums(generator, device) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Arguments for Cauchy and Vandermonde functions and transposed ones, as layers pass them."""
    v = normal(generator, 2, 3, 4, dtype=torch.complex64)
    w = log_nodes(generator, "strong", 3, 4, dtype=torch.complex64)
    z = 1 + normal(generator, 7, dtype=torch.complex64).abs() + 2j
    u = normal(generator, 2, 3, 9, dtype=torch.complex64)
    return tuple([t.to(device) for t in tensors] for tensors in ((v, z, w), (v, w), (u, v, w)))


@pytest.mark.parametrize(("release", "extension", "keops", "names"), FOUND)
def test_the_layers_of_every_release_run_on_the_ops(release, extension, keops, names, sums):
    module = official(release, extension, keops)
    before = dict(vars(module))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        patched = patch(module)
    assert sorted(patched.replaced) == sorted(names)
    assert_computes(layer(module, "DPLR"), cauchy, sums[0])
    if len(names) > 2 and release[0] in "34":
        diagonal = layer(module, "Diag")
        assert_computes(diagonal, vandermonde, sums[1], 9)
        assert_computes(diagonal.forward_state, transpose, sums[2])
    assert not patch(module).replaced
    patched.undo()
    assert vars(module) == before


def test_what_layers_call_in_another_module_is_replaced_there_and_put_back():
    module = official("2 package", keops=True)
    before, inside = dict(vars(module)), dict(vars(module.cauchy))
    with patch(module, names=["cauchy.cauchy_conj"]) as patched:
        assert repr(patched) == "Patch(standin: cauchy.cauchy_conj)"
        assert [name for name in inside if vars(module.cauchy)[name] is not inside[name]] == ["cauchy_conj"]
    assert vars(module) == before
    assert vars(module.cauchy) == inside


@pytest.mark.parametrize("release", FALLBACKS)
def test_a_fallback_without_the_conjugate_half_becomes_the_whole_sum_and_warns(release, sums):
    module, name = official(release), FALLBACKS[release]
    with pytest.warns(UserWarning, match=rf"standin\.{name} leaves out the conjugate half.*keep_faults=True") as caught:
        patched = patch(module)
    assert caught[0].filename == __file__
    assert f"{name} (with the conjugate half, which was missing)" in repr(patched)
    assert_computes(layer(module, "DPLR"), cauchy, sums[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not patch(module).replaced


@pytest.mark.parametrize("release", FALLBACKS)
def test_keep_faults_keeps_the_numbers_of_a_fallback(release, sums):
    module, name = official(release), FALLBACKS[release]
    expected = layer(module, "DPLR")(*map(widened, sums[0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        patched = patch(module, keep_faults=True)
    assert f"{name} (without the conjugate half, as before)" in repr(patched)
    assert relative_error(layer(module, "DPLR")(*sums[0]), expected) <= FORWARD["float32"]
    assert_computes(layer(module, "DPLR"), half_of_the_pairs, sums[0])
    assert not patch(module, keep_faults=True).replaced


def test_a_warning_that_is_an_error_leaves_everything_as_it_was():
    module = official("3")
    before = dict(vars(module))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning):
            patch(module)
    assert vars(module) == before


@pytest.mark.filterwarnings("ignore:.*conjugate half")
@pytest.mark.parametrize("keep_faults", [False, True])
def test_what_became_of_a_fallback_is_not_changed_by_a_second_patch(keep_faults):
    module = official("2.1")
    patch(module, keep_faults=keep_faults)
    before = dict(vars(module))
    with pytest.raises(ValueError, match=f"cauchy_slow is replaced already, with keep_faults={keep_faults}"):
        patch(module, keep_faults=not keep_faults)
    assert vars(module) == before


def test_replaced_functions_run_on_the_backend_of_the_call():
    module = official("3", extension=True)
    v = torch.ones(2, 3, dtype=torch.complex64)
    with patch(module), s4_fast.use_backend("triton", strict=True):
        for call in (lambda: module.cauchy_mult(v, v[0], -v), lambda: module.log_vandermonde(v, -v, 4)):
            with pytest.raises(BackendUnavailableError):
                call()


def test_helpers_methods_and_flags_that_pass_arguments_on_are_no_functions_of_their_own(sums):
    source = (
        "has_cauchy_extension = True\n" + fast("cauchy_mult") + CAUCHY_PAIRS.format(name="cauchy_naive", options="")
    )
    source += (
        "def apply_cauchy(v, z, w):\n    return (cauchy_mult if has_cauchy_extension else cauchy_naive)(v, z, w)\n"
    )
    body = "@torch.enable_grad()\n    def cauchy(self, v, z, w):\n        return apply_cauchy(v, z, w)\n"
    body += "    def forward(self, *tensors):\n        return self.cauchy(*tensors)\n"
    body += "    def twice(self, *tensors):\n        return apply_cauchy(*tensors) + apply_cauchy(*tensors)\n"
    module = module_of(source + "class Kernel(nn.Module):\n    " + body)
    assert sorted(patch(module).replaced) == ["cauchy_mult", "cauchy_naive"]
    assert_computes(module.Kernel(), cauchy, sums[0])


def test_layers_of_other_modules_do_not_matter():
    module = module_of(fast("cauchy_mult"))
    module.Imported = type("Imported", (nn.Module,), {"__module__": "elsewhere", "cauchy": lambda self, v: v})
    assert list(patch(module).replaced) == ["cauchy_mult"]
