"""The nodes of a recurrence: one step, and a sequence in chunks of steps with a rest of single ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from onnx import TensorProto, helper
from torch import Tensor

from s4_fast.export.onnx_nodes import Nodes
from s4_fast.export.program import Recurrence
from s4_fast.ssm.dplr import DPLRRecurrence

CHUNK = 32
"""Steps that are one product with matrices."""


class Packed(NamedTuple):
    """A recurrence on states (..., H, 2n) that are real: real parts, then imaginary parts. In float64.

    ``s' = s + along s + across swap(s) - sum_r G_r (V_r . s) + B u``, ``y = C . s' + D u``.
    """

    along: Tensor  # (H, 2n)
    across: Tensor  # (H, 2n), of the states with their halves swapped
    G: Tensor  # (rank, H, 2n)
    V: Tensor  # (rank, H, 2n)
    B: Tensor  # (H, 2n)
    C: Tensor  # (channels, H, 2n)
    D: Tensor  # (channels, H), float32
    system: DPLRRecurrence


def packed(own: Recurrence) -> Packed:
    increment, G, V, B, C = own.system
    along = torch.cat((increment.real, increment.real), -1)
    across = torch.cat((-increment.imag, increment.imag), -1)
    return Packed(along, across, _vector(G), _dual(V), _vector(B), _dual(C), own.D, own.system)


def _vector(t: Tensor) -> Tensor:
    return torch.cat((t.real, t.imag), -1)


def _dual(t: Tensor) -> Tensor:
    """The row whose product with a packed state is ``2 Re t s``."""
    return 2 * torch.cat((t.real, -t.imag), -1)


def step(nodes: Nodes, own: Packed, u: str, state: str) -> tuple[str, str]:
    """u (batch, H) float32, state (batch, H, 2n) -> y (batch, channels H) float32, the next state."""
    H, n = own.B.shape[0], own.B.shape[1] // 2
    real, imaginary = nodes.several("Split", 2, state, nodes.integers(n, n), axis=2)
    swapped = nodes.add("Concat", imaginary, real, axis=2)
    wide = nodes.add("Cast", u, to=TensorProto.DOUBLE)
    column = nodes.add("Unsqueeze", wide, nodes.integers(2))
    changes = [
        nodes.add("Mul", state, nodes.constant(own.along)),
        nodes.add("Mul", swapped, nodes.constant(own.across)),
        nodes.add("Mul", column, nodes.constant(own.B)),
    ]
    if len(own.G):
        every = nodes.add("Unsqueeze", state, nodes.integers(1))
        overlap = nodes.add("Mul", every, nodes.constant(own.V))
        overlap = nodes.add("ReduceSum", overlap, nodes.integers(3), keepdims=1)
        correction = nodes.add("Mul", overlap, nodes.constant(-own.G))
        changes.append(nodes.add("ReduceSum", correction, nodes.integers(1), keepdims=0))
    change = changes[0]
    for other in changes[1:]:
        change = nodes.add("Add", change, other)
    following = nodes.add("Add", state, change)
    products = nodes.add("Mul", nodes.add("Unsqueeze", following, nodes.integers(1)), nodes.constant(own.C))
    y = nodes.add("ReduceSum", products, nodes.integers(3), keepdims=0)
    skip = nodes.add("Mul", nodes.add("Unsqueeze", wide, nodes.integers(1)), nodes.constant(own.D.double()))
    y = nodes.add("Reshape", nodes.add("Add", y, skip), nodes.integers(0, len(own.C) * H))
    return nodes.add("Cast", y, to=TensorProto.FLOAT), following


def by_chunks(nodes: Nodes, own: Packed, u: str, state: str) -> tuple[str, str]:
    """u (batch, L, H), state (batch, H, 2n) -> y (batch, L, channels H), the state after. Any L, 0 included."""
    length = nodes.add("Gather", nodes.add("Shape", u), nodes.constant(torch.tensor(1)))
    size = nodes.constant(torch.tensor(CHUNK))
    chunks = nodes.add("Div", length, size)
    done = nodes.add("Mul", chunks, size)
    left = nodes.add("Sub", length, done)

    def chunk(inner: Nodes, i: str, before: str) -> tuple[str, str]:
        first = inner.add("Unsqueeze", inner.add("Mul", i, size), inner.integers(0))
        last = inner.add("Add", first, inner.integers(CHUNK))
        part = inner.add("Slice", u, first, last, inner.integers(1))
        return _chunk(inner, own, part, before)

    def single(inner: Nodes, i: str, before: str) -> tuple[str, str]:
        return step(inner, own, inner.add("Gather", u, inner.add("Add", done, i), axis=1), before)

    y, state = _loop(nodes, chunks, state, chunk)
    rest, state = _loop(nodes, left, state, single)
    batch = nodes.add("Gather", nodes.add("Shape", u), nodes.integers(0))
    width = nodes.integers(len(own.C) * own.B.shape[0])
    # (chunks, batch, T, width) and (rest, batch, width). Without a chunk or rest the batch is not known from these.
    parts = (nodes.add("Transpose", y, perm=[1, 0, 2, 3]), done), (nodes.add("Transpose", rest, perm=[1, 0, 2]), left)
    shaped = []
    for part, count in parts:
        shape = nodes.add("Concat", batch, nodes.add("Unsqueeze", count, nodes.integers(0)), width, axis=0)
        shaped.append(nodes.add("Reshape", part, shape, allowzero=1))
    return nodes.add("Concat", *shaped, axis=1), state


def _loop(nodes: Nodes, count: str, state: str, body: Callable[[Nodes, str, str], tuple[str, str]]) -> tuple[str, str]:
    """The outputs of ``body(inner, i, state) -> (y, state)`` for i < count, one after the other, and the last state."""
    inner = Nodes(nodes)
    i, go, before = inner.name(), inner.name(), inner.name()
    y, after = body(inner, i, before)
    again = inner.add("Identity", go)
    inputs = [
        helper.make_tensor_value_info(i, TensorProto.INT64, []),
        helper.make_tensor_value_info(go, TensorProto.BOOL, []),
        helper.make_tensor_value_info(before, TensorProto.DOUBLE, None),
    ]
    outputs = [
        helper.make_tensor_value_info(again, TensorProto.BOOL, []),
        helper.make_tensor_value_info(after, TensorProto.DOUBLE, None),
        helper.make_tensor_value_info(y, TensorProto.FLOAT, None),
    ]
    graph = helper.make_graph(inner.nodes, f"steps_{y}", inputs, outputs)
    last, outputs_of_all = nodes.several("Loop", 2, count, "", state, body=graph)
    return outputs_of_all, last


def _chunk(nodes: Nodes, own: Packed, u: str, state: str) -> tuple[str, str]:
    """u (batch, T, H), state (batch, H, 2n) -> y (batch, T, channels H), the state after T steps.

    ``y = K u + O s`` and ``s' = A_bar^T s + R u``. The states are carried in float64, the rest is in float32.
    """
    K, O, R, power = matrices(own)
    by_feature = nodes.add("Transpose", u, perm=[2, 0, 1])
    states = nodes.add("Transpose", state, perm=[1, 0, 2])
    every = nodes.add("Unsqueeze", by_feature, nodes.integers(0))
    narrow = nodes.add("Unsqueeze", nodes.add("Cast", states, to=TensorProto.FLOAT), nodes.integers(0))
    y = nodes.add(
        "Add",
        nodes.add("MatMul", every, nodes.constant(K.float())),
        nodes.add("MatMul", narrow, nodes.constant(O.float())),
    )
    y = nodes.add("Transpose", y, perm=[2, 3, 0, 1])  # (channels, H, batch, T) -> (batch, T, channels, H)
    y = nodes.add("Reshape", y, nodes.integers(0, 0, len(own.C) * own.B.shape[0]))
    reached = nodes.add("MatMul", by_feature, nodes.constant(R.float()))
    following = nodes.add(
        "Add",
        nodes.add("MatMul", states, nodes.constant(power)),
        nodes.add("Cast", reached, to=TensorProto.DOUBLE),
    )
    return y, nodes.add("Transpose", following, perm=[1, 0, 2])


def matrices(own: Packed) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """K (channels, H, T, T), O (channels, H, 2n, T), R (H, T, 2n), A_bar^T (H, 2n, 2n), for rows times matrices."""
    T, (H, width) = CHUNK, own.B.shape
    eye = torch.eye(width, dtype=torch.float64)[:, None].expand(-1, H, -1)
    basis, response = torch.complex(*eye.chunk(2, -1)), own.system.B
    kernel, reached, outputs = [], [], []
    for _ in range(T):
        reached.append(_vector(response))
        kernel.append((own.C * reached[-1]).sum(-1))  # (channels, H)
        response, basis = own.system.advance(response), own.system.advance(basis)
        outputs.append((own.C[:, None] * _vector(basis)).sum(-1))  # (channels, 2n, H)
    kernel[0] = kernel[0] + own.D
    K = torch.zeros(*own.D.shape, T, T, dtype=torch.float64)
    for l, k in enumerate(kernel):
        K.diagonal(l, -2, -1).copy_(k[..., None])  # from input i to output i + l
    O = torch.stack(outputs, -1).transpose(1, 2)
    R = torch.stack(reached[::-1], 1)
    return K, O, R, _vector(basis).transpose(0, 1)
