"""A model as an ONNX file: one step, or a sequence of any length, in real numbers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from torch import nn

from s4_fast import files
from s4_fast.export.program import Program
from s4_fast.export.reading import read
from s4_fast.export.refusals import ExportError

OPSET, IR_VERSION = 17, 8  # LayerNormalization is of opset 17; readers of 2022 know both
GRAPHS = ("step", "prefill")
INSTALL = "pip install onnx onnxruntime"


def to_onnx(
    model: nn.Module, path: str | Path, *, graph: str = "step", rate: float = 1.0, force: bool = False
) -> dict[str, str]:
    """Write ``model`` in evaluation mode as an ONNX graph of opset 17.

    Inputs and outputs, for any ``batch``, in float32 but for the state in float64:

    - ``graph="step"``: ``u`` (batch, d_input), ``state`` (batch, S) -> ``y`` (batch, d_output), ``next_state``
      (batch, S),
    - ``graph="prefill"``: ``u`` (batch, length, d_input), ``state`` -> ``y`` (batch, length, d_output), or (batch,
      d_output) of a classifier, and ``next_state``, for any length.

    The state starts at zero, and both graphs take that of the other. It is in float64 because roundings of a weakly
    damped state add up over the steps.

    Args:
        model: an S4SequenceModel, SSMBlock, S4DLayer or S4Layer, or an S4Block, S4, FFTConv or S4D of
            ``s4_fast.state_spaces``, whose ``l_max`` and ``transposed`` do not matter; parameters in any precision
            count as float32.
        path: the file to write.
        graph: ``"step"`` or ``"prefill"``.
        rate: how many times as coarse as in training the sampling is: dt is multiplied by it.
        force: whether the file may exist.

    Returns:
        The file's metadata: ``s4_fast`` (the version), ``model``, ``task``, ``graph``, ``rate``, ``inputs``,
        ``outputs``, ``state_size`` (S), and ``state``, its layout.

    Raises:
        ExportError: a ValueError that says what cannot be exported, and why. Nothing is written then.
        ModuleNotFoundError: onnx is not installed.
        OSError: the file exists and not ``force``, or cannot be written.

    Examples:
        >>> model = s4_fast.S4SequenceModel(1, 8, 1, n_layers=2, d_state=4, task="regression")
        >>> facts = to_onnx(model, "effect.onnx", graph="prefill")
        >>> facts["graph"], facts["state_size"]
        ('prefill', '64')
    """
    path = Path(path)
    if graph not in GRAPHS:
        raise ExportError(f"unknown graph {graph!r}; expected one of {', '.join(GRAPHS)}")
    files.refuse_existing(path, force)
    if importlib.util.find_spec("onnx") is None:
        raise ModuleNotFoundError(f"ONNX files need the package onnx; run: {INSTALL}")
    program = read(model, rate)
    metadata = {name: str(value) for name, value in program.facts.items()}
    metadata |= {"graph": graph, "state": json.dumps(_layout(program))}
    files.write(path, _serialized(program, graph, metadata), force)
    return metadata


def _serialized(program: Program, graph: str, metadata: dict[str, str]) -> bytes:
    import onnx

    from s4_fast.export.onnx_graph import build

    made = onnx.helper.make_model(
        build(program, graph),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="s4_fast",
        producer_version=program.facts["s4_fast"],
        doc_string=f"{metadata['model']}, {graph}; the state (batch, {program.state}) starts at zero",
    )
    onnx.helper.set_model_props(made, metadata)
    try:
        onnx.checker.check_model(made)
        content: bytes = made.SerializeToString()
    except ValueError as error:  # protobuf's limit
        raise ExportError(f"the graph is too large for one ONNX file of 2 GiB: {error}") from error
    return content


def _layout(program: Program) -> list[dict[str, Any]]:
    """The parts of the state in their order."""
    parts: list[dict[str, Any]] = [
        {"what": "states of a recurrence", "shape": [features, 2, n], "order": "feature, (real, imaginary), state"}
        for _, features, n, _ in (own.sizes for own in program.recurrences)
    ]
    if (rest := program.state - sum(own.state for own in program.recurrences)) > 0:
        parts += [
            {"what": "sums of the features before the head", "shape": [rest - 1]},
            {"what": "number of steps", "shape": [1]},
        ]
    return parts
