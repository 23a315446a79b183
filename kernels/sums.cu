// Sums over tokens and images: gradients of what tokens and images share. T in {f32, f16, bf16}, sums in f32, one order.
//
//   sum_tokens_bwd_<dtype>   "="    out[b, n] = sum_t dy[b, t, n]                 dy: [images, rows, dim]; out: [images, dim]
//   sum_columns_bwd_<dtype>  "="    out[b, n] = sum_t dy[b, t, n], out in f32     (the first step of a bias's gradient)
//   sum_images_bwd_<dtype>   "+="   out[n] += sum_b dy[b, n], out in f32          dy: [images, dim]; rows is not used
//
// PRECOND sum_tokens, sum_columns: grid (ceil(dim/32), images), block 256.
// PRECOND sum_images: block 256, any 1-D grid (grid-stride loop); one thread per element of out.
#include "columns.cuh"

struct SumsSpec {
  int images, rows, dim;
};
SPEC_LAYOUT(SumsSpec, images, rows, dim)

namespace {

template <class T, class Out>
__device__ __forceinline__ void sum_tokens(const T* __restrict__ dy, Out* __restrict__ out, const SumsSpec& s) {
  dev::grid_begin();
  dy += static_cast<size_t>(blockIdx.y) * s.rows * s.dim;
  float sum[1];
  const bool mine = dev::column_sums(sum, s.rows, s.dim, [&](int row, int col, float(&v)[1]) {
    v[0] += dev::to_f32(dy[static_cast<size_t>(row) * s.dim + col]);
  });
  if (mine) out[static_cast<size_t>(blockIdx.y) * s.dim + blockIdx.x * 32 + threadIdx.x] = dev::from_f32<Out>(sum[0]);
}

template <class T> __device__ __forceinline__ void sum_images(const T* __restrict__ dy, float* __restrict__ out, const SumsSpec& s) {
  dev::grid_begin();
  const size_t n = s.dim;
  for (size_t i = dev::first_index(); i < n; i += dev::index_stride()) {
    float sum = 0.f;
    for (int b = 0; b < s.images; ++b) sum += dev::to_f32(dy[b * n + i]);
    out[i] += sum;
  }
}

}  // namespace

#define SUMS_EXPORTS(T, dtype)                                                                                            \
  KERNEL(__launch_bounds__(256) sum_tokens_bwd_##dtype)(const T* dy, T* out, SumsSpec s) { sum_tokens(dy, out, s); }           \
  KERNEL_EXPORT(sum_tokens_bwd_##dtype)                                                                                        \
  KERNEL(__launch_bounds__(256) sum_columns_bwd_##dtype)(const T* dy, float* out, SumsSpec s) { sum_tokens(dy, out, s); }      \
  KERNEL_EXPORT(sum_columns_bwd_##dtype)                                                                                       \
  KERNEL(__launch_bounds__(256) sum_images_bwd_##dtype)(const T* dy, float* out, SumsSpec s) { sum_images(dy, out, s); }       \
  KERNEL_EXPORT(sum_images_bwd_##dtype)

SUMS_EXPORTS(float, f32)
SUMS_EXPORTS(__half, f16)
SUMS_EXPORTS(__nv_bfloat16, bf16)
