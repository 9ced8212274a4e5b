"""The graph of a program: operations at one time are the same nodes for a step and for a sequence."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from onnx import GraphProto, TensorProto, helper

from s4_fast.export.onnx_nodes import Nodes
from s4_fast.export.onnx_recurrence import by_chunks, packed, step
from s4_fast.export.program import (
    Add,
    Gate,
    Linear,
    Mean,
    Multiply,
    Normalize,
    Operation,
    Pointwise,
    Program,
    Recurrence,
)


def build(program: Program, graph: str) -> GraphProto:
    """The graph ``"step"`` or ``"prefill"``; see ``s4_fast.export.to_onnx``."""
    nodes, prefill = Nodes(), graph == "prefill"
    stateful = [own for own in program.operations if isinstance(own, Recurrence | Mean)]
    parts = _parts(nodes, program, stateful)
    after: list[str] = []
    values = ["u"]
    for operation, width in zip(program.operations, program.widths[1:], strict=True):
        x = values[operation.source]
        if isinstance(operation, Recurrence):
            before = parts.pop(0)
            y, following = (by_chunks if prefill else step)(nodes, packed(operation), x, before)
            after.append(nodes.add("Reshape", following, nodes.integers(0, operation.state)))
        elif isinstance(operation, Mean):
            y, sums, count = _mean(nodes, x, parts.pop(0), parts.pop(0), prefill)
            after += [sums, count]
        else:
            y = _at_one_time(nodes, operation, values, width)
        values.append(y)
    nodes.add("Identity", values[-1], name="y")
    nodes.add("Concat", *after, name="next_state", axis=1)
    of_sequence = prefill and not any(isinstance(own, Mean) for own in stateful)
    length: list[str | int] = ["length"] if prefill else []
    inputs = [
        helper.make_tensor_value_info("u", TensorProto.FLOAT, ["batch", *length, program.inputs]),
        helper.make_tensor_value_info("state", TensorProto.DOUBLE, ["batch", program.state]),
    ]
    outputs = [
        helper.make_tensor_value_info(
            "y", TensorProto.FLOAT, ["batch", *(length if of_sequence else []), program.outputs]
        ),
        helper.make_tensor_value_info("next_state", TensorProto.DOUBLE, ["batch", program.state]),
    ]
    return helper.make_graph(nodes.nodes, f"s4_fast_{graph}", inputs, outputs, nodes.initializers)


def _parts(nodes: Nodes, program: Program, stateful: list[Recurrence | Mean]) -> list[str]:
    """The parts of the state: (batch, H, 2n) of each recurrence, sums (batch, width) and count (batch, 1) of a mean."""
    sizes: list[int] = []
    for own in stateful:
        sizes += [own.state] if isinstance(own, Recurrence) else [program.widths[own.source], 1]
    parts = nodes.several("Split", len(sizes), "state", nodes.integers(*sizes), axis=1)
    found, i = [], 0
    for own in stateful:
        if isinstance(own, Recurrence):
            _, features, n, _ = own.sizes
            found.append(nodes.add("Reshape", parts[i], nodes.integers(0, features, 2 * n)))
            i += 1
        else:
            found += parts[i : i + 2]
            i += 2
    return found


def _mean(nodes: Nodes, x: str, sums: str, count: str, prefill: bool) -> tuple[str, str, str]:
    wide = nodes.add("Cast", x, to=TensorProto.DOUBLE)
    if not prefill:
        steps = nodes.constant(torch.ones(1, 1, dtype=torch.float64))
    else:
        wide = nodes.add("ReduceSum", wide, nodes.integers(1), keepdims=0)
        length = nodes.add("Gather", nodes.add("Shape", x), nodes.constant(torch.tensor(1)))
        steps = nodes.add("Cast", length, to=TensorProto.DOUBLE)
    sums, count = nodes.add("Add", sums, wide), nodes.add("Add", count, steps)
    return nodes.add("Cast", nodes.add("Div", sums, count), to=TensorProto.FLOAT), sums, count


def _at_one_time(nodes: Nodes, operation: Operation, values: list[str], width: int) -> str:
    x = values[operation.source]
    if isinstance(operation, Linear):
        return nodes.add(
            "Add", nodes.add("MatMul", x, nodes.constant(operation.weight.mT)), nodes.constant(operation.bias)
        )
    if isinstance(operation, Normalize):
        weight, bias = nodes.constant(operation.weight), nodes.constant(operation.bias)
        return nodes.add("LayerNormalization", x, weight, bias, axis=-1, epsilon=operation.eps)
    if isinstance(operation, Pointwise):
        return _POINTWISE[operation.function](nodes, x)
    if isinstance(operation, Gate):
        a, b = nodes.several("Split", 2, x, nodes.integers(width, width), axis=-1)
        return nodes.add("Mul", a, _POINTWISE[operation.function](nodes, b))
    assert isinstance(operation, Add | Multiply)
    return nodes.add("Add" if isinstance(operation, Add) else "Mul", x, values[operation.other])


def _gelu(nodes: Nodes, x: str) -> str:
    """In the form that onnxruntime fuses."""
    erf = nodes.add("Erf", nodes.add("Div", x, nodes.number(math.sqrt(2))))
    return nodes.add("Mul", nodes.add("Mul", x, nodes.add("Add", erf, nodes.number(1))), nodes.number(0.5))


def _gelu_tanh(nodes: Nodes, x: str) -> str:
    cube = nodes.add("Mul", nodes.add("Mul", x, x), x)
    inner = nodes.add("Add", x, nodes.add("Mul", cube, nodes.number(0.044715)))
    tanh = nodes.add("Tanh", nodes.add("Mul", inner, nodes.number(math.sqrt(2 / math.pi))))
    return nodes.add("Mul", nodes.add("Mul", x, nodes.add("Add", tanh, nodes.number(1))), nodes.number(0.5))


def _relu_squared(nodes: Nodes, x: str) -> str:
    positive = nodes.add("Relu", x)
    return nodes.add("Mul", positive, positive)


def _laplace(nodes: Nodes, x: str) -> str:
    shifted = nodes.add("Div", nodes.add("Sub", x, nodes.number(0.707107)), nodes.number(0.282095 * math.sqrt(2)))
    return nodes.add("Mul", nodes.add("Add", nodes.add("Erf", shifted), nodes.number(1)), nodes.number(0.5))


def _named(kind: str) -> Callable[[Nodes, str], str]:
    return lambda nodes, x: nodes.add(kind, x)


_POINTWISE: dict[str, Callable[[Any, str], str]] = {
    "identity": lambda nodes, x: x,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": _named("Relu"),
    "relu_squared": _relu_squared,
    "tanh": _named("Tanh"),
    "sigmoid": _named("Sigmoid"),
    "silu": lambda nodes, x: nodes.add("Mul", x, nodes.add("Sigmoid", x)),
    "elu": _named("Elu"),
    "softplus": _named("Softplus"),
    "laplace": _laplace,
}
