"""Compiles this folder into the native library, with nothing but Python's standard library.

``python csrc/build_native.py`` builds into the package beside it, as an install does through setup.py. Environment:

``S4_FAST_BUILD``               auto (default): what can be built; never fails for want of a compiler
                                cpu: the C++ part alone; cuda: both parts; either fails with the compiler's message
                                none: nothing
``S4_FAST_CUDA_ARCHITECTURES``  such as "80;90a"; by default those of 80, 90 and 100 that nvcc knows
``CXX``, ``CXXFLAGS``, ``LDFLAGS``, ``NVCC``, ``CUDA_HOME``, ``NVCC_CCBIN``      as usual

Every ``.cpp`` is compiled once; every ``.isa.cpp`` once per instruction set, ``S4_FAST_ISA`` being its name.
The result is the library and build.json, which says what the library is or why it is not there.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CSRC = Path(__file__).resolve().parent
# An installed package carries this folder inside its _native folder.
INSTALLED = CSRC.parent.name == "_native"
PACKAGE = CSRC.parents[1] if INSTALLED else CSRC.parent / "s4_fast"

MODES = ("auto", "cpu", "cuda", "none")
ARCHITECTURES = ("80", "90", "100")
# Every processor with AVX2 and FMA has F16C.
ISAS = {
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma", "-mavx2", "-mprefer-vector-width=512"],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "portable": [],
}
# The last -f options hold against CXXFLAGS: contraction to FMA keeps the accuracy contract, fast-math does not.
CXX_FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
CXX_FLAGS += ["-fno-fast-math", "-ffp-contract=fast"]
NVCC_FLAGS = ["-O3", "-std=c++17", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall"]

Record = dict[str, Any]


class BuildError(Exception):
    """A part cannot be built. The message is the cause in a line, ``output`` all that the compiler said."""

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output


def build(folder: Path | None = None) -> bool:
    """Build into ``folder`` (the package's ``_native``) and say what was built; whether there is a library now.

    Raises:
        BuildError: a setting is not valid, or what ``S4_FAST_BUILD`` demands cannot be built.
    """
    folder = folder or PACKAGE / "_native"
    mode = os.environ.get("S4_FAST_BUILD") or "auto"
    if mode not in MODES:
        raise BuildError(f"S4_FAST_BUILD={mode!r}; expected one of {', '.join(MODES)}")
    chosen = _chosen_architectures()
    library = folder / ("libs4_fast.dylib" if sys.platform == "darwin" else "libs4_fast.so")
    description = folder / "build.json"
    folder.mkdir(parents=True, exist_ok=True)
    # What an earlier build left must not pass for this one's.
    for old in (library, description):
        old.unlink(missing_ok=True)

    record: Record = {"version": version(), "machine": platform.machine(), "sources": _sources_digest()}
    record |= {"library": None, "size": 0, "sha256": ""}
    record |= {"compiler": "", "isas": [], "nvcc": "", "architectures": [], "ptx": "", "missing": {}}
    try:
        with _objects_folder() as objects:
            _build_parts(mode, chosen, objects, library, record)
    finally:
        if library.exists():
            content = library.read_bytes()
            record |= {"library": library.name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        with _unfinished(description) as file:
            file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if INSTALLED:
            _record(library, description)
        print(_summary(record), flush=True)
    return library.exists()


def _record(*files: Path) -> None:
    """Write what was built into the RECORD of the install: what is not there outlives it, and is a package still."""
    for record in PACKAGE.parent.glob("s4_fast-*.dist-info/RECORD"):
        names = {file.relative_to(PACKAGE.parent).as_posix(): file for file in files}
        with record.open(newline="", encoding="utf-8") as lines:
            rows = [row for row in csv.reader(lines) if row and row[0] not in names]
        for name, file in names.items():
            if file.exists():
                content = file.read_bytes()
                digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
                rows.append([name, f"sha256={digest}", str(len(content))])
        with _unfinished(record) as file:
            with file.open("w", newline="", encoding="utf-8") as lines:
                csv.writer(lines, lineterminator="\n").writerows(rows)
            shutil.copymode(record, file)


@contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    """A file to make that takes the name ``path`` when it is whole. A process that has the old one loaded keeps it."""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        file = Path(scratch, path.name)
        yield file
        file.replace(path)


def version() -> str:
    found = re.search(r'__version__ = "([^"]+)"', (PACKAGE / "_version.py").read_text("utf-8"))
    assert found
    return found[1]


def _sources_digest() -> str:
    """By which s4_fast/native_library.py, which computes the same, sees that the sources have changed since."""
    digest = hashlib.sha256()
    for file in sorted(CSRC.glob("[ci]*/**/*")):
        if file.suffix in (".h", ".cpp", ".cuh", ".cu"):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _build_parts(mode: str, chosen: list[str], objects: Path, library: Path, record: Record) -> None:
    """Link what can be built into ``library``; ``record["missing"]`` gets the cause of what cannot."""
    missing = record["missing"]
    if mode == "none":
        missing["cpu"] = missing["cuda"] = "it was left out by S4_FAST_BUILD=none"
        return
    try:
        compiler = _compiler()
        record["compiler"] = _version_line(compiler)
        isas = list(ISAS) if platform.machine() == "x86_64" else ["portable"]
        cpu = _compile(_cpu_commands(compiler, isas), objects)
        _link(compiler, cpu, library)
        record["isas"] = isas
    except (BuildError, OSError) as cause:
        error = _with_settings(cause, "CXX", "CXXFLAGS", "LDFLAGS")
        missing["cpu"] = str(error)
        missing["cuda"] = "it needs the C++ part, which could not be built"
        if mode != "auto":
            raise error from cause
        show(error)
        return
    if mode == "cpu":
        missing["cuda"] = "it was left out by S4_FAST_BUILD=cpu"
        return
    try:
        nvcc = _nvcc()
        record["nvcc"] = _version_line(nvcc)
        architectures = _known_architectures(nvcc, chosen)
        cuda = _compile(_cuda_commands(nvcc, architectures), objects)
        _link([*nvcc, "-cudart=static"], [*cpu, *cuda], library)
        record |= {"architectures": architectures, "ptx": _ptx(architectures)}
    except (BuildError, OSError) as cause:
        error = _with_settings(cause, "NVCC", "NVCC_CCBIN", "CUDA_HOME", "CUDA_PATH", "CXX", "LDFLAGS")
        missing["cuda"] = str(error)
        if mode != "auto":
            raise error from cause
        show(error)


# ------------------------------------------------------------------------------------------------------------ compilers


def _with_settings(error: BuildError | OSError, *names: str) -> BuildError:
    """The error with the settings of the environment that it may be due to; native_library.py reads their names."""
    settings = ", ".join(f"{name}={os.environ[name]!r}" for name in names if os.environ.get(name, "").strip())
    output = error.output if isinstance(error, BuildError) else ""
    return BuildError(f"{error}; the environment has {settings}" if settings else str(error), output)


def _words(name: str) -> list[str]:
    """The words of a setting, none where it is empty."""
    try:
        return shlex.split(os.environ.get(name, ""))
    except ValueError as error:
        raise BuildError(f"{name} is no list of words: {str(error).lower()}") from error


def _compiler() -> list[str]:
    if sys.platform == "win32":
        raise BuildError("the native library is not built on Windows")
    command = _words("CXX")
    if command:
        if not shutil.which(command[0]):
            raise BuildError(f"CXX does not work: there is no {command[0]!r}")
    else:
        found = next(filter(shutil.which, ("g++", "clang++", "c++")), None)
        if not found:
            raise BuildError("there is no C++ compiler: neither g++ nor clang++ nor c++ is on the PATH")
        command = [found]
    # An interpreter under Rosetta wants a library for the processor that it sees.
    return [*command, "-arch", platform.machine()] if sys.platform == "darwin" else command


def _nvcc() -> list[str]:
    command, home = _words("NVCC"), os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if command:
        if not shutil.which(command[0]):
            raise BuildError(f"NVCC does not work: there is no {command[0]!r}")
    else:
        found = (shutil.which("nvcc", path=str(Path(home, "bin"))) if home else None) or shutil.which("nvcc")
        if not found:
            home_lacks = "nvcc is not on the PATH, and not in the folder bin of CUDA_HOME or CUDA_PATH"
            none_names = "nvcc is not on the PATH, and neither NVCC nor CUDA_HOME names it"
            raise BuildError(home_lacks if home else none_names)
        command = [found]
    # Before it may stand a launcher, after it options.
    host = [word for word in _words("CXX") if not word.startswith("-")]
    if host and not os.environ.get("NVCC_CCBIN"):
        return [*command, f"-ccbin={host[-1]}"]
    return command


def _version_line(command: Sequence[str]) -> str:
    lines = _run([command[0], "--version"]).splitlines()
    return next((line.strip() for line in lines if re.search(r"\d+\.\d+", line)), "of unknown version")


def _chosen_architectures() -> list[str]:
    """What S4_FAST_CUDA_ARCHITECTURES asks for; empty where it leaves the choice."""
    setting = os.environ.get("S4_FAST_CUDA_ARCHITECTURES", "")
    chosen = [entry.strip().removeprefix("sm_") for entry in re.split("[;,]", setting) if entry.strip()]
    for entry in chosen:
        if not re.fullmatch(r"\d{2,3}[af]?", entry):
            raise BuildError(f"S4_FAST_CUDA_ARCHITECTURES={setting!r}: {entry!r} is not like 80, 90 or 90a")
    return sorted(set(chosen), key=lambda entry: (_number(entry), entry))


def _known_architectures(nvcc: Sequence[str], chosen: list[str]) -> list[str]:
    listed = _run([*nvcc, "--list-gpu-arch"])
    known = chosen or [entry for entry in ARCHITECTURES if f"compute_{entry}\n" in listed + "\n"]
    if not known:
        raise BuildError(f"nvcc knows none of the architectures {', '.join(ARCHITECTURES)}")
    return known


def _ptx(architectures: Sequence[str]) -> str:
    """The architecture whose PTX is embedded for later chips: the highest.

    A chip runs machine code of its own major version, so only chips of a later one need PTX. That of the highest has
    the instructions nearest to theirs. Empty for a list of such as 90a, whose PTX runs on no later chip.
    """
    return max((entry for entry in architectures if entry.isdigit()), key=_number, default="")


def _number(architecture: str) -> int:
    return int(architecture.rstrip("af"))


# ------------------------------------------------------------------------------------------------ compiling and linking


def _cpu_commands(compiler: Sequence[str], isas: Sequence[str]) -> Iterator[tuple[str, Path, list[str]]]:
    """An object's name, its source and the command without the files."""
    base = [*compiler, *_words("CXXFLAGS"), *CXX_FLAGS]
    ordinary = [f"-DS4_FAST_HAS_{isa.upper()}" for isa in isas if isa != "portable"]
    ordinary.append(f'-DS4_FAST_VERSION="{version()}"')
    for source in sorted([*CSRC.glob("common/*.cpp"), *CSRC.glob("cpu/**/*.cpp")]):
        if source.name.endswith(".isa.cpp"):
            for isa in isas:
                yield f"cpu-{source.stem}-{isa}", source, [*base, f"-DS4_FAST_ISA={isa}", *ISAS[isa]]
        else:
            yield f"cpu-{source.stem}", source, [*base, *ordinary]


def _cuda_commands(nvcc: Sequence[str], architectures: Sequence[str]) -> Iterator[tuple[str, Path, list[str]]]:
    codes = [f"-gencode=arch=compute_{entry},code=sm_{entry}" for entry in architectures]
    ptx = _ptx(architectures)
    if ptx:
        codes.append(f"-gencode=arch=compute_{ptx},code=compute_{ptx}")
    sources = sorted(CSRC.glob("cuda/**/*.cu"))
    if not sources:
        raise BuildError("csrc/cuda has no kernels")
    for source in sources:
        yield f"cuda-{source.stem}", source, [*nvcc, *NVCC_FLAGS, *codes]


def _compile(commands: Iterator[tuple[str, Path, list[str]]], objects: Path) -> list[Path]:
    """The objects, compiled side by side. One whose source, headers, command and compiler are as before is kept."""
    headers = hashlib.sha256()
    for header in sorted(path for pattern in ("*.h", "*.cuh") for path in CSRC.rglob(pattern)):
        headers.update(header.read_bytes())
    versions: dict[str, str] = {}
    jobs = []
    for name, source, command in commands:
        if command[0] not in versions:
            versions[command[0]] = _run([command[0], "--version"])
        key = headers.copy()
        key.update(source.read_bytes())
        key.update("\0".join([*command, versions[command[0]]]).encode())
        target = objects / f"{name}-{key.hexdigest()[:16]}.o"
        for old in objects.glob(f"{name}-{'?' * 16}.o"):
            if old != target:
                old.unlink(missing_ok=True)
        jobs.append((target, [*command, "-c", str(source)]))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        futures = [pool.submit(_compile_one, target, command) for target, command in jobs if not target.exists()]
        try:
            for future in futures:
                future.result()
        except (BuildError, OSError):
            pool.shutdown(cancel_futures=True)
            raise
    return [target for target, _ in jobs]


def _compile_one(target: Path, command: list[str]) -> None:
    with _unfinished(target) as file:
        said = _run([*command, "-o", str(file)])
        if said.strip():
            print(said, file=sys.stderr, flush=True)


def _link(linker: Sequence[str], objects: Sequence[Path], library: Path) -> None:
    """Link, and show the library's own functions alone: what it links statically must not meet PyTorch's."""
    options = []
    if sys.platform != "darwin":
        for option in (f"--version-script={CSRC / 'symbols.map'}", "-z", "defs"):
            options += ["-Xlinker", option]
        options.append("-lpthread")
    for flag in _words("LDFLAGS"):
        options += ["-Xcompiler", flag.replace(",", r"\,")] if "-cudart=static" in linker else [flag]
    with _unfinished(library) as file:
        _run([*linker, "-shared", *map(str, objects), "-o", str(file), *options])


def _run(command: Sequence[str]) -> str:
    """What ``command`` prints, both streams."""
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, errors="replace"
    )
    if result.returncode:
        lines = result.stdout.strip().splitlines()
        telling = next((line for line in lines if re.search(r"(?i)\b(error|fatal|undefined|cannot)\b", line)), None)
        said = telling or (lines[-1] if lines else "it said nothing")
        name = Path(command[0]).name
        raise BuildError(f"{name} failed with exit code {result.returncode}: {said.strip()}", result.stdout)
    return result.stdout


@contextmanager
def _objects_folder() -> Iterator[Path]:
    """Where objects stay for the next build: beside the sources of a project, nowhere in an installed package."""
    if INSTALLED:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    else:
        folder = CSRC.parent / "build" / "native"
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def show(error: BuildError | OSError) -> None:
    """What the compiler said, of which the message is a line."""
    if isinstance(error, BuildError):
        print(error.output, file=sys.stderr, flush=True)


def _summary(record: Record) -> str:
    missing = record["missing"]
    cpu = f"built for {', '.join(record['isas'])} with {record['compiler']}"
    cuda = f"built for sm_{', sm_'.join(record['architectures'])}, PTX {record['ptx'] or 'none'}, with {record['nvcc']}"
    parts = {"C++": cpu if record["isas"] else "", "CUDA": cuda if record["architectures"] else ""}
    causes = {"C++": missing.get("cpu"), "CUDA": missing.get("cuda")}
    said = (f"\n  {part}: {text or f'not built: {causes[part]}'}" for part, text in parts.items())
    return "s4_fast, native library" + "".join(said)


if __name__ == "__main__":
    try:
        build()
    except (BuildError, OSError) as error:
        show(error)
        sys.exit(f"build_native.py: {error}")
