// Images with channels first [.., channels, pixels] to channels last [.., pixels, channels] and back. All write with "=".
//
//   channels_last_fwd_<dtype>   y[b, p, c] = x[b % x_batch, c, p]         x: [x_batch, channels, pixels] f32, y in T
//   channels_first_fwd_<dtype>  v[b, c, p] = y[b, p, c]                   both in T
//   channels_last_bwd_<dtype>   dx[b, c, p] = dy[b, p, c]                 dx in f32, dy in T
//   channels_first_bwd_<dtype>  dy[b, p, c] = dv[b, c, p]                 both in T
//
// x_batch < batch repeats the images, as for the two halves of classifier-free guidance.
//
// PRECOND: block 256, grid ceil(batch channels pixels / 256); fewer than 2^31 elements; one element per thread.
#include "prelude.cuh"

struct LayoutSpec {
  int batch, x_batch;
  int channels, pixels;
};
SPEC_LAYOUT(LayoutSpec, batch, x_batch, channels, pixels)

namespace {

// Neighbouring threads write neighbouring channels.
template <class From, class To> __device__ __forceinline__ void to_last(const From* __restrict__ x, To* __restrict__ y, const LayoutSpec& s) {
  dev::grid_begin();
  const unsigned e = blockIdx.x * 256 + threadIdx.x, channels = s.channels, pixels = s.pixels;
  if (e >= s.batch * channels * pixels) return;
  const unsigned c = e % channels, p = e / channels % pixels, b = e / channels / pixels % s.x_batch;
  y[e] = dev::from_f32<To>(dev::to_f32(x[(static_cast<size_t>(b) * channels + c) * pixels + p]));
}

// Neighbouring threads write neighbouring pixels.
template <class From, class To> __device__ __forceinline__ void to_first(const From* __restrict__ y, To* __restrict__ v, const LayoutSpec& s) {
  dev::grid_begin();
  const unsigned e = blockIdx.x * 256 + threadIdx.x, channels = s.channels, pixels = s.pixels;
  if (e >= s.batch * channels * pixels) return;
  const unsigned p = e % pixels, c = e / pixels % channels, b = e / pixels / channels;
  v[e] = dev::from_f32<To>(dev::to_f32(y[(static_cast<size_t>(b) * pixels + p) * channels + c]));
}

}  // namespace

#define LAYOUT_EXPORTS(T, dtype)                                                                                           \
  KERNEL(__launch_bounds__(256) channels_last_fwd_##dtype)(const float* x, T* y, LayoutSpec s) { to_last(x, y, s); }       \
  KERNEL_EXPORT(channels_last_fwd_##dtype)                                                                                 \
  KERNEL(__launch_bounds__(256) channels_first_fwd_##dtype)(const T* y, T* v, LayoutSpec s) { to_first(y, v, s); }         \
  KERNEL_EXPORT(channels_first_fwd_##dtype)                                                                                \
  KERNEL(__launch_bounds__(256) channels_last_bwd_##dtype)(const T* dy, float* dx, LayoutSpec s) { to_first(dy, dx, s); }  \
  KERNEL_EXPORT(channels_last_bwd_##dtype)                                                                                 \
  KERNEL(__launch_bounds__(256) channels_first_bwd_##dtype)(const T* dv, T* dy, LayoutSpec s) { to_last(dv, dy, s); }      \
  KERNEL_EXPORT(channels_first_bwd_##dtype)

LAYOUT_EXPORTS(float, f32)
LAYOUT_EXPORTS(__half, f16)
LAYOUT_EXPORTS(__nv_bfloat16, bf16)
