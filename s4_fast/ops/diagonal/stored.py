"""Calls of the op of a diagonal or DPLR SSM, or of its definition, with parameters as modules store them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from s4_fast.ops._checks import COMPLEX
from s4_fast.ops._library import Op
from s4_fast.ops.diagonal.form import Arguments

_Definition = Callable[..., tuple[Tensor, Tensor]]


def register(name: str, tensors: tuple[str, ...], plain: _Definition) -> Op:
    """The op of that name: u, dt, A_real and A_imag come first, C, D, state and ahead last."""
    return Op(
        name,
        tensors=tensors,
        complex_inputs=tuple(t in ("state", "ahead") for t in tensors),
        complex_outputs=(False, True),
        scalars=("int flags", "float rate"),
        fake=_fake,
        plain=plain,
        optional=("B", "D", "state", "ahead"),
    ).register()


def _fake(*given: Any) -> tuple[Tensor, Tensor]:
    u, _, A_real, *_, C, _, _, _, flags, _ = given
    batch, H, L = u.shape if not flags & 1 else (u.shape[0], u.shape[2], u.shape[1])
    n = A_real.shape[1]
    features = C.numel() // ((4 if flags & 2 else 2) * n)  # c H
    y = u.new_empty((batch, L, features) if flags & 1 else (batch, features, L))
    return y, C.new_empty(batch, H, n, 2)


def run(op: Op, definition: _Definition, given: Arguments, backend: str) -> tuple[Tensor, Tensor]:
    """y (batch, c H, L), or (batch, L, c H) if ``given.form.time_major``, and the state after u."""
    u = given.u
    # Where samples lie in the other order, that one is read.
    turned = not u.is_contiguous() and u.mT.is_contiguous()
    if turned:
        given = given._replace(u=u.mT, form=given.form._replace(time_major=not given.form.time_major))
    if backend == "reference" and u.numel():  # a definition is of at least one row
        y, final = _by_definition(definition, given)
    else:
        y, final = op(*given.tensors, given.form.flags, given.form.rate, backend=backend)
    return (y.mT if turned else y), final


def _by_definition(definition: _Definition, given: Arguments) -> tuple[Tensor, Tensor]:
    """In complex128 and float64."""
    form = given.form
    H, n = given.u.shape[2 if form.time_major else 1], given.A_real.shape[1]
    shaped = given._replace(
        dt=given.dt.reshape(H, -1),
        B=None if given.B is None else given.B.reshape(-1, n, 2),
        C=given.C.reshape(-1, H, n, 2),
        D=None if given.D is None else given.D.reshape(-1, H),
    )
    y, final = definition(*map(_wide, shaped.tensors), form)
    y = y.flatten(2) if form.time_major else y.flatten(1, 2)
    return y.to(given.u.dtype), final.to(COMPLEX[given.C.dtype])


def _wide(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.to(torch.complex128 if t.is_complex() else torch.float64)
