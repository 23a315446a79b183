// Excitation of squeeze-and-excitation networks (Hu et al. 2018): channels times their shares. T in {f32, f16, bf16}. Writes with "=".
//
//   excite_fwd_<dtype>  x = x / (1 + exp(-gate[b]))     x: [images, .., channels], image_len numbers each; gate: [images, channels]
//
// PRECOND: block 256, grid ceil(elements/256), one element per thread, fewer than 2^31.
#include "prelude.cuh"

struct ExciteSpec {
  int images, image_len, channels;
};
SPEC_LAYOUT(ExciteSpec, images, image_len, channels)

namespace {

template <class T> __device__ __forceinline__ void excite(T* __restrict__ x, const T* __restrict__ gate, const ExciteSpec& s) {
  dev::grid_begin();
  const unsigned i = blockIdx.x * 256 + threadIdx.x, b = i / s.image_len;
  if (b >= static_cast<unsigned>(s.images)) return;
  const float g = dev::to_f32(gate[static_cast<size_t>(b) * s.channels + i % s.channels]);
  x[i] = dev::from_f32<T>(dev::to_f32(x[i]) * (1.f / (1.f + expf(-g))));
}

}  // namespace

#define EXCITE_EXPORTS(T, dtype)                                                                             \
  KERNEL(__launch_bounds__(256) excite_fwd_##dtype)(T* x, const T* gate, ExciteSpec s) { excite(x, gate, s); } \
  KERNEL_EXPORT(excite_fwd_##dtype)

EXCITE_EXPORTS(float, f32)
EXCITE_EXPORTS(__half, f16)
EXCITE_EXPORTS(__nv_bfloat16, bf16)
