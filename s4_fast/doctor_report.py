"""What an examination found, as text and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from s4_fast.bench.accuracy import FAIL, KNOWN_LIMIT, PASS, Errors, tolerances
from s4_fast.doctor import Examination, Finding
from s4_fast.tables import Column, Paragraph, Rows
from s4_fast.terminal import shown

_STYLES = {PASS: "green", KNOWN_LIMIT: "yellow", FAIL: "bold red"}
_ISAS = {"avx512": "AVX-512", "avx2": "AVX2", "portable": "portable code"}
_NAMES = {"python": "Python", "torch": "PyTorch", "numpy": "NumPy", "triton": "Triton", "pykeops": "PyKeOps"}


def sentence(found: Examination) -> str:
    """What matters most, in one line."""
    gpus = [what for device, what in found.devices.items() if device != "cpu"]
    where = "; ".join(gpus) if gpus else "CPU only"
    isa = found.native_library.get("instruction set")
    native = f"yes, {_ISAS.get(isa, isa)}" if isa else "no"
    failed, total = len(found.failures), len(found.findings)
    outcome = f"{failed} of {total} checks FAILED" if failed else f"everything passed ({total} checks)"
    return f"{where}; native library: {native}; {outcome}."


def text(found: Examination, *, verbose: bool = False) -> RenderableType:
    """The report: the sentence, what failed, the machine, the backends, the errors, and remarks."""
    parts: list[RenderableType] = [
        Paragraph(Text(sentence(found), style="bold red" if found.failures else "bold green"))
    ]
    parts += [Paragraph(Text(line, style="red")) for line in map(_failure, found.failures)]
    parts += [Text(), *_machine(found, verbose), Text(), _backends(found)]
    if found.findings:
        parts += [Text(), *(_each(found) if verbose else _worst(found))]
    remarks = list(_remarks(found))
    if remarks:
        parts += [Text(), *(Paragraph(Text(remark, style="dim")) for remark in remarks)]
    return Group(*parts)


def as_json(found: Examination) -> str:
    """Machine, backends and findings; an error that is not finite is null."""
    document = {
        "summary": sentence(found),
        "passed": not found.failures,
        "machine": found.machine,
        "devices": found.devices,
        "requested_backend": found.requested or None,
        "backends": {name: asdict(status) for name, status in found.backends.items()},
        "native_library": found.native_library,
        "findings": [_flat(finding) for finding in found.findings],
        "said": found.said,
    }
    return json.dumps(document, indent=2, allow_nan=False)


def _flat(finding: Finding) -> dict[str, Any]:
    case, errors = finding.case, finding.errors
    forward, gradient, worst = errors or Errors(math.nan, None, "")
    return {
        **{name: getattr(case, name) for name in ("op", "batch", "H", "n", "L", "rank", "state", "decay", "dtype")},
        "device": finding.device,
        "backend": finding.backend,
        "verdict": finding.verdict,
        "forward_error": forward if math.isfinite(forward) else None,
        "gradient_error": gradient if gradient is not None and math.isfinite(gradient) else None,
        "worst_gradient": worst or None,
        "note": finding.note or None,
    }


def _failure(finding: Finding) -> str:
    where = f"{finding.case.op} {finding.case.sizes} {finding.case.dtype} on {finding.backend}, {finding.device}"
    measured = "" if finding.errors is None else f"errors {_both(finding.errors)}, "
    return shown(f"{where}: {measured}{finding.note}")


def _machine(found: Examination, verbose: bool) -> Iterator[RenderableType]:
    """Two or three lines; every entry by its name in the verbose report."""
    if verbose:
        entries = {**found.machine, **{d: what for d, what in found.devices.items() if d != "cpu"}}
        yield _pairs({**entries, **found.native_library})
        return
    m = found.machine
    versions = [f"{name} {m[key]}" for key, name in _NAMES.items() if m[key] != "not installed"]
    yield Paragraph(Text(shown(f"s4_fast {m['s4_fast']}, {', '.join(versions)}")))
    yield Paragraph(Text(shown(f"{m['cpu']}, {m['cores']} cores, {m['threads']} threads, {m['os']}")))
    for device, what in found.devices.items():
        if device != "cpu":
            yield Paragraph(Text(shown(f"{device}: {what}; native library: {found.native_library.get('CUDA', 'no')}")))


def _pairs(values: dict[str, str]) -> RenderableType:
    return Rows((Column("what"), Column("value", wraps=True)), [(Text(k), Text(shown(v))) for k, v in values.items()])


def _backends(found: Examination) -> RenderableType:
    styles = {"yes": "green", "no": "yellow"}
    rows = [
        (Text(line.name), Text(line.usable, style=styles[line.usable]), Text(shown(line.what)))
        for line in found.backends.lines()
    ]
    return Rows((Column("backend"), Column("usable"), Column("ops, or why not", wraps=True)), rows)


def _worst(found: Examination) -> Iterator[RenderableType]:
    """A row per op and a column per backend: the largest errors in float32 and, in a line, those of float64."""
    for device in found.devices:
        here = [finding for finding in found.findings if finding.device == device]
        backends = list(dict.fromkeys(finding.backend for finding in here))
        backends.sort(key=list(found.backends).index)
        rows = [
            (Text(op), *(_cell([f for f in here if (f.case.op, f.backend) == (op, name)]) for name in backends))
            for op in dict.fromkeys(finding.case.op for finding in here)
        ]
        where = f" on {device}" if len(found.devices) > 1 else ""
        yield Paragraph(Text(f"Largest relative errors in float32{where}: of outputs, of gradients", style="bold"))
        yield Rows((Column("op"), *(Column(name) for name in backends)), rows)
    double = [f.errors for f in found.findings if f.case.dtype == "float64" and f.verdict != FAIL and f.errors]
    if double:
        yield Paragraph(Text(f"In float64 they are at most {_both(_largest(double))}.", style="dim"))


def _cell(findings: Sequence[Finding]) -> Text:
    """The errors in float32, or that something failed."""
    if not findings:
        return Text("")
    if any(finding.verdict == FAIL for finding in findings):
        return Text("FAIL", style=_STYLES[FAIL])
    single = [finding.errors for finding in findings if finding.errors and finding.case.dtype == "float32"]
    limited = any(finding.verdict == KNOWN_LIMIT for finding in findings)
    if not single:
        return Text(PASS, style=_STYLES[PASS])
    return Text(_both(_largest(single)) + " *" * limited, style=_STYLES[KNOWN_LIMIT if limited else PASS])


def _largest(errors: Sequence[Errors]) -> Errors:
    gradients = [each.gradient for each in errors if each.gradient is not None]
    return Errors(max(each.forward for each in errors), max(gradients, default=None), "")


def _both(errors: Errors) -> str:
    """The errors of outputs and of gradients."""
    return _short(errors.forward) + (f" {_short(errors.gradient)}" if errors.gradient is not None else "")


def _short(error: float) -> str:
    return f"{error:.0e}".replace("e-0", "e-")


def _each(found: Examination) -> Iterator[RenderableType]:
    """Every finding, under its case."""
    columns = (Column("  backend"), Column("device"), Column("forward", right=True), Column("gradient", right=True))
    for (case, _), group in groupby(found.findings, key=lambda finding: (finding.case, finding.device)):
        allowed = "allowed: {:.0e}, gradients {:.0e}".format(*tolerances(case))
        yield Paragraph(Text(f"{case.op} {case.sizes} {case.dtype} ({allowed})", style="bold"))
        rows = [
            (
                *(Text(f"  {finding.backend}"), Text(finding.device)),
                *_figures(finding.errors),
                Text(finding.verdict, style=_STYLES[finding.verdict]),
            )
            for finding in group
        ]
        yield Rows((*columns, Column("worst gradient"), Column("verdict")), rows)


def _figures(errors: Errors | None) -> tuple[Text, Text, Text]:
    if errors is None:
        return Text(""), Text(""), Text("")
    gradient = "none" if errors.gradient is None else f"{errors.gradient:.1e}"
    return Text(f"{errors.forward:.1e}"), Text(gradient), Text(errors.worst)


def _remarks(found: Examination) -> Iterator[str]:
    if found.requested:
        yield shown(f"The environment asks for a backend: S4_FAST_BACKEND={found.requested}")
    for line in found.backends.fixes():
        yield shown(f"To use {line}")
    if any(finding.verdict == KNOWN_LIMIT for finding in found.findings):
        yield "* known limit: PyKeOps rounds the phase of exp(x l) to float32. It is never chosen automatically."
    measured = {finding.backend for finding in found.findings}
    for name, status in found.backends.items():
        if status.usable and name not in measured and name != "reference":
            yield f"{name} takes no call on these devices, and was not measured."
    # One line where KeOps says that it found no CUDA.
    yield from (shown(line.replace("[KeOps] Warning : ", "KeOps: ")) for line in found.said)
