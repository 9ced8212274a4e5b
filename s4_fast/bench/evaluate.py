"""One op or layer by one evaluation, as calls without arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

import s4_fast
from s4_fast import dispatch
from s4_fast.bench import direct
from s4_fast.bench.inputs import Arguments

# What a whole layer is called as, whatever it runs on, and the evaluations that ops and layers are compared with beside
# the backends: the direct one, the same by torch.compile, and for ssm_scan the convolution whose kernel costs nothing.
OURS, DIRECT, COMPILED, KERNEL_GIVEN = "s4_fast", "direct", "compiled direct", "fft_conv"

Output = Tensor | tuple[Tensor, ...]
Run = Callable[[Tensor], Output]


def is_ours(name: str) -> bool:
    """Whether an evaluation is this package's, and so bound by the accuracy contract; the others are baselines."""
    return name == OURS or name in dispatch.BACKENDS


class Refused(Exception):
    """An evaluation cannot serve a case; the message says why."""


class Outcome(NamedTuple):
    """What an evaluation returned: the outputs, and the gradients of the inputs by name (empty if not asked for)."""

    outputs: tuple[Tensor, ...]
    gradients: dict[str, Tensor]


class Evaluation(NamedTuple):
    """A case by one evaluation.

    Attributes:
        forward: the outputs, without gradients.
        both: outputs and gradients; None where there are none.
        version: of what evaluates, with its name.
        automatic: whether it is what runs where nothing else is asked for.
        compared: whether it computes what the definition does.
        same: the gradients that mean what those of the definition do, None for all.
    """

    forward: Callable[[], tuple[Tensor, ...]]
    both: Callable[[], Outcome] | None
    version: str
    automatic: bool = False
    compared: bool = True
    same: frozenset[str] | None = None

    def outcome(self) -> Outcome:
        """What the definition has too, once."""
        found = self.both() if self.both else Outcome(self.forward(), {})
        if self.same is None:
            return found
        return Outcome(found.outputs, {name: g for name, g in found.gradients.items() if name in self.same})


def own_version() -> str:
    return f"s4_fast {s4_fast.__version__}"


def torch_version() -> str:
    return f"torch {torch.__version__.partition('+')[0]}"


def of_op(op: str, name: str, arguments: Arguments) -> Evaluation:
    """``op`` by a backend or by what it is compared with.

    Raises:
        Refused: the backend does not serve this call.
    """
    given = inputs(op, name, arguments)
    function = implementation(op, name)
    ours = is_ours(name)
    if ours and (reason := refusal(op, name, arguments, grads=False)):
        raise Refused(reason)
    differentiable = not ours or not refusal(op, name, arguments, grads=True)
    return Evaluation(
        forward(function, given),
        forward_backward(function, given) if differentiable else None,
        own_version() if ours or name in dispatch.ops() else torch_version(),
        automatic=automatic(op, arguments) == name,
        compared=not (op == "dplr_scan" and name == "ssm_scan"),
    )


def baselines(op: str) -> tuple[str, ...]:
    """What an op is compared with beside its direct evaluation."""
    return {"ssm_scan": (KERNEL_GIVEN,), "dplr_scan": ("ssm_scan",)}.get(op, ())


def implementation(op: str, name: str) -> Callable[..., Output]:
    """The function that evaluates ``op``: the public one with an explicit backend, or a baseline."""
    if name == DIRECT:
        return getattr(direct, op)
    if name == COMPILED:
        torch.compiler.reset()
        return torch.compile(getattr(direct, op), dynamic=False)
    if name in dispatch.ops():
        return getattr(s4_fast, name)
    return partial(getattr(s4_fast, op), backend=name)


def inputs(op: str, name: str, arguments: Arguments) -> Arguments:
    """What :func:`implementation` takes for the arguments of the op."""
    t = arguments.tensors
    if name == KERNEL_GIVEN:
        k = s4_fast.log_vandermonde(t["C"] * t["B"], t["x"], t["u"].shape[-1])
        return Arguments({"u": t["u"], "k": k, "D": t["D"]}, {})
    if op == "dplr_scan" and name == "ssm_scan":
        discrete = {"x": t["dt"] * t["A"], "B": t["dt"] * t["B"]}
        return Arguments({"u": t["u"], **discrete, "C": t["C"], "D": t["D"]}, {})
    return arguments


def parts(output: Output) -> tuple[Tensor, ...]:
    """One output or several, as a tuple."""
    return output if isinstance(output, tuple) else (output,)


def refusal(op: str, backend: str, arguments: Arguments, *, grads: bool) -> str:
    """Why ``backend`` cannot serve this call, with gradients or without, or the empty string."""
    tensors = _leaves(arguments) if grads else arguments.tensors
    try:
        dispatch.explain(op, **tensors, **arguments.scalars, backend=backend)
    except dispatch.BackendUnavailableError as error:
        return error.cause
    return ""


def automatic(op: str, arguments: Arguments) -> str:
    """The backend that the automatic choice takes for this call with gradients, whatever is set around it."""
    return dispatch.explain(op, **_leaves(arguments), **arguments.scalars, backend="auto").backend


def forward(function: Callable[..., Output], arguments: Arguments) -> Callable[[], tuple[Tensor, ...]]:
    """The evaluation without gradients, to be called many times."""

    def run() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return parts(function(**arguments.tensors, **arguments.scalars))

    return run


def forward_backward(function: Callable[..., Output], arguments: Arguments) -> Callable[[], Outcome]:
    """The evaluation and the gradients of every tensor, for the cotangents of :func:`cotangent`."""
    leaves = _leaves(arguments)
    return differentiated(lambda: function(**leaves, **arguments.scalars), leaves)


def differentiated(evaluate: Callable[[], Output], leaves: Mapping[str, Tensor]) -> Callable[[], Outcome]:
    """``evaluate`` and its gradients in ``leaves``, for the cotangents of :func:`cotangent`."""
    cotangents: list[Tensor] = []

    def run() -> Outcome:
        outputs = parts(evaluate())
        if not cotangents:
            cotangents.extend(map(cotangent, outputs))
        grads = torch.autograd.grad(outputs, list(leaves.values()), cotangents)
        return Outcome(tuple(t.detach() for t in outputs), dict(zip(leaves, grads, strict=True)))

    return run


def cotangent(output: Tensor) -> Tensor:
    """A fixed normal cotangent for ``output``, representable in its precision, which lies in memory as it does."""
    generator = torch.Generator().manual_seed(1)
    wide = torch.float32 if output.dtype in (torch.bfloat16, torch.float16) else output.dtype
    return torch.empty_like(output).copy_(torch.randn(output.shape, dtype=wide, generator=generator))


def _leaves(arguments: Arguments) -> dict[str, Tensor]:
    return {name: t.detach().requires_grad_() for name, t in arguments.tensors.items()}
