// Reductions inside a warp. The order of the sum is a butterfly, so every lane holds the same bits.
#pragma once
#include "prelude.cuh"

namespace dev {

// Sum over aligned groups of WIDTH lanes (a power of two). All 32 lanes of the warp must come.
template <int WIDTH = 32> __device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int o = WIDTH / 2; o > 0; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
  return v;
}

// Maximum over aligned groups of WIDTH lanes; NaN is passed over as fmaxf does.
template <int WIDTH = 32> __device__ __forceinline__ float warp_max(float v) {
#pragma unroll
  for (int o = WIDTH / 2; o > 0; o >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, o));
  return v;
}

}  // namespace dev
