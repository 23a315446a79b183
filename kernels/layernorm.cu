// Layer normalisation over the last dimension, T in {f32, f16, bf16}. Writes y with "="; y may be x itself.
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
// PRECOND: grid ceil(rows/4), block 128, no dynamic shared memory. Any rows, dim >= 1 and any pointer alignment.
#include "reduce.cuh"

struct LayerNormSpec {
  int rows, dim;
  int rows_per_image;
  int conditions;
  int mod_stride;  // elements from one condition's shift (or scale) to the next, 0 for one row
  float eps;
};
SPEC_LAYOUT(LayerNormSpec, rows, dim, rows_per_image, conditions, mod_stride, eps)

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
  KERNEL_EXPORT(layernorm_modulated_fwd_##dtype)

LAYERNORM_EXPORTS(float, f32)
LAYERNORM_EXPORTS(__half, f16)
LAYERNORM_EXPORTS(__nv_bfloat16, bf16)
