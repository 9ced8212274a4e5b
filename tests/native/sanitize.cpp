// Calls every CPU function of s4_fast.h on heap arrays of exactly the size that it is given, compares with plain loops,
// and ends with code 0 if all is well. To be compiled with the library's sources, a sanitizer and S4_FAST_CHECKED.
//
// Every call is made on every instruction set that there is, with one thread on scratch memory of zeros and with three
// on scratch memory of NaN: the results must have the same bits.
#include "../../csrc/cpu/shared/parallel.h"
#include "../../csrc/include/s4_fast.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <complex>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace s4_fast::cpu {
std::atomic<int> scratch_byte{0};
}

namespace {

using Complex = std::complex<double>;
using Complexes = std::vector<Complex>;
using Reals = std::vector<double>;

std::atomic<int> failures{0};

__attribute__((format(printf, 1, 2))) void report(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::vfprintf(stderr, format, arguments);
    std::fputc('\n', stderr);
    va_end(arguments);
    if (++failures == 20) std::_Exit(1);
}

// ------------------------------------------------------------------------------------------------------------- arrays

double uniform() {
    static uint64_t state = 88172645463325252u;
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return double(state >> 11) / double(uint64_t(1) << 53) * 2 - 1;
}

// Real numbers of one of the two types in memory of exactly their size; none of them: NULL.
class Array {
   public:
    Array(bool wide, int64_t count)
        : wide_(wide), count_(count), memory_(count ? new char[std::size_t(bytes())] : nullptr) {
        for (int64_t i = 0; i < count; ++i) set(i, std::numeric_limits<double>::quiet_NaN());
    }

    static Array random(bool wide, int64_t count, double scale = 1) {
        Array made(wide, count);
        for (int64_t i = 0; i < count; ++i) made.set(i, scale * uniform());
        return made;
    }

    // Logarithms of nodes: some without decay, phases of both signs up to pi.
    static Array nodes(bool wide, int64_t count) {
        Array made(wide, 2 * count);
        for (int64_t i = 0; i < count; ++i) {
            made.set(2 * i, i % 3 ? -0.1 * std::abs(uniform()) : 0), made.set(2 * i + 1, 3.14 * uniform());
        }
        return made;
    }

    void *data() const { return memory_.get(); }
    double *doubles() const { return reinterpret_cast<double *>(memory_.get()); }
    int64_t count() const { return count_; }
    int64_t bytes() const { return count_ * (wide_ ? 8 : 4); }
    bool given() const { return count_ > 0; }

    double operator[](int64_t i) const {
        return wide_ ? reinterpret_cast<const double *>(memory_.get())[i]
                     : double(reinterpret_cast<const float *>(memory_.get())[i]);
    }
    void set(int64_t i, double value) {
        if (wide_) {
            reinterpret_cast<double *>(memory_.get())[i] = value;
        } else {
            reinterpret_cast<float *>(memory_.get())[i] = float(value);
        }
    }
    Complex pair(int64_t i) const { return {(*this)[2 * i], (*this)[2 * i + 1]}; }

    Array copy() const {
        Array made(wide_, count_);
        if (given()) std::memcpy(made.data(), data(), std::size_t(bytes()));
        return made;
    }
    bool same(const Array &other) const {
        return !given() || std::memcmp(data(), other.data(), std::size_t(bytes())) == 0;
    }

   private:
    bool wide_;
    int64_t count_;
    std::unique_ptr<char[]> memory_;
};

using Arrays = std::vector<Array>;

// What a call is to write: numbers that are compared, or, if `checked` is false, that must only be finite.
struct Output {
    const char *name;
    bool wide;
    Reals expected;
    bool checked = true;
};

Reals flat(const Complexes &values) {
    Reals made;
    for (const Complex &value : values) made.push_back(value.real()), made.push_back(value.imag());
    return made;
}

Output none(const char *name) { return {name, false, {}}; }

void compare(const std::string &what, const Output &output, const Array &actual, double tolerance) {
    double error = 0, size = 0;
    for (int64_t i = 0; i < actual.count(); ++i) {
        const double expected = output.expected[std::size_t(i)];
        if (!std::isfinite(actual[i]))
            return report("%s: %s[%lld] is %g", what.c_str(), output.name, (long long)i, actual[i]);
        error += (actual[i] - expected) * (actual[i] - expected), size += expected * expected;
    }
    if (output.checked && !(std::sqrt(error) <= tolerance * (1 + std::sqrt(size)))) {
        report("%s: %s is wrong by %g of %g", what.c_str(), output.name, std::sqrt(error), std::sqrt(size));
    }
}

// -------------------------------------------------------------------------------------------------------------- calls

const char *const ISAS[] = {"avx512", "avx2", "portable"};

using Call = std::function<int(const Arrays &outputs, int64_t threads)>;
using Check = std::function<void(const std::string &what, const Arrays &outputs)>;

Arrays arrays_for(const std::vector<Output> &outputs) {
    Arrays made;
    for (const Output &output : outputs) made.emplace_back(output.wide, int64_t(output.expected.size()));
    return made;
}

void every_way(const std::string &what, double tolerance, const std::vector<Output> &outputs, const Call &call,
               const Check &check = nullptr) {
    for (const char *isa : ISAS) {
        if (s4_fast_cpu_use(isa)) continue;
        const std::string name = what + " " + isa;
        const Arrays one = arrays_for(outputs), three = arrays_for(outputs);
        s4_fast::cpu::scratch_byte = 0;
        if (call(one, 1)) report("%s: %s", name.c_str(), s4_fast_error());
        s4_fast::cpu::scratch_byte = 0xff;
        if (call(three, 3)) report("%s: %s", name.c_str(), s4_fast_error());
        for (std::size_t i = 0; i < outputs.size(); ++i) {
            compare(name, outputs[i], three[i], tolerance);
            if (!one[i].same(three[i])) {
                report("%s: %s depends on the threads or on scratch memory", name.c_str(), outputs[i].name);
            }
        }
        if (check) check(name, three);
    }
    s4_fast_cpu_use(nullptr);
}

// body(outputs) for all of them, and for each alone.
template <class Body>
void for_all_or_one(const std::vector<Output> &every, Body body) {
    body(every);
    for (std::size_t one = 0; one < every.size(); ++one) {
        std::vector<Output> outputs;
        for (std::size_t i = 0; i < every.size(); ++i) outputs.push_back(i == one ? every[i] : none(every[i].name));
        body(outputs);
    }
}

struct Sizes {
    int64_t batch, H, n, L;
};

std::string describe(const char *op, bool wide, Sizes s, bool optional) {
    char text[160];
    std::snprintf(text, sizeof text, "%s %s (%lld, %lld, %lld, %lld)%s", op, wide ? "float64" : "float32",
                  (long long)s.batch, (long long)s.H, (long long)s.n, (long long)s.L,
                  optional ? " with all options" : "");
    return text;
}

double tolerance(bool wide) { return wide ? 1e-10 : 1e-5; }

// --------------------------------------------------------------------------------------------------------- Vandermonde

void test_vandermonde(bool wide, Sizes s, bool) {
    const Array v = Array::random(wide, 2 * s.batch * s.H * s.n), x = Array::nodes(wide, s.H * s.n);
    Reals out(std::size_t(s.batch * s.H * s.L));
    for (int64_t row = 0; row < s.batch * s.H; ++row) {
        for (int64_t i = 0; i < s.n; ++i) {
            const Complex lambda = std::exp(x.pair(row % s.H * s.n + i));
            Complex term = 2.0 * v.pair(row * s.n + i);
            for (int64_t l = 0; l < s.L; ++l, term *= lambda) out[std::size_t(row * s.L + l)] += term.real();
        }
    }
    every_way(describe("vandermonde", wide, s, false), tolerance(wide), {{"out", wide, out}},
              [&](const Arrays &to, int64_t threads) {
                  return s4_fast_cpu_vandermonde(wide, s.batch, s.H, s.n, s.L, v.data(), x.data(), 2, to[0].data(),
                                                 threads);
              });
}

void test_moments(bool wide, Sizes s, bool first) {
    const Array u = Array::random(wide, s.batch * s.H * s.L), x = Array::nodes(wide, s.H * s.n);
    Complexes zeroth(std::size_t(s.batch * s.H * s.n)), with_l(zeroth.size());
    for (int64_t row = 0; row < s.batch * s.H; ++row) {
        for (int64_t i = 0; i < s.n; ++i) {
            const Complex lambda = std::exp(x.pair(row % s.H * s.n + i));
            Complex power = 1;
            for (int64_t l = 0; l < s.L; ++l, power *= lambda) {
                zeroth[std::size_t(row * s.n + i)] += u[row * s.L + l] * power;
                with_l[std::size_t(row * s.n + i)] += double(l) * u[row * s.L + l] * power;
            }
        }
    }
    every_way(describe("moments", wide, s, first), tolerance(wide),
              {{"zeroth", wide, flat(zeroth)}, first ? Output{"first", wide, flat(with_l)} : none("first")},
              [&](const Arrays &to, int64_t threads) {
                  return s4_fast_cpu_moments(wide, s.batch, s.H, s.n, s.L, u.data(), x.data(), to[0].data(),
                                             to[1].data(), threads);
              });
}

// --------------------------------------------------------------------------------------------------------- convolution

// As many taps as samples, or fewer or more.
void test_fft_conv(bool wide, Sizes s, bool optional) {
    const int64_t c = optional ? 2 : 1;
    for (int64_t Lk : {s.L, s.L / 3 + 1, s.L + 5}) {
        const int64_t taps = std::min(Lk, s.L);
        const Array u = Array::random(wide, s.batch * s.H * s.L), k = Array::random(wide, c * s.H * Lk),
                    D = Array::random(wide, optional ? c * s.H : 0), dy = Array::random(wide, c * u.count());
        Reals y(std::size_t(dy.count())), grad_u(std::size_t(u.count())), grad_k(std::size_t(k.count())),
            grad_D(std::size_t(c * s.H));
        for (int64_t row = 0; row < s.batch * c * s.H; ++row) {
            const int64_t of_kernel = row % (c * s.H), of_u = row / (c * s.H) * s.H + row % s.H;
            for (int64_t l = 0; l < s.L; ++l) {
                const int64_t at = row * s.L + l;
                const auto add = [&](int64_t from, double factor) {
                    y[std::size_t(at)] += factor * u[from], grad_u[std::size_t(from)] += factor * dy[at];
                };
                if (optional) add(of_u * s.L + l, D[of_kernel]);
                grad_D[std::size_t(of_kernel)] += dy[at] * u[of_u * s.L + l];
                for (int64_t j = 0; j <= l && j < taps; ++j) {
                    add(of_u * s.L + l - j, k[of_kernel * Lk + j]);
                    grad_k[std::size_t(of_kernel * Lk + j)] += dy[at] * u[of_u * s.L + l - j];
                }
            }
        }
        every_way(describe("fft_conv", wide, s, optional), tolerance(wide), {{"y", wide, y}},
                  [&](const Arrays &to, int64_t threads) {
                      return s4_fast_cpu_fft_conv(wide, s.batch, c, s.H, s.L, Lk, u.data(), k.data(), D.data(),
                                                  to[0].data(), threads);
                  });
        for_all_or_one({{"grad_u", wide, grad_u}, {"grad_k", wide, grad_k}, {"grad_D", wide, grad_D}},
                       [&](const std::vector<Output> &outputs) {
                           every_way(describe("fft_conv_backward", wide, s, optional), tolerance(wide), outputs,
                                     [&](const Arrays &to, int64_t threads) {
                                         return s4_fast_cpu_fft_conv_backward(
                                             wide, s.batch, c, s.H, s.L, Lk, dy.data(), u.data(), k.data(), D.data(),
                                             to[0].data(), to[1].data(), to[2].data(), threads);
                                     });
                       });
    }
}

// A sample that is not finite, and one that outweighs all others, take ways of their own.
void test_bad_samples(bool wide, int64_t L) {
    const int64_t batch = 3, H = 2, place = L / 2;
    const Array k = Array::random(wide, H * L), good = Array::random(wide, batch * H * L);
    for (double value : {1e6, std::numeric_limits<double>::infinity()}) {
        Array u = good.copy();
        u.set(place, value);
        for (const char *isa : ISAS) {
            if (s4_fast_cpu_use(isa)) continue;
            Array y(wide, u.count()), expected(wide, u.count());
            if (s4_fast_cpu_fft_conv(wide, batch, 1, H, L, L, u.data(), k.data(), nullptr, y.data(), 2) ||
                s4_fast_cpu_fft_conv(wide, batch, 1, H, L, L, good.data(), k.data(), nullptr, expected.data(), 2)) {
                report("bad samples: %s", s4_fast_error());
            }
            for (int64_t i = 0; i < u.count(); ++i) {
                const bool reached = place <= i && i < L;
                if (reached ? std::isfinite(y[i]) != std::isfinite(value)
                            : !(std::abs(y[i] - expected[i]) <= tolerance(wide) * double(L))) {
                    report("bad samples: %g makes y[%lld] of %lld %g", value, (long long)i, (long long)L, y[i]);
                }
            }
        }
    }
    s4_fast_cpu_use(nullptr);
}

// --------------------------------------------------------------------------------------------------------------
// Cauchy

// Sums with the poles at(h, l) - w turn(l), and what a sum is multiplied by: turn is 1 but at the roots of unity.
struct CauchyInputs {
    Sizes s;
    int64_t nodes, z_rows;
    bool symmetric;
    Array v, w, z, grad;

    // Without z_rows at the L-th roots of unity.
    CauchyInputs(bool wide, Sizes s, int64_t z_rows, bool symmetric)
        : s(s),
          nodes(z_rows ? s.L : s.L / 2 + 1),
          z_rows(z_rows),
          symmetric(symmetric),
          v(Array::random(wide, 2 * s.batch * s.H * s.n)),
          w(Array::random(wide, 2 * s.H * s.n)),
          z(Array::random(wide, 2 * z_rows * s.L, 4)),
          grad(Array::random(wide, 2 * s.batch * s.H * nodes)) {
        for (int64_t i = 0; i < s.H * s.n; ++i) w.set(2 * i, -0.5 - std::abs(w[2 * i]));
    }

    double angle(int64_t l) const { return std::acos(-1.0) * double(l) / double(s.L); }
    Complex at(int64_t h, int64_t l) const {
        return z_rows ? z.pair(h % z_rows * s.L + l) : Complex(0, 2 * std::sin(angle(l)));
    }
    double turn(int64_t l) const { return z_rows ? 1 : std::cos(angle(l)); }
    Complex factor(int64_t l) const { return z_rows ? 1 : std::polar(1.0, angle(l)); }

    // The sums, and the gradients of v, of z by feature, and of w.
    std::vector<Complexes> all() const {
        Complexes out(std::size_t(s.batch * s.H * nodes)), grad_v(std::size_t(s.batch * s.H * s.n)),
            grad_z(std::size_t(s.H * nodes)), grad_w(std::size_t(s.H * s.n));
        for (int64_t row = 0; row < s.batch * s.H; ++row) {
            const int64_t h = row % s.H;
            for (int64_t l = 0; l < nodes; ++l) {
                const Complex g = grad.pair(row * nodes + l) * std::conj(factor(l));
                Complex &sum = out[std::size_t(row * nodes + l)];
                for (int64_t i = 0; i < s.n; ++i) {
                    const Complex of_v = v.pair(row * s.n + i), pole = w.pair(h * s.n + i);
                    const Complex own = 1.0 / (at(h, l) - pole * turn(l)),
                                  other = symmetric ? 1.0 / (at(h, l) - std::conj(pole) * turn(l)) : 0;
                    sum += of_v * own + std::conj(of_v) * other;
                    const Complex by_own = g * std::conj(of_v * own * own),
                                  by_other = g * std::conj(std::conj(of_v) * other * other);
                    grad_v[std::size_t(row * s.n + i)] += g * std::conj(own) + std::conj(g) * other;
                    grad_w[std::size_t(h * s.n + i)] += turn(l) * (by_own + std::conj(by_other));
                    grad_z[std::size_t(h * nodes + l)] -= by_own + by_other;
                }
                sum *= factor(l);
            }
        }
        return {out, grad_v, grad_z, grad_w};
    }
};

void test_cauchy_mult(bool wide, Sizes s, bool symmetric) {
    for (int64_t z_rows : {int64_t(1), s.H}) {
        const CauchyInputs in(wide, s, z_rows, symmetric);
        std::vector<Complexes> expected = in.all();
        for (int64_t i = 0; z_rows == 1 && i < s.L; ++i) {
            for (int64_t h = 1; h < s.H; ++h) expected[2][std::size_t(i)] += expected[2][std::size_t(h * s.L + i)];
        }
        expected[2].resize(std::size_t(z_rows * s.L));
        every_way(describe("cauchy_mult", wide, s, symmetric), tolerance(wide), {{"out", wide, flat(expected[0])}},
                  [&](const Arrays &to, int64_t threads) {
                      return s4_fast_cpu_cauchy_mult(wide, s.batch, s.H, s.n, s.L, z_rows, in.v.data(), in.z.data(),
                                                     in.w.data(), symmetric, to[0].data(), threads);
                  });
        const std::vector<Output> every = {{"grad_v", wide, flat(expected[1])},
                                           {"grad_z", wide, flat(expected[2])},
                                           {"grad_w", wide, flat(expected[3])}};
        for_all_or_one(every, [&](const std::vector<Output> &outputs) {
            every_way(describe("cauchy_mult_backward", wide, s, symmetric), tolerance(wide), outputs,
                      [&](const Arrays &to, int64_t threads) {
                          return s4_fast_cpu_cauchy_mult_backward(wide, s.batch, s.H, s.n, s.L, z_rows, in.grad.data(),
                                                                  in.v.data(), in.z.data(), in.w.data(), symmetric,
                                                                  to[0].data(), to[1].data(), to[2].data(), threads);
                      });
        });
    }
}

void test_cauchy_bilinear(bool wide, Sizes s, bool optional) {
    const CauchyInputs in(wide, s, 0, true);
    const std::vector<Complexes> expected = in.all();
    every_way(describe("cauchy_bilinear", wide, s, optional), tolerance(wide), {{"out", wide, flat(expected[0])}},
              [&](const Arrays &to, int64_t threads) {
                  return s4_fast_cpu_cauchy_bilinear(wide, s.batch, s.H, s.n, s.L, in.v.data(), in.w.data(),
                                                     to[0].data(), threads);
              });
    every_way(
        describe("cauchy_bilinear_backward", wide, s, optional), tolerance(wide),
        {{"grad_v", wide, flat(expected[1])}, optional ? Output{"grad_w", wide, flat(expected[3])} : none("grad_w")},
        [&](const Arrays &to, int64_t threads) {
            return s4_fast_cpu_cauchy_bilinear_backward(wide, s.batch, s.H, s.n, s.L, in.grad.data(), in.v.data(),
                                                        in.w.data(), to[0].data(), to[1].data(), threads);
        });
}

// ----------------------------------------------------------------------------------------------------------
// recurrence

// The inputs of a scan; D and state may be absent.
struct ScanInputs {
    Sizes s;
    bool wide, time_major;
    Array u, x, B, C, D, state;

    ScanInputs(bool wide, Sizes s, bool optional, bool time_major = false)
        : s(s),
          wide(wide),
          time_major(time_major),
          u(Array::random(wide, s.batch * s.H * s.L)),
          x(Array::nodes(wide, s.H * s.n)),
          B(Array::random(wide, 2 * s.H * s.n)),
          C(Array::random(wide, 2 * s.H * s.n)),
          D(Array::random(wide, optional ? s.H : 0)),
          state(Array::random(wide, optional ? 2 * s.batch * s.H * s.n : 0)) {}

    // Where the sample l of a row and feature is.
    int64_t at(int64_t row, int64_t l) const {
        return time_major ? (row / s.H * s.L + l) * s.H + row % s.H : row * s.L + l;
    }

    int forward(const Array &y, const Array &final, int64_t threads) const {
        return s4_fast_cpu_scan(wide, s.batch, s.H, s.n, s.L, u.data(), x.data(), B.data(), C.data(), D.data(),
                                state.data(), y.data(), final.data(), time_major, threads);
    }

    // to: the gradients of u, x, B, C, D and state.
    int backward(const Array &grad_y, const Array &grad_final, const Arrays &to, int64_t threads) const {
        return s4_fast_cpu_scan_backward(wide, s.batch, s.H, s.n, s.L, grad_y.data(), grad_final.data(), u.data(),
                                         x.data(), B.data(), C.data(), D.data(), state.data(), to[0].data(),
                                         to[1].data(), to[2].data(), to[3].data(), to[4].data(), to[5].data(),
                                         time_major, threads);
    }
};

void test_scan_of(bool wide, Sizes s, bool optional, bool time_major) {
    const ScanInputs in(wide, s, optional, time_major);
    const std::string name = time_major ? "time-major scan" : "scan";
    const Array grad_y = Array::random(wide, in.u.count()), grad_final = Array::random(wide, in.state.count());
    Reals y(std::size_t(in.u.count())), grad_u(y.size()), grad_D(std::size_t(s.H));
    Complexes final(std::size_t(s.batch * s.H * s.n)), grad_state(final.size());
    Complexes grad_x(std::size_t(s.H * s.n)), grad_B(grad_x.size()), grad_C(grad_x.size());
    Complexes states(std::size_t(s.L + 1));
    for (int64_t row = 0; row < s.batch * s.H; ++row) {
        const int64_t h = row % s.H;
        const double D = optional ? in.D[h] : 0;
        const auto at = [&](int64_t l) { return std::size_t(in.at(row, l)); };
        const auto input = [&](int64_t l) { return in.u[in.at(row, l)]; };
        for (int64_t l = 0; l < s.L; ++l) {
            const double dy = grad_y[in.at(row, l)];
            y[at(l)] = D * input(l), grad_u[at(l)] = D * dy;
            grad_D[std::size_t(h)] += dy * input(l);
        }
        for (int64_t i = 0; i < s.n; ++i) {
            const std::size_t parameter = std::size_t(h * s.n + i), node = std::size_t(row * s.n + i);
            const Complex lambda = std::exp(in.x.pair(h * s.n + i)), B = in.B.pair(h * s.n + i),
                          C = in.C.pair(h * s.n + i);
            states[0] = optional ? in.state.pair(row * s.n + i) : 0;
            for (int64_t l = 0; l < s.L; ++l) {
                states[std::size_t(l + 1)] = lambda * states[std::size_t(l)] + B * input(l);
                y[at(l)] += 2 * (C * states[std::size_t(l + 1)]).real();
            }
            final[node] = states[std::size_t(s.L)];
            Complex g = optional ? grad_final.pair(row * s.n + i) : 0;
            for (int64_t l = s.L - 1; l >= 0; --l) {
                const double dy = grad_y[in.at(row, l)];
                g += 2 * dy * std::conj(C);
                grad_u[at(l)] += (std::conj(B) * g).real();
                grad_C[parameter] += 2 * dy * std::conj(states[std::size_t(l + 1)]);
                grad_B[parameter] += input(l) * g;
                grad_x[parameter] += g * std::conj(lambda * states[std::size_t(l)]);
                g *= std::conj(lambda);
            }
            grad_state[node] = g;
        }
    }
    every_way(describe(name.c_str(), wide, s, optional), tolerance(wide),
              {{"y", wide, y}, optional ? Output{"final", wide, flat(final)} : none("final")},
              [&](const Arrays &to, int64_t threads) { return in.forward(to[0], to[1], threads); });

    const Output every[] = {{"grad_u", wide, grad_u},       {"grad_x", wide, flat(grad_x)},
                            {"grad_B", wide, flat(grad_B)}, {"grad_C", wide, flat(grad_C)},
                            {"grad_D", wide, grad_D},       {"grad_state", wide, flat(grad_state)}};
    // All gradients, or that of u alone and, where it is quick, beside each of the others.
    for (int other = 0; other < (optional || s.n * s.L > 4000 ? 1 : 6); ++other) {
        std::vector<Output> outputs;
        for (int i = 0; i < 6; ++i)
            outputs.push_back(optional || i == 0 || i == other ? every[i] : none(every[i].name));
        every_way(describe((name + "_backward").c_str(), wide, s, optional) + " " + every[other].name,
                  10 * tolerance(wide), outputs,
                  [&](const Arrays &to, int64_t threads) { return in.backward(grad_y, grad_final, to, threads); });
    }
}

void test_scan(bool wide, Sizes s, bool optional) { test_scan_of(wide, s, optional, false); }
void test_time_major_scan(bool wide, Sizes s, bool optional) { test_scan_of(wide, s, optional, true); }

// The inputs of a diagonal layer, or of one of low rank besides, whose options come from the bits of `variant`;
// what it writes must only be finite, but for y of a diagonal layer and signals that are not halves.
void test_diagonal_of(bool wide, Sizes s, int64_t variant, int64_t signal, int64_t rank) {
    const auto given = [&](int bit, int64_t count) { return Array::random(wide, variant >> bit & 1 ? count : 0); };
    const int64_t flags = variant & 63, c = 1 + variant % 3, copies = variant & 64 ? s.H : 1,
                  columns = variant & 128 ? s.n : 1;
    const bool both = flags & S4_FAST_BIDIRECTIONAL, time_major = flags & S4_FAST_TIME_MAJOR, half = signal >= 2;
    const int64_t outputs = both ? 2 * c : c, samples = s.batch * s.H * s.L, nodes = s.H * s.n;
    // Two halves lie in the memory of a float, whose value is finite if that of the second is.
    const auto signals = [&](int64_t count) { return half ? count / 2 : count; };
    Array u = Array::random(wide, signals(samples)), grad_y = Array::random(wide, signals(samples * c));
    for (Array *array : {&u, &grad_y}) {
        for (int64_t i = 0; i < array->count() && half; ++i) {
            uint16_t *const halves = static_cast<uint16_t *>(array->data()) + 2 * i;
            halves[0] = halves[1];
        }
    }
    const Array dt = Array::random(wide, s.H * columns), A_real = Array::random(wide, copies * s.n),
                A_imag = Array::random(wide, copies * s.n), C = Array::random(wide, 2 * outputs * nodes),
                P = Array::random(wide, 2 * rank * copies * s.n);
    for (const Array *array : {&dt, &A_real}) {
        const bool logarithm = flags & (array == &dt ? S4_FAST_LOG_DT : S4_FAST_LOG_DECAY);
        for (int64_t i = 0; i < array->count(); ++i) {
            const double size = 0.01 + 0.1 * std::abs((*array)[i]);
            const_cast<Array *>(array)->set(i, logarithm ? std::log(size) : array == &dt ? size : -size);
        }
    }
    const Array B = given(0, 2 * copies * s.n), D = given(2, c * s.H), state = given(3, 2 * s.batch * nodes),
                ahead = given(4, 2 * s.batch * nodes), grad_final = given(5, 2 * s.batch * nodes);
    const double rate = 0.5;

    Reals y(std::size_t(samples * c));
    const auto at = [&](int64_t b, int64_t k, int64_t channels, int64_t h, int64_t l) {
        return time_major ? ((b * s.L + l) * channels + k) * s.H + h : ((b * channels + k) * s.H + h) * s.L + l;
    };
    const bool known = !half && rank == 0;
    for (int64_t b = 0; b < s.batch && known; ++b) {
        for (int64_t h = 0; h < s.H; ++h) {
            for (int64_t k = 0; k < c && D.given(); ++k) {
                for (int64_t l = 0; l < s.L; ++l)
                    y[std::size_t(at(b, k, c, h, l))] += D[k * s.H + h] * u[at(b, 0, 1, h, l)];
            }
            for (int64_t i = 0; i < s.n; ++i) {
                const int64_t copy = h % copies * s.n + i;
                const double by = dt[columns == 1 ? h : h * s.n + i], decay = A_real[copy], turn = A_imag[copy];
                const double step = rate * (flags & S4_FAST_LOG_DT ? std::exp(by) : by);
                const Complex A(flags & S4_FAST_LOG_DECAY ? -std::exp(decay) : decay,
                                flags & S4_FAST_CONJUGATE ? -turn : turn);
                const Complex z = step * A, weight = B.given() ? B.pair(copy) : 1;
                const bool bilinear = flags & S4_FAST_BILINEAR;
                const Complex lambda = bilinear ? (2.0 + z) / (2.0 - z) : std::exp(z);
                const Complex input = step * weight * (bilinear ? 2.0 / (2.0 - z) : (lambda - 1.0) / z);
                for (int64_t k = 0; k < outputs; ++k) {
                    const Array &start = k < c ? state : ahead;
                    const Complex of_C = C.pair(k * nodes + h * s.n + i);
                    Complex now = start.given() ? start.pair((b * s.H + h) * s.n + i) : 0;
                    for (int64_t t = 0; t < s.L; ++t) {
                        const int64_t l = k < c ? t : s.L - 1 - t;
                        double &to = y[std::size_t(at(b, k % c, c, h, l))];
                        if (k >= c) to += 2 * (of_C * now).real();
                        now = lambda * now + input * u[at(b, 0, 1, h, l)];
                        if (k < c) to += 2 * (of_C * now).real();
                    }
                }
            }
        }
    }
    char name[64];
    std::snprintf(name, sizeof name, "%s %lld of signals %lld", rank ? "dplr_scan" : "diagonal", (long long)variant,
                  (long long)signal);
    const std::string what = describe(name, wide, s, false);
    const auto like = [&](const char *of, const Array &array) {
        return Output{of, wide, Reals(std::size_t(array.count())), false};
    };
    every_way(what, tolerance(wide), {known ? Output{"y", wide, y} : like("y", grad_y), like("final", grad_final)},
              [&](const Arrays &to, int64_t threads) {
                  if (rank > 0) {
                      return s4_fast_cpu_dplr_scan(wide, signal, flags, s.batch, s.H, s.n, s.L, c, rank, copies,
                                                   columns, rate, u.data(), dt.data(), A_real.data(), A_imag.data(),
                                                   P.data(), B.data(), C.data(), D.data(), state.data(), ahead.data(),
                                                   to[0].data(), to[1].data(), threads);
                  }
                  return s4_fast_cpu_diagonal(wide, signal, flags, s.batch, s.H, s.n, s.L, c, copies, columns, rate,
                                              u.data(), dt.data(), A_real.data(), A_imag.data(), B.data(), C.data(),
                                              D.data(), state.data(), ahead.data(), to[0].data(), to[1].data(),
                                              threads);
              });
    every_way(what + " backward", tolerance(wide),
              {like("grad_u", u), like("grad_dt", dt), like("grad_A_real", A_real), like("grad_A_imag", A_imag),
               like("grad_B", B), like("grad_C", C), like("grad_D", D), like("grad_state", state),
               like("grad_ahead", Array(wide, both ? ahead.count() : 0)), like("grad_P", P)},
              [&](const Arrays &to, int64_t threads) {
                  const void *const grad = variant & 256 ? nullptr : grad_y.data();
                  if (rank > 0) {
                      return s4_fast_cpu_dplr_scan_backward(
                          wide, signal, flags, s.batch, s.H, s.n, s.L, c, rank, copies, columns, rate, grad,
                          grad_final.data(), u.data(), dt.data(), A_real.data(), A_imag.data(), P.data(), B.data(),
                          C.data(), D.data(), state.data(), ahead.data(), to[0].data(), to[1].data(), to[2].data(),
                          to[3].data(), to[9].data(), to[4].data(), to[5].data(), to[6].data(), to[7].data(),
                          to[8].data(), threads);
                  }
                  return s4_fast_cpu_diagonal_backward(
                      wide, signal, flags, s.batch, s.H, s.n, s.L, c, copies, columns, rate, grad, grad_final.data(),
                      u.data(), dt.data(), A_real.data(), A_imag.data(), B.data(), C.data(), D.data(), state.data(),
                      ahead.data(), to[0].data(), to[1].data(), to[2].data(), to[3].data(), to[4].data(), to[5].data(),
                      to[6].data(), to[7].data(), to[8].data(), threads);
              });
}

void test_layer(bool wide, Sizes s, bool optional, int64_t rank) {
    // Numbers that go through all bits.
    for (int64_t i = optional; i < 8; i += 2) {
        const int64_t variant = (i * 73 + s.L) & 511;
        test_diagonal_of(wide, s, variant, wide, rank);
        if (!wide && s.batch * s.H * s.L % 2 == 0) test_diagonal_of(wide, s, variant, 2 + i / 2 % 2, rank);
    }
}

void test_diagonal(bool wide, Sizes s, bool optional) { test_layer(wide, s, optional, 0); }
void test_dplr_scan(bool wide, Sizes s, bool optional) { test_layer(wide, s, optional, 1 + s.L % 2); }

void test_step(bool wide, Sizes s, bool optional) {
    const Array x = Array::nodes(wide, s.H * s.n);
    Array lambda(true, 2 * s.H * s.n);
    Reals expected(std::size_t(2 * s.H * s.n));
    for (int64_t i = 0; i < s.H * s.n; ++i) {
        const Complex power = std::exp(x.pair(i));
        expected[std::size_t(2 * i)] = power.real(), expected[std::size_t(2 * i + 1)] = power.imag();
        lambda.set(2 * i, power.real()), lambda.set(2 * i + 1, power.imag());
    }
    every_way(describe("exp", wide, s, false), tolerance(wide), {{"lambda", true, expected}},
              [&](const Arrays &to, int64_t threads) {
                  return s4_fast_cpu_exp(wide, s.H * s.n, x.data(), to[0].doubles(), threads);
              });

    const ScanInputs in(wide, {s.batch, s.H, s.n, 1}, optional);
    const Array state = Array::random(wide, 2 * s.batch * s.H * s.n);
    Reals y(std::size_t(s.batch * s.H));
    Complexes next(std::size_t(s.batch * s.H * s.n));
    for (int64_t row = 0; row < s.batch * s.H; ++row) {
        const int64_t h = row % s.H;
        y[std::size_t(row)] = optional ? in.D[h] * in.u[row] : 0;
        for (int64_t i = 0; i < s.n; ++i) {
            Complex &after = next[std::size_t(row * s.n + i)];
            after = lambda.pair(h * s.n + i) * state.pair(row * s.n + i) + in.B.pair(h * s.n + i) * in.u[row];
            y[std::size_t(row)] += 2 * (in.C.pair(h * s.n + i) * after).real();
        }
    }
    for (bool in_place : {false, true}) {
        every_way(describe("step", wide, s, optional) + (in_place ? " in place" : ""), tolerance(wide),
                  {{"y", wide, y}, {"next", wide, flat(next)}}, [&](const Arrays &to, int64_t threads) {
                      if (in_place) std::memcpy(to[1].data(), state.data(), std::size_t(state.bytes()));
                      return s4_fast_cpu_step(wide, s.batch, s.H, s.n, in.u.data(),
                                              in_place ? to[1].data() : state.data(), lambda.doubles(), in.B.data(),
                                              in.C.data(), in.D.data(), to[0].data(), to[1].data(), threads);
                  });
    }
}

void test_step_backward(bool wide, Sizes s, bool optional) {
    const ScanInputs in(wide, {s.batch, s.H, s.n, 1}, optional);
    const Array lambda = Array::random(true, 2 * s.H * s.n), state = Array::random(wide, 2 * s.batch * s.H * s.n);
    const Array grad_y = Array::random(wide, s.batch * s.H),
                grad_next = Array::random(wide, optional ? state.count() : 0);
    Reals grad_u(std::size_t(s.batch * s.H)), grad_D(std::size_t(s.H));
    Complexes grad_state(std::size_t(s.batch * s.H * s.n)), grad_x(std::size_t(s.H * s.n)), grad_B(grad_x.size()),
        grad_C(grad_x.size());
    for (int64_t row = 0; row < s.batch * s.H; ++row) {
        const int64_t h = row % s.H;
        const double u = in.u[row], dy = grad_y[row];
        grad_u[std::size_t(row)] = optional ? in.D[h] * dy : 0;
        grad_D[std::size_t(h)] += dy * u;
        for (int64_t i = 0; i < s.n; ++i) {
            const std::size_t parameter = std::size_t(h * s.n + i), node = std::size_t(row * s.n + i);
            const Complex factor = lambda.pair(h * s.n + i), B = in.B.pair(h * s.n + i);
            const Complex kept = factor * state.pair(row * s.n + i);
            const Complex q =
                2 * dy * std::conj(in.C.pair(h * s.n + i)) + (optional ? grad_next.pair(row * s.n + i) : 0);
            grad_u[std::size_t(row)] += (std::conj(B) * q).real();
            grad_state[node] = std::conj(factor) * q;
            grad_x[parameter] += q * std::conj(kept), grad_B[parameter] += u * q;
            grad_C[parameter] += 2 * dy * std::conj(kept + u * B);
        }
    }
    const std::vector<Output> every = {{"grad_u", wide, grad_u},       {"grad_state", wide, flat(grad_state)},
                                       {"grad_x", wide, flat(grad_x)}, {"grad_B", wide, flat(grad_B)},
                                       {"grad_C", wide, flat(grad_C)}, {"grad_D", wide, grad_D}};
    for_all_or_one(every, [&](const std::vector<Output> &outputs) {
        every_way(describe("step_backward", wide, s, optional), tolerance(wide), outputs,
                  [&](const Arrays &to, int64_t threads) {
                      return s4_fast_cpu_step_backward(wide, s.batch, s.H, s.n, grad_y.data(), grad_next.data(),
                                                       in.u.data(), state.data(), lambda.doubles(), in.B.data(),
                                                       in.C.data(), in.D.data(), to[0].data(), to[1].data(),
                                                       to[2].data(), to[3].data(), to[4].data(), to[5].data(), threads);
                  });
    });
}

// ----------------------------------------------------------------------------------------------------------------
// DPLR

// v, w and shift of a DPLR kernel, and its spectrum by the formula of the header.
struct DplrInputs {
    int64_t b, c, rank;
    Sizes s;
    bool wide;
    Array v, w, shift;

    DplrInputs(bool wide, Sizes s, int64_t b, int64_t c, int64_t rank)
        : b(b),
          c(c),
          rank(rank),
          s(s),
          wide(wide),
          v(Array::random(true, 2 * (c + rank) * (b + rank) * s.H * s.n, 0.1 / double(s.n))),
          w(Array::random(wide, 2 * s.H * s.n)),
          shift(Array::random(true, (c + rank) * (b + rank) * s.H)) {
        for (int64_t i = 0; i < s.H * s.n; ++i) w.set(2 * i, -0.5 - std::abs(w[2 * i]));
        // The part that is eliminated is the identity and something small.
        for (int64_t r = 0; r < rank; ++r) {
            for (int64_t q = 0; q < rank; ++q) {
                for (int64_t h = 0; h < s.H; ++h) shift.set(((c + r) * (b + rank) + b + q) * s.H + h, r == q);
            }
        }
    }

    int64_t nodes() const { return s.L / 2 + 1; }

    Complexes spectrum() const {
        const int64_t rows = c + rank, columns = b + rank;
        Complexes out(std::size_t(b * c * s.H * nodes())), M(std::size_t(rows * columns));
        for (int64_t h = 0; h < s.H; ++h) {
            for (int64_t f = 0; f < nodes(); ++f) {
                const double half = std::acos(-1.0) * double(f) / double(s.L);
                const Complex root = std::polar(1.0, -2 * half), turn = std::polar(1.0, half);
                for (int64_t i = 0; i < rows * columns; ++i) {
                    Complex rho = 0;
                    for (int64_t k = 0; k < s.n; ++k) {
                        const Complex of_v = v.pair((i * s.H + h) * s.n + k), pole = w.pair(h * s.n + k);
                        const Complex at(0, 2 * std::sin(half));
                        rho += of_v / (at - pole * std::cos(half));
                        rho += std::conj(of_v) / (at - std::conj(pole) * std::cos(half));
                    }
                    M[std::size_t(i)] = shift[i * s.H + h] + (i / columns < c ? 1.0 : (1.0 + root) / 2.0) * turn * rho;
                }
                for (int64_t step = rank - 1; step >= 0; --step) {
                    const int64_t p = c + step, q = b + step;
                    for (int64_t i = 0; i < p; ++i) {
                        const Complex factor = M[std::size_t(i * columns + q)] / M[std::size_t(p * columns + q)];
                        for (int64_t j = 0; j < q; ++j)
                            M[std::size_t(i * columns + j)] -= factor * M[std::size_t(p * columns + j)];
                    }
                }
                for (int64_t j = 0; j < b; ++j) {
                    for (int64_t i = 0; i < c; ++i) {
                        out[std::size_t(((j * c + i) * s.H + h) * nodes() + f)] = M[std::size_t(i * columns + j)];
                    }
                }
            }
        }
        return out;
    }
};

double inner(const Reals &a, const Array &b) {
    double total = 0;
    for (int64_t i = 0; i < b.count(); ++i) total += a[std::size_t(i)] * b[i];
    return total;
}

void test_dplr(bool wide, Sizes s, bool optional) {
    const int64_t b = optional ? 2 : 1, c = s.batch, rank = optional ? 2 : 1;
    DplrInputs in(wide, s, b, c, rank);
    const Reals spectrum = flat(in.spectrum());
    every_way(describe("dplr_spectrum", wide, s, optional), tolerance(wide), {{"spectrum", wide, spectrum}},
              [&](const Arrays &to, int64_t threads) {
                  return s4_fast_cpu_dplr_spectrum(wide, b, c, rank, s.H, s.n, s.L, in.v.doubles(), in.w.data(),
                                                   in.shift.doubles(), to[0].data(), threads);
              });

    // The gradient in a direction is the derivative of the spectrum in it.
    const Array grad = Array::random(wide, int64_t(spectrum.size()));
    const Array along_v = Array::random(true, in.v.count()), along_w = Array::random(true, in.w.count());
    const double step = 1e-5;
    double derivative = 0;
    for (int sign : {1, -1}) {
        DplrInputs moved(true, s, b, c, rank);
        for (int64_t i = 0; i < in.v.count(); ++i) moved.v.set(i, in.v[i] + sign * step * along_v[i]);
        for (int64_t i = 0; i < in.w.count(); ++i) moved.w.set(i, in.w[i] + (optional ? sign * step * along_w[i] : 0));
        moved.shift = in.shift.copy();
        derivative += sign * inner(flat(moved.spectrum()), grad) / (2 * step);
    }
    const auto finite = [](const char *name, int64_t count) {
        return Output{name, true, Reals(std::size_t(count)), false};
    };
    every_way(
        describe("dplr_spectrum_backward", wide, s, optional), 0,
        {finite("grad_v", in.v.count()), optional ? finite("grad_w", in.w.count()) : none("grad_w")},
        [&](const Arrays &to, int64_t threads) {
            return s4_fast_cpu_dplr_spectrum_backward(wide, b, c, rank, s.H, s.n, s.L, grad.data(), in.v.doubles(),
                                                      in.w.data(), in.shift.doubles(), to[0].doubles(), to[1].doubles(),
                                                      threads);
        },
        [&](const std::string &what, const Arrays &to) {
            double found = 0;
            for (int64_t i = 0; i < in.v.count(); ++i) found += to[0][i] * along_v[i];
            for (int64_t i = 0; i < to[1].count(); ++i) found += to[1][i] * along_w[i];
            if (!(std::abs(found - derivative) <= 1e-5 * (1 + std::abs(derivative)))) {
                report("%s: derivative %g, expected %g", what.c_str(), found, derivative);
            }
        });
}

void test_dplr_step(bool wide, Sizes s, bool optional) {
    const int64_t rank = optional ? 3 : 1, c = optional ? 2 : 1;
    const auto pairs = [&](int64_t count) { return Array::random(wide, 2 * count * s.H * s.n); };
    const Array u = Array::random(wide, s.batch * s.H), state = pairs(s.batch), B = pairs(1);
    const Array G = pairs(rank), V = pairs(rank), C = pairs(c), D = Array::random(wide, optional ? s.H : 0);
    const Array increment = Array::random(true, 2 * s.H * s.n);
    Reals y(std::size_t(s.batch * c * s.H));
    Complexes next(std::size_t(s.batch * s.H * s.n));
    for (int64_t row = 0; row < s.batch * s.H; ++row) {
        const int64_t h = row % s.H, first = row * s.n;
        const auto overlap = [&](const Array &with, int64_t k, auto at) {
            double total = 0;
            for (int64_t i = 0; i < s.n; ++i) total += 2 * (with.pair((k * s.H + h) * s.n + i) * at(first + i)).real();
            return total;
        };
        for (int64_t i = 0; i < s.n; ++i) {
            const Complex before = state.pair(first + i);
            next[std::size_t(first + i)] = before + increment.pair(h * s.n + i) * before + B.pair(h * s.n + i) * u[row];
        }
        for (int64_t r = 0; r < rank; ++r) {
            const double factor = overlap(V, r, [&](int64_t i) { return state.pair(i); });
            for (int64_t i = 0; i < s.n; ++i) next[std::size_t(first + i)] -= factor * G.pair((r * s.H + h) * s.n + i);
        }
        for (int64_t k = 0; k < c; ++k) {
            y[std::size_t((row / s.H * c + k) * s.H + h)] =
                overlap(C, k, [&](int64_t i) { return next[std::size_t(i)]; }) + (optional ? D[h] * u[row] : 0);
        }
    }
    for (bool in_place : {false, true}) {
        every_way(describe("dplr_step", wide, s, optional) + (in_place ? " in place" : ""), tolerance(wide),
                  {{"y", wide, y}, {"next", wide, flat(next)}}, [&](const Arrays &to, int64_t threads) {
                      if (in_place) std::memcpy(to[1].data(), state.data(), std::size_t(state.bytes()));
                      return s4_fast_cpu_dplr_step(wide, s.batch, c, rank, s.H, s.n, u.data(),
                                                   in_place ? to[1].data() : state.data(), increment.doubles(),
                                                   G.data(), V.data(), B.data(), C.data(), D.data(), to[0].data(),
                                                   to[1].data(), threads);
                  });
    }
}

void test_dplr_step_backward(bool wide, Sizes s, bool optional) {
    const int64_t rank = optional ? 3 : 1, c = optional ? 2 : 1;
    const auto pairs = [&](int64_t count) { return Array::random(wide, 2 * count * s.H * s.n); };
    const Array u = Array::random(wide, s.batch * s.H), state = pairs(s.batch), B = pairs(1);
    const Array G = pairs(rank), V = pairs(rank), C = pairs(c), D = Array::random(wide, optional ? s.H : 0);
    const Array increment = Array::random(true, 2 * s.H * s.n), grad_y = Array::random(wide, s.batch * c * s.H),
                grad_next = Array::random(wide, optional ? state.count() : 0);
    Reals grad_u(std::size_t(s.batch * s.H)), grad_D(std::size_t(s.H));
    Complexes grad_state(std::size_t(s.batch * s.H * s.n)), grad_increment(std::size_t(s.H * s.n)),
        grad_B(grad_increment.size()), grad_G(std::size_t(rank * s.H * s.n)), grad_V(grad_G.size()),
        grad_C(std::size_t(c * s.H * s.n)), next(std::size_t(s.n)), q(next.size());
    for (int64_t row = 0; row < s.batch * s.H; ++row) {
        const int64_t h = row % s.H, first = row * s.n, own = h * s.n;
        const auto at = [&](int64_t k, int64_t i) { return (k * s.H + h) * s.n + i; };
        const auto dy = [&](int64_t k) { return grad_y[(row / s.H * c + k) * s.H + h]; };
        for (int64_t k = 0; k < c; ++k) {
            grad_u[std::size_t(row)] += optional ? D[h] * dy(k) : 0;
            grad_D[std::size_t(h)] += u[row] * dy(k);
        }
        for (int64_t i = 0; i < s.n; ++i) {
            const Complex s_i = state.pair(first + i), a = increment.pair(own + i);
            Complex &grad = q[std::size_t(i)];
            grad = optional ? grad_next.pair(first + i) : 0;
            for (int64_t k = 0; k < c; ++k) grad += 2 * dy(k) * std::conj(C.pair(at(k, i)));
            next[std::size_t(i)] = s_i + a * s_i + B.pair(own + i) * u[row];
            grad_u[std::size_t(row)] += (std::conj(B.pair(own + i)) * grad).real();
            grad_state[std::size_t(first + i)] = grad + std::conj(a) * grad;
            grad_increment[std::size_t(own + i)] += grad * std::conj(s_i);
            grad_B[std::size_t(own + i)] += grad * u[row];
        }
        for (int64_t r = 0; r < rank; ++r) {
            double overlap = 0, pull = 0;
            for (int64_t i = 0; i < s.n; ++i) {
                overlap += 2 * (V.pair(at(r, i)) * state.pair(first + i)).real();
                pull -= (std::conj(G.pair(at(r, i))) * q[std::size_t(i)]).real();
            }
            for (int64_t i = 0; i < s.n; ++i) {
                next[std::size_t(i)] -= overlap * G.pair(at(r, i));
                grad_G[std::size_t(at(r, i))] -= overlap * q[std::size_t(i)];
                grad_V[std::size_t(at(r, i))] += 2 * pull * std::conj(state.pair(first + i));
                grad_state[std::size_t(first + i)] += 2 * pull * std::conj(V.pair(at(r, i)));
            }
        }
        for (int64_t k = 0; k < c; ++k) {
            for (int64_t i = 0; i < s.n; ++i)
                grad_C[std::size_t(at(k, i))] += 2 * dy(k) * std::conj(next[std::size_t(i)]);
        }
    }
    const std::vector<Output> every = {{"grad_u", wide, grad_u},
                                       {"grad_state", wide, flat(grad_state)},
                                       {"grad_increment", true, flat(grad_increment)},
                                       {"grad_G", wide, flat(grad_G)},
                                       {"grad_V", wide, flat(grad_V)},
                                       {"grad_B", wide, flat(grad_B)},
                                       {"grad_C", wide, flat(grad_C)},
                                       {"grad_D", wide, grad_D}};
    for_all_or_one(every, [&](const std::vector<Output> &outputs) {
        every_way(describe("dplr_step_backward", wide, s, optional), tolerance(wide), outputs,
                  [&](const Arrays &to, int64_t threads) {
                      return s4_fast_cpu_dplr_step_backward(
                          wide, s.batch, c, rank, s.H, s.n, grad_y.data(), grad_next.data(), u.data(), state.data(),
                          increment.doubles(), G.data(), V.data(), B.data(), C.data(), D.data(), to[0].data(),
                          to[1].data(), to[2].doubles(), to[3].data(), to[4].data(), to[5].data(), to[6].data(),
                          to[7].data(), threads);
                  });
    });
}

// ------------------------------------------------------------------------------------------------ callers and
// processes

// A scan with its gradients, whose results are those of the first time it was called.
class Repeated {
   public:
    Repeated() : in_(false, {3, 8, 5, 400}, true), grad_y_(Array::random(false, in_.u.count())), expected_(run(1)) {}

    // Whether it failed.
    bool call(int64_t threads) const {
        const Arrays found = run(threads);
        for (std::size_t i = 0; i < found.size(); ++i) {
            if (!found[i].same(expected_[i])) return true;
        }
        return false;
    }

   private:
    Arrays run(int64_t threads) const {
        Arrays made;
        for (const Array *like : {&in_.u, &in_.x, &in_.B, &in_.C, &in_.D, &in_.state, &in_.u, &in_.state}) {
            made.emplace_back(false, like->count());
        }
        if (in_.forward(made[6], made[7], threads) || in_.backward(grad_y_, made[7], made, threads)) {
            report("repeated scan: %s", s4_fast_error());
        }
        return made;
    }

    ScanInputs in_;
    Array grad_y_;
    Arrays expected_;
};

void test_many_callers(int times) {
    const Repeated repeated;
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 4; ++caller) {
        callers.emplace_back([&, caller] {
            char message[64];
            std::snprintf(message, sizeof message, "exp: count must be at least 1, got %d", -caller);
            for (int time = 0; time < times; ++time) {
                if (!s4_fast_cpu_exp(0, -caller, nullptr, nullptr, 1)) report("exp takes a count of %d", -caller);
                if (repeated.call(1 + caller)) report("callers at once: wrong results");
                if (std::strcmp(s4_fast_error(), message) != 0) report("another caller's message: %s", s4_fast_error());
            }
        });
    }
    for (std::thread &caller : callers) caller.join();
}

// Pieces that keep the pool's threads until they are let go.
struct Held {
    std::atomic<int> pieces{0};
    std::atomic<bool> stop{false};

    static void piece(void *context, int64_t, int64_t) {
        Held &held = *static_cast<Held *>(context);
        ++held.pieces;
        while (!held.stop) std::this_thread::yield();
    }
};

// Another thread has the pool while the process forks, or none has. It allocates nothing then: AddressSanitizer's
// allocator may stay locked in a process forked while another thread is inside it.
void test_fork(bool held, int times) {
    const Repeated repeated;
    if (repeated.call(3)) report("before fork: wrong results");
    Held holder;
    std::thread caller;
    if (held) {
        caller = std::thread([&] { s4_fast::cpu::run_pieces(2, 2, Held::piece, &holder); });
        while (holder.pieces < 2) std::this_thread::yield();
    }
    for (int time = 0; time < times; ++time) {
        const pid_t child = fork();
        if (child == 0) {
            alarm(60);
            _exit(repeated.call(3) || repeated.call(2) ? 1 : 0);
        }
        int status = -1;
        if (child < 0 || waitpid(child, &status, 0) != child || status != 0) {
            report("in a forked process: status %d", status);
            break;
        }
        if (repeated.call(3)) report("after a fork: wrong results");
    }
    holder.stop = true;
    if (held) caller.join();
}

using Test = void (*)(bool wide, Sizes sizes, bool optional);

void for_both_types(Test test, Sizes sizes) {
    for (bool wide : {false, true}) {
        for (bool optional : {false, true}) test(wide, sizes, optional);
    }
}

}  // namespace

// The argument: "all", or "threads" for what a race can show in. ThreadSanitizer has no threads in forked processes.
int main(int count, char **arguments) {
    alarm(900);  // ends a process whose threads wait for each other
    const bool all = count > 1 && std::strcmp(arguments[1], "all") == 0;
    const Test cauchy[] = {test_cauchy_mult, test_cauchy_bilinear},
               sequences[] = {test_vandermonde, test_moments, test_scan, test_dplr},
               steps[] = {test_step, test_step_backward, test_dplr_step, test_dplr_step_backward};
    for (int64_t n : {1, 3, 17, 33}) {
        for (int64_t batch : {1, 3}) {
            if (!all && n * batch != 9) continue;
            for (int64_t L : {1, 31, 32, 33, 63, 100, 1600}) {
                if (!all && L < 100) continue;
                for (Test test : sequences) for_both_types(test, {batch, 2, n, L});
                for (Test test : cauchy) for_both_types(test, {batch, 2, n, L});
                if (n == 3) for_both_types(test_time_major_scan, {batch, 21, n, L});
                if (n == 3) for_both_types(test_diagonal, {batch, 18, n, L});
                if (n == 3) for_both_types(test_dplr_scan, {batch, 18, n, L});
            }
            for (Test test : steps) for_both_types(test, {batch, 5, n, 1});
        }
    }
    for (int64_t L : {1, 17, 64, 65, 129, 300, 1047, 3100}) {
        if (!all && L != 300) continue;
        for_both_types(test_fft_conv, {3, 2, 0, L});
        for (bool wide : {false, true}) test_bad_samples(wide, L);
    }
    // Rows of a feature in several pieces, and of a convolution more than a product takes; states of more nodes than a
    // piece has; several segments of kept states.
    for (Test test : {test_vandermonde, test_moments, test_scan}) for_both_types(test, {4, 1, 2, 16500});
    for (Test test : {test_time_major_scan, test_diagonal}) for_both_types(test, {4, 2, 2, 16500});
    for_both_types(test_dplr_scan, {3, 2, 2, 2200});
    for_both_types(test_fft_conv, {400, 1, 0, 100});
    for (Test test : {test_dplr, test_dplr_step, test_dplr_step_backward}) for_both_types(test, {1, 1, 2, 5000});
    // Rows in several groups, and ranges of nodes.
    for (Test test : cauchy) for_both_types(test, {7, 1, 40, 2600});
    for (Test test : steps) for_both_types(test, {3, 7, 3200, 1});
    if (all) test_scan(true, {1, 1, 256, 16003}, true);
    if (all) test_time_major_scan(true, {1, 11, 130, 3100}, true);
    test_many_callers(all ? 20 : 5);
    for (bool held : {false, true}) {
        if (all) test_fork(held, 5);
    }
    std::printf("%d failures\n", failures.load());
    return failures ? 1 : 0;
}
