"""Models of every kind that is exported, what they compute, and what runs their exports."""

from __future__ import annotations

import copy
import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from s4_fast import S4DLayer, S4Layer, S4SequenceModel, SSMBlock
from s4_fast.export import to_c, to_onnx
from s4_fast.state_spaces import S4, S4D, FFTConv, S4Block

STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")


def _block(*args: Any, **options: Any) -> S4Block:
    return S4Block(*args, transposed=False, **options)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "s4d regression": lambda: S4SequenceModel(3, 8, 2, 2, 8, task="regression", dt_min=3e-4, dt_max=0.3),
    "s4 regression": lambda: S4SequenceModel(3, 8, 2, 2, 8, 0.1, task="regression", layer="s4", dt_min=3e-4),
    "s4d classification": lambda: S4SequenceModel(2, 6, 5, 1, 4, n_ssm=2, discretization="bilinear"),
    "s4 classification": lambda: S4SequenceModel(2, 6, 5, 1, 4, layer="s4", rank=2, n_ssm=3),
    "SSMBlock": lambda: SSMBlock(6, 4, 0.2),
    "SSMBlock of s4": lambda: SSMBlock(6, 4, layer="s4"),
    "S4DLayer": lambda: S4DLayer(5, 6),
    "S4Layer": lambda: S4Layer(5, 6, init="fout"),
    "S4Block": lambda: _block(6, d_state=8, dropout=0.1),
    "S4Block with all": lambda: _block(
        8, bottleneck=2, gate=3, gate_act="silu", mult_act="tanh", final_act="glu-softplus",
        weight_norm=True, mode="s4d", d_state=6, channels=2, activation="elu", is_real=True,
    ),
    "S4Block, glu behind the product": lambda: _block(4, gate=2, mult_act="glu", final_act=None, d_state=4, rank=2),
    "FFTConv": lambda: FFTConv(4, channels=2, activation="glu-relu", transposed=False, mode="s4d", d_state=4),
    "FFTConv, bandlimit": lambda: FFTConv(4, activation="laplace", transposed=False, d_state=8, bandlimit=0.1),
    "S4, gate behind": lambda: S4(6, 4, gate=2, bottleneck=2, transposed=False),
    "S4 of release 1": lambda: S4(6, 4, hyper_act="sigmoid", release=1, input_linear=True, transposed=False),
    "S4D": lambda: S4D(5, 6, transposed=False),
}  # fmt: skip


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().eval()


def inputs(model: Any, length: int) -> Tensor:
    """(length, features): noise above a slow wave, which fills states of little damping."""
    features = getattr(model, "d_input", None) or getattr(model, "d_model", None)
    features = features or (model.layer.d_model if isinstance(model, SSMBlock) else model.h)
    t = torch.arange(length)[:, None]
    return torch.randn(length, features) + torch.sin(0.01 * t * torch.arange(1, features + 1))


@torch.no_grad()
def expected(model: nn.Module, u: Tensor) -> Tensor:
    """The outputs of ``model`` at every step of u (length, features), in float64."""
    exact: Any = copy.deepcopy(model).double()
    if isinstance(model, S4SequenceModel) and model.task == "classification":
        return stepped(exact, u.double())
    y = exact(u.double()[None])
    return (y[0] if isinstance(y, tuple) else y)[0]


@torch.no_grad()
def stepped(model: Any, u: Tensor) -> Tensor:
    """The same by ``model.step``."""
    state, outputs = model.init_state(1), []
    for sample in u:
        y, state = model.step(sample[None], state)
        outputs.append(y[0])
    return torch.stack(outputs)


def error(found: Tensor, reference: Tensor) -> float:
    found, reference = found.double(), reference.double()
    return ((found - reference).norm() / reference.norm()).item()


def compiler() -> str:
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if found is None:
        pytest.skip("no C compiler: neither cc, gcc nor clang is in the PATH")
    return found


def cpp() -> str:
    found = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if found is None:
        pytest.skip("no C++ compiler: neither c++, g++ nor clang++ is in the PATH")
    return found


class CStep:
    """The compiled C of a model."""

    def __init__(self, model: nn.Module, folder: Path, *flags: str, **options: Any) -> None:
        source, library = folder / "model.c", folder / f"model{len(list(folder.iterdir()))}.so"
        to_c(model, source, force=True, **options)
        command = [compiler(), *STRICT, "-O1", "-fPIC", "-shared", *flags, str(source), "-o", str(library), "-lm"]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        assert built.returncode == 0, built.stderr
        self.text = source.read_text()
        self._library = ctypes.CDLL(str(library))

    def run(self, u: Tensor) -> Tensor:
        """The outputs at every step of u (length, features), from the first state."""
        outputs = int(self.text.split("#define MODEL_OUTPUTS ")[1].split()[0])
        # What init must not count on.
        self.state = state = ctypes.create_string_buffer(b"\xff" * 200_000)
        self._library.model_init(state)
        source = np.ascontiguousarray(u.numpy())
        found = np.full((len(u), outputs), np.nan, np.float32)
        step = self._library.model_step
        step.argtypes, step.restype = [ctypes.c_void_p] * 3, None
        for sample, y in zip(source, found, strict=True):
            step(ctypes.addressof(state), sample.ctypes.data, y.ctypes.data)
        return torch.from_numpy(found)


def session(model: nn.Module, path: Path, **options: Any) -> Any:
    """An inference session of onnxruntime on one thread."""
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    to_onnx(model, path, force=True, **options)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), settings)


def zero_state(run: Any, batch: int = 1) -> Any:
    return np.zeros((batch, run.get_inputs()[1].shape[1]))
