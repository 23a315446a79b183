// Columns of one matrix into columns of another: concatenation and splitting of channels. T in {f32, f16, bf16}. Writes with "=".
//
//   copy_columns_fwd_<dtype>:  to[r, c] = from[r, c]       from: [rows, width] of rows from_stride apart, to: the same, to_stride
//
// PRECOND: block 256, any 1-D grid (grid-stride loop over elements, or over 16 bytes where widths, strides and pointers allow).
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
  const size_t width = whole ? s.width / V : s.width, n = s.rows * width;
  for (size_t i = dev::first_index(); i < n; i += dev::index_stride()) {
    const size_t row = i / width, col = i % width;
    if (whole) {
      const uint4 v = reinterpret_cast<const uint4*>(from + row * s.from_stride)[col];
      reinterpret_cast<uint4*>(to + row * s.to_stride)[col] = v;
    } else {
      to[row * s.to_stride + col] = from[row * s.from_stride + col];
    }
  }
}

}  // namespace

#define CONCAT_EXPORTS(T, dtype)                                                                                                 \
  KERNEL(__launch_bounds__(256) copy_columns_fwd_##dtype)(const T* from, T* to, CopyColumnsSpec s) { copy_columns(from, to, s); } \
  KERNEL_EXPORT(copy_columns_fwd_##dtype)

CONCAT_EXPORTS(float, f32)
CONCAT_EXPORTS(__half, f16)
CONCAT_EXPORTS(__nv_bfloat16, bf16)
