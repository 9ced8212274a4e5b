#!/usr/bin/env bash
# Measures what the README's tables and pictures show of a CPU, and makes them: benchmarks/cpu.sh CHECKOUT, where CHECKOUT
# is state-spaces/s4 at release 4.1. Run it on an idle machine.
set -euo pipefail
checkout=${1:?which checkout of state-spaces/s4}
cd "$(dirname "$0")/.."
results=benchmarks/results

python -m s4_fast bench --quick --json $results/cpu.json
python -m s4_fast bench --layers --json $results/cpu-layers.json
python -m s4_fast bench --peer "$checkout" --threads 1 --op S4D --op S4Block-diag --op S4Block-dplr --json $results/official.json
python -m s4_fast bench --sweep --op log_vandermonde --op S4DLayer --op S4Layer --op S4DLayer.step --op S4Layer.step --json $results/cpu-sweep.json
python benchmarks/export_latency.py --json $results/export.json
python -m pytest benchmarks --benchmark-json=$results/pytest-baseline.json
python benchmarks/plots.py $results/cpu-sweep.json
python benchmarks/tables.py
