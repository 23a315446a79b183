// Layer normalisation over the last dimension and its backward, T in {f32, f16, bf16}. Writes with "="; y may be x itself.
//
//   norm(x) = (x - mean) / sqrt(variance + eps)                  mean, then biased variance about it (two passes), in f32
//   layernorm_fwd_<dtype>:            y = norm(x) weight + bias                weight, bias: [dim], null means 1 and 0
//   layernorm_modulated_fwd_<dtype>:  y = norm(x) scale[c] + shift[c]          adaLN (Peebles & Xie 2023), its 1 in scale already
//                                     shift, scale: [.., dim], rows mod_stride elements apart; c = b = row / rows_per_image,
//                                     or where counter is not null c = counter[0] conditions + rows[b]
//   x, y: [rows, dim]
//
// One warp per row. Rows of up to 1024 elements that are whole 16-byte blocks stay in registers; others are read three times.
//
// With n = norm(x), g = dy factor:
//   layernorm_bwd_<dtype>:         dx = beside + (g - mean(g) - n mean(g n)) rstd, and (mean, rstd) of each row into stats
//                                  factor: [dim], or [images, dim] where factor_stride is dim; factor, beside: null means 1, 0
//   layernorm_affine_bwd_<dtype>:  of each image b the sums over its rows of dy and dy n: in f32 into dadd[b] and dmul[b]
//                                  where these are not null, else in T into dshift[b] and dscale[b]; all [images, dim]
//
// PRECOND: grid ceil(rows/4), block 128, no dynamic shared memory. Any rows, dim >= 1 and any pointer alignment.
// PRECOND layernorm_affine_bwd: grid (ceil(dim/32), images), block 256.
#include "columns.cuh"
#include "reduce.cuh"

struct LayerNormSpec {
  int rows, dim;
  int rows_per_image;
  int conditions;
  int mod_stride;  // elements from one condition's shift (or scale) to the next, 0 for one row
  float eps;
};
SPEC_LAYOUT(LayerNormSpec, rows, dim, rows_per_image, conditions, mod_stride, eps)

struct LayerNormBackwardSpec {
  int rows, dim;
  int rows_per_image;
  int factor_stride;  // elements from one image's factor to the next, 0 for one
  float eps;
};
SPEC_LAYOUT(LayerNormBackwardSpec, rows, dim, rows_per_image, factor_stride, eps)

namespace {

constexpr int MAX_IN_REGISTERS = 1024;

// y[0..VEC) of a chunk from its values. gain, offset: null means 1 and 0.
template <class T>
__device__ __forceinline__ void store_chunk(T* y, float (&v)[dev::VEC<T>], float mean, float rstd, const T* gain, const T* offset) {
  float g[dev::VEC<T>], o[dev::VEC<T>];
#pragma unroll
  for (int e = 0; e < dev::VEC<T>; ++e) {
    g[e] = 1.f;
    o[e] = 0.f;
  }
  if (gain) dev::load_vec(gain, g);
  if (offset) dev::load_vec(offset, o);
#pragma unroll
  for (int e = 0; e < dev::VEC<T>; ++e) v[e] = fmaf((v[e] - mean) * rstd, g[e], o[e]);
  dev::store_vec(y, v);
}

// One row, in registers: lane l holds chunks l, l + 32, ...
template <class T>
__device__ __forceinline__ void norm_in_registers(const T* x, const T* gain, const T* offset, T* y, int dim, float eps) {
  constexpr int V = dev::VEC<T>, CHUNKS = MAX_IN_REGISTERS / 32 / V;
  const int first = threadIdx.x % 32 * V;
  float v[CHUNKS][V], sum = 0.f, squares = 0.f;
#pragma unroll
  for (int i = 0; i < CHUNKS; ++i)
    if (const int c = first + i * 32 * V; c < dim) {
      dev::load_vec(x + c, v[i]);
#pragma unroll
      for (int e = 0; e < V; ++e) sum += v[i][e];
    }
  const float mean = dev::warp_sum(sum) / dim;
#pragma unroll
  for (int i = 0; i < CHUNKS; ++i)
    if (first + i * 32 * V < dim) {
#pragma unroll
      for (int e = 0; e < V; ++e) squares = fmaf(v[i][e] - mean, v[i][e] - mean, squares);
    }
  const float rstd = rsqrtf(dev::warp_sum(squares) / dim + eps);
#pragma unroll
  for (int i = 0; i < CHUNKS; ++i)
    if (const int c = first + i * 32 * V; c < dim)
      store_chunk(y + c, v[i], mean, rstd, gain ? gain + c : nullptr, offset ? offset + c : nullptr);
}

// One row of any length and alignment, by element.
template <class T>
__device__ __forceinline__ void norm_by_element(const T* x, const T* gain, const T* offset, T* y, int dim, float eps) {
  const int lane = threadIdx.x % 32;
  float sum = 0.f, squares = 0.f;
  for (int c = lane; c < dim; c += 32) sum += dev::to_f32(x[c]);
  const float mean = dev::warp_sum(sum) / dim;
  for (int c = lane; c < dim; c += 32) {
    const float d = dev::to_f32(x[c]) - mean;
    squares = fmaf(d, d, squares);
  }
  const float rstd = rsqrtf(dev::warp_sum(squares) / dim + eps);
  for (int c = lane; c < dim; c += 32) {
    const float g = gain ? dev::to_f32(gain[c]) : 1.f, o = offset ? dev::to_f32(offset[c]) : 0.f;
    y[c] = dev::from_f32<T>(fmaf((dev::to_f32(x[c]) - mean) * rstd, g, o));
  }
}

// gain, offset: rows of mod_stride, or one row; counter, picked: null for one row, or where image b takes row b.
template <class T>
__device__ __forceinline__ void layernorm(const T* x, const T* gain, const T* offset, const unsigned* counter, const unsigned* picked,
                                          T* y, const LayerNormSpec& s) {
  dev::grid_begin();
  const int row = blockIdx.x * 4 + threadIdx.x / 32;
  if (row >= s.rows) return;
  const bool whole = (s.dim | s.mod_stride) % dev::VEC<T> == 0 && dev::aligned16(x, gain, offset, y);
  x += static_cast<size_t>(row) * s.dim;
  y += static_cast<size_t>(row) * s.dim;
  if (s.mod_stride) {
    size_t condition = row / s.rows_per_image;
    if (counter) condition = static_cast<size_t>(*counter) * s.conditions + picked[condition];
    gain += condition * s.mod_stride;
    offset += condition * s.mod_stride;
  }
  if (whole && s.dim <= MAX_IN_REGISTERS)
    norm_in_registers(x, gain, offset, y, s.dim, s.eps);
  else
    norm_by_element(x, gain, offset, y, s.dim, s.eps);
}

template <class T>
__device__ __forceinline__ void backward(const T* __restrict__ x, const T* __restrict__ factor, const T* __restrict__ dy,
                                         const T* __restrict__ beside, T* __restrict__ dx, float2* __restrict__ stats,
                                         const LayerNormBackwardSpec& s) {
  dev::grid_begin();
  const int row = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32, dim = s.dim;
  if (row >= s.rows) return;
  const size_t at = static_cast<size_t>(row) * dim;
  if (factor) factor += static_cast<size_t>(row / s.rows_per_image) * s.factor_stride;
  float sum = 0.f, squares = 0.f;
  for (int c = lane; c < dim; c += 32) sum += dev::to_f32(x[at + c]);
  const float mean = dev::warp_sum(sum) / dim;
  for (int c = lane; c < dim; c += 32) {
    const float d = dev::to_f32(x[at + c]) - mean;
    squares = fmaf(d, d, squares);
  }
  const float rstd = rsqrtf(dev::warp_sum(squares) / dim + s.eps);
  float sum_g = 0.f, sum_gn = 0.f;
  for (int c = lane; c < dim; c += 32) {
    const float g = dev::to_f32(dy[at + c]) * (factor ? dev::to_f32(factor[c]) : 1.f);
    sum_g += g;
    sum_gn = fmaf(g, (dev::to_f32(x[at + c]) - mean) * rstd, sum_gn);
  }
  const float mean_g = dev::warp_sum(sum_g) / dim, mean_gn = dev::warp_sum(sum_gn) / dim;
  for (int c = lane; c < dim; c += 32) {
    const float g = dev::to_f32(dy[at + c]) * (factor ? dev::to_f32(factor[c]) : 1.f);
    const float n = (dev::to_f32(x[at + c]) - mean) * rstd, v = rstd * (g - mean_g - n * mean_gn);
    dx[at + c] = dev::from_f32<T>(beside ? v + dev::to_f32(beside[at + c]) : v);
  }
  if (lane == 0) stats[row] = make_float2(mean, rstd);
}

template <class T>
__device__ __forceinline__ void affine_backward(const T* __restrict__ x, const T* __restrict__ dy, const float2* __restrict__ stats,
                                                float* __restrict__ dadd, float* __restrict__ dmul, T* __restrict__ dshift,
                                                T* __restrict__ dscale, const LayerNormBackwardSpec& s) {
  dev::grid_begin();
  const int row0 = blockIdx.y * s.rows_per_image;
  float sum[2];
  const bool mine = dev::column_sums(sum, s.rows_per_image, s.dim, [&](int r, int col, float(&v)[2]) {
    const size_t at = static_cast<size_t>(row0 + r) * s.dim + col;
    const float d = dev::to_f32(dy[at]);
    const float2 known = stats[row0 + r];
    v[0] += d;
    v[1] = fmaf(d, (dev::to_f32(x[at]) - known.x) * known.y, v[1]);
  });
  if (!mine) return;
  const size_t to = static_cast<size_t>(blockIdx.y) * s.dim + blockIdx.x * 32 + threadIdx.x;
  if (dadd) {
    dadd[to] = sum[0];
    dmul[to] = sum[1];
  } else {
    dshift[to] = dev::from_f32<T>(sum[0]);
    dscale[to] = dev::from_f32<T>(sum[1]);
  }
}

}  // namespace

#define LAYERNORM_EXPORTS(T, dtype)                                                                                      \
  KERNEL(__launch_bounds__(128) layernorm_fwd_##dtype)(const T* x, const T* weight, const T* bias, T* y, LayerNormSpec s) { \
    layernorm<T>(x, weight, bias, nullptr, nullptr, y, s);                                                               \
  }                                                                                                                      \
  KERNEL_EXPORT(layernorm_fwd_##dtype)                                                                                   \
  KERNEL(__launch_bounds__(128) layernorm_modulated_fwd_##dtype)                                                         \
  (const T* x, const T* shift, const T* scale, const unsigned* counter, const unsigned* rows, T* y, LayerNormSpec s) {   \
    layernorm<T>(x, scale, shift, counter, rows, y, s);                                                                  \
  }                                                                                                                      \
  KERNEL_EXPORT(layernorm_modulated_fwd_##dtype)                                                                         \
  KERNEL(__launch_bounds__(128) layernorm_bwd_##dtype)                                                                   \
  (const T* x, const T* factor, const T* dy, const T* beside, T* dx, float2* stats, LayerNormBackwardSpec s) {           \
    backward<T>(x, factor, dy, beside, dx, stats, s);                                                                    \
  }                                                                                                                      \
  KERNEL_EXPORT(layernorm_bwd_##dtype)                                                                                   \
  KERNEL(__launch_bounds__(256) layernorm_affine_bwd_##dtype)                                                            \
  (const T* x, const T* dy, const float2* stats, float* dadd, float* dmul, T* dshift, T* dscale,                         \
   LayerNormBackwardSpec s) {                                                                                            \
    affine_backward<T>(x, dy, stats, dadd, dmul, dshift, dscale, s);                                                     \
  }                                                                                                                      \
  KERNEL_EXPORT(layernorm_affine_bwd_##dtype)

LAYERNORM_EXPORTS(float, f32)
LAYERNORM_EXPORTS(__half, f16)
LAYERNORM_EXPORTS(__nv_bfloat16, bf16)
