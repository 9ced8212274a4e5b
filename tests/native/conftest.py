from __future__ import annotations

import os
import shlex

import pytest

from tests.native.emulated import OPTIONS_VARIABLE, Device, Emulated, Library, build, needs_compiler, needs_device


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    options = shlex.split(os.environ.get(OPTIONS_VARIABLE, "-O1"))
    return Emulated(build(tmp_path_factory.mktemp("emulated"), options))


@pytest.fixture(
    params=[pytest.param("emulated", marks=needs_compiler), pytest.param("cuda", marks=[needs_device, pytest.mark.gpu])]
)
def library(request: pytest.FixtureRequest) -> Library:
    """The CUDA kernels: emulated, and on the GPU where there is one."""
    if request.param == "cuda":
        return Device()
    emulated: Emulated = request.getfixturevalue("emulated")
    emulated.order("shuffled")
    return emulated
