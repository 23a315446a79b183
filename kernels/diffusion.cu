// One step of a DDPM or DDIM sampler on the sampler's state; T in {f32, f16, bf16} is the model's output type, the state is f32.
// Which step it is comes from a table on the device, row *counter, so that one captured step serves every step of a schedule.
//
//   m   = guided channel ? u + guidance (c - u) : c     what the model predicts: noise, v or the image, by the row's factors;
//                                                       c, u: conditional and unconditional output (Ho & Salimans 2022)
//   x0  = x0_x x + x0_m m, into [-clip, clip]           NaN stays NaN
//   new = k_0 x0 + k_x x + k_m m
//   sigma != 0: new += sigma w z                        z: normals of (seed, image, stream + *counter), the bits of src/rng.rs
//     w = LEARNED ? exp(log_ratio (1 + r) / 2) : 1      r: second half of the conditional output's channels, in [-1, 1]
//   LAST and clamp: new into [lo, hi], NaN stays NaN;   x = new
//
//   x: [images, image_len] f32, "=";  output: [images, out_len], guided [2, images, out_len], image_len of an image's out_len
//   elements are m, the image_len behind them r;  guided channels are the first guided_len elements
//   table: [steps];  counter: device counter of steps done;  key: seed (lo, hi), index of the first image (lo, hi)
// Everything but the exp is explicit, so every device gives the same bits for the same output where nothing is learned.
//
// PRECOND diffusion_step_fwd: block 256, any 1-D grid (grid-stride); one thread per four elements of an image: images
//                             ceil(image_len / 4) of them; LEARNED: out_len >= 2 image_len; *counter < steps.
#include "normal.cuh"

struct DiffusionStep {  // a row of the device table
  float x0_x, x0_m, k_0, k_x, k_m;
  float sigma, log_ratio;
  unsigned flags;
};
SPEC_LAYOUT(DiffusionStep, x0_x, x0_m, k_0, k_x, k_m, sigma, log_ratio, flags)

struct DiffusionSpec {
  int images, image_len, out_len, guided_len;
  float guidance, clip;  // clip: infinite where nothing is clipped
  int clamp;
  float lo, hi;
  unsigned stream;
};
SPEC_LAYOUT(DiffusionSpec, images, image_len, out_len, guided_len, guidance, clip, clamp, lo, hi, stream)

namespace {

constexpr unsigned LEARNED = 1, LAST = 2;

__device__ __forceinline__ float within(float v, float lo, float hi) { return v < lo ? lo : v > hi ? hi : v; }  // NaN stays NaN

template <class T>
__device__ __forceinline__ void diffusion_steps(float* __restrict__ x, const T* __restrict__ output,
                                                const DiffusionStep* __restrict__ table, const unsigned* __restrict__ counter,
                                                const unsigned* __restrict__ key, const DiffusionSpec& s) {
  dev::grid_begin();
  const unsigned evaluation = *counter;
  const DiffusionStep step = table[evaluation];
  const uint64_t first = static_cast<uint64_t>(key[3]) << 32 | key[2];
  const size_t fours = (static_cast<size_t>(s.image_len) + 3) / 4, n = fours * s.images;
  for (size_t i = dev::first_index(); i < n; i += dev::index_stride()) {
    const size_t image = i / fours, four = i % fours;
    float z[4] = {};
    if (step.sigma != 0.f)
      dev::four_normals(make_uint2(key[0], key[1]), first + image, static_cast<uint32_t>(four), s.stream + evaluation, z);
    const T* c = output + image * s.out_len;
    const T* u = c + static_cast<size_t>(s.images) * s.out_len;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const size_t at = 4 * four + e;
      if (at >= static_cast<size_t>(s.image_len)) break;
      float m = dev::to_f32(c[at]);
      if (at < static_cast<size_t>(s.guided_len)) {
        const float without = dev::to_f32(u[at]);
        m = __fmaf_rn(s.guidance, __fsub_rn(m, without), without);
      }
      float* to = x + image * s.image_len + at;
      const float old = *to;
      const float x0 = within(__fmaf_rn(step.x0_m, m, __fmul_rn(step.x0_x, old)), -s.clip, s.clip);
      float now = __fmaf_rn(step.k_0, x0, __fmaf_rn(step.k_x, old, __fmul_rn(step.k_m, m)));
      if (step.sigma != 0.f) {
        float sigma = step.sigma;
        if (step.flags & LEARNED) {
          const float r = dev::to_f32(c[s.image_len + at]);
          sigma = __fmul_rn(sigma, expf(__fmul_rn(step.log_ratio, __fmaf_rn(0.5f, r, 0.5f))));
        }
        now = __fmaf_rn(sigma, z[e], now);
      }
      if (step.flags & LAST && s.clamp) now = within(now, s.lo, s.hi);
      *to = now;
    }
  }
}

}  // namespace

#define DIFFUSION_EXPORT(T, dtype)                                                                                     \
  KERNEL(__launch_bounds__(256) diffusion_step_fwd_##dtype)                                                            \
  (float* x, const T* output, const DiffusionStep* table, const unsigned* counter, const unsigned* key, DiffusionSpec s) { \
    diffusion_steps<T>(x, output, table, counter, key, s);                                                             \
  }                                                                                                                    \
  KERNEL_EXPORT(diffusion_step_fwd_##dtype)

DIFFUSION_EXPORT(float, f32)
DIFFUSION_EXPORT(__half, f16)
DIFFUSION_EXPORT(__nv_bfloat16, bf16)
