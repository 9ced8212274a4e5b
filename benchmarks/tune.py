"""The backends' times on GPUs, from results into the package: python benchmarks/tune.py RESULTS.json...

Results are those of ``python -m s4_fast bench --device cuda --json`` and of ``gpu_kernels.py``; where a shape is in
several, the last one holds. The rows of an architecture that is in them take the place of what was known of it.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from s4_fast import dispatch, files, gpu_choices
from s4_fast.bench.accuracy import FAIL

# They look at numbers on the way, which a CUDA graph cannot hold: they must not be chosen for what can be captured.
NOT_CAPTURED = (("cauchy_bilinear", "pytorch"), ("cauchy_bilinear", "tensor_cores"), ("dplr_kernel", "pytorch"))
_MEASURED = "measured on"


class Timed(NamedTuple):
    """Milliseconds of one pass of one backend; of the GPU, and with Python's launches where these were measured."""

    op: str
    dtype: str
    sizes: tuple[tuple[str, int], ...]
    kind: str
    backend: str
    times: list[float]


def timed(row: dict[str, Any]) -> Iterator[Timed]:
    """What a row of either file says of a backend that holds the accuracy contract; nothing where it says nothing."""
    op, backend = row["op"], row.get("implementation") or row.get("backend", "")
    failed = row.get("error") or row.get("skipped") or FAIL in (row.get("verdict"), row.get("accuracy"))
    on_gpu = row.get("device", "cuda").startswith("cuda")
    if op not in dispatch.ops() or failed or not on_gpu or (op, backend) in NOT_CAPTURED:
        return
    if backend not in dispatch.implementations(op) or backend == "reference":
        return
    sizes = {name: row[name] for name in gpu_choices.SIZES if row.get(name, 1) != 1}
    if op == "cauchy_mult":
        sizes["L"] = row["L"] // 2 + 1  # nodes
    for kind in gpu_choices.PASSES:
        flat = kind.replace("+", "_")
        if kind in row:
            launched = row.get(f"{kind}_with_launches", {}).get("median")
            median = row[kind]["median"]
        else:
            launched, median = row.get(f"{flat}_launched_ms"), row.get(f"{flat}_ms")
        if median is not None:
            times = [rounded(time) for time in (median, launched) if time is not None]
            yield Timed(op, row.get("dtype", "float32"), tuple(sizes.items()), kind, backend, times)


def rounded(milliseconds: float) -> float:
    return float(f"{milliseconds:.4g}")


def rows(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One per shape that has several backends, sorted."""
    found: dict[tuple[Any, ...], dict[str, dict[str, list[float]]]] = {}
    for document in results:
        for row in document["rows"]:
            for one in timed(row):
                passes = found.setdefault((one.op, one.dtype, one.sizes), {})
                passes.setdefault(one.kind, {})[one.backend] = one.times
    made = []
    for (op, dtype, sizes), passes in sorted(found.items()):
        several = {kind: dict(sorted(passes[kind].items())) for kind in passes if len(passes[kind]) > 1}
        if several:
            made.append({"op": op, "dtype": dtype, **dict(sizes), **several})
    return made


def architecture(document: dict[str, Any]) -> str:
    """That of the GPU in a results file.

    Raises:
        ValueError: it is of a CPU.
    """
    found = re.search(r"sm_\d+", document["machine"].get("gpu", ""))
    if not found:
        raise ValueError("it has no GPU: only results of 'bench --device cuda' and gpu_kernels.py can be used")
    return found[0]


def machine(document: dict[str, Any]) -> str:
    described = document["machine"]
    return f"{described['gpu']}, PyTorch {described['torch']}, Triton {described['triton']}"


def text(choices: dict[str, Any]) -> str:
    """The file, a line per row."""
    parts = []
    for name, part in sorted(choices.items()):
        lines = ",\n".join(f"   {json.dumps(row)}" for row in part["rows"])
        parts.append(f' "{name}": {{\n  "{_MEASURED}": {json.dumps(part[_MEASURED])},\n  "rows": [\n{lines}\n  ]\n }}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def tuned(known: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, Any]:
    """What is known, with the architectures of the results as these say."""
    by_architecture: dict[str, list[dict[str, Any]]] = {}
    for document in results:
        by_architecture.setdefault(architecture(document), []).append(document)
    new = {
        name: {_MEASURED: "; ".join(dict.fromkeys(map(machine, documents))), "rows": rows(documents)}
        for name, documents in by_architecture.items()
    }
    return {**known, **new}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="+", help="results files of one or more GPUs")
    parser.add_argument("--out", type=Path, default=gpu_choices.FILE, help="the file to write (default: the package's)")
    options = parser.parse_args()
    documents = [json.loads(path.read_text("utf-8")) for path in options.results]
    known = json.loads(options.out.read_text("utf-8")) if options.out.exists() else {}
    try:
        choices = tuned(known, documents)
    except ValueError as error:
        raise SystemExit(f"tune.py: {error}") from error
    files.write(options.out, text(choices))
    for document in documents:
        name = architecture(document)
        print(f"{name}: {len(choices[name]['rows'])} shapes in {options.out}")


if __name__ == "__main__":
    main()
