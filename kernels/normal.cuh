// Standard normal numbers out of random words, the same bits on every device and in src/rng.rs.
//
// Each pair of words (a, b) gives two by Box & Muller 1958, r cos(2 pi b / 2^32) and r sin(2 pi b / 2^32) with
// r = sqrt(-2 ln u(a)), u(a) = (a + 1/2) / 2^32, so every value is finite, and |value| < 6.77.
// All arithmetic is explicit (__fmaf_rn and its like): no library function and nothing a compiler may contract or reorder.
#pragma once
#include "philox.cuh"

namespace dev {

// (word + 1/2) / 2^32
__device__ __forceinline__ float unit(uint32_t word) {
  return __fmaf_rn(static_cast<float>(word), 2.3283064365386963e-10f, 1.1641532182693481e-10f);
}

// ln u, u = (a + 1/2) / 2^32, relative error below 2e-7; always negative. u = 2^k m with m in [sqrt(1/2), sqrt(2));
// ln m = 2 atanh(f / (2 + f)), f = m - 1 (coefficients and order of FreeBSD's logf). From sqrt(1/2) on, f = u - 1 is taken
// from the complement of the word, which has all its bits where u rounds to 1.
__device__ __forceinline__ float ln_uniform(uint32_t a) {
  const uint32_t bits = bit_cast<uint32_t>(unit(a)) + (0x3f800000u - 0x3f3504f3u);
  const bool upper = a >= 0xB504F334u;  // sqrt(1/2) 2^32
  const float k = upper ? 0.f : static_cast<float>(static_cast<int>(bits >> 23) - 127);
  const float f = upper ? -unit(~a) : __fsub_rn(bit_cast<float>((bits & 0x007fffffu) + 0x3f3504f3u), 1.f);
  const float s = __fdiv_rn(f, __fadd_rn(2.f, f)), z = __fmul_rn(s, s), w = __fmul_rn(z, z);
  const float even = __fmul_rn(w, __fmaf_rn(w, 0.24279078841f, 0.40000972152f));
  const float odd = __fmul_rn(z, __fmaf_rn(w, 0.28498786688f, 0.66666662693f));
  const float half_square = __fmul_rn(__fmul_rn(0.5f, f), f);
  float y = __fmul_rn(s, __fadd_rn(half_square, __fadd_rn(odd, even)));
  y = __fmaf_rn(k, 9.0580006145e-6f, y);
  y = __fadd_rn(__fsub_rn(y, half_square), f);
  return __fmaf_rn(k, 6.9313812256e-1f, y);
}

// (cos, sin) of 2 pi b / 2^32: the quadrant is integer arithmetic, the rest |t| <= pi/4 a polynomial (Cephes' sinf and cosf).
__device__ __forceinline__ float2 cos_sin(uint32_t b) {
  const uint32_t quadrant = (b + 0x20000000u) >> 30;
  const float t = __fmul_rn(static_cast<float>(static_cast<int>(b - (quadrant << 30))), 1.4629180792671596e-9f);  // (pi/2) / 2^30
  const float z = __fmul_rn(t, t);
  float s = __fmaf_rn(z, -1.9515295891e-4f, 8.3321608736e-3f);
  s = __fmaf_rn(z, s, -1.6666654611e-1f);
  s = __fmaf_rn(__fmul_rn(z, t), s, t);
  float c = __fmaf_rn(z, 2.443315711809948e-5f, -1.388731625493765e-3f);
  c = __fmaf_rn(z, c, 4.166664568298827e-2f);
  c = __fmaf_rn(__fmul_rn(z, z), c, __fmaf_rn(z, -0.5f, 1.f));
  const float x = quadrant & 1 ? s : c, y = quadrant & 1 ? c : s;
  return make_float2((quadrant + 1) & 2 ? -x : x, quadrant & 2 ? -y : y);
}

__device__ __forceinline__ float2 box_muller(uint32_t a, uint32_t b) {
  const float r = __fsqrt_rn(__fmul_rn(-2.f, ln_uniform(a)));
  const float2 p = cos_sin(b);
  return make_float2(__fmul_rn(r, p.x), __fmul_rn(r, p.y));
}

// v = draws 4 four .. 4 four + 3 of image `index` in a stream of numbers; key = seed (lo, hi).
__device__ __forceinline__ void four_normals(uint2 key, uint64_t index, uint32_t four, uint32_t stream, float (&v)[4]) {
  const uint4 w = philox4x32_10(make_uint4(static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), four, stream), key);
  const float2 p = box_muller(w.x, w.y), q = box_muller(w.z, w.w);
  v[0] = p.x;
  v[1] = p.y;
  v[2] = q.x;
  v[3] = q.y;
}

}  // namespace dev
