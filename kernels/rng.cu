// Standard normal noise, the same bits on every device and in src/rng.rs, which mirrors normal.cuh operation by operation.
//
//   normal_fwd_f32: out[j, e] = draw e of image first + j; "="                    out: [images, per_image] f32
//
// Bits: Philox4x32-10 (Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"),
//   key = seed (lo, hi), counter = (index lo, index hi, draw / 4, stream).
// Normals: normal.cuh.
//
// PRECOND: block 256, any 1-D grid (grid-stride); one thread per four draws: images ceil(per_image / 4) of them;
//          per_image <= 2^31 - 1.
#include "normal.cuh"

struct NormalSpec {
  unsigned seed_lo, seed_hi;
  unsigned first_lo, first_hi;  // 64-bit index of the first image
  int per_image, images;
  unsigned stream;
};
SPEC_LAYOUT(NormalSpec, seed_lo, seed_hi, first_lo, first_hi, per_image, images, stream)

KERNEL(__launch_bounds__(256) normal_fwd_f32)(float* __restrict__ out, NormalSpec s) {
  dev::grid_begin();
  const uint64_t first = static_cast<uint64_t>(s.first_hi) << 32 | s.first_lo;
  const size_t per_image = s.per_image, fours = (per_image + 3) / 4, n = fours * s.images;
  const bool whole = per_image % 4 == 0 && dev::aligned16(out);
  for (size_t i = dev::first_index(); i < n; i += dev::index_stride()) {
    const uint64_t image = i / fours, index = first + image;
    const uint32_t four = static_cast<uint32_t>(i % fours);
    float v[4];
    dev::four_normals(make_uint2(s.seed_lo, s.seed_hi), index, four, s.stream, v);
    float* to = out + image * per_image + static_cast<size_t>(four) * 4;
    if (whole) {
      dev::store_vec(to, v);
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (static_cast<size_t>(four) * 4 + e < per_image) to[e] = v[e];
    }
  }
}
KERNEL_EXPORT(normal_fwd_f32)
