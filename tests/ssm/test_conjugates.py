from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from s4_fast import DPLRSSM
from s4_fast.ssm import with_conjugates, without_conjugates
from s4_fast.ssm.discretization import bilinear
from tests.helpers import DTYPES, normal, relative_error


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3,), (2, 4, 1), (2, 3, 29), (0, 3, 4), (2, 0)])
def test_conjugates_are_appended_and_removed(shape, dtype, generator):
    state = normal(generator, *shape, dtype=dtype)
    full = with_conjugates(state)
    n = shape[-1]
    assert full.shape == (*shape[:-1], 2 * n) and full.dtype == dtype
    assert torch.equal(full[..., :n], state) and torch.equal(full[..., n:], state.conj())
    assert torch.equal(without_conjugates(full), state)
    assert torch.equal(without_conjugates(full.conj()), state.conj())


def test_conjugates_are_differentiable(generator):
    state = normal(generator, 2, 3, dtype=torch.complex128).requires_grad_()
    assert gradcheck(with_conjugates, state) and gradcheck(lambda s: without_conjugates(with_conjugates(s)), state)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_second_half_that_is_another_is_refused(dtype, generator):
    full = with_conjugates(normal(generator, 2, 3, 5, dtype=dtype))
    eps = torch.finfo(dtype).eps
    rounded = full.clone()
    rounded[1, 2, 7] += 50 * eps
    assert torch.equal(without_conjugates(rounded), full[..., :5])
    full[1, 2, 7] += 0.25
    with pytest.raises(ValueError, match=r"conjugate of the first, got a difference of up to 0.25 "):
        without_conjugates(full)
    full[0] = torch.nan
    with pytest.raises(ValueError, match="difference of up to nan"):
        without_conjugates(full)


@pytest.mark.parametrize(
    ("function", "state", "error", "message"),
    [
        (
            with_conjugates,
            torch.ones(2, 3),
            TypeError,
            r"^with_conjugates: .* complex, got torch.float32 of .*\(2, 3\)",
        ),
        (without_conjugates, torch.ones(2, 4), TypeError, r"^without_conjugates: .* got torch.float32"),
        (without_conjugates, torch.ones(2, 3) + 0j, ValueError, r"shape \(..., 2n\), got \(2, 3\)"),
        (without_conjugates, torch.tensor(1j), ValueError, r"shape \(..., 2n\), got \(\)"),
    ],
)
def test_wrong_states_are_refused(function, state, error, message):
    with pytest.raises(error, match=message):
        function(state)


def test_graphs_transforms_and_meta_tensors_have_no_numbers_to_compare(generator):
    state = normal(generator, 2, 3, dtype=torch.complex64)
    full = with_conjugates(state)
    compiled = torch.compile(without_conjugates, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(full), state)
    assert torch.equal(torch.func.vmap(without_conjugates)(full), state)
    assert without_conjugates(full.to("meta")).shape == state.shape


@pytest.mark.parametrize(("init", "rank"), [("legs", 1), ("legt", 2), ("fout", 1)])
def test_the_dense_recurrence_of_full_states_is_the_step(init, rank, generator):
    ssm = DPLRSSM(4, 16, init=init, rank=rank, generator=generator).double()
    u = torch.randn(3, 4, 40, dtype=torch.float64, generator=generator)

    def both(t: Tensor) -> Tensor:
        return with_conjugates(torch.view_as_complex(t))

    with torch.no_grad():
        P = both(ssm.P)
        A = torch.diag_embed(with_conjugates(ssm.A())) - torch.einsum("rhi,rhj->hij", P, P.conj())
        A_bar, B_bar = bilinear(A, both(ssm.B)[0], ssm.dt()[:, 0])
        half = ssm.forward_state(torch.randn(3, 4, 10, dtype=torch.float64, generator=generator))
        full = with_conjugates(half)
        for position in range(40):
            y, half = ssm.step(u[..., position], half)
            full = torch.einsum("hij,bhj->bhi", A_bar, full) + B_bar * u[..., position, None]
            want = torch.einsum("chn,bhn->bch", both(ssm.C), full)
            assert relative_error(y, want.real) < 1e-12
        assert relative_error(half, without_conjugates(full)) < 1e-12
        assert relative_error(with_conjugates(half), full) < 1e-12
