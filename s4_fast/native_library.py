"""Loads the native library (``csrc/``) at its first use, and calls it. What cannot be loaded is refused with the cause.

The library and build.json, its description, lie in ``_native``, where ``csrc/build_native.py`` puts them.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import platform
import re
import shlex
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s4_fast import torch_private
from s4_fast._version import __version__

# Through the links of a strict editable install.
_FOLDER = Path(__file__).resolve().parent / "_native"
DTYPES = {  # their numbers in the header
    torch.float32: 0,
    torch.complex64: 0,
    torch.float64: 1,
    torch.complex128: 1,
    torch.bfloat16: 2,
    torch.float16: 3,
}
_KINDS: dict[str, Any] = {"i": ctypes.c_int64, "d": ctypes.c_double, "p": ctypes.c_void_p}


@dataclass(frozen=True)
class _Description:
    """What build.json says. ``missing`` has the cause of each part, cpu and cuda, that was not built."""

    version: str
    machine: str
    sources: str
    library: str | None
    size: int
    sha256: str
    compiler: str
    isas: list[str]
    nvcc: str
    architectures: list[str]
    ptx: str
    missing: dict[str, str]


class _UnusableError(Exception):
    """The message is the cause."""


@functools.cache
def _loaded() -> tuple[ctypes.CDLL, _Description] | str:
    """The library of this installation, opened once, or the cause why it cannot be used."""
    try:
        description = _read(_FOLDER)
        return _open(_FOLDER, description), description
    except _UnusableError as error:
        return str(error)


@torch_private.constant_in_graphs
def cause(cuda: bool = False) -> str:
    """Why the library, or its part for the current CUDA device, cannot be used here; or the empty string."""
    loaded = _loaded()
    if isinstance(loaded, str):
        return loaded
    return _cuda_cause(loaded[1]) if cuda else ""


@torch_private.constant_in_graphs
def fix(cuda: bool = False) -> str:
    """The command that builds the library (with its CUDA part), or the empty string where building does not help."""
    loaded = _loaded()
    if sys.platform == "win32" or (cuda and not isinstance(loaded, str) and loaded[1].architectures):
        return ""
    if isinstance(loaded, str) and (
        unreadable := re.fullmatch(r"(.+) cannot be (?:read|loaded): .*Permission denied.*", loaded)
    ):
        return f"chmod -R a+rX {shlex.quote(unreadable[1])}"
    sources = _sources(_FOLDER)
    if sources is None:
        return "pip install --force-reinstall --no-deps --no-cache-dir s4_fast"
    # The variable is named because the environment may have it as none.
    mode = f"S4_FAST_BUILD={'cuda' if cuda else 'auto'}"
    command = f"{mode} {shlex.join([sys.executable, str(sources / 'build_native.py')])}"
    causes = [loaded] if isinstance(loaded, str) else loaded[1].missing.values()
    settings = {name for cause in causes for name in re.findall(r"(?:environment has|,) ([A-Z_]+)=[\"']", cause)}
    if settings:
        return " ".join(["env", *(f"-u {name}" for name in sorted(settings)), command])
    no_compiler = isinstance(loaded, str) and "there is no C++ compiler" in loaded
    return f"apt-get install g++ && {command}" if no_compiler and sys.platform == "linux" else command


def refusal(device: str) -> str | None:
    """Why the library cannot serve tensors on cpu or cuda, with the fixing command; or None."""
    missing = cause(cuda=device == "cuda")
    if not missing:
        return None
    command = fix(cuda=device == "cuda")
    return f"{missing}; run: {command}" if command else missing


def describe() -> dict[str, str]:
    """The loaded library by heading, for people; empty where none is."""
    loaded = _loaded()
    if isinstance(loaded, str):
        return {}
    description = loaded[1]
    ptx = f", and later ones from the code for sm_{description.ptx}" if description.ptx else ""
    return {
        "native library": str(_FOLDER / str(description.library)),
        "built": f"version {description.version}, for {', '.join(description.isas)}, with {description.compiler}",
        "instruction set": isa(),
        "CUDA": cause(cuda=True) or f"for sm_{', sm_'.join(description.architectures)}{ptx}; {description.nvcc}",
    }


def isa() -> str:
    """The instruction set that the CPU kernels use: avx512, avx2 or portable."""
    function = _handle().s4_fast_cpu_isa
    function.restype = ctypes.c_char_p
    return function().decode()


def use_isa(name: str | None) -> None:
    """Use another instruction set in this process, for tests; None restores the best.

    Raises:
        RuntimeError: the processor or the library does not have it.
    """
    _check(_handle().s4_fast_cpu_use(name and name.encode()))


@torch_private.constant_in_graphs
def limit(name: str) -> int:
    """A limit of the header, by its name without ``S4_FAST_``. The library must be usable."""
    return _limit(name)


@functools.cache
def _limit(name: str) -> int:
    function = _handle().s4_fast_limit
    function.restype = ctypes.c_int64
    value: int = function(name.upper().encode())
    assert value > 0, name
    return value


def call(name: str, like: Tensor, *args: Tensor | torch.dtype | float | None) -> None:
    """Run ``s4_fast_cpu_<name>`` or ``s4_fast_cuda_<name>``, by the device of ``like``.

    Arguments become C by their type: tensors a pointer, None NULL, int and bool int64_t, float double, and a dtype its
    number in the header. What ends every call of the family (threads; workspace, device and stream) is added. Tensors
    must be contiguous, not lazily conjugated, and on the device of ``like``. Of shapes nothing is checked.

    Raises:
        RuntimeError: the library reports a failure.
    """
    device = like.device
    converted = [_to_c(argument, device) for argument in args]
    if device.type == "cpu":
        function = getattr(_handle(), f"s4_fast_cpu_{name}")
        _check(function(*converted, ctypes.c_int64(torch.get_num_threads())))
        return
    _run_on_cuda(getattr(_handle(), f"s4_fast_cuda_{name}"), converted, device)


def _run_on_cuda(function: Any, converted: list[Any], device: torch.device) -> None:
    """Call it for the size of its workspace, and with one."""
    size = ctypes.c_int64(0)
    stream = ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream)
    where = (ctypes.byref(size), ctypes.c_int64(device.index), stream)
    _check(function(*converted, None, *where))
    # NULL asks for the size: what needs none gets a byte.
    workspace = torch.empty(max(size.value, 1), dtype=torch.uint8, device=device)
    _check(function(*converted, ctypes.c_void_p(workspace.data_ptr()), *where))


class Function:
    """``s4_fast_cpu_<name>`` and ``s4_fast_cuda_<name>``, declared once, at a fraction of what ``call`` costs.

    ``kinds`` has a letter per argument: i for int64_t, d for double, p for a pointer, which a call gives as a tensor or
    None. Tensors must be contiguous, not lazily conjugated, and on the device of ``like``: nothing is checked.

    Raises:
        RuntimeError: from a call: the library cannot be loaded, or reports a failure.
    """

    def __init__(self, name: str, kinds: str) -> None:
        self._name = name
        self._types = [_KINDS[kind] for kind in kinds]
        self._pointers = [i for i, kind in enumerate(kinds) if kind == "p"]
        self._functions: dict[str, Any] = {}

    def __call__(self, like: Tensor, *args: Tensor | float | None) -> None:
        given: list[Any] = list(args)
        for i in self._pointers:
            if given[i] is not None:
                given[i] = given[i].data_ptr()
        if like.is_cpu:
            _check(self._function("cpu", [ctypes.c_int64])(*given, torch.get_num_threads()))
        else:
            tail = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
            _run_on_cuda(self._function("cuda", tail), given, like.device)

    def _function(self, family: str, tail: list[Any]) -> Any:
        function = self._functions.get(family)
        if function is None:
            function = _handle()[f"s4_fast_{family}_{self._name}"]  # an object of its own: argtypes belong to it
            function.argtypes = [*self._types, *tail]
            self._functions[family] = function
        return function


class Prepared:
    """``s4_fast_cpu_<name>`` with its arguments converted once, but for those that each call gives.

    ``args`` are as in ``call``, or left open: ``int`` stands for an integer, ``Tensor`` for a tensor's
    ``data_ptr()`` or None. A call takes these in order. It costs 10 us less than ``call``, and checks nothing.

    Raises:
        RuntimeError: the library cannot be loaded, or, from a call, reports a failure.
    """

    def __init__(self, name: str, *args: Tensor | torch.dtype | float | type | None) -> None:
        kinds: dict[Any, Any] = {int: ctypes.c_int64, Tensor: ctypes.c_void_p, type(None): ctypes.c_void_p}
        cpu = torch.device("cpu")
        self._arguments = [None if isinstance(argument, type) else _to_c(argument, cpu) for argument in args]
        self._open = [i for i, argument in enumerate(args) if isinstance(argument, type)]
        self._memory = args  # what the pointers point to must live on
        self._function = _handle()[f"s4_fast_cpu_{name}"]  # an object of its own: argtypes belong to it
        pairs = zip(args, self._arguments, strict=True)
        types = [kinds[a] if isinstance(a, type) else kinds.get(type(c), type(c)) for a, c in pairs]
        self._function.argtypes = [*types, ctypes.c_int64]

    def __call__(self, *given: int | None) -> None:
        arguments = self._arguments.copy()
        for i, value in zip(self._open, given, strict=True):
            arguments[i] = value
        _check(self._function(*arguments, torch.get_num_threads()))


class Comparison:
    """Tensors on the CPU, contiguous, that others are compared with bit by bit.

    Raises:
        RuntimeError: the library cannot be loaded.
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        pointers, integers = ctypes.c_void_p * len(tensors), ctypes.c_int64 * len(tensors)
        self._memory = tensors  # what the pointers point to must live on
        self._pointers = pointers
        self._own = pointers(*(t.data_ptr() for t in tensors))
        self._bytes = integers(*(t.nbytes for t in tensors))
        self._count = len(tensors)
        self._function = _handle()["s4_fast_cpu_same"]  # an object of its own: argtypes belong to it
        self._function.argtypes = [ctypes.c_int64, pointers, pointers, integers]

    def same(self, addresses: list[int]) -> bool:
        """Whether the numbers at these addresses, of tensors of the same types and shapes, are the same."""
        return bool(self._function(self._count, self._own, self._pointers(*addresses), self._bytes))


def _to_c(argument: Tensor | torch.dtype | float | None, device: torch.device) -> Any:
    # Tensors last: of what is not a tensor, isinstance(_, Tensor) is slow to tell.
    if argument is None:
        return None
    if isinstance(argument, int):
        return ctypes.c_int64(argument)
    if isinstance(argument, float):
        return ctypes.c_double(argument)
    if isinstance(argument, torch.dtype):
        return ctypes.c_int64(DTYPES[argument])
    assert argument.device == device
    assert argument.is_contiguous() and not argument.is_conj() and not argument.is_neg()
    return ctypes.c_void_p(argument.data_ptr())


def _check(code: int) -> None:
    if code:
        raise RuntimeError(f"native library: {_error(_handle())}")


def _error(handle: ctypes.CDLL) -> str:
    message: bytes = handle.s4_fast_error()
    return message.decode(errors="replace")


def _handle() -> ctypes.CDLL:
    loaded = _loaded()
    if isinstance(loaded, str):
        raise RuntimeError(f"native library: {loaded}")
    return loaded[0]


def _cuda_cause(description: _Description) -> str:
    if not description.architectures:
        return f"its CUDA part was not built: {description.missing.get('cuda')}"
    if not torch.cuda.is_initialized() and not torch.cuda.is_available():  # the first is the quick one
        return "PyTorch sees no CUDA device"
    return _device_cause(torch.cuda.current_device())


@functools.cache
def _device_cause(device: int) -> str:
    """Why the CUDA part cannot run on ``device``: the driver or the device is too old for it."""
    handle = _handle()
    return _error(handle) if handle.s4_fast_cuda_usable(ctypes.c_int64(device)) else ""


# -------------------------------------------------------------------------------------------------------------- loading


def _sources(folder: Path) -> Path | None:
    """``csrc``, which an installed package has in its _native folder, and a project beside the package.

    One that may not be looked into is there: whether the library is older cannot be known then.
    """
    places = (folder / "csrc", folder.parents[1] / "csrc")
    return next((place for place in places if _is_there(place / "build_native.py")), None)


def _is_there(file: Path) -> bool:
    try:
        return stat.S_ISREG(file.stat().st_mode)
    except PermissionError:
        return True
    except OSError:
        return False


def _sources_digest(sources: Path) -> str:
    """As csrc/build_native.py computes it, but for folders that cannot be read, over which glob passes."""
    try:
        folders = [folder for folder in sources.iterdir() if folder.name[0] in "ci" and folder.is_dir()]
        files = sorted(file for folder in folders for file in _files(folder))
        digest = hashlib.sha256()
        for file in files:
            if file.suffix in (".h", ".cpp", ".cuh", ".cu"):
                digest.update(file.read_bytes())
    except OSError as error:
        raise _UnusableError(f"{error.filename} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _files(entry)
        else:
            yield entry


def _read(folder: Path) -> _Description:
    file = folder / "build.json"
    try:
        found = _Description(**json.loads(file.read_text("utf-8")))
    except FileNotFoundError:
        raise _UnusableError(f"it was not built: there is no {file}") from None
    except OSError as error:
        raise _UnusableError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise _UnusableError(f"{file} is damaged, or of another version of s4_fast") from error
    if not _is_valid(found):
        raise _UnusableError(f"{file} is damaged, or of another version of s4_fast")
    return found


def _is_valid(found: _Description) -> bool:
    """Whether every entry has its type; the library's name is one in the same folder."""
    missing = found.missing
    texts = [found.version, found.machine, found.sources, found.sha256, found.compiler, found.nvcc, found.ptx]
    return (
        isinstance(found.isas, list)
        and isinstance(found.architectures, list)
        and isinstance(missing, dict)
        and all(isinstance(text, str) for text in (*texts, *found.isas, *found.architectures, *missing.values()))
        and found.library in (None, "libs4_fast.so", "libs4_fast.dylib")
        and isinstance(found.size, int)
    )


def _open(folder: Path, description: _Description) -> ctypes.CDLL:
    """Open the library if it is the one described, and for this machine and version.

    A file cut short is refused unopened: mapping it would end the process.
    """
    if description.version != __version__:
        raise _UnusableError(f"it was built for s4_fast {description.version}, and this is {__version__}")
    if description.library is None:
        raise _UnusableError(f"it was not built: {description.missing.get('cpu')}")
    path = folder / description.library
    if description.machine != platform.machine():
        raise _UnusableError(f"{path} was built for {description.machine}, and this is {platform.machine()}")
    sources = _sources(folder)
    if sources and _sources_digest(sources) != description.sources:
        raise _UnusableError(f"{path} is older than its sources: what is in {sources} has changed since")
    try:
        content = path.read_bytes()
        if len(content) != description.size:
            raise _UnusableError(f"{path} is damaged: it has {len(content)} bytes of {description.size}")
        if hashlib.sha256(content).hexdigest() != description.sha256:
            raise _UnusableError(f"{path} is damaged: its checksum is not that of the library that was built")
        handle = ctypes.CDLL(str(path))
        handle.s4_fast_version.restype = handle.s4_fast_error.restype = ctypes.c_char_p
    except FileNotFoundError:
        raise _UnusableError(f"{path} is missing") from None
    except OSError as error:
        raise _UnusableError(f"{path} cannot be loaded: {error}") from error
    except AttributeError as error:
        raise _UnusableError(f"{path} is not the native library of s4_fast: {error}") from error
    version = handle.s4_fast_version().decode(errors="replace")
    if version != __version__:
        raise _UnusableError(f"{path} is of s4_fast {version}, and this is {__version__}")
    return handle
