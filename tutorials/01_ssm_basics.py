# %% [markdown]
# # State space models, from the equation to the fast kernel
#
# [S4](https://arxiv.org/abs/2111.00396) and [S4D](https://arxiv.org/abs/2206.11893) are layers for long sequences.
# Inside each is a small linear differential equation, and everything else follows from how that equation is solved
# quickly and accurately. This tutorial goes the whole way:
#
# 1. a continuous state space model, and what its state does,
# 2. HiPPO: matrices for which the state is a memory of the past,
# 3. discretisation: from a function of time to a sequence,
# 4. one function, two faces: recurrence and convolution,
# 5. the diagonal-plus-low-rank form,
# 6. why the kernels are Vandermonde and Cauchy products,
# 7. how the fast kernels work,
# 8. what float32 does to long kernels, done naively and done here.
#
# Each claim is computed below it, and those that matter are asserted, so that this page cannot say what is not so.

# %%
import math
from functools import partial
from itertools import pairwise

import torch
from matplotlib import pyplot as plt
from matplotlib.colors import SymLogNorm
from torch import Tensor

import s4_fast
from s4_fast import cauchy_bilinear, dplr_kernel, fft_conv, log_vandermonde, ssm_scan
from s4_fast.bench import direct
from s4_fast.ssm import hippo, initialization, with_conjugates
from s4_fast.ssm.discretization import bilinear, bilinear_diagonal, zoh, zoh_diagonal
from support import GOLD, GREY, MODEL_COLOURS, PURPLE, ROSE, SMOKE, milliseconds, show

s4_fast.keep_pages()
torch.manual_seed(0)
COLOURS = {"legs": PURPLE, "legt": GOLD, "fout": ROSE}
NAMES = {"legs": "LegS", "legt": "LegT", "fout": "FouT"}


def distance(actual: Tensor, expected: Tensor) -> float:
    """norm(actual - expected) / norm(expected), in float64."""
    actual, expected = actual.to(torch.complex128), expected.to(torch.complex128)
    return float((actual - expected).norm() / expected.norm())


# %% [markdown]
# ## 1. A continuous state space model
#
# An input $u(t)$ drives a state $x(t)$ of $N$ numbers, and the output $y(t)$ is a weighted sum of the state:
#
# $$x'(t) = A\,x(t) + B\,u(t), \qquad y(t) = C\,x(t).$$
#
# Take the simplest interesting case, a single complex number $A = -a + i\omega$ together with its conjugate, so that
# the output is real. Struck once at $t = 0$, the state rotates at rate $\omega$ and shrinks at rate $a$, and
#
# $$y(t) = 2\,\mathrm{Re}\;C\,e^{At}\,B .$$
#
# This *impulse response* is all there is to know about the model: the answer to any other input is a sum of delayed
# copies of it. A real state of size $N$ is $n = N/2$ such pairs.

# %%
t = torch.linspace(0, 10, 1000, dtype=torch.float64)
modes = {"slow": -0.3 + 2j, "fast": -0.3 + 8j, "damped": -1.5 + 2j}

figure, (responses, total) = plt.subplots(1, 2, figsize=(10, 3.2))
for name, A in modes.items():
    responses.plot(t, torch.exp(A * t).real, label=f"{name}: A = {A.real} + {A.imag:g}i")
responses.set(title="One mode each, struck once", xlabel="time", ylabel=r"Re $e^{At}$")
responses.legend()
C = torch.tensor([1.0 + 0.5j, -0.6 + 0.2j, 1.2 - 0.4j], dtype=torch.complex128)
A = torch.tensor(list(modes.values()), dtype=torch.complex128)
total.plot(t, 2 * (C[:, None] * torch.exp(A[:, None] * t)).sum(0).real, color=GREY)
total.set(title="The three with weights C: one impulse response", xlabel="time", ylabel="y")
show(figure, "01_modes")

# %% [markdown]
# ## 2. HiPPO: a state that remembers
#
# What should $A$ and $B$ be, for the state to be a memory? The answer of [HiPPO](https://arxiv.org/abs/2008.07669): let
# the $N$ numbers of the state be, at every moment, the coefficients of the *past input* in some basis. These obey a
# linear differential equation, and its matrices can be written down. Three of them, as
# [How to train your HiPPO](https://arxiv.org/abs/2206.12037) explains them:
#
# | | the state holds the coefficients of | over |
# |---|---|---|
# | **LegS** | Legendre polynomials in $e^{-(t-s)}$ | all of the past, ever more coarsely |
# | **LegT** | Legendre polynomials | a window of length 2 |
# | **FouT** | cosines and sines | a window of length 2 |

# %%
N = 16
figure, panels = plt.subplots(1, 3, figsize=(10, 3.4))
for measure, axes in zip(NAMES, panels, strict=True):
    A, B = hippo.transition(measure, N)
    picture = axes.imshow(A, cmap="RdBu_r", norm=SymLogNorm(1, vmin=-60, vmax=60))
    axes.set(title=NAMES[measure], xlabel="from entry k", ylabel="to entry n")
    axes.grid(visible=False)
figure.colorbar(picture, ax=panels, label=r"$A_{nk}$", shrink=0.8)
show(figure, "01_hippo_matrices")

# %% [markdown]
# ### What is an entry of the state sensitive to?
#
# The impulse response of entry $n$ is $(e^{tA}B)_n$: how much an input of age $t$ still counts. For LegS these are
# smooth functions that fade. For LegT and FouT they stop at age 2, as nearly as 64 numbers allow: the equation has to
# forget what leaves the window, and all it knows about that is what it remembers itself.

# %%
N, dt = 64, 4e-3 if SMOKE else 1e-3
ages = torch.arange(0, 4, dt, dtype=torch.float64)
figure, panels = plt.subplots(1, 3, figsize=(10, 3), sharex=True)
left_over = {}
for measure, axes in zip(NAMES, panels, strict=True):
    A_bar, _ = zoh(*hippo.transition(measure, N), dt)
    state, history = hippo.transition(measure, N)[1], []
    for _ in ages:
        history.append(state)
        state = A_bar @ state
    response = torch.stack(history)
    for n in (0, 2, 4):
        axes.plot(ages, response[:, n], label=f"n = {n}")
    axes.set(title=NAMES[measure], xlabel="age of the input")
    energy = response[:, :5].square().sum(1)
    left_over[measure] = float(energy[ages > 2.2].sum() / energy.sum())
panels[0].set_ylabel(r"$(e^{tA}B)_n$")
panels[0].legend()
show(figure, "01_hippo_responses")

for measure, share in left_over.items():
    print(f"{NAMES[measure]}: {share:.2%} of what entries 0 to 4 are sensitive to is older than 2.2")
assert left_over["legt"] < left_over["legs"]
assert left_over["fout"] < left_over["legs"]

# %% [markdown]
# ### Reading the past back
#
# Now feed a signal, step by step, and keep nothing but the last state. If the state holds coefficients, then
# multiplying them by the basis functions must give the signal back. As functions of the age $\tau = t - s$, with
# $r_n = \sqrt{2n+1}$ and the Legendre polynomials $P_n$, the bases are
#
# $$\text{LegS: } r_n P_n(2e^{-\tau} - 1), \qquad \text{LegT: } r_n P_n(1 - \tau), \qquad
#   \text{FouT: } 1, \sqrt2\cos \pi k\tau, \sqrt2 \sin \pi k\tau.$$


# %%
def basis(measure: str, N: int, age: Tensor) -> Tensor:
    """(N, len(age)): the function of age that each entry of the state is the coefficient of."""
    n = torch.arange(N, dtype=age.dtype)[:, None]
    if measure == "fout":
        angle = math.pi * (n // 2) * age
        waves = math.sqrt(2) * torch.where(n % 2 == 0, torch.cos(angle), torch.sin(angle))
        return torch.where(n == 0, 1, waves)
    position = 2 * torch.exp(-age) - 1 if measure == "legs" else 1 - age
    return (2 * n + 1).sqrt() * torch.special.legendre_polynomial_p(position, n)


def final_state(measure: str, N: int, u: Tensor) -> Tensor:
    """The state after the signal u, sampled every dt and held in between."""
    A_bar, B_bar = zoh(*hippo.transition(measure, N), dt)
    state = torch.zeros(N, dtype=u.dtype)
    for sample in u:
        state = A_bar @ state + B_bar * sample
    return state


count = round(6 / dt)
frequencies = torch.fft.rfftfreq(count, dt)
spectrum = torch.randn(len(frequencies), dtype=torch.complex128) * (frequencies < 2.5)
u = torch.fft.irfft(spectrum, n=count)
u = u / u.std()

# %%
age = (torch.arange(count - 1, -1, -1, dtype=torch.float64) + 0.5) * dt  # a held sample's, on average
window = {"legs": age < 5, "legt": age < 2, "fout": age < 2}
recalled = {measure: final_state(measure, 64, u) @ basis(measure, 64, age) for measure in NAMES}

figure, panels = plt.subplots(3, 1, figsize=(10, 6), sharex=True, sharey=True)
for (measure, past), axes in zip(recalled.items(), panels, strict=True):
    inside = window[measure]
    axes.plot(-age[age < 5], u[age < 5], color=GREY, linewidth=3, alpha=0.5, label="what was fed")
    axes.plot(-age[inside], past[inside], color=COLOURS[measure], label="read back from 64 numbers")
    axes.set(title=NAMES[measure], ylabel="u", ylim=(-4, 4))
    axes.legend(loc="lower left", ncols=2)
panels[-1].set_xlabel("time, now = 0")
show(figure, "01_reconstruction")

# %% [markdown]
# The same as numbers: the error of what is read back, relative to the signal, by age.

# %%
borders = [0, 0.5, 1, 1.5, 2, 3.5, 5]
print("age          " + "".join(f"{NAMES[measure]:>9}" for measure in NAMES))
errors = {measure: [] for measure in NAMES}
for low, high in pairwise(borders):
    row = (age >= low) & (age < high)
    for measure in NAMES:
        remembers = measure == "legs" or high <= 2
        errors[measure].append(distance(recalled[measure][row], u[row]) if remembers else math.nan)
    cells = "".join("        -" if math.isnan(e[-1]) else f"{e[-1]:9.1e}" for e in errors.values())
    print(f"{low:3} to {high:3}   {cells}")

assert max(errors["legs"][:4]) < errors["legs"][4] < errors["legs"][5]
assert max(errors["legt"][:4]) < min(errors["legs"][:4] + errors["fout"][:4])
assert all(errors["fout"][end] > errors["fout"][inside] for end in (0, 3) for inside in (1, 2))
print("LegT is the most exact within its window, and knows nothing beyond.")
print("LegS recalls what is older than 2 worse than all that is younger: its memory fades, and has no end.")
print("FouT is at its worst at both ends: a Fourier series wants a window that ends as it begins.")

# %% [markdown]
# More numbers, a better memory. The error over the last unit of time, for growing $N$:

# %%
sizes = (8, 16) if SMOKE else (4, 8, 16, 32, 64)
recent = (age > 0.1) & (age < 1)
figure, axes = plt.subplots(figsize=(6, 3.2))
for measure in NAMES:
    curve = []
    for N in sizes:
        curve.append(distance((final_state(measure, N, u) @ basis(measure, N, age))[recent], u[recent]))
    assert curve[-1] < curve[0]
    axes.loglog(sizes, curve, "o-", color=COLOURS[measure], label=NAMES[measure])
axes.set(title="Error of what is read back, ages 0.1 to 1", xlabel="state size N", ylabel="relative error")
axes.set_xticks(sizes, [str(N) for N in sizes])
axes.minorticks_off()
axes.legend()
show(figure, "01_reconstruction_error")

# %% [markdown]
# ## 3. Discretisation
#
# Data come as samples, $\Delta$ apart. One step of the continuous model becomes
#
# $$x_l = \bar A\,x_{l-1} + \bar B\,u_l, \qquad y_l = C\,x_l .$$
#
# Two recipes are in use. **Zero-order hold** (ZOH, of S4D) solves the equation exactly for an input that is constant
# between samples; the **bilinear** rule (of S4) averages the slope at both ends of the step:
#
# $$\text{ZOH: } \bar A = e^{\Delta A}, \quad \bar B = A^{-1}(e^{\Delta A} - I)B, \qquad
# \text{bilinear: } \bar A = \Big(I - \tfrac{\Delta}{2} A\Big)^{-1}\!\Big(I + \tfrac{\Delta}{2}A\Big), \quad
# \bar B = \Big(I - \tfrac{\Delta}{2} A\Big)^{-1} \Delta B .$$
#
# For a diagonal $A$ each mode becomes one number $\lambda$ with $|\lambda| < 1$. ZOH takes a mode of frequency $\omega$
# to the angle $\omega\Delta$, and beyond $\pi$ it wraps around: a fast mode looks slow. The bilinear rule never wraps;
# instead it squeezes all frequencies into the half circle, $2\arctan(\omega\Delta/2)$.

# %%
A, B = initialization.diagonal("lin", 64)
dt = 0.06
figure, (plane, angles) = plt.subplots(1, 2, figsize=(10, 4))
plane.add_patch(plt.Circle((0, 0), 1, fill=False, color=GREY))
for name, rule, marker in (("ZOH", zoh_diagonal, "o"), ("bilinear", bilinear_diagonal, "x")):
    x, _ = rule(A, B, dt)  # x = log(lambda)
    lam = torch.exp(x)
    assert (lam.abs() < 1).all()
    plane.plot(lam.real, lam.imag, marker, label=name)
    angles.plot(A.imag * dt, torch.angle(lam), marker, label=name)
plane.set(title=r"$\lambda$ of the modes $-1/2 + i\pi k$", xlabel="real part", ylabel="imaginary part", aspect="equal")
plane.legend(loc="center")
angles.axhline(math.pi, color=GREY, linestyle=":")
angles.set(title="Frequency before and after", xlabel=r"$\omega\Delta$", ylabel=r"angle of $\lambda$")
angles.legend()
show(figure, "01_discretisation")
wrapped = int((A.imag * dt > math.pi).sum())
print(f"{wrapped} of {len(A)} modes turn by more than half a circle in a step and wrap around under ZOH")

# %% [markdown]
# ### Of which order are they?
#
# A rule is of order $p$ if halving the step divides its error by $2^p$. The answer depends on what the samples are
# samples of. Below, the state of HiPPO-LegS at $t = 1$ for three inputs:
#
# - **held**: constant over each quarter of the time. ZOH assumes just that, and is exact. The bilinear rule is not, and
#   shows its own order, 2.
# - **smooth**, $\sin 5t$, sampled in the **middle** of each step: now ZOH has an error too, as a sine is not constant
#   over a step. Both rules are of order 2.
# - **smooth**, sampled at the **end** of each step: a sample that stands for the whole step and is taken at its end
#   comes half a step too early. That error is of order 1, and hides the rule's own.
#
# An **impulse** has no middle: the sampled one is as wide as a step, so it too is off by half a step, and both rules
# seem to be of order 1. A trained layer does not mind. Its data come as samples in the first place, and half a step is
# a shift that its parameters take in.

# %%
A, B = hippo.transition("legs", 8)
A_quarter, B_quarter = zoh(A, B, 0.25)
# The sine is made by two more entries of the state, (sin 5t)' = 5 cos 5t and (cos 5t)' = -5 sin 5t.
A_with_sine = torch.zeros(10, 10, dtype=torch.float64)
A_with_sine[:8, :8], A_with_sine[:8, 8] = A, B
A_with_sine[8, 9], A_with_sine[9, 8] = 5, -5


def held(time: Tensor) -> Tensor:
    """The sine in the middle of its quarter."""
    return torch.sin(5 * ((4 * time).floor() / 4 + 1 / 8))


def driven(A_bar: Tensor, B_bar: Tensor, samples: Tensor) -> Tensor:
    """The last state."""
    state = torch.zeros_like(B_bar)
    for sample in samples:
        state = A_bar @ state + B_bar * sample
    return state


quarters = (torch.arange(4, dtype=torch.float64) + 0.5) / 4
exact = {
    "held": driven(A_quarter, B_quarter, held(quarters)),
    "smooth": torch.linalg.matrix_exp(A_with_sine)[:8, 9],
    "impulse": torch.linalg.matrix_exp(A) @ B,
}
rows = {  # the input, where it is sampled, and the factor to expect of ZOH and of the bilinear rule
    "held, in the middle": ("held", lambda t, step: held(t + step / 2), (None, 4)),
    "smooth, in the middle": ("smooth", lambda t, step: torch.sin(5 * (t + step / 2)), (4, 4)),
    "smooth, at the end": ("smooth", lambda t, step: torch.sin(5 * (t + step)), (2, 2)),
    "impulse": ("impulse", lambda t, step: (t == 0) / step, (2, 2)),
}
rules = {"ZOH": (zoh, "o-"), "bilinear": (bilinear, "x--")}
counts = (8, 16, 32, 64, 128, 256)

print("halving the step divides the error by")
print(f"{'input, and where it is sampled':32}{'ZOH':>9}{'bilinear':>11}")
figure, panels = plt.subplots(1, 4, figsize=(10, 3.2), sharey=True)
for (row, (name, sampled, expected)), axes in zip(rows.items(), panels, strict=True):
    factors = []
    for (rule, (discretise, style)), factor, colour in zip(rules.items(), expected, (PURPLE, GOLD), strict=True):
        wrong = []
        for count in counts:
            t = torch.arange(count, dtype=torch.float64) / count
            state = driven(*discretise(A, B, 1 / count), sampled(t, 1 / count))
            wrong.append(distance(state, exact[name]))
        factors.append(wrong[-2] / wrong[-1])
        if factor is None:
            assert max(wrong) < 1e-13
        else:
            assert abs(factors[-1] - factor) < 0.1
            axes.loglog([1 / count for count in counts], wrong, style, color=colour, label=rule)
    cells = ("  exact" if factor is None else f"{f:.1f}" for f, factor in zip(factors, expected, strict=True))
    print(f"{row:32}" + "{:>9}{:>11}".format(*cells))
    axes.set_title(row, fontsize=9)
    axes.set_xlabel(r"step $\Delta$")
    axes.legend(fontsize=8, loc="lower right")
panels[0].set_ylabel("relative error of the state")
show(figure, "01_step_size")

# %% [markdown]
# The lines of the two right panels fall by one decade per decade of the step, those of the two left ones by two. ZOH
# has no line in the first: its errors there are those of rounding.

# %% [markdown]
# ## 4. One function, two faces
#
# Unroll the recurrence from $x_{-1} = 0$, and the state disappears:
#
# $$y_l = \sum_{j \le l} \underbrace{C\,\bar A^{\,j}\,\bar B}_{K_j}\; u_{l-j} .$$
#
# The same map is a **recurrence** (one sample at a time, memory of fixed size: for generating and streaming) and a
# **convolution** with the kernel $K$ (all samples at once, by FFT: for training). Linear state space layers with both
# faces go back to [LSSL](https://arxiv.org/abs/2110.13985). Below both are computed and compared.

# %%
length = 256
A_bar, B_bar = bilinear(*hippo.transition("legs", 16), 0.02)
C = torch.randn(16, dtype=torch.float64)
u = torch.randn(length, dtype=torch.float64)

state, by_recurrence = torch.zeros(16, dtype=torch.float64), []
for sample in u:
    state = A_bar @ state + B_bar * sample
    by_recurrence.append(C @ state)
by_recurrence = torch.stack(by_recurrence)

column, kernel = B_bar, []
for _ in range(length):
    kernel.append(C @ column)
    column = A_bar @ column
kernel = torch.stack(kernel)
by_convolution = fft_conv(u[None, None], kernel[None])[0, 0]

difference = float((by_recurrence - by_convolution).abs().max())
print(f"largest difference: {difference:.1e}, where outputs are as large as {float(by_recurrence.abs().max()):.1f}")
assert difference < 1e-12 * float(by_recurrence.abs().max())

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3))
left.plot(kernel, color=PURPLE)
left.set(title="The kernel K", xlabel="lag j")
right.plot(by_recurrence, color=GREY, linewidth=4, alpha=0.5, label="recurrence")
right.plot(by_convolution, color=ROSE, linewidth=1, label="convolution")
right.set(title="The output, twice", xlabel="sample l", xlim=(0, 100))
right.legend()
show(figure, "01_duality")

# %% [markdown]
# On GPUs the FFT itself is worth a kernel of its own: FlashConv, of [H3](https://arxiv.org/abs/2212.14052), and
# [FlashFFTConv](https://arxiv.org/abs/2311.05908).
#
# For a diagonal model there is a third way, `ssm_scan`: the recurrence over a whole sequence in one call, in linear
# time. It needs neither kernel nor FFT, and starts from and returns a state, so that a sequence can be cut anywhere.

# %%
A, B = initialization.diagonal("lin", 16)
C = torch.randn(1, 8, dtype=torch.complex128)
x, B_bar = zoh_diagonal(A, B, torch.tensor([[0.02]], dtype=torch.float64))
whole = fft_conv(u[None, None], log_vandermonde(C * B_bar, x, length))
first, state = ssm_scan(u[None, None, :100], x, B_bar, C, return_state=True)
second = ssm_scan(u[None, None, 100:], x, B_bar, C, state=state)
scanned = distance(torch.cat((first, second), -1), whole)
print(f"scanned in two pieces against one convolution: relative difference {scanned:.1e}")
assert scanned < 1e-12

# %% [markdown]
# ## 5. Diagonal plus low rank
#
# The kernel needs $\bar A^j$ for all $j < L$, and that is cheap only where $A$ is diagonal. Any other basis of the
# state serves as well, so why not diagonalise HiPPO? Because the basis that does it is useless in finite precision:
# the condition number of its eigenvectors says by how much rounding errors are magnified.
#
# HiPPO matrices have a way out. They are a *normal* matrix less a correction of rank 1 (LegT: rank 2), and normal
# matrices are diagonalised by a unitary $V$, which magnifies nothing:
#
# $$A = V\,(\Lambda - P P^*)\,V^* .$$

# %%
sizes = range(4, 41, 4)
magnified = []
for N in sizes:
    A, _ = hippo.transition("legs", N)
    magnified.append(float(torch.linalg.cond(torch.linalg.eig(A).eigenvectors)))
    form = hippo.nplr("legs", N)
    V = torch.cat((form.V, form.V.conj()), 1)  # one of each conjugate pair is stored
    w, P = with_conjugates(form.w), with_conjugates(form.P)
    rebuilt = V @ (torch.diag(w) - P.mT @ P.conj()) @ V.mH
    assert float((rebuilt - A).abs().max()) < 1e-11
print(f"V (Lambda - P P*) V* differs from LegS by at most {float((rebuilt - A).abs().max()):.1e} at N = {N}")
print(f"the eigenvectors of LegS itself magnify errors by {magnified[0]:.0f} at N = 4, {magnified[-1]:.0e} at N = {N}")

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4))
left.semilogy(sizes, magnified, "o-", color=ROSE, label="eigenvectors of A")
left.semilogy(sizes, [1] * len(sizes), "o-", color=PURPLE, label="V, eigenvectors of the normal part")
left.axhline(1 / torch.finfo(torch.float32).eps, color=GREY, linestyle=":", label="all digits of float32")
left.axhline(1 / torch.finfo(torch.float64).eps, color=GREY, linestyle="--", label="all digits of float64")
left.set(title="How much the change of basis magnifies errors", xlabel="state size N", ylabel="condition number")
left.legend(fontsize=8)
for name, label in (("legs", "LegS"), ("lin", "Lin: $\\pi k$"), ("inv", "Inv")):
    right.plot(initialization.diagonal(name, 64)[0].imag.sort().values, ".-", label=label)
right.set_yscale("log", nonpositive="mask")
right.set(title=r"Im $\Lambda$ at N = 64, sorted", xlabel="mode")
right.legend()
show(figure, "01_dplr")

# %% [markdown]
# S4 keeps $P$. S4D drops it, and that is all the difference: a diagonal model whose modes are those of LegS, or follow
# a simple formula. That this works as well was found by [DSS](https://arxiv.org/abs/2203.14343), and explained by
# [S4D](https://arxiv.org/abs/2206.11893). On the right, `"inv"` follows LegS closely, and `"lin"` spaces its modes
# evenly, as FouT does.
#
# ## 6. Why Vandermonde, why Cauchy
#
# **Diagonal.** With $v_n = C_n \bar B_n$ the kernel is
#
# $$K_l = 2\,\mathrm{Re} \sum_n v_n\,\lambda_n^{\,l},$$
#
# the vector $v$ times the matrix of powers $\lambda_n^l$, a *Vandermonde* matrix.
#
# **Diagonal plus low rank.** Powers of $\Lambda - PP^*$ are not simple, but its *resolvent* is. So evaluate the
# spectrum of the kernel rather than the kernel, $\hat K(\omega) = \sum_l K_l\,\omega^l$ at the roots of unity, where
# the sum over $l$ is a geometric series and becomes an inverse matrix. The Woodbury identity reduces that to the
# inverse of a diagonal one, and each piece to a sum
#
# $$\sum_n \frac{v_n}{z - w_n}, \qquad z = 2\,\frac{1-\omega}{1+\omega}, \quad w = \Delta\Lambda,$$
#
# the vector $v$ times a *Cauchy* matrix: four such sums for rank 1, and one inverse FFT. The node $\omega = -1$, where
# $z$ is infinite, is no trouble when the factor $2/(1+\omega)$ is put inside the sum: `cauchy_bilinear` does that.

# %%
n, L = 16, 128
A, B = initialization.diagonal("lin", 2 * n)
x, B_bar = zoh_diagonal(A, B, 0.03)
vandermonde = torch.exp(x[:, None] * torch.arange(L))
omega = torch.exp(-2j * math.pi * torch.arange(L // 2, dtype=torch.float64) / L)
z = 2 * (1 - omega) / (1 + omega)
cauchy = 1 / (z - 0.03 * A[:, None])

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3))
pictures = (
    left.imshow(vandermonde.real, cmap="RdBu_r", aspect="auto", vmin=-1, vmax=1),
    right.imshow(cauchy.abs(), cmap="viridis", aspect="auto", norm="log"),
)
left.set(title=r"Vandermonde: Re $\lambda_n^l$", xlabel="sample l", ylabel="mode n")
right.set(title=r"Cauchy: $1/|z_k - w_n|$", xlabel="frequency k", ylabel="mode n")
for axes, picture in zip((left, right), pictures, strict=True):
    axes.grid(visible=False)
    figure.colorbar(picture, ax=axes)
show(figure, "01_vandermonde_cauchy")

# %% [markdown]
# In the left picture each mode is a wave. In the right one each is a resonance: it answers at its own frequency.
#
# Do these formulas compute the kernel? `dplr_kernel` against plain powers of the dense matrix $\bar A$, in float64. The
# output vector goes in as $\tilde C = C(I - \bar A^L)$, which is what cuts the geometric series off after $L$ terms.
#
# One mode of FouT has $\Lambda = 0$, and so a pole on the node $z = 0$. The layers give each mode of $\Lambda$ a decay
# of at least $10^{-4}$, and so do we.


# %%
def decaying(w: Tensor) -> Tensor:
    return torch.complex(w.real.clamp(max=-1e-4), w.imag)


N, L, dt = 16, 200, 0.02
for measure, rank in (("legs", 1), ("legt", 2), ("fout", 1)):
    form = hippo.nplr(measure, N, rank)
    C = torch.randn(N // 2, dtype=torch.complex128)
    w, P, B, row = (with_conjugates(t) for t in (decaying(form.w), form.P, form.B, C))
    A_bar, B_bar = bilinear(torch.diag(w) - P.mT @ P.conj(), B, dt)
    dense = torch.stack([(row @ torch.linalg.matrix_power(A_bar, l) @ B_bar).real for l in range(L)])

    C_tilde = (row - row @ torch.linalg.matrix_power(A_bar, L))[: N // 2]
    # The shapes of dplr_kernel, for one feature: w (1, n), P (rank, 1, n), B and C (1, 1, n), dt (1, 1).
    half, P = dt * decaying(form.w)[None], form.P[:, None]
    step = torch.tensor([[dt]], dtype=torch.float64)
    fast = dplr_kernel(half, P, P, form.B[None, None], C_tilde[None, None], step, L).flatten()
    print(f"{NAMES[measure]}: Cauchy sums and FFT differ from {L} dense powers by {distance(fast, dense):.0e}")
    assert distance(fast, dense) < 1e-11

# %% [markdown]
# ## 7. How the fast kernels work
#
# Written down as it stands, a Vandermonde product takes $n L$ complex exponentials per feature, and memory for all of
# them. But powers factor. Split the index, $l = mT + t$ with $0 \le t < T$:
#
# $$K_{mT+t} = 2\,\mathrm{Re} \sum_n \big(v_n \lambda_n^{Tm}\big)\,\lambda_n^{\,t}
#   = \underbrace{\big[\,2\,\mathrm{Re}(v\lambda^{Tm}),\; -2\,\mathrm{Im}(v\lambda^{Tm})\,\big]}_{
#     \text{coarse, } L/T \times 2n} \;
#   \underbrace{\begin{bmatrix}\mathrm{Re}\,\lambda^t\\ \mathrm{Im}\,\lambda^t\end{bmatrix}}_{
#     \text{fine, } 2n \times T} .$$
#
# The kernel, folded into rows of length $T$, is one product of two small real matrices, which is what processors do
# best. With $T \approx \sqrt L$ there are about $2n\sqrt L$ exponentials, and nothing of size $nL$ exists at any time.
# Here it is in full, with the actual numbers as pictures:

# %%
n, L, T = 16, 2048, 64
A, B = initialization.diagonal("lin", 2 * n)
x, B_bar = zoh_diagonal(A, B, 0.003)
v = torch.randn(n, dtype=torch.complex128) * B_bar

scaled = v * torch.exp(x * T * torch.arange(L // T)[:, None])  # (L / T, n)
powers = torch.exp(x[:, None] * torch.arange(T))  # (n, T)
coarse = torch.cat((2 * scaled.real, -2 * scaled.imag), 1)
fine = torch.cat((powers.real, powers.imag))
folded = coarse @ fine

difference = distance(folded.view(L), log_vandermonde(v, x, L))
print(f"two tables against log_vandermonde: relative difference {difference:.0e}")
assert difference < 1e-12
print(f"exponentials: {n * L} written down as it stands, {n * (T + L // T)} in two tables")

figure = plt.figure(figsize=(10, 6))
top, bottom = figure.subfigures(2, 1, height_ratios=(3, 2))
tables = (
    (coarse, f"coarse: {L // T} x {2 * n}", "Re, Im of n modes", "row m"),
    (fine, f"fine: {2 * n} x {T}", "sample t in the row", "Re, Im of n modes"),
    (folded, f"K folded: {L // T} x {T}", "sample t in the row", "row m"),
)
panels = top.subplots(1, 3)
for (table, title, across, down), axes, sign in zip(tables, panels, (r"$\times$", "=", ""), strict=True):
    limit = float(table.abs().max())
    axes.imshow(table, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.set(title=title, xlabel=across, ylabel=down)
    axes.grid(visible=False)
    axes.text(1.12, 0.5, sign, transform=axes.transAxes, fontsize=20, va="center")
axes = bottom.subplots()
axes.plot(folded.view(L), color=PURPLE, linewidth=1)
for m in range(0, L, T):
    axes.axvline(m, color=GREY, linewidth=0.5, alpha=0.5)
axes.set(title="The rows one after another: the kernel", xlabel="sample l = m T + t", ylabel="K", xlim=(0, L))
axes.grid(visible=False)
show(figure, "01_two_level")

# %% [markdown]
# **And the Cauchy sums?** At the roots of unity they are the Fourier transform of such a product. With
# $\lambda = (2+w)/(2-w)$ and $\omega^L = 1$, the geometric series gives
#
# $$\frac{1}{1 - \omega\lambda} = \frac{1}{1 - \lambda^L} \sum_{l<L} \lambda^l\,\omega^l ,$$
#
# so that $\frac{2}{1+\omega}\sum_n \frac{v_n}{z - w_n}$, conjugates included, is one matrix product and one real FFT:

# %%
A, _ = initialization.diagonal("legs", 64)
w, v, L = 0.01 * A, torch.randn(32, dtype=torch.complex128), 500
lam = (2 + w) / (2 - w)
sums = torch.fft.rfft(log_vandermonde(2 * v / ((2 - w) * (1 - lam**L)), torch.log(lam), L))
difference = distance(sums, cauchy_bilinear(v, w, L, backend="reference"))
print(f"against the sums as they are defined: relative difference {difference:.0e}")
assert difference < 1e-11

# %% [markdown]
# What it is worth: 64 features with 32 modes each, in float32. Times are the median of several calls, in processor time
# on one thread of the machine that made this page. The S4 kernel is that of LegS, and the textbook's way to it is the
# one in `s4_fast.bench.direct`. The last lines say which implementation ran here; `s4_fast.backends()` lists all.


# %%
def formula(v: Tensor, x: Tensor, L: int) -> Tensor:
    """2 Re sum_n v_n exp(x_n l), with all of its (features, n, L) terms, in the precision of v and x."""
    return 2 * (v[..., None] * torch.exp(x[..., None] * torch.arange(L))).sum(-2).real


def s4_tensors(measure: str, rank: int, dt: Tensor) -> dict[str, Tensor]:
    """Arguments of dplr_kernel at N = 64 for step sizes dt (features, 1), in float32."""
    form = hippo.nplr(measure, 64, rank)
    P = form.P[:, None].expand(-1, len(dt), -1)
    C = torch.randn(1, len(dt), 32, dtype=torch.complex128)
    tensors = {"w": dt * decaying(form.w), "P": P, "Q": P, "B": form.B.expand(1, len(dt), -1), "C": C}
    return {name: tensor.to(torch.complex64) for name, tensor in tensors.items()}


lengths = (64, 256) if SMOKE else (256, 512, 1024, 2048, 4096)
v = torch.randn(64, 32, dtype=torch.complex64)
x = torch.complex(-0.01 * torch.rand(64, 32), math.pi * torch.rand(64, 32))
dt = torch.logspace(-3, -1, 64)[:, None]
legs = s4_tensors("legs", 1, dt)
calls = {
    "S4D": (lambda L: formula(v, x, L), lambda L: log_vandermonde(v, x, L)),
    "S4": (lambda L: direct.dplr_kernel(**legs, dt=dt, L=L), lambda L: dplr_kernel(**legs, dt=dt, L=L)),
}
figure, panels = plt.subplots(1, 2, figsize=(10, 3.4), sharey=True)
for (name, (textbook, here)), axes in zip(calls.items(), panels, strict=True):
    slow = [milliseconds(partial(textbook, L), 3) for L in lengths]
    fast = [milliseconds(partial(here, L), 15) for L in lengths]
    for L, a, b in zip(lengths, slow, fast, strict=True):
        print(f"{name:3} L = {L:4}: {a:8.2f} ms by the textbook, {b:7.3f} ms here, ratio {a / b:.0f}")
    axes.loglog(lengths, slow, "o--", color=MODEL_COLOURS[name], label="textbook")
    axes.loglog(lengths, fast, "o-", color=MODEL_COLOURS[name], label="here")
    axes.set(title=f"Time of an {name} kernel", xlabel="length L")
    axes.set_xticks(lengths, [str(L) for L in lengths])
    axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    axes.legend()
panels[0].set_ylabel("milliseconds")
show(figure, "01_time")
print("S4D:", s4_fast.explain(log_vandermonde, v, x, lengths[-1]).backend)
print("S4: ", s4_fast.explain(dplr_kernel, **legs, dt=dt, L=lengths[-1]).backend)

# %% [markdown]
# ## 8. What float32 does to a long kernel
#
# The angle $\mathrm{Im}(x)\,l$ of $\lambda^l = e^{xl}$ grows with $l$, and so does the worth of its last bit. Whoever
# multiplies $x\,l$ in float32 computes, in the end, the sine of something else. The remedy costs little here, because
# only two small tables contain exponentials: their angles are formed in float64. What has size $L$ stays in float32.
#
# Below, modes that turn by up to half a circle per step and lose a factor $e^2$ over the whole sequence. The yardstick
# is float64, on the same numbers.

# %%
lengths = [2**k for k in ((8, 12) if SMOKE else range(8, 21, 2))]
angle = torch.tensor(math.pi * lengths[-1])
bit = float(torch.nextafter(angle, torch.tensor(math.inf)) - angle)
print(f"half a circle per step for {lengths[-1]} steps: the last bit of the angle is worth {bit:.1g} radians\n")

naive, here = [], []
for L in lengths:
    v = torch.randn(1, 8, dtype=torch.complex64)
    x = torch.complex(torch.full((1, 8), -2 / L), math.pi * torch.rand(1, 8))
    exact = formula(v.to(torch.complex128), x.to(torch.complex128), L)
    naive.append(distance(formula(v, x, L), exact))
    here.append(distance(log_vandermonde(v, x, L), exact))
    print(f"L = {L:7}: naive {naive[-1]:.1e}, here {here[-1]:.1e}")
assert max(here) < 2e-6
assert naive[-1] > 10 * naive[0]

# %% [markdown]
# The S4 kernel has another trap. Near $\omega = -1$ the nodes $z$ are huge, and the two terms of the Woodbury identity
# nearly cancel, so that digits are lost. `dplr_kernel` never forms $z$, and splits $B$ along $P$, after which the
# cancellation is done on paper. Below, all three measures at $N = 64$; the naive way is the textbook's.

# %%
dplr_lengths = (64, 256) if SMOKE else (256, 1024, 4096, 16384)
curves = {}
for measure, rank in (("legs", 1), ("legt", 2), ("fout", 1)):
    step = torch.tensor([[0.002], [0.01], [0.05]])
    single = s4_tensors(measure, rank, step)
    double = {name: tensor.to(torch.complex128) for name, tensor in single.items()}
    for L in dplr_lengths:
        exact = dplr_kernel(**double, dt=step.double(), L=L, backend="reference")
        curves.setdefault((measure, "naive"), []).append(distance(direct.dplr_kernel(**single, dt=step, L=L), exact))
        curves.setdefault((measure, "here"), []).append(distance(dplr_kernel(**single, dt=step, L=L), exact))
    shown = " and ".join(f"{curves[measure, how][-1]:.1e} {how}" for how in ("naive", "here"))
    print(f"{NAMES[measure]}, L = {dplr_lengths[-1]}: {shown}")
    assert max(curves[measure, "here"]) < 5e-6
    assert curves[measure, "here"][-1] < curves[measure, "naive"][-1]

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True)
left.loglog(lengths, naive, "o--", color=MODEL_COLOURS["S4D"], label="naive")
left.loglog(lengths, here, "o-", color=MODEL_COLOURS["S4D"], label="log_vandermonde")
left.set(title="S4D kernel in float32", xlabel="length L", ylabel="relative error")
for (measure, how), curve in curves.items():
    style = "o--" if how == "naive" else "o-"
    right.loglog(dplr_lengths, curve, style, color=COLOURS[measure], label=f"{NAMES[measure]}, {how}")
right.set(title="S4 kernel in float32", xlabel="length L")
for axes in (left, right):
    axes.axhline(torch.finfo(torch.float32).eps, color=GREY, linestyle=":", label="float32 rounding")
    axes.legend(fontsize=8)
show(figure, "01_float32")

# %% [markdown]
# ## What to take along
#
# - A state space model is a bank of damped oscillators. HiPPO chooses them so that the state is a memory.
# - Discretised, it is a recurrence and a convolution at once: train with the one, run with the other.
# - S4D is diagonal: its kernel is a Vandermonde product, which is a small matrix product. S4 keeps a low-rank
#   correction: its spectrum is made of Cauchy sums.
# - Long kernels need care with angles, and near $\omega = -1$ with cancellation. The functions used here take it, and
#   the assertions above hold them to it.
#
# Next: [02, the layers](02_s4_quickstart.ipynb).
