"""Causal long convolution with a kernel of any length."""

from __future__ import annotations

from torch import Tensor

from s4_fast import dispatch
from s4_fast.ops import _checks, _native_calls
from s4_fast.ops._library import Op
from s4_fast.ops.long_conv import plain, reference

_CONV = Op(
    "fft_conv",
    tensors=("u", "k", "D"),
    complex_inputs=(False, False, False),
    complex_outputs=(False,),
    scalars=(),
    fake=lambda u, k, D: u.new_empty(u.shape[0], k.shape[0], u.shape[1], u.shape[2]),
    plain=plain.fft_conv,
).register()


def fft_conv(u: Tensor, k: Tensor, D: Tensor | None = None, *, backend: str | None = None) -> Tensor:
    r"""Causal convolution per feature, ``y[l] = sum_{j <= l} k[j] u[l - j] + D u[l]``.

    With the kernel of an SSM these are the outputs of the SSM (S4: Gu, Goel, Re 2022, arXiv 2111.00396, section 2.4).
    Rows and features do not reach each other, whatever they hold. A sample, or a tap, that is not finite makes the
    outputs from it on NaN, also those that have it no more where there are fewer taps than samples; on the CPU, outputs
    before it are what they are without it. Elsewhere an FFT spreads it over its whole row, as to look for it would make
    the host wait: on CUDA devices, mask such samples before. So it is in compiled graphs, which run the same code.

    An FFT rounds every output of a row by as much as suits the row as a whole: about ``1e-7 norm(k) norm(u)`` in
    float32, however small the output. A single sample that outweighs the rest of its row therefore shows in outputs
    before it on the ``pytorch`` backend; ``native`` adds what such a sample does by itself, and computes rows of up to
    8 vectors (128 samples in float32 with AVX-512) without an FFT.

    Args:
        u: signals, ``(B, H, L)``, float32 or float64.
        k: kernels, ``(H, Lk)``, or ``(c, H, Lk)`` for c output channels. Taps beyond L have no effect.
        D: skip coefficients, of the shape of ``k`` without its last dimension, or None.
        backend: a backend's name, or None for the automatic choice (see ``s4_fast.explain``).

    Returns:
        ``(B, H, L)``, or ``(B, c, H, L)`` where ``k`` has channels. Differentiable in ``u``, ``k`` and ``D``.

    Raises:
        TypeError: a tensor is not real, or the precisions differ.
        ValueError: shapes do not fit, L or Lk is 0, or the tensors are on different devices.
        BackendUnavailableError: ``backend`` cannot serve the call.

    Examples:
        >>> fft_conv(torch.randn(2, 8, 100), torch.randn(3, 8, 100)).shape
        torch.Size([2, 3, 8, 100])
        >>> fft_conv(torch.ones(1, 1, 4), torch.tensor([[1.0, 0.5]]), torch.zeros(1))
        tensor([[[1.0000, 1.5000, 1.5000, 1.5000]]])
    """
    call = _prepare(u, k, D)
    choice = dispatch.choose(call, backend)
    u, k = (t if t.dtype == call.dtype else t.to(call.dtype) for t in (u, k))
    kernels = k if k.ndim == 3 else k[None]
    skip = u.new_empty(0) if D is None else D.to(call.dtype).view(kernels.shape[:-1])
    if choice.backend == "reference":
        y = reference.fft_conv(u.double(), kernels.double(), skip.double()).to(call.dtype)
    else:
        y = _CONV(u, kernels, skip, backend=choice.backend)
    return y if k.ndim == 3 else y[:, 0]


def _prepare(u: Tensor, k: Tensor, D: Tensor | None = None) -> dispatch.Call:
    op = "fft_conv"
    tensors = {"u": u, "k": k} if D is None else {"u": u, "k": k, "D": D}
    device = _checks.same_device(op, **tensors)
    dtype = _checks.common_dtype(op, real=tuple(tensors), **tensors)
    if u.ndim != 3 or u.shape[-1] < 1:
        raise ValueError(f"{op}: expected u of shape (B, H, L) with L >= 1, got {tuple(u.shape)}")
    if k.ndim not in (2, 3) or k.shape[-2] != u.shape[1] or 0 in (*k.shape[:-2], k.shape[-1]):
        raise ValueError(
            f"{op}: expected k of shape (H, Lk) or (c, H, Lk) with H = {u.shape[1]}, c, Lk >= 1, got {tuple(k.shape)}"
        )
    if D is not None and D.shape != k.shape[:-1]:
        raise ValueError(f"{op}: expected D of shape {tuple(k.shape[:-1])} to fit k, got {tuple(D.shape)}")
    shape = {"B": u.shape[0], "H": u.shape[1], "L": u.shape[2], "Lk": k.shape[-1]}
    return dispatch.Call(op, device, dtype, shape, _checks.needs_grad(**tensors))


def _refuses(call: dispatch.Call) -> str | None:
    return "its convolution runs on the CPU alone" if call.device != "cpu" else _native_calls.refuses(call)


dispatch.register_op("fft_conv", _prepare)
dispatch.register("fft_conv", "reference", f"{__name__}.reference")
dispatch.register("fft_conv", "pytorch", f"{__name__}.pytorch")
dispatch.register("fft_conv", "native", f"{__name__}.native", refuses=_refuses)
