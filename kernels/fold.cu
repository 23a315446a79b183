// A 1x1 convolution folded into the patch embedding behind it, and the gradients of both. T in {f32, f16, bf16}; gradients of
// parameters in f32, added to ("+=").
//
//   fold_fwd_<dtype>       "="    weight[n, c, i] = sum_e proj[n, e, i] conv[e, c]
//                          "="    bias[n] = proj_bias[n] + sum_{e, i} proj[n, e, i] conv_bias[e]
//   fold_proj_bwd_<dtype>  "+="   dproj[n, e, i] += sum_c dweight[n, c, i] conv[e, c] + dbias[n] conv_bias[e]
//                          "+="   dproj_bias[n] += dbias[n]
//   fold_conv_bwd_<dtype>  "+="   dconv[e, c] += sum_{n, i} dweight[n, c, i] proj[n, e, i]
//                          "+="   dconv_bias[e] += sum_{n, i} dbias[n] proj[n, e, i]
//   proj: [dim, between, pixels]; conv: [between, channels]; weight: [dim, channels, pixels]
//
// PRECOND fold_fwd, fold_proj_bwd: block 256, any 1-D grid (grid-stride loops).
// PRECOND fold_conv_bwd: grid (between, channels + 1), block 256; the last column is the bias.
#include "block.cuh"

struct FoldSpec {
  int dim, between, channels, pixels;
};
SPEC_LAYOUT(FoldSpec, dim, between, channels, pixels)

namespace {

template <class T>
__device__ __forceinline__ void fold(const T* __restrict__ proj, const T* __restrict__ proj_bias, const T* __restrict__ conv,
                                     const T* __restrict__ conv_bias, T* __restrict__ weight, T* __restrict__ bias,
                                     const FoldSpec& s) {
  dev::grid_begin();
  const size_t row = static_cast<size_t>(s.channels) * s.pixels, n = s.dim * row;
  for (size_t at = dev::first_index(); at < n; at += dev::index_stride()) {
    const size_t r = at / row, c = at % row / s.pixels, i = at % s.pixels;
    float sum = 0.f;
    for (int e = 0; e < s.between; ++e)
      sum = fmaf(dev::to_f32(proj[(r * s.between + e) * s.pixels + i]), dev::to_f32(conv[e * s.channels + c]), sum);
    weight[at] = dev::from_f32<T>(sum);
  }
  for (size_t r = dev::first_index(); r < static_cast<size_t>(s.dim); r += dev::index_stride()) {
    float sum = dev::to_f32(proj_bias[r]);
    for (int e = 0; e < s.between; ++e)
      for (int i = 0; i < s.pixels; ++i)
        sum = fmaf(dev::to_f32(proj[(r * s.between + e) * s.pixels + i]), dev::to_f32(conv_bias[e]), sum);
    bias[r] = dev::from_f32<T>(sum);
  }
}

template <class T>
__device__ __forceinline__ void proj_backward(const float* __restrict__ dweight, const float* __restrict__ dbias,
                                              const T* __restrict__ conv, const T* __restrict__ conv_bias,
                                              float* __restrict__ dproj, float* __restrict__ dproj_bias, const FoldSpec& s) {
  dev::grid_begin();
  const size_t row = static_cast<size_t>(s.between) * s.pixels, n = s.dim * row;
  for (size_t at = dev::first_index(); at < n; at += dev::index_stride()) {
    const size_t r = at / row, e = at % row / s.pixels, i = at % s.pixels;
    float sum = dbias[r] * dev::to_f32(conv_bias[e]);
    for (int c = 0; c < s.channels; ++c)
      sum = fmaf(dweight[(r * s.channels + c) * s.pixels + i], dev::to_f32(conv[e * s.channels + c]), sum);
    dproj[at] += sum;
  }
  for (size_t r = dev::first_index(); r < static_cast<size_t>(s.dim); r += dev::index_stride()) dproj_bias[r] += dbias[r];
}

template <class T>
__device__ __forceinline__ void conv_backward(const float* __restrict__ dweight, const float* __restrict__ dbias,
                                              const T* __restrict__ proj, float* __restrict__ dconv,
                                              float* __restrict__ dconv_bias, const FoldSpec& s) {
  dev::grid_begin();
  const int e = blockIdx.x, c = blockIdx.y;
  const bool of_bias = c == s.channels;
  const size_t n = static_cast<size_t>(s.dim) * s.pixels;
  float sum = 0.f;
  for (size_t at = threadIdx.x; at < n; at += 256) {
    const size_t r = at / s.pixels, i = at % s.pixels;
    const float d = of_bias ? dbias[r] : dweight[(r * s.channels + c) * s.pixels + i];
    sum = fmaf(d, dev::to_f32(proj[(r * s.between + e) * s.pixels + i]), sum);
  }
  sum = dev::block_sum(sum);
  if (threadIdx.x != 0) return;
  if (of_bias)
    dconv_bias[e] += sum;
  else
    dconv[e * s.channels + c] += sum;
}

}  // namespace

#define FOLD_EXPORTS(T, dtype)                                                                                              \
  KERNEL(__launch_bounds__(256) fold_fwd_##dtype)                                                                           \
  (const T* proj, const T* proj_bias, const T* conv, const T* conv_bias, T* weight, T* bias, FoldSpec s) {                  \
    fold(proj, proj_bias, conv, conv_bias, weight, bias, s);                                                                \
  }                                                                                                                         \
  KERNEL_EXPORT(fold_fwd_##dtype)                                                                                           \
  KERNEL(__launch_bounds__(256) fold_proj_bwd_##dtype)                                                                      \
  (const float* dweight, const float* dbias, const T* conv, const T* conv_bias, float* dproj, float* dproj_bias,            \
   FoldSpec s) {                                                                                                            \
    proj_backward(dweight, dbias, conv, conv_bias, dproj, dproj_bias, s);                                                   \
  }                                                                                                                         \
  KERNEL_EXPORT(fold_proj_bwd_##dtype)                                                                                      \
  KERNEL(__launch_bounds__(256) fold_conv_bwd_##dtype)                                                                      \
  (const float* dweight, const float* dbias, const T* proj, float* dconv, float* dconv_bias, FoldSpec s) {                  \
    conv_backward(dweight, dbias, proj, dconv, dconv_bias, s);                                                              \
  }                                                                                                                         \
  KERNEL_EXPORT(fold_conv_bwd_##dtype)

FOLD_EXPORTS(float, f32)
FOLD_EXPORTS(__half, f16)
FOLD_EXPORTS(__nv_bfloat16, bf16)
