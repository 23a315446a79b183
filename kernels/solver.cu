// One stage of an explicit ODE solver on the sampler's state; T in {f32, f16, bf16} is the model's output type, the state is f32.
// Which stage it is comes from a table on the device, row *counter, so that one captured step serves every step of a schedule.
//
//   vel  = guided ? u + guidance (c - u) : v          c = v[i], u = v[elements + i]: classifier-free guidance (Ho & Salimans 2022)
//   from = FROM_BASE ? base[i] : x[i]
//   new  = from + v_coef vel + prev_coef prev[i]      prev is read only where prev_coef != 0
//   SAVE_BASE: base[i] = x[i];  SAVE_PREV: prev[i] = vel;  LAST and clamp: new into [lo, hi], NaN stays NaN;  x[i] = new
//
//   x, base, prev: [elements] f32, all "="; base and prev may be null where no stage of the table uses them
//   v: [elements], guided [2, elements];  table: [evaluations];  counter: device counter of evaluations done
// Products and sums are explicit fused multiply-adds, so every device gives the same bits for the same v.
//
// PRECOND solver_step_fwd: block 256, any 1-D grid (grid-stride); one thread per 4 elements, or per element where elements % 4 != 0
//                          or a pointer is not aligned to 4 elements; *counter < evaluations.
// PRECOND counter_advance: one thread.
#include "prelude.cuh"

struct SolverStep {  // a row of the device table
  float v_coef, prev_coef;
  unsigned flags;
  unsigned reserved;
};
SPEC_LAYOUT(SolverStep, v_coef, prev_coef, flags, reserved)

struct SolverSpec {
  int elements;
  int guided;
  float guidance;
  int clamp;
  float lo, hi;
};
SPEC_LAYOUT(SolverSpec, elements, guided, guidance, clamp, lo, hi)

namespace {

constexpr unsigned FROM_BASE = 1, SAVE_BASE = 2, SAVE_PREV = 4, LAST = 8;

// N consecutive elements of the state or the velocity, moved at once; the address is a multiple of their size.
template <int N> struct Lane {
  float e[N];
};
template <int N> __device__ __forceinline__ Lane<N> load(const float* p);
template <> __device__ __forceinline__ Lane<1> load<1>(const float* p) { return {{*p}}; }
template <> __device__ __forceinline__ Lane<4> load<4>(const float* p) {
  Lane<4> v;
  dev::load_vec(p, v.e);
  return v;
}
template <int N> __device__ __forceinline__ void store(float* p, const Lane<N>& v);
template <> __device__ __forceinline__ void store<1>(float* p, const Lane<1>& v) { *p = v.e[0]; }
template <> __device__ __forceinline__ void store<4>(float* p, const Lane<4>& v) { dev::store_vec(p, v.e); }

template <int N, class T> __device__ __forceinline__ Lane<N> load_velocity(const T* p) {
  if constexpr (sizeof(T) == 4) {
    return load<N>(p);
  } else if constexpr (N == 1) {
    return {{dev::to_f32(*p)}};
  } else {
    const uint2 u = *reinterpret_cast<const uint2*>(p);
    Lane<4> v;
    dev::unpack2<T>(u.x, v.e[0], v.e[1]);
    dev::unpack2<T>(u.y, v.e[2], v.e[3]);
    return v;
  }
}

template <int N, class T>
__device__ __forceinline__ void solver_step(float* x, float* base, float* prev, const T* __restrict__ v, const SolverStep& step,
                                            const SolverSpec& s, size_t i) {
  const Lane<N> old = load<N>(x + i);
  Lane<N> vel = load_velocity<N>(v + i), now = old;
  if (s.guided) {
    const Lane<N> u = load_velocity<N>(v + s.elements + i);
#pragma unroll
    for (int e = 0; e < N; ++e) vel.e[e] = __fmaf_rn(s.guidance, __fsub_rn(vel.e[e], u.e[e]), u.e[e]);
  }
  if (step.flags & FROM_BASE) now = load<N>(base + i);
#pragma unroll
  for (int e = 0; e < N; ++e) now.e[e] = __fmaf_rn(step.v_coef, vel.e[e], now.e[e]);
  if (step.prev_coef != 0.f) {
    const Lane<N> p = load<N>(prev + i);
#pragma unroll
    for (int e = 0; e < N; ++e) now.e[e] = __fmaf_rn(step.prev_coef, p.e[e], now.e[e]);
  }
  if (step.flags & SAVE_BASE) store(base + i, old);
  if (step.flags & SAVE_PREV) store(prev + i, vel);
  if (step.flags & LAST && s.clamp) {
#pragma unroll
    for (int e = 0; e < N; ++e) now.e[e] = now.e[e] < s.lo ? s.lo : now.e[e] > s.hi ? s.hi : now.e[e];  // comparisons let NaN pass
  }
  store(x + i, now);
}

template <class T>
__device__ __forceinline__ void solver_steps(float* x, float* base, float* prev, const T* __restrict__ v,
                                             const SolverStep* __restrict__ table, const unsigned* __restrict__ counter,
                                             const SolverSpec& s) {
  dev::grid_begin();
  const SolverStep step = table[*counter];
  const size_t n = s.elements;
  const bool fours = n % 4 == 0 && dev::aligned16(x, base, prev) && reinterpret_cast<uintptr_t>(v) % (4 * sizeof(T)) == 0;
  if (fours)
    for (size_t i = dev::first_index() * 4; i < n; i += dev::index_stride() * 4) solver_step<4>(x, base, prev, v, step, s, i);
  else
    for (size_t i = dev::first_index(); i < n; i += dev::index_stride()) solver_step<1>(x, base, prev, v, step, s, i);
}

}  // namespace

#define SOLVER_EXPORT(T, dtype)                                                                                         \
  KERNEL(__launch_bounds__(256) solver_step_fwd_##dtype)                                                                \
  (float* x, float* base, float* prev, const T* v, const SolverStep* table, const unsigned* counter, SolverSpec s) {    \
    solver_steps<T>(x, base, prev, v, table, counter, s);                                                               \
  }                                                                                                                     \
  KERNEL_EXPORT(solver_step_fwd_##dtype)

SOLVER_EXPORT(float, f32)
SOLVER_EXPORT(__half, f16)
SOLVER_EXPORT(__nv_bfloat16, bf16)

KERNEL(__launch_bounds__(32) counter_advance)(unsigned* counter) {
  dev::grid_begin();
  *counter += 1;
}
KERNEL_EXPORT(counter_advance)
