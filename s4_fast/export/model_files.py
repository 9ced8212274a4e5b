"""Models from files of weights: sizes by the shapes, and what no shape shows from metadata or the caller."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from s4_fast import memory
from s4_fast import weights as weights_file
from s4_fast.export.refusals import ExportError, refuse_changed
from s4_fast.layers import S4DLayer, S4Layer, S4SequenceModel, SSMBlock
from s4_fast.layers.model import TASKS
from s4_fast.state_spaces import convert

_DISCRETIZATIONS = ("zoh", "bilinear")
_METADATA = "model"


def save_model(model: nn.Module, path: str | Path, *, force: bool = False) -> None:
    """Write the weights of ``model`` as safetensors, and in the metadata the arguments that build it.

    Args:
        model: an S4SequenceModel, SSMBlock, S4DLayer or S4Layer.
        path: the file to write.
        force: whether it may exist.

    Raises:
        ExportError: the model is of another type, or has hooks, parametrizations or anything else that no file of
            weights holds.
        OSError: the file exists and not ``force``, or cannot be written.

    Examples:
        >>> model = s4_fast.S4SequenceModel(1, 8, 10, n_layers=2, d_state=4)
        >>> save_model(model, "model.safetensors")
        >>> type(load_model("model.safetensors")).__name__
        'S4SequenceModel'
    """
    if type(model) not in (S4SequenceModel, SSMBlock, S4DLayer, S4Layer):
        raise ExportError(f"a {type(model).__name__} is no model whose arguments are known")
    refuse_changed(model, whole_sequences=True)
    weights = dict(model.state_dict())
    _, arguments = _arguments(weights)
    arguments.pop("dtype")  # the tensors say it
    if isinstance(model, S4SequenceModel):
        arguments["task"] = model.task
    if discretizations := {own.discretization for own in model.modules() if hasattr(own, "discretization")}:
        arguments["discretization"] = discretizations.pop()
    weights_file.write(Path(path), weights, {"format": "pt", _METADATA: json.dumps(arguments)}, force)


def load_model(path: str | Path, *, task: str | None = None, discretization: str | None = None) -> nn.Module:
    """The model in a file of weights, in evaluation mode.

    The file is one of safetensors or ``torch.save`` with the ``state_dict`` of an S4SequenceModel, SSMBlock, S4DLayer
    or S4Layer. Sizes are those of its tensors. Nothing in the file is executed.

    Args:
        path: the file.
        task: ``"classification"`` or ``"regression"``; None for what the metadata says (``save_model``).
        discretization: ``"zoh"`` or ``"bilinear"``; None for what the metadata says, or ``"zoh"``.

    Raises:
        ExportError: the file holds no such weights, or neither it nor the caller says what the task is.
        OSError: it cannot be read.

    Examples:
        >>> save_model(s4_fast.S4DLayer(8, d_state=16), "layer.safetensors")
        >>> load_model("layer.safetensors").d_state
        16
    """
    path = Path(path)
    content, _ = convert.unwrapped(convert.read(path))
    weights = {name: t for name, t in content.items() if isinstance(t, Tensor)}
    kind, arguments = _arguments(weights, f"{path} ")
    said = _metadata(path)
    if kind is S4SequenceModel:
        arguments["task"] = task or said.get("task")
        if arguments["task"] not in TASKS:
            raise ExportError(
                f"{path} does not say what the model is for; expected task (--task) to be one of {', '.join(TASKS)}, "
                f"got {arguments['task']!r}"
            )
    if "rank" not in arguments:
        arguments["discretization"] = discretization or said.get("discretization", "zoh")
        if arguments["discretization"] not in _DISCRETIZATIONS:
            known = ", ".join(_DISCRETIZATIONS)
            raise ExportError(f"expected discretization to be one of {known}, got {arguments['discretization']!r}")
    try:
        model = kind(**arguments)
        model.load_state_dict(content)
    except (RuntimeError, TypeError, ValueError) as error:
        if memory.ran_out(error):
            raise
        problems = [line.strip() for line in str(error).splitlines()]
        raise ExportError(f"{path}: {' '.join(problems[:2])}") from error
    return model.eval()


def _arguments(weights: Mapping[str, Tensor], where: str = "") -> tuple[type[Any], dict[str, Any]]:
    """The class of which these are the weights, and the arguments that their shapes show."""
    try:
        if "encoder.weight" in weights and "head.weight" in weights:
            d_model, d_input = weights["encoder.weight"].shape
            blocks = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
            return S4SequenceModel, {
                "d_input": d_input,
                "d_output": len(weights["head.weight"]),
                "n_layers": len(blocks),
                **_kernel(weights, "blocks.0.layer.kernel."),
                "d_model": d_model,
            }
        if "mix.weight" in weights:
            return SSMBlock, _kernel(weights, "layer.kernel.")
        if "kernel.inv_dt" in weights:
            arguments = _kernel(weights, "kernel.")
            return S4Layer if arguments.pop("layer") == "s4" else S4DLayer, arguments
    except (KeyError, ValueError) as error:
        raise ExportError(f"{where}has tensors that are missing or of other shapes: {error}") from error
    known = "S4SequenceModel, SSMBlock, S4DLayer or S4Layer"
    raise ExportError(
        f"{where}holds no {known}; to export another model, build it and call s4_fast.export.to_onnx or to_c"
    )


def _kernel(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    channels, d_model, n, _ = weights[f"{prefix}C"].shape
    n_ssm, _ = weights[f"{prefix}A_real"].shape
    arguments: dict[str, Any] = {
        "d_model": d_model,
        "d_state": 2 * n,
        "n_ssm": n_ssm,
        "bidirectional": channels == 2,
        "dtype": weights[f"{prefix}C"].dtype,
        "layer": "s4d",
    }
    if (P := weights.get(f"{prefix}P")) is not None:
        arguments |= {"layer": "s4", "rank": len(P)}
    return arguments


def _metadata(path: Path) -> dict[str, Any]:
    """The arguments in the metadata of a safetensors file."""
    if path.suffix != ".safetensors":
        return {}
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(_METADATA, "{}")
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ExportError(f"{path}: the metadata {_METADATA!r} is no JSON: {error}") from error
    return found if isinstance(found, dict) else {}
