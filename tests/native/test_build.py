from __future__ import annotations

import base64
import csv
import ctypes
import hashlib
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.native import trees

needs_cxx = pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not installed")
needs_nvcc = pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc is not on the PATH")
X86 = platform.machine() == "x86_64"
ISAS = ["avx512", "avx2", "portable"] if X86 else ["portable"]
FAILS = "echo 'probe: fatal error: the host compiler is not supported' >&2; exit 1"
# Answers when it is asked for its version and architectures, and compiles nothing.
FAILS_LATER = f'case "$*" in --version) echo "probe 1.2.3";; *--list-gpu-arch*) echo compute_80;; *) {FAILS};; esac'


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return trees.make(tmp_path / "tree")


@pytest.fixture
def cxx(tmp_path: Path) -> Path:
    """A PATH with a C++ compiler and no nvcc."""
    return trees.tools(tmp_path / "bin", "g++", "as", "ld", "sh")


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    return trees.tools(tmp_path / "empty")


def lanes(library: Path) -> list[int]:
    out = (ctypes.c_int64 * 3)()
    assert ctypes.CDLL(str(library)).s4_fast_cpu_lanes(out, ctypes.c_int64(1)) == 0
    return list(out)


def native(tree: Path) -> Path:
    return tree / "s4_fast/_native"


# -------------------------------------------------------------------------------------------------- what gets built


@needs_cxx
def test_with_a_compiler_alone(tree: Path, cxx: Path) -> None:
    result = trees.build(tree, cxx)
    assert result.returncode == 0, result.stderr
    assert "warning" not in result.stderr
    assert "C++: built for" in result.stdout
    assert "CUDA: not built: nvcc is not on the PATH, and neither NVCC nor CUDA_HOME names it" in result.stdout
    found = trees.description(tree)
    assert (found["isas"], found["architectures"], found["missing"].keys()) == (ISAS, [], {"cuda"})
    assert "g++" in found["compiler"]
    assert lanes(native(tree) / found["library"]) == ([16, 8, 0] if X86 else [-1, -1, 0])


@needs_cxx
def test_the_library_shows_its_own_functions_alone(tree: Path, cxx: Path) -> None:
    trees.build(tree, cxx)
    handle = ctypes.CDLL(str(native(tree) / trees.description(tree)["library"]))
    assert hasattr(handle, "s4_fast_version")
    assert not hasattr(handle, "_ZN7s4_fast4failEPKcz")
    assert not hasattr(handle, "of_another_library") or sys.platform == "darwin"


@pytest.mark.parametrize("mode", ["auto", "cpu", "cuda"])
def test_without_a_compiler(tree: Path, empty: Path, mode: str) -> None:
    native(tree).mkdir()
    (native(tree) / "libs4_fast.so").write_text("of an earlier build")
    result = trees.build(tree, empty, S4_FAST_BUILD=mode)
    cause = "there is no C++ compiler: neither g++ nor clang++ nor c++ is on the PATH"
    assert (result.returncode == 0) == (mode == "auto")
    assert cause in (result.stdout if mode == "auto" else result.stderr)
    assert [file.name for file in native(tree).iterdir()] == ["build.json"]
    assert trees.description(tree)["missing"]["cpu"] == cause


WRONG_SETTINGS = {
    "no compiler": ({"CXX": "no-such-compiler -O1"}, "cpu", "CXX does not work: there is no 'no-such-compiler'"),
    "an open quote": ({"CXX": "g++ 'a"}, "cpu", "CXX is no list of words: no closing quotation"),
    "no compiler by that name": ({"CXX": "false"}, "cpu", "false failed with exit code 1"),
    "an open quote in flags": ({"CXXFLAGS": '-DA="'}, "cpu", "CXXFLAGS is no list of words: no closing quotation"),
    "unknown flags": ({"CXXFLAGS": "-fno-such-flag"}, "cpu", "no-such-flag"),
    "an open quote for the linker": ({"LDFLAGS": "'"}, "cpu", "LDFLAGS is no list of words: no closing quotation"),
    "no nvcc": ({"NVCC": "/no/nvcc"}, "cuda", "NVCC does not work: there is no '/no/nvcc'"),
    "an open quote for nvcc": ({"NVCC": '"nvcc'}, "cuda", "NVCC is no list of words: no closing quotation"),
    "no home of CUDA": ({"CUDA_HOME": "/no/cuda"}, "cuda", "not in the folder bin of CUDA_HOME or CUDA_PATH"),
}


@needs_cxx
@pytest.mark.parametrize("mode", ["auto", pytest.param("cuda", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", WRONG_SETTINGS)
@pytest.mark.sample(3)
def test_a_setting_that_does_not_work_is_named_and_fails_no_auto(name: str, mode: str, tree: Path, cxx: Path) -> None:
    settings, part, said = WRONG_SETTINGS[name]
    (cxx / "false").symlink_to(shutil.which("false") or "/bin/false")
    result = trees.build(tree, cxx, S4_FAST_BUILD=mode, **settings)
    assert (result.returncode == 0) == (mode == "auto")
    assert "Traceback" not in result.stderr
    ((variable, value),) = settings.items()
    cause = trees.description(tree)["missing"][part]
    assert said in cause
    assert cause.endswith(f"; the environment has {variable}={value!r}")
    assert cause in (result.stdout if mode == "auto" else result.stderr)


@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_setting_is_none(value: str, tree: Path, empty: Path) -> None:
    names = ("CXX", "CXXFLAGS", "LDFLAGS", "NVCC", "NVCC_CCBIN", "CUDA_HOME", "S4_FAST_CUDA_ARCHITECTURES")
    result = trees.build(tree, empty, **dict.fromkeys(names, value), S4_FAST_BUILD="")
    assert result.returncode == 0, result.stderr
    cause = "there is no C++ compiler: neither g++ nor clang++ nor c++ is on the PATH"
    assert trees.description(tree)["missing"]["cpu"] == cause


@pytest.mark.parametrize("body", [FAILS, FAILS_LATER])
@pytest.mark.parametrize("mode", ["auto", "cpu"])
def test_a_broken_compiler(tree: Path, cxx: Path, body: str, mode: str) -> None:
    trees.script(cxx / "g++", body)
    result = trees.build(tree, cxx, S4_FAST_BUILD=mode)
    assert (result.returncode == 0) == (mode == "auto")
    cause = "g++ failed with exit code 1: probe: fatal error: the host compiler is not supported"
    assert cause in result.stdout
    assert cause in result.stderr or mode == "auto"
    assert trees.description(tree)["missing"]["cpu"] == cause
    assert trees.description(tree)["library"] is None


@needs_cxx
def test_a_function_that_no_source_defines(tree: Path, cxx: Path) -> None:
    source = tree / "csrc/cpu/probe/probe.cpp"
    source.write_text(source.read_text() + 'int absent();\nextern "C" int s4_fast_probe() { return absent(); }\n')
    assert trees.build(tree, cxx, S4_FAST_BUILD="cpu").returncode != 0
    assert "absent()" in trees.description(tree)["missing"]["cpu"]


def test_a_compiler_that_cannot_be_started(tree: Path, empty: Path) -> None:
    (empty / "g++").write_bytes(b"\x7fELF")
    (empty / "g++").chmod(0o755)
    assert trees.build(tree, empty).returncode == 0
    assert "Exec format error" in trees.description(tree)["missing"]["cpu"]


@needs_cxx
@pytest.mark.parametrize("body", [FAILS, FAILS_LATER])
@pytest.mark.parametrize("mode", ["auto", "cuda", "cpu"])
@pytest.mark.sample(2)
def test_a_broken_nvcc(tree: Path, cxx: Path, body: str, mode: str) -> None:
    trees.script(cxx / "nvcc", body)
    result = trees.build(tree, cxx, S4_FAST_BUILD=mode)
    assert (result.returncode == 0) == (mode != "cuda")
    found = trees.description(tree)
    assert lanes(native(tree) / found["library"])[2] == 0
    assert found["architectures"] == []
    if mode == "cpu":
        assert found["missing"] == {"cuda": "it was left out by S4_FAST_BUILD=cpu"}
    else:
        cause = "nvcc failed with exit code 1: probe: fatal error: the host compiler is not supported"
        assert found["missing"] == {"cuda": cause}
        assert cause in (result.stderr if mode == "cuda" else result.stdout)


def test_nothing_by_choice(tree: Path, cxx: Path) -> None:
    result = trees.build(tree, cxx, S4_FAST_BUILD="none")
    assert result.returncode == 0
    assert "not built: it was left out by S4_FAST_BUILD=none" in result.stdout
    assert trees.description(tree)["library"] is None


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"S4_FAST_BUILD": "gpu"}, "S4_FAST_BUILD='gpu'; expected one of auto, cpu, cuda, none"),
        ({"S4_FAST_CUDA_ARCHITECTURES": "80;9.0"}, "'9.0' is not like 80, 90 or 90a"),
    ],
)
def test_settings_that_mean_nothing(tree: Path, cxx: Path, setting: dict[str, str], message: str) -> None:
    result = trees.build(tree, cxx, **setting)
    assert result.returncode != 0
    assert message in result.stderr


@needs_cxx
@needs_nvcc
@pytest.mark.slow
def test_with_nvcc(tree: Path) -> None:
    nvcc = Path(shutil.which("nvcc") or "").parent
    result = trees.build(tree, Path(f"{Path(shutil.which('g++') or '').parent}:{nvcc}"), S4_FAST_BUILD="cuda")
    assert result.returncode == 0, result.stderr
    found = trees.description(tree)
    assert found["architectures"]
    assert found["ptx"] == found["architectures"][-1]
    assert found["missing"] == {}
    handle = ctypes.CDLL(str(native(tree) / found["library"]))
    assert lanes(native(tree) / found["library"])[2] == 0
    # The static runtime is inside, and out of the sight of PyTorch's.
    assert hasattr(handle, "s4_fast_cuda_usable")
    assert not hasattr(handle, "cudaGetLastError")


# ------------------------------------------------------------------------------------------------ how it is compiled


def recorded(tree: Path, cxx: Path, name: str, body: str) -> Path:
    """Replace the compiler by one that also writes down how it was called."""
    log = tree.parent / f"{name}.log"
    trees.script(cxx / name, f'echo "$*" >> {log}; {body}')
    return log


@needs_cxx
def test_flags(tree: Path, cxx: Path) -> None:
    log = recorded(tree, cxx, "g++", f'exec {shutil.which("g++")} "$@"')
    trees.build(tree, cxx, CXXFLAGS="-O1 -ffast-math -DPACKAGER=1")
    calls = log.read_text().splitlines()
    compiled = {Path(call.split(" -c ")[1].split()[0]).name: call for call in calls if " -c " in call}
    assert compiled.keys() == {"library.cpp", "probe.cpp", "lanes.isa.cpp"}
    for call in compiled.values():
        assert not {"-march=native", "-Ofast"} & set(call.split())
        # The last one holds.
        assert "-DPACKAGER=1" in call
        assert call.index("-O3") > call.index("-O1")
        assert call.index("-fno-fast-math") > call.index("-ffast-math")
    assert {"-mavx2", "-mavx512f", "-mfma"}.isdisjoint(compiled["library.cpp"].split())
    assert sum("lanes.isa.cpp" in call for call in calls) == len(ISAS)


@needs_cxx
def test_only_what_changed_is_compiled_again(tree: Path, cxx: Path) -> None:
    log = recorded(tree, cxx, "g++", f'exec {shutil.which("g++")} "$@"')

    def compiled(**settings: str) -> int:
        log.unlink(missing_ok=True)
        assert trees.build(tree, cxx, **settings).returncode == 0
        return log.read_text().count(" -c ")

    every = 2 + len(ISAS)
    assert compiled() == every
    assert compiled() == 0
    source = tree / "csrc/cpu/probe/probe.cpp"
    source.write_text(source.read_text() + "\n")
    assert compiled() == 1
    assert compiled(CXXFLAGS="-O1") == every
    header = tree / "csrc/common/error.h"
    header.write_text(header.read_text() + "\n")
    assert compiled(CXXFLAGS="-O1") == every


@needs_cxx
@pytest.mark.parametrize(
    ("setting", "known", "expected", "ptx"),
    [
        ("", "compute_80 compute_90 compute_100 compute_120", ["80", "90", "100"], "100"),
        ("", "compute_75 compute_80 compute_90", ["80", "90"], "90"),
        ("100; sm_75,90a", "compute_75", ["75", "90a", "100"], "100"),
        ("90a", "compute_75", ["90a"], ""),
    ],
)
@pytest.mark.sample(2)
def test_architectures(tree: Path, cxx: Path, setting: str, known: str, expected: list[str], ptx: str) -> None:
    fake = f"""
case "$*" in
    --version) echo "probe 1.2.3" ;;
    *--list-gpu-arch*) for known in {known}; do echo $known; done ;;
    *" -c "*) for last; do :; done; echo 'extern "C" int s4_fast_probe() {{ return 0; }}' | g++ -xc++ -c - -o $last ;;
*)
    for option; do
        case $option in -cudart=static | -ccbin=*) ;; *) set -- "$@" "$option" ;; esac
        shift
    done
    g++ "$@" ;;
esac"""
    log = recorded(tree, cxx, "nvcc", fake)
    result = trees.build(tree, cxx, S4_FAST_BUILD="cuda", S4_FAST_CUDA_ARCHITECTURES=setting, CXX="g++")
    assert result.returncode == 0, result.stderr
    found = trees.description(tree)
    assert (found["architectures"], found["ptx"]) == (expected, ptx)
    call = next(call for call in log.read_text().splitlines() if " -c " in call).split()
    codes = [f"-gencode=arch=compute_{entry},code=sm_{entry}" for entry in expected]
    codes += [f"-gencode=arch=compute_{ptx},code=compute_{ptx}"] if ptx else []
    assert [option for option in call if option.startswith("-gencode")] == codes
    assert "--use_fast_math" not in call
    assert "-ccbin=g++" in call


# ------------------------------------------------------------------------------------------------- wheels and sdists


def ask(tree: Path, path: Path, kind: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """What an installer asks of the build backend, in a process as it makes one."""
    code = f"import setuptools.build_meta as backend; print('built', backend.build_{kind}('dist'))"
    environment = trees.environment(path, **settings)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tree)


def package(tree: Path, path: Path, kind: str, **settings: str) -> Path:
    result = ask(tree, path, kind, **settings)
    assert result.returncode == 0, result.stderr
    return tree / "dist" / result.stdout.split()[-1]


def sources(tree: Path) -> set[str]:
    return {str(file.relative_to(tree)) for file in (tree / "csrc").rglob("*") if file.suffix in (".cpp", ".cu", ".h")}


@needs_cxx
def test_a_wheel_with_the_library_is_for_a_platform_and_every_python(tree: Path, cxx: Path) -> None:
    wheel = package(tree, cxx, "wheel")
    assert wheel.name.split("-")[2:4] == ["py3", "none"]
    assert wheel.name.endswith(f"{platform.machine()}.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"s4_fast/_native/libs4_fast.so", "s4_fast/_native/build.json", "s4_fast/py.typed"} <= names
    assert {f"s4_fast/_native/{name}" for name in sources(tree)} <= names
    assert not any(name.startswith(("tests", "csrc", "build")) for name in names)
    assert not native(tree).exists()


@needs_cxx
@pytest.mark.slow
def test_a_wheel_without_the_library_is_for_every_platform_and_can_build_it_later(
    tree: Path, cxx: Path, empty: Path, tmp_path: Path
) -> None:
    # What lies in the tree is not what this build built.
    native(tree).mkdir()
    (native(tree) / "libs4_fast.so").write_text("stale")
    wheel = package(tree, empty, "wheel")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "s4_fast/_native/libs4_fast.so" not in zipfile.ZipFile(wheel).namelist()

    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = """
import subprocess
from s4_fast import backends, native_library
status = backends()["native"]
print(status.cause, status.fix, sep="\\n")
subprocess.run(["sh", "-c", status.fix.split(" && ")[-1]], check=True, stdout=subprocess.DEVNULL)
native_library._loaded.cache_clear()
print(native_library.cause() or "usable")
"""
    command = [sys.executable, "-c", code]
    env = trees.environment(cxx)
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path / "site", env=env)
    assert result.returncode == 0, result.stderr
    cause, fix, later = result.stdout.splitlines()
    assert cause == "it was not built: there is no C++ compiler: neither g++ nor clang++ nor c++ is on the PATH"
    assert fix.startswith("apt-get install g++ && S4_FAST_BUILD=auto ") or sys.platform != "linux"
    assert later == "usable"
    assert recorded_files(tmp_path / "site") == {
        str(file.relative_to(tmp_path / "site"))
        for file in (tmp_path / "site").rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    }


def recorded_files(site: Path) -> set[str]:
    """What an uninstall finds, with the checksums that it has."""
    (record,) = site.glob("*.dist-info/RECORD")
    names = set()
    with record.open(newline="") as lines:
        for name, digest, size in csv.reader(lines):
            content = (site / name).read_bytes()
            found = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
            assert name not in names and (not digest or (digest, size) == (f"sha256={found}", str(len(content))))
            names.add(name)
    return names


@needs_cxx
@pytest.mark.slow
def test_an_uninstall_takes_what_was_built_later(tree: Path, cxx: Path, empty: Path, tmp_path: Path) -> None:
    wheel = package(tree, empty, "wheel")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", wheel], check=True, stdout=subprocess.DEVNULL)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    build = [python, "-I", "-S", site / "s4_fast/_native/csrc/build_native.py"]
    for mode in ("auto", "none", "cpu"):
        subprocess.run(build, check=True, env=trees.environment(cxx, S4_FAST_BUILD=mode), stdout=subprocess.DEVNULL)
    assert (site / "s4_fast/_native/libs4_fast.so").exists()
    subprocess.run([*pip, "uninstall", "--yes", "s4_fast"], check=True, stdout=subprocess.DEVNULL)
    assert not list(site.glob("s4_fast*"))


def test_leaving_it_out_after_a_build_leaves_it_out(tree: Path, cxx: Path) -> None:
    package(tree, cxx, "wheel")
    wheel = package(tree, cxx, "wheel", S4_FAST_BUILD="none")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "s4_fast/_native/libs4_fast.so" not in zipfile.ZipFile(wheel).namelist()


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_an_install_that_must_build_it_fails_with_what_the_compiler_says(tree: Path, cxx: Path, kind: str) -> None:
    trees.script(cxx / "g++", f"echo 'more of the story' >&2; {FAILS}")
    result = ask(tree, cxx, kind, S4_FAST_BUILD="cpu")
    assert result.returncode != 0
    assert "g++ failed with exit code 1: probe: fatal error: the host compiler is not supported" in result.stderr
    assert "more of the story" in result.stderr


def test_an_editable_install_builds_in_place(tree: Path, cxx: Path) -> None:
    package(tree, cxx, "editable")
    assert trees.description(tree)["version"]
    assert (native(tree) / "libs4_fast.so").exists() == (cxx / "g++").exists()


def test_an_sdist_carries_the_sources_and_nothing_that_was_built(tree: Path, cxx: Path) -> None:
    trees.build(tree, cxx)
    with tarfile.open(package(tree, cxx, "sdist")) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert sources(tree) | {"setup.py", "csrc/build_native.py", "csrc/symbols.map", "s4_fast/py.typed"} <= names
    assert not any(name.startswith("s4_fast/_native") for name in names)
