// Sums and moments of columns in one order, for what the rows of an image share and its gradients.
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

// Rows [first, first + count) of a chunk; all chunks but the last have `size` rows.
struct Rows {
  int first, count;
};
__device__ __forceinline__ Rows chunk_rows(int chunk, int size, int rows) {
  const int first = chunk * size;
  return {first, min(size, rows - first)};
}

// The mean of each of this block's 32 columns over the rows of x [rows, dim], and the sum of the squared differences from
// it (two passes). True in the thread that holds those of a column. PRECOND: as of column_sums; rows >= 1.
template <class T> __device__ __forceinline__ bool column_moments(float2& moments, const T* __restrict__ x, int rows, int dim) {
  __shared__ float means[32];
  float sum[1];
  const bool first = column_sums(sum, rows, dim, [&](int row, int col, float(&v)[1]) {
    v[0] += to_f32(x[static_cast<size_t>(row) * dim + col]);
  });
  if (first) means[threadIdx.x] = sum[0] / rows;
  __syncthreads();
  const bool mine = column_sums(sum, rows, dim, [&](int row, int col, float(&v)[1]) {
    const float d = to_f32(x[static_cast<size_t>(row) * dim + col]) - means[col % 32];
    v[0] = fmaf(d, d, v[0]);
  });
  if (mine) moments = make_float2(means[threadIdx.x], sum[0]);
  return mine;
}

}  // namespace dev
