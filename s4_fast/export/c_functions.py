"""The functions that a step in C is made of. ``NAME`` stands for what the names of a file begin with."""

from __future__ import annotations

from collections.abc import Collection

_LINEAR = """static void NAME_linear(const float *restrict x, const float *restrict weight, const float *restrict bias,
                        float *restrict y, int inputs, int outputs)
{ /* weight[inputs][outputs]; four inputs at a time */
    int i, j;
    for (j = 0; j < outputs; j++) y[j] = bias[j];
    for (i = 0; i + 4 <= inputs; i += 4, weight += 4 * outputs) {
        const float a = x[i], b = x[i + 1], c = x[i + 2], d = x[i + 3];
        for (j = 0; j < outputs; j++)
            y[j] += (weight[j] * a + weight[outputs + j] * b)
                    + (weight[2 * outputs + j] * c + weight[3 * outputs + j] * d);
    }
    for (; i < inputs; i++, weight += outputs)
        for (j = 0; j < outputs; j++) y[j] += weight[j] * x[i];
}
"""

_NORMALIZE = """static void NAME_normalize(const float *restrict x, const float *restrict weight,
                           const float *restrict bias, float eps, float *restrict y, int width)
{
    NAME_real mean = 0, variance = 0;
    float scale;
    int i;
    for (i = 0; i < width; i++) mean += x[i];
    mean /= (NAME_real)width;
    for (i = 0; i < width; i++) variance += (x[i] - mean) * (x[i] - mean);
    scale = 1.0f / sqrtf((float)(variance / (NAME_real)width) + eps);
    for (i = 0; i < width; i++) y[i] = (float)(x[i] - mean) * scale * weight[i] + bias[i];
}
"""

_ADD = """static void NAME_add(const float *restrict a, const float *restrict b, float *restrict y, int width)
{
    int i;
    for (i = 0; i < width; i++) y[i] = a[i] + b[i];
}
"""

_MULTIPLY = _ADD.replace("NAME_add", "NAME_multiply").replace("a[i] + b[i]", "a[i] * b[i]")

_MEAN = """static void NAME_mean(const float *restrict x, double *restrict sum, unsigned long *steps, float *restrict y,
                      int width)
{
    int i;
    *steps += 1;
    for (i = 0; i < width; i++) {
        sum[i] += x[i];
        y[i] = (float)(sum[i] / (double)*steps);
    }
}
"""

_RECURRENCE = """static void NAME_recurrence(const float *restrict u, NAME_real *restrict s,
                            const NAME_real *restrict increment, const float *restrict B,
                            const float *restrict C, const float *restrict V, const float *restrict G,
                            const float *restrict D, float *restrict y, int features, int states,
                            int channels, int rank)
{ /* s[states][2][features], and so the others, behind their channels or rank: real parts, then imaginary parts */
    NAME_real sum[WIDEST], overlap[WIDEST];
    const int all = 2 * states * features;
    int c, r, k, h;
    for (h = 0; h < rank * features; h++) overlap[h] = 0;
    for (r = 0; r < rank; r++)
        for (k = 0; k < all; k += features)
            for (h = 0; h < features; h++) overlap[r * features + h] += V[r * all + k + h] * s[k + h];
    for (h = 0; h < rank * features; h++)
        if (overlap[h] < TINY && overlap[h] > -TINY) overlap[h] = 0;
    for (k = 0; k < all; k += 2 * features) {
        NAME_real *restrict re = s + k;
        NAME_real *restrict im = s + k + features;
        const NAME_real *p = increment + k;
        const float *b = B + k;
        for (h = 0; h < features; h++) {
            const NAME_real x = re[h], z = im[h], drive = u[h];
            const NAME_real real = x + (p[h] * x - p[features + h] * z + b[h] * drive);
            const NAME_real imag = z + (p[h] * z + p[features + h] * x + b[features + h] * drive);
            /* in silence, states would end as subnormal numbers, which slow many processors down */
            re[h] = real < TINY && real > -TINY ? 0 : real;
            im[h] = imag < TINY && imag > -TINY ? 0 : imag;
        }
    }
    for (r = 0; r < rank; r++)
        for (k = 0; k < all; k += features)
            for (h = 0; h < features; h++) s[k + h] -= G[r * all + k + h] * overlap[r * features + h];
    for (c = 0; c < channels; c++) {
        for (h = 0; h < features; h++) sum[h] = (NAME_real)D[c * features + h] * u[h];
        for (k = 0; k < all; k += features)
            for (h = 0; h < features; h++) sum[h] += C[c * all + k + h] * s[k + h];
        for (h = 0; h < features; h++) y[c * features + h] = (float)sum[h];
    }
}
"""

_OPERATIONS = {
    "linear": _LINEAR,
    "normalize": _NORMALIZE,
    "add": _ADD,
    "multiply": _MULTIPLY,
    "mean": _MEAN,
    "recurrence": _RECURRENCE,
}

_POINTWISE = {  # of x
    "identity": "x",
    "gelu": "0.5f * x * (1.0f + erff(x * 0.707106781f))",
    "gelu_tanh": "0.5f * x * (1.0f + tanhf(0.797884561f * (x + 0.044715f * x * x * x)))",
    "relu": "x > 0 ? x : 0",
    "relu_squared": "x > 0 ? x * x : 0",
    "tanh": "tanhf(x)",
    "sigmoid": "1.0f / (1.0f + expf(-x))",
    "silu": "x / (1.0f + expf(-x))",
    "elu": "x > 0 ? x : expm1f(x)",
    "softplus": "x > 20.0f ? x : log1pf(expf(x))",
    "laplace": "0.5f * (1.0f + erff((x - 0.707107f) * 2.50662642f))",
}

_MAP = """static void NAME_map_KIND(const float *restrict x, float *restrict y, int width)
{
    int i;
    for (i = 0; i < width; i++) y[i] = NAME_KIND(x[i]);
}
"""

_GATE = """static void NAME_gate_KIND(const float *restrict x, float *restrict y, int width)
{
    int i;
    for (i = 0; i < width; i++) y[i] = x[i] * NAME_KIND(x[width + i]);
}
"""


def functions(used: Collection[str], widest: int) -> str:
    """The source of the functions of these names, and of what they call."""
    kinds = [kind for kind in _POINTWISE if any(f"{way}_{kind}" in used for way in ("map", "gate"))]
    found = [f"static float NAME_{kind}(float x) {{ return {_POINTWISE[kind]}; }}\n" for kind in kinds]
    for way, text in (("map", _MAP), ("gate", _GATE)):
        found += [text.replace("KIND", kind) for kind in kinds if f"{way}_{kind}" in used]
    found += [text for name, text in _OPERATIONS.items() if name in used]
    return "\n".join(found).replace("WIDEST", str(widest)).replace("TINY", "(NAME_real)1e-30")


def libm(used: Collection[str]) -> list[str]:
    """The functions of libm that they call."""
    text = functions(used, 1)
    return [name for name in ("sqrtf", "erff", "expf", "expm1f", "log1pf", "tanhf") if f"{name}(" in text]
