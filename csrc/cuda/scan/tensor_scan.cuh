// A diagonal scan on tensor cores: a warp has 16 rows and goes through their chunks in order, their states in
// registers.
//
// A row is a segment of one sequence of the batch. Where a sequence has several, a first pass finds what each leaves
// behind, and their carry, in double, the state before each. With S the states of a chunk's row, all of (16, ...),
//     y = R u + X_out S,   S <- lambda^T S + X_in u,
// where R has the response K[t - i], X_in the rows enter lambda^{T-1-i} and X_out the columns leave lambda^t.
// Backwards, for the gradient of u from that of y, enter and leave change places and each exponent e is T - 1 - e: time
// runs backwards within the chunk.
//
// Everything is scaled by powers of two for the halves that the products take: R as a whole; the rows of X_in each; the
// columns of X_out each, whose states are kept scaled the other way; the samples and the states of a row, in each
// chunk.
#pragma once

#include <algorithm>

#include "scan_call.cuh"
#include "scan_prepare.cuh"
#include "tensor_tables.cuh"

namespace s4_fast::cuda::tensor {
namespace {

// How many chunks are carried in float32 at most: a whole sequence's, or a segment's. Rounding adds up over these.
constexpr int64_t LONGEST_WHOLE = 64, LONGEST_SEGMENT = 16;

// A scan cut into rows.
struct Cut {
    Scan scan;
    int64_t segments, each;  // of a sequence, and the chunks of one
    __host__ S4_FAST_INLINE int64_t rows() const { return scan.batch * segments; }
    __host__ S4_FAST_INLINE int64_t tiles() const { return (rows() + ROWS - 1) / ROWS; }
    // Whether a block has all rows of its features, and so what its segments leave behind.
    __host__ S4_FAST_INLINE bool is_complete() const { return tiles() <= WARPS; }
};

// Up to how many features one block for each leaves most of a GPU idle.
#ifdef S4_FAST_EMULATE
constexpr int64_t FEW_FEATURES = 1;
#else
constexpr int64_t FEW_FEATURES = 128;
#endif

// Rows for two warps of a block, as the carry takes longer than what more would share, unless whole sequences keep a
// GPU busy, which saves going through them twice, or so few features leave it idle that a launch for the carry pays.
inline Cut make_cut(const Scan &scan) {
    const int64_t least = scan.chunks <= LONGEST_WHOLE ? 1 : divide_up(scan.chunks, LONGEST_SEGMENT);
    int64_t segments = divide_up(2 * ROWS, scan.batch);
    if (scan.H * divide_up(scan.batch, ROWS) >= ENOUGH_BLOCKS && scan.batch >= ROWS)
        segments = 1;
    else if (scan.H <= FEW_FEATURES)
        segments = std::max(segments, 2 * ENOUGH_BLOCKS * ROWS / (scan.H * scan.batch));
    const int64_t each = divide_up(scan.chunks, std::min(std::max(segments, least), scan.chunks));
    return {scan, divide_up(scan.chunks, each), each};
}

template <class S>
struct Pass {
    const Node<float> *nodes;
    const Node<double> *wide;
    const Complex<float> *enter, *leave;  // (H, n)
    const float *response;                // (H, 2 T), lag 0 in the middle
    const S *samples;                     // (batch, H, L), or NULL for 0
    const Complex<float> *initial;        // (batch, H, n), or NULL for 0
    Complex<float> *final;                // the same, or NULL
    Complex<float> *segments;             // (batch, H, segments, n), or NULL where there is one
    Complex<float> *states;               // (batch, H, chunks, n), those before each chunk, or NULL
    S *out;                               // (batch, H, L)
    const float *add;                     // like out: what other states give, or NULL for nothing
    float *partial;                       // in the place of out, or NULL
    int64_t first;                        // the first of this pass's states
    bool conjugate;                       // whether initial and final are the conjugates of what is carried
    bool aligned;                         // samples and out to 16 bytes, in every row
};

// What advances the states of a block.
struct StateTables {
    PowerTable<STATE_PARTS> in;
    Decays decays;
    // The scales of the states in registers, their inverses, and the scales of what X_in gives for them.
    float factor[STATES], inverse[STATES], entered[STATES];
};

// These, and what gives the outputs.
template <int PARTS>
struct ScanTables : StateTables {
    PowerTable<PARTS> out;
    uint32_t response[PARTS][2][7][WARP];  // as load_response reads it
    float response_down;
};

// R of a half chunk's outputs by the samples of the same or of the half before, step s and block j:
//     K[base] and K[base - 1], K[base - 2] and K[base - 3],   base = 32 apart + 8 (c / 2 - q) + c % 2 + 2 (j - 2 s),
// c the column g. Backwards, all of that is negative but for 32 apart.
template <bool BACKWARDS, int PARTS>
S4_FAST_INLINE void make_responses(uint32_t (&words)[PARTS][2][7][WARP], const float *K, float scale, int warps) {
    const int lane = threadIdx.x % WARP, column = lane / 4, q = lane % 4;
    for (int entry = threadIdx.x / WARP; entry < 14; entry += warps) {
        const int apart = entry / 7, distance = entry % 7 - 3;
        const int first = 8 * (column / 2 - q) + column % 2;
        const int base = 32 * apart + (BACKWARDS ? -first : first) + 2 * distance,
                  next = BACKWARDS ? base + 1 : base - 1;
        uint32_t found[PARTS];
        split(base < 0 || base >= CHUNK_SAMPLES ? 0.0f : scale * K[base],
              next < 0 || next >= CHUNK_SAMPLES ? 0.0f : scale * K[next], found);
#pragma unroll
        for (int p = 0; p < PARTS; ++p) words[p][apart][entry % 7][lane] = found[p];
    }
}

template <bool BACKWARDS, int PARTS>
S4_FAST_INLINE void load_response(uint32_t (&operand)[PARTS][2], const uint32_t (&words)[PARTS][2][7][WARP], int apart,
                                  int s, int j) {
    const int lane = threadIdx.x % WARP, distance = (BACKWARDS ? 2 * s - j : j - 2 * s) + 3;
#pragma unroll
    for (int p = 0; p < PARTS; ++p) {
        operand[p][0] = words[p][apart][distance][lane];
        operand[p][1] = words[p][apart][BACKWARDS ? distance + 1 : distance - 1][lane];
    }
}

// All threads of a block call it; a lane has a state.
template <bool BACKWARDS, bool OUTPUTS, class Tables, class S>
S4_FAST_INLINE void make_tables(Tables &tables, const Scan &scan, int64_t h, const Pass<S> &pass, int warps) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int64_t state = pass.first + lane, index = h * scan.n + state;
    const bool present = state < scan.n;
    const Complex<float> zero = {0, 0};
    const Node<float> node = present ? pass.nodes[index] : Node<float>{0, 0, 0};
    const Complex<float> enter = present ? pass.enter[index] : zero, leave = present ? pass.leave[index] : zero;
    const float grown = growth(node, scan.L);
    auto size = [&](Complex<float> a) { return fmaxf(fabsf(a.re), fabsf(a.im)) * grown; };
    const Scale of_enter = scale_to(size(enter));
    // A column of 2^-64, or of 2^-40 of the largest, hardly adds to the outputs, and its states shall not vanish.
    const Scale of_leave = scale_to(fmaxf(fmaxf(size(leave), 9.1e-13f * largest_of_warp(size(leave))), 5.4e-20f));
    const Complex<float> weights[2] = {of_enter.up * enter, of_leave.up * leave};
    each_power(scan, node, weights, warp, warps, [&](int run, int t, const Complex<float>(&values)[2]) {
        tables.in.set(run, t, lane, values[0]);
        if constexpr (OUTPUTS) tables.out.set(run, t, lane, conj(values[1]));
    });
    if constexpr (OUTPUTS) {
        const float *const K = pass.response + h * 2 * CHUNK_SAMPLES + CHUNK_SAMPLES;
        const Scale of_response = scale_to(largest_of_warp(fmaxf(fabsf(K[lane]), fabsf(K[lane + WARP]))));
        make_responses<BACKWARDS>(tables.response, K, of_response.up, warps);
        if (threadIdx.x == 0) tables.response_down = of_response.down;
    }
    if (warp > 0) return;
    tables.decays.set(scan, present ? pass.wide[index] : Node<double>{0, 0, 0});
    tables.factor[lane] = of_leave.down;
    tables.inverse[lane] = of_leave.up;
    tables.entered[lane] = of_leave.down * of_enter.down;
}

// A row of a warp: a segment of a sequence, of (batch, H). Where there is none, the last one stands in its place.
struct Row {
    int64_t sequence;
    int segment;  // 2^31 of them have more samples than fit into memory
    bool present;

    S4_FAST_INLINE void find(const Cut &cut, int64_t h, int64_t row) {
        present = row < cut.rows();
        if (!present) row = cut.rows() - 1;
        sequence = row / cut.segments * cut.scan.H + h;
        segment = int(row % cut.segments);
    }

    // The place of this segment in (batch, H, segments).
    S4_FAST_INLINE int64_t of_segments(const Cut &cut) const { return sequence * cut.segments + segment; }

    // A step's chunk in the sequence.
    template <bool BACKWARDS>
    S4_FAST_INLINE int64_t number(const Cut &cut, int64_t step) const {
        return segment * cut.each + (BACKWARDS ? cut.each - 1 - step : step);
    }

    // The place of a step's samples in (batch, H, L).
    template <bool BACKWARDS>
    S4_FAST_INLINE int64_t of_samples(const Cut &cut, int64_t step) const {
        return sequence * cut.scan.L + number<BACKWARDS>(cut, step) * CHUNK_SAMPLES;
    }

    // The chunk's samples, 0 if there is none.
    template <bool BACKWARDS>
    S4_FAST_INLINE int length(const Cut &cut, int64_t step) const {
        const int64_t rest = cut.scan.L - number<BACKWARDS>(cut, step) * CHUNK_SAMPLES;
        return step >= cut.each || rest <= 0 ? 0 : rest < CHUNK_SAMPLES ? int(rest) : CHUNK_SAMPLES;
    }
};

S4_FAST_INLINE void find_rows(Row (&rows)[2], const Cut &cut, int64_t h, int64_t tile) {
    rows[0].find(cut, h, tile * ROWS + threadIdx.x % WARP / 4);
    rows[1].find(cut, h, tile * ROWS + threadIdx.x % WARP / 4 + 8);
}

// The steps in which all chunks of a tile are whole: those before the end of a sequence, and all where none ends.
struct Steps {
    int64_t from, until;

    template <bool BACKWARDS>
    S4_FAST_INLINE void find(const Cut &cut, int64_t tile, bool aligned) {
        const int64_t first = tile * ROWS, end = first + ROWS < cut.rows() ? first + ROWS : cut.rows();
        const bool ends = end / cut.segments > first / cut.segments;
        const int64_t last = cut.scan.L / CHUNK_SAMPLES - (cut.segments - 1) * cut.each;
        const int64_t whole = !aligned ? 0 : ends && last < cut.each ? last : cut.each;
        from = BACKWARDS ? cut.each - whole : 0;
        until = from + whole;
    }

    S4_FAST_INLINE bool have(int64_t step) const { return step >= from && step < until; }
};

// The samples of a lane, of rows g and g + 8 and both halves of a whole chunk.
template <class S>
S4_FAST_INLINE void load_whole(Samples8<S> (&samples)[2][2], const int64_t (&start)[2], const S *from) {
#pragma unroll
    for (int row = 0; row < 2; ++row)
#pragma unroll
        for (int a = 0; a < 2; ++a) samples[row][a].load(from + start[row] + 32 * a + threadIdx.x % 4 * 8);
}

// The same of chunks of any length, each moved up by `moved[row]` places.
template <class S>
S4_FAST_INLINE void load_short(Samples8<S> (&samples)[2][2], const int64_t (&start)[2], const int (&length)[2],
                               const int (&moved)[2], const S *from) {
#pragma unroll
    for (int row = 0; row < 2; ++row)
#pragma unroll
        for (int a = 0; a < 2; ++a) {
            const int t = 32 * a + threadIdx.x % 4 * 8, end = from ? moved[row] + length[row] - t : 0;
            samples[row][a].load(end > 0 ? from + start[row] - moved[row] + t : from, moved[row] - t, end);
        }
}

// How far the samples of a short chunk are moved up, to where lambda^{T-1-t} weighs the last of them with 1.
S4_FAST_INLINE int missing(int length) { return length > 0 ? CHUNK_SAMPLES - length : 0; }

// State 4 j + q of rows g and g + 8 in registers: re, im, re, im.
using State = float[8][4];

template <class S>
S4_FAST_INLINE void load_states(State &state, const StateTables &tables, const Cut &cut, const Pass<S> &pass,
                                const Row (&rows)[2], const Complex<float> *from, bool conjugate) {
    const int q = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            const int64_t k = pass.first + 4 * j + q;
            Complex<float> s = {0, 0};
            if (from && k < cut.scan.n)
                s = tables.factor[4 * j + q] * from[rows[row].of_segments(cut) * cut.scan.n + k];
            state[j][2 * row] = s.re;
            state[j][2 * row + 1] = conjugate ? -s.im : s.im;
        }
}

// Writes the states of both rows, each where its `index`, of states of all n, is not negative.
template <class S>
S4_FAST_INLINE void store_states(Complex<float> *to, const State &state, const StateTables &tables, const Cut &cut,
                                 const Pass<S> &pass, const int64_t (&index)[2], bool conjugate) {
    const int q = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        const int64_t k = pass.first + 4 * j + q;
        const float factor = tables.inverse[4 * j + q];
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            const Complex<float> s = factor * Complex<float>{state[j][2 * row], state[j][2 * row + 1]};
            if (index[row] >= 0 && k < cut.scan.n) to[index[row] * cut.scan.n + k] = conjugate ? conj(s) : s;
        }
    }
}

// Left operands: the states of rows g and g + 8, scaled and split.
template <int PARTS>
struct StateOperands {
    uint32_t of[4][PARTS][4];

    S4_FAST_INLINE void set(const State &state, const Scale (&scale)[2]) {
#pragma unroll
        for (int k = 0; k < 4; ++k)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float *const s = state[2 * k + i / 2] + i % 2 * 2;
                uint32_t words[PARTS];
                split(s[0] * scale[i % 2].up, s[1] * scale[i % 2].up, words);
#pragma unroll
                for (int p = 0; p < PARTS; ++p) of[k][p][i] = words[p];
            }
    }
};

// outputs[j] = X_out S + R u for the blocks of half a. What undoes the scales of a row's states, and of its samples.
template <bool BACKWARDS, int PARTS, int SAMPLES>
S4_FAST_INLINE void find_outputs(float (&outputs)[4][4], int a, const StateOperands<PARTS> &states,
                                 const SampleOperands<SAMPLES> &samples, const ScanTables<PARTS> &tables,
                                 const Scale (&of_states)[2], const float (&of_samples)[2], bool with_response) {
    float sums[4][4] = {};
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
        for (int j = 0; j < 4; j += 2) {
            const auto right = over_states<BACKWARDS>(tables.out, a, k, j / 2);
            multiply(sums[j], states.of[k], right.first);
            multiply(sums[j + 1], states.of[k], right.second);
        }
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            outputs[j][i] = of_states[i / 2].down * sums[j][i];
            sums[j][i] = 0;
        }
    if (!with_response) return;
#pragma unroll
    for (int from = BACKWARDS ? a : 0; from <= (BACKWARDS ? 1 : a); ++from)
#pragma unroll
        for (int s = 0; s < 2; ++s)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                uint32_t right[PARTS][2];
                load_response<BACKWARDS>(right, tables.response, a == from ? 0 : 1, s, j);
                multiply(sums[j], samples.of[from][s], right);
            }
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) outputs[j][i] += of_samples[i / 2] * sums[j][i];
}

// Eight outputs of each row in half a, at moved[row] less than their places in the chunk, which is whole if WHOLE.
template <bool WHOLE, class S>
S4_FAST_INLINE void store_outputs(const float (&outputs)[4][4], int a, const Pass<S> &pass, const Row (&rows)[2],
                                  const int64_t (&start)[2], const int (&length)[2], const int (&moved)[2]) {
    const int t = 32 * a + threadIdx.x % 4 * 8;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        if (!rows[row].present) continue;
        const int first = moved[row] - t, end = moved[row] + length[row] - t;
        const int64_t index = start[row] - moved[row] + t;
        auto put = [&](const auto &packed, auto *to) {
            if constexpr (WHOLE)
                packed.store(to + index);
            else
                packed.store(to + index, first, end);
        };
        float values[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) values[i] = outputs[i / 2][2 * row + i % 2];
        if (pass.add) {
            Samples8<float> others;
            if constexpr (WHOLE)
                others.load(pass.add + index);
            else
                others.load(pass.add + index, first, end);
#pragma unroll
            for (int i = 0; i < 8; ++i) values[i] += others.get(i);
        }
        if (pass.partial) {
            Samples8<float> packed;
#pragma unroll
            for (int i = 0; i < 4; ++i) packed.set_pair(i, values[2 * i], values[2 * i + 1]);
            put(packed, pass.partial);
        } else if (pass.out) {
            Samples8<S> packed;
#pragma unroll
            for (int i = 0; i < 4; ++i) packed.set_pair(i, values[2 * i], values[2 * i + 1]);
            put(packed, pass.out);
        }
    }
}

// S <- lambda^length S + X_in u
template <bool BACKWARDS, int SAMPLES>
S4_FAST_INLINE void advance(State &state, const SampleOperands<SAMPLES> &samples, const StateTables &tables,
                            const int (&length)[2], const float (&unit)[2]) {
    const int q = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
        float sums[2][4] = {};
#pragma unroll
        for (int a = 0; a < 2; ++a)
#pragma unroll
            for (int s = 0; s < 2; ++s) {
                const auto right = over_samples<!BACKWARDS>(tables.in, a, s, j / 2);
                multiply(sums[0], samples.of[a][s], right.first);
                multiply(sums[1], samples.of[a][s], right.second);
            }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int k = 4 * (j + i) + q;
            const float entered = tables.entered[k];
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                float *const s = state[j + i] + 2 * row;
                const Complex<float> after = tables.decays.of(k, length[row], Complex<float>{s[0], s[1]});
                s[0] = after.re + entered * (unit[row] * sums[i][2 * row]);
                s[1] = after.im + entered * (unit[row] * sums[i][2 * row + 1]);
            }
        }
    }
}

// Goes through the chunks of a tile, from one state to the next.
template <class S, bool BACKWARDS>
struct Sweep {
    const Cut &cut;
    const Pass<S> &pass;
    Row rows[2];
    Steps whole_steps;
    int64_t start[2];
    Samples8<S> samples[2][2];

    S4_FAST_INLINE Sweep(const Cut &cut, const Pass<S> &pass, int64_t h, int64_t tile) : cut(cut), pass(pass) {
        find_rows(rows, cut, h, tile);
        whole_steps.template find<BACKWARDS>(cut, tile, pass.aligned && pass.samples);
    }

    template <bool OUTPUTS, class Tables>
    S4_FAST_INLINE void run(State &state, const Tables &tables) {
#pragma unroll
        for (int row = 0; row < 2; ++row) start[row] = rows[row].template of_samples<BACKWARDS>(cut, 0);
        load<OUTPUTS>(0);
#pragma unroll 1
        for (int64_t step = 0; step < cut.each; ++step) {
            if (whole_steps.have(step))
                advance_by<OUTPUTS, true>(state, tables, step);
            else
                advance_by<OUTPUTS, false>(state, tables, step);
        }
    }

    S4_FAST_INLINE void store(Complex<float> *to, const State &state, const StateTables &tables, bool conjugate) {
        int64_t index[2];
#pragma unroll
        for (int row = 0; row < 2; ++row) index[row] = rows[row].present ? rows[row].of_segments(cut) : -1;
        store_states(to, state, tables, cut, pass, index, conjugate);
    }

   private:
    // Whether the next chunk's samples are asked for before this one's outputs: those of float take more registers.
    static constexpr bool EARLY = sizeof(S) < sizeof(float);

    S4_FAST_INLINE void find_lengths(int (&length)[2], int64_t step) {
#pragma unroll
        for (int row = 0; row < 2; ++row) length[row] = rows[row].template length<BACKWARDS>(cut, step);
    }

    // Outputs and states take a short chunk's samples from different places.
    S4_FAST_INLINE void find_moved(int (&moved)[2], const int (&length)[2], bool outputs) {
#pragma unroll
        for (int row = 0; row < 2; ++row) moved[row] = outputs == BACKWARDS ? missing(length[row]) : 0;
    }

    template <bool OUTPUTS>
    S4_FAST_INLINE void load(int64_t step) {
        if (whole_steps.have(step)) return load_whole(samples, start, pass.samples);
        int length[2], moved[2];
        find_lengths(length, step);
        find_moved(moved, length, OUTPUTS);
        load_short(samples, start, length, moved, pass.samples);
    }

    template <bool OUTPUTS, bool WHOLE, class Tables>
    S4_FAST_INLINE void advance_by(State &state, const Tables &tables, int64_t step) {
        int length[2] = {CHUNK_SAMPLES, CHUNK_SAMPLES};
        if constexpr (!WHOLE) find_lengths(length, step);
        float up[2], unit[2];
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            const Scale scale = scale_to(largest_of_row(fmaxf(samples[row][0].largest(), samples[row][1].largest())));
            up[row] = scale.up;
            unit[row] = scale.down;
        }
        SampleOperands<SAMPLE_PARTS<S>> left;
        left.set(samples, up);
        [[maybe_unused]] const int64_t here[2] = {start[0], start[1]};
#pragma unroll
        for (int row = 0; row < 2; ++row) start[row] += BACKWARDS ? -CHUNK_SAMPLES : CHUNK_SAMPLES;
        if constexpr (EARLY && WHOLE) load<OUTPUTS>(step + 1);
        if constexpr (OUTPUTS) {
            Scale of_states[2];
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                float largest = 0;
#pragma unroll
                for (int j = 0; j < 8; ++j)
                    largest = fmaxf(largest, fmaxf(fabsf(state[j][2 * row]), fabsf(state[j][2 * row + 1])));
                of_states[row] = scale_to(largest_of_row(largest));
            }
            if (pass.states) {
                int64_t index[2];
#pragma unroll
                for (int row = 0; row < 2; ++row)
                    index[row] = length[row] && rows[row].present ? rows[row].sequence * cut.scan.chunks +
                                                                        rows[row].template number<BACKWARDS>(cut, step)
                                                                  : -1;
                store_states(pass.states, state, tables, cut, pass, index, false);
            }
            StateOperands<OUTPUT_PARTS<S>> states;
            states.set(state, of_states);
            const float of_samples[2] = {unit[0] * tables.response_down, unit[1] * tables.response_down};
            int moved[2] = {0, 0};
            if constexpr (!WHOLE) find_moved(moved, length, true);
#pragma unroll
            for (int a = 0; a < 2; ++a) {
                float outputs[4][4];
                find_outputs<BACKWARDS>(outputs, a, states, left, tables, of_states, of_samples, pass.first == 0);
                store_outputs<WHOLE>(outputs, a, pass, rows, here, length, moved);
            }
            if (!WHOLE && (missing(length[0]) || missing(length[1]))) {
                find_moved(moved, length, false);
                load_short(samples, here, length, moved, pass.samples);
                left.set(samples, up);
            }
        }
        if constexpr (!EARLY && WHOLE) load<OUTPUTS>(step + 1);
        advance<BACKWARDS>(state, left, tables, length, unit);
        if constexpr (!WHOLE) load<OUTPUTS>(step + 1);
    }
};

// Replaces what each segment of a sequence leaves behind by the state before it, in the order in which they are gone
// through.
template <bool BACKWARDS, class S>
S4_FAST_INLINE void carry_sequence(const Cut &cut, const Pass<S> &pass, int64_t sequence, int64_t k) {
    constexpr int AT_ONCE = 8;  // loads that do not wait for each other
    const Scan &scan = cut.scan;
    const int64_t index = sequence * scan.n + k, samples = cut.each * CHUNK_SAMPLES;
    const Node<double> node = pass.wide[sequence % scan.H * scan.n + k];
    const Wide whole = power(node, samples), last = power(node, scan.L - (cut.segments - 1) * samples);
    Complex<float> *const base = pass.segments + sequence * cut.segments * scan.n + k;
    Wide s = pass.initial ? convert<double>(pass.initial[index]) : Wide{0, 0};
    if (pass.conjugate) s = conj(s);
    for (int64_t first = 0; first < cut.segments; first += AT_ONCE) {
        Complex<float> left[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) {
            const int64_t step = first + i, segment = BACKWARDS ? cut.segments - 1 - step : step;
            if (step < cut.segments) left[i] = base[segment * scan.n];
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) {
            const int64_t step = first + i, segment = BACKWARDS ? cut.segments - 1 - step : step;
            if (step >= cut.segments) break;
            base[segment * scan.n] = convert<float>(s);
            s = (segment == cut.segments - 1 ? last : whole) * s + convert<double>(left[i]);
        }
    }
    if (pass.final) pass.final[index] = convert<float>(pass.conjugate ? conj(s) : s);
}

template <class S, bool BACKWARDS>
__global__ void __launch_bounds__(THREADS)
    tensor_carry_kernel(const __grid_constant__ Cut cut, const __grid_constant__ Pass<S> pass) {
    const int64_t id = int64_t(blockIdx.x) * THREADS + threadIdx.x, sequence = id / cut.scan.n;
    if (sequence < cut.scan.batch * cut.scan.H) carry_sequence<BACKWARDS>(cut, pass, sequence, id % cut.scan.n);
}

// What each segment leaves behind on its own.
template <class S, bool BACKWARDS>
__global__ void __launch_bounds__(WARPS *WARP, 2)
    tensor_states_kernel(const __grid_constant__ Cut cut, int64_t shares, int warps,
                         const __grid_constant__ Pass<S> pass) {
    auto &tables = shared_memory<StateTables>();
    const int64_t h = blockIdx.x % cut.scan.H, share = blockIdx.x / cut.scan.H;
    make_tables<BACKWARDS, false>(tables, cut.scan, h, pass, warps);
    __syncthreads();
    for (int64_t tile = share * warps + threadIdx.x / WARP; tile < cut.tiles(); tile += shares * warps) {
        Sweep<S, BACKWARDS> sweep(cut, pass, h, tile);
        State state = {};
        sweep.template run<false>(state, tables);
        sweep.store(pass.segments, state, tables, false);
    }
}

template <class S, bool BACKWARDS>
__global__ void __launch_bounds__(WARPS *WARP, 2)
    tensor_outputs_kernel(const __grid_constant__ Cut cut, int64_t shares, int warps,
                          const __grid_constant__ Pass<S> pass) {
    auto &tables = shared_memory<ScanTables<OUTPUT_PARTS<S>>>();
    const int64_t h = blockIdx.x % cut.scan.H, share = blockIdx.x / cut.scan.H;
    make_tables<BACKWARDS, true>(tables, cut.scan, h, pass, warps);
    __syncthreads();
    if (pass.segments && cut.is_complete()) {
        Sweep<S, BACKWARDS> sweep(cut, pass, h, threadIdx.x / WARP);
        State state = {};
        sweep.template run<false>(state, tables);
        sweep.store(pass.segments, state, tables, false);
        __syncthreads();
        for (int64_t entry = threadIdx.x; entry < cut.scan.batch * STATES; entry += warps * WARP) {
            const int64_t k = pass.first + entry % STATES;
            if (k < cut.scan.n) carry_sequence<BACKWARDS>(cut, pass, entry / STATES * cut.scan.H + h, k);
        }
        __syncthreads();
    }
    for (int64_t tile = share * warps + threadIdx.x / WARP; tile < cut.tiles(); tile += shares * warps) {
        Sweep<S, BACKWARDS> sweep(cut, pass, h, tile);
        State state;
        load_states(state, tables, cut, pass, sweep.rows, pass.segments ? pass.segments : pass.initial,
                    pass.conjugate && !pass.segments);
        sweep.template run<true>(state, tables);
        if (pass.final && !pass.segments) sweep.store(pass.final, state, tables, pass.conjugate);
    }
}

// Rows and columns of a piece that a block turns: 128 bytes of a row.
template <class S>
constexpr int TURNED = sizeof(S) < sizeof(float) ? 64 : 32;

// Turns (batch, L, features) into (batch, features, L), as these kernels read a signal, or the reverse.
template <class S>
__global__ void __launch_bounds__(THREADS) tensor_turn_kernel(int64_t rows, int64_t columns, const S *from, S *to) {
    constexpr int SIZE = TURNED<S>;
    auto &tile = shared_memory<S[SIZE][SIZE + 4 / sizeof(S)]>();
    const int64_t along = (columns + SIZE - 1) / SIZE, across = (rows + SIZE - 1) / SIZE;
    const int64_t j = blockIdx.x % along * SIZE, i = blockIdx.x / along % across * SIZE;
    const int64_t start = blockIdx.x / (along * across) * rows * columns;
    for (int entry = threadIdx.x; entry < SIZE * SIZE; entry += THREADS) {
        const int64_t row = i + entry / SIZE, column = j + entry % SIZE;
        if (row < rows && column < columns) tile[entry / SIZE][entry % SIZE] = from[start + row * columns + column];
    }
    __syncthreads();
    for (int entry = threadIdx.x; entry < SIZE * SIZE; entry += THREADS) {
        const int64_t column = j + entry / SIZE, row = i + entry % SIZE;
        if (row < rows && column < columns) to[start + column * rows + row] = tile[entry % SIZE][entry / SIZE];
    }
}

// (batch, rows, columns) -> (batch, columns, rows)
template <class S>
void turn(Call &call, int64_t batch, int64_t rows, int64_t columns, const S *from, S *to) {
    constexpr int SIZE = TURNED<S>;
    call.launch("tensor_turn_kernel", tensor_turn_kernel<S>, batch * divide_up(rows, SIZE) * divide_up(columns, SIZE),
                THREADS, sizeof(S[SIZE][SIZE + 4 / sizeof(S)]), rows, columns, from, to);
}

// The number of shares that the tiles of a feature are dealt in, and of the warps of each.
struct Dealt {
    int warps;
    Shares shares;
    explicit Dealt(const Cut &cut)
        : warps(int(cut.tiles() < WARPS ? cut.tiles() : WARPS)),
          shares(divide_up(cut.tiles(), warps), 4 * ENOUGH_BLOCKS / cut.scan.H) {}
};

// What a sequence of passes needs beside its arguments.
struct Room {
    Complex<float> *segments;  // (batch, H, segments, n), or NULL where there is one
    float *partial;            // (batch, H, L), or NULL where one block has all states
};

inline Room take_room(Call &call, const Cut &cut, bool outputs) {
    const Scan &scan = cut.scan;
    return {cut.segments > 1 ? call.take<Complex<float>>(scan.batch * scan.H * cut.segments * scan.n) : nullptr,
            outputs && scan.n > STATES ? call.take<float>(scan.batch * scan.H * scan.L) : nullptr};
}

// The states before all segments, and the final one.
template <class S, bool BACKWARDS>
void find_segments(Call &call, const Cut &cut, Pass<S> pass) {
    const Dealt dealt(cut);
    for (pass.first = 0; pass.first < cut.scan.n; pass.first += STATES)
        call.launch("tensor_states_kernel", tensor_states_kernel<S, BACKWARDS>, cut.scan.H * dealt.shares.count,
                    dealt.warps * WARP, sizeof(StateTables), cut, dealt.shares.count, dealt.warps, pass);
    call.launch("tensor_carry_kernel", tensor_carry_kernel<S, BACKWARDS>,
                divide_up(cut.scan.batch * cut.scan.H * cut.scan.n, THREADS), THREADS, 0, cut, pass);
}

// The whole scan: outputs, final state and, where wanted, those before all chunks.
template <class S, bool BACKWARDS>
void run_scan(Call &call, const Cut &cut, Pass<S> pass, const Room &room) {
    const Dealt dealt(cut);
    pass.segments = room.segments;
    if (room.segments && !cut.is_complete()) find_segments<S, BACKWARDS>(call, cut, pass);
    for (pass.first = 0; pass.first < cut.scan.n; pass.first += STATES) {
        pass.add = pass.first > 0 ? room.partial : nullptr;
        pass.partial = pass.first + STATES < cut.scan.n ? room.partial : nullptr;
        call.launch("tensor_outputs_kernel", tensor_outputs_kernel<S, BACKWARDS>, cut.scan.H * dealt.shares.count,
                    dealt.warps * WARP, sizeof(ScanTables<OUTPUT_PARTS<S>>), cut, dealt.shares.count, dealt.warps,
                    pass);
    }
}

}  // namespace
}  // namespace s4_fast::cuda::tensor
