"""Streaming audio: learn an effect whose memory is longer than the pieces it is trained on, then run it live.

    pip install safetensors matplotlib rich click
    python examples/stream.py

The effect is a resonant low-pass, a tanh drive, and a compressor that turns loud passages down for a quarter of a
second. The model hears long recordings in pieces of 64 ms and carries its state from each to the next, so it can learn
what no single piece shows (truncated back-propagation through time). Reloaded, it is fed a million samples in blocks
of any size, and single samples: the output is that of one pass over the whole, in memory that does not grow. Its step
in C, which it writes to effect.c, runs over the same samples where there is a C compiler.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from safetensors import SafetensorError
from torch import Generator, Tensor

import s4_fast
from c_step import RunInC, run_in_c
from command_line import COUNT, SEED, build, make_folder, positive, run_command
from result_files import load_checkpoint, save_checkpoint, save_figure
from s4_fast import S4SequenceModel, log_vandermonde, ssm_scan
from s4_fast.layers import ModelState

RATE = 16_000  # samples per second
NOTE = 12_000  # samples per sound
ROWS = 8  # recordings that are learnt from side by side
SECONDS = 8  # of each
MAX_BLOCK = 2048
WARM_UP = 0.1  # of the stream, before memory should stand still
RATES = {"s4d": (0.02, 0.01), "s4": (0.01, 0.005)}  # of the weights, and of dt, A and B
TAPS = 128  # of the linear filter to compare with: 8 ms, and the resonance rings for 2
HELD_OUT = -1  # the seed of the audio to test on; --seed cannot be it


def dry_audio(rows: int, length: int, generator: Generator) -> Tensor:
    """Recordings (rows, length) of plucked strings, chirps and noise bursts, about three per second, soft and loud."""

    def between(low: float, high: float, count: int) -> Tensor:
        """Log-uniform, (count, 1)."""
        return low * (high / low) ** torch.rand(count, 1, generator=generator)

    some = max(1, rows * length // (2 * NOTE))
    t = torch.arange(NOTE) / RATE

    partial = torch.arange(1, 17)
    frequency = between(80, 600, 4 * some) * partial * (1 + 2e-4 * partial**2).sqrt()
    frequency = frequency.clamp(max=0.47 * RATE)
    decay = (4 + 0.002 * frequency) * between(0.5, 2, 4 * some)
    height = (math.pi * partial * between(0.1, 0.5, 4 * some)).sin() / partial
    # A string is a sum of damped partials, which is what this function sums.
    strings = log_vandermonde(-1j * height, torch.complex(-decay, 2 * math.pi * frequency) / RATE, NOTE)

    pitch = torch.lerp(between(60, 3000, some).log(), between(60, 3000, some).log(), t / t[-1]).exp()
    chirps = (2 * math.pi * pitch.cumsum(-1) / RATE).sin() * (math.pi * t / t[-1]).sin().clamp(min=0).sqrt()
    bursts = 0.5 * torch.randn(some, NOTE, generator=generator) * (-between(5, 60, some) * t).exp()

    sounds = torch.cat([strings, chirps, bursts])
    sounds *= between(0.03, 1, len(sounds))
    row = torch.randint(rows, (len(sounds),), generator=generator)
    start = torch.randint(length + NOTE, (len(sounds),), generator=generator)
    audio = torch.zeros(rows, length + 2 * NOTE)
    for sound, i, l in zip(sounds, row.tolist(), start.tolist(), strict=True):
        audio[i, l : l + NOTE] += sound
    return audio[:, NOTE : NOTE + length]


def effect(dry: Tensor) -> Tensor:
    """What is to be learnt, (rows, length) -> the same: two linear recurrences, and what is not linear between them."""

    def recurrence(u: Tensor, x: complex, B: complex, C: complex) -> Tensor:
        return ssm_scan(u, *(torch.tensor([[value]], dtype=torch.complex128) for value in (x, B, C)))

    # A resonance at 1200 Hz, 500 Hz wide, that lets what is below pass unchanged.
    damping, angle = math.pi * 500 / RATE, 2 * math.pi * 1200 / RATE
    gain = (1 - 2 * math.exp(-damping) * math.cos(angle) + math.exp(-2 * damping)) / (
        math.exp(-damping) * math.sin(angle)
    )
    x = recurrence(dry[:, None].double(), complex(-damping, angle), 1, -0.5j * gain)
    x = (3 * x).tanh()
    release = 0.25 * RATE
    power = recurrence(x.square(), complex(-1 / release), 0.5 / release, 1)
    return (x / (1 + 40 * power).sqrt())[:, 0].float()


def learn(
    model: S4SequenceModel, dry: Tensor, wet: Tensor, chunk: int, carry: bool, update: Callable[[Tensor], None]
) -> float:
    """Truncated back-propagation through time: one pass over recordings (rows, length, 1), chunk by chunk.

    The state goes on to the next chunk, the gradients do not. Returns the mean error-to-signal ratio.
    """
    state, total = None, 0.0
    pieces = list(zip(dry.split(chunk, dim=1), wet.split(chunk, dim=1), strict=True))
    for u, target in pieces:
        y, state = model(u, state, return_state=True)
        # A silent chunk has no signal to divide by.
        loss = (y - target).square().mean() / target.square().mean().clamp(min=1e-4)
        update(loss)
        state = state.detach() if carry else None
        total += loss.item()
    return total / len(pieces)


def train(
    model: S4SequenceModel, passes: int, chunk: int, carry: bool, lr: float, ssm_lr: float, seed: int, seconds: float
) -> Iterator[float]:
    """Learn from new recordings in every pass, yielding its mean error-to-signal ratio."""
    generator = Generator().manual_seed(seed)
    chunks = max(1, int(seconds * RATE) // chunk)
    optimizer = torch.optim.AdamW(s4_fast.get_ssm_param_groups(model, lr=lr, ssm_lr=ssm_lr, weight_decay=0.0))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=[group["lr"] for group in optimizer.param_groups], total_steps=passes * chunks, pct_start=0.1
    )

    def update(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()

    for _ in range(passes):
        dry = dry_audio(ROWS, chunks * chunk, generator)
        yield learn(model, dry[..., None], effect(dry)[..., None], chunk, carry, update)


def error_to_signal(y: Tensor, target: Tensor) -> float:
    return ((y - target).square().sum() / target.square().sum()).item()


def best_filter(dry: Tensor, target: Tensor, taps: int) -> Tensor:
    """What comes nearest to the target among all linear filters of so many taps, chosen on these recordings."""
    frames = torch.nn.functional.pad(dry.double(), (taps - 1, 0)).unfold(1, taps, 1)  # (rows, length, taps)
    products = sum(row.mT @ row for row in frames)
    with_target = sum(row.mT @ wet for row, wet in zip(frames, target.double(), strict=True))
    weights = torch.linalg.lstsq(products, with_target[:, None], driver="gelsd").solution[:, 0]
    return torch.stack([row @ weights for row in frames])


class Evaluation(NamedTuple):
    """Held-out recordings (rows, length) through the effect and the model: state carried on, and reset per chunk."""

    target: Tensor
    carried: Tensor
    reset: Tensor
    linear: Tensor  # by the best filter of TAPS taps
    chunk: int


@torch.no_grad()
def evaluate(model: S4SequenceModel, chunk: int, seconds: float) -> Evaluation:
    length = max(2, int(seconds * RATE) // chunk) * chunk
    dry = dry_audio(ROWS, length, Generator().manual_seed(HELD_OUT))
    carried = model(dry[..., None])[..., 0]
    reset = model(dry.reshape(-1, chunk, 1)).reshape(ROWS, length)
    target = effect(dry)
    return Evaluation(target, carried, reset, best_filter(dry, target, TAPS), chunk)


class Block(NamedTuple):
    size: int
    by_step: bool


def uneven_blocks(samples: int, generator: Generator) -> list[Block]:
    """Blocks of 1 to MAX_BLOCK samples, small ones as likely as large ones; amid them up to 4000 single samples."""

    def blocks(count: int) -> Iterator[Block]:
        while count > 0:
            size = min(count, round(MAX_BLOCK ** torch.rand((), generator=generator).item()))
            yield Block(size, by_step=False)
            count -= size

    single = min(4000, samples // 4)
    before = (samples - single) // 2
    return [*blocks(before), *[Block(1, by_step=True)] * single, *blocks(samples - single - before)]


class Played(NamedTuple):
    """What came out, how long each block took, and the memory in use after so many samples."""

    output: Tensor  # (samples,)
    seconds: Tensor  # (blocks,)
    samples: list[int]
    memory: list[int]  # bytes; empty where it cannot be measured
    state: ModelState


@torch.inference_mode()
def play(model: S4SequenceModel, signal: Tensor, blocks: list[Block]) -> Played:
    """Run the model live over the signal (samples,)."""
    # Filled here, so that its memory is not taken for growth of the stream's.
    output = torch.full_like(signal, math.nan)
    seconds = torch.full((len(blocks),), math.nan, dtype=torch.float64)
    samples: list[int] = []
    memory: list[int] = []
    state = model.init_state(1)
    for size in (1, MAX_BLOCK):  # what is made once, at the first call, is no part of a block's latency
        model.prefill(signal.new_zeros(1, size, 1), state)
        model.step(signal.new_zeros(1, 1), state)
    done = 0
    for i, (size, by_step) in enumerate(blocks):
        start = time.perf_counter()
        u = signal[None, done : done + size, None]
        if by_step:
            y, state = model.step(u[:, 0], state)
            output[done] = y[0, 0]
        else:
            y, state = model.prefill(u, state)
            output[done : done + size] = y[0, :, 0]
        seconds[i] = time.perf_counter() - start
        done += size
        if done * 200 // len(signal) > (done - size) * 200 // len(signal) and (used := resident_memory()) is not None:
            samples.append(done)
            memory.append(used)
    return Played(output, seconds, samples, memory, state)


def resident_memory() -> int | None:
    """Bytes of this process in memory; without Linux's /proc the most there ever were, and None on Windows."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def settled(played: Played) -> int:
    """The index of the first memory sample after the warm-up."""
    return next(i for i, done in enumerate(played.samples) if done >= WARM_UP * len(played.output))


def latency_table(blocks: list[Block], seconds: Tensor) -> Table:
    """Percentiles in milliseconds by block size, beside what real time allows."""
    size = torch.tensor([block.size for block in blocks])
    by_step = torch.tensor([block.by_step for block in blocks])
    budget = size / RATE
    table = Table("samples", "count", "real time", "p50", "p95", "p99", "max", "late")
    for column in table.columns[1:]:
        column.justify = "right"

    def row(name: str, chosen: Tensor) -> None:
        if not chosen.any():
            return
        allowed = [f"{1000 * edge:.3g}" for edge in (budget[chosen].min(), budget[chosen].max())]
        percentiles = 1000 * seconds[chosen].quantile(torch.tensor([0.5, 0.95, 0.99, 1.0], dtype=torch.float64))
        late = (seconds > budget)[chosen].double().mean().item()
        table.add_row(
            name,
            f"{int(chosen.sum())}",
            " to ".join(dict.fromkeys(allowed)),
            *(f"{value:.2f}" if value < 10 else f"{value:.0f}" for value in percentiles.tolist()),
            f"{late:.1%}",
        )

    row("1, by step", by_step)
    edges = (1, 16, 64, 256, 1024, MAX_BLOCK + 1)
    for low, high in itertools.pairwise(edges):
        row(f"{low} to {high - 1}", ~by_step & (size >= low) & (size < high))
    return table


def draw(path: Path, evaluation: Evaluation, blocks: list[Block], played: Played, in_c: RunInC | None) -> None:
    """An excerpt across the border of two chunks, latency against block size, memory over the stream."""
    blue, orange, green, grey = "#1f6fb2", "#d9622b", "#2a8c5a", "#9aa3ad"
    figure = Figure(figsize=(10, 7), layout="constrained", facecolor="white")
    grid = figure.add_gridspec(2, 2)
    wave, latency, memory = (figure.add_subplot(place) for place in (grid[0, :], grid[1, 0], grid[1, 1]))

    chunk, length = evaluation.chunk, evaluation.target.shape[1]
    reach = min(400, chunk)
    borders = range(chunk, length, chunk)
    around = torch.stack([evaluation.target[:, l - reach : l + reach].square().sum(-1) for l in borders])
    loudest, row = divmod(int(around.argmax()), ROWS)
    excerpt = slice(borders[loudest] - reach, borders[loudest] + reach)
    t = 1000 * torch.arange(-reach, reach) / RATE
    wave.plot(t, evaluation.target[row, excerpt], color=grey, linewidth=5, alpha=0.6, label="target")
    wave.plot(t, evaluation.reset[row, excerpt], color=orange, linewidth=1.2, label="state reset at each chunk")
    wave.plot(t, evaluation.carried[row, excerpt], color=blue, linewidth=1.6, label="state carried on")
    wave.axvline(0, ymax=0.85, color="black", linewidth=1, linestyle=":")
    wave.set_title("Held-out audio around the loudest border of two chunks (dotted)", loc="left")
    wave.set_xlabel("ms after the border")
    wave.margins(x=0)
    low, high = wave.get_ylim()
    wave.set_ylim(low, high + 0.3 * (high - low))
    wave.legend(frameon=False, loc="upper left", ncols=3)

    size = torch.tensor([block.size for block in blocks])
    by_step = torch.tensor([block.by_step for block in blocks])
    milliseconds = 1000 * played.seconds
    for chosen, colour, name in ((~by_step, blue, "prefill"), (by_step, orange, "step")):
        latency.scatter(size[chosen], milliseconds[chosen], s=6, color=colour, alpha=0.3, linewidths=0, label=name)
    allowed = torch.tensor([1, MAX_BLOCK])
    latency.plot(allowed, 1000 * allowed / RATE, color="black", linewidth=1, label="real time")
    if in_c is not None:
        in_steps = 1000 * in_c.seconds.median().item() * allowed
        latency.plot(allowed, in_steps, color=green, linewidth=2, label="steps in C")
    latency.set_xscale("log", base=2)
    latency.set_yscale("log")
    latency.xaxis.set_major_formatter("{x:g}")
    latency.yaxis.set_major_formatter("{x:g}")
    latency.set_title("Latency of a block, ms", loc="left")
    latency.set_xlabel("samples in the block")
    low, high = latency.get_ylim()
    latency.set_ylim(low, 8 * high)  # room for the legend
    for handle in latency.legend(frameon=False, loc="upper left", markerscale=3, ncols=2).legend_handles:
        handle.set_alpha(1)

    if played.memory:
        mebibytes = [used / 2**20 for used in played.memory]
        memory.plot([done / 1000 for done in played.samples], mebibytes, color=blue, linewidth=2)
        memory.axvline(WARM_UP * len(played.output) / 1000, color="black", linewidth=1, linestyle=":")
        memory.set_ylim(0, 1.2 * max(mebibytes))
    else:
        memory.text(0.5, 0.5, "not measured on this system", ha="center", transform=memory.transAxes)
    memory.set_xlim(0, len(played.output) / 1000)
    memory.set_title("Resident memory, MiB (dotted: end of warm-up)", loc="left")
    memory.set_xlabel("thousands of samples streamed")

    for axes in (wave, latency, memory):
        axes.grid(color="#e4e7eb")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle("A learnt audio effect, from state to state", fontweight="bold")
    save_figure(path, figure, dpi=120)


def fit(model: S4SequenceModel, checkpoint: Path, arguments: dict[str, Any], console: Console, **settings: Any) -> None:
    """Train, show the progress, and keep the checkpoint of the pass with the lowest error."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    start, processor = time.perf_counter(), time.process_time()
    lowest = math.inf
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("training", total=settings["passes"])
        for done, error in enumerate(train(model, **settings), start=1):
            if not math.isfinite(error):
                raise click.ClickException(f"the model diverged in pass {done}; try a lower --lr")
            if error < lowest:
                save_checkpoint(checkpoint, model, arguments)
                lowest = error
            progress.print(f"pass {done:3}   error in training {error:.2%} of the signal's energy")
            progress.advance(task)
    elapsed, busy = time.perf_counter() - start, time.process_time() - processor
    console.print(f"trained in {elapsed:.0f} s, {busy:.0f} s of processor time")


def effect_model(checkpoint: Path) -> S4SequenceModel:
    try:
        model = load_checkpoint(checkpoint)
        if model.task != "regression" or model.d_input != 1:
            raise ValueError(f"it is for {model.task} of {model.d_input} inputs")
    except (SafetensorError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise click.BadParameter(f"{checkpoint} holds no audio effect: {reason}", param_hint="--checkpoint") from error
    return model


def report(
    evaluation: Evaluation,
    blocks: list[Block],
    played: Played,
    offline: Tensor,
    reference: Tensor,
    in_c: RunInC | None,
    console: Console,
) -> None:
    """Print what was measured; offline and reference are one pass over the whole in float32 and in float64."""
    carried, reset = (error_to_signal(y, evaluation.target) for y in (evaluation.carried, evaluation.reset))
    console.print("error on held-out audio, of the signal's energy:")
    console.print(f"    {carried:.2%} with the state carried on, {reset:.1%} reset every {evaluation.chunk} samples")
    linear = error_to_signal(evaluation.linear, evaluation.target)
    console.print(f"    {linear:.1%} by the best linear filter of {TAPS} samples, chosen on this very audio")
    peak = reference.abs().max()
    apart, error = (((played.output - whole).abs().max() / peak).item() for whole in (offline, reference))
    single = sum(block.by_step for block in blocks)
    console.print(f"streamed {len(offline):,} samples: {len(blocks) - single:,} blocks and {single:,} single steps")
    console.print("    largest difference, of the peak:")
    console.print(f"        {apart:.1e} from one pass over the whole, {error:.1e} from the same in float64")
    state = sum(t.numel() * t.element_size() for t in (*played.state.blocks, played.state.pooled, played.state.steps))
    console.print(f"    the state between two blocks: {state:,} bytes")
    if played.memory:
        after = played.memory[settled(played) :]
        console.print(
            f"    resident memory: {after[0] / 2**20:.1f} MiB after {WARM_UP:.0%} of it, "
            f"{(max(after) - after[0]) / 2**20:+.2f} MiB at most from there on"
        )
    else:
        console.print("    resident memory: cannot be measured on this system")
    load = played.seconds.sum().item() / (len(offline) / RATE)
    console.print(
        latency_table(blocks, played.seconds),
        f"milliseconds; late: took longer than the block lasts; busy {load:.1%} of the time",
        sep="\n",
    )
    if in_c is None:
        console.print("its step in C: not measured, for want of a C compiler and POSIX's clock")
        return
    ordered = 1e6 * in_c.seconds.sort().values
    middle, late = (ordered[int(q * (len(ordered) - 1))].item() for q in (0.5, 0.99))
    difference = ((in_c.output - reference).abs().max() / peak).item()
    console.print(
        f"its step in C: {middle:.1f} us a sample (p99 {late:.1f}), {1e6 / RATE / middle:.0f} times as fast as real "
        f"time, {difference:.1e} of the peak from float64, a state of {in_c.state_bytes:,} bytes"
    )


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--layer", type=click.Choice(list(RATES)), default="s4d", help="Which model to train.")
@click.option("--passes", type=COUNT, default=20, help=f"Over {ROWS} new recordings of {SECONDS} s each.")
@click.option("--chunk", type=COUNT, default=1024, help="Samples per training step; gradients end there.")
@click.option("--carry/--no-carry", default=True, help="Whether training carries the state from chunk to chunk.")
@click.option("--d-model", type=COUNT, default=32, help="Features per layer.")
@click.option("--d-state", type=COUNT, default=8, help="State size per feature, even.")
@click.option("--layers", type=COUNT, default=2, help="Number of blocks.")
@click.option("--lr", type=float, callback=positive, help="Highest learning rate.  [default: 0.02; s4: 0.01]")
@click.option("--ssm-lr", type=float, callback=positive, help="The same for dt, A and B.  [default: 0.01; s4: 0.005]")
@click.option(
    "--checkpoint",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Of an earlier run: train nothing, and stream it in a process whose memory is its own.",
)
@click.option("--samples", type=COUNT, default=1_000_000, help="How many to stream.")
@click.option("--seed", type=SEED, default=0, help="Of the weights, audio and blocks.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default="runs/stream", help="Where the results go."
)
@click.option("--smoke", is_flag=True, help="A tiny model and a short stream: does everything work? Takes seconds.")
def main(
    layer: str,
    passes: int,
    chunk: int,
    carry: bool,
    d_model: int,
    d_state: int,
    layers: int,
    lr: float | None,
    ssm_lr: float | None,
    checkpoint: Path | None,
    samples: int,
    seed: int,
    out: Path,
    smoke: bool,
) -> None:
    """Learn an audio effect chunk by chunk, then run it live over a million samples."""
    seconds = float(SECONDS)
    if smoke:
        passes, d_model, d_state, layers, samples, seconds = 2, 8, 4, 1, 20_000, 1.0
    s4_fast.keep_pages()  # this program owns its memory, so let it keep what it frees
    # oneDNN remembers up to 1024 shapes: tens of MiB while blocks of ever new sizes arrive, and no faster here.
    torch.backends.mkldnn.enabled = False
    make_folder(out)
    console = Console(highlight=False, markup=False)
    if checkpoint is None:
        arguments = {
            "d_input": 1,
            "d_model": d_model,
            "d_output": 1,
            "n_layers": layers,
            "d_state": d_state,
            "task": "regression",
            "layer": layer,
            # A feature remembers for about 2 / dt samples: from less than a millisecond to 0.4 s.
            "dt_min": 3e-4,
            "dt_max": 0.3,
        }
        torch.manual_seed(seed)
        checkpoint = out / f"{layer}.safetensors"
        training = {
            "passes": passes,
            "chunk": chunk,
            "carry": carry,
            "lr": RATES[layer][0] if lr is None else lr,
            "ssm_lr": RATES[layer][1] if ssm_lr is None else ssm_lr,
        }
        fit(build(arguments), checkpoint, arguments, console, **training, seed=seed, seconds=seconds)

    live, whole = effect_model(checkpoint), effect_model(checkpoint)
    console.print(f"{checkpoint}, reloaded", style="bold")
    generator = Generator().manual_seed(seed)
    blocks = uneven_blocks(samples, generator)
    signal = dry_audio(1, samples, generator)[0]
    played = play(live, signal, blocks)
    # By models of their own: an S4 layer that has seen a long sequence keeps the long kernel.
    exact = effect_model(checkpoint).double()
    with torch.inference_mode():
        offline = whole(signal[None, :, None])[0, :, 0]
        reference = exact(signal.double()[None, :, None])[0, :, 0]
    evaluation = evaluate(whole, chunk, seconds)
    in_c = run_in_c(live, signal, out / "effect.c")
    report(evaluation, blocks, played, offline, reference, in_c, console)
    draw(out / "stream.png", evaluation, blocks, played, in_c)
    console.print(f"picture: {out / 'stream.png'}, the step in C: {out / 'effect.c'}")


if __name__ == "__main__":
    run_command(main)
