"""Which S4 layers a checkpoint or a model holds, of which release, and how they get to this package."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from s4_fast.bench import direct, measure
from s4_fast.state_spaces import convert, official
from s4_fast.state_spaces.block import S4Block
from s4_fast.state_spaces.comparing import Trial
from s4_fast.state_spaces.convolution import FFTConv
from s4_fast.state_spaces.kernels import SSMKernelDiag, SSMKernelDPLR
from s4_fast.state_spaces.releases import Older, older_parts
from s4_fast.state_spaces.replacing import replacement
from s4_fast.state_spaces.s4 import S4
from s4_fast.state_spaces.s4d import S4D, S4DKernel

# Sizes of the timing, and seconds for it. The formula takes memory in proportion to features, states and length.
_BATCH, _LENGTH, _SECONDS = 4, 1024, 0.5
_MOST = 2**22


class Inspected(NamedTuple):
    """A layer that was found.

    Attributes:
        name: where it is; "" for the whole.
        what: ``"S4"`` or ``"S4D"``, and the class it is of.
        release: of state-spaces/s4, or ``"s4_fast"``; "" where it could not be told.
        sizes: by their names in constructors.
        route: what to do.
        changes: what of the numbers does not stay as it is, "" for nothing.
        speedup: how many times faster forward and backward pass are here, on random input of ``shape``
            (batch, length, features): than the layer itself, or, for a checkpoint, than its formula in PyTorch. None
            where it was not measured.
    """

    name: str
    what: str
    release: str
    sizes: Mapping[str, int]
    route: str
    changes: str = ""
    speedup: float | None = None
    shape: tuple[int, int, int] | None = None


def inspect(subject: nn.Module | Path | str, *, time: bool = True) -> list[Inspected]:
    """The S4 and S4D layers in a model, or in a checkpoint of one.

    Args:
        subject: a model, of which nothing changes; or the file of a checkpoint, of which nothing is executed.
        time: whether to measure what a layer gains; half a second for each of another size.

    Returns:
        The layers in the order of their names; none where there is none.

    Raises:
        OSError: the file cannot be read.
        TypeError: it is neither a model nor the name of a file.
        ValueError: the file is no checkpoint, or a damaged one.

    Example:
        >>> from s4_fast import state_spaces
        >>> model = nn.Sequential(state_spaces.S4Block(4, d_state=8))
        >>> [(found.name, found.what, found.release) for found in state_spaces.inspect(model, time=False)]
        [('0', 'S4: S4Block', 's4_fast')]
    """
    if isinstance(subject, nn.Module):
        return [_timed(found, pair, time) for found, pair in _of_model(subject)]
    if isinstance(subject, str | Path):
        return [_timed(found, pair, time) for found, pair in _of_checkpoint(Path(subject))]
    raise TypeError(f"expected a model, or the name of a checkpoint's file, got {type(subject).__name__}")


# ------------------------------------------------------------------------------------------------------ checkpoints


class _Entries(NamedTuple):
    """What is under one name: shapes by their own names."""

    prefix: str
    shapes: dict[str, tuple[int, ...]]

    def __contains__(self, name: str) -> bool:
        return name in self.shapes


_Pair = tuple[nn.Module, Callable[[Tensor], Any], Trial] | None


def _of_checkpoint(path: Path) -> Iterator[tuple[Inspected, _Pair]]:
    state_dict, _ = convert.unwrapped(convert.read(path))
    older = older_parts(state_dict)
    newest: dict[str, Any] = dict(state_dict)
    for part in older.values():
        newest = part.applied(newest)
    tensors = {name: t for name, t in newest.items() if isinstance(t, Tensor)}
    for name in tensors:
        if match := re.fullmatch(r"(.*?)(layer\.kernel|kernel|)\.?inv_dt", name):
            yield _kernel_found(match[1], match[2], tensors, older)
        elif match := re.fullmatch(r"(.*?)kernel\.log_A_real", name):
            yield _minimal_found(match[1], tensors)


def _kernel_found(
    prefix: str, inside: str, tensors: Mapping[str, Tensor], older: Mapping[str, Older]
) -> tuple[Inspected, _Pair]:
    kernel = f"{prefix}{inside}." if inside else prefix
    C, A_real = tensors[f"{kernel}C"], tensors[f"{kernel}A_real"]
    P, D = tensors.get(f"{kernel}P"), tensors.get(f"{kernel.removesuffix('kernel.')}D")
    sizes = {"d_model": C.shape[1], "d_state": 2 * C.shape[2], "n_ssm": len(A_real)}
    if P is not None:
        sizes["rank"] = len(P)
    bidirectional = D is not None and D.ndim == 2 and len(C) == 2 * len(D)
    sizes["channels"] = len(C) // 2 if bidirectional else len(C)
    kind = "S4D" if P is None else "S4"
    mode = {"mode": "diag"} if P is None else {}
    name = prefix.removesuffix(".")
    if D is not None and D.ndim == 1:
        return Inspected(name, f"{kind}: {kind}Layer", "s4_fast", sizes, "it is a layer of this package"), None
    part = older.get(prefix if inside else kernel)
    options: dict[str, Any] = {**sizes, **mode, **({"bidirectional": True} if bidirectional else {})}
    if D is None:
        made, release = ("SSMKernelDiag" if P is None else "SSMKernelDPLR"), "4"
    elif inside == "kernel":
        made, release = "FFTConv", "4"
    else:
        made, release = "S4Block", "4"
        options |= _block_options(prefix, tensors)
    if part is not None:
        release = str(part.release)
        if D is not None:
            made, options["release"] = "S4", part.release
            options["postact"] = "glu" if options.pop("final_act") == "glu" else None
    if kind == "S4" or made == "S4":
        options.pop("disc", None)
    conv = FFTConv(
        sizes["d_model"], channels=sizes["channels"], transposed=False, activation=None, verbose=False, **mode,
        d_state=sizes["d_state"], n_ssm=sizes["n_ssm"], **({"init": "diag-lin"} if mode else {"rank": len(P)}),
    )  # fmt: skip
    route = f"state_spaces.{made}({_written(options)}), whose load_state_dict takes these entries"
    found = Inspected(name, f"{kind}: {made}", release, sizes, route, _changes(kind, release))
    return found, (conv, _textbook(conv), Trial(sizes["d_model"], False, False))


def _block_options(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    weight = tensors.get(f"{prefix}output_linear.0.weight", tensors.get(f"{prefix}output_linear.0.weight_v"))
    D = tensors[f"{prefix}layer.D"]
    if weight is None:
        return {"final_act": None}
    width = tensors[f"{prefix}input_gate.0.weight"].shape[0] if f"{prefix}input_gate.0.weight" in tensors else None
    features = D.shape[1] if width is None else width
    return {"final_act": "glu" if len(weight) == 2 * features else "id"}


def _minimal_found(prefix: str, tensors: Mapping[str, Tensor]) -> tuple[Inspected, _Pair]:
    C = tensors[f"{prefix}kernel.C"]
    sizes = {"d_model": C.shape[0], "d_state": 2 * C.shape[1]}
    made = "S4D" if f"{prefix}D" in tensors else "S4DKernel"
    route = f"state_spaces.{made}({_written(sizes)}), whose load_state_dict takes these entries"
    conv = FFTConv(
        sizes["d_model"], d_state=sizes["d_state"], mode="diag", init="diag-lin", transposed=False, activation=None,
        verbose=False,
    )  # fmt: skip
    found = Inspected(prefix.removesuffix("."), f"S4D: {made}", "3, 4", sizes, route)
    return found, (conv, _textbook(conv), Trial(sizes["d_model"], False, False))


def _changes(kind: str, release: str) -> str:
    if kind == "S4D":
        return "disc is an option, not in a checkpoint: bilinear by default in releases 2 and 3" if release in "23" else ""
    nodes = "the original rounds the nodes of its kernel, by 1e-5 to 1e-4 of the outputs"
    if release in "23":
        return f"{nodes}; without KeOps and its extension it loses half of the kernel, by 30 to 60 %"
    return nodes


def _written(options: Mapping[str, Any]) -> str:
    defaults = {"channels": 1, "rank": 1, "n_ssm": options.get("d_model"), "d_state": 64, "final_act": "glu"}
    defaults["postact"] = "glu" if options.get("release") == 3 else None
    defaults["release"] = 3
    kept = {name: value for name, value in options.items() if name not in defaults or defaults[name] != value}
    d_model = kept.pop("d_model")
    return ", ".join([str(d_model), *(f"{name}={value!r}" for name, value in kept.items())])


# ----------------------------------------------------------------------------------------------------------- models


def _of_model(model: nn.Module) -> Iterator[tuple[Inspected, _Pair]]:
    outer: list[str] = []
    for name, module in model.named_modules():
        if any(other == "" or name.startswith(f"{other}.") for other in outer):
            continue
        found = _own(name, module) if official.is_own(module) else _official(name, module)
        if found is not None:
            outer.append(name)
            yield found


def _own(name: str, module: nn.Module) -> tuple[Inspected, _Pair] | None:
    if not isinstance(module, S4 | S4Block | FFTConv | SSMKernelDiag | SSMKernelDPLR | S4D | S4DKernel):
        return None
    diagonal = "P" not in {path.rpartition(".")[2] for path in module.state_dict()}
    what = f"{'S4D' if diagonal else 'S4'}: {type(module).__name__}"
    return Inspected(name, what, "s4_fast", _sizes(module), "it is a layer of this package"), None


def _official(name: str, module: nn.Module) -> tuple[Inspected, _Pair] | None:
    if not official.looks_official(module):
        return None
    row = official.recognized(module)
    if row is None:
        what, why = official.class_name(module), official.why_not(module)
        return Inspected(name, what, "", {}, f"state_spaces.patch for the file of its class; {why}"), None
    entries = module.state_dict()
    older = next(iter(older_parts(entries).values()), None)
    diagonal = "P" not in {path.rpartition(".")[2] for path in entries} and older is None or (older and older.diagonal)
    what, release = f"{'S4D' if diagonal else 'S4'}: {row.name}", "4" if older is None else str(older.release)
    try:
        new = replacement(module)
    except ValueError as reason:
        route = f"state_spaces.patch for the file of its class; replace_layers refuses: {reason}"
        return Inspected(name, what, release, {}, route), None
    route = "state_spaces.replace_layers(model)" if name else "state_spaces.replacement(layer)"
    found = Inspected(name, what, release, _sizes(new), route, "" if diagonal else _changes("S4", "4"))
    trial = row.trial(new)
    return found, None if trial.transposed is None else (new, copy.deepcopy(module), trial)


def _sizes(module: Any) -> dict[str, int]:
    conv = getattr(module, "layer", module)
    kernel = getattr(conv, "kernel", conv) if not isinstance(conv, SSMKernelDiag | SSMKernelDPLR) else conv
    d_state = getattr(kernel, "d_state", None)
    return {"d_model": kernel.d_model, **({} if d_state is None else {"d_state": d_state}), "channels": kernel.channels}


# ------------------------------------------------------------------------------------------------------------- time


def _textbook(conv: FFTConv) -> Callable[[Tensor], Tensor]:
    """The layer by the formulas that its original falls back to."""
    kernel = conv.kernel

    def run(u: Tensor) -> Tensor:
        L = u.shape[1]
        if isinstance(kernel, SSMKernelDiag):
            x, B, C = kernel.discretize()
            k = direct.log_vandermonde(C * B, x, L)
        else:
            P, C = (torch.view_as_complex(t) for t in (kernel.P, kernel.C))
            repeats = kernel.d_model // kernel.n_ssm
            P = P.repeat(1, repeats, 1)
            w, dt, B = kernel.dt() * kernel.A(), kernel.dt(), kernel.B_vector()[None]
            k = direct.dplr_kernel(w, P, P, B, C, dt, L)[0]
        return direct.fft_conv(u.mT, k, conv.D).mT

    return run


def _timed(found: Inspected, pair: _Pair, time: bool) -> Inspected:
    if pair is None or not time:
        return found
    ours, theirs, trial = pair
    states = found.sizes.get("d_state", 64) * found.sizes.get("channels", 1)
    length = max(1, min(_LENGTH, _MOST // (trial.features * states)))
    shape = (_BATCH, trial.features, length) if trial.transposed else (_BATCH, length, trial.features)
    like = next(ours.parameters())
    u = torch.randn(shape, dtype=like.dtype, device=like.device, requires_grad=True)

    def both_ways(layer: Callable[[Tensor], Any]) -> Callable[[], None]:
        def run() -> None:
            y = layer(u)
            (y[0] if isinstance(y, tuple) else y).sum().backward()

        return run

    try:
        mine, other = measure.timed_in_turn([both_ways(ours), both_ways(theirs)], _SECONDS)
    except RuntimeError as error:  # of memory, or of what their code needs
        return found._replace(changes="; ".join(filter(None, (found.changes, f"not timed: {error}"))))
    return found._replace(speedup=other.median / mine.median, shape=(_BATCH, length, trial.features))
