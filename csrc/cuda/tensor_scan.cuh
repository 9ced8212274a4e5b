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

#include "scan_call.cuh"
#include "scan_prepare.cuh"
#include "tensor_tables.cuh"

namespace s4_fast {
namespace tensor {
namespace {

// Warps of a block at most, and the rows of warps that keep a GPU busy.
constexpr int WARPS = 4;

// How many chunks a segment has at most: those are carried in float32.
constexpr int64_t LONGEST_SEGMENT = 64;

// A scan cut into rows.
struct Cut {
    Scan scan;
    int64_t segments, each;  // of a sequence, and the chunks of one
    __host__ S4_FAST_INLINE int64_t rows() const { return scan.batch * segments; }
    __host__ S4_FAST_INLINE int64_t tiles() const { return (rows() + ROWS - 1) / ROWS; }
};

inline Cut make_cut(const Scan &scan) {
    const int64_t wanted = divide_up(ENOUGH_BLOCKS * ROWS, scan.H * scan.batch);
    const int64_t least = divide_up(scan.chunks, LONGEST_SEGMENT), most = divide_up(scan.chunks, 2);
    // Whole sequences need no first pass, which pays if they alone are half of what is wanted.
    const int64_t segments = least == 1 && wanted <= 2 ? 1 : wanted < least ? least : wanted < most ? wanted : most;
    const int64_t each = divide_up(scan.chunks, segments);
    return {scan, divide_up(scan.chunks, each), each};
}

template <class S>
struct Pass {
    const Node<float> *nodes;
    const Node<double> *wide;
    const Complex<float> *enter, *leave;  // (H, n)
    const float *response;                // (H, 2 T), lag 0 in the middle
    const S *samples;                     // (batch, H, L), or NULL for 0
    const Complex<float> *initial;        // (batch, H, segments, n), or NULL for 0
    Complex<float> *final;                // the same, or NULL
    Complex<float> *states;               // (batch, H, chunks, n), those before each chunk, or NULL
    S *out;                               // (batch, H, L)
    const float *add;                     // like out: what other states give, or NULL for nothing
    float *partial;                       // in the place of out, or NULL
    int64_t first;                        // the first of this pass's states
    bool conjugate;                       // whether initial and final are the conjugates of what is carried
    bool aligned;                         // samples and out to 16 bytes, in every row
};

template <int PARTS>
struct ScanTables {
    PowerTable<STATE_PARTS> in;
    PowerTable<PARTS> out;
    uint32_t response[PARTS][2][7][WARP];   // as load_response reads it
    Complex<float> decay[2][STATES];        // lambda^T, and what it is more than a float
    float factor[STATES], entered[STATES];  // of the states in registers, and of what X_in gives for them
    Node<float> nodes[STATES];
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
        split(base < 0 || base >= T ? 0.0f : scale * K[base], next < 0 || next >= T ? 0.0f : scale * K[next], found);
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

// By all threads of a block; a lane has a state.
template <bool BACKWARDS, int PARTS, class S>
S4_FAST_INLINE void make_tables(ScanTables<PARTS> &tables, const Scan &scan, int64_t h, const Pass<S> &pass,
                                int warps) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int64_t state = pass.first + lane, index = h * scan.n + state;
    const bool present = state < scan.n;
    const Complex<float> zero = {0, 0};
    const Node<float> node = present ? pass.nodes[index] : Node<float>{0, 0, 0};
    const Complex<float> enter = present ? pass.enter[index] : zero, leave = present ? pass.leave[index] : zero;
    const float grown = grown_by(scan, node);
    auto size = [&](Complex<float> a) { return fmaxf(fabsf(a.re), fabsf(a.im)) * grown; };
    const Scale of_enter = scale_to(size(enter));
    // A column that is 2^-40 of the largest adds nothing, and its states shall not vanish.
    const float largest = largest_of_warp(size(leave));
    const float out = fmaxf(size(leave), 9.1e-13f * largest);
    const Scale of_leave = scale_to(out > 0 ? out : 1.0f);
    const float *const K = pass.response + h * 2 * T + T;
    const Scale of_response = scale_to(largest_of_warp(fmaxf(fabsf(K[lane]), fabsf(K[lane + WARP]))));
    make_responses<BACKWARDS>(tables.response, K, of_response.up, warps);
    each_power(scan, node, warp, warps, [&](int t, Complex<float> power) {
        tables.in.set(t, lane, of_enter.up * enter * power);
        tables.out.set(t, lane, conj(of_leave.up * leave * power));
    });
    if (warp > 0) return;
    set_decay(tables.decay, present ? power(pass.wide[index], T) : Wide{0, 0});
    tables.factor[lane] = of_leave.down;
    tables.entered[lane] = of_leave.down * of_enter.down;
    tables.nodes[lane] = node;
    if (lane == 0) tables.response_down = of_response.down;
}

// A row of a warp: a segment of a sequence, of (batch, H); none is left where `segment` is negative.
struct Row {
    int64_t sequence;
    int segment;  // fewer than samples / 2^12, which no memory holds 2^43 of

    S4_FAST_INLINE void find(const Cut &cut, int64_t h, int64_t row) {
        sequence = row / cut.segments * cut.scan.H + h;
        segment = row < cut.rows() ? int(row % cut.segments) : -1;
    }

    // In (batch, H, segments) and (batch, H, chunks), the chunk being that of a step.
    S4_FAST_INLINE int64_t of_segments(const Cut &cut) const { return sequence * cut.segments + segment; }

    template <bool BACKWARDS>
    S4_FAST_INLINE int64_t of_chunks(const Cut &cut, int64_t step) const {
        return sequence * cut.scan.chunks + number<BACKWARDS>(cut, step);
    }

    template <bool BACKWARDS>
    S4_FAST_INLINE int64_t number(const Cut &cut, int64_t step) const {
        return segment * cut.each + (BACKWARDS ? cut.each - 1 - step : step);
    }

    // In (batch, H, L).
    template <bool BACKWARDS>
    S4_FAST_INLINE int64_t of_samples(const Cut &cut, int64_t step) const {
        return sequence * cut.scan.L + number<BACKWARDS>(cut, step) * T;
    }

    // The chunk's samples, 0 if there is none.
    template <bool BACKWARDS>
    S4_FAST_INLINE int length(const Cut &cut, int64_t step) const {
        const int64_t rest = cut.scan.L - number<BACKWARDS>(cut, step) * T;
        return segment < 0 || step >= cut.each || rest <= 0 ? 0 : rest < T ? int(rest) : T;
    }
};

// The samples of a lane, of rows g and g + 8 and both halves of a chunk, each moved up by `moved[row]` places.
template <bool BACKWARDS, class S>
S4_FAST_INLINE void load_chunk(Samples8<S> (&samples)[2][2], const Cut &cut, const Row (&rows)[2], int64_t step,
                               const int (&moved)[2], const S *from, bool aligned) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        const int length = from ? rows[row].template length<BACKWARDS>(cut, step) : 0;
        const int64_t start = rows[row].template of_samples<BACKWARDS>(cut, step) - moved[row];
#pragma unroll
        for (int a = 0; a < 2; ++a) {
            const int t = 32 * a + threadIdx.x % 4 * 8;
            samples[row][a].load(length ? from + start + t : from, moved[row] - t, moved[row] + length - t, aligned);
        }
    }
}

// How far the samples of a short chunk are moved up, to where lambda^{T-1-t} weighs the last of them with 1.
S4_FAST_INLINE int missing(int length) { return length > 0 ? T - length : 0; }

// State 4 j + q of rows g and g + 8 in registers: re, im, re, im.
using State = float[8][4];

template <class S, int PARTS>
S4_FAST_INLINE void load_states(State &state, const ScanTables<PARTS> &tables, const Cut &cut, const Pass<S> &pass,
                                const Row (&rows)[2]) {
    const int q = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            const int64_t k = pass.first + 4 * j + q;
            Complex<float> s = {0, 0};
            if (pass.initial && rows[row].segment >= 0 && k < cut.scan.n)
                s = tables.factor[4 * j + q] * pass.initial[rows[row].of_segments(cut) * cut.scan.n + k];
            state[j][2 * row] = s.re;
            state[j][2 * row + 1] = pass.conjugate ? -s.im : s.im;
        }
}

// Writes the states of both rows, each if its `index`, in states of all n, is not negative.
template <class S, int PARTS>
S4_FAST_INLINE void store_states(Complex<float> *to, const State &state, const ScanTables<PARTS> &tables,
                                 const Cut &cut, const Pass<S> &pass, const int64_t (&index)[2], bool conjugate) {
    const int q = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        const int64_t k = pass.first + 4 * j + q;
        const float factor = 1.0f / tables.factor[4 * j + q];
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            const Complex<float> s = factor * Complex<float>{state[j][2 * row], state[j][2 * row + 1]};
            if (index[row] >= 0 && k < cut.scan.n) to[index[row] * cut.scan.n + k] = conjugate ? conj(s) : s;
        }
    }
}

// outputs[a][j] = X_out S + R u for block j of half a. `up` are the scales of a row's states, `down` of its products
// with samples and with states.
template <bool BACKWARDS, int PARTS, int SAMPLES>
S4_FAST_INLINE void find_outputs(float (&outputs)[2][4][4], const State &state, const SampleOperands<SAMPLES> &samples,
                                 const ScanTables<PARTS> &tables, const Scale (&of_states)[2],
                                 const float (&of_samples)[2], bool with_response) {
    uint32_t left[4][PARTS][4];
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float *const s = state[2 * k + i / 2] + i % 2 * 2;
            const float up = of_states[i % 2].up;
            uint32_t words[PARTS];
            split(s[0] * up, s[1] * up, words);
#pragma unroll
            for (int p = 0; p < PARTS; ++p) left[k][p][i] = words[p];
        }
#pragma unroll
    for (int a = 0; a < 2; ++a) {
        float sums[4][4] = {};
#pragma unroll
        for (int k = 0; k < 4; ++k)
#pragma unroll
            for (int j = 0; j < 4; j += 2) {
                const auto right = over_states<BACKWARDS>(tables.out, a, k, j / 2);
                multiply(sums[j], left[k], right.first);
                multiply(sums[j + 1], left[k], right.second);
            }
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i) outputs[a][j][i] = of_states[i / 2].down * sums[j][i];
    }
    if (!with_response) return;
#pragma unroll
    for (int a = 0; a < 2; ++a) {
        float sums[4][4] = {};
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
            for (int i = 0; i < 4; ++i) outputs[a][j][i] += of_samples[i / 2] * sums[j][i];
    }
}

// Eight outputs of each row and half, at moved[row] less than their places in the chunk.
template <bool BACKWARDS, class S>
S4_FAST_INLINE void store_outputs(const float (&outputs)[2][4][4], const Pass<S> &pass, const Cut &cut,
                                  const Row (&rows)[2], int64_t step, const int (&moved)[2]) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        const int length = rows[row].template length<BACKWARDS>(cut, step);
        if (!length) continue;
        const int64_t start = rows[row].template of_samples<BACKWARDS>(cut, step) - moved[row];
#pragma unroll
        for (int a = 0; a < 2; ++a) {
            const int t = 32 * a + threadIdx.x % 4 * 8, first = moved[row] - t, end = moved[row] + length - t;
            float values[8];
#pragma unroll
            for (int i = 0; i < 8; ++i) values[i] = outputs[a][i / 2][2 * row + i % 2];
            if (pass.add) {
#pragma unroll
                for (int i = 0; i < 8; ++i)
                    if (i >= first && i < end) values[i] += pass.add[start + t + i];
            }
            if (pass.partial) {
#pragma unroll
                for (int i = 0; i < 8; ++i)
                    if (i >= first && i < end) pass.partial[start + t + i] = values[i];
                continue;
            }
            if (!pass.out) continue;
            Samples8<S> packed;
#pragma unroll
            for (int i = 0; i < 4; ++i) packed.set_pair(i, values[2 * i], values[2 * i + 1]);
            packed.store(pass.out + start + t, first, end, pass.aligned);
        }
    }
}

// S <- lambda^length S + X_in u
template <bool BACKWARDS, int PARTS, int SAMPLES>
S4_FAST_INLINE void advance(State &state, const SampleOperands<SAMPLES> &samples, const ScanTables<PARTS> &tables,
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
                const Complex<float> after =
                    decayed(tables.decay, tables.nodes, k, length[row], Complex<float>{s[0], s[1]});
                s[0] = after.re + unit[row] * entered * sums[i][2 * row];
                s[1] = after.im + unit[row] * entered * sums[i][2 * row + 1];
            }
        }
    }
}

template <class S, bool BACKWARDS, bool OUTPUTS>
__global__ void __launch_bounds__(WARPS *WARP, 2) tensor_scan_kernel(const __grid_constant__ Cut cut, int64_t shares,
                                                                     int warps, const __grid_constant__ Pass<S> pass) {
    constexpr int PARTS = OUTPUT_PARTS<S>;
    auto &tables = shared_memory<ScanTables<PARTS>>();
    const int64_t h = blockIdx.x % cut.scan.H, share = blockIdx.x / cut.scan.H;
    const int warp = threadIdx.x / WARP, g = threadIdx.x % WARP / 4;
    make_tables<BACKWARDS>(tables, cut.scan, h, pass, warps);
    __syncthreads();
    for (int64_t tile = share * warps + warp; tile < cut.tiles(); tile += shares * warps) {
        Row rows[2];
        rows[0].find(cut, h, tile * ROWS + g);
        rows[1].find(cut, h, tile * ROWS + g + 8);
        State state;
        load_states(state, tables, cut, pass, rows);
        Samples8<S> samples[2][2];
        // Outputs and states take a short chunk's samples from different places.
        auto moved_for = [](bool outputs, const int (&length)[2], int (&moved)[2]) {
            for (int row = 0; row < 2; ++row) moved[row] = outputs == BACKWARDS ? missing(length[row]) : 0;
        };
        auto load = [&](int64_t step) {
            int length[2], moved[2];
            for (int row = 0; row < 2; ++row) length[row] = rows[row].template length<BACKWARDS>(cut, step);
            moved_for(OUTPUTS, length, moved);
            load_chunk<BACKWARDS>(samples, cut, rows, step, moved, pass.samples, pass.aligned);
        };
        load(0);
#pragma unroll 1
        for (int64_t step = 0; step < cut.each; ++step) {
            int length[2], moved[2];
            float up[2], unit[2];
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                length[row] = rows[row].template length<BACKWARDS>(cut, step);
                const Scale scale =
                    scale_to(largest_of_row(fmaxf(samples[row][0].largest(), samples[row][1].largest())));
                up[row] = scale.up;
                unit[row] = scale.down;
            }
            SampleOperands<SAMPLE_PARTS<S>> left;
            left.set(samples, up);
            load(step + 1);
            if constexpr (OUTPUTS) {
                Scale of_states[2];
                int64_t index[2];
#pragma unroll
                for (int row = 0; row < 2; ++row) {
                    float largest = 0;
#pragma unroll
                    for (int j = 0; j < 8; ++j)
                        largest = fmaxf(largest, fmaxf(fabsf(state[j][2 * row]), fabsf(state[j][2 * row + 1])));
                    of_states[row] = scale_to(largest_of_row(largest));
                    index[row] = length[row] ? rows[row].template of_chunks<BACKWARDS>(cut, step) : -1;
                }
                if (pass.states) store_states(pass.states, state, tables, cut, pass, index, false);
                float outputs[2][4][4];
                const float of_samples[2] = {unit[0] * tables.response_down, unit[1] * tables.response_down};
                find_outputs<BACKWARDS>(outputs, state, left, tables, of_states, of_samples, pass.first == 0);
                moved_for(true, length, moved);
                store_outputs<BACKWARDS>(outputs, pass, cut, rows, step, moved);
                if (missing(length[0]) || missing(length[1])) {
                    Samples8<S> others[2][2];
                    moved_for(false, length, moved);
                    load_chunk<BACKWARDS>(others, cut, rows, step, moved, pass.samples, pass.aligned);
                    left.set(others, up);
                }
            }
            advance<BACKWARDS>(state, left, tables, length, unit);
        }
        if (pass.final) {
            const int64_t index[2] = {rows[0].segment < 0 ? -1 : rows[0].of_segments(cut),
                                      rows[1].segment < 0 ? -1 : rows[1].of_segments(cut)};
            store_states(pass.final, state, tables, cut, pass, index, pass.conjugate);
        }
    }
}

// Replaces what each segment leaves behind by the state before it, in the order in which the segments are gone through.
template <bool BACKWARDS>
__global__ void __launch_bounds__(THREADS)
    tensor_carry_kernel(const __grid_constant__ Cut cut, const Node<double> *wide, const Complex<float> *initial,
                        Complex<float> *segments, Complex<float> *final, bool conjugate) {
    const Scan &scan = cut.scan;
    const int64_t id = int64_t(blockIdx.x) * THREADS + threadIdx.x, sequence = id / scan.n, k = id % scan.n;
    if (sequence >= scan.batch * scan.H) return;
    const Node<double> node = wide[sequence % scan.H * scan.n + k];
    const Wide whole = power(node, cut.each * T);
    Wide s = initial ? convert<double>(initial[id]) : Wide{0, 0};
    if (conjugate) s = conj(s);
    for (int64_t step = 0; step < cut.segments; ++step) {
        const int64_t segment = BACKWARDS ? cut.segments - 1 - step : step, start = segment * cut.each * T;
        Complex<float> &left = segments[(sequence * cut.segments + segment) * scan.n + k];
        const Wide added = convert<double>(left);
        left = convert<float>(s);
        s = (start + cut.each * T <= scan.L ? whole : power(node, scan.L - start)) * s + added;
    }
    if (final) final[id] = convert<float>(conjugate ? conj(s) : s);
}

// From (batch, L, features) to (batch, features, L), or back: a signal as these kernels read it, or the reverse.
template <class S>
__global__ void __launch_bounds__(THREADS) tensor_turn_kernel(int64_t rows, int64_t columns, const S *from, S *to) {
    auto &tile = shared_memory<S[STAGE][STAGE + 1]>();
    const int64_t along = (columns + STAGE - 1) / STAGE, across = (rows + STAGE - 1) / STAGE;
    const int64_t j = blockIdx.x % along * STAGE, i = blockIdx.x / along % across * STAGE;
    const int64_t start = blockIdx.x / (along * across) * rows * columns;
    for (int entry = threadIdx.x; entry < STAGE * STAGE; entry += THREADS) {
        const int64_t row = i + entry / STAGE, column = j + entry % STAGE;
        if (row < rows && column < columns) tile[entry / STAGE][entry % STAGE] = from[start + row * columns + column];
    }
    __syncthreads();
    for (int entry = threadIdx.x; entry < STAGE * STAGE; entry += THREADS) {
        const int64_t column = j + entry / STAGE, row = i + entry % STAGE;
        if (row < rows && column < columns) to[start + column * rows + row] = tile[entry % STAGE][entry / STAGE];
    }
}

// (batch, rows, columns) -> (batch, columns, rows)
template <class S>
void turn(Call &call, int64_t batch, int64_t rows, int64_t columns, const S *from, S *to) {
    call.launch("tensor_turn_kernel", tensor_turn_kernel<S>, batch * divide_up(rows, STAGE) * divide_up(columns, STAGE),
                THREADS, sizeof(S[STAGE][STAGE + 1]), rows, columns, from, to);
}

template <class S, bool BACKWARDS, bool OUTPUTS>
void run_pass(Call &call, const Cut &cut, const Pass<S> &pass) {
    const int warps = int(cut.tiles() < WARPS ? cut.tiles() : WARPS);
    const Shares shares(divide_up(cut.tiles(), warps), 4 * ENOUGH_BLOCKS / cut.scan.H);
    call.launch("tensor_scan_kernel", tensor_scan_kernel<S, BACKWARDS, OUTPUTS>, cut.scan.H * shares.count,
                warps * WARP, sizeof(ScanTables<OUTPUT_PARTS<S>>), cut, shares.count, warps, pass);
}

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

// The states before all segments, in room.segments, and the final state if there are several segments.
template <class S, bool BACKWARDS>
void find_segments(Call &call, const Cut &cut, Pass<S> pass, const Room &room, const Complex<float> *initial,
                   Complex<float> *final) {
    pass.initial = nullptr;
    pass.final = room.segments;
    pass.states = nullptr;
    const bool conjugate = pass.conjugate;
    pass.conjugate = false;
    for (pass.first = 0; pass.first < cut.scan.n; pass.first += STATES) run_pass<S, BACKWARDS, false>(call, cut, pass);
    call.launch("tensor_carry_kernel", tensor_carry_kernel<BACKWARDS>,
                divide_up(cut.scan.batch * cut.scan.H * cut.scan.n, THREADS), THREADS, 0, cut, pass.wide, initial,
                room.segments, final, conjugate);
}

// The whole scan: outputs, final state and, where wanted, those before all chunks.
template <class S, bool BACKWARDS>
void run_scan(Call &call, const Cut &cut, Pass<S> pass, const Room &room) {
    if (cut.segments > 1) {
        find_segments<S, BACKWARDS>(call, cut, pass, room, pass.initial, pass.final);
        pass.initial = room.segments;
        pass.final = nullptr;
        pass.conjugate = false;
    }
    for (pass.first = 0; pass.first < cut.scan.n; pass.first += STATES) {
        pass.add = pass.first > 0 ? room.partial : nullptr;
        pass.partial = pass.first + STATES < cut.scan.n ? room.partial : nullptr;
        run_pass<S, BACKWARDS, true>(call, cut, pass);
    }
}

}  // namespace
}  // namespace tensor
}  // namespace s4_fast
