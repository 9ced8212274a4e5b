#!/usr/bin/env bash
# Everything that must be seen on a GPU, in one call: the native library's build, the tests, the doctor, the kernels and
# the benchmark.
# Runs from a source tree with a python3 that has torch, click, rich and pytest, and nvcc: no network, no install.
set -u

if [ $# -lt 1 ]; then
    echo "usage: $0 OUT_DIR [options of 'python -m s4_fast bench', such as --quick]" >&2
    echo "Writes logs, bench.json, bench.csv and gpu_kernels.json into OUT_DIR. PYTHON chooses the interpreter (default: python3)." >&2
    exit 2
fi

python=${PYTHON:-python3}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || exit 2
if ! mkdir -p "$1" || ! out=$(cd "$1" && pwd); then
    echo "$0: cannot write to $1" >&2
    exit 2
fi
shift
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
cd "$root" || exit 2

if ! "$python" -c 'import torch'; then
    echo "$0: $python has no working torch; set PYTHON to one that has" >&2
    exit 2
fi
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "$0: PyTorch sees no CUDA device here; this script measures nothing without one" >&2
    exit 2
fi

describe_machine() {
    nvidia-smi && "$python" --version && "$python" - <<'PYTHON'
import torch
from s4_fast.bench import machine

for name, value in machine.describe("cuda").items():
    print(f"{name}: {value}")
print(f"cudnn: {torch.backends.cudnn.version()}")
PYTHON
}

failed=()
step() {
    local name=$1
    shift
    echo "== $name"
    "$@" 2>&1 | tee "$out/$name.log"
    local status=${PIPESTATUS[0]}
    if [ "$status" -ne 0 ]; then
        failed+=("$name (exit code $status)")
    fi
}

plot=()
if "$python" -c 'import matplotlib' 2>/dev/null; then
    plot=(--plot "$out/bench.png")
fi

step machine describe_machine
step native env S4_FAST_BUILD=cuda "$python" csrc/build_native.py
step tests "$python" -m pytest -q tests
step tests_slow "$python" -m pytest -q -m slow tests/ops/test_triton.py
step doctor "$python" -m s4_fast doctor
step native-kernels "$python" -m pytest -q -m '' -k 'not emulated' tests/native/test_cuda_kernels.py tests/native/test_cuda_ops.py
for tool in memcheck racecheck; do
    if command -v compute-sanitizer >/dev/null; then
        # PyTorch's caching allocator would hide an access beyond a tensor from the sanitizer.
        step "$tool" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 1 \
            "$python" -m pytest -q -k 'not emulated and (contract or step)' tests/native/test_cuda_ops.py
    else
        echo "== $tool: skipped, compute-sanitizer is not on the PATH"
    fi
done
step kernels "$python" benchmarks/gpu_kernels.py "$out"
step bench "$python" -m s4_fast bench --device cuda --json "$out/bench.json" --csv "$out/bench.csv" \
    ${plot[@]+"${plot[@]}"} "$@"

if [ ${#failed[@]} -ne 0 ]; then
    printf 'failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
echo "all passed; results in $out"
