# %% [markdown]
# # S4 and S4D layers: a quick start
#
# Make a layer, run it, step it, train it, and see what it costs. What goes on inside is the subject of
# [01, the basics](01_ssm_basics.ipynb); the papers are [S4](https://arxiv.org/abs/2111.00396),
# [S4D](https://arxiv.org/abs/2206.11893) and, for the initial step sizes,
# [How to train your HiPPO](https://arxiv.org/abs/2206.12037).

# %%
from functools import partial

import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn

import s4_fast
from s4_fast import S4DLayer, S4Layer, S4SequenceModel, fft_conv, get_ssm_param_groups
from support import BROWN, GREY, MODEL_COLOURS, SMOKE, milliseconds, show

s4_fast.keep_pages()
torch.manual_seed(0)
print("s4_fast", s4_fast.__version__, "with PyTorch", torch.__version__)

# %% [markdown]
# ## 1. A layer
#
# `S4DLayer` and `S4Layer` hold one state space model per feature. They are linear, and features do not mix; that is the
# block's business (below). `d_state` is the size of the state per feature, stored as half as many complex numbers.

# %%
layers = {"S4D": S4DLayer(d_model=64, d_state=64), "S4": S4Layer(d_model=64, d_state=64)}
for layer in layers.values():
    print(layer)
    for parameter, value in layer.named_parameters():
        print(f"    {parameter:14} {tuple(value.shape)!s:16} {value.numel():6,}")

# %% [markdown]
# `inv_dt` is the logarithm of each feature's step size; `A_real` and `A_imag` make $A = -e^{a} - ib$, which decays
# whatever the optimiser does; `B` and `C` are complex numbers as real pairs, `D` is the skip, and `P` is S4's low-rank
# correction.
#
# ## 2. Forward
#
# Inputs are (batch, length, features), and so are outputs, for any length; the same layer takes both lengths here. The
# last line tells which way an S4D layer goes through a sequence of this shape: by convolution, or by a scan that
# computes the same.

# %%
for length in (256, 1000):
    u = torch.randn(8, length, 64)
    for name, layer in layers.items():
        with torch.no_grad():
            y = layer(u)
        assert y.shape == u.shape
        print(f"{name:3} {tuple(u.shape)} -> {tuple(y.shape)}")
print(layers["S4D"].explain(u))

# %% [markdown]
# What a layer computes is a convolution with these kernels, one per feature. How far a feature looks back is decided by
# its step size, which is drawn between `dt_min` and `dt_max` and then learnt.

# %%
figure, panels = plt.subplots(1, 2, figsize=(10, 3.2), sharey=True)
for (name, layer), axes in zip(layers.items(), panels, strict=True):
    with torch.no_grad():
        kernels, dt = layer.kernel.impulse_response(1000)[0], layer.kernel.dt()[:, 0]
    order = dt.argsort()
    for feature in (order[-1], order[len(order) // 2], order[0]):
        kernel = kernels[feature]
        axes.semilogx(range(1, 1001), kernel / kernel.abs().max(), label=f"step size {dt[feature]:.3f}")
    axes.set(title=f"{name}: three of the 64 kernels", xlabel="lag + 1")
    axes.legend()
panels[0].set_ylabel("kernel, scaled to 1")
show(figure, "02_kernels")

# %% [markdown]
# ## 3. Stepping
#
# The same layer is a recurrence: a state of fixed size, one sample in, one sample out. This is how to generate, or to
# answer a stream. Both ways must agree, and how well they do is measured here, step by step.


# %%
@torch.no_grad()
def stepped(layer: S4DLayer | S4Layer, u: Tensor) -> Tensor:
    state, outputs = layer.init_state(batch=u.shape[0]), []
    for sample in u.unbind(1):
        y, state = layer.step(sample, state)
        outputs.append(y)
    return torch.stack(outputs, 1)


u = torch.randn(4, 100 if SMOKE else 1000, 64)
figure, (outputs, differences) = plt.subplots(1, 2, figsize=(10, 3.2))
for name, layer in layers.items():
    with torch.no_grad():
        whole = fft_conv(u.mT, layer.kernel.impulse_response(u.shape[1])[0], layer.D).mT
        assert torch.allclose(layer(u), whole, atol=1e-4)
    steps = stepped(layer, u)
    difference = (steps - whole).abs().amax((0, 2))
    largest, scale = float(difference.max()), float(whole.abs().max())
    print(
        f"{name:3}: {u.shape[1]} steps differ from the convolution by at most {largest:.1e}; outputs reach {scale:.1f}"
    )
    assert largest < 1e-5 * scale
    if name == "S4D":
        outputs.plot(whole[0, :80, 0], color=GREY, linewidth=4, alpha=0.5, label="convolution")
        outputs.plot(steps[0, :80, 0], color=MODEL_COLOURS[name], linewidth=1, label="steps")
    differences.semilogy(difference, color=MODEL_COLOURS[name], linewidth=0.7, label=name)
outputs.set(title="S4D: one feature, both ways", xlabel="sample", ylabel="output")
differences.set(title="Largest difference at each step", xlabel="sample", ylabel="absolute difference")
outputs.legend()
differences.legend()
show(figure, "02_stepping")

# %% [markdown]
# A prompt need not be stepped through: `prefill` takes it at once and returns the state. The same holds for whole
# models, which also carry what mean pooling has seen. To generate this way, sample by sample, is how
# [SaShiMi](https://arxiv.org/abs/2202.09729) makes audio with S4.

# %%
model = S4SequenceModel(d_input=3, d_model=32, d_output=5, n_layers=2).eval()
u = torch.randn(2, 200, 3)
with torch.no_grad():
    whole = model(u)
    y, state = model.prefill(u[:, :150])
    for sample in u[:, 150:].unbind(1):
        y, state = model.step(sample, state)
difference = float((y - whole).abs().max())
print(f"150 samples at once, then 50 steps: logits {tuple(y.shape)} differ from one pass by at most {difference:.1e}")
assert difference < 1e-5

# %% [markdown]
# ## 4. What the optimiser should know
#
# The step sizes and $A$, $B$ and $P$ decide how far the model remembers. They are sensitive, and are usually given a
# smaller learning rate and no weight decay. They carry a mark, and `get_ssm_param_groups` sorts by it.

# %%
model = S4SequenceModel(d_input=1, d_model=32, d_output=1, n_layers=2, task="regression")
groups = get_ssm_param_groups(model, lr=0.004, ssm_lr=0.001, weight_decay=0.01)
names = {parameter: name for name, parameter in model.named_parameters()}
for group in groups:
    count = sum(parameter.numel() for parameter in group["params"])
    kinds = sorted({names[parameter].split(".", 2)[-1] for parameter in group["params"]})
    print(f"lr {group['lr']}, weight decay {group['weight_decay']}: {count:,} numbers in {', '.join(kinds)}")
assert [group["lr"] for group in groups] == [0.004, 0.001]
assert sum(len(group["params"]) for group in groups) == len(names)

# %% [markdown]
# ## 5. Training
#
# A task that needs memory: repeat white noise with a delay of 20 samples. White noise has no pattern to guess from, so
# whoever does better than an error of 1 remembers. The loop is the usual one.

# %%
delay, length, steps = 20, 128, 20 if SMOKE else 300
generator = torch.Generator().manual_seed(1)


def batch() -> tuple[Tensor, Tensor]:
    u = torch.randn(32, length, 1, generator=generator)
    return u, nn.functional.pad(u, (0, 0, delay, 0))[:, :length]


def error(y: Tensor, target: Tensor) -> Tensor:
    """Mean squared, from where there is something to repeat."""
    return nn.functional.mse_loss(y[:, delay:], target[:, delay:])


optimizer = torch.optim.AdamW(groups)
history = []
for _ in range(steps):
    u, target = batch()
    loss = error(model(u), target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    history.append(loss.item())

model.eval()
u, target = batch()
with torch.no_grad():
    y = model(u)
tested = float(error(y, target))
print(f"loss {history[0]:.2f} at first, {history[-1]:.3f} after {steps} steps; on new noise {tested:.3f}")
assert history[-1] < history[0]
assert SMOKE or tested < 0.1

figure, (curve, signals) = plt.subplots(1, 2, figsize=(10, 3.2))
curve.semilogy(history, color=MODEL_COLOURS["S4D"])
curve.axhline(1, color=GREY, linestyle=":", label="always answering 0")
curve.set(title="Training loss", xlabel="step", ylabel="mean squared error")
curve.legend()
signals.plot(target[0, :, 0], color=GREY, linewidth=4, alpha=0.5, label="the input, delayed")
signals.plot(y[0, :, 0], color=MODEL_COLOURS["S4D"], linewidth=1, label="S4D")
signals.set(title="New noise", xlabel="sample", xlim=(0, 100))
signals.legend()
show(figure, "02_training")

# %% [markdown]
# ## 6. What it costs, beside a Transformer
#
# Four blocks of width 64 against the encoder of [Attention is all you need](https://arxiv.org/abs/1706.03762), an
# `nn.TransformerEncoder` with 4 layers, 4 heads and a feed-forward of 256. Both without what comes before and after
# them.


# %%
def s4_blocks(d_model: int, layer: str, n_layers: int = 4, **options: int) -> nn.Module:
    return S4SequenceModel(1, d_model, 1, n_layers, layer=layer, **options).blocks


def transformer(d_model: int, n_layers: int = 4) -> nn.Module:
    layer = nn.TransformerEncoderLayer(d_model, nhead=4, dim_feedforward=4 * d_model, batch_first=True)
    return nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False)


PARTS = {
    "state space model": (".layer.",),
    "gated mix": (".mix.",),
    "attention": (".self_attn.",),
    "feed-forward": (".linear1.", ".linear2."),
    "norms": (".norm.", ".norm1.", ".norm2."),
}


def breakdown(model: nn.Module) -> dict[str, int]:
    """Parameters by component; each belongs to exactly one."""
    counts = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        (part,) = (part for part, marks in PARTS.items() if any(mark in f".{name}" for mark in marks))
        counts[part] += parameter.numel()
    return counts


models = {"S4D": s4_blocks(64, "s4d"), "S4": s4_blocks(64, "s4"), "Transformer": transformer(64)}
runs = {name: model if name == "Transformer" else nn.Sequential(*model) for name, model in models.items()}
parts = {name: breakdown(model) for name, model in models.items()}
totals = {name: sum(counts.values()) for name, counts in parts.items()}
for name, counts in parts.items():
    shown = ", ".join(f"{part} {count:,}" for part, count in counts.items() if count)
    print(f"{name:11} {totals[name]:7,}: {shown}")
for name in ("S4D", "S4"):
    assert totals[name] < totals["Transformer"]
    print(f"{name} has {totals['Transformer'] / totals[name]:.2f} times fewer parameters than the Transformer")

figure, axes = plt.subplots(figsize=(8, 2.8))
left = dict.fromkeys(models, 0)
for part in PARTS:
    widths = [parts[name][part] for name in models]
    axes.barh(list(models), widths, left=list(left.values()), label=part)
    left = {name: left[name] + width for name, width in zip(models, widths, strict=True)}
axes.invert_yaxis()
axes.set(title="Parameters by component, d_model = 64, 4 layers", xlabel="parameters")
axes.xaxis.set_major_formatter("{x:,.0f}")
axes.legend(loc="upper right", fontsize=8)
show(figure, "02_breakdown")

# %% [markdown]
# How this scales with the width. A state space model has a fixed number of parameters per feature, so it grows in
# proportion to `d_model`, and its block's mix with the square. In a Transformer nearly all grows with the square. With
# `n_ssm=1` all features of a layer share one $A$ and $B$, and keep only step sizes and $C$ of their own.

# %%
sizes = (32, 64, 128, 256)
variants = {
    "S4D": lambda d: s4_blocks(d, "s4d"),
    "S4": lambda d: s4_blocks(d, "s4"),
    "Transformer": transformer,
    "S4D, n_ssm=1": lambda d: s4_blocks(d, "s4d", n_ssm=1),
}
scaling = {name: [sum(p.numel() for p in make(d).parameters()) for d in sizes] for name, make in variants.items()}
ratios = {
    name: [transformer / own for own, transformer in zip(counts, scaling["Transformer"], strict=True)]
    for name, counts in scaling.items()
}

print("d_model      " + "".join(f"{d:>10}" for d in sizes))
for name, counts in scaling.items():
    print(f"{name:13}" + "".join(f"{count:10,}" for count in counts))
print("times fewer than the Transformer")
for name in variants:
    if name != "Transformer":
        print(f"{name:13}" + "".join(f"{ratio:10.2f}" for ratio in ratios[name]))
        assert ratios[name][-1] > ratios[name][0]

figure, (bars, lines) = plt.subplots(1, 2, figsize=(10, 3.4))
for i, (name, colour) in enumerate(zip(variants, (*MODEL_COLOURS.values(), BROWN), strict=True)):
    bars.bar([j + 0.2 * (i - 1.5) for j in range(len(sizes))], scaling[name], 0.2, color=colour, label=name)
    if name != "Transformer":
        lines.plot(sizes, ratios[name], "o-", color=colour, label=name)
bars.set_xticks(range(len(sizes)), [str(d) for d in sizes])
bars.set(title="Parameters", xlabel="d_model", ylabel="parameters")
bars.yaxis.set_major_formatter("{x:,.0f}")
bars.legend(fontsize=8)
lines.set_xscale("log", base=2)
lines.set_xticks(sizes, [str(d) for d in sizes])
lines.set(title="Transformer's parameters / these", xlabel="d_model", ylabel="ratio", ylim=(0, None))
lines.axhline(1, color=GREY, linestyle=":")
lines.legend(fontsize=8)
show(figure, "02_scaling")

# %% [markdown]
# Parameters are not time. Below is the forward pass of the three without gradients, batch 4, over the length of the
# sequence: the median of several calls, in processor time on one thread of the machine that made this page.
#
# In evaluation mode `nn.TransformerEncoder` takes a path of its own, which PyTorch calls fast. On a CPU it is the slow
# one at these lengths: it writes down all products of queries and keys, where the other path has the fused attention
# that is also used in training, as in [FlashAttention](https://arxiv.org/abs/2205.14135). A fair comparison switches it
# off. Both are measured, so that you see what a careless benchmark would add to the ratio.

# %%
lengths = (32, 64) if SMOKE else (128, 256, 512, 1024, 2048)


def forward_times(model: nn.Module) -> list[float]:
    with torch.inference_mode():
        return [milliseconds(partial(model, torch.randn(4, L, 64))) for L in lengths]


default_path = forward_times(models["Transformer"].eval())
torch.backends.mha.set_fastpath_enabled(False)
times = {name: forward_times(model.eval()) for name, model in runs.items()}

print("length          " + "".join(f"{L:9}" for L in lengths))
for name, curve in times.items():
    print(f"{name:16}" + "".join(f"{t:9.1f}" for t in curve), "ms")
print(f"{'  as it comes':16}" + "".join(f"{t:9.1f}" for t in default_path), "ms")

figure, (curves, bars) = plt.subplots(1, 2, figsize=(10, 3.4), width_ratios=(3, 2))
for name, curve in times.items():
    curves.loglog(lengths, curve, "o-", color=MODEL_COLOURS[name], label=name)
curves.loglog(lengths, default_path, "o:", color=MODEL_COLOURS["Transformer"], label="Transformer as it comes")
curves.set(title="Forward pass, batch 4, d_model = 64, 4 layers", xlabel="length", ylabel="milliseconds")
curves.set_xticks(lengths, [str(L) for L in lengths])
curves.minorticks_off()
curves.legend(fontsize=8)
longest = {**{name: curve[-1] for name, curve in times.items()}, "as it comes": default_path[-1]}
colours = [*(MODEL_COLOURS[name] for name in times), MODEL_COLOURS["Transformer"]]
drawn = bars.bar(longest.keys(), longest.values(), color=colours, hatch=["", "", "", "//"], edgecolor="white")
bars.bar_label(drawn, fmt="{:.0f}")
bars.set(title=f"The same at length {lengths[-1]}", ylabel="milliseconds")
bars.tick_params(axis="x", labelsize=8)
show(figure, "02_time")

growth = {name: curve[-1] / curve[0] for name, curve in times.items()}
takes = ", ".join(f"{name} {factor:.0f}" for name, factor in growth.items())
print(f"{lengths[-1] // lengths[0]} times the length takes {takes} times as long")
fair, careless = (curve[-1] / times["S4D"][-1] for curve in (times["Transformer"], default_path))
print(f"at length {lengths[-1]} the Transformer takes {fair:.0f} times as long as S4D;", end=" ")
print(f"as it comes it would be {careless:.0f}, which is {careless / fair:.1f} times that")

# %% [markdown]
# Attention compares each sample with each other one; the state space models do not. At the short end the bars would be
# close: there a Transformer is a few products of matrices, which is what processors do best.
# [03](03_sequence_classification.ipynb) measures where the lines cross in training, and says what else speaks for a
# Transformer.

# %% [markdown]
# ## Where to go from here
#
# - [03, sequence classification](03_sequence_classification.ipynb): a task with a long gap, against a Transformer.
# - [04, time series](04_time_series.ipynb): forecasting, and generating from the state.
