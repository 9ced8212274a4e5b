#!/usr/bin/env bash
# Everything that must be seen on a GPU, in one call, what matters most first.
# Runs from a source tree with a python3 that has torch, click, rich and pytest, and nvcc: no network, no install.
set -u

all=(machine native tensor kernels bench tune tests doctor memcheck racecheck slow-tests)
kernels="--budget 150 --seconds 0.1 --no-compile"
bench="--quick"
if [ $# -lt 1 ] || [[ $1 == -* ]]; then
    echo "usage: $0 OUT_DIR [STEP ...]" >&2
    echo "Runs the steps (default: ${all[*]}) and writes their logs and results into OUT_DIR." >&2
    echo "PYTHON chooses the interpreter (default: python3), LIMIT how many seconds a step may take (default: 600)," >&2
    echo "BUDGET how many all of them together (default: 600), after which the remaining ones are left out," >&2
    echo "KERNELS the options of gpu_kernels.py (default: $kernels)," >&2
    echo "BENCH those of 'python -m s4_fast bench' (default: $bench)." >&2
    exit 2
fi

python=${PYTHON:-python3}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || exit 2
if ! mkdir -p "$1" || ! out=$(cd "$1" && pwd); then
    echo "$0: cannot write to $1" >&2
    exit 2
fi
shift
steps=("$@")
[ $# -ne 0 ] || steps=("${all[@]}")
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
cd "$root" || exit 2

if ! "$python" -c 'import torch'; then
    echo "$0: $python has no working torch; set PYTHON to one that has" >&2
    exit 2
fi
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "$0: PyTorch sees no CUDA device here; this script measures nothing without one" >&2
    exit 2
fi

failed=() left_out=()
run() {
    local name=$1 start=$SECONDS
    local limit=${LIMIT:-600} left=$((${BUDGET:-600} - SECONDS))
    shift
    if [ "$left" -le 0 ]; then
        left_out+=("$name")
        return
    fi
    echo "== $name"
    timeout "$((left < limit ? left : limit))" "$@" 2>&1 | tee "$out/$name.log"
    local status=${PIPESTATUS[0]}
    echo "== $name: $((SECONDS - start)) s"
    if [ "$status" -ne 0 ]; then
        failed+=("$name (exit code $status)")
    fi
}

pytest=("$python" -m pytest -q -p no:cacheprovider)
parallel=()
if "$python" -c 'import xdist' 2>/dev/null; then
    parallel=(-n 8)
fi
everywhere=(tests tests/ops/triton_kernels.py)
shopt -s nullglob
checked=(tests/native/test_cuda_ops.py tests/native/test_*tensor*.py)

plot=()
if "$python" -c 'import matplotlib' 2>/dev/null; then
    plot=(--plot "$out/bench.png")
fi

sanitizer() {
    if command -v compute-sanitizer >/dev/null; then
        # PyTorch's caching allocator would hide an access beyond a tensor from the sanitizer.
        run "$1" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 1 \
            "${pytest[@]}" -m gpu -k 'contract or step' "${checked[@]}"
    else
        echo "== $1: skipped, compute-sanitizer is not on the PATH"
    fi
}

describe_machine='
import torch
from s4_fast.bench import machine

for name, value in machine.describe("cuda").items():
    print(f"{name}: {value}")
print(f"cudnn: {torch.backends.cudnn.version()}")
'

for step in "${steps[@]}"; do
    case $step in
    machine)
        run driver nvidia-smi
        run machine "$python" -c "$describe_machine"
        ;;
    native) run native env S4_FAST_BUILD=cuda "$python" csrc/build_native.py ;;
    tensor) run tensor "${pytest[@]}" ${parallel[@]+"${parallel[@]}"} -m 'gpu and not slow' -k tensor tests ;;
    tests)
        run tests "${pytest[@]}" ${parallel[@]+"${parallel[@]}"} -m 'gpu and not slow' -k 'not tensor' "${everywhere[@]}"
        ;;
    slow-tests) run slow-tests "${pytest[@]}" ${parallel[@]+"${parallel[@]}"} -m 'gpu and slow' "${everywhere[@]}" ;;
    doctor) run doctor "$python" -m s4_fast doctor ;;
    memcheck | racecheck) sanitizer "$step" ;;
    # shellcheck disable=SC2086
    kernels) run kernels "$python" benchmarks/gpu_kernels.py "$out" ${KERNELS-$kernels} ;;
    # shellcheck disable=SC2086
    bench)
        run bench "$python" -m s4_fast bench --device cuda --json "$out/bench.json" --csv "$out/bench.csv" \
            ${plot[@]+"${plot[@]}"} ${BENCH-$bench}
        ;;
    tune)
        results=()
        for file in "$out/bench.json" "$out/gpu_kernels.json"; do
            [ ! -f "$file" ] || results+=("$file")
        done
        # shellcheck disable=SC2016
        run tune bash -c '"$0" benchmarks/tune.py "${@:2}" && cp s4_fast/gpu_choices.json "$1"' \
            "$python" "$out" ${results[@]+"${results[@]}"}
        ;;
    *)
        echo "$0: unknown step '$step'; expected some of: ${all[*]}" >&2
        exit 2
        ;;
    esac
done

if [ ${#left_out[@]} -ne 0 ]; then
    echo "left out after ${BUDGET:-600} s: ${left_out[*]}; BUDGET gives more time"
fi
if [ ${#failed[@]} -ne 0 ]; then
    printf 'failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
echo "all that ran passed; results in $out"
