"""Which S4 layers a checkpoint or a model holds, of which release, and how they get to this package."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from s4_fast.bench import direct, measure
from s4_fast.layers import S4DLayer, S4Layer
from s4_fast.ssm.model import SSMModel
from s4_fast.state_spaces import convert, official
from s4_fast.state_spaces.block import S4Block
from s4_fast.state_spaces.comparing import Trial
from s4_fast.state_spaces.convolution import FFTConv
from s4_fast.state_spaces.kernels import SSMKernelDiag
from s4_fast.state_spaces.older_kernels import SSKernel
from s4_fast.state_spaces.releases import Older, older_parts
from s4_fast.state_spaces.replacing import replacement
from s4_fast.state_spaces.s4d import S4D

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
            (batch, length, features): than the layer itself, or, for a checkpoint and what does not run here, than its
            formula in PyTorch. None where it was not measured.

    Examples:
        >>> found = s4_fast.state_spaces.inspect(s4_fast.S4DLayer(4, d_state=8), time=False)[0]
        >>> found.what, found.sizes
        ('S4D: S4DLayer', {'d_model': 4, 'd_state': 8, 'channels': 1})
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

    Examples:
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

# Two layers to time, ours first, and how to call them.
_Pair = tuple[Any, Callable[[Tensor], Any], Trial] | None
_Found = tuple[Inspected, _Pair]


def _of_checkpoint(path: Path) -> Iterator[_Found]:
    state_dict, _ = convert.unwrapped(convert.read(path))
    older = older_parts(state_dict)
    newest: dict[str, Any] = dict(state_dict)
    for part in older.values():
        newest = part.applied(newest)
    tensors = {name: value for name, value in newest.items() if isinstance(value, Tensor)}
    for name in sorted(tensors):
        folder, _, own = name.rpartition(".")
        if own == "inv_dt":
            yield _kernel_entry(f"{folder}." if folder else "", tensors, older)
        elif own == "log_A_real":
            yield _minimal_entry(f"{folder}." if folder else "", tensors)


def _kernel_entry(kernel: str, tensors: Mapping[str, Tensor], older: Mapping[str, Older]) -> _Found:
    """The layer whose kernel's entries begin with ``kernel``."""
    C, P = tensors[f"{kernel}C"], tensors.get(f"{kernel}P")
    kind = "S4D" if P is None else "S4"
    layer = kernel.removesuffix("kernel.")
    D = tensors.get(f"{layer}D") if layer != kernel else None
    channels = len(C) // 2 if D is not None and len(C) == 2 * len(D) else len(C)
    sizes = {"d_model": C.shape[1], "d_state": 2 * C.shape[2], "channels": channels}
    sizes["n_ssm"] = len(tensors[f"{kernel}A_real"])
    options: dict[str, Any] = dict(sizes)
    if P is None:
        options["mode"] = "diag"
    else:
        sizes["rank"] = options["rank"] = len(P)
    if channels < len(C):
        options["bidirectional"] = True
    block = layer.removesuffix("layer.")
    prefix, part = (block, older.get(block)) if D is not None else (kernel, older.get(kernel))
    release = "4" if part is None else str(part.release)
    if D is None:
        made = "SSMKernelDiag" if P is None else "SSMKernelDPLR"
        options.pop("mode", None)
    elif D.ndim == 1:
        name = layer.removesuffix(".")
        return Inspected(name, f"{kind}: {kind}Layer", "s4_fast", sizes, "it is a layer of this package"), None
    elif block == layer:
        made = "FFTConv"
    else:
        made = "S4Block" if part is None else "S4"
        options |= _around(block, tensors, part)
    route = f"state_spaces.{made}({_written(options)}), whose load_state_dict takes these entries"
    found = Inspected(prefix.removesuffix("."), f"{kind}: {made}", release, sizes, route, _changes(kind, release))
    return found, _beside_the_formula(**sizes)


def _around(block: str, tensors: Mapping[str, Tensor], part: Older | None) -> dict[str, Any]:
    """The options of a block that its linear maps tell; activations of unknown name are taken to be ``"gelu"``."""

    def weight(name: str) -> Tensor | None:
        ends = (f"{name}.{inside}{kind}" for inside in ("", "0.") for kind in ("weight", "weight_v"))
        return next((tensors[block + end] for end in ends if block + end in tensors), None)

    D, before, gate, last = tensors[f"{block}layer.D"], *map(weight, ("input_linear", "input_gate", "output_linear"))
    d_model = D.shape[1] if before is None else before.shape[1]
    first = part is not None and part.release == 1
    found: dict[str, Any] = {"d_model": d_model}
    if before is not None:
        found |= {"input_linear": True} if first else {"bottleneck": d_model // D.shape[1]}
    if gate is not None:
        found |= {"hyper_act": "gelu"} if first else {"gate": len(gate) // d_model}
        if part is None and f"{block}input_gate.0.weight" in tensors:
            found["gate_act"] = "gelu"
    width = d_model * found.get("gate", 1) if part is not None else d_model
    has_glu = last is not None and len(last) == 2 * width
    if last is not None and gate is None and len(D) * D.shape[1] == 2 * last.shape[1]:
        found |= {"channels": len(D) // 2} | ({"activation": "glu"} if part is None else {"hyper_act": "gelu"})
    if part is not None:
        return {**found, "release": part.release, "postact": "glu" if has_glu else None}
    return {**found, "final_act": "glu" if has_glu else None if last is None else "id"}


def _minimal_entry(kernel: str, tensors: Mapping[str, Tensor]) -> _Found:
    C, layer = tensors[f"{kernel}C"], kernel.removesuffix("kernel.")
    sizes = {"d_model": C.shape[0], "d_state": 2 * C.shape[1]}
    alone = layer == kernel or f"{layer}D" not in tensors
    made, name = ("S4DKernel", kernel) if alone else ("S4D", layer)
    route = f"state_spaces.{made}({_written(sizes)}), whose load_state_dict takes these entries"
    return Inspected(name.removesuffix("."), f"S4D: {made}", "3, 4", sizes, route), _beside_the_formula(**sizes)


def _changes(kind: str, release: str) -> str:
    if kind == "S4D":
        defaults = "disc is an option, not in a checkpoint: bilinear by default in releases 2 and 3"
        return defaults if release in "23" else ""
    nodes = "the original rounds the nodes of its kernel, by 1e-5 to 1e-4 of the outputs"
    if release in "23":
        return f"{nodes}; some of its files lose half of the kernel without KeOps and the extension"
    return nodes


def _written(options: Mapping[str, Any]) -> str:
    """The arguments of a constructor, without those that are its defaults."""
    inner = options["d_model"] // options.get("bottleneck", 1)
    defaults = {"channels": 1, "rank": 1, "n_ssm": inner, "d_state": 64, "final_act": "glu", "release": 3}
    defaults["postact"] = "glu" if options.get("release") == 3 else None
    defaults["d_model"] = options["d_model"]
    given = (f"{name}={value!r}" for name, value in options.items() if value != defaults.get(name, ...))
    return ", ".join((str(options["d_model"]), *given))


# ----------------------------------------------------------------------------------------------------------- models


def _of_model(model: nn.Module) -> Iterator[_Found]:
    outer: list[str] = []
    for name, module in model.named_modules():
        if any(other == "" or name.startswith(f"{other}.") for other in outer):
            continue
        found = _own(name, module) if official.is_own(module) else _official(name, module)
        if found is not None:
            outer.append(name)
            yield found


def _own(name: str, module: nn.Module) -> _Found | None:
    if not isinstance(module, (S4Block, FFTConv, SSMModel, S4D, S4DLayer, S4Layer, SSKernel)):
        return None
    what = f"{'S4' if _has_low_rank(module) else 'S4D'}: {type(module).__name__}"
    return Inspected(name, what, "s4_fast", _sizes(module), "it is a layer of this package"), None


def _official(name: str, module: nn.Module) -> _Found | None:
    if not official.looks_official(module):
        return None
    row = official.recognized(module)
    if row is None:
        route = f"state_spaces.patch for the file of its class; {official.why_not(module)}"
        return Inspected(name, official.class_name(module), "", {}, route), None
    older = next(iter(older_parts(module.state_dict()).values()), None)
    low_rank = _has_low_rank(module) if older is None else not older.diagonal
    release = "4" if older is None else str(older.release)
    what = f"{'S4' if low_rank else 'S4D'}: {row.name}"
    try:
        new = replacement(module)
    except ValueError as reason:
        route = f"state_spaces.patch for the file of its class; replace_layers refuses: {reason}"
        return Inspected(name, what, release, {}, route), None
    route = "state_spaces.replace_layers(model)" if name else "state_spaces.replacement(layer)"
    trial = row.trial(new)
    found = Inspected(name, what, release, _sizes(new), route, _changes("S4", "4") if low_rank else "")
    return found, None if trial.transposed is None else (new, copy.deepcopy(module), trial)


def _has_low_rank(module: nn.Module) -> bool:
    return any(name.rpartition(".")[2] == "P" for name in module.state_dict())


def _sizes(module: Any) -> dict[str, int]:
    kernel = next(part for part in module.modules() if isinstance(part, SSMModel))
    return {"d_model": kernel.d_model, "d_state": kernel.d_state, "channels": kernel.channels}


# ------------------------------------------------------------------------------------------------------------- time


def _beside_the_formula(
    d_model: int, d_state: int, channels: int = 1, n_ssm: int | None = None, rank: int = 0
) -> _Pair:
    """A layer of these sizes, and the formulas that its original falls back to. Rank 0 is S4D."""
    options: dict[str, Any] = {"init": "dplr-lin", "rank": rank} if rank else {"mode": "diag", "init": "diag-lin"}
    layer = FFTConv(
        d_model, channels=channels, activation=None, transposed=False, verbose=False, d_state=d_state, n_ssm=n_ssm,
        **options,
    )  # fmt: skip
    return layer, lambda u: _by_formula(layer, u), Trial(d_model, transposed=False, steps=False)


def _by_formula(layer: FFTConv, u: Tensor) -> Tensor:
    kernel, L = layer.kernel, u.shape[1]
    if isinstance(kernel, SSMKernelDiag):
        x, B, C = kernel.discretize()
        k = direct.log_vandermonde(C * B, x, L)
    else:
        P, C = (torch.view_as_complex(t) for t in (kernel.P, kernel.C))
        P, dt = P.repeat(1, kernel.d_model // kernel.n_ssm, 1), kernel.dt()
        k = direct.dplr_kernel(dt * kernel.A(), P, P, kernel.B_vector()[None], C, dt, L)[0]
    return direct.fft_conv(u.mT, k, layer.D).flatten(1, 2).mT


def _timed(found: Inspected, pair: _Pair, time: bool) -> Inspected:
    if pair is None or not time:
        return found
    try:
        return _measured(found, pair)
    # The code of another project raises what it likes: it may need a compiler, or a GPU.
    except Exception:
        sizes = {name: size for name, size in found.sizes.items() if name != "rank"}
        return _measured(found, _beside_the_formula(**sizes, rank=0 if found.what.startswith("S4D") else 1))


def _measured(found: Inspected, pair: _Pair) -> Inspected:
    assert pair is not None
    ours, theirs, trial = pair
    states = found.sizes["d_state"] * found.sizes.get("channels", 1)
    length = max(1, min(_LENGTH, _MOST // (trial.features * states)))
    shape = (_BATCH, trial.features, length) if trial.transposed else (_BATCH, length, trial.features)
    like = next(ours.parameters())
    u = torch.randn(shape, dtype=like.dtype, device=like.device, requires_grad=True)

    def both_ways(layer: Callable[[Tensor], Any]) -> Callable[[], None]:
        def run() -> None:
            y = layer(u)
            (y[0] if isinstance(y, tuple) else y).sum().backward()

        return run

    mine, other = measure.timed_in_turn([both_ways(ours), both_ways(theirs)], _SECONDS)
    return found._replace(speedup=other.median / mine.median, shape=(_BATCH, length, trial.features))
