"""Whether two layers compute the same: copies of both run on a random input, and on a few steps."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from s4_fast.state_spaces.releases import root_count

_BATCH, _LENGTH, _STEPS = 2, 20, 3
# The original rounds the nodes of S4 to float32, where it is off by up to 1e-4; in float64 by 1e-10, and S4D with
# disc="dss" by 1e-7, as it returns float32 there too.
_TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}
# The most numbers that an S4 kernel of the original may take: in sums over all nodes, and in dense matrices.
_MOST_IN_SUMS, _MOST_IN_MATRICES = 2**23, 2**22
_BACKENDS = ("cuda", "keops", "naive")


class Trial(NamedTuple):
    """How to call a layer: on (batch, features, length) where ``transposed``, else (batch, length, features).

    Where ``transposed`` is None it is a kernel, called for its samples, ``layer(L=length)``. ``steps`` says whether the
    steps of a layer that has some must agree too.
    """

    features: int
    transposed: bool | None
    steps: bool


class NotComparable(Exception):
    """The original does not run here, or not to the end; the message says why."""


def check_agreement(old: nn.Module, new: nn.Module, trial: Trial) -> None:
    """Raise unless ``new`` returns what ``old`` returns, in value and in kind, in eval mode on one random input.

    Copies of both run, in float64 on the CPU where the old one does, else where its parameters are or in float32.
    Neither layer changes, nor do the generators of random numbers. Steps that either of the two refuses, or that take
    too much memory, are not compared.

    Raises:
        NotComparable: the old one runs nowhere, or returns numbers that are not finite.
        ValueError: they do not agree; the message says by how much.
    """
    if any(t.is_meta for t in old.state_dict().values()):
        raise NotComparable("its parameters are on the meta device")
    failures: dict[str, None] = {}
    for device, dtype in _places(old):
        with _undisturbed(device):
            try:
                theirs = _copied(old, device, dtype)
                ours = _copied(new, device, dtype)
                _use_plain_code(theirs)
                _shorten(theirs, ours)
                x = _example(trial, device, dtype)
                expected = _called(theirs, x)
            # The code of another project raises what it likes.
            except Exception as error:
                failures[f"{type(error).__name__}: {error}"] = None
                continue
            _compare(expected, _our_outputs(ours, x), type(new).__name__, dtype, "outputs")
            if trial.steps and hasattr(old, "step"):
                _compare_steps(theirs, ours, trial, dtype)
        return
    raise NotComparable(f"it does not run here ({'; '.join(failures)})")


def _places(module: nn.Module) -> dict[tuple[torch.device, torch.dtype], None]:
    own = next(iter(module.state_dict().values())).device
    devices = (torch.device("cpu"), own)
    return dict.fromkeys((device, dtype) for dtype in _TOLERANCES for device in devices)


@contextlib.contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    generators = [device] if device.type == "cuda" else []
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(torch.random.fork_rng(devices=generators))
        stack.enter_context(torch.device(device))
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(torch.no_grad())
        yield


def _copied(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A copy in eval mode, that shares nothing with ``module``."""
    known: dict[int, Any] = {}
    part: Any
    for part in module.modules():
        _copy_results(vars(part), known)
    copied = copy.deepcopy(module, known).to(device).eval()
    # Not to(dtype), which would cast complex buffers to real ones.
    copied = copied.double() if dtype == torch.float64 else copied.float()
    for part in copied.modules():
        if hasattr(part, "verbose"):
            part.verbose = False
    return copied


def _copy_results(value: Any, known: dict[int, Any]) -> None:
    """Put copies of tensors with a history, which deepcopy refuses, into its memo."""
    if isinstance(value, Tensor):
        if not value.is_leaf:
            known[id(value)] = value.detach().clone()
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            _copy_results(inner, known)


def _use_plain_code(theirs: nn.Module) -> None:
    """Let kernels of the original compute with PyTorch alone, and forget nodes of another dtype."""
    part: Any
    for part in theirs.modules():
        if getattr(part, "backend", None) in _BACKENDS or getattr(part, "kernel", None) in _BACKENDS:
            # Release 4.0 calls the option "kernel"; 4.1 "backend", and reads "kernel" still in one place.
            part.backend = part.kernel = "naive"
        for cached in ("omega", "z"):
            if cached in vars(part):
                delattr(part, cached)
        for roots in ("omega", "nodes"):
            if roots in part._buffers and "z" in part._buffers:
                _refine(part, roots)


def _refine(part: nn.Module, name: str) -> None:
    """Roots of unity, which releases 1 and 2 keep as pairs in float32, and the nodes made of them, in their dtype."""
    held: Any = part._buffers[name]
    length, k = root_count(held), torch.arange(len(held), dtype=torch.float64, device=held.device)
    roots = torch.polar(torch.ones_like(k), -2 * torch.pi / length * k)
    part._buffers[name] = torch.view_as_real(roots).to(held)
    part._buffers["z"] = torch.view_as_real(2 * (1 - roots) / (1 + roots)).to(held)


def _shorten(theirs: nn.Module, ours: nn.Module) -> None:
    """Read a C that is truncated for a long sequence as one for a short sequence, in both layers alike.

    The original computes an S4 kernel at its whole length, and a fresh one by dense matrices, which may take more
    memory than there is.
    """
    if any(_numbers_in_sums(part) > _MOST_IN_SUMS for part in theirs.modules()) or _has_large_matrices(ours):
        for part in (*theirs.modules(), *ours.modules()):
            if _has_length(part):
                part.get_buffer("l_kernel").fill_(_LENGTH)


def _has_length(part: nn.Module) -> bool:
    return "l_kernel" in part._buffers


def _numbers_in_sums(part: Any) -> int:
    if not _has_length(part):
        return 0
    size: int = part.C.numel() * max(int(part.l_kernel), getattr(part, "l_max", None) or 0)
    return size


def _has_large_matrices(ours: nn.Module) -> bool:
    kernels: list[Any] = [part for part in ours.modules() if _has_length(part)]
    return any(kernel.C.shape[1] * (2 * kernel.C.shape[2]) ** 2 > _MOST_IN_MATRICES for kernel in kernels)


def _example(trial: Trial, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    if trial.transposed is None:
        return None
    sizes = (trial.features, _LENGTH) if trial.transposed else (_LENGTH, trial.features)
    return torch.randn(_BATCH, *sizes, dtype=dtype, device=device)


def _called(layer: nn.Module, x: Tensor | None) -> Any:
    return layer(L=_LENGTH) if x is None else layer(x)


def _our_outputs(ours: nn.Module, x: Tensor | None) -> Any:
    try:
        return _called(ours, x)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{type(ours).__name__} refuses what it takes: {error}") from None


def _compare_steps(theirs: nn.Module, ours: nn.Module, trial: Trial, dtype: torch.dtype) -> None:
    if _has_large_matrices(ours):
        return
    u = torch.randn(_STEPS, _BATCH, trial.features, dtype=dtype)
    try:
        expected, actual = _stepped(theirs, u), _stepped(ours, u)
    # Steps that either layer refuses are wrong in neither: bidirectional layers, and faults of the original.
    except Exception:
        return
    _compare(expected, actual, type(ours).__name__, dtype, "steps")


def _stepped(layer: Any, u: Tensor) -> list[Any]:
    setup = getattr(layer, "setup_step", None) or getattr(layer, "_setup_step", None)
    if setup is not None:
        setup()
    state, outputs = layer.default_state(_BATCH), []
    for sample in u:
        y, state = layer.step(sample, state)
        outputs.append(y)
    return outputs


def _compare(expected: Any, actual: Any, name: str, dtype: torch.dtype, what: str) -> None:
    if _kind(expected) != _kind(actual):
        raise ValueError(f"its {what} are {_kind(expected)}, those of {name} {_kind(actual)}")
    theirs, ours = _flat(expected), _flat(actual)
    if not bool(theirs.isfinite().all()):
        raise NotComparable(f"its {what} are not finite")
    difference = _relative_difference(ours, theirs)
    if not difference <= _TOLERANCES[dtype]:
        raise ValueError(
            f"computes something else than {name}: the {what} differ by {difference:.1e} relative to their norm"
        )


def _kind(value: Any) -> str:
    """The structure of a returned value, with the shapes of its tensors."""
    if isinstance(value, Tensor):
        return f"{'complex ' if value.is_complex() else ''}Tensor{list(value.shape)}"
    if isinstance(value, tuple | list):
        name = type(value).__name__
        return f"{name}({', '.join(_kind(inner) for inner in value)})"
    return "None" if value is None else type(value).__name__


def _flat(value: Any) -> Tensor:
    """All numbers of a returned value in one row, complex128, on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", torch.complex128).flatten()
    rows = [_flat(inner) for inner in value] if isinstance(value, tuple | list) else []
    return torch.cat(rows) if rows else torch.empty(0, dtype=torch.complex128, device="cpu")


def _relative_difference(actual: Tensor, expected: Tensor) -> float:
    distance, norm = float(torch.linalg.vector_norm(actual - expected)), float(torch.linalg.vector_norm(expected))
    if norm == 0:
        return 0.0 if distance == 0 else float("inf")
    return distance / norm
