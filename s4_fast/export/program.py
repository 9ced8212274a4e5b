"""One step of a model as operations on vectors of real numbers: what the writers of ONNX and C read."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from s4_fast.ssm.dplr import DPLRRecurrence


class Linear(NamedTuple):
    """``weight x + bias``: weight (outputs, inputs), bias (outputs,), float32."""

    source: int
    weight: Tensor
    bias: Tensor


class Normalize(NamedTuple):
    """``(x - mean) / sqrt(variance + eps) weight + bias``, weight and bias (width,), float32."""

    source: int
    weight: Tensor
    bias: Tensor
    eps: float


class Pointwise(NamedTuple):
    """A function of every number, by its name in ``FUNCTIONS``."""

    source: int
    function: str


class Gate(NamedTuple):
    """``a f(b)`` of the halves (a, b), f as in ``Pointwise``."""

    source: int
    function: str


class Add(NamedTuple):
    """``x + y``."""

    source: int
    other: int


class Multiply(NamedTuple):
    """``x y``."""

    source: int
    other: int


class Recurrence(NamedTuple):
    """``s' = s + increment s - sum_r G_r (2 Re V_r s) + B u``, ``y = 2 Re C s' + D u``, as (channels, features).

    ``system`` is in complex128, rank 0 where it is diagonal; D is (channels, features), float32.
    """

    source: int
    system: DPLRRecurrence
    D: Tensor

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Channels, features, states per feature, rank."""
        return len(self.system.C), *self.system.B.shape, len(self.system.G)

    @property
    def state(self) -> int:
        """How many real numbers the state has."""
        return 2 * self.system.B.numel()


class Mean(NamedTuple):
    """The mean of x over this step and all before."""

    source: int


Operation = Linear | Normalize | Pointwise | Gate | Add | Multiply | Recurrence | Mean

FUNCTIONS = (
    "identity", "gelu", "gelu_tanh", "relu", "relu_squared", "tanh", "sigmoid", "silu", "elu", "softplus", "laplace",
)  # fmt: skip


class Program:
    """Operations in their order. Value 0 is the input, and operation i makes value i + 1; the last is the output."""

    def __init__(self, inputs: int) -> None:
        self.widths = [inputs]
        self.operations: list[Operation] = []
        self.facts: dict[str, Any] = {}  # what the program is of, for whoever finds the file

    def add(self, operation: Operation, width: int) -> int:
        """Append an operation with ``width`` results; the value that it makes."""
        self.operations.append(operation)
        self.widths.append(width)
        return len(self.operations)

    @property
    def inputs(self) -> int:
        return self.widths[0]

    @property
    def outputs(self) -> int:
        return self.widths[-1]

    @property
    def recurrences(self) -> list[Recurrence]:
        return [operation for operation in self.operations if isinstance(operation, Recurrence)]

    @property
    def state(self) -> int:
        """How many real numbers are carried from step to step: states, and a mean's sums and count."""
        means = [width for width, made in zip(self.widths[1:], self.operations, strict=True) if isinstance(made, Mean)]
        return sum(own.state for own in self.recurrences) + sum(width + 1 for width in means)


def sources(operation: Operation) -> list[int]:
    """The values that an operation reads."""
    return [operation.source, operation.other] if isinstance(operation, Add | Multiply) else [operation.source]
