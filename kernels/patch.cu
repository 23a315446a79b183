// Images to patch rows and back. Both write with "=". p = patch, T = (height/p) (width/p) tokens, row by row.
//
//   patchify_fwd_<dtype>:    y[b, t, (c, i, j)] = x[b % x_batch, c, ty p + i, tx p + j]
//                            x: [x_batch, C, H, W] f32, y: [batch, T, C p p]
//   unpatchify_fwd_<dtype>:  v[b, c, ty p + i, tx p + j] = y[b, t, (i, j, c)]
//                            y: [batch, T, p p C], v: [batch, C, H, W]
//   patchify_bwd_<dtype>:    dx[b, c, ty p + i, tx p + j] = dy[b, t, (c, i, j)]      dx in f32
//   unpatchify_bwd_<dtype>:  dy[b, t, (i, j, c)] = dv[b, c, ty p + i, tx p + j]
//
// x_batch < batch repeats the images: the two halves of classifier-free guidance see the same x. The backward kernels
// take as many images as there are.
//
// PRECOND: patch divides height and width; batch C H W < 2^31; block 256, grid ceil(batch C H W / 256); one element per thread.
#include "prelude.cuh"

struct PatchSpec {
  int batch, x_batch;
  int channels, height, width;
  int patch;
};
SPEC_LAYOUT(PatchSpec, batch, x_batch, channels, height, width, patch)

namespace {

// Neighbouring threads write neighbouring elements of y and read runs of p along an image row.
template <class T> __device__ __forceinline__ void patchify(const float* __restrict__ x, T* __restrict__ y, const PatchSpec& s) {
  dev::grid_begin();
  const unsigned e = blockIdx.x * 256 + threadIdx.x, p = s.patch, h = s.height, w = s.width, channels = s.channels;
  if (e >= s.batch * channels * h * w) return;
  const unsigned j = e % p, i = e / p % p, c = e / (p * p) % channels, token = e / (p * p * channels);
  const unsigned tx = token % (w / p), ty = token / (w / p) % (h / p), b = token / (w / p * (h / p)) % s.x_batch;
  y[e] = dev::from_f32<T>(x[((b * channels + c) * h + ty * p + i) * w + tx * p + j]);
}

// Neighbouring threads write neighbouring pixels of v.
template <class T> __device__ __forceinline__ void unpatchify(const T* __restrict__ y, T* __restrict__ v, const PatchSpec& s) {
  dev::grid_begin();
  const unsigned e = blockIdx.x * 256 + threadIdx.x, p = s.patch, h = s.height, w = s.width, channels = s.channels;
  if (e >= s.batch * channels * h * w) return;
  const unsigned col = e % w, row = e / w % h, c = e / (w * h) % channels, b = e / (w * h * channels);
  const unsigned token = (b * (h / p) + row / p) * (w / p) + col / p;
  v[e] = y[((token * p + row % p) * p + col % p) * channels + c];
}

// Neighbouring threads write neighbouring pixels of dx.
template <class T> __device__ __forceinline__ void patchify_backward(const T* __restrict__ dy, float* __restrict__ dx, const PatchSpec& s) {
  dev::grid_begin();
  const unsigned e = blockIdx.x * 256 + threadIdx.x, p = s.patch, h = s.height, w = s.width, channels = s.channels;
  if (e >= s.batch * channels * h * w) return;
  const unsigned col = e % w, row = e / w % h, c = e / (w * h) % channels, b = e / (w * h * channels);
  const unsigned token = (b * (h / p) + row / p) * (w / p) + col / p;
  dx[e] = dev::to_f32(dy[((token * channels + c) * p + row % p) * p + col % p]);
}

// Neighbouring threads write neighbouring elements of dy.
template <class T> __device__ __forceinline__ void unpatchify_backward(const T* __restrict__ dv, T* __restrict__ dy, const PatchSpec& s) {
  dev::grid_begin();
  const unsigned e = blockIdx.x * 256 + threadIdx.x, p = s.patch, h = s.height, w = s.width, channels = s.channels;
  if (e >= s.batch * channels * h * w) return;
  const unsigned c = e % channels, j = e / channels % p, i = e / (channels * p) % p, token = e / (channels * p * p);
  const unsigned tx = token % (w / p), ty = token / (w / p) % (h / p), b = token / (w / p * (h / p));
  dy[e] = dv[((b * channels + c) * h + ty * p + i) * w + tx * p + j];
}

}  // namespace

#define PATCH_EXPORTS(T, dtype)                                                                                    \
  KERNEL(__launch_bounds__(256) patchify_fwd_##dtype)(const float* x, T* y, PatchSpec s) { patchify<T>(x, y, s); } \
  KERNEL_EXPORT(patchify_fwd_##dtype)                                                                              \
  KERNEL(__launch_bounds__(256) unpatchify_fwd_##dtype)(const T* y, T* v, PatchSpec s) { unpatchify<T>(y, v, s); } \
  KERNEL_EXPORT(unpatchify_fwd_##dtype)                                                                            \
  KERNEL(__launch_bounds__(256) patchify_bwd_##dtype)(const T* dy, float* dx, PatchSpec s) {                       \
    patchify_backward<T>(dy, dx, s);                                                                               \
  }                                                                                                                \
  KERNEL_EXPORT(patchify_bwd_##dtype)                                                                              \
  KERNEL(__launch_bounds__(256) unpatchify_bwd_##dtype)(const T* dv, T* dy, PatchSpec s) {                         \
    unpatchify_backward<T>(dv, dy, s);                                                                             \
  }                                                                                                                \
  KERNEL_EXPORT(unpatchify_bwd_##dtype)

PATCH_EXPORTS(float, f32)
PATCH_EXPORTS(__half, f16)
PATCH_EXPORTS(__nv_bfloat16, bf16)
