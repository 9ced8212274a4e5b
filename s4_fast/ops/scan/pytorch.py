"""The recurrence of a diagonal SSM in pure PyTorch: whole sequences in chunks, a single step in tensor operations.

The backward pass of a sequence recomputes the states. Temporaries belong to one block of features, so what they need
does not grow with H or n.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, conj_physical

from s4_fast.ops.scan.chunks import Chunks, Moments
from s4_fast.ops.vandermonde.two_level import log_powers

_WIDE = torch.complex128
# Numbers in the signals and states of one block of features.
_BLOCK = {"cpu": 1 << 21, "cuda": 1 << 27}


def ssm_scan(
    u: Tensor, x: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor, time_major: bool
) -> tuple[Tensor, Tensor]:
    """u (Bt, H, L), or (Bt, L, H) if ``time_major``, x, B, C (H, n), D (H,) or empty, state (Bt, H, n) or empty
    -> y like u, the state after u."""
    u = u.mT.contiguous() if time_major else u
    y, final = torch.empty_like(u), x.new_empty(*u.shape[:2], x.shape[-1])
    for h, chunks, carried in _blocks(u, x, B, C, D, state):
        for piece in _pieces(u.shape[-1], chunks.T):
            samples = chunks.cut(u[:, h, piece])
            states, carried = chunks.carry(chunks.inputs(samples), carried, samples.shape[-1])
            y[:, h, piece] = chunks.outputs(samples, states)
        final[:, h] = carried.transpose(0, 1)
    return (y.mT if time_major else y), final


def ssm_scan_backward(
    grad_y: Tensor | None,
    grad_final: Tensor | None,
    u: Tensor,
    x: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    state: Tensor,
    time_major: bool,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """With g the conjugated gradient of a state, g_l = lambda g_{l+1} + 2 C dy_l: the same recurrence in reversed time.

    grad_u_l = Re sum_n B g_l + D dy_l; the products of g, s, dy and u that the parameters need are in ``Moments``.
    """
    grad_y = torch.zeros_like(u) if grad_y is None else grad_y
    if time_major:
        u, grad_y = u.mT.contiguous(), grad_y.mT.contiguous()
    if grad_final is None:
        grad_final = x.new_zeros(()).expand(*u.shape[:2], x.shape[-1])
    grad_u = torch.empty_like(u) if needs[0] else None
    grad_x, grad_B, grad_C, grad_D, grad_state = (torch.empty_like(t) for t in (x, B, C, D, state))
    pieces = list(_pieces(u.shape[-1], _chunk_length(u, x)))
    parameters = any(needs[1:4])
    for h, chunks, carried in _blocks(u, x, B, C, D, state):
        known = []
        for piece in pieces if parameters else ():
            samples = chunks.cut(u[:, h, piece])
            states, carried = chunks.carry(chunks.inputs(samples), carried, samples.shape[-1])
            known.append((samples, states))
        moments = Moments(chunks)
        carried = conj_physical(grad_final[:, h].to(_WIDE)).transpose(0, 1)
        for piece in reversed(pieces):
            dy = chunks.cut(grad_y[:, h, piece])
            adjoints, carried = chunks.carry(chunks.adjoint_inputs(dy), carried, dy.shape[-1], reverse=True)
            if grad_u is not None:
                grad_u[:, h, piece] = chunks.adjoint_outputs(dy, adjoints)
            if parameters:
                moments.add(*known.pop(), dy, adjoints)
        if state.numel():
            grad_state[:, h] = conj_physical(carried).transpose(0, 1)
        if parameters:
            grad_x[h], grad_B[h], grad_C[h] = moments.gradients()
        if needs[4]:
            # A sum of L products that may all but cancel.
            grad_D[h] = (grad_y[:, h].double() * u[:, h]).sum((0, 2))
    if time_major and grad_u is not None:
        grad_u = grad_u.mT
    return grad_u, grad_x, grad_B, grad_C, grad_D, grad_state


def ssm_step(u: Tensor, state: Tensor, x: Tensor, B: Tensor, C: Tensor, D: Tensor) -> tuple[Tensor, Tensor]:
    """u (Bt, H), state (Bt, H, n), x, B, C (H, n), D (H,) or empty -> y (Bt, H), the next state.

    lambda and its product with the state are complex128: float32's roundings of both are not random, and add up over
    the steps of a weakly damped state.
    """
    after = following(u, state, torch.exp(x.to(_WIDE)), B)
    y = 2 * (C * after).sum(-1).real
    return (torch.addcmul(y, D, u) if D.numel() else y), after


def following(u: Tensor, state: Tensor, decay: Tensor, B: Tensor) -> Tensor:
    """The state after u (Bt, H), for ``decay`` = exp(x) in complex128."""
    return (decay * state + B * u[..., None]).to(state.dtype)


def ssm_step_backward(
    grad_y: Tensor | None,
    grad_next: Tensor | None,
    u: Tensor,
    state: Tensor,
    x: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """With g the conjugated gradient of the next state, grad_next* + 2 C dy, and sums over the batch:

    grad_u = Re sum_n B g + D dy, grad_state* = lambda g, grad_x* = sum g lambda state, grad_B* = sum g u,
    grad_C* = 2 sum dy next.
    """
    decay = torch.exp(x.to(_WIDE))
    kept = decay * state
    grad_y = torch.zeros_like(u) if grad_y is None else grad_y
    dy = grad_y[..., None]
    g = 2 * C * dy if grad_next is None else conj_physical(grad_next) + 2 * C * dy
    grad_u = (B * g).sum(-1).real
    if D.numel():
        grad_u = torch.addcmul(grad_u, D, grad_y)
    grad_state = conj_physical(decay * g).to(state.dtype)
    grad_x = conj_physical((g * kept).sum(0)).to(x.dtype)
    grad_B = conj_physical((g * u[..., None]).sum(0))
    grad_C = conj_physical(2 * (dy * (kept + B * u[..., None])).sum(0)).to(C.dtype)
    grad_D = (grad_y * u).sum(0) if D.numel() else torch.zeros_like(D)
    return grad_u, grad_state, grad_x, grad_B, grad_C, grad_D


def _chunk_length(u: Tensor, x: Tensor) -> int:
    """T: T + 4n products a sample inside the chunks, and 2n/T complex128 ones between them."""
    T = 1 << (2 * x.shape[-1] - 1).bit_length()
    return min(max(64, min(T, 256)), u.shape[-1])


def _pieces(L: int, T: int) -> Iterator[slice]:
    """The whole chunks, and what is left."""
    whole = L - L % T
    yield slice(0, whole)
    if whole < L:
        yield slice(whole, L)


def _blocks(
    u: Tensor, x: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor
) -> Iterator[tuple[slice, Chunks, Tensor]]:
    """Features, their tables and their initial states (h, Bt, n) in complex128."""
    (Bt, H, L), n = u.shape, x.shape[-1]
    T = _chunk_length(u, x)
    powers = log_powers(x, L + 1)
    size = Bt * (L + 4 * n * (L // T)) + T * (T + 4 * n)
    step = max(1, _BLOCK.get(u.device.type, _BLOCK["cuda"]) // size)
    for start in range(0, H, step):
        h = slice(start, min(start + step, H))
        chunks = Chunks([p[h] for p in powers], B[h], C[h], D[h] if D.numel() else D, T)
        if state.numel():
            carried = state[:, h].transpose(0, 1).to(_WIDE)
        else:
            carried = x.new_zeros(h.stop - h.start, Bt, n, dtype=_WIDE)
        yield h, chunks, carried
