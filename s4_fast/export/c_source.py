"""The C99 source of a program: constants, a struct for the state, and a step that calls one function per operation."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from s4_fast.export.c_functions import functions, libm
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
    sources,
)

_PER_LINE = 8


def source(program: Program, name: str) -> str:
    """The whole file; see ``s4_fast.export.to_c``."""
    writer = _Writer(program)
    steps = [writer.call(i, operation) for i, operation in enumerate(program.operations)]
    buffers = [f"    float b{i}[{size}];" for i, size in enumerate(writer.buffers)]
    zeros = [f"    for (i = 0; i < {size}; i++) state->{part}[i] = 0;" for part, size in writer.state.items()]
    members = [f"    NAME_real {part}[{size}];" for part, size in writer.state.items()]
    if writer.pooled:
        members += [f"    double pooled[{writer.pooled}];", "    unsigned long steps;"]
        zeros += [f"    for (i = 0; i < {writer.pooled}; i++) state->pooled[i] = 0;", "    state->steps = 0;"]
    text = "\n".join(
        [
            _header(program, writer),
            "#ifndef NAME_DECLARED",
            "#define NAME_DECLARED",
            f"#define NAME_INPUTS {program.inputs}",
            f"#define NAME_OUTPUTS {program.outputs}",
            "#ifdef NAME_SINGLE",
            "typedef float NAME_real;",
            "#else",
            "typedef double NAME_real;",
            "#endif",
            "typedef struct {",
            *members,
            "} NAME_state;",
            "#ifdef __cplusplus",
            'extern "C" {',
            "#endif",
            "void NAME_init(NAME_state *state); /* before the first step, and to start anew */",
            "void NAME_step(NAME_state *state, const float *u, float *y); /* u[NAME_INPUTS] -> y[NAME_OUTPUTS] */",
            "#ifdef __cplusplus",
            "}",
            "#endif",
            "#endif",
            "",
            "#ifndef NAME_DECLARATIONS",
            "#include <math.h>",
            "",
            *writer.constants,
            "",
            functions(writer.used, writer.widest),
            "void NAME_init(NAME_state *state)",
            "{",
            "    int i;",
            *zeros,
            "}",
            "",
            "void NAME_step(NAME_state *state, const float *u, float *y)",
            "{",
            *buffers,
            *steps,
            "}",
            "#endif",
            "",
        ]
    )
    return re.sub("NAME(?=(_[A-Z])?)", lambda found: name.upper() if found[1] else name, text)


def _header(program: Program, writer: _Writer) -> str:
    facts = program.facts
    task = f", {facts['task']}" if "task" in facts else ""
    libm_names = ", ".join(libm(writer.used)) or "nothing"
    stack = 4 * sum(writer.buffers) + 16 * writer.widest
    return f"""/* {facts["model"]}{task}: one step in C99, written by s4_fast {facts["s4_fast"]}.
 *
 * Floats in: {program.inputs}, out: {program.outputs}. Length of a step, in those of the training: {facts["rate"]:g}.
 * Of libm: {libm_names}.
 * No allocation, no global state; about {stack} bytes on the stack.
 * Constants: about {writer.bytes} bytes. States are double, or float with -DNAME_SINGLE.
 * Other files: #define NAME_DECLARATIONS, then #include this file.
 */"""


class _Writer:
    """Constants, buffers and calls of a program, as they come up."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.constants: list[str] = []
        self.bytes = 0
        self.used: set[str] = set()
        self.state: dict[str, int] = {}
        self.pooled = 0  # features of a mean
        self.widest = 1  # outputs of a recurrence, or the products of its rank
        self.buffers: list[int] = []
        self._free: list[int] = []
        self._places = ["u"]
        self._last = {value: i for i, operation in enumerate(program.operations) for value in sources(operation)}

    def call(self, i: int, operation: Operation) -> str:
        """The line that makes value i + 1; afterwards, buffers that nobody reads any more are free."""
        width = self.program.widths[i + 1]
        inputs = [self._places[value] for value in sources(operation)]
        place = "y" if i + 1 == len(self.program.operations) else self._buffer(width)
        self._places.append(place)
        line = self._line(operation, inputs, place, width)
        for value in dict.fromkeys(sources(operation)):
            if self._last[value] == i and (before := self._places[value]) not in ("u", "y"):
                self._free.append(int(before[1:]))
        return f"    {line}"

    def _buffer(self, width: int) -> str:
        fitting = [k for k in self._free if self.buffers[k] >= width]
        if fitting:
            chosen = min(fitting, key=lambda k: self.buffers[k])
            self._free.remove(chosen)
        else:
            chosen = len(self.buffers)
            self.buffers.append(width)
        return f"b{chosen}"

    def _line(self, operation: Operation, inputs: list[str], place: str, width: int) -> str:
        x = inputs[0]
        if isinstance(operation, Linear):
            weight, bias = self._constant(operation.weight.mT), self._constant(operation.bias)
            return self._use("linear", x, weight, bias, place, operation.weight.shape[1], width)
        if isinstance(operation, Normalize):
            weight, bias = self._constant(operation.weight), self._constant(operation.bias)
            return self._use("normalize", x, weight, bias, f"{operation.eps!r}f", place, width)
        if isinstance(operation, Pointwise | Gate):
            kind = "gate" if isinstance(operation, Gate) else "map"
            return self._use(f"{kind}_{operation.function}", x, place, width)
        if isinstance(operation, Add | Multiply):
            return self._use("add" if isinstance(operation, Add) else "multiply", x, inputs[1], place, width)
        if isinstance(operation, Mean):
            self.pooled = width
            return self._use("mean", x, "state->pooled", "&state->steps", place, width)
        assert isinstance(operation, Recurrence)
        return self._recurrence(operation, x, place)

    def _recurrence(self, own: Recurrence, x: str, place: str) -> str:
        channels, features, n, rank = own.sizes
        increment, G, V, B, C = own.system
        part = f"s{len(self.state)}"
        self.state[part] = own.state
        self.widest = max(self.widest, channels * features, rank * features)
        # 2 Re C s is the sum of the products of the parts of 2 C* and s.
        rows = [_by_mode(t) for t in (B, 2 * C.conj(), 2 * V.conj(), G)]
        given = [self._constant(t) if t.numel() else "0" for t in (*rows, own.D)]
        wide = self._constant(_by_mode(increment), "NAME_real")
        return self._use("recurrence", x, f"state->{part}", wide, *given, place, features, n, channels, rank)

    def _constant(self, t: Tensor, kind: str = "float") -> str:
        name = f"c{len(self.constants)}"
        values = t.flatten().tolist() if kind == "NAME_real" else t.float().flatten().tolist()
        written = [f"{v!r}" if kind == "NAME_real" else _float(v) for v in values]
        lines = [", ".join(written[i : i + _PER_LINE]) for i in range(0, len(written), _PER_LINE)]
        body = ",\n    ".join(lines)
        self.constants.append(f"static const {kind} {name}[{len(values)}] = {{\n    {body}\n}};")
        self.bytes += (8 if kind == "NAME_real" else 4) * len(values)
        return name

    def _use(self, function: str, *arguments: object) -> str:
        self.used.add(function)
        return f"NAME_{function}({', '.join(map(str, arguments))});"


def _by_mode(t: Tensor) -> Tensor:
    """(..., H, n), complex -> (..., n, 2, H), real: the innermost loop runs over the features."""
    return torch.stack((t.real, t.imag), -1).movedim(-3, -1)


def _float(value: float) -> str:
    """The shortest of at most nine digits, which tell every float."""
    text = f"{value:.9g}"
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"
