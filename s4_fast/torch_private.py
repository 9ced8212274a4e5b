"""Facts that PyTorch shows only by private names: one name each here, so that a new PyTorch breaks them in one place.

None of them decides anything. Those of graphs and modes are asked outside compiled graphs: in one,
``torch.compiler.is_compiling`` answers first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.nn.modules import module as nn_module
from torch.utils import _pytree as pytree

_Function = TypeVar("_Function", bound=Callable[..., Any])


def constant_in_graphs(function: _Function) -> _Function:
    """``torch.compiler.assume_constant_result``, which imports Dynamo: two seconds that only graphs need."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""The attributes in which a module keeps its hooks by handle."""

# Bound and not wrapped: a step of a recurrence asks all of them, and a wrapper costs as much as the answer.

function_modes: Callable[[], int] = torch._C._len_torch_function_stack
"""How many ``TorchFunctionMode`` see every call of PyTorch, as ``with torch.device(...)`` does."""

dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
"""How many ``TorchDispatchMode`` see every operation, as those of fake tensors and of ``make_fx`` do."""

innermost_transform: Callable[[], Any] = torch._C._functorch.peek_interpreter_stack
"""The transform of ``torch.func`` (vmap, grad, jvp, functionalize) at work, None where none is."""


@constant_in_graphs
def is_transformed_in_graph() -> bool:
    """Whether a transform of ``torch.func`` is at work where Dynamo traces: it enters the transforms that it meets."""
    return innermost_transform() is not None


is_jit_tracing: Callable[[], bool] = torch._C._is_tracing
"""Whether ``torch.jit.trace`` records operations."""


@constant_in_graphs
def _is_exporting_before_2_7() -> bool:
    # With strict=True Dynamo makes the graph, and knows what for; without it, Dynamo is not there.
    traced = sys.modules.get("torch._dynamo.symbolic_convert")
    tracer = None if traced is None else getattr(traced.tls, "current_tx", None)
    return bool(tracer.export) if tracer is not None else torch.compiler.is_compiling()


# Public from PyTorch 2.7 on.
is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", _is_exporting_before_2_7)
"""Whether ``torch.export`` makes the graph."""


def unwrapped(t: Tensor) -> Tensor:
    """The tensor that transforms work on in the place of ``t``: under ``vmap`` that of all members."""
    while torch._C._functorch.is_functorch_wrapped_tensor(t):
        t = torch._C._functorch.get_unwrapped(t)
    return t


is_in_batch: Callable[[Any], bool] = torch._C._functorch.is_legacy_batchedtensor
"""Whether a tensor is one of a batch to ``torch.autograd.grad(is_grads_batched=True)`` and ``vectorize=True``, which
have a vmap of their own."""


def batch_level() -> int:
    """How many of those are at work, one in another."""
    torch._C._vmapmode_increment_nesting()
    return torch._C._vmapmode_decrement_nesting()


def whole_batch(t: Tensor, level: int) -> Tensor:
    """The batch, in dimension 0, of which ``t`` is one."""
    return torch._remove_batch_dim(t, level, 1, 0)


def in_batch(t: Tensor, level: int) -> Tensor:
    """One of the batch ``t``, whichever."""
    return torch._add_batch_dim(t, 0, level)


def has_dual_level() -> bool:
    """Whether tensors may carry tangents: ``with forward_ad.dual_level()``."""
    return forward_ad._current_level >= 0


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP manages the module, by ``fully_shard`` or ``FullyShardedDataParallel``: it swaps the parameters."""
    return "_is_fsdp_managed_module" in module.__dict__


def is_compiled(module: nn.Module) -> bool:
    """Whether ``torch.compile`` wraps the module, or ``module.compile()`` has been called."""
    return "_orig_mod" in module._modules or module.__dict__.get("_compiled_call_impl") is not None


def written_class(module: nn.Module) -> type[nn.Module]:
    """The module's class as its author wrote it: ``fully_shard`` and parametrizations make classes of their own."""
    found = type(module)
    while found.__name__ in [f"{prefix}{found.__bases__[-1].__name__}" for prefix in ("FSDP", "Parametrized")]:
        found = found.__bases__[-1]
    return found


def has_hooks(module: nn.Module) -> bool:
    """Whether calling ``module`` runs anything besides its ``forward``: hooks of its own, or of all modules.

    Forward and backward hooks count, and those that run before them. Compiled code keeps the answer of when it was
    compiled, as it keeps the hooks of then where it calls a module.
    """
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or nn_module._global_forward_hooks
        or nn_module._global_forward_pre_hooks
        or nn_module._global_backward_hooks
        or nn_module._global_backward_pre_hooks
    )


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """The parameters that ``module`` keeps itself, not its submodules. A parametrized one is not among them."""
    return module._parameters


def own_modules(module: nn.Module) -> dict[str, nn.Module | None]:
    """The modules directly inside ``module``; parametrizations are such modules."""
    return module._modules


def own_tensors(module: nn.Module) -> tuple[Any, ...]:
    """The parameters and buffers that ``module`` keeps itself, not its submodules, and None where one is None."""
    return (*module._parameters.values(), *module._buffers.values())


def register_namedtuple(cls: type, name: str) -> None:
    """Let ``torch.export.save`` write programs that take or return a ``cls``, a NamedTuple; once per process."""
    pytree._register_namedtuple(cls, serialized_type_name=name)


def has_numbers(t: Tensor) -> bool:
    """Whether ``t`` has entries to look at, which meta tensors and those of a ``FakeTensorMode`` have not."""
    return not t.is_meta and not isinstance(t, FakeTensor)


def is_number(size: int) -> bool:
    """Whether a size is a number and not a symbol, as sizes are in graphs that are for any of them.

    In compiled graphs False before PyTorch 2.8, which has no way to ask.
    """
    if not torch.compiler.is_compiling():
        return type(size) is int
    from torch.fx.experimental import symbolic_shapes  # imported by whoever makes graphs; it takes a second

    return hasattr(symbolic_shapes, "has_static_value") and symbolic_shapes.has_static_value(size)


def assert_when_computed(condition: Tensor, message: str) -> None:
    """Fail once ``condition`` is known to be False; compiled graphs and GPUs do not wait for it.

    Raises:
        RuntimeError: at once on a CPU; on a GPU the device fails later.
    """
    torch._assert_async(condition, message)
