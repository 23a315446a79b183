// Between the rows of an adaLN layer and the vectors that it makes, and a vector per image on every token. All write with
// "=". T in {f32, f16, bf16}.
//
//   part_take_fwd_<dtype>    part[r, j] = rows[r, offset + j] + one        rows: [rows, width]; part: [rows, dim]
//   part_put_bwd_<dtype>     rows[r, offset + j] = part[r, j]
//   tokens_add_fwd_<dtype>   y[b, t, j] = x[b, t, j] + v[b, j]             x, y: [rows, width, dim]; v: [rows, dim]
//
// PRECOND: block 256, any 1-D grid (grid-stride loops).
#include "prelude.cuh"

struct PartsSpec {
  int rows, width, offset, dim;
  float one;
};
SPEC_LAYOUT(PartsSpec, rows, width, offset, dim, one)

namespace {

template <class T> __device__ __forceinline__ void take(const T* __restrict__ rows, T* __restrict__ part, const PartsSpec& s) {
  dev::grid_begin();
  const size_t n = static_cast<size_t>(s.rows) * s.dim;
  for (size_t i = dev::first_index(); i < n; i += dev::index_stride())
    part[i] = dev::from_f32<T>(dev::to_f32(rows[i / s.dim * s.width + s.offset + i % s.dim]) + s.one);
}

template <class T> __device__ __forceinline__ void put(const T* __restrict__ part, T* __restrict__ rows, const PartsSpec& s) {
  dev::grid_begin();
  const size_t n = static_cast<size_t>(s.rows) * s.dim;
  for (size_t i = dev::first_index(); i < n; i += dev::index_stride())
    rows[i / s.dim * s.width + s.offset + i % s.dim] = part[i];
}

template <class T>
__device__ __forceinline__ void add(const T* __restrict__ x, const T* __restrict__ v, T* __restrict__ y, const PartsSpec& s) {
  dev::grid_begin();
  const size_t image = static_cast<size_t>(s.width) * s.dim, n = s.rows * image;
  for (size_t i = dev::first_index(); i < n; i += dev::index_stride())
    y[i] = dev::from_f32<T>(dev::to_f32(x[i]) + dev::to_f32(v[i / image * s.dim + i % s.dim]));
}

}  // namespace

#define PARTS_EXPORTS(T, dtype)                                                                                              \
  KERNEL(__launch_bounds__(256) part_take_fwd_##dtype)(const T* rows, T* part, PartsSpec s) { take(rows, part, s); }         \
  KERNEL_EXPORT(part_take_fwd_##dtype)                                                                                       \
  KERNEL(__launch_bounds__(256) part_put_bwd_##dtype)(const T* part, T* rows, PartsSpec s) { put(part, rows, s); }           \
  KERNEL_EXPORT(part_put_bwd_##dtype)                                                                                        \
  KERNEL(__launch_bounds__(256) tokens_add_fwd_##dtype)(const T* x, const T* v, T* y, PartsSpec s) { add(x, v, y, s); }      \
  KERNEL_EXPORT(tokens_add_fwd_##dtype)

PARTS_EXPORTS(float, f32)
PARTS_EXPORTS(__half, f16)
PARTS_EXPORTS(__nv_bfloat16, bf16)
