// The mean squared error and its gradient. All write with "=". T in {f32, f16, bf16}; target and losses in f32.
//
//   mse_fwd_<dtype>   per_image[b] = mean over image b of (prediction - target)^2     prediction, target: [images, per_image]
//   mse_mean_fwd      loss[0] = mean over b of per_image[b]
//   mse_bwd_<dtype>   d[i] = scale[0] 2 (prediction[i] - target[i]) / (images per_image)
//
// PRECOND mse_fwd: grid images, block 256; mse_mean_fwd: one block of 256; mse_bwd: block 256, any 1-D grid.
#include "block.cuh"

struct MseSpec {
  int images, per_image;
};
SPEC_LAYOUT(MseSpec, images, per_image)

namespace {

template <class T>
__device__ __forceinline__ void mse(const T* __restrict__ p, const float* __restrict__ t, float* __restrict__ per_image,
                                    const MseSpec& s) {
  dev::grid_begin();
  p += static_cast<size_t>(blockIdx.x) * s.per_image;
  t += static_cast<size_t>(blockIdx.x) * s.per_image;
  float sum = 0.f;
  for (int i = threadIdx.x; i < s.per_image; i += 256) {
    const float d = dev::to_f32(p[i]) - t[i];
    sum = fmaf(d, d, sum);
  }
  sum = dev::block_sum(sum);
  if (threadIdx.x == 0) per_image[blockIdx.x] = sum / s.per_image;
}

template <class T>
__device__ __forceinline__ void mse_backward(const T* __restrict__ p, const float* __restrict__ t, const float* __restrict__ scale,
                                             T* __restrict__ d, const MseSpec& s) {
  dev::grid_begin();
  const size_t n = static_cast<size_t>(s.images) * s.per_image;
  const float factor = scale[0] * 2.f / static_cast<float>(n);
  for (size_t i = dev::first_index(); i < n; i += dev::index_stride())
    d[i] = dev::from_f32<T>(factor * (dev::to_f32(p[i]) - t[i]));
}

}  // namespace

KERNEL(__launch_bounds__(256) mse_mean_fwd)(const float* per_image, float* loss, MseSpec s) {
  dev::grid_begin();
  float sum = 0.f;
  for (int i = threadIdx.x; i < s.images; i += 256) sum += per_image[i];
  sum = dev::block_sum(sum);
  if (threadIdx.x == 0) loss[0] = sum / s.images;
}
KERNEL_EXPORT(mse_mean_fwd)

#define LOSS_EXPORTS(T, dtype)                                                                                              \
  KERNEL(__launch_bounds__(256) mse_fwd_##dtype)(const T* p, const float* t, float* per_image, MseSpec s) {                 \
    mse(p, t, per_image, s);                                                                                                \
  }                                                                                                                         \
  KERNEL_EXPORT(mse_fwd_##dtype)                                                                                            \
  KERNEL(__launch_bounds__(256) mse_bwd_##dtype)(const T* p, const float* t, const float* scale, T* d, MseSpec s) {         \
    mse_backward(p, t, scale, d, s);                                                                                        \
  }                                                                                                                         \
  KERNEL_EXPORT(mse_bwd_##dtype)

LOSS_EXPORTS(float, f32)
LOSS_EXPORTS(__half, f16)
LOSS_EXPORTS(__nv_bfloat16, bf16)
