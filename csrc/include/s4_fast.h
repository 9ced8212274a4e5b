/* The native library of s4_fast: kernels of structured state space models behind a C interface.
 *
 * Every integer is int64_t. Tensors are contiguous, row-major, and may not overlap; complex numbers are pairs of reals.
 * `dtype` says what "real" means in a call: S4_FAST_FLOAT32 or S4_FAST_FLOAT64. Arguments "or NULL" may be absent.
 * A function returns 0, or a code other than 0 after which s4_fast_error() says what went wrong; nothing throws.
 *
 * The functions of the two families take the same arguments up to the last ones: the CPU functions end with the number
 * of threads to use. The CUDA functions take device pointers and end with (workspace, workspace_bytes, device, stream):
 * with workspace == NULL they only write the bytes they need to *workspace_bytes (0 where they need none); otherwise
 * they launch on the cudaStream_t `stream` of `device` and return without waiting. They allocate nothing and never
 * synchronise, so that they can be captured into a CUDA graph.
 *
 * Gradients follow PyTorch: the gradient of a complex number is dRe + i dIm.
 */
#ifndef S4_FAST_H
#define S4_FAST_H

#include <stdint.h>

#if defined(__GNUC__)
#define S4_FAST_API __attribute__((visibility("default")))
#else
#define S4_FAST_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum { S4_FAST_FLOAT32 = 0, S4_FAST_FLOAT64 = 1, S4_FAST_BFLOAT16 = 2, S4_FAST_FLOAT16 = 3 };

/* How s4_fast_*_diagonal reads its arguments: the sum of those that hold. */
enum {
    S4_FAST_TIME_MAJOR = 1,    /* u is (batch, L, H) and y (batch, L, c, H), and so are their gradients */
    S4_FAST_BIDIRECTIONAL = 2, /* there are c more channels of C, which run from the end */
    S4_FAST_BILINEAR = 4,      /* the bilinear discretisation instead of the zero-order hold */
    S4_FAST_LOG_DT = 8,        /* dt holds log dt */
    S4_FAST_LOG_DECAY = 16,    /* A_real holds log(-Re A) */
    S4_FAST_CONJUGATE = 32     /* A_imag holds -Im A */
};

/* The largest rank, the largest (b + rank) (c + rank), and the largest n, that a family's functions take: the constants
 * S4_FAST_CPU_DPLR_RANK and so on, which s4_fast_limit() also knows by name. */
/* clang-format off */
#define S4_FAST_LIMITS(LIMIT)                                                           \
    LIMIT(CPU_DPLR_RANK, 8)        /* s4_fast_cpu_dplr_spectrum and its adjoint */      \
    LIMIT(CPU_DPLR_SUMS, 128)      /* the same */                                       \
    LIMIT(CPU_DPLR_STEP_RANK, 8)   /* s4_fast_cpu_dplr_step and its adjoint */          \
    LIMIT(CUDA_DPLR_RANK, 4)       /* s4_fast_cuda_dplr_spectrum and its adjoint */     \
    LIMIT(CUDA_DPLR_SUMS, 36)      /* its adjoint, in shared memory */                  \
    LIMIT(CUDA_DPLR_STEP_RANK, 64) /* s4_fast_cuda_dplr_step */                         \
    LIMIT(CUDA_DPLR_SCAN_RANK, 8)  /* s4_fast_cuda_dplr_scan and its adjoint */         \
    LIMIT(CUDA_DPLR_SCAN_N, 256)   /* the same, in shared memory */
/* clang-format on */
#define S4_FAST_LIMIT(name, value) S4_FAST_##name = value,
enum { S4_FAST_LIMITS(S4_FAST_LIMIT) };
#undef S4_FAST_LIMIT

/* The version of the package that this library was built with. */
S4_FAST_API const char *s4_fast_version(void);

/* One of the limits above by its name without S4_FAST_, or -1. */
S4_FAST_API int64_t s4_fast_limit(const char *name);

/* What went wrong in the last call that failed on this thread; valid until the next one. */
S4_FAST_API const char *s4_fast_error(void);

/* Whether first[i] and second[i] hold the same bytes[i] bytes, for all i < count: 1 or 0. */
S4_FAST_API int s4_fast_cpu_same(int64_t count, const void *const *first, const void *const *second,
                                 const int64_t *bytes);

/* The instruction set that the CPU kernels use: "avx512", "avx2" or "portable". The best that the processor has, unless
 * s4_fast_cpu_use(name) has chosen another one for this process (NULL: the best again). */
S4_FAST_API const char *s4_fast_cpu_isa(void);
S4_FAST_API int s4_fast_cpu_use(const char *isa);

/* Returns 0 where the CUDA functions can run on `device`. Otherwise s4_fast_error() says why: there is no driver, it is
 * older than this library's runtime, or the library has no code for the device. Only with the CUDA part. */
S4_FAST_API int s4_fast_cuda_usable(int64_t device);

/* ---- Vandermonde products ------------------------------------------------------------------------------------- */

/* out[c, h, l] = scale Re sum_n v[c, h, n] exp(x[h, n] l):  v (c, H, n) complex, x (H, n) complex, out (c, H, L). */
S4_FAST_API int s4_fast_cpu_vandermonde(int64_t dtype, int64_t c, int64_t H, int64_t n, int64_t L, const void *v,
                                        const void *x, double scale, void *out, int64_t threads);

/* zeroth[c, h, n] = sum_l u[c, h, l] exp(x[h, n] l), first[c, h, n] (or NULL) = sum_l l u[c, h, l] exp(x[h, n] l). */
S4_FAST_API int s4_fast_cpu_moments(int64_t dtype, int64_t c, int64_t H, int64_t n, int64_t L, const void *u,
                                    const void *x, void *zeroth, void *first, int64_t threads);

/* ---- Causal convolution ---------------------------------------------------------------------------------------- */

/* y[b, c, h, l] = sum_{j <= l} k[c, h, j] u[b, h, l - j] + D[c, h] u[b, h, l]:  u (batch, H, L), k (c, H, Lk), of which
 * taps beyond L have no effect, D (c, H) or NULL, y (batch, c, H, L), all real. Where a sample of u or a tap of k is
 * not finite, the outputs that follow from it are NaN, those of the same row, feature and channel before it are what
 * they are without it, and the others untouched. */
S4_FAST_API int s4_fast_cpu_fft_conv(int64_t dtype, int64_t batch, int64_t c, int64_t H, int64_t L, int64_t Lk,
                                     const void *u, const void *k, const void *D, void *y, int64_t threads);

/* The gradients of u, k and D, each or NULL, of the shapes of what they belong to, for that of y (grad_y). */
S4_FAST_API int s4_fast_cpu_fft_conv_backward(int64_t dtype, int64_t batch, int64_t c, int64_t H, int64_t L, int64_t Lk,
                                              const void *grad_y, const void *u, const void *k, const void *D,
                                              void *grad_u, void *grad_k, void *grad_D, int64_t threads);

/* ---- Cauchy sums ----------------------------------------------------------------------------------------------- */

/* out[c, h, l] = sum_n v/(z - w), plus conj(v)/(z - conj(w)) where `symmetric` is not 0: v (c, H, n), w (H, n) and
 * z (z_rows, Lz) with z_rows = 1 or H, out (c, H, Lz), all complex. Not finite at a node that is a pole. On the CPU, in
 * float64, |z - w| may be between 1e-75 and 1e75, or 0. */
S4_FAST_API int s4_fast_cpu_cauchy_mult(int64_t dtype, int64_t c, int64_t H, int64_t n, int64_t Lz, int64_t z_rows,
                                        const void *v, const void *z, const void *w, int64_t symmetric, void *out,
                                        int64_t threads);

/* The gradients of v, z and w, each or NULL, of the shapes and types of what they belong to, for that of out (grad). */
S4_FAST_API int s4_fast_cpu_cauchy_mult_backward(int64_t dtype, int64_t c, int64_t H, int64_t n, int64_t Lz,
                                                 int64_t z_rows, const void *grad, const void *v, const void *z,
                                                 const void *w, int64_t symmetric, void *grad_v, void *grad_z,
                                                 void *grad_w, int64_t threads);

/* The same at the roots of unity omega_f = exp(-2 pi i f / L) = exp(-i theta), f = 0 .. L/2, conjugates included:
 *     out[c, h, f] = sum_n 2 v/((2 - w) - omega_f (2 + w)) = e^{i theta/2} sum_n v/(2 i sin(theta/2) - w cos(theta/2)),
 * v (c, H, n) and w (H, n) complex, out (c, H, L/2 + 1) complex. */
S4_FAST_API int s4_fast_cpu_cauchy_bilinear(int64_t dtype, int64_t c, int64_t H, int64_t n, int64_t L, const void *v,
                                            const void *w, void *out, int64_t threads);

/* The gradients of v and w, each or NULL, of the shapes and types of what they belong to, for that of out (grad). */
S4_FAST_API int s4_fast_cpu_cauchy_bilinear_backward(int64_t dtype, int64_t c, int64_t H, int64_t n, int64_t L,
                                                     const void *grad, const void *v, const void *w, void *grad_v,
                                                     void *grad_w, int64_t threads);

/* ---- The recurrence of a diagonal SSM -------------------------------------------------------------------------- */

/* s_l = exp(x) s_{l-1} + B u_l,  y_l = 2 Re sum_n C s_l + D u_l.
 * u (batch, H, L) real; x, B, C (H, n) complex; D (H,) real or NULL; state = s_{-1} (batch, H, n) complex or NULL for
 * 0; y (batch, H, L) real; final = s_{L-1} (batch, H, n) complex or NULL.
 * u and y, and their gradients, are (batch, L, H) where `time_major` is not 0. */
S4_FAST_API int s4_fast_cpu_scan(int64_t dtype, int64_t batch, int64_t H, int64_t n, int64_t L, const void *u,
                                 const void *x, const void *B, const void *C, const void *D, const void *state, void *y,
                                 void *final, int64_t time_major, int64_t threads);

/* The gradients of u, of x, B, C, D and state, these or NULL, of the shapes and types of what they belong to, for those
 * of y (grad_y) and of the final state (grad_final, or NULL for 0). */
S4_FAST_API int s4_fast_cpu_scan_backward(int64_t dtype, int64_t batch, int64_t H, int64_t n, int64_t L,
                                          const void *grad_y, const void *grad_final, const void *u, const void *x,
                                          const void *B, const void *C, const void *D, const void *state, void *grad_u,
                                          void *grad_x, void *grad_B, void *grad_C, void *grad_D, void *grad_state,
                                          int64_t time_major, int64_t threads);

/* The same from the continuous system x'(t) = A x(t) + B u(t), y(t) = 2 Re C x(t) at steps of rate dt. With
 * z = rate dt A, formed in double:
 *     zero-order hold: lambda = exp(z),            B_bar = rate dt B (exp(z) - 1) / z,
 *     bilinear:        lambda = (2 + z) / (2 - z), B_bar = rate dt B / (1 - z/2).
 * For 1 <= j <= c, the second line being there where S4_FAST_BIDIRECTIONAL is set:
 *     s_l = lambda s_{l-1} + B_bar u_l,   y_{j,l} = 2 Re sum_n C_j s_l + D_j u_l
 *     r_l = lambda r_{l+1} + B_bar u_l,             + 2 Re sum_n C_{c+j} r_{l+1}.
 * `dtype` is that of all but the signals, u and y; `signal_dtype` is the same, or with S4_FAST_FLOAT32 a half type.
 * u (batch, H, L); dt (H, dt_states) with dt_states = 1 or n; A_real, A_imag (copies, n); B (copies, n) complex, or
 * NULL for 1; feature h takes the copy h % copies; C (c, H, n), or (2 c, H, n), complex; D (c, H) or NULL;
 * state = s_{-1} and ahead = r_L (batch, H, n) complex, or NULL for 0; y (batch, c, H, L);
 * final = s_{L-1} (batch, H, n) complex, or NULL. */
S4_FAST_API int s4_fast_cpu_diagonal(int64_t dtype, int64_t signal_dtype, int64_t flags, int64_t batch, int64_t H,
                                     int64_t n, int64_t L, int64_t c, int64_t copies, int64_t dt_states, double rate,
                                     const void *u, const void *dt, const void *A_real, const void *A_imag,
                                     const void *B, const void *C, const void *D, const void *state, const void *ahead,
                                     void *y, void *final, int64_t threads);

/* The gradients of u and of what follows it, each or NULL, of the shapes and types of what they belong to, for those of
 * y (grad_y, or NULL for 0) and of the final state (grad_final, or NULL for 0). */
S4_FAST_API int s4_fast_cpu_diagonal_backward(int64_t dtype, int64_t signal_dtype, int64_t flags, int64_t batch,
                                              int64_t H, int64_t n, int64_t L, int64_t c, int64_t copies,
                                              int64_t dt_states, double rate, const void *grad_y,
                                              const void *grad_final, const void *u, const void *dt, const void *A_real,
                                              const void *A_imag, const void *B, const void *C, const void *D,
                                              const void *state, const void *ahead, void *grad_u, void *grad_dt,
                                              void *grad_A_real, void *grad_A_imag, void *grad_B, void *grad_C,
                                              void *grad_D, void *grad_state, void *grad_ahead, int64_t threads);

/* lambda = exp(x) as pairs of doubles, whatever dtype is: x (count,) complex. */
S4_FAST_API int s4_fast_cpu_exp(int64_t dtype, int64_t count, const void *x, double *lambda, int64_t threads);

/* One step: next = lambda state + B u, y = 2 Re sum_n C next + D u.  u, y (batch, H) real; state, next (batch, H, n)
 * complex, which may be the same memory; lambda (H, n) pairs of doubles from s4_fast_*_exp. */
S4_FAST_API int s4_fast_cpu_step(int64_t dtype, int64_t batch, int64_t H, int64_t n, const void *u, const void *state,
                                 const double *lambda, const void *B, const void *C, const void *D, void *y, void *next,
                                 int64_t threads);

/* The gradients of u, state, x, B, C and D, each or NULL, of the shapes and types of what they belong to, for those of
 * y (grad_y, or NULL for 0) and of the next state (grad_next, or NULL for 0). */
S4_FAST_API int s4_fast_cpu_step_backward(int64_t dtype, int64_t batch, int64_t H, int64_t n, const void *grad_y,
                                          const void *grad_next, const void *u, const void *state, const double *lambda,
                                          const void *B, const void *C, const void *D, void *grad_u, void *grad_state,
                                          void *grad_x, void *grad_B, void *grad_C, void *grad_D, int64_t threads);

/* ---- Diagonal plus low rank (S4) ------------------------------------------------------------------------------- */

/* The spectrum k[b, c, h, f], f = 0 .. L/2, of a DPLR kernel: the Schur complement M_00 - M_01 M_11^-1 M_10 of
 *     M = shift + (h on the lower `rank` rows, else 1) * rho,   h = (1 + omega_f)/2,   M_00 of shape (c, b),
 * with rho[i, j] the Cauchy sum of v[i, j, h, :] and the poles w at omega_f = exp(-2 pi i f / L), conjugates included,
 *     rho = e^{i theta/2} sum_n v/(2 i s - w c),  s, c = sin, cos(theta/2).
 * v (c + rank, b + rank, H, n) pairs of doubles; w (H, n) complex; shift (c + rank, b + rank, H) doubles;
 * spectrum (b, c, H, L/2 + 1) complex. All arithmetic is in double. */
S4_FAST_API int s4_fast_cpu_dplr_spectrum(int64_t dtype, int64_t b, int64_t c, int64_t rank, int64_t H, int64_t n,
                                          int64_t L, const double *v, const void *w, const double *shift,
                                          void *spectrum, int64_t threads);

/* grad_v like v, and grad_w (H, n) pairs of doubles or NULL, for the gradient of the spectrum. */
S4_FAST_API int s4_fast_cpu_dplr_spectrum_backward(int64_t dtype, int64_t b, int64_t c, int64_t rank, int64_t H,
                                                   int64_t n, int64_t L, const void *grad_spectrum, const double *v,
                                                   const void *w, const double *shift, double *grad_v, double *grad_w,
                                                   int64_t threads);

/* One step of s' = s + increment s - sum_r G_r (2 Re sum_n V_r s) + B u,  y_c = 2 Re sum_n C_c s' + D u.
 * u (batch, H) real; state, next (batch, H, n), which may be the same memory; increment (H, n) pairs of doubles,
 * whatever dtype is; B (H, n); G, V (rank, H, n); C (c, H, n); D (H,) real or NULL; y (batch, c, H) real. */
S4_FAST_API int s4_fast_cpu_dplr_step(int64_t dtype, int64_t batch, int64_t c, int64_t rank, int64_t H, int64_t n,
                                      const void *u, const void *state, const double *increment, const void *G,
                                      const void *V, const void *B, const void *C, const void *D, void *y, void *next,
                                      int64_t threads);

/* The gradients of u, state, increment (in doubles), G, V, B, C and D, each or NULL, for those of y (grad_y, or NULL
 * for 0) and of the next state (grad_next, or NULL for 0). */
S4_FAST_API int s4_fast_cpu_dplr_step_backward(int64_t dtype, int64_t batch, int64_t c, int64_t rank, int64_t H,
                                               int64_t n, const void *grad_y, const void *grad_next, const void *u,
                                               const void *state, const double *increment, const void *G, const void *V,
                                               const void *B, const void *C, const void *D, void *grad_u,
                                               void *grad_state, double *grad_increment, void *grad_G, void *grad_V,
                                               void *grad_B, void *grad_C, void *grad_D, int64_t threads);

/* ---- The recurrence of a DPLR SSM ------------------------------------------------------------------------------ */

/* The same as s4_fast_cpu_diagonal with A = Lambda - P P* over conjugate pairs: Lambda is what A_real and A_imag say,
 * P (rank, copies, n) complex, any rank >= 1. The discretisation is bilinear, whether or not S4_FAST_BILINEAR is set:
 *     A_bar = (1 - Z/2)^-1 (1 + Z/2),  B_bar = (1 - Z/2)^-1 rate dt B,  Z = rate dt (Lambda - P P*),
 *     s_l = A_bar s_{l-1} + B_bar u_l,  y_{j,l} = 2 Re sum_n C_j s_l + D_j u_l,
 * where P P* s = sum_r P_r 2 Re sum_n P_r* s. C is the plain one, which knows no length. */
S4_FAST_API int s4_fast_cpu_dplr_scan(int64_t dtype, int64_t signal_dtype, int64_t flags, int64_t batch, int64_t H,
                                      int64_t n, int64_t L, int64_t c, int64_t rank, int64_t copies, int64_t dt_states,
                                      double rate, const void *u, const void *dt, const void *A_real,
                                      const void *A_imag, const void *P, const void *B, const void *C, const void *D,
                                      const void *state, const void *ahead, void *y, void *final, int64_t threads);

/* The gradients of u and of what follows it, each or NULL, of the shapes and types of what they belong to, for those of
 * y (grad_y, or NULL for 0) and of the final state (grad_final, or NULL for 0). */
S4_FAST_API int s4_fast_cpu_dplr_scan_backward(int64_t dtype, int64_t signal_dtype, int64_t flags, int64_t batch,
                                               int64_t H, int64_t n, int64_t L, int64_t c, int64_t rank, int64_t copies,
                                               int64_t dt_states, double rate, const void *grad_y,
                                               const void *grad_final, const void *u, const void *dt,
                                               const void *A_real, const void *A_imag, const void *P, const void *B,
                                               const void *C, const void *D, const void *state, const void *ahead,
                                               void *grad_u, void *grad_dt, void *grad_A_real, void *grad_A_imag,
                                               void *grad_P, void *grad_B, void *grad_C, void *grad_D, void *grad_state,
                                               void *grad_ahead, int64_t threads);

/* ---- CUDA ------------------------------------------------------------------------------------------------------ */

/* What is below takes what its CPU counterpart takes. Call a function once before capturing it into a graph: the code
 * of a kernel is loaded at its first launch. */
S4_FAST_API int s4_fast_cuda_vandermonde(int64_t dtype, int64_t c, int64_t H, int64_t n, int64_t L, const void *v,
                                         const void *x, double scale, void *out, void *workspace,
                                         int64_t *workspace_bytes, int64_t device, void *stream);
S4_FAST_API int s4_fast_cuda_moments(int64_t dtype, int64_t c, int64_t H, int64_t n, int64_t L, const void *u,
                                     const void *x, void *zeroth, void *first, void *workspace,
                                     int64_t *workspace_bytes, int64_t device, void *stream);
S4_FAST_API int s4_fast_cuda_scan(int64_t dtype, int64_t batch, int64_t H, int64_t n, int64_t L, const void *u,
                                  const void *x, const void *B, const void *C, const void *D, const void *state,
                                  void *y, void *final, int64_t time_major, void *workspace, int64_t *workspace_bytes,
                                  int64_t device, void *stream);
S4_FAST_API int s4_fast_cuda_scan_backward(int64_t dtype, int64_t batch, int64_t H, int64_t n, int64_t L,
                                           const void *grad_y, const void *grad_final, const void *u, const void *x,
                                           const void *B, const void *C, const void *D, const void *state, void *grad_u,
                                           void *grad_x, void *grad_B, void *grad_C, void *grad_D, void *grad_state,
                                           int64_t time_major, void *workspace, int64_t *workspace_bytes,
                                           int64_t device, void *stream);
S4_FAST_API int s4_fast_cuda_diagonal(int64_t dtype, int64_t signal_dtype, int64_t flags, int64_t batch, int64_t H,
                                      int64_t n, int64_t L, int64_t c, int64_t copies, int64_t dt_states, double rate,
                                      const void *u, const void *dt, const void *A_real, const void *A_imag,
                                      const void *B, const void *C, const void *D, const void *state, const void *ahead,
                                      void *y, void *final, void *workspace, int64_t *workspace_bytes, int64_t device,
                                      void *stream);
S4_FAST_API int s4_fast_cuda_diagonal_backward(int64_t dtype, int64_t signal_dtype, int64_t flags, int64_t batch,
                                               int64_t H, int64_t n, int64_t L, int64_t c, int64_t copies,
                                               int64_t dt_states, double rate, const void *grad_y,
                                               const void *grad_final, const void *u, const void *dt,
                                               const void *A_real, const void *A_imag, const void *B, const void *C,
                                               const void *D, const void *state, const void *ahead, void *grad_u,
                                               void *grad_dt, void *grad_A_real, void *grad_A_imag, void *grad_B,
                                               void *grad_C, void *grad_D, void *grad_state, void *grad_ahead,
                                               void *workspace, int64_t *workspace_bytes, int64_t device, void *stream);
S4_FAST_API int s4_fast_cuda_exp(int64_t dtype, int64_t count, const void *x, double *lambda, void *workspace,
                                 int64_t *workspace_bytes, int64_t device, void *stream);
S4_FAST_API int s4_fast_cuda_step(int64_t dtype, int64_t batch, int64_t H, int64_t n, const void *u, const void *state,
                                  const double *lambda, const void *B, const void *C, const void *D, void *y,
                                  void *next, void *workspace, int64_t *workspace_bytes, int64_t device, void *stream);
S4_FAST_API int s4_fast_cuda_dplr_spectrum(int64_t dtype, int64_t b, int64_t c, int64_t rank, int64_t H, int64_t n,
                                           int64_t L, const double *v, const void *w, const double *shift,
                                           void *spectrum, void *workspace, int64_t *workspace_bytes, int64_t device,
                                           void *stream);
S4_FAST_API int s4_fast_cuda_dplr_spectrum_backward(int64_t dtype, int64_t b, int64_t c, int64_t rank, int64_t H,
                                                    int64_t n, int64_t L, const void *grad_spectrum, const double *v,
                                                    const void *w, const double *shift, double *grad_v, double *grad_w,
                                                    void *workspace, int64_t *workspace_bytes, int64_t device,
                                                    void *stream);
S4_FAST_API int s4_fast_cuda_dplr_step(int64_t dtype, int64_t batch, int64_t c, int64_t rank, int64_t H, int64_t n,
                                       const void *u, const void *state, const double *increment, const void *G,
                                       const void *V, const void *B, const void *C, const void *D, void *y, void *next,
                                       void *workspace, int64_t *workspace_bytes, int64_t device, void *stream);

S4_FAST_API int s4_fast_cuda_dplr_scan(int64_t dtype, int64_t signal_dtype, int64_t flags, int64_t batch, int64_t H,
                                       int64_t n, int64_t L, int64_t c, int64_t rank, int64_t copies, int64_t dt_states,
                                       double rate, const void *u, const void *dt, const void *A_real,
                                       const void *A_imag, const void *P, const void *B, const void *C, const void *D,
                                       const void *state, const void *ahead, void *y, void *final, void *workspace,
                                       int64_t *workspace_bytes, int64_t device, void *stream);
S4_FAST_API int s4_fast_cuda_dplr_scan_backward(
    int64_t dtype, int64_t signal_dtype, int64_t flags, int64_t batch, int64_t H, int64_t n, int64_t L, int64_t c,
    int64_t rank, int64_t copies, int64_t dt_states, double rate, const void *grad_y, const void *grad_final,
    const void *u, const void *dt, const void *A_real, const void *A_imag, const void *P, const void *B, const void *C,
    const void *D, const void *state, const void *ahead, void *grad_u, void *grad_dt, void *grad_A_real,
    void *grad_A_imag, void *grad_P, void *grad_B, void *grad_C, void *grad_D, void *grad_state, void *grad_ahead,
    void *workspace, int64_t *workspace_bytes, int64_t device, void *stream);

/* The same on tensor cores, for GPUs from sm_80 on: dtype float32 alone, and of diagonal models one channel (c = 1)
 * and one direction. Samples of a chunk of 64 are rounded to 2^-37 of the largest of them, powers of lambda to 2^-37 of
 * the largest of 64: outputs and gradients are those of float32 unless a node grows by more than 2^13 in a chunk.
 * Sums of a DPLR spectrum are of doubles. */
S4_FAST_API int s4_fast_cuda_tensor_vandermonde(int64_t dtype, int64_t c, int64_t H, int64_t n, int64_t L,
                                                const void *v, const void *x, double scale, void *out, void *workspace,
                                                int64_t *workspace_bytes, int64_t device, void *stream);
S4_FAST_API int s4_fast_cuda_tensor_moments(int64_t dtype, int64_t c, int64_t H, int64_t n, int64_t L, const void *u,
                                            const void *x, void *zeroth, void *first, void *workspace,
                                            int64_t *workspace_bytes, int64_t device, void *stream);
S4_FAST_API int s4_fast_cuda_tensor_scan(int64_t dtype, int64_t batch, int64_t H, int64_t n, int64_t L, const void *u,
                                         const void *x, const void *B, const void *C, const void *D, const void *state,
                                         void *y, void *final, int64_t time_major, void *workspace,
                                         int64_t *workspace_bytes, int64_t device, void *stream);
S4_FAST_API int s4_fast_cuda_tensor_scan_backward(int64_t dtype, int64_t batch, int64_t H, int64_t n, int64_t L,
                                                  const void *grad_y, const void *grad_final, const void *u,
                                                  const void *x, const void *B, const void *C, const void *D,
                                                  const void *state, void *grad_u, void *grad_x, void *grad_B,
                                                  void *grad_C, void *grad_D, void *grad_state, int64_t time_major,
                                                  void *workspace, int64_t *workspace_bytes, int64_t device,
                                                  void *stream);
S4_FAST_API int s4_fast_cuda_tensor_diagonal(int64_t dtype, int64_t signal_dtype, int64_t flags, int64_t batch,
                                             int64_t H, int64_t n, int64_t L, int64_t c, int64_t copies,
                                             int64_t dt_states, double rate, const void *u, const void *dt,
                                             const void *A_real, const void *A_imag, const void *B, const void *C,
                                             const void *D, const void *state, const void *ahead, void *y, void *final,
                                             void *workspace, int64_t *workspace_bytes, int64_t device, void *stream);
S4_FAST_API int s4_fast_cuda_tensor_diagonal_backward(
    int64_t dtype, int64_t signal_dtype, int64_t flags, int64_t batch, int64_t H, int64_t n, int64_t L, int64_t c,
    int64_t copies, int64_t dt_states, double rate, const void *grad_y, const void *grad_final, const void *u,
    const void *dt, const void *A_real, const void *A_imag, const void *B, const void *C, const void *D,
    const void *state, const void *ahead, void *grad_u, void *grad_dt, void *grad_A_real, void *grad_A_imag,
    void *grad_B, void *grad_C, void *grad_D, void *grad_state, void *grad_ahead, void *workspace,
    int64_t *workspace_bytes, int64_t device, void *stream);
S4_FAST_API int s4_fast_cuda_tensor_dplr_spectrum(int64_t dtype, int64_t b, int64_t c, int64_t rank, int64_t H,
                                                  int64_t n, int64_t L, const double *v, const void *w,
                                                  const double *shift, void *spectrum, void *workspace,
                                                  int64_t *workspace_bytes, int64_t device, void *stream);
S4_FAST_API int s4_fast_cuda_tensor_dplr_spectrum_backward(int64_t dtype, int64_t b, int64_t c, int64_t rank, int64_t H,
                                                           int64_t n, int64_t L, const void *grad_spectrum,
                                                           const double *v, const void *w, const double *shift,
                                                           double *grad_v, double *grad_w, void *workspace,
                                                           int64_t *workspace_bytes, int64_t device, void *stream);

S4_FAST_API int s4_fast_cuda_cauchy_mult(int64_t dtype, int64_t c, int64_t H, int64_t n, int64_t Lz, int64_t z_rows,
                                         const void *v, const void *z, const void *w, int64_t symmetric, void *out,
                                         void *workspace, int64_t *workspace_bytes, int64_t device, void *stream);
S4_FAST_API int s4_fast_cuda_cauchy_mult_backward(int64_t dtype, int64_t c, int64_t H, int64_t n, int64_t Lz,
                                                  int64_t z_rows, const void *grad, const void *v, const void *z,
                                                  const void *w, int64_t symmetric, void *grad_v, void *grad_z,
                                                  void *grad_w, void *workspace, int64_t *workspace_bytes,
                                                  int64_t device, void *stream);

#ifdef __cplusplus
}
#endif

#endif
