// The chain rule from the nodes of a feature back to its continuous parameters. Conjugated gradients are derivatives by
// complex numbers, so that nothing else is conjugated here.
#include "discretize.h"

namespace s4_fast::cpu::S4_FAST_ISA {
namespace {

struct Chain {
    double *step;
    Split A, B, power, by_x, by_B;

    Chain(Arena &memory, int64_t np)
        : step(memory.take<double>(np)),
          A(memory, np),
          B(memory, np),
          power(memory, np),
          by_x(memory, np),
          by_B(memory, np) {}
};

}  // namespace

template <class T>
int64_t scan_chain_scratch(const Scan<T> &scan) {
    Arena memory;
    Chain(memory, padded(scan.n));
    return memory.used();
}

template <class T>
void scan_chain(const Scan<T> &scan, int64_t h, double *sums, T *grad_dt, char *scratch) {
    const System<T> &s = scan.system;
    const int64_t n = scan.n, np = padded(n);
    Arena memory(scratch);
    const Chain of(memory, np);
    double *const sums_B = sums + Sums<T>(scan).B;
    read_system(s, h, n, np, of.step, of.A, of.B);
    of.by_x.set(sums, n, np), of.by_B.set(sums_B, n, np);
    for (int64_t i = 0; i < np; ++i) {
        of.power.re[i] = of.step[i] * of.A.re[i], of.power.im[i] = of.step[i] * of.A.im[i];
    }
    if (!s.bilinear) exponentials(np, of.power, of.power);
    double total = 0;
    for (int64_t i = 0; i < np; i += LANES<double>) {
        const DoubleVector step = load(of.step + i);
        const ComplexVector A = at(of.A, i), B = at(of.B, i), by_B = at(of.by_B, i);
        const ComplexVector z = {step * A.re, step * A.im};
        // `growth` is the derivative of z phi: by phi and its slope it would cancel where z is large.
        ComplexVector phi, slope, growth = at(of.power, i), by_z = at(of.by_x, i);
        if (s.bilinear) {
            phi = phi_bilinear(z), growth = times(phi, phi);
            slope = {0.5 * growth.re, 0.5 * growth.im};
            const ComplexVector squared = times(z, z);
            by_z = times(by_z, reciprocal({1 - 0.25 * squared.re, -0.25 * squared.im}));
        } else {
            phi = phi_of(z, growth), slope = phi_slope(z, growth, phi);
        }
        const ComplexVector of_B = times(by_B, B), of_z = times(of_B, slope);
        const DoubleVector by_step = times(by_z, A).re + times(of_B, growth).re;
        by_z.re += step * of_z.re, by_z.im += step * of_z.im;
        const DoubleVector by_real = step * by_z.re, by_imag = step * by_z.im;
        const ComplexVector of_weight = times(by_B, phi);
        store_at(of.by_x, i, {s.log_decay ? by_real * A.re : by_real, s.conjugate ? by_imag : -by_imag});
        store_at(of.by_B, i, {step * of_weight.re, step * of_weight.im});
        const DoubleVector by_dt = s.log_dt ? by_step * step : by_step * s.rate;
        if (grad_dt && s.dt_states == 1) total += sum(by_dt);
        for (int64_t j = 0; grad_dt && s.dt_states != 1 && j < LANES<double> && i + j < n; ++j)
            grad_dt[h * n + i + j] = T(by_dt[j]);
    }
    if (grad_dt && s.dt_states == 1) grad_dt[h] = T(total);
    of.by_x.write(sums, n), of.by_B.write(sums_B, n);
}

template int64_t scan_chain_scratch(const Scan<float> &);
template int64_t scan_chain_scratch(const Scan<double> &);
template void scan_chain(const Scan<float> &, int64_t, double *, float *, char *);
template void scan_chain(const Scan<double> &, int64_t, double *, double *, char *);

}  // namespace s4_fast::cpu::S4_FAST_ISA
