"""Modules of this package, and what they may be made of, read as a program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from s4_fast._version import __version__
from s4_fast.arguments import number
from s4_fast.export.program import Add, Gate, Linear, Mean, Multiply, Normalize, Pointwise, Program, Recurrence
from s4_fast.export.refusals import ExportError, called, refuse_changed
from s4_fast.layers import DropoutNd, S4DLayer, S4Layer, S4SequenceModel, SSMBlock
from s4_fast.ops._complex import expm1
from s4_fast.ssm import DPLRSSM, DiagonalSSM
from s4_fast.ssm.diagonal import DiagonalModel
from s4_fast.ssm.dplr import DPLRModel, DPLRRecurrence
from s4_fast.state_spaces import S4, S4D, FFTConv, S4Block, S4DKernel, SSMKernelDiag, SSMKernelDPLR
from s4_fast.state_spaces.activation import GLU, Laplace, MappedFeatures, SquaredReLU, WeightNorm


@torch.no_grad()
def read(model: nn.Module, rate: float = 1.0) -> Program:
    """The step of ``model`` in evaluation mode, for a sampling that is ``rate`` times as coarse as in training.

    Raises:
        ExportError: what cannot be exported, and why.
        TypeError: ``rate`` is no number.
    """
    rate = number("rate", rate)
    if not 0 < rate < float("inf"):
        raise ExportError(f"expected a rate above 0, got {rate}")
    if not isinstance(model, nn.Module):
        raise ExportError(f"expected a module, got {type(model).__name__}")
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    refuse_changed(model)
    if type(model) not in _WHOLE:
        known = ", ".join(kind.__name__ for kind in _WHOLE)
        raise ExportError(f"{called('', model)} is no model that can be exported, which are {known}")
    reader = _Reader(rate)
    reader.program = Program(_inputs(model))
    reader.read(model, "", 0)
    reader.program.facts = {
        "model": type(model).__name__,
        "s4_fast": __version__,
        "inputs": reader.program.inputs,
        "outputs": reader.program.outputs,
        "state_size": reader.program.state,
        "rate": rate,
        **({"task": model.task} if isinstance(model, S4SequenceModel) else {}),
    }
    return reader.program


def _inputs(model: Any) -> int:
    if isinstance(model, S4SequenceModel):
        return model.d_input
    if isinstance(model, SSMBlock):
        return model.layer.d_model
    return model.h if isinstance(model, S4D) else model.d_model


class _Reader:
    """Appends the operations of modules to a program. Each method takes a module, its name, and the value it reads."""

    program: Program

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def read(self, module: nn.Module, name: str, x: int) -> int:
        read = _READERS.get(type(module))
        if read is None:
            raise ExportError(f"{called(name, module)} is of a type that is not known to the export")
        return read(self, module, name, x)

    def model(self, model: S4SequenceModel, name: str, x: int) -> int:
        x = self.read(model.encoder, "encoder", x)
        for i, block in enumerate(model.blocks):
            x = self.read(block, f"blocks.{i}", x)
        x = self.read(model.norm, "norm", x)
        if model.task == "classification":
            x = self.program.add(Mean(x), self.program.widths[x])
        return self.read(model.head, "head", x)

    def block(self, block: SSMBlock, name: str, x: int) -> int:
        y = self.read(block.norm, _inside(name, "norm"), x)
        y = self.read(block.layer, _inside(name, "layer"), y)
        y = self.read(block.dropout, _inside(name, "dropout"), self.pointwise(y, "gelu"))
        y = self.read(block.mix, _inside(name, "mix"), y)
        return self.both(Add, x, self.gate(y, "sigmoid"), name)

    def layer(self, layer: Any, name: str, x: int) -> int:
        """An S4DLayer or S4Layer."""
        return self.recurrence(layer.kernel, layer.D, _inside(name, "kernel"), x)

    def convolution(self, conv: FFTConv, name: str, x: int) -> int:
        if conv.swap_channels and len(conv.D) > 1:
            raise ExportError(f"{called(name, conv)} has swap_channels=True, which is not exported")
        y = self.recurrence(conv.kernel, conv.D, _inside(name, "kernel"), x)
        y = self.read(conv.drop, _inside(name, "drop"), y)
        return self.read(conv.activation, _inside(name, "activation"), y)

    def official_block(self, block: S4Block, name: str, x: int) -> int:
        """``output_linear(mult_act(output_gate(layer(input_linear(x))) * input_gate(x)))``.

        An S4 of releases 1 to 3 may have its gate behind the last map.
        """
        y = x if block.bottleneck is None else self.read(block.input_linear, _inside(name, "input_linear"), x)
        if isinstance(block, S4) and block.release == 1:
            x = y  # its gate is of the mapped input
        y = self.read(block.layer, _inside(name, "layer"), y)
        if getattr(block, "_gated_after", False):
            y = self.read(block.mult_activation, _inside(name, "mult_activation"), y)
            y = self.read(block.drop, _inside(name, "drop"), y)
            y = self.read(block.output_linear, _inside(name, "output_linear"), y)
            y = self.both(Multiply, y, self.read(block.input_gate, _inside(name, "input_gate"), x), name)
            return self.read(block.output_gate, _inside(name, "output_gate"), y)
        if block.gate is not None:
            y = self.read(block.output_gate, _inside(name, "output_gate"), y)
            y = self.both(Multiply, y, self.read(block.input_gate, _inside(name, "input_gate"), x), name)
        y = self.read(block.mult_activation, _inside(name, "mult_activation"), y)
        y = self.read(block.drop, _inside(name, "drop"), y)
        return self.read(block.output_linear, _inside(name, "output_linear"), y)

    def minimal(self, layer: S4D, name: str, x: int) -> int:
        """The minimal S4D layer of state-spaces/s4."""
        y = self.recurrence(layer.kernel, layer.D, _inside(name, "kernel"), x)
        y = self.read(layer.activation, _inside(name, "activation"), y)
        y = self.read(layer.dropout, _inside(name, "dropout"), y)
        return self.read(layer.output_linear, _inside(name, "output_linear"), y)

    def recurrence(self, kernel: DiagonalModel | DPLRModel, D: Tensor, name: str, x: int) -> int:
        if type(kernel) not in _KERNELS:
            raise ExportError(f"{called(name, kernel)} is of a type that is not known to the export")
        if isinstance(kernel, DPLRModel):
            system = kernel.recurrence(self.rate)
        elif kernel.scans():
            log_lambda, B = kernel._discretize(self.rate)
            none = B.new_zeros(0, *B.shape)
            system = DPLRRecurrence(expm1(log_lambda), none, none, B, kernel._C().to(B.dtype))
        else:
            raise ExportError(f"{called(name, kernel)} has disc='dss', which has no recurrence")
        own = DPLRRecurrence(*(t.cpu().resolve_conj().contiguous() for t in system))
        channels, features = own.C.shape[:2]
        return self.program.add(Recurrence(x, own, _float(D).view(channels, features)), channels * features)

    def linear(self, map: Any, name: str, x: int) -> int:
        """A linear map, of weight (outputs, inputs), or (outputs, inputs, 1) where it is a convolution of width 1."""
        weight = _float(map.weight)
        if isinstance(map, nn.Conv1d) and (map.kernel_size, map.stride, map.groups) != ((1,), (1,), 1):
            raise ExportError(f"{called(name, map)} is no map of the features at one time")
        weight = weight.flatten(1)
        if weight.shape[1] != self.program.widths[x]:
            raise ExportError(
                f"{called(name, map)} takes {weight.shape[1]} features, and gets {self.program.widths[x]}"
            )
        bias = weight.new_zeros(len(weight)) if map.bias is None else _float(map.bias)
        return self.program.add(Linear(x, weight, bias), len(weight))

    def norm(self, norm: nn.LayerNorm, name: str, x: int) -> int:
        width = self.program.widths[x]
        if tuple(norm.normalized_shape) != (width,):
            raise ExportError(f"{called(name, norm)} is not over the {width} features")
        weight = torch.ones(width) if norm.weight is None else _float(norm.weight)
        bias = torch.zeros(width) if norm.bias is None else _float(norm.bias)
        return self.program.add(Normalize(x, weight, bias, norm.eps), width)

    def nothing(self, module: nn.Module, name: str, x: int) -> int:
        return x

    def sequential(self, modules: nn.Sequential, name: str, x: int) -> int:
        for i, module in enumerate(modules):
            x = self.read(module, _inside(name, str(i)), x)
        return x

    def activation(self, module: nn.Module, name: str, x: int) -> int:
        return self.pointwise(x, _function(module, name))

    def gated(self, glu: Any, name: str, x: int) -> int:
        return self.gate(x, "sigmoid" if type(glu) is nn.GLU else _function(glu.activation_fn, name))

    def pointwise(self, x: int, function: str) -> int:
        return x if function == "identity" else self.program.add(Pointwise(x, function), self.program.widths[x])

    def gate(self, x: int, function: str) -> int:
        return self.program.add(Gate(x, function), self.program.widths[x] // 2)

    def both(self, kind: type[Add] | type[Multiply], x: int, y: int, name: str) -> int:
        widths = self.program.widths[x], self.program.widths[y]
        if widths[0] != widths[1]:
            raise ExportError(f"{name or 'the block'} joins {widths[0]} features with {widths[1]}")
        return self.program.add(kind(x, y), widths[0])


def _function(module: nn.Module, name: str) -> str:
    """The name of a pointwise activation."""
    if isinstance(module, nn.GELU) and module.approximate == "tanh":
        return "gelu_tanh"
    settings = {setting: getattr(module, setting) for setting in ("alpha", "beta", "threshold", "mu", "sigma")
                if hasattr(module, setting)}  # fmt: skip
    usual = _SETTINGS.get(type(module), {})
    if type(module) not in _FUNCTIONS or settings != usual:
        raise ExportError(f"{called(name, module)} is an activation that is not known to the export: {module}")
    return _FUNCTIONS[type(module)]


def _inside(name: str, child: str) -> str:
    return f"{name}.{child}" if name else child


def _float(t: Tensor) -> Tensor:
    return t.detach().to("cpu", torch.float32).contiguous()


_FUNCTIONS: dict[type[nn.Module], str] = {
    nn.Identity: "identity",
    nn.GELU: "gelu",
    nn.ReLU: "relu",
    SquaredReLU: "relu_squared",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.SiLU: "silu",
    nn.ELU: "elu",
    nn.Softplus: "softplus",
    Laplace: "laplace",
}
_SETTINGS: dict[type[nn.Module], dict[str, float]] = {
    nn.ELU: {"alpha": 1.0},
    nn.Softplus: {"beta": 1.0, "threshold": 20.0},
    Laplace: {"mu": 0.707107, "sigma": 0.282095},
}
_KERNELS = (DiagonalSSM, DPLRSSM, SSMKernelDiag, SSMKernelDPLR, S4DKernel)
_WHOLE: dict[type[nn.Module], Callable[[_Reader, Any, str, int], int]] = {
    S4SequenceModel: _Reader.model,
    SSMBlock: _Reader.block,
    S4DLayer: _Reader.layer,
    S4Layer: _Reader.layer,
    S4Block: _Reader.official_block,
    S4: _Reader.official_block,
    FFTConv: _Reader.convolution,
    S4D: _Reader.minimal,
}
_READERS: dict[type[nn.Module], Callable[[_Reader, Any, str, int], int]] = {
    **_WHOLE,
    nn.Linear: _Reader.linear,
    nn.Conv1d: _Reader.linear,
    WeightNorm: _Reader.linear,
    nn.LayerNorm: _Reader.norm,
    nn.Sequential: _Reader.sequential,
    MappedFeatures: _Reader.sequential,
    **dict.fromkeys((nn.Dropout, DropoutNd), _Reader.nothing),
    **dict.fromkeys((nn.GLU, GLU), _Reader.gated),
    **dict.fromkeys(_FUNCTIONS, _Reader.activation),
}
