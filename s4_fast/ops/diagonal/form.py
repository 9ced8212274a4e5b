"""The arguments of a diagonal or DPLR SSM as modules store them, how they are to be read, and whether they fit."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from s4_fast import arguments
from s4_fast.dispatch import Call
from s4_fast.ops._checks import COMPLEX
from s4_fast.ops.direct import is_recorded

_HALF = (torch.float16, torch.bfloat16)


class Form(NamedTuple):
    """The options of a diagonal or DPLR SSM as its backends take them. The latter is always bilinear."""

    time_major: bool = False  # u is (batch, L, H) and y (batch, L, c H)
    bidirectional: bool = False  # the last half of C's channels runs from the end
    bilinear: bool = False  # instead of zero-order hold
    log_dt: bool = False  # dt holds log dt
    log_decay: bool = False  # A_real holds log(-Re A)
    conjugate: bool = False  # A_imag holds -Im A
    rate: float = 1.0  # dt is multiplied by it

    @property
    def flags(self) -> int:
        """The flags of the native library's header, ``S4_FAST_TIME_MAJOR`` and the following, as a sum."""
        a, b, c, d, e, f, _ = self
        return a | b << 1 | c << 2 | d << 3 | e << 4 | f << 5

    def channels(self, of_C: int) -> int:
        """The number of outputs per feature, for that many channels of C."""
        return of_C // 2 if self.bidirectional else of_C


def read(flags: int, rate: float) -> Form:
    """The form with these flags."""
    a, b, c, d, e, f = (bool(flags >> i & 1) for i in range(6))
    return Form(a, b, c, d, e, f, rate)


form_of = functools.lru_cache(64)(read)  # which Dynamo warns of


class Arguments(NamedTuple):
    """A call of ``s4_fast.ops.diagonal.stored_diagonal_ssm``, or where there is P, of
    ``s4_fast.ops.dplr_scan.stored_dplr_scan``. B, D and the states may be absent."""

    u: Tensor  # (batch, H, L), or (batch, L, H)
    dt: Tensor  # (H,), (H, 1) or (H, n)
    A_real: Tensor  # (S, n)
    A_imag: Tensor  # (S, n)
    B: Tensor | None  # (S, n, 2) or (1, S, n, 2)
    C: Tensor  # (channels, H, n, 2), or (H, n, 2)
    D: Tensor | None  # (c, H), or (H,)
    state: Tensor | None  # (batch, H, n), complex
    ahead: Tensor | None  # (batch, H, n), complex
    form: Form
    P: Tensor | None = None  # (rank, S, n, 2)

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """In the order in which the op takes them: P, where there is one, after A."""
        if self.P is None:
            return self[:9]
        return (*self[:4], self.P, *self[4:9])

    @property
    def op(self) -> str:
        """The op that these are the arguments of."""
        return "diagonal_ssm" if self.P is None else "dplr_scan"

    def call(self) -> Call:
        """What the choice of a backend depends on.

        Raises:
            TypeError: an argument is not a tensor, or has another precision.
            ValueError: a shape does not fit, or a tensor is on another device.
        """
        sizes = self._sizes()
        if sizes is None:
            raise self._misfit()
        # Every backend has every gradient, but on a GPU the fastest one depends on whether they are wanted.
        grads = ("u",) if not self.u.is_cpu and is_recorded(self.tensors) else ()
        return Call(self.op, self.u.device.type, self.C.dtype, sizes, grads)

    def _sizes(self) -> dict[str, int] | None:
        """The sizes, or None where something does not fit. This is on the path of every call, so it has no words."""
        u, dt, A_real, A_imag, B, C, D, state, ahead, form, P = self
        if (
            not isinstance(u, Tensor)
            or not isinstance(dt, Tensor)
            or u.ndim != 3
            or C.ndim not in (3, 4)
            or A_real.ndim != 2
        ):
            return None
        dtype, device = C.dtype, u.device
        batch, H, L = u.shape
        if form.time_major:
            H, L = L, H
        outputs, (copies, n) = (C.shape[0] if C.ndim == 4 else 1), A_real.shape
        c = outputs // 2 if form.bidirectional else outputs
        fits = (
            L >= 1
            and n >= 1
            and copies >= 1
            and c >= 1
            and outputs == (2 * c if form.bidirectional else c)
            and dtype in COMPLEX
            and (u.dtype is dtype or (u.dtype in _HALF and dtype is torch.float32))
            and C.shape[-3:] == (H, n, 2)
            and H % copies == 0
            and A_imag.shape == A_real.shape
            and (dt.shape == (H, 1) or dt.shape == (H, n) or dt.shape == (H,))
            and dt.dtype is A_real.dtype is A_imag.dtype is dtype
            and dt.device == A_real.device == A_imag.device == C.device == device
        )
        if not fits:
            return None
        if B is not None and not (
            B.shape[-3:] == (copies, n, 2) and B.numel() == 2 * copies * n and B.dtype is dtype and B.device == device
        ):
            return None
        if D is not None and not (
            isinstance(D, Tensor)
            and (D.shape == (c, H) or (c == 1 and D.shape == (H,)))
            and D.dtype is dtype
            and D.device == device
        ):
            return None
        for s in (state, ahead):
            if s is not None and not (
                isinstance(s, Tensor) and s.shape == (batch, H, n) and s.dtype is COMPLEX[dtype] and s.device == device
            ):
                return None
        if ahead is not None and not form.bidirectional:
            return None
        found = {"batch": batch, "H": H, "n": n, "L": L, "channels": c, "directions": 2 if form.bidirectional else 1}
        found["sample_bytes"] = u.element_size()
        if P is not None:
            if not (P.ndim == 4 and P.shape[1:] == (copies, n, 2) and P.dtype is dtype and P.device == device):
                return None
            found["rank"] = P.shape[0]
        return found

    def _misfit(self) -> Exception:
        """What does not fit, and what was expected."""
        op, form, P = self.op, self.form, self.P
        u, dt, A, B, C, D, state, ahead = self.u, self.dt, self.A_real, self.B, self.C, self.D, self.state, self.ahead
        given = {"u": u, "dt": dt, "A": A, "P": P, "B": B, "C": C, "D": D, "state": state, "ahead": ahead}
        for name, t in given.items():
            if not isinstance(t, Tensor) and (t is not None or name in ("u", "dt")):
                return TypeError(f"{op}: expected {name} to be a tensor, got {arguments.kind(t)}")
        tensors = {name: t for name, t in given.items() if t is not None}
        if u.ndim != 3 or u.shape[1 if form.time_major else 2] < 1:
            layout = "(batch, L, H)" if form.time_major else "(batch, H, L)"
            return ValueError(f"{op}: expected u of shape {layout} with L >= 1, got {tuple(u.shape)}")
        if A.ndim != 2 or 0 in A.shape:
            return ValueError(f"{op}: expected A of shape (S, n) with n >= 1, got {tuple(A.shape)}")
        if any(t.device != u.device for t in tensors.values()):
            where = ", ".join(f"{name} on {t.device}" for name, t in tensors.items())
            return ValueError(f"{op}: expected all tensors on one device, got {where}")
        if C.dtype not in COMPLEX:
            return TypeError(f"{op}: expected C in single or double precision, got {C.dtype}")
        for name, t in tensors.items():
            expected = COMPLEX[C.dtype] if name in ("state", "ahead") else C.dtype
            if t.dtype != expected and not (name == "u" and t.dtype in _HALF and C.dtype == torch.float32):
                # A, P and B come here as pairs of reals.
                wanted, got = (COMPLEX.get(d, d) if name in ("A", "P", "B") else d for d in (expected, t.dtype))
                return TypeError(f"{op}: expected all tensors in one precision, {name} to be {wanted}, got {got}")
        batch, H = u.shape[0], u.shape[2 if form.time_major else 1]
        S, n = A.shape
        if H % S:
            return ValueError(f"{op}: expected the {S} rows of A to divide the {H} features of u {tuple(u.shape)}")
        if P is not None and (P.ndim != 4 or P.shape[1:] != (S, n, 2)):
            return ValueError(f"{op}: expected P of shape (rank, {S}, {n}), got {tuple(P.shape[:-1])}")
        if ahead is not None and not form.bidirectional:
            return ValueError(f"{op}: ahead is for bidirectional=True")
        outputs = C.shape[0] if C.ndim == 4 else 1
        if C.ndim not in (3, 4) or C.shape[-3:] != (H, n, 2) or (form.bidirectional and outputs % 2) or not outputs:
            even = ", an even number of channels" if form.bidirectional else ""
            return ValueError(f"{op}: expected C of shape (channels, {H}, {n}){even}, got {tuple(C.shape[:-1])}")
        expected_shapes = {
            "B": (S, n),
            "D": (form.channels(outputs), H),
            "state": (batch, H, n),
            "ahead": (batch, H, n),
        }
        for name, shape in expected_shapes.items():
            if name in tensors:
                found = tuple(tensors[name].shape[:-1] if name == "B" else tensors[name].shape)
                single = name == "D" and shape[0] == 1
                if found != shape and not (single and found == shape[1:]):
                    return ValueError(f"{op}: expected {name} of shape {shape[1:] if single else shape}, got {found}")
        return ValueError(f"{op}: expected dt of shape ({H},), ({H}, 1) or ({H}, {n}), got {tuple(dt.shape)}")
