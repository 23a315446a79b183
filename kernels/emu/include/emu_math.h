// Arithmetic of the CUDA language. The rounding intrinsics are exact, because everything is compiled with
// -ffp-contract=off -mfma and without fast-math; the approximate ones are at least as accurate as a GPU's.
#pragma once
#include <cmath>
#include <cstdlib>
#include <limits>
#include "emu_abi.h"

// ---- bits ----
template <class To, class From> EMU_INL To emu_bits(From v) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To r;
  memcpy(&r, &v, sizeof r);
  return r;
}
EMU_INL int __float_as_int(float v) { return emu_bits<int>(v); }
EMU_INL unsigned __float_as_uint(float v) { return emu_bits<unsigned>(v); }
EMU_INL float __int_as_float(int v) { return emu_bits<float>(v); }
EMU_INL float __uint_as_float(unsigned v) { return emu_bits<float>(v); }
EMU_INL long long __double_as_longlong(double v) { return emu_bits<long long>(v); }
EMU_INL double __longlong_as_double(long long v) { return emu_bits<double>(v); }
EMU_INL int __popc(unsigned v) { return __builtin_popcount(v); }
EMU_INL int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
EMU_INL int __clz(int v) { return v ? __builtin_clz((unsigned)v) : 32; }
EMU_INL int __clzll(long long v) { return v ? __builtin_clzll((unsigned long long)v) : 64; }
EMU_INL int __ffs(int v) { return __builtin_ffs(v); }
EMU_INL unsigned __brev(unsigned v) {
  v = (v >> 1 & 0x55555555u) | (v & 0x55555555u) << 1;
  v = (v >> 2 & 0x33333333u) | (v & 0x33333333u) << 2;
  v = (v >> 4 & 0x0f0f0f0fu) | (v & 0x0f0f0f0fu) << 4;
  return __builtin_bswap32(v);
}
EMU_INL unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned s) { return (unsigned)((((uint64_t)hi << 32 | lo) << (s & 31)) >> 32); }
EMU_INL unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned s) { return (unsigned)(((uint64_t)hi << 32 | lo) >> (s & 31)); }
EMU_INL unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
EMU_INL int __mulhi(int a, int b) { return (int)((int64_t)a * b >> 32); }
EMU_INL unsigned long long __umul64hi(unsigned long long a, unsigned long long b) { return (unsigned long long)((unsigned __int128)a * b >> 64); }

// ---- exactly rounded f32 and f64 ----
EMU_INL float __fadd_rn(float a, float b) { return a + b; }
EMU_INL float __fsub_rn(float a, float b) { return a - b; }
EMU_INL float __fmul_rn(float a, float b) { return a * b; }
EMU_INL float __fdiv_rn(float a, float b) { return a / b; }
EMU_INL float __frcp_rn(float a) { return 1.0f / a; }
EMU_INL float __fsqrt_rn(float a) { return __builtin_sqrtf(a); }
EMU_INL float __frsqrt_rn(float a) { return (float)(1.0 / __builtin_sqrt((double)a)); }
EMU_INL float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
EMU_INL double __dadd_rn(double a, double b) { return a + b; }
EMU_INL double __dsub_rn(double a, double b) { return a - b; }
EMU_INL double __dmul_rn(double a, double b) { return a * b; }
EMU_INL double __ddiv_rn(double a, double b) { return a / b; }
EMU_INL double __dsqrt_rn(double a) { return __builtin_sqrt(a); }
EMU_INL double __fma_rn(double a, double b, double c) { return __builtin_fma(a, b, c); }

// ---- conversions: nearest-even unless named otherwise; to integers they saturate and NaN is 0 (PTX cvt) ----
EMU_INL float __int2float_rn(int v) { return (float)v; }
EMU_INL float __uint2float_rn(unsigned v) { return (float)v; }
EMU_INL float __ll2float_rn(long long v) { return (float)v; }
EMU_INL float __ull2float_rn(unsigned long long v) { return (float)v; }
EMU_INL double __int2double_rn(int v) { return (double)v; }
EMU_INL double __uint2double_rn(unsigned v) { return (double)v; }
EMU_INL float __double2float_rn(double v) { return (float)v; }
template <class I> EMU_INL I emu_saturate(double v) {  // v is integral or NaN; 32-bit targets only
  static_assert(sizeof(I) == 4, "exact in double");
  if (v != v) return 0;
  if (v <= (double)std::numeric_limits<I>::min()) return std::numeric_limits<I>::min();
  if (v >= (double)std::numeric_limits<I>::max()) return std::numeric_limits<I>::max();
  return (I)v;
}
EMU_INL int __float2int_rn(float v) { return emu_saturate<int>(__builtin_rint((double)v)); }
EMU_INL int __float2int_rz(float v) { return emu_saturate<int>(__builtin_trunc((double)v)); }
EMU_INL int __float2int_rd(float v) { return emu_saturate<int>(__builtin_floor((double)v)); }
EMU_INL int __float2int_ru(float v) { return emu_saturate<int>(__builtin_ceil((double)v)); }
EMU_INL unsigned __float2uint_rn(float v) { return emu_saturate<unsigned>(__builtin_rint((double)v)); }
EMU_INL unsigned __float2uint_rz(float v) { return emu_saturate<unsigned>(__builtin_trunc((double)v)); }
EMU_INL unsigned __float2uint_rd(float v) { return emu_saturate<unsigned>(__builtin_floor((double)v)); }
EMU_INL int __double2int_rn(double v) { return emu_saturate<int>(__builtin_rint(v)); }
EMU_INL int __double2int_rz(double v) { return emu_saturate<int>(__builtin_trunc(v)); }

// ---- functions beyond <cmath> ----
EMU_INL float rsqrtf(float x) { return 1.0f / __builtin_sqrtf(x); }
EMU_INL double rsqrt(double x) { return 1.0 / __builtin_sqrt(x); }
EMU_INL float fdividef(float a, float b) { return a / b; }
EMU_INL float __fdividef(float a, float b) { return a / b; }
EMU_INL float __expf(float x) { return expf(x); }
EMU_INL float __exp2f(float x) { return exp2f(x); }
EMU_INL float __logf(float x) { return logf(x); }
EMU_INL float __log2f(float x) { return log2f(x); }
EMU_INL float __sinf(float x) { return sinf(x); }
EMU_INL float __cosf(float x) { return cosf(x); }
EMU_INL float __powf(float x, float y) { return powf(x, y); }
EMU_INL float __tanhf(float x) { return tanhf(x); }
EMU_INL float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
EMU_INL float exp10f(float x) { return powf(10.0f, x); }

// ---- min and max as overloaded in CUDA: mixed signedness compares unsigned, floats follow fminf and fmaxf ----
EMU_INL int min(int a, int b) { return b < a ? b : a; }
EMU_INL int max(int a, int b) { return a < b ? b : a; }
EMU_INL unsigned min(unsigned a, unsigned b) { return b < a ? b : a; }
EMU_INL unsigned max(unsigned a, unsigned b) { return a < b ? b : a; }
EMU_INL unsigned min(int a, unsigned b) { return min((unsigned)a, b); }
EMU_INL unsigned max(int a, unsigned b) { return max((unsigned)a, b); }
EMU_INL unsigned min(unsigned a, int b) { return min(a, (unsigned)b); }
EMU_INL unsigned max(unsigned a, int b) { return max(a, (unsigned)b); }
EMU_INL long min(long a, long b) { return b < a ? b : a; }
EMU_INL long max(long a, long b) { return a < b ? b : a; }
EMU_INL unsigned long min(unsigned long a, unsigned long b) { return b < a ? b : a; }
EMU_INL unsigned long max(unsigned long a, unsigned long b) { return a < b ? b : a; }
EMU_INL long long min(long long a, long long b) { return b < a ? b : a; }
EMU_INL long long max(long long a, long long b) { return a < b ? b : a; }
EMU_INL unsigned long long min(unsigned long long a, unsigned long long b) { return b < a ? b : a; }
EMU_INL unsigned long long max(unsigned long long a, unsigned long long b) { return a < b ? b : a; }
EMU_INL float min(float a, float b) { return fminf(a, b); }
EMU_INL float max(float a, float b) { return fmaxf(a, b); }
EMU_INL double min(double a, double b) { return fmin(a, b); }
EMU_INL double max(double a, double b) { return fmax(a, b); }
