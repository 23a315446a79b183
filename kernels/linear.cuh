// What every linear kernel shares: its geometry, its operands, and all that happens to a sum before it is stored.
//
//   acc = sum_k x[m,k] w[n,k]                     f32; chunk by chunk of k, the chunk sums added in their order
//   a   = norm ? rstd[m] (acc - mean[m] sums[n]) : acc
//   v   = act(a + bias[n])                        act: 0 none, 1 GELU (erf), 2 GELU (tanh), 3 SiLU, 4 ReLU
//   y   = v                                       residual 0
//   y   = res[m % residual_rows, n] + v           residual 1
//   y   = res[m % residual_rows, n] + gate[n] v   residual 2 (adaLN-zero, Peebles & Xie 2023)
//   z   = scale[n] y                              where z is not null
//   stats[m, n / 64] = (sum, squared deviations from the chunk's own mean) of y over 64 columns, where stats is not null
//
// Layer norm in front of a product costs no pass of its own: with w holding norm weight times weight, sums[n] = sum_k w[n,k]
// and the norm's bias in bias[n], a is the product of the normalised x. mean and rstd come from the stats that whoever
// wrote x left. A modulated norm (adaLN) has its scale in x already, as the z of whoever wrote it.
//
// bias, sums, gate and scale are rows of n numbers, one for all images (stride 0) or one per condition: image b = m /
// rows_per_image takes row b, or where counter is not null row counter[0] conditions + rows[b] of a table that holds one row
// per evaluation and condition.
#pragma once
#include "reduce.cuh"

struct LinearSpec {
  int m, n, k;
  int act;
  int residual;
  int residual_rows;
  int rows_per_image;
  int conditions;
  int bias_stride, sums_stride, gate_stride, scale_stride;  // elements from one row to the next, 0 for one row
  int norm;                                                 // 1: x is normalised
  float eps;
  int splits;       // chunks of k
  int k_per_split;  // a multiple of 64 where there is more than one
};
SPEC_LAYOUT(LinearSpec, m, n, k, act, residual, residual_rows, rows_per_image, conditions, bias_stride, sums_stride, gate_stride,
            scale_stride, norm, eps, splits, k_per_split)

// Pointers of the epilogue; any but y may be null. y may be res itself (residual_rows >= m): each element is read and
// written by one thread.
template <class T> struct LinearOut {
  const T* bias;            // [.., n]
  const T* sums;            // [.., n]
  const float2* in_stats;   // [m, ceil(k / 64)]
  const unsigned* counter;  // [1]
  const unsigned* rows;     // [images]
  const T* res;             // [residual_rows, n]
  const T* gate;            // [.., n]
  const T* scale;           // [.., n]
  T* y;                     // [m, n]
  T* z;                     // [m, n]
  float2* stats;            // [m, ceil(n / 64)]
};

namespace dev {

constexpr int STATS_CHUNK = 64;

// What the epilogue needs to know of a row of y.
struct LinearRow {
  float mean, rstd;
  int condition;  // row of bias, sums, gate and scale
};

// Of one row of x, from the stats of its chunks.
template <class T> __device__ __forceinline__ LinearRow linear_row(const LinearOut<T>& o, const LinearSpec& s, int row) {
  LinearRow r = {0.f, 1.f, row / s.rows_per_image};
  if (o.counter) r.condition = static_cast<int>(*o.counter) * s.conditions + static_cast<int>(o.rows[r.condition]);
  if (s.norm) {
    const int chunks = (s.k + STATS_CHUNK - 1) / STATS_CHUNK;
    const float2* stats = o.in_stats + static_cast<size_t>(row) * chunks;
    float sum = 0.f, squares = 0.f;
#pragma unroll 4
    for (int c = 0; c < chunks; ++c) sum += stats[c].x;
    r.mean = sum / s.k;
#pragma unroll 4
    for (int c = 0; c < chunks; ++c) {  // Chan, Golub and LeVeque 1979: deviations about the common mean
      const float count = static_cast<float>(min(STATS_CHUNK, s.k - c * STATS_CHUNK)), d = stats[c].x / count - r.mean;
      squares += fmaf(count * d, d, stats[c].y);
    }
    r.rstd = rsqrtf(squares / s.k + s.eps);
  }
  return r;
}

// Whether the rows of every operand can be moved in 16-byte chunks.
template <class T> __device__ __forceinline__ bool linear_whole(const LinearOut<T>& o, const LinearSpec& s) {
  return (s.n | s.bias_stride | s.sums_stride | s.gate_stride | s.scale_stride) % VEC<T> == 0 &&
         aligned16(o.bias, o.sums, o.res, o.gate, o.scale, o.y, o.z);
}

// v[0..VEC) = p[0..count), 16 bytes at once where `whole`.
template <class T> __device__ __forceinline__ void load_chunk(const T* p, bool whole, int count, float (&v)[VEC<T>]) {
  if (whole) {
    load_vec(p, v);
  } else {
#pragma unroll
    for (int e = 0; e < VEC<T>; ++e) v[e] = e < count ? to_f32(p[e]) : 0.f;
  }
}
// p[0..count) = v[0..count), 16 bytes at once where `whole`.
template <class T> __device__ __forceinline__ void store_chunk(T* p, bool whole, int count, const float (&v)[VEC<T>]) {
  if (whole) {
    store_vec(p, v);
  } else {
#pragma unroll
    for (int e = 0; e < VEC<T>; ++e)
      if (e < count) p[e] = from_f32<T>(v[e]);
  }
}

// From the sums v of columns col..col + VEC of a row to y, z and stats. Nothing is read or written where row >= m or
// col >= n. `whole`: linear_whole.
// PRECOND: the 64 / VEC lanes of an aligned group hold the columns of one 64-column chunk of one row in order; all lanes
//          of the warp come.
template <class T>
__device__ __forceinline__ void linear_finish(float (&v)[VEC<T>], const LinearOut<T>& o, const LinearSpec& s, const LinearRow& r,
                                              int row, int col, bool whole) {
  constexpr int V = VEC<T>;
  const bool in = row < s.m && col < s.n;
  const int count = in ? s.n - col : 0;
  const size_t condition = static_cast<size_t>(r.condition), at = static_cast<size_t>(row) * s.n + col;
  if (in) {
    float u[V];
    if (s.norm) {
      load_chunk(o.sums + condition * s.sums_stride + col, whole, count, u);
#pragma unroll
      for (int e = 0; e < V; ++e) v[e] = r.rstd * fmaf(-r.mean, u[e], v[e]);
    }
    if (o.bias) {
      load_chunk(o.bias + condition * s.bias_stride + col, whole, count, u);
#pragma unroll
      for (int e = 0; e < V; ++e) v[e] += u[e];
    }
    if (s.act == 1) {
#pragma unroll
      for (int e = 0; e < V; ++e) v[e] = gelu_erf(v[e]);
    } else if (s.act == 2) {
#pragma unroll
      for (int e = 0; e < V; ++e) v[e] = gelu_tanh(v[e]);
    } else if (s.act == 3) {
#pragma unroll
      for (int e = 0; e < V; ++e) v[e] = silu(v[e]);
    } else if (s.act == 4) {
#pragma unroll
      for (int e = 0; e < V; ++e) v[e] = relu(v[e]);
    }
    if (s.residual == 2) {
      load_chunk(o.gate + condition * s.gate_stride + col, whole, count, u);
#pragma unroll
      for (int e = 0; e < V; ++e) v[e] *= u[e];
    }
    if (s.residual) {
      load_chunk(o.res + static_cast<size_t>(row % s.residual_rows) * s.n + col, whole, count, u);
#pragma unroll
      for (int e = 0; e < V; ++e) v[e] += u[e];
    }
#pragma unroll
    for (int e = 0; e < V; ++e) v[e] = to_f32(from_f32<T>(v[e]));
    store_chunk(o.y + at, whole, count, v);
    if (o.z) {
      load_chunk(o.scale + condition * s.scale_stride + col, whole, count, u);
#pragma unroll
      for (int e = 0; e < V; ++e) u[e] *= v[e];
      store_chunk(o.z + at, whole, count, u);
    }
  }
  if (o.stats) {
    constexpr int LANES = STATS_CHUNK / V;
    float sum = 0.f, squares = 0.f;
#pragma unroll
    for (int e = 0; e < V; ++e)
      if (e < count) sum += v[e];
    sum = warp_sum<LANES>(sum);
    const int first = col / STATS_CHUNK * STATS_CHUNK;
    const float mean = sum / static_cast<float>(min(STATS_CHUNK, s.n - first));
#pragma unroll
    for (int e = 0; e < V; ++e)
      if (e < count) squares = fmaf(v[e] - mean, v[e] - mean, squares);
    squares = warp_sum<LANES>(squares);
    if (in && col == first)
      o.stats[static_cast<size_t>(row) * ((s.n + STATS_CHUNK - 1) / STATS_CHUNK) + col / STATS_CHUNK] = make_float2(sum, squares);
  }
}

}  // namespace dev
