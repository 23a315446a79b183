// Layer normalisation over the last dimension, T in {f32, f16, bf16}. Writes y with "="; y may be x itself.
//
//   norm(x) = (x - mean) / sqrt(variance + eps)                  mean, then biased variance about it (two passes), in f32
//   layernorm_fwd_<dtype>:            y = norm(x) weight + bias                weight, bias: [dim], null means 1 and 0
//   layernorm_modulated_fwd_<dtype>:  y = norm(x) (1 + scale[b]) + shift[b]    b = row / rows_per_image; adaLN (Peebles & Xie 2023)
//                                     shift, scale: [images, dim], rows mod_stride elements apart
//   x, y: [rows, dim]
//
// One warp per row. Rows of up to 1024 elements that are whole 16-byte blocks stay in registers; others are read three times.
//
// PRECOND: grid ceil(rows/4), block 128, no dynamic shared memory. Any rows, dim >= 1 and any pointer alignment.
#include "reduce.cuh"

struct LayerNormSpec {
  int rows, dim;
  int rows_per_image;
  int mod_stride;  // elements from one image's shift (or scale) to the next
  float eps;
};
SPEC_LAYOUT(LayerNormSpec, rows, dim, rows_per_image, mod_stride, eps)

namespace {

constexpr int MAX_IN_REGISTERS = 1024;

// What follows the normalisation, for one element of weight/scale and bias/shift.
template <bool MODULATED> __device__ __forceinline__ float affine(float norm, float gain, float offset) {
  return MODULATED ? fmaf(norm, 1.f + gain, offset) : fmaf(norm, gain, offset);
}

// y[0..VEC) of a chunk from its values. gain, offset: null means 1 and 0 (never null where MODULATED).
template <class T, bool MODULATED>
__device__ __forceinline__ void store_chunk(T* y, float (&v)[dev::VEC<T>], float mean, float rstd, const T* gain, const T* offset) {
  float g[dev::VEC<T>], o[dev::VEC<T>];
#pragma unroll
  for (int e = 0; e < dev::VEC<T>; ++e) {
    g[e] = 1.f;
    o[e] = 0.f;
  }
  if (MODULATED || gain) dev::load_vec(gain, g);
  if (MODULATED || offset) dev::load_vec(offset, o);
#pragma unroll
  for (int e = 0; e < dev::VEC<T>; ++e) v[e] = affine<MODULATED>((v[e] - mean) * rstd, g[e], o[e]);
  dev::store_vec(y, v);
}

// One row, in registers: lane l holds chunks l, l + 32, ...
template <class T, bool MODULATED>
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
      store_chunk<T, MODULATED>(y + c, v[i], mean, rstd, MODULATED || gain ? gain + c : nullptr,
                                MODULATED || offset ? offset + c : nullptr);
}

// One row of any length and alignment, by element.
template <class T, bool MODULATED>
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
    const float g = MODULATED || gain ? dev::to_f32(gain[c]) : 1.f, o = MODULATED || offset ? dev::to_f32(offset[c]) : 0.f;
    y[c] = dev::from_f32<T>(affine<MODULATED>((dev::to_f32(x[c]) - mean) * rstd, g, o));
  }
}

template <class T, bool MODULATED>
__device__ __forceinline__ void layernorm(const T* x, const T* gain, const T* offset, T* y, const LayerNormSpec& s) {
  dev::grid_begin();
  const int row = blockIdx.x * 4 + threadIdx.x / 32;
  if (row >= s.rows) return;
  const bool whole =
      s.dim % dev::VEC<T> == 0 && (!MODULATED || s.mod_stride % dev::VEC<T> == 0) && dev::aligned16(x, gain, offset, y);
  x += static_cast<size_t>(row) * s.dim;
  y += static_cast<size_t>(row) * s.dim;
  if (MODULATED) {
    gain += static_cast<size_t>(row / s.rows_per_image) * s.mod_stride;
    offset += static_cast<size_t>(row / s.rows_per_image) * s.mod_stride;
  }
  if (whole && s.dim <= MAX_IN_REGISTERS)
    norm_in_registers<T, MODULATED>(x, gain, offset, y, s.dim, s.eps);
  else
    norm_by_element<T, MODULATED>(x, gain, offset, y, s.dim, s.eps);
}

}  // namespace

#define LAYERNORM_EXPORTS(T, dtype)                                                                                      \
  KERNEL(__launch_bounds__(128) layernorm_fwd_##dtype)(const T* x, const T* weight, const T* bias, T* y, LayerNormSpec s) { \
    layernorm<T, false>(x, weight, bias, y, s);                                                                          \
  }                                                                                                                      \
  KERNEL_EXPORT(layernorm_fwd_##dtype)                                                                                   \
  KERNEL(__launch_bounds__(128) layernorm_modulated_fwd_##dtype)                                                         \
  (const T* x, const T* shift, const T* scale, T* y, LayerNormSpec s) { layernorm<T, true>(x, scale, shift, y, s); }     \
  KERNEL_EXPORT(layernorm_modulated_fwd_##dtype)

LAYERNORM_EXPORTS(float, f32)
LAYERNORM_EXPORTS(__half, f16)
LAYERNORM_EXPORTS(__nv_bfloat16, bf16)
