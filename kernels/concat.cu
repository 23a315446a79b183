// Columns of one matrix into columns of another: concatenation and splitting of channels. T in {f32, f16, bf16}. Writes with "=".
//
//   copy_columns_fwd_<dtype>:  to[r, c] = from[r, c]       from: [rows, width] of rows from_stride apart, to: the same, to_stride
//
// PRECOND: block 256, grid ceil(n/256), n being the elements, or the 16 bytes of elements where widths, strides and pointers are
// whole blocks of these; n < 2^31.
#include "prelude.cuh"

struct CopyColumnsSpec {
  int rows, width;
  int from_stride, to_stride;
};
SPEC_LAYOUT(CopyColumnsSpec, rows, width, from_stride, to_stride)

namespace {

template <class T> __device__ __forceinline__ void copy_columns(const T* __restrict__ from, T* __restrict__ to, const CopyColumnsSpec& s) {
  dev::grid_begin();
  constexpr int V = dev::VEC<T>;
  const bool whole = (s.width | s.from_stride | s.to_stride) % V == 0 && dev::aligned16(from, to);
  const unsigned i = blockIdx.x * 256 + threadIdx.x, width = whole ? s.width / V : s.width, row = i / width, col = i % width;
  if (row >= static_cast<unsigned>(s.rows)) return;
  from += static_cast<size_t>(row) * s.from_stride;
  to += static_cast<size_t>(row) * s.to_stride;
  if (whole)
    reinterpret_cast<uint4*>(to)[col] = reinterpret_cast<const uint4*>(from)[col];
  else
    to[col] = from[col];
}

}  // namespace

#define CONCAT_EXPORTS(T, dtype)                                                                                                 \
  KERNEL(__launch_bounds__(256) copy_columns_fwd_##dtype)(const T* from, T* to, CopyColumnsSpec s) { copy_columns(from, to, s); } \
  KERNEL_EXPORT(copy_columns_fwd_##dtype)

CONCAT_EXPORTS(float, f32)
CONCAT_EXPORTS(__half, f16)
CONCAT_EXPORTS(__nv_bfloat16, bf16)
