// Sums of columns in one order, for gradients of what the rows of an image share.
#pragma once
#include "prelude.cuh"

namespace dev {

constexpr int COLUMN_WARPS = 8;

// sum[0..N) = the sums over the rows of this block's 32 columns of what add(row, col, sum) adds for each row: warp w takes
// rows w, w + 8, .., and the warps' sums are added in their order. True in the thread that holds the sums of a column.
// PRECOND: block 256, grid.x = ceil(dim / 32); once per kernel.
template <int N, class F> __device__ __forceinline__ bool column_sums(float (&sum)[N], int rows, int dim, F&& add) {
  __shared__ float partial[N][COLUMN_WARPS][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, col = blockIdx.x * 32 + lane;
#pragma unroll
  for (int n = 0; n < N; ++n) sum[n] = 0.f;
  if (col < dim)
    for (int row = warp; row < rows; row += COLUMN_WARPS) add(row, col, sum);
#pragma unroll
  for (int n = 0; n < N; ++n) partial[n][warp][lane] = sum[n];
  __syncthreads();
  if (warp != 0 || col >= dim) return false;
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int w = 1; w < COLUMN_WARPS; ++w) sum[n] += partial[n][w][lane];
  return true;
}

}  // namespace dev
