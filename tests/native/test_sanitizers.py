from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from s4_fast import native_library
from tests.native import trees

DRIVER = Path(__file__).with_name("sanitize.cpp")
MEMORY = (
    ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    {"ASAN_OPTIONS": "detect_stack_use_after_return=1", "UBSAN_OPTIONS": "print_stacktrace=1"},
)
# By name: the compiler's options, the run's environment, the instruction sets ("best": that of this processor, and the
# portable one), and the driver's argument. What threads do does not depend on the instruction set.
SANITIZERS = {
    "address, undefined behaviour": (*MEMORY, "best", "all"),
    "address, undefined behaviour, every instruction set": (*MEMORY, "all", "all"),
    "thread": (["-fsanitize=thread"], {}, "portable", "threads"),
}


def _needs(build_native: ModuleType, options: list[str], folder: Path) -> list[str]:
    """The compiler, if it makes programs that this sanitizer runs in."""
    try:
        compiler = build_native._compiler()
    except build_native.BuildError as error:
        pytest.skip(str(error))
    (folder / "nothing.cpp").write_text("#include <sanitizer/asan_interface.h>\nint main() {}\n")
    program = str(folder / "nothing")
    for command in ([*compiler, *options, program + ".cpp", "-o", program], [program]):
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            said = (result.stderr.strip().splitlines() or ["nothing"])[-1]
            pytest.skip(f"{compiler[0]} has no runtime for {options[0]} that works here: {said}")
    return compiler


def _objects(sanitizer: str, folder: Path) -> tuple[list[str], list[str]]:
    """The command that links, and the objects of the library and the driver."""
    build_native = trees.build_native()
    options, _, which, _ = SANITIZERS[sanitizer]
    compiler = _needs(build_native, options, folder)
    isas = (
        list(build_native.ISAS) if build_native.platform.machine() == "x86_64" and which != "portable" else ["portable"]
    )
    if which == "best" and not native_library.cause():
        isas = list(dict.fromkeys((native_library.isa(), "portable")))

    def checked(command: list[str]) -> list[str]:
        return ["-O1" if option == "-O3" else option for option in command] + [*options, "-g1", "-DS4_FAST_CHECKED"]

    commands = [(name, file, checked(command)) for name, file, command in build_native._cpu_commands(compiler, isas)]
    driver = checked([*compiler, *build_native.CXX_FLAGS])
    with trees.kept_objects(f"sanitizers/{sanitizer.split(',')[0]}") as objects:
        files = build_native._compile([*commands, ("driver", DRIVER, driver)], objects)
    return [*compiler, *options, "-lpthread"], list(map(str, files))


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_kernels_under(sanitizer: str, tmp_path: Path) -> None:
    _, environment, _, argument = SANITIZERS[sanitizer]
    linker, files = _objects(sanitizer, tmp_path)
    program = tmp_path / "sanitize"
    subprocess.run([*linker, *files, "-o", str(program)], check=True)
    result = subprocess.run([str(program), argument], capture_output=True, text=True, env=os.environ | environment)
    assert (result.returncode, result.stdout) == (0, "0 failures\n"), result.stderr[-20000:]


@pytest.mark.slow
@pytest.mark.parametrize("calls", [1500, 100_000])
def test_random_calls(calls: int, tmp_path: Path, seed: int) -> None:
    linker, files = _objects("address, undefined behaviour", tmp_path)
    library = tmp_path / "libchecked.so"
    subprocess.run([*linker, "-shared", *files, "-o", str(library)], check=True)
    runtime = subprocess.run([linker[0], "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    if not Path(runtime.stdout.strip()).is_file():
        pytest.skip(f"{linker[0]} has no runtime of its own to load before Python")
    # Python does not free what it has at its end.
    options = {"ASAN_OPTIONS": MEMORY[1]["ASAN_OPTIONS"] + ":detect_leaks=0", "LD_PRELOAD": runtime.stdout.strip()}
    command = [sys.executable, "-m", "tests.native.fuzz", str(library), str(seed), str(calls)]
    result = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | MEMORY[1] | options, cwd=trees.ROOT
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-10000:]
