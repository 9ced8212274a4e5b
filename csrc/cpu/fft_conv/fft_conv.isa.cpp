// Rows longer than a few vectors by the transform of fft.h, one by one; short ones as products with Toeplitz matrices.
#include "fft_conv.h"

#include "../shared/finite.h"
#include "../shared/multiply.h"
#include "fft.h"

namespace s4_fast::cpu::S4_FAST_ISA {
namespace {

// The first `count` numbers from `from` on into vectors `step` numbers apart, and zeros into what is left of `vectors`.
template <class T>
Magnitudes<T> lay_out(const T *from, int64_t count, int64_t vectors, T *to, int64_t step, Magnitudes<T> found = {}) {
    const int64_t whole = count > 0 ? count / LANES<T> : 0;
    int64_t v = 0;
    for (; v < whole && v < vectors; ++v) {
        const Vector<T> samples = load(from + v * LANES<T>);
        found.add(samples);
        store(to + v * step, samples);
    }
    for (; v < vectors; ++v) {
        Vector<T> samples = {};
        for (int i = 0; i < LANES<T> && v * LANES<T> + i < count; ++i) samples[i] = from[v * LANES<T> + i];
        found.add(samples);
        store(to + v * step, samples);
    }
    return found;
}

// to[l] = scale times the l-th number of vectors `step` apart, + skip more[l] if there is one, for l < count.
template <class T>
void collect(const T *from, int64_t step, int64_t count, T scale, T skip, const T *more, T *to) {
    int64_t l = 0;
    for (; l + LANES<T> <= count; l += LANES<T>, from += step) {
        Vector<T> v = scale * load(from);
        if (more) v += skip * load(more + l);
        store(to + l, v);
    }
    for (int64_t i = 0; l < count; ++i, ++l) to[l] = scale * from[i] + (more ? skip * more[l] : T(0));
}

// to[l] += skip from[l].
template <class T>
void add_row(int64_t count, T skip, const T *from, T *to) {
    int64_t l = 0;
    for (; l + LANES<T> <= count; l += LANES<T>) store(to + l, load(to + l) + skip * load(from + l));
    for (; l < count; ++l) to[l] += skip * from[l];
}

// A sum of products that may all but cancel: every 64 vectors it goes on in double.
template <class T>
double inner_product(int64_t count, const T *a, const T *b) {
    double total = 0;
    int64_t l = 0;
    while (l + LANES<T> <= count) {
        const int64_t stop = l + 64 * LANES<T>;
        Vector<T> sums = {};
        for (; l < stop && l + LANES<T> <= count; l += LANES<T>) sums += load(a + l) * load(b + l);
        for (int i = 0; i < LANES<T>; ++i) total += double(sums[i]);
    }
    for (; l < count; ++l) total += double(a[l]) * double(b[l]);
    return total;
}

// Finite, unless their sum is beyond the numbers.
template <class T>
bool finite(const Magnitudes<T> &found) {
    return found.sum() * T(0) == 0;
}

// What is not finite has no place in a sum that earlier outputs share: it is left out, and they end where it begins.
template <class T>
void spoil(int64_t good, int64_t count, T *row) {
    for (int64_t l = good; l < count; ++l) row[l] = T(__builtin_nan(""));
}

// ---------------------------------------------------------------------------------------------------------- transforms

// The convolutions of one feature by transforms of N complex numbers: every product of taps and samples has a place
// among their 2N.
template <class T>
class Spectral {
   public:
    static int64_t size(const Conv<T> &conv) { return Transform<T>::size((conv.L + conv.taps()) / 2); }

    Spectral(Arena &tables, Arena &memory, const Conv<T> &conv)
        : conv_(conv), N_(size(conv)), transform_(tables, N_), kernels_(memory.take<T>(conv.c * 2 * N_)) {}

    void set_tables() const { transform_.set(); }

   protected:
    T *kernel(int64_t channel) const { return kernels_ + channel * 2 * N_; }

    // The values of the kernel of a channel at the roots over N, and the number of taps before the first that is not
    // finite, at least one beyond the samples where all are.
    int64_t set_kernel(int64_t h, int64_t channel) const {
        T *const to = kernel(channel);
        const int64_t good = read(conv_.k + (channel * conv_.H + h) * conv_.Lk, conv_.taps(), to);
        const T scale = T(1) / T(N_);
        transform_.forward(to, [=](int64_t at, Pair<T> z) { store_pair(to + at, {scale * z.re, scale * z.im}); });
        return good < conv_.taps() ? good : conv_.L;
    }

    // `count` numbers as a row of the transform, as far as they are finite; how many those are.
    int64_t read(const T *from, int64_t count, T *row) const {
        if (finite(lay_out_row(from, count, row))) return count;
        const int64_t good = finite_samples(from, count);
        lay_out_row(from, good, row);
        return good;
    }
    // Lays the numbers out as they are.
    Magnitudes<T> lay_out_row(const T *from, int64_t count, T *row) const {
        const Magnitudes<T> low = lay_out(from, count, N_ / LANES<T>, row, PAIR<T>);
        return lay_out(from + N_, count - N_, N_ / LANES<T>, row + LANES<T>, PAIR<T>, low);
    }

    // The place of a number in a row.
    int64_t place(int64_t l) const {
        const int64_t at = l < N_ ? l : l - N_;
        return at / LANES<T> * PAIR<T> + at % LANES<T> + (l < N_ ? 0 : LANES<T>);
    }

    void write(const T *row, int64_t count, T scale, T skip, const T *more, T *to) const {
        collect(row, PAIR<T>, count < N_ ? count : N_, scale, skip, more, to);
        if (count > N_) {
            collect(row + LANES<T>, PAIR<T>, count - N_, scale, skip, more ? more + N_ : nullptr, to + N_);
        }
    }

    const Conv<T> &conv_;
    int64_t N_;
    Transform<T> transform_;
    T *kernels_;  // (c, 2N)
};

template <class T>
class SpectralForward : Spectral<T> {
   public:
    SpectralForward(Arena &tables, Arena &memory, const ConvForward<T> &problem)
        : Spectral<T>(tables, memory, problem.conv),
          y_(problem.y),
          good_(memory.take<int64_t>(problem.conv.c)),
          signal_(memory.take<T>(2 * this->N_)),
          product_(memory.take<T>(problem.conv.c > 1 ? 2 * this->N_ : 0)) {}

    void run(const ConvPiece<T> &piece) const {
        const Conv<T> &conv = this->conv_;
        const int64_t L = conv.L, h = piece.h;
        for (int64_t k = 0; k < conv.c; ++k) good_[k] = this->set_kernel(h, k);
        for (int64_t b = piece.first; b < piece.last; ++b) {
            const T *const u = conv.u + conv.row(b, h);
            T *const signal = signal_, *const product = conv.c > 1 ? product_ : signal_;
            int64_t spike = L;
            const int64_t good = read_signal(u, spike);
            this->transform_.forward(signal, [=](int64_t at, Pair<T> z) { store_pair(signal + at, z); });
            for (int64_t k = 0; k < conv.c; ++k) {
                const T *const kernel = this->kernel(k);
                this->transform_.backward(product, [=](int64_t at) {
                    const Pair<T> by = load_pair(kernel + at);
                    return times(load_pair(signal + at), by.re, by.im);
                });
                T *const y = y_ + conv.row(b, k, h);
                const T *const more = conv.D ? u : nullptr;
                this->write(product, L, T(1), conv.D ? conv.D[k * conv.H + h] : T(0), more, y);
                if (spike < L) {
                    const int64_t count = L - spike < conv.taps() ? L - spike : conv.taps();
                    add_row(count, u[spike], conv.k + (k * conv.H + h) * conv.Lk, y + spike);
                }
                spoil(good < good_[k] ? good : good_[k], L, y);
            }
        }
    }

   private:
    // The same as `read`, but a sample that outweighs all others stays out: a transform rounds every output of a row by
    // as much as suits the largest.
    int64_t read_signal(const T *u, int64_t &spike) const {
        constexpr double OUTWEIGHS = 32;
        const int64_t L = this->conv_.L;
        const Magnitudes<T> found = this->lay_out_row(u, L, signal_);
        if (!finite(found)) return this->read(u, L, signal_);
        const T largest = found.largest();
        // The root of the sum of squares of so many others of equal size is their sum over sqrt(L).
        if (double(largest) * ::sqrt(double(L)) <= OUTWEIGHS * double(found.sum() - largest)) return L;
        for (spike = 0; u[spike] != largest && u[spike] != -largest;) ++spike;
        signal_[this->place(spike)] = 0;
        return L;
    }

    T *y_;
    int64_t *good_;
    T *signal_, *product_;
};

// With y = k * u, the gradient of u is the correlation of that of y with k, summed over channels, and that of k is its
// correlation with u, summed over rows: conjugate values, and negative exponents where no product of interest lies.
template <class T>
class SpectralBackward : Spectral<T> {
   public:
    SpectralBackward(Arena &tables, Arena &memory, const ConvBackward<T> &problem)
        : Spectral<T>(tables, memory, problem.conv),
          problem_(problem),
          signal_(memory.take<T>(problem.kernel ? 2 * this->N_ : 0)),
          sums_(memory.take<T>(problem.kernel ? problem.conv.c * 2 * this->N_ : 0)),
          grads_(memory.take<T>(problem.conv.c * 2 * this->N_)) {}

    void run(const ConvPiece<T> &piece) const {
        const Conv<T> &conv = this->conv_;
        const int64_t h = piece.h, size = 2 * this->N_;
        for (int64_t k = 0; k < conv.c && problem_.grad_u; ++k) this->set_kernel(h, k);
        if (problem_.kernel) clear(sums_, conv.c * size);
        for (int64_t b = piece.first; b < piece.last; ++b) {
            T *const signal = signal_;
            if (problem_.kernel) {
                this->lay_out_row(conv.u + conv.row(b, h), conv.L, signal);
                this->transform_.forward(signal, [=](int64_t at, Pair<T> z) { store_pair(signal + at, z); });
            }
            for (int64_t k = 0; k < conv.c; ++k) take_in(b, h, k);
            if (problem_.grad_u) write_grad_u(b, h);
        }
        for (int64_t k = 0; k < conv.c && problem_.kernel; ++k) {
            T *const sums = sums_ + k * size;
            this->transform_.backward(sums, [=](int64_t at) { return load_pair(sums + at); });
            this->write(sums, conv.taps(), T(1) / T(this->N_), T(0), nullptr, piece.grad_k + k * piece.step);
        }
    }

   private:
    // The values of the gradient of y, of which the gradient of k has the product with those of u.
    void take_in(int64_t b, int64_t h, int64_t k) const {
        const int64_t size = 2 * this->N_;
        T *const grad = grads_ + k * size, *const sums = sums_ + k * size;
        const T *const signal = signal_;
        this->lay_out_row(problem_.grad_y + this->conv_.row(b, k, h), this->conv_.L, grad);
        if (problem_.kernel) {
            this->transform_.forward(grad, [=](int64_t at, Pair<T> z) {
                const Pair<T> u = load_pair(signal + at);
                store_pair(sums + at, load_pair(sums + at) + conj_times(z, u.re, u.im));
                store_pair(grad + at, z);
            });
        } else {
            this->transform_.forward(grad, [=](int64_t at, Pair<T> z) { store_pair(grad + at, z); });
        }
    }

    void write_grad_u(int64_t b, int64_t h) const {
        const Conv<T> &conv = this->conv_;
        const int64_t c = conv.c, size = 2 * this->N_;
        T *const grads = grads_;
        const T *const kernels = this->kernels_;
        this->transform_.backward(grads, [=](int64_t at) {
            Pair<T> total = {};
            for (int64_t k = 0; k < c; ++k) {
                const Pair<T> by = load_pair(kernels + k * size + at);
                total = total + conj_times(load_pair(grads + k * size + at), by.re, by.im);
            }
            return total;
        });
        T *const to = problem_.grad_u + conv.row(b, h);
        const T *const dy = problem_.grad_y + conv.row(b, 0, h);
        this->write(grads, conv.L, T(1), conv.D ? conv.D[h] : T(0), conv.D ? dy : nullptr, to);
        for (int64_t k = 1; k < c && conv.D; ++k) {
            add_row(conv.L, conv.D[k * conv.H + h], problem_.grad_y + conv.row(b, k, h), to);
        }
    }

    const ConvBackward<T> &problem_;
    T *signal_, *sums_, *grads_;  // (2N), (c, 2N), (c, 2N)
};

// ------------------------------------------------------------------------------------------------- products of
// matrices

// Rows that are few vectors long, as many at a time as make a product worth it.
constexpr int64_t ROWS = 48;

template <class T>
class Direct {
   public:
    static bool serves(const Conv<T> &conv) { return conv.L <= 8 * LANES<T>; }

    Direct(Arena &memory, const Conv<T> &conv)
        : conv_(conv),
          length_((conv.L + COLUMNS - 1) / COLUMNS * COLUMNS),
          matrix_(memory.take<T>(2 * length_)),
          rows_(memory.take<T>(ROWS * length_)),
          products_(memory.take<T>(ROWS * length_)) {
        if (matrix_) clear(matrix_, length_);
    }

   protected:
    // The matrix whose product with a row is the convolution of `count` numbers with it; whether all are finite.
    bool set_matrix(const T *from, int64_t count) const {
        return finite(lay_out(from, count, length_ / LANES<T>, matrix_ + length_, LANES<T>));
    }

    // `rows` rows, times that matrix.
    void apply(int64_t rows, const T *from, T *to, bool add) const {
        const Product<T> none = {0, {from, length_, 1}, matrix_, -1};
        for (int64_t j = 0; j < length_; j += COLUMNS) {
            const Product<T> product = {j + LANES<T>, {from, length_, 1}, matrix_ + length_ + j, -1};
            multiply_columns<T, 2, Tail::right>(rows, none, product, to + j, length_, add);
        }
    }

    // Reads from the last number to the first: a correlation is a convolution in reversed time.
    void read_reversed(const T *from, T *to) const {
        for (int64_t l = 0; l < length_; ++l) to[l] = l < conv_.L ? from[conv_.L - 1 - l] : T(0);
    }

    static constexpr int64_t COLUMNS = 2 * LANES<T>;

    const Conv<T> &conv_;
    int64_t length_;  // of a row in whole columns
    T *matrix_;       // (2 length): zeros, and a kernel
    T *rows_, *products_;
};

template <class T>
class DirectForward : Direct<T> {
   public:
    DirectForward(Arena &, Arena &memory, const ConvForward<T> &problem)
        : Direct<T>(memory, problem.conv), y_(problem.y), good_(memory.take<int64_t>(ROWS)) {}

    void run(const ConvPiece<T> &piece) const {
        for (int64_t b = piece.first; b < piece.last; b += ROWS) {
            block(piece.h, b, piece.last - b < ROWS ? piece.last - b : ROWS);
        }
    }

   private:
    void block(int64_t h, int64_t b, int64_t rows) const {
        const Conv<T> &conv = this->conv_;
        const int64_t L = conv.L, length = this->length_;
        for (int64_t i = 0; i < rows; ++i) {
            const T *const u = conv.u + conv.row(b + i, h);
            T *const to = this->rows_ + i * length;
            good_[i] = L;
            if (finite(lay_out(u, L, length / LANES<T>, to, LANES<T>))) continue;
            good_[i] = finite_samples(u, L);
            lay_out(u, good_[i], length / LANES<T>, to, LANES<T>);
        }
        for (int64_t k = 0; k < conv.c; ++k) {
            const T *const taps = conv.k + (k * conv.H + h) * conv.Lk;
            int64_t end = L;
            if (!this->set_matrix(taps, conv.taps())) {
                end = finite_samples(taps, conv.taps());
                this->set_matrix(taps, end);
            }
            this->apply(rows, this->rows_, this->products_, false);
            for (int64_t i = 0; i < rows; ++i) {
                T *const y = y_ + conv.row(b + i, k, h);
                const T *const more = conv.D ? conv.u + conv.row(b + i, h) : nullptr;
                collect(this->products_ + i * length, LANES<T>, L, T(1), conv.D ? conv.D[k * conv.H + h] : T(0), more,
                        y);
                spoil(good_[i] < end ? good_[i] : end, L, y);
            }
        }
    }

    T *y_;
    int64_t *good_;
};

template <class T>
class DirectBackward : Direct<T> {
   public:
    DirectBackward(Arena &, Arena &memory, const ConvBackward<T> &problem)
        : Direct<T>(memory, problem.conv), problem_(problem), sums_(memory.take<T>(this->length_)) {}

    void run(const ConvPiece<T> &piece) const {
        const Conv<T> &conv = this->conv_;
        for (int64_t b = piece.first; b < piece.last && problem_.grad_u; b += ROWS) {
            block(piece.h, b, piece.last - b < ROWS ? piece.last - b : ROWS);
        }
        for (int64_t k = 0; k < conv.c && problem_.kernel; ++k) {
            for (int64_t b = piece.first; b < piece.last; ++b) {
                this->set_matrix(conv.u + conv.row(b, piece.h), conv.L);
                this->read_reversed(problem_.grad_y + conv.row(b, k, piece.h), this->rows_);
                this->apply(1, this->rows_, sums_, b > piece.first);
            }
            T *const to = piece.grad_k + k * piece.step;
            for (int64_t j = 0; j < conv.taps(); ++j) to[j] = sums_[conv.L - 1 - j];
        }
    }

   private:
    void block(int64_t h, int64_t b, int64_t rows) const {
        const Conv<T> &conv = this->conv_;
        const int64_t L = conv.L, length = this->length_;
        for (int64_t k = 0; k < conv.c; ++k) {
            for (int64_t i = 0; i < rows; ++i) {
                this->read_reversed(problem_.grad_y + conv.row(b + i, k, h), this->rows_ + i * length);
            }
            this->set_matrix(conv.k + (k * conv.H + h) * conv.Lk, conv.taps());
            this->apply(rows, this->rows_, this->products_, k > 0);
        }
        for (int64_t i = 0; i < rows; ++i) {
            T *const to = problem_.grad_u + conv.row(b + i, h);
            for (int64_t l = 0; l < L; ++l) to[l] = this->products_[i * length + L - 1 - l];
            for (int64_t k = 0; k < conv.c && conv.D; ++k) {
                add_row(L, conv.D[k * conv.H + h], problem_.grad_y + conv.row(b + i, k, h), to);
            }
        }
    }

    const ConvBackward<T> &problem_;
    T *sums_;
};

template <class T>
void skip_gradients(const ConvForward<T> &, const ConvPiece<T> &) {}

template <class T>
void skip_gradients(const ConvBackward<T> &problem, const ConvPiece<T> &piece) {
    const Conv<T> &conv = problem.conv;
    for (int64_t k = 0; k < conv.c && problem.skip; ++k) {
        double total = 0;
        for (int64_t b = piece.first; b < piece.last; ++b) {
            total += inner_product(conv.L, problem.grad_y + conv.row(b, k, piece.h), conv.u + conv.row(b, piece.h));
        }
        piece.grad_D[k * conv.H] = total;
    }
}

template <class Problem>
struct Worker;
template <class T>
struct Worker<ConvForward<T>> {
    using Spectral = SpectralForward<T>;
    using Direct = DirectForward<T>;
};
template <class T>
struct Worker<ConvBackward<T>> {
    using Spectral = SpectralBackward<T>;
    using Direct = DirectBackward<T>;
};

}  // namespace

template <class T>
int64_t conv_table_bytes(const Conv<T> &conv) {
    Arena tables;
    if (!Direct<T>::serves(conv)) Transform<T>(tables, Spectral<T>::size(conv));
    return tables.used();
}

template <class T>
void conv_tables(const Conv<T> &conv, char *memory) {
    Arena tables(memory);
    if (!Direct<T>::serves(conv)) Transform<T>(tables, Spectral<T>::size(conv)).set();
}

template <class Problem>
int64_t conv_scratch(const Problem &problem) {
    Arena tables, memory;
    using T = std::remove_const_t<std::remove_pointer_t<decltype(problem.conv.u)>>;
    if (Direct<T>::serves(problem.conv)) {
        typename Worker<Problem>::Direct(tables, memory, problem);
    } else {
        typename Worker<Problem>::Spectral(tables, memory, problem);
    }
    return memory.used();
}

template <class Problem, class T>
void conv(const Problem &problem, const ConvPiece<T> &piece, char *table_memory, char *scratch) {
    const FlushDenormals flush;
    Arena tables(table_memory), memory(scratch);
    if (Direct<T>::serves(problem.conv)) {
        typename Worker<Problem>::Direct(tables, memory, problem).run(piece);
    } else {
        typename Worker<Problem>::Spectral(tables, memory, problem).run(piece);
    }
    skip_gradients(problem, piece);
}

#define S4_FAST_FOR(T)                                                                \
    template int64_t conv_table_bytes(const Conv<T> &);                               \
    template void conv_tables(const Conv<T> &, char *);                               \
    template int64_t conv_scratch(const ConvForward<T> &);                            \
    template int64_t conv_scratch(const ConvBackward<T> &);                           \
    template void conv(const ConvForward<T> &, const ConvPiece<T> &, char *, char *); \
    template void conv(const ConvBackward<T> &, const ConvPiece<T> &, char *, char *);
S4_FAST_FOR(float)
S4_FAST_FOR(double)
#undef S4_FAST_FOR

}  // namespace s4_fast::cpu::S4_FAST_ISA
