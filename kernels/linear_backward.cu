// Backward of y = x w^T + bias (the bias's gradient: sums.cu). T in {f32, f16, bf16}, sums in f32.
//
//   linear_dx_bwd_<dtype>  "="   dx[m, k] = sum_n dy[m, n] w[n, k]      rows m, cols k, depth n      dx in T
//   linear_dw_bwd_<dtype>  "+="  dw[n, k] += sum_m dy[m, n] x[m, k]     rows n, cols k, depth m      dw in f32
//
// A block computes 64 x 64 of the result. f16, bf16: tensor cores (mma.m16n8k16), four warps of 32 x 32; f32: FMA, 8 x 4
// sums per thread. One block does all of the depth in order, so the bits depend on nothing but the operands.
//
// PRECOND: grid (ceil(cols/64), ceil(rows/64)), grid.y <= 65535, block 128. Any sizes >= 1 and any pointer alignment: operands
//          whose rows are whole 16-byte blocks are copied as such, others by element.
#include "square.cuh"

struct LinearBackwardSpec {
  int rows, cols, depth;
};
SPEC_LAYOUT(LinearBackwardSpec, rows, cols, depth)

namespace {

using dev::DEPTH;
using dev::TILE;

// store(row, col, sum) for each sum of a b in this block's tile. a: [rows, depth], or with TRANSPOSED [depth, rows];
// b: [depth, cols].
template <bool TRANSPOSED, class T, class F>
__device__ __forceinline__ void product(const T* __restrict__ a, const T* __restrict__ b, const LinearBackwardSpec& s, F&& store) {
  dev::grid_begin();
  __shared__ __align__(16) dev::SquareTiles<T, TRANSPOSED> tiles;
  constexpr int PAD = dev::SquareSums<T>::PAD;
  const int row0 = blockIdx.y * TILE, col0 = blockIdx.x * TILE;
  const int a_line = TRANSPOSED ? s.rows : s.depth;
  const bool whole_a = a_line % dev::VEC<T> == 0 && dev::aligned16(a);
  const bool whole_b = s.cols % dev::VEC<T> == 0 && dev::aligned16(b);
  dev::SquareSums<T> sums;
  dev::square_product<TRANSPOSED>(sums, tiles, (s.depth + DEPTH - 1) / DEPTH, [&](T* as, T* bs, int t) {
    if (TRANSPOSED)
      dev::load_lines<DEPTH, TILE, PAD>(as, a, t * DEPTH, s.depth, row0, s.rows, s.rows, whole_a);
    else
      dev::load_lines<TILE, DEPTH, PAD>(as, a, row0, s.rows, t * DEPTH, s.depth, s.depth, whole_a);
    dev::load_lines<DEPTH, TILE, PAD>(bs, b, t * DEPTH, s.depth, col0, s.cols, s.cols, whole_b);
  });
  sums.each([&](int r, int c, float sum) {
    if (row0 + r < s.rows && col0 + c < s.cols) store(static_cast<size_t>(row0 + r) * s.cols + col0 + c, sum);
  });
}

}  // namespace

#define LINEAR_BACKWARD_EXPORTS(T, dtype)                                                                    \
  KERNEL(__launch_bounds__(128) linear_dx_bwd_##dtype)(const T* dy, const T* w, T* dx, LinearBackwardSpec s) { \
    product<false>(dy, w, s, [&](size_t at, float sum) { dx[at] = dev::from_f32<T>(sum); });                 \
  }                                                                                                          \
  KERNEL_EXPORT(linear_dx_bwd_##dtype)                                                                       \
  KERNEL(__launch_bounds__(128) linear_dw_bwd_##dtype)(const T* dy, const T* x, float* dw, LinearBackwardSpec s) { \
    product<true>(dy, x, s, [&](size_t at, float sum) { dw[at] += sum; });                                   \
  }                                                                                                          \
  KERNEL_EXPORT(linear_dw_bwd_##dtype)

LINEAR_BACKWARD_EXPORTS(float, f32)
LINEAR_BACKWARD_EXPORTS(__half, f16)
LINEAR_BACKWARD_EXPORTS(__nv_bfloat16, bf16)
