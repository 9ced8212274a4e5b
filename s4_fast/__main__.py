"""``python -m s4_fast doctor | bench | convert | inspect | export``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import click
import torch
from rich.text import Text

import s4_fast
from s4_fast import dispatch, doctor, doctor_report, export, tables, terminal
from s4_fast.bench import checkouts, files, machine, plot, registry, report, runner
from s4_fast.bench.results import Row, compare
from s4_fast.state_spaces import convert, inspection

# Seconds per timing.
_QUICK, _FULL = 0.5, 2.0


def _in_existing_folder(context: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    if value is not None and not value.absolute().parent.is_dir():
        raise click.BadParameter(f"the folder {value.parent} does not exist")
    return value


def _picture(context: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    if value is not None and value.suffix not in plot.FORMATS:
        raise click.BadParameter(f"expected a name that ends in {', '.join(plot.FORMATS)}, got {value.name!r}")
    return _in_existing_folder(context, parameter, value)


def _device(context: click.Context, parameter: click.Parameter, value: str | None) -> str:
    if value is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(value)
    except RuntimeError as error:
        raise click.BadParameter(f"{value!r} is not a device") from error
    if device.type not in ("cpu", "cuda"):
        raise click.BadParameter(f"expected cpu, cuda or cuda:<index>, got {value!r}")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise click.BadParameter(f"{value!r}: PyTorch {torch.__version__} sees {count} CUDA devices")
    return value


_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)


@click.group(cls=terminal.Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(s4_fast.__version__, package_name="s4_fast")
def main() -> None:
    """Fast kernels for structured state space models: check this installation, measure it, convert checkpoints,
    export models."""


@main.command("doctor")
@click.option("--verbose", is_flag=True, help="Show every check.")
@click.option("--json", "as_json", is_flag=True, help="Print machine, backends and checks as JSON, and nothing else.")
def doctor_command(verbose: bool, as_json: bool) -> None:
    """Measure the error of every op on every usable backend, and show versions, devices and backends.

    Errors are relative norms against the definitions in float64, of the output and of each gradient. The exit code is
    1 when one misses the accuracy contract. Takes about half a minute, and longer where PyKeOps is installed and has
    not compiled its formulas yet.
    """
    with terminal.compilers_on_stderr(), terminal.progress() as bar:
        task = bar.add_task("", total=None)
        found = doctor.examine(
            lambda label, done, total: bar.update(task, description=label, completed=done, total=total)
        )
    if as_json:
        click.echo(doctor_report.as_json(found))
    else:
        terminal.console().print(doctor_report.text(found, verbose=verbose), crop=False)
    raise SystemExit(1 if found.failures else 0)


def _checkout(context: click.Context, parameter: click.Parameter, value: Path | None) -> checkouts.Checkout | None:
    try:
        return None if value is None else checkouts.load(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@main.command()
@click.option("--quick", is_flag=True, help="A few sizes and short timings, a minute or two.")
@click.option("--sweep", is_flag=True, help="Instead, kernels and layers over lengths, and steps over sizes.")
@click.option(
    "--op", "ops", type=click.Choice(registry.NAMES), multiple=True, help="Only this op or layer. Can be repeated."
)
@click.option("--layers", "layers_only", is_flag=True, help="Only whole layers.")
@click.option(
    "--backend",
    "backends",
    type=click.Choice(dispatch.BACKENDS),
    multiple=True,
    help="Only this backend, beside the baselines; layers run on it alone. Can be repeated. [default: all usable but "
    "reference]",
)
@click.option(
    "--peer",
    "checkout",
    type=click.Path(path_type=Path),
    callback=_checkout,
    help="A checkout of state-spaces/s4: its layers stand beside the drop-ins for them, with the same weights.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Of PyTorch and the native library. [default: PyTorch's]")
@click.option("--device", callback=_device, help="cpu, cuda or cuda:<index>. [default: cuda where there is one]")
@click.option("--csv", "csv_file", type=_FILE, callback=_in_existing_folder, help="Write the rows as CSV.")
@click.option("--json", "json_file", type=_FILE, callback=_in_existing_folder, help="Write machine and rows as JSON.")
@click.option("--plot", "plot_file", type=_FILE, callback=_picture, help="Draw the results (png, svg, pdf).")
@click.option(
    "--default-allocator",
    is_flag=True,
    help="Leave the C allocator as it is. Otherwise glibc is told to keep freed pages (see s4_fast.allocator), "
    "without which large temporaries, and so the direct evaluations, are slowed by page faults.",
)
@click.option("--list", "list_only", is_flag=True, help="List what would run, and run nothing.")
def bench(
    quick: bool,
    sweep: bool,
    ops: tuple[str, ...],
    layers_only: bool,
    backends: tuple[str, ...],
    checkout: checkouts.Checkout | None,
    threads: int | None,
    device: str,
    csv_file: Path | None,
    json_file: Path | None,
    plot_file: Path | None,
    default_allocator: bool,
    list_only: bool,
) -> None:
    """Measure time, peak memory and error of ops and whole layers beside their direct evaluation and other layers.

    The exit code is 1 when an op fails or misses the accuracy contract. Goals are shown, and judged on the CPU alone.
    """
    _refuse_unusable(backends)
    if plot_file is not None and plot.matplotlib_missing():
        raise click.UsageError(plot.matplotlib_missing())
    cases = registry.select(ops, quick=quick, sweep=sweep, layers=layers_only)
    jobs = runner.plan(cases, backends, quick=quick, checkout=checkout)
    if not jobs:
        raise click.UsageError("nothing to run: no case of this run has these ops and backends; see --list")
    if list_only:
        for job in jobs:
            click.echo(f"{job.case.label}  {job.backend}")
        return
    if threads is not None:
        torch.set_num_threads(threads)
    seconds = _QUICK if quick or sweep else _FULL
    settings = {"device": device, "seconds": seconds, "allocator": "default" if default_allocator else "keep pages"}
    rows, interrupted = _measure(jobs, device, seconds, default_allocator, checkout)
    results = compare(rows)
    described = machine.describe(device)
    terminal.console().print(report.table(results), crop=False)
    if csv_file is not None:
        files.write_csv(csv_file, results)
    if json_file is not None:
        command = shlex.join(["python", "-m", "s4_fast", *sys.argv[1:]])
        files.write_json(json_file, results, described, {"command": command, **settings})
    if plot_file is not None:
        plot.write_plot(plot_file, results, described)
    if interrupted:
        raise click.Abort
    raise SystemExit(1 if any(result.failed for result in results) else 0)


@main.command("convert")
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option(
    "--prefix",
    help="Write only what is under this name, without it. [default: take away module., _orig_mod. and, in Lightning's "
    "checkpoints, model., where every name begins so]",
)
@click.option("--force", is_flag=True, help="Overwrite NEW.")
def convert_command(old: Path, new: Path, prefix: str | None, force: bool) -> None:
    """Write the state_dict in OLD, a PyTorch checkpoint of a model built on state-spaces/s4, to NEW as safetensors.

    Shows what becomes of every name: they are the ones that the layers of s4_fast.state_spaces load. Nothing in OLD is
    executed; a file that holds more than tensors and plain values is refused, with exit code 2.
    """
    with terminal.refusing():
        found = convert.convert(old, new, prefix, force=force)
    rows = []
    for entry in found:
        tensor = entry.value if isinstance(entry.value, torch.Tensor) else None
        shape, dtype = ("", "") if tensor is None else (str(tuple(tensor.shape)), str(tensor.dtype)[len("torch.") :])
        rows.append((entry.old, entry.new or "", shape, dtype, entry.note))
    _print_rows(("checkpoint", "written as", "shape", "dtype", "note"), rows)
    written = sum(entry.new is not None for entry in found)
    click.echo(f"{terminal.shown(new)}: {written} tensors written, {len(found) - written} entries left out")


@main.command("inspect")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--no-time", is_flag=True, help="Measure nothing.")
def inspect_command(checkpoint: Path, no_time: bool) -> None:
    """Show which S4 and S4D layers CHECKPOINT holds, of which release of state-spaces/s4, and which layers take them.

    The speed-up is that of forward and backward pass on this machine and random input, over the formulas that the
    original falls back to. Nothing in CHECKPOINT is executed. The exit code is 2 where it cannot be read.
    """
    with terminal.refusing():
        found = inspection.inspect(checkpoint, time=not no_time)
    if not found:
        click.echo(f"{terminal.shown(checkpoint)}: no S4 or S4D layer")
        return
    rows = []
    for layer in found:
        sizes = ", ".join(f"{name} {size}" for name, size in layer.sizes.items())
        speedup = "" if layer.speedup is None else f"{layer.speedup:.1f} x at {layer.shape}"
        row = (layer.name or "(the whole)", layer.what, layer.release, speedup, sizes)
        rows.append(row[:3] + row[4:] if no_time else row)
    headings = ("layer", "what", "release", "speed-up", "sizes")
    _print_rows(headings[:3] + headings[4:] if no_time else headings, rows)
    console = terminal.console()
    for route, changes in dict.fromkeys((layer.route, layer.changes) for layer in found):
        console.print(tables.Paragraph(_cell(route)), crop=False)
        if changes:
            console.print(tables.Paragraph(_cell(changes), hang=4, first=4), crop=False)


_TARGETS = ("onnx", "c")


@main.command("export")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--to", "target", metavar="[onnx|c]", help="What to write.  [default: the ending of OUT]")
@click.option("--graph", help="step or prefill: what an ONNX file computes.  [default: step]")
@click.option("--name", help="What names in C begin with.  [default: OUT without its ending]")
@click.option("--task", help="classification or regression, where the metadata of MODEL does not say it.")
@click.option("--discretization", help="zoh or bilinear, likewise.  [default: zoh]")
@click.option("--rate", type=float, default=1.0, help="How many times as coarse as in training the sampling is.")
@click.option("--force", is_flag=True, help="Overwrite OUT.")
def export_command(
    model: Path,
    out: Path,
    target: str | None,
    graph: str | None,
    name: str | None,
    task: str | None,
    discretization: str | None,
    rate: float,
    force: bool,
) -> None:
    """Write the model whose weights are in MODEL to OUT, as an ONNX graph or as one C99 file.

    MODEL holds the state_dict of an S4SequenceModel, SSMBlock, S4DLayer or S4Layer, as safetensors or a file of
    torch.save. What cannot be exported is refused in one line, with exit code 2; nothing in MODEL is executed.
    """
    with terminal.refusing():
        target = out.suffix[1:] if target is None else target
        if target not in _TARGETS:
            raise ValueError(f"unknown target {target!r}; expected --to {' or '.join(_TARGETS)}")
        if (stray := {"onnx": name, "c": graph}[target]) is not None:
            raise ValueError(f"--to {target} takes no {'--name' if target == 'onnx' else '--graph'}, got {stray!r}")
        if not force and out.exists():
            raise FileExistsError(f"{out} exists; --force overwrites it")
        if out.exists() and model.exists() and out.samefile(model):
            raise FileExistsError(f"{out} is the file of weights itself")
        found = export.load_model(model, task=task, discretization=discretization)
        if target == "onnx":
            facts = export.to_onnx(found, out, graph=graph or "step", rate=rate, force=force)
        else:
            facts = export.to_c(found, out, name=name, rate=rate, force=force)
    task = f", {facts['task']}" if "task" in facts else ""
    click.echo(
        f"{terminal.shown(out)}: {facts['model']}{task}, {facts['inputs']} inputs, {facts['outputs']} outputs, "
        f"a state of {facts['state_size']} numbers, {out.stat().st_size:,} bytes"
    )


def _cell(text: str) -> Text:
    return Text(terminal.shown(text))


def _print_rows(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table of which the last column may wrap."""
    columns = [tables.Column(heading, wraps=heading == headings[-1]) for heading in headings]
    terminal.console().print(tables.Rows(columns, [tuple(map(_cell, row)) for row in rows]), crop=False)


def _refuse_unusable(backends: tuple[str, ...]) -> None:
    for name in backends:
        status = dispatch.backends()[name]
        if not status.usable:
            fix = f"; run: {status.fix}" if status.fix else ""
            raise click.UsageError(f"backend {name!r} is not usable here: {status.cause}{fix}")


def _measure(
    jobs: list[runner.Job], device: str, seconds: float, default_allocator: bool, checkout: checkouts.Checkout | None
) -> tuple[list[Row], bool]:
    """The rows, and whether the user stopped the run before the last."""
    rows: list[Row] = []
    with terminal.progress() as progress:
        task = progress.add_task("", total=len(jobs))
        peer = None if checkout is None else checkout.path
        measured = runner.run(jobs, device, seconds, default_allocator=default_allocator, peer=peer)
        try:
            for job in jobs:
                progress.update(task, description=f"{job.case.label} {job.backend}")
                rows.append(next(measured))
                progress.advance(task)
        except KeyboardInterrupt:
            return rows, True
        finally:
            measured.close()
    return rows, False


if __name__ == "__main__":
    main(prog_name="python -m s4_fast")
