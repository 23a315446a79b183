// Reductions over a block of 256 threads.
#pragma once
#include "reduce.cuh"

namespace dev {

// Sum over the block in one order; thread 0 holds it. PRECOND: all 256 threads come, and between two calls in a kernel lies a
// barrier.
__device__ __forceinline__ float block_sum(float v) {
  __shared__ float warps[8];
  v = warp_sum(v);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
  __syncthreads();
  v = 0.f;
  if (threadIdx.x == 0)
    for (int w = 0; w < 8; ++w) v += warps[w];
  return v;
}

}  // namespace dev
