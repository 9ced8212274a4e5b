# %% [markdown]
# # Time series: predict the next sample, then run free
#
# A state space model is at home with time series: it is causal, it can be trained on whole sequences at once, and
# afterwards it takes one sample at a time with a state of fixed size. This tutorial
#
# 1. trains [S4D](https://arxiv.org/abs/2206.11893) and a causal [Transformer](https://arxiv.org/abs/1706.03762) to
#    predict the next sample of noisy sinusoids, and compares both with the best that is possible,
# 2. lets the trained model run free, as [SaShiMi](https://arxiv.org/abs/2202.09729) does for audio: `prefill` reads the
#    past, `step` continues it. It fades, and we find out why,
# 3. forecasts a real series, the carbon dioxide at Mauna Loa, against seasonal-naive forecasts.

# %%
import copy
import math
import time
from typing import NamedTuple

import statsmodels.api as sm
import torch
from matplotlib import pyplot as plt
from torch import Generator, Tensor, nn
from torch.nn.functional import mse_loss

import s4_fast
from s4_fast import S4SequenceModel, fft_conv, get_ssm_param_groups
from support import GOLD, GREY, INK, MODEL_COLOURS, PURPLE, ROSE, SMOKE, milliseconds, show

s4_fast.keep_pages()

LENGTH, AHEAD = (40, 20) if SMOKE else (200, 200)
TRAIN, TEST = (32, 16) if SMOKE else (3000, 500)
D_MODEL, D_STATE, LAYERS = (8, 8, 1) if SMOKE else (32, 16, 2)
EPOCHS, BATCH = (2, 16) if SMOKE else (15, 50)
TAIL = LENGTH // 4  # the last steps, where a model has seen enough to know the sequence

# %% [markdown]
# ## 1. Noisy sinusoids
#
# Each of three channels is a sinusoid with a fixed period. Its amplitude, between 0.5 and 1, and its phase are drawn
# anew for every sequence, and every sample has noise with a standard deviation of 0.1. The model sees the noisy samples
# up to $l$, and its target is the noisy sample $l + 1$.

# %%
PERIODS, NOISE = torch.tensor([12.0, 20.0, 35.0]), 0.1


def sinusoids(count: int, length: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Clean and noisy sequences, (count, length, 3) each."""
    phase, height = (torch.rand(count, 1, 3, generator=generator) for _ in range(2))
    angle = 2 * math.pi * (torch.arange(length)[:, None] / PERIODS + phase)
    clean = (0.5 + 0.5 * height) * angle.sin()
    return clean, clean + NOISE * torch.randn(clean.shape, generator=generator)


generator = Generator().manual_seed(0)
_, train_u = sinusoids(TRAIN, LENGTH + 1, generator)
clean, noisy = sinusoids(TEST, LENGTH + 1 + AHEAD, generator)
test_u, test_next = noisy[:, :LENGTH], noisy[:, 1 : LENGTH + 1]

figure, panels = plt.subplots(3, 1, figsize=(10, 4.2), sharex=True, sharey=True)
for channel, axes in enumerate(panels):
    axes.plot(test_u[0, :, channel], ".", color=GREY, markersize=4, label="noisy samples")
    axes.plot(clean[0, :LENGTH, channel], color=INK, label="without the noise")
    axes.set_ylabel(f"channel {channel}")
figure.suptitle("The first test sequence", x=0.02, ha="left")
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
panels[-1].set_xlabel("step")
show(figure, "04_data")

# %% [markdown]
# ### What is the best that is possible?
#
# The noise of the next sample cannot be predicted by anyone, so no mean squared error can be below $\sigma^2 = 0.01$.
# Early in a sequence even that is out of reach, because amplitude and phase have to be found out from noisy samples.
#
# The best *linear* predictor that is told the three periods, the noise and the spread of amplitudes has an error that
# can be written down. A sinusoid is $f_l^\top a$ with $f_l = (\sin, \cos)(2\pi l / P)$ and two unknown coefficients $a$
# of variance $v$, and after the samples $0 \dots l$
#
# $$\mathrm{MSE}_l = \sigma^2 + f_{l+1}^\top \Big(\frac{1}{v} I + \frac{1}{\sigma^2} \sum_{j \le l} f_j f_j^\top
# \Big)^{-1} f_{l+1} .$$

# %%
angle = 2 * math.pi * torch.arange(LENGTH + 1)[:, None] / PERIODS.double()
f = torch.stack([angle.sin(), angle.cos()], -1)  # (LENGTH + 1, 3, 2)
seen = (f[:-1, :, :, None] * f[:-1, :, None, :]).cumsum(0) / NOISE**2
v = (1 - 0.5**3) / (3 * 0.5) / 2  # half the mean square of an amplitude that is uniform on [0.5, 1]
uncertainty = torch.linalg.inv(torch.eye(2, dtype=torch.float64) / v + seen)
best = NOISE**2 + torch.einsum("lci,lcij,lcj->l", f[1:], uncertainty, f[1:]) / 3
print(f"best linear predictor: {best.mean():.4f} over all steps, {best[-TAIL:].mean():.4f} over the last {TAIL}")

# %% [markdown]
# ### The models
#
# `S4SequenceModel` with `task="regression"` has an output at every step. The Transformer has the same width and number
# of layers, learned positional embeddings, and a mask that hides the future. Both train alike.

# %%


class CausalTransformer(nn.Module):
    """(batch, length, 3) -> (batch, length, 3), for lengths up to LENGTH."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, D_MODEL)
        self.position = nn.Parameter(0.02 * torch.randn(LENGTH, D_MODEL))
        layer = nn.TransformerEncoderLayer(
            D_MODEL,
            nhead=2,
            dim_feedforward=4 * D_MODEL,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.blocks = nn.TransformerEncoder(layer, LAYERS, norm=nn.LayerNorm(D_MODEL), enable_nested_tensor=False)
        self.head = nn.Linear(D_MODEL, 3)

    def forward(self, u: Tensor) -> Tensor:
        length = u.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        return self.head(self.blocks(self.encoder(u) + self.position[:length], mask=mask, is_causal=True))


torch.manual_seed(0)
s4d = S4SequenceModel(3, D_MODEL, 3, LAYERS, D_STATE, task="regression")
transformer = CausalTransformer()
models = {"S4D": s4d, "Transformer": transformer}
parameters = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
for name, count in parameters.items():
    print(f"{name:12}{count:7,} parameters")

# %% [markdown]
# ### Training

# %%


class Epoch(NamedTuple):
    loss: float  # mean squared error over the epoch's training batches
    test: float  # on the test sequences, after the epoch
    seconds: float  # of processor time, for its training steps


@torch.no_grad()
def predict(model: nn.Module) -> Tensor:
    """The predictions (TEST, LENGTH, 3) of `test_next`."""
    model.eval()
    return torch.cat([model(u) for u in test_u.split(BATCH)])


def train(name: str, model: nn.Module) -> list[Epoch]:
    optimizer = torch.optim.AdamW(get_ssm_param_groups(model, lr=0.004, ssm_lr=0.001, weight_decay=0.01))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    torch.manual_seed(0)
    history: list[Epoch] = []
    for epoch in range(1, EPOCHS + 1):
        model.train()
        start, total = time.process_time(), 0.0
        for rows in torch.randperm(TRAIN).split(BATCH):
            loss = mse_loss(model(train_u[rows, :-1]), train_u[rows, 1:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        seconds = time.process_time() - start
        schedule.step()
        history.append(Epoch(total / TRAIN, mse_loss(predict(model), test_next).item(), seconds))
        print(f"{name:12}epoch {epoch:2}   training {history[-1].loss:.4f}   test {history[-1].test:.4f}")
    return history


histories = {name: train(name, model) for name, model in models.items()}

# %% [markdown]
# The seconds are processor time, summed over threads, so that other programs on the machine count less; the bars are
# the median of all epochs, and the thin lines reach from the fastest to the slowest.

# %%
predictions = {name: predict(model) for name, model in models.items()}
errors = {name: (predicted - test_next).square().mean((0, 2)) for name, predicted in predictions.items()}

medians = {name: sorted(epoch.seconds for epoch in history)[EPOCHS // 2] for name, history in histories.items()}

print(f"{'':22}{'MSE':>8}{f'last {TAIL}':>10}{'s per epoch':>13}{'parameters':>12}")
for name in models:
    tail = errors[name][-TAIL:].mean()
    print(f"{name:22}{errors[name].mean():8.4f}{tail:10.4f}{medians[name]:13.1f}{parameters[name]:12,}")
print(f"{'best linear predictor':22}{best.mean():8.4f}{best[-TAIL:].mean():10.4f}")
print(f"{'noise floor':22}{NOISE**2:8.4f}{NOISE**2:10.4f}")
print(f"{'the last sample again':22}{mse_loss(test_u, test_next):8.4f}")

print()
lower, higher = sorted(errors, key=lambda name: float(errors[name].mean()))
print(f"{lower} has the lower test error: {errors[lower].mean() / errors[higher].mean():.2f} times that of {higher}.")
for name, error in errors.items():
    above = error[-TAIL:].mean() / NOISE**2 - 1
    print(f"Over the last {TAIL} steps {name} is {above:.0%} above the noise floor.")
assert SMOKE or errors["S4D"][-TAIL:].mean() < 1.5 * NOISE**2

# %%
figure, (curves, by_step) = plt.subplots(1, 2, figsize=(10, 3.6))
for name, history in histories.items():
    curves.plot(range(1, EPOCHS + 1), [epoch.test for epoch in history], color=MODEL_COLOURS[name], label=name)
    by_step.plot(errors[name], color=MODEL_COLOURS[name], label=name)
by_step.plot(best, color=INK, label="best linear predictor")
for axes in (curves, by_step):
    axes.axhline(NOISE**2, color=GREY, linestyle="--", label="noise floor")
    axes.set(ylabel="mean squared error", ylim=(0, None))
curves.set(title="Test error in training", xlabel="epoch")
by_step.set(title="Test error against what has been seen", xlabel="step")
by_step.legend()
show(figure, "04_errors")

# %%
figure, (times, wrong) = plt.subplots(1, 2, figsize=(10, 3.2))
colours = [MODEL_COLOURS[name] for name in models]
times.bar_label(
    times.bar(list(medians), list(medians.values()), color=colours), fmt="{:.1f}", label_type="center", color="white"
)
for place, history in enumerate(histories.values()):
    seconds = [epoch.seconds for epoch in history]
    times.plot([place, place], [min(seconds), max(seconds)], color=GREY, linewidth=1)
times.set(title="An epoch", ylabel="seconds of processor time")
bars = {**{name: error.mean() for name, error in errors.items()}, "best linear": best.mean(), "noise": NOISE**2}
wrong.bar_label(wrong.bar(list(bars), list(bars.values()), color=[*colours, INK, GREY]), fmt="{:.4f}")
wrong.set(title="Error over all steps of the test sequences", ylabel="mean squared error")
show(figure, "04_time")

# %% [markdown]
# The last 60 steps of four test sequences, by channel:

# %%
last = range(max(0, LENGTH - 60), LENGTH)
figure, panels = plt.subplots(4, 3, figsize=(10, 7), sharex=True, sharey=True)
for row, across in enumerate(panels):
    for channel, axes in enumerate(across):
        axes.plot(last, test_next[row, last, channel], ".", color=GREY, markersize=4, label="the next sample")
        for name, predicted in predictions.items():
            axes.plot(last, predicted[row, last, channel], color=MODEL_COLOURS[name], linewidth=1.1, label=name)
    across[0].set_ylabel(f"sequence {row}")
for channel, axes in enumerate(panels[0]):
    axes.set_title(f"channel {channel}, period {PERIODS[channel]:.0f}")
figure.suptitle("One step ahead", x=0.02, ha="left")
figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
for axes in panels[-1]:
    axes.set_xlabel("step")
show(figure, "04_one_step")

# %% [markdown]
# ### When a Transformer wins
#
# Not here: a sum of sinusoids is what a linear recurrence predicts best, and one that is told the periods is the line
# to beat. Nor is one run at a learning rate chosen for S4D a ranking. A Transformer has the better cards where
#
# - **the past has to be looked up**: when what comes next depends on what followed an earlier event that looked alike,
#   rather than on fixed lags, attention finds that event, however long ago. A state of fixed size has to have kept it,
#   and [this is what it is worst at](https://arxiv.org/abs/2402.01032);
# - **windows are short**: at some dozens of samples attention costs no more than a state space model, as measured in
#   [03](03_sequence_classification.ipynb);
# - **gaps and uneven spacing** matter: attention takes the time of each sample as an input, a recurrence steps from one
#   to the next;
# - **there is a pretrained one** for data like yours.
#
# For strictly periodic series first try what section 3 tries: a forecast by last year's values costs nothing.

# %% [markdown]
# ## 2. Running free
#
# Now the model continues a sequence by itself. `prefill` reads the 200 known samples at once and returns its outputs
# and its state; from then on every output is the next input of `step`. That is the loop inside `generate`.

# %%
with torch.no_grad():
    outputs, state = s4d.prefill(test_u)
    sample, free = outputs[:, -1], []
    for _ in range(AHEAD):
        free.append(sample)
        sample, state = s4d.step(sample, state)
    free = torch.stack(free, 1)  # (TEST, AHEAD, 3)
difference = (free - s4d.generate(test_u, AHEAD)).abs().max().item()
print(f"largest difference from generate: {difference:.1e}")
assert difference < 1e-5

# %%
future = clean[:, LENGTH : LENGTH + AHEAD]
figure, panels = plt.subplots(3, 1, figsize=(10, 4.6), sharex=True, sharey=True)
known, later = torch.arange(LENGTH // 2, LENGTH), torch.arange(LENGTH, LENGTH + AHEAD)
for channel, axes in enumerate(panels):
    axes.plot(known, test_u[0, LENGTH // 2 :, channel], ".", color=GREY, markersize=4, label="known samples")
    axes.plot(later, future[0, :, channel], color=INK, label="the truth without noise")
    axes.plot(later, free[0, :, channel], color=MODEL_COLOURS["S4D"], label="S4D, running free")
    axes.axvline(LENGTH - 0.5, color=GREY, linewidth=1)
    axes.set_ylabel(f"channel {channel}")
figure.suptitle("Continuing the first test sequence", x=0.02, ha="left")
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
panels[-1].set_xlabel("step")
show(figure, "04_free")

# %% [markdown]
# ### Why it fades
#
# The period is kept, the height is not. Two causes come to mind. The model was trained on true samples and is now fed
# its own outputs, so that [error could add to error](https://arxiv.org/abs/1506.03099). Or it is the place: training
# ended at step 200, and here that is where free running begins. The two can be told apart, since free running can begin
# anywhere. Below is the share of the true height that is left, by the place in the sequence, after prompts of different
# lengths; and for true samples all along, which feed back no error at all.


# %%
def height(predicted: Tensor, truth: Tensor) -> Tensor:
    """By step: 1 where the prediction is as high as the truth, 0 where nothing is left of it."""
    return (predicted * truth).sum((0, 2)) / truth.square().sum((0, 2))


prompts = (LENGTH // 5, LENGTH * 3 // 5, LENGTH)
heights = {}  # by place; a model that runs free from a prompt has no height before
for prompt in prompts:
    run = s4d.generate(noisy[:, :prompt], LENGTH + AHEAD - prompt)
    heights[f"free after {prompt} samples"] = prompt, height(run, clean[:, prompt : LENGTH + AHEAD])
with torch.no_grad():
    true_inputs = height(s4d(noisy[:, : LENGTH + AHEAD]), clean[:, 1 : LENGTH + AHEAD + 1])
heights["true samples, one step ahead"] = 1, true_inputs

places = [(LENGTH * k // 5, LENGTH * (k + 1) // 5) for k in range(10) if LENGTH * (k + 1) // 5 <= LENGTH + AHEAD]
print("place                       " + "".join(f"{f'{low} to {high}':>11}" for low, high in places))
for name, (start, share) in heights.items():
    cells = [f"{share[low - start : high - start].mean():11.2f}" if low >= start else " " * 11 for low, high in places]
    print(f"{name:28}" + "".join(cells))

figure, axes = plt.subplots(figsize=(10, 3.2))
styles = ({"color": GOLD, "linewidth": 6}, {"color": INK, "linewidth": 3}, {"color": ROSE}, {"color": GREY})
for (name, (start, share)), style in zip(heights.items(), styles, strict=True):
    axes.plot(range(start, start + len(share)), share, label=name, **style)
axes.axvline(LENGTH, color=INK, linestyle=":")
axes.annotate(" training ended here", (LENGTH, 0.03), color=INK)
axes.set(title="S4D: the share of the height that is left", xlabel="step", ylim=(0, 1.15))
axes.legend(fontsize=8, loc="lower left")
show(figure, "04_fading")

# %% [markdown]
# It is the place. After a short prompt the model runs free for as many steps as it likes, up to the length of its
# training, and loses next to nothing; beyond, even true samples do not help. Feedback only makes it worse there,
# because what is lost is not given back.
#
# The kernels tell the reason. In training no sample was older than 200 steps, so nothing ever asked what they do at
# larger lags. What stands there is added to every later output. Cut off, it does no more harm:


# %%
class Cut(nn.Module):
    """A layer whose kernels end at the length of the training."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, u: Tensor, *state: Tensor, **options: bool) -> Tensor:
        kernel = self.layer.kernel.impulse_response(u.shape[1])[0].clone()
        kernel[:, LENGTH:] = 0
        return fft_conv(u.mT, kernel, self.layer.D).mT


with torch.no_grad():
    kernels = [block.layer.kernel.impulse_response(LENGTH + AHEAD)[0].abs() for block in s4d.blocks]
    cut = copy.deepcopy(s4d)
    for block in cut.blocks:
        block.layer = Cut(block.layer)
    cut_height = height(cut(noisy[:, : LENGTH + AHEAD]), clean[:, 1 : LENGTH + AHEAD + 1])
shares = ", ".join(f"{float(kernel[:, LENGTH:].sum() / kernel.sum()):.0%}" for kernel in kernels)
print(f"share of the kernels' absolute sum at lags that no training has seen, by layer: {shares}")
print(f"height left over the last {TAIL} steps, one step ahead: {true_inputs[-TAIL:].mean():.2f},", end=" ")
print(f"with kernels that are cut {cut_height[-TAIL:].mean():.2f}")
assert SMOKE or cut_height[-TAIL:].mean() > 0.9

# %% [markdown]
# So train at the length at which you will run, or do not run longer than you trained. The second is easily had: read
# the last 100 samples again, own outputs or not, from an empty state, and go on from there.

# %%
again = test_u
while again.shape[1] < LENGTH + AHEAD:
    again = torch.cat([again, s4d.generate(again[:, -LENGTH // 2 :], LENGTH // 2)], 1)
again = again[:, LENGTH : LENGTH + AHEAD]

# %% [markdown]
# The error of predicting zero, which is the variance of the clean signal, marks where a forecast is worth nothing.

# %%
ways = {"state carried on": (free, "-"), "last samples read again": (again, "--")}
by_horizon = {name: (run - future).square().mean((0, 2)) for name, (run, _) in ways.items()}
variance = future.square().mean().item()
figure, axes = plt.subplots(figsize=(10, 3.2))
for name, error in by_horizon.items():
    axes.semilogy(range(1, AHEAD + 1), error, ways[name][1], color=MODEL_COLOURS["S4D"], label=f"S4D, {name}")
axes.axhline(variance, color=GREY, linestyle="--", label="predicting zero")
axes.axhline(NOISE**2, color=GREY, linestyle=":", label="variance of the noise")
axes.set(title="Error of free running, against the truth without noise", xlabel="steps ahead")
axes.set_ylabel("mean squared error")
axes.legend(loc="center right", bbox_to_anchor=(1, 0.5), fontsize=8)
show(figure, "04_horizon")

print("mean squared error, and its share of the variance")
print(f"{'steps ahead':12}" + "".join(f"{name:>26}" for name in ways))
for steps in (1, AHEAD // 4, AHEAD // 2, AHEAD):
    found = [error[steps - 1].item() for error in by_horizon.values()]
    print(f"{steps:<12}" + "".join(f"{f'{e:.4f}, {e / variance:5.1%}':>26}" for e in found))
assert SMOKE or by_horizon["last samples read again"][-1] < 0.1 * by_horizon["state carried on"][-1]

# %% [markdown]
# ### What a step costs
#
# S4D's step reads and writes a state of fixed size. A Transformer has to look at the past again; written plainly,
# without a cache of keys and values, it runs over the whole window for every new sample. Its time is that with fused
# attention, as in [02](02_s4_quickstart.ipynb).

# %%
torch.backends.mha.set_fastpath_enabled(False)
with torch.inference_mode():
    one = test_u[:1]
    state = s4d.prefill(one)[1]
    step_time = milliseconds(lambda: s4d.step(one[:, -1], state), repeats=50)
    again_time = milliseconds(lambda: transformer(one), repeats=50)
numbers = sum(2 * s.numel() for s in state.blocks)
print(f"one more sample: S4D {step_time:.2f} ms, the Transformer over {LENGTH} samples {again_time:.2f} ms")
print(f"S4D's state between two samples: {numbers:,} numbers, however long the past")

# %% [markdown]
# ## 3. A real series: carbon dioxide at Mauna Loa
#
# `statsmodels` brings the measurements of 1958 to 2001. As monthly means they show a yearly swing on top of a rise that
# has itself become steeper. The last ten years are kept for testing: at each month of them, forecast the next 24 months
# from what was known by then.

# %%
weekly = sm.datasets.co2.load_pandas().data["co2"]
monthly = weekly.resample("MS").mean()
series = torch.tensor(monthly.interpolate().to_numpy())  # ppm, float64
year = torch.tensor(monthly.index.year + (monthly.index.month - 0.5) / 12)
HORIZON, SEASON = 24, 12
CUT = len(series) - 120  # months before this one are known in training

missing = torch.tensor(monthly.isna().to_numpy()).nonzero()[:, 0]
print(
    f"{len(series)} months; {len(missing)} without a measurement are interpolated, the last in {year[missing[-1]]:.0f}"
)
assert missing.max() < CUT

figure, axes = plt.subplots(figsize=(10, 3))
axes.plot(year[:CUT], series[:CUT], color=GREY, linewidth=1, label="training")
axes.plot(year[CUT:], series[CUT:], color=INK, linewidth=1, label="test")
axes.set(title="Monthly carbon dioxide at Mauna Loa", xlabel="year", ylabel="ppm")
axes.legend()
show(figure, "04_co2")

# %% [markdown]
# ### Baselines
#
# The **seasonal-naive** forecast of a month is the same month of the last known year. It cannot know that the level
# rises, so there are two stronger ones: the same plus the rise over the last year, and plus the mean yearly rise of the
# last five.

# %%
origins = torch.arange(CUT - 1, len(series) - HORIZON)  # the last known month of each test forecast
steps = torch.arange(1, HORIZON + 1)
years = (steps - 1) // SEASON + 1  # how many years lie between a month and its model


def seasonal_naive(origins: Tensor) -> Tensor:
    """(origins, HORIZON)"""
    return series[origins[:, None] + steps - SEASON * years]


truth = series[origins[:, None] + steps]
naive = seasonal_naive(origins)
rise = series[origins] - series[origins - SEASON]
rise_of_five = (series[origins] - series[origins - 5 * SEASON]) / 5
forecasts = {
    "seasonal-naive": naive,
    "with last year's rise": naive + years * rise[:, None],
    "with five years' rise": naive + years * rise_of_five[:, None],
}

# %% [markdown]
# ### The model
#
# It reads two things a month, the change since the last month and since the same month of the last year, and puts out
# 24 numbers: by how much the seasonal-naive forecasts of the next 24 months will be wrong. Everything is scaled by
# means and standard deviations of the training years. The whole training series is one sequence, so one step of
# training is one pass over it, from a random start so that no month is always at the same place.
#
# A series is one example, and what a network makes of it is partly a matter of luck: three are trained and averaged.

# %%
change = torch.stack([series[SEASON:] - series[SEASON - 1 : -1], series[SEASON:] - series[:-SEASON]], -1)
known = CUT - SEASON  # rows of `change` that are known in training
inputs = ((change - change[:known].mean(0)) / change[:known].std(0)).float()

# The last months of training lack targets: their forecasts reach into the test years.
targets = known - HORIZON
months = torch.arange(SEASON, SEASON + targets)
wrong = series[months[:, None] + steps] - seasonal_naive(months)
centre, scale = wrong.mean(0), wrong.std(0)
wrong = ((wrong - centre) / scale).float()

MEMBERS, UPDATES = (1, 5) if SMOKE else (3, 300)
WARM_UP = SEASON  # months that a pass may use to find out where in the year it is


def forecast_by_network(seed: int) -> Tensor:
    """Train one network on the training years; its forecasts at the test origins, (origins, HORIZON)."""
    torch.manual_seed(seed)
    # A feature remembers for about 2 / dt steps: here from 4 months to 17 years.
    model = S4SequenceModel(2, 16, HORIZON, 2, 32, dropout=0.2, task="regression", dt_min=0.01, dt_max=0.5)
    optimizer = torch.optim.AdamW(get_ssm_param_groups(model, lr=0.004, ssm_lr=0.001, weight_decay=0.05))
    for _ in range(UPDATES):
        start = int(torch.randint(10 * SEASON, ()))
        predicted = model(inputs[None, start:targets])[0]
        loss = mse_loss(predicted[WARM_UP:], wrong[start + WARM_UP :])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        outputs = model.eval()(inputs[None])[0]
    return naive + outputs[origins - SEASON] * scale + centre


members = [forecast_by_network(seed) for seed in range(MEMBERS)]
forecasts["S4D"] = torch.stack(members).mean(0)

# %% [markdown]
# The model is causal: its output at a month depends on that month and earlier ones only, so one pass over the whole
# series gives the forecasts of all test months, each from what was known by then.

# %%


def rmse(forecast: Tensor) -> float:
    return (forecast - truth).square().mean().sqrt().item()


print(f"{len(origins)} forecasts of {HORIZON} months; root mean squared error in ppm")
for name, forecast in forecasts.items():
    print(f"{name:24}{rmse(forecast):6.2f}")
print("single networks:", ", ".join(f"{rmse(member):.2f}" for member in members))

print()
strongest = min((name for name in forecasts if name != "S4D"), key=lambda name: rmse(forecasts[name]))
ratio, ratio_naive = (rmse(forecasts["S4D"]) / rmse(forecasts[name]) for name in (strongest, "seasonal-naive"))
print(f"S4D's error is {ratio_naive:.2f} times that of the seasonal-naive forecast,")
print(f"and {ratio:.2f} times that of the strongest baseline, {strongest}.")
assert SMOKE or ratio < 1

# %%
figure, (example, by_month) = plt.subplots(1, 2, figsize=(10, 3.8))
colours = dict(zip(forecasts, (PURPLE, ROSE, GOLD, MODEL_COLOURS["S4D"]), strict=True))
row = len(origins) // 2
past, next_months = torch.arange(origins[row] - 24, origins[row] + 1), origins[row] + steps
example.plot(year[past], series[past], color=GREY, label="known")
example.plot(year[next_months], truth[row], color=INK, linewidth=3, alpha=0.4, label="measured")
for name in ("seasonal-naive", "with last year's rise", "S4D"):
    example.plot(year[next_months], forecasts[name][row], color=colours[name], label=name)
example.set(title="The forecast in the middle of the test years", xlabel="year", ylabel="ppm")
example.xaxis.set_major_locator(plt.MultipleLocator(1))
example.legend(fontsize="small")
for name, forecast in forecasts.items():
    by_month.plot(steps, (forecast - truth).square().mean(0).sqrt(), color=colours[name], label=name)
by_month.set(
    title="Error against horizon", xlabel="months ahead", ylabel="root mean squared error, ppm", ylim=(0, None)
)
by_month.legend(fontsize="small")
show(figure, "04_forecast")
