"""Nodes and constants of an ONNX graph, each with a name of its own."""

from __future__ import annotations

from typing import Any

import torch
from onnx import NodeProto, TensorProto, helper
from torch import Tensor

_TYPES = {torch.float32: TensorProto.FLOAT, torch.float64: TensorProto.DOUBLE, torch.int64: TensorProto.INT64}


class Nodes:
    """What is in a graph so far. A graph inside another has its constants there, and counts on from its names."""

    def __init__(self, outer: Nodes | None = None) -> None:
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = [] if outer is None else outer.initializers
        self._names: list[None] = [] if outer is None else outer._names
        self._integers: dict[tuple[int, ...], str] = {} if outer is None else outer._integers

    def name(self) -> str:
        """A name that nothing has."""
        self._names.append(None)
        return f"v{len(self._names)}"

    def add(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Append a node with one result; its name."""
        (result,) = self.several(kind, [name or self.name()], *inputs, **attributes)
        return result

    def several(self, kind: str, results: int | list[str], *inputs: str, **attributes: Any) -> list[str]:
        """Append a node with as many results, or with results of these names."""
        names = [self.name() for _ in range(results)] if isinstance(results, int) else results
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=f"{kind}_{names[0]}", **attributes))
        return names

    def constant(self, t: Tensor) -> str:
        name, content = self.name(), t.detach().contiguous().numpy().tobytes()
        self.initializers.append(helper.make_tensor(name, _TYPES[t.dtype], list(t.shape), content, raw=True))
        return name

    def number(self, value: float) -> str:
        """A float32 that goes with any shape."""
        return self.constant(torch.tensor(value, dtype=torch.float32))

    def integers(self, *values: int) -> str:
        """A vector of integers, which shapes, axes and sizes are."""
        if values not in self._integers:
            self._integers[values] = self.constant(torch.tensor(values, dtype=torch.int64))
        return self._integers[values]
