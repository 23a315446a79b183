// Inverted dropout (Srivastava et al. 2014), forward and backward in one: the mask comes from its counter, not from memory.
//
//   dropout_<dtype>   "="   y[i] = keep(i) ? scale x[i] : 0                           x, y: [elements]; step: [1]
//
// keep(i): word i % 4 of Philox4x32-10 with key = seed and counter = (*step, layer, i / 4, stream) is not below `drop`, the
// rate times 2^32. T in {f32, f16, bf16}; the product is in f32 and rounded once. Given dy for x, y is dx.
//
// PRECOND: block 256, any 1-D grid (grid-stride); one thread per four elements.
#include "philox.cuh"

struct DropoutSpec {
  unsigned seed_lo, seed_hi;
  unsigned layer, stream;
  unsigned drop;
  float scale;
  int elements;
};
SPEC_LAYOUT(DropoutSpec, seed_lo, seed_hi, layer, stream, drop, scale, elements)

namespace {

template <class T>
__device__ __forceinline__ void dropout(const T* __restrict__ x, const unsigned* __restrict__ step, T* __restrict__ y,
                                        const DropoutSpec& s) {
  dev::grid_begin();
  const size_t n = s.elements, fours = (n + 3) / 4;
  const unsigned now = *step;
  for (size_t i = dev::first_index(); i < fours; i += dev::index_stride()) {
    const uint4 w = dev::philox4x32_10(make_uint4(now, s.layer, static_cast<uint32_t>(i), s.stream), make_uint2(s.seed_lo, s.seed_hi));
    const uint32_t words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (i * 4 + e < n) y[i * 4 + e] = dev::from_f32<T>(words[e] < s.drop ? 0.f : __fmul_rn(s.scale, dev::to_f32(x[i * 4 + e])));
  }
}

}  // namespace

#define DROPOUT_EXPORT(T, dtype)                                                                                    \
  KERNEL(__launch_bounds__(256) dropout_##dtype)(const T* x, const unsigned* step, T* y, DropoutSpec s) {           \
    dropout(x, step, y, s);                                                                                         \
  }                                                                                                                 \
  KERNEL_EXPORT(dropout_##dtype)

DROPOUT_EXPORT(float, f32)
DROPOUT_EXPORT(__half, f16)
DROPOUT_EXPORT(__nv_bfloat16, bf16)
