# %% [markdown]
# # Time series: predict the next sample, then run free
#
# A state space model is at home with time series: it is causal, it can be trained on whole sequences at once, and
# afterwards it takes one sample at a time with a state of fixed size. This tutorial
#
# 1. trains S4D and a causal Transformer to predict the next sample of noisy sinusoids, and compares both with the best
#    that is possible,
# 2. lets the trained model run free: `prefill` reads the past, `step` continues it,
# 3. forecasts a real series, the carbon dioxide at Mauna Loa, against seasonal-naive forecasts.

# %%
import math
import time
from typing import NamedTuple

import statsmodels.api as sm
import torch
from matplotlib import pyplot as plt
from torch import Generator, Tensor, nn
from torch.nn.functional import mse_loss

import s4_fast
from s4_fast import S4SequenceModel, get_ssm_param_groups
from support import BLUE, GREEN, GREY, ORANGE, SMOKE, milliseconds, show

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
    axes.plot(clean[0, :LENGTH, channel], color=GREEN, label="without the noise")
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
COLOURS = {"S4D": BLUE, "Transformer": ORANGE}
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
# The processor seconds are summed over threads, so that other programs on the machine count less.

# %%
predictions = {name: predict(model) for name, model in models.items()}
errors = {name: (predicted - test_next).square().mean((0, 2)) for name, predicted in predictions.items()}

print(f"{'':22}{'MSE':>8}{f'last {TAIL}':>10}{'s per epoch':>13}{'parameters':>12}")
for name, history in histories.items():
    seconds = sorted(epoch.seconds for epoch in history)[EPOCHS // 2]
    tail = errors[name][-TAIL:].mean()
    print(f"{name:22}{errors[name].mean():8.4f}{tail:10.4f}{seconds:13.1f}{parameters[name]:12,}")
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
    curves.plot(range(1, EPOCHS + 1), [epoch.test for epoch in history], color=COLOURS[name], label=name)
    by_step.plot(errors[name], color=COLOURS[name], label=name)
by_step.plot(best, color=GREEN, label="best linear predictor")
for axes in (curves, by_step):
    axes.axhline(NOISE**2, color=GREY, linestyle="--", label="noise floor")
    axes.set(ylabel="mean squared error", ylim=(0, None))
curves.set(title="Test error in training", xlabel="epoch")
by_step.set(title="Test error against what has been seen", xlabel="step")
by_step.legend()
show(figure, "04_errors")

# %%
figure, panels = plt.subplots(3, 1, figsize=(10, 4.6), sharex=True, sharey=True)
for channel, axes in enumerate(panels):
    axes.plot(test_next[0, :, channel], ".", color=GREY, markersize=4, label="the next sample")
    for name, predicted in predictions.items():
        axes.plot(predicted[0, :, channel], color=COLOURS[name], linewidth=1.2, label=name)
    axes.set_ylabel(f"channel {channel}")
figure.suptitle("One step ahead", x=0.02, ha="left")
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
panels[-1].set_xlabel("step")
show(figure, "04_one_step")

# %% [markdown]
# ## 2. Running free
#
# Now the model continues a sequence by itself. `prefill` reads the 200 known samples at once and returns its outputs
# and its state; from then on every output is the next input of `step`. That is the loop inside `generate`.
#
# The model was trained with true samples as inputs, one step ahead. Fed with its own outputs it adds error to error,
# and how far that goes is what the pictures show.

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
    axes.plot(later, future[0, :, channel], color=GREEN, label="the truth without noise")
    axes.plot(later, free[0, :, channel], color=BLUE, label="S4D, running free")
    axes.axvline(LENGTH - 0.5, color=GREY, linewidth=1)
    axes.set_ylabel(f"channel {channel}")
figure.suptitle("Continuing the first test sequence", x=0.02, ha="left")
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
panels[-1].set_xlabel("step")
show(figure, "04_free")

# %% [markdown]
# The error of predicting zero, which is the variance of the clean signal, marks where a forecast is worth nothing.

# %%
by_horizon = (free - future).square().mean((0, 2))
variance = future.square().mean().item()
figure, axes = plt.subplots(figsize=(10, 3.2))
axes.semilogy(range(1, AHEAD + 1), by_horizon, color=BLUE, label="S4D, running free")
axes.axhline(variance, color=GREY, linestyle="--", label="predicting zero")
axes.axhline(NOISE**2, color=GREY, linestyle=":", label="variance of the noise")
axes.set(title="Error of free running, against the truth without noise", xlabel="steps ahead")
axes.set_ylabel("mean squared error")
axes.legend()
show(figure, "04_horizon")

for steps in (1, AHEAD // 4, AHEAD // 2, AHEAD):
    print(f"{steps:3} steps ahead: {by_horizon[steps - 1]:.4f}, {by_horizon[steps - 1] / variance:.1%} of the variance")

# %% [markdown]
# ### What a step costs
#
# S4D's step reads and writes a state of fixed size. A Transformer has to look at the past again; written plainly,
# without a cache of keys and values, it runs over the whole window for every new sample.

# %%
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
axes.plot(year[CUT:], series[CUT:], color=GREEN, linewidth=1, label="test")
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
colours = dict(zip(forecasts, ("#8a5fb0", ORANGE, "#c0a02b", BLUE), strict=True))
row = len(origins) // 2
past, next_months = torch.arange(origins[row] - 24, origins[row] + 1), origins[row] + steps
example.plot(year[past], series[past], color=GREY, label="known")
example.plot(year[next_months], truth[row], color=GREEN, linewidth=3, alpha=0.6, label="measured")
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
