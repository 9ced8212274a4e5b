from __future__ import annotations

import functools
import hashlib
import io
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import s4_fast
from s4_fast import doctor, doctor_report, native_library
from tests.native import trees

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not installed")


def _build(folder: Path, version: str = s4_fast.__version__) -> Path:
    tree = trees.make(folder / "tree")
    (tree / "s4_fast/_version.py").write_text(f'__version__ = "{version}"\n')
    result = trees.build(tree, trees.tools(folder / "bin", "g++", "as", "ld"))
    assert result.returncode == 0, result.stderr
    return tree / "s4_fast/_native"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A _native folder with a library of probes."""
    return _build(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def other_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build(tmp_path_factory.mktemp("other"), "9.8.7")


@pytest.fixture
def loaded(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library of probes in place of this installation's."""
    monkeypatch.setattr(native_library, "_FOLDER", built)
    monkeypatch.setattr(native_library, "_loaded", functools.cache(native_library._loaded.__wrapped__))


def _described(folder: Path, **changes: Any) -> None:
    """Change what build.json says, and let it fit the library again."""
    file = folder / "build.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _cut(name: str, share: float) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return cut


def _content(change: Callable[[bytes], bytes], *, described: bool) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = change((folder / "libs4_fast.so").read_bytes())
        (folder / "libs4_fast.so").write_bytes(content)
        if described:
            _described(folder, size=len(content), sha256=hashlib.sha256(content).hexdigest())

    return damage


def _elf_machine(content: bytes) -> bytes:
    """The same ELF file, of a processor that no one has: EM_SPARC."""
    return content[:18] + b"\x02\x00" + content[20:]


def _later_sources(folder: Path) -> None:
    (folder / "csrc/cpu/scan").mkdir(parents=True)
    (folder / "csrc/build_native.py").touch()
    (folder / "csrc/cpu/scan/scan.cpp").write_text("int scan(long);")


def _replaced(name: str, by: Callable[[Path], object]) -> Callable[[Path], None]:
    def replace(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        by(path)

    return replace


def _unreadable(name: str) -> Callable[[Path], None]:
    def lock(folder: Path) -> None:
        if name.startswith("csrc"):
            _later_sources(folder)
        (folder / name).chmod(0)

    return lock


def _into_itself(path: Path) -> None:
    path.symlink_to(path)


def _to_nothing(path: Path) -> None:
    path.symlink_to(path.parent / "nothing")


# What is done to the folder, and what is said about it.
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "none": (lambda folder: None, ""),
    "no folder": (shutil.rmtree, "it was not built: there is no "),
    "no library": (lambda folder: (folder / "libs4_fast.so").unlink(), "libs4_fast.so is missing"),
    "empty library": (_cut("libs4_fast.so", 0), "libs4_fast.so is damaged: it has 0 bytes of "),
    "a header alone": (_cut("libs4_fast.so", 0.01), "libs4_fast.so is damaged: it has "),
    "half a library": (_cut("libs4_fast.so", 0.5), "libs4_fast.so is damaged: it has "),
    "most of a library": (_cut("libs4_fast.so", 0.95), "libs4_fast.so is damaged: it has "),
    "one byte": (
        _content(lambda content: content[:-1] + bytes([content[-1] ^ 1]), described=False),
        "libs4_fast.so is damaged: its checksum is not that of the library that was built",
    ),
    "garbage": (_content(lambda content: b"garbage" * 999, described=True), "cannot be loaded: "),
    "another processor's file": (_content(_elf_machine, described=True), "cannot be loaded: "),
    "a folder for a library": (
        lambda folder: [(folder / "libs4_fast.so").unlink(), (folder / "libs4_fast.so").mkdir()],
        "libs4_fast.so cannot be loaded: ",
    ),
    "no description": (lambda folder: (folder / "build.json").unlink(), "it was not built: there is no "),
    "empty description": (_cut("build.json", 0), "build.json is damaged"),
    "half a description": (_cut("build.json", 0.5), "build.json is damaged"),
    "binary description": (lambda folder: (folder / "build.json").write_bytes(b"\xff\xfe"), "build.json is damaged"),
    "another description": (lambda folder: (folder / "build.json").write_text("[1]"), "build.json is damaged"),
    "version described": (
        lambda folder: _described(folder, version="9.8.7"),
        f"it was built for s4_fast 9.8.7, and this is {s4_fast.__version__}",
    ),
    "machine described": (
        lambda folder: _described(folder, machine="sparc64"),
        f"was built for sparc64, and this is {platform.machine()}",
    ),
    "sources": (_later_sources, "libs4_fast.so is older than its sources: what is in "),
    "no folder may be read": (_unreadable("."), "build.json cannot be read: Permission denied"),
    "no description may be read": (_unreadable("build.json"), "build.json cannot be read: Permission denied"),
    "no library may be read": (_unreadable("libs4_fast.so"), "Permission denied"),
    "no sources may be read": (_unreadable("csrc"), "csrc cannot be read: Permission denied"),
    "no folder of sources may be read": (_unreadable("csrc/cpu"), "csrc/cpu cannot be read: Permission denied"),
    "no inner folder may be read": (_unreadable("csrc/cpu/scan"), "csrc/cpu/scan cannot be read: Permission denied"),
    "no source may be read": (_unreadable("csrc/cpu/scan/scan.cpp"), "scan.cpp cannot be read: Permission denied"),
    "a file for the folder": (_replaced(".", Path.touch), "build.json cannot be read: Not a directory"),
    "a file for the sources": (_replaced("csrc", Path.touch), ""),
    "sources that are a broken link": (_replaced("csrc", _to_nothing), ""),
    "sources that are a circle": (_replaced("csrc", _into_itself), ""),
    "a library that is a broken link": (_replaced("libs4_fast.so", _to_nothing), "libs4_fast.so is missing"),
    "a library that is a circle": (_replaced("libs4_fast.so", _into_itself), "libs4_fast.so cannot be loaded: "),
    "a description that is a circle": (_replaced("build.json", _into_itself), "build.json cannot be read: "),
    "a description that is a folder": (_replaced("build.json", Path.mkdir), "build.json cannot be read: "),
    "a deep description": (lambda folder: (folder / "build.json").write_text("[" * 99999), "build.json is damaged"),
    "no number": (lambda folder: _described(folder, size="many"), "build.json is damaged"),
    "no name": (lambda folder: _described(folder, library=5), "build.json is damaged"),
    "a name elsewhere": (lambda folder: _described(folder, library="../libs4_fast.so"), "build.json is damaged"),
    "no list": (lambda folder: _described(folder, isas=None), "build.json is damaged"),
    "no causes": (lambda folder: _described(folder, missing=None), "build.json is damaged"),
    "an unknown entry": (lambda folder: _described(folder, later=1), "build.json is damaged"),
    "left out": (
        lambda folder: _described(folder, library=None, missing={"cpu": "it was left out"}),
        "it was not built: it was left out",
    ),
}


def _damaged(built: Path, folder: Path, name: str) -> str:
    shutil.copytree(built, folder)
    DAMAGE[name][0](folder)
    return str(folder)


def test_what_cannot_be_loaded_is_refused_with_the_cause(built: Path) -> None:
    """In a process of its own, in whose death a crash would show, and that may not read all: root would."""
    code = """
import os, pathlib, sys
from s4_fast import dispatch, native_library
if os.geteuid() == 0:
    os.setuid(65534)
for folder in sys.argv[1:]:
    native_library._FOLDER = pathlib.Path(folder)
    native_library._loaded.cache_clear()
    native_library.fix(), native_library.describe(), native_library.refusal("cpu")
    print(native_library.cause())
"""
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch).chmod(0o755)
        folders = [_damaged(built, Path(scratch, str(index), "_native"), name) for index, name in enumerate(DAMAGE)]
        causes = _run(code, *folders).splitlines()
    wrong = {name: cause for (name, (_, said)), cause in zip(DAMAGE.items(), causes, strict=True) if said not in cause}
    assert not wrong
    fine = [name for (name, (_, said)), cause in zip(DAMAGE.items(), causes, strict=True) if not said and cause]
    assert not fine


@pytest.mark.parametrize("name", ["csrc", "csrc/cpu", "csrc/cpu/scan", "build.json"])
def test_what_may_not_be_read_has_a_fix(
    name: str, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "_native"
    shutil.copytree(built, folder)
    _later_sources(folder)

    def deny(function: Callable[..., Any]) -> Callable[..., Any]:
        def denied(path: Path, *args: Any, **options: Any) -> Any:
            if folder / name in (path, *path.parents) and path != folder / "csrc" / "build_native.py":
                raise PermissionError(13, "Permission denied", str(path))
            return function(path, *args, **options)

        return denied

    monkeypatch.setattr(native_library, "_FOLDER", folder)
    monkeypatch.setattr(native_library, "_loaded", functools.cache(native_library._loaded.__wrapped__))
    for method in ("iterdir", "read_text"):
        monkeypatch.setattr(Path, method, deny(getattr(Path, method)))
    assert native_library.refusal("cpu") == (
        f"{folder / name} cannot be read: Permission denied; run: chmod -R a+rX {folder / name}"
    )


@pytest.mark.parametrize(
    ("cause", "fix"),
    [
        ("there is no C++ compiler: none is on the PATH", "apt-get install g++ && "),
        ("CXX does not work: there is no 'g+'; the environment has CXX='g+', LDFLAGS='-s'", "env -u CXX -u LDFLAGS "),
        ("NVCC is no list of words; the environment has NVCC=\"'\", CUDA_HOME='/no'", "env -u CUDA_HOME -u NVCC "),
        ("g++ failed with exit code 1: error", ""),
    ],
)
def test_the_fix_leaves_out_settings_that_do_not_work(
    cause: str, fix: str, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "_native"
    shutil.copytree(built, folder)
    _later_sources(folder)
    _described(folder, library=None, missing={"cpu": cause})
    monkeypatch.setattr(native_library, "_FOLDER", folder)
    monkeypatch.setattr(native_library, "_loaded", functools.cache(native_library._loaded.__wrapped__))
    build = f"S4_FAST_BUILD=auto {sys.executable} {folder / 'csrc' / 'build_native.py'}"
    assert native_library.fix() == fix + build


def test_a_library_of_another_version_is_refused(
    other_version: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "_native"
    shutil.copytree(other_version, folder)
    _described(folder, version=s4_fast.__version__)
    with pytest.raises(
        native_library._UnusableError, match=rf"is of s4_fast 9\.8\.7, and this is {s4_fast.__version__}"
    ):
        native_library._open(folder, native_library._read(folder))


def _run(code: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=trees.ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("damage", ["half a library", "version described"])
@pytest.mark.sample(1)
def test_an_explicit_choice_raises_and_the_automatic_one_falls_back(built: Path, tmp_path: Path, damage: str) -> None:
    code = """
import pathlib, sys, torch
import s4_fast
from s4_fast import dispatch, native_library
native_library._FOLDER = pathlib.Path(sys.argv[1])
dispatch.register("fft_conv", "native", "a.module.that.is.not.there")
u, k = torch.randn(2, 3, 8), torch.randn(3, 8)
try:
    s4_fast.fft_conv(u, k, backend="native")
except s4_fast.BackendUnavailableError as error:
    print(error)
s4_fast.fft_conv(u, k)
print(s4_fast.explain("fft_conv", u, k).backend)
print(s4_fast.backends()["native"].cause)
"""
    shutil.copytree(built.parents[1] / "csrc", tmp_path / "tree" / "csrc")
    folder = _damaged(built, tmp_path / "tree" / "s4_fast" / "_native", damage)
    error, chosen, cause = _run(code, folder).splitlines()
    script = tmp_path / "tree" / "csrc" / "build_native.py"
    assert DAMAGE[damage][1] in cause
    assert error == (
        f"backend 'native' (from backend=) cannot run fft_conv: {cause}; "
        f"run: S4_FAST_BUILD=auto {sys.executable} {script}"
    )
    assert chosen != "native"


# ----------------------------------------------------------------------------------------------------------- calling


@pytest.mark.usefixtures("loaded")
def test_a_call_passes_each_type_as_what_it_is() -> None:
    x, out = torch.tensor([3.0], dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    native_library.call("show", x, torch.complex128, 2**40 + 1, True, None, x, 0.5, out)
    assert out.tolist() == [1, 2**40 + 1, 1, 1, 1.5, torch.get_num_threads()]
    native_library.call("show", x, torch.float32, -1, False, x, x, 2.0, out)
    assert out.tolist() == [0, -1, 0, 0, 6.0, torch.get_num_threads()]


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize(
    "t",
    [torch.zeros(4, 4).T[1:], torch.zeros(2, dtype=torch.complex64).conj(), torch.zeros(2, device="meta")],
    ids=["strided", "conjugated", "device"],
)
def test_a_call_takes_no_tensor_that_the_library_would_misread(t: torch.Tensor) -> None:
    with pytest.raises(AssertionError):
        native_library.call("throw", torch.zeros(1), t)


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize(
    ("what", "message"), [(0, "out of memory"), (1, "the 17th tile"), (2, "an unknown C[+][+] exception")]
)
def test_a_failure_is_an_error_with_its_message(what: int, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^native library: {message}$"):
        native_library.call("throw", torch.zeros(1), what)
    native_library.call("throw", torch.zeros(1), 3)


@pytest.mark.usefixtures("loaded")
def test_the_instruction_set() -> None:
    assert native_library.isa() == "portable"
    native_library.use_isa(None)
    with pytest.raises(RuntimeError, match="this processor has no mmx"):
        native_library.use_isa("mmx")


@pytest.mark.usefixtures("loaded")
def test_a_call_without_a_library_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_library, "_FOLDER", tmp_path)
    with pytest.raises(RuntimeError, match=r"native library: it was not built: there is no .*build\.json"):
        native_library.call("throw", torch.zeros(1), 3)


# -------------------------------------------------------------------------------------------------- what is said of it


@pytest.mark.usefixtures("loaded")
def test_the_cuda_part_has_causes_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert native_library.cause() == ""
    assert native_library.cause(cuda=True).startswith("its CUDA part was not built: nvcc is not on the PATH")
    assert native_library.refusal("cpu") is None
    assert "S4_FAST_BUILD=cuda" in str(native_library.refusal("cuda"))

    handle, description = native_library._loaded()
    with_cuda = native_library._Description(**vars(description) | {"architectures": ["80"]})
    monkeypatch.setattr(native_library, "_loaded", lambda: (handle, with_cuda))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert native_library.refusal("cuda") == "PyTorch sees no CUDA device"


@pytest.mark.usefixtures("loaded")
def test_doctor_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CASES", ())
    console = Console(record=True, width=400, file=io.StringIO())
    console.print(doctor_report.text(doctor.examine(), verbose=True))
    shown = console.export_text()
    for expected in ("libs4_fast.so", f"version {s4_fast.__version__}, for ", "portable", "nvcc is not on the PATH"):
        assert expected in shown


@pytest.mark.usefixtures("loaded")
def test_asking_is_a_constant_to_a_compiled_function() -> None:
    @torch.compile(fullgraph=True, backend="eager")
    def function(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if native_library.cause(cuda=True) else x

    assert function(torch.zeros(1)).item() == 1
